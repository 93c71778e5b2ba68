//! Ranks that meet through a coordinator, lose one of them, and meet again.

use std::sync::Barrier;

use fovea_coordinator::client::{Client, Endpoint};
use fovea_coordinator::protocol::{Assignment, Ready, Terms, TrainerInfo};
use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::server::{Server, ServerOptions};

use super::device::wait_for_a_sum;
use super::testing::{exercise, soon};
use super::*;

fn ready(held: Option<&Assignment>) -> Ready {
    Ready {
        terms: Terms {
            samples_per_epoch: 100,
            fingerprint: "same".to_owned(),
            elastic: true,
        },
        have: held.map(|seat| seat.start),
        gave_up: None,
    }
}

/// As a trainer meets the ranks of its generation.
fn meet(client: &mut Client, seat: &Assignment) -> NcclCollective {
    let abort = AbortHandle::new();
    let raised = abort.clone();
    let signal = client.abort_signal();
    signal.on_abort(move |notice| raised.abort(&notice.abort.reason));
    let id = if seat.rank == 0 {
        let id = library().unique_id().unwrap();
        client.publish(seat.generation, id.0.to_vec()).unwrap();
        id
    } else {
        let bytes = client.published(seat.generation, soon()).unwrap();
        UniqueId(bytes.try_into().unwrap())
    };
    join(id, (seat.rank, seat.world), &abort, soon()).unwrap()
}

/// The operation of the first generation that its ranks wait in when two of them are lost: joining is the one before.
const HANGS: i32 = 1;

/// One rank of four: two generations, the first of which ends when ranks 2 and 3 are lost during a sum. The world size of
/// the second one.
fn rank(endpoint: &Endpoint, pid: u32, all_met: &Barrier) -> Option<usize> {
    let info = TrainerInfo {
        pid,
        preferred_rank: Some(pid),
        ..TrainerInfo::this_process(None)
    };
    let mut client = Client::connect(endpoint, info, soon()).unwrap();
    let seat = client.ready(&ready(None), soon()).unwrap();
    let mut nccl = meet(&mut client, &seat);
    // A rank that is lost earlier ends the others' joining, not their sum.
    all_met.wait();
    if seat.rank >= 2 {
        // As a process that is killed: nothing is ended in order, and the connection closes.
        nccl.abort_handle().abort("killed");
        return None;
    }
    let begun = Instant::now();
    let error = wait_for_a_sum(&mut nccl, soon(), || ()).to_string();
    assert!(
        error.contains("is gone while the run was at step 0"),
        "the coordinator's reason: {error}"
    );
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    drop(nccl);
    standin::set(standin::Set::HangAt(-1));
    let seat = client.ready(&ready(Some(&seat)), soon()).unwrap();
    assert_eq!(seat.generation, 2);
    exercise(&mut meet(&mut client, &seat), 2, &[10]);
    Some(seat.world)
}

#[test]
fn survivors_of_lost_ranks_meet_again_with_a_new_id() {
    let _turn = Turn::take(false);
    standin::set(standin::Set::HangAt(HANGS));
    let dir = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(dir.path().join("run"), 4, 4, 1);
    let lock = RunLock::acquire(&options.run_dir).unwrap();
    let server = Server::bind(options, lock).unwrap();
    let endpoint = server.endpoint();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let coordinator = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let shutdown = async {
            drop(stopped.await);
            "end of test".to_owned()
        };
        runtime.block_on(server.run(shutdown)).unwrap()
    });
    let all_met = Barrier::new(4);
    let worlds: Vec<_> = std::thread::scope(|scope| {
        let (endpoint, all_met) = (&endpoint, &all_met);
        let ranks: Vec<_> = (0..4)
            .map(|pid| scope.spawn(move || rank(endpoint, pid, all_met)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(worlds, [Some(2), Some(2), None, None]);
    stop.send(()).unwrap();
    coordinator.join().unwrap();
}
