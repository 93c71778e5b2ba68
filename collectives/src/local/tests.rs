//! Ranks as threads of one process (each with its own mapping), and as real processes: a test that
//! needs those runs this test binary again, once per rank, on one of the ignored tests below.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fovea_coordinator::host::machine;
use proptest::prelude::*;

use super::*;
use crate::testing::{child_command, exercise, soon};

/// Options of rank 0 in a run that no other test has.
fn options(world: usize, chunk_f32: usize) -> LocalOptions {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    LocalOptions {
        run_id: format!("test-{}", std::process::id()),
        generation: RUNS.fetch_add(1, Ordering::Relaxed),
        rank: 0,
        world,
        machines: (0..world).map(|rank| seated(rank, &machine())).collect(),
        chunk_f32,
    }
}

/// Runs `body` on every rank of a fresh world; the results in rank order.
fn on_ranks<T: Send>(
    world: usize,
    chunk_f32: usize,
    body: impl Fn(LocalCollective) -> T + Sync,
) -> Vec<T> {
    let options = options(world, chunk_f32);
    std::thread::scope(|scope| {
        let start = |rank| {
            let options = LocalOptions {
                rank,
                ..options.clone()
            };
            let body = &body;
            scope.spawn(move || {
                body(LocalCollective::join(&options, &AbortHandle::new(), soon()).unwrap())
            })
        };
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_operation_at_any_world_chunk_and_length(
        world in 1_usize..6,
        chunk in 1_usize..200,
        lens in prop::collection::vec(0_usize..700, 1..5),
        seed: u32,
    ) {
        on_ranks(world, chunk, |mut local| exercise(&mut local, seed.into(), &lens));
    }
}

#[test]
fn an_abort_from_another_thread_ends_every_wait_at_once() {
    let times = on_ranks(3, 64, |mut local| {
        let rank = local.rank();
        if rank == 2 {
            // Does not take part; its heartbeat thread hears of the new generation.
            while (0..2).any(|other| local.segment.seen(other, 2) == Seen::NotYet) {
                std::thread::yield_now();
            }
            let handle = local.abort_handle();
            let raised = Instant::now();
            let abort = move || handle.abort("generation 7: rank 5 lost");
            std::thread::spawn(abort).join().unwrap();
            return raised;
        }
        let error = local.all_reduce(&mut [1.0; 100], soon()).unwrap_err();
        let noticed = Instant::now();
        let text = error.to_string();
        assert!(
            text.contains(&format!("all_reduce on rank {rank} was aborted by rank 2"))
                && text.contains("generation 7: rank 5 lost"),
            "{text}"
        );
        // From now on nothing works any more, on any rank.
        let again = local.barrier(soon()).unwrap_err();
        assert!(
            matches!(again, Error::Aborted { by: Some(2), .. }),
            "{again}"
        );
        noticed
    });
    for noticed in &times[..2] {
        // Well under 1 ms when the machine is idle; a machine that is not may be late. Without the
        // wake-up it would be the deadline's 20 s.
        let late = noticed.saturating_duration_since(times[2]);
        assert!(late < Duration::from_secs(2), "noticed after {late:?}");
    }
}

#[test]
fn a_missing_rank_is_named_when_the_deadline_passes() {
    let errors = on_ranks(3, 64, |mut local| {
        if local.rank() == 1 {
            // Alive, but stuck elsewhere until the others have given up.
            while local.segment.seen(1, 0) != Seen::Aborted {
                std::thread::sleep(Duration::from_millis(1));
            }
            return local.barrier(soon()).unwrap_err();
        }
        let deadline = Instant::now() + Duration::from_millis(50);
        local.barrier(deadline).unwrap_err()
    });
    let pid = std::process::id();
    let absent = vec![Absent {
        rank: 1,
        process: Some((pid, "alive")),
    }];
    let expired =
        |error: &&Error| matches!(error, Error::Deadline { absent: a, .. } if *a == absent);
    // The other of the two may already hear that its peer has given up.
    assert!(errors.iter().any(|error| expired(&error)), "{errors:?}");
    assert!(
        matches!(errors[1], Error::Aborted { .. }),
        "{:?}",
        errors[1]
    );
    let text = errors.iter().find(expired).unwrap().to_string();
    assert!(
        text.contains(&format!(
            "waiting for rank 1 (process {pid}, alive)\n  help: "
        )),
        "{text}"
    );
}

#[test]
fn a_deadline_that_is_past_does_not_matter_when_all_are_there() {
    on_ranks(2, 64, |mut local| {
        if local.rank() == 0 {
            // Rank 1 arrives first, so that rank 0 need not wait.
            while local.segment.seen(1, 2) == Seen::NotYet {
                std::thread::yield_now();
            }
            local.barrier(Instant::now()).unwrap();
        } else {
            local.barrier(soon()).unwrap();
        }
    });
}

#[test]
fn ranks_in_different_operations_find_out() {
    let errors = on_ranks(2, 64, |mut local| match local.rank() {
        0 => local.all_reduce(&mut [0.0; 70], soon()).unwrap_err(),
        _ => local.all_reduce(&mut [0.0; 71], soon()).unwrap_err(),
    });
    let mismatch = errors
        .iter()
        .find(|e| matches!(e, Error::Mismatch { .. }))
        .unwrap()
        .to_string();
    assert!(
        mismatch.contains("all_reduce of 70 f32") && mismatch.contains("all_reduce of 71 f32"),
        "{mismatch}"
    );
}

#[test]
fn joining_can_be_aborted_and_has_a_deadline() {
    for rank in [0, 1] {
        let options = LocalOptions {
            rank,
            ..options(2, 64)
        };
        let abort = AbortHandle::new();
        let deadline = Instant::now() + Duration::from_millis(30);
        let error = LocalCollective::join(&options, &abort, deadline)
            .err()
            .unwrap();
        assert!(
            matches!(&error, Error::Deadline { absent, .. } if absent[0].rank == 1 - rank),
            "{error}"
        );
        let handle = abort.clone();
        let raise = std::thread::spawn(move || handle.abort("generation 2"));
        let error = LocalCollective::join(&options, &abort, soon())
            .err()
            .unwrap();
        assert!(matches!(error, Error::Aborted { .. }), "{error}");
        raise.join().unwrap();
    }
}

#[test]
fn rank_0_giving_up_tells_the_ranks_that_are_in() {
    let options = options(3, 64);
    std::thread::scope(|scope| {
        let join = |rank, deadline| {
            let options = LocalOptions {
                rank,
                ..options.clone()
            };
            scope.spawn(move || LocalCollective::join(&options, &AbortHandle::new(), deadline))
        };
        let host = join(0, Instant::now() + Duration::from_millis(300));
        let guest = join(1, soon());
        let error = host.join().unwrap().err().unwrap();
        assert!(
            matches!(&error, Error::Deadline { absent, .. } if absent.len() == 1 && absent[0].rank == 2),
            "{error}"
        );
        let error = guest.join().unwrap().err().unwrap();
        assert!(
            matches!(error, Error::Aborted { by: Some(0), .. }),
            "{error}"
        );
    });
}

#[test]
fn a_seat_is_given_once_and_settings_must_agree() {
    let options = options(2, 64);
    let seat = |rank, chunk_f32| LocalOptions {
        rank,
        chunk_f32,
        ..options.clone()
    };
    let join = |options: LocalOptions| {
        std::thread::spawn(move || LocalCollective::join(&options, &AbortHandle::new(), soon()))
    };
    let host = join(seat(0, 64));
    let name = format!("@{}\n", rendezvous::socket_name(&options));
    while !std::fs::read_to_string("/proc/net/unix")
        .unwrap()
        .contains(&name)
    {
        std::thread::yield_now();
    }
    let error = join(seat(0, 64)).join().unwrap().err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("another process is rank 0 of this generation"),
        "{text}"
    );
    assert!(!host.is_finished(), "the first one keeps the seat");
    // Another chunk length: both sides say so.
    let error = join(seat(1, 128)).join().unwrap().err().unwrap();
    assert!(
        matches!(&error, Error::Refused { reason, .. } if reason.contains("chunks of 64 f32")),
        "{error}"
    );
    let error = host.join().unwrap().err().unwrap();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[test]
fn seats_outside_the_world_and_other_hosts_are_refused() {
    for (rank, world) in [(0, 0), (2, 2), (0, MAX_WORLD + 1)] {
        let options = LocalOptions {
            rank,
            ..options(world, 64)
        };
        let error = LocalCollective::join(&options, &AbortHandle::new(), soon());
        assert!(matches!(error.err(), Some(Error::BadSeat { .. })));
    }
    let mut apart = options(2, 64);
    apart.machines = vec![seated(0, "node1/aaaa"), seated(1, "node2/bbbb")];
    let error = LocalCollective::join(&apart, &AbortHandle::new(), soon())
        .err()
        .unwrap();
    let text = error.to_string();
    for part in [
        "rank 0 is on node1/aaaa",
        "rank 1 on node2/bbbb",
        "--backend mpi",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Containers of one machine have other names and one boot id.
    let pair = |one, other| [seated(0, one), seated(1, other)];
    same_host(&pair("a/1", "b/1")).unwrap();
    same_host(&pair("a/", "a/")).unwrap();
    same_host(&pair("a/", "b/")).unwrap_err();
    same_host(&[]).unwrap();
    assert!(machine().split_once('/').unwrap().1.len() > 8);
}

fn seated(rank: usize, machine: &str) -> Seated {
    Seated {
        rank,
        machine: machine.to_owned(),
    }
}

/// Starts the ignored test `name` of this file as a process of its own.
fn spawn_child(name: &str, options: &LocalOptions) -> Child {
    child_command(module_path!(), name)
        .env("FOVEA_TEST_SEAT", seat_text(options))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn seat_text(o: &LocalOptions) -> String {
    format!(
        "{} {} {} {} {}",
        o.run_id, o.generation, o.rank, o.world, o.chunk_f32
    )
}

/// The seat that [`spawn_child`] gave this process.
fn child_seat() -> LocalOptions {
    let text = std::env::var("FOVEA_TEST_SEAT").expect("run by another test of this file only");
    let words: Vec<&str> = text.split(' ').collect();
    let number = |i: usize| words[i].parse::<usize>().unwrap();
    LocalOptions {
        run_id: words[0].to_string(),
        generation: number(1) as u64,
        rank: number(2),
        world: number(3),
        machines: Vec::new(),
        chunk_f32: number(4),
    }
}

const PROCESS_LENS: [usize; 5] = [0, 1, 1000, 4097, 12345];

#[test]
#[ignore = "a rank of `processes_get_the_same_bits`, which starts it"]
fn child_exercises() {
    let mut local = LocalCollective::join(&child_seat(), &AbortHandle::new(), soon()).unwrap();
    exercise(&mut local, 5, &PROCESS_LENS);
}

#[test]
#[ignore = "the rank that `a_killed_rank_leaves_nothing_behind` kills"]
fn child_sticks() {
    let mut local = LocalCollective::join(&child_seat(), &AbortHandle::new(), soon()).unwrap();
    local.all_reduce(&mut [1.0; 500], soon()).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn processes_get_the_same_bits() {
    for world in [2, 4] {
        let options = options(world, 1000);
        let start = |rank| {
            let options = LocalOptions {
                rank,
                ..options.clone()
            };
            spawn_child("child_exercises", &options)
        };
        let children: Vec<Child> = (1..world).map(start).collect();
        let mut local = LocalCollective::join(&options, &AbortHandle::new(), soon()).unwrap();
        exercise(&mut local, 5, &PROCESS_LENS);
        for (i, mut child) in children.into_iter().enumerate() {
            assert!(child.wait().unwrap().success(), "rank {} of {world}", i + 1);
        }
    }
}

#[test]
fn a_killed_rank_leaves_nothing_behind() {
    let options = options(2, 64);
    let mut child = spawn_child(
        "child_sticks",
        &LocalOptions {
            rank: 1,
            ..options.clone()
        },
    );
    let pid = child.id();
    let mut local = LocalCollective::join(&options, &AbortHandle::new(), soon()).unwrap();
    local.all_reduce(&mut [1.0; 500], soon()).unwrap();
    child.kill().unwrap();
    while process_state(pid) != "gone" {
        std::thread::yield_now();
    }
    let deadline = Instant::now() + Duration::from_millis(50);
    let text = local
        .all_reduce(&mut [1.0; 500], deadline)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains(&format!("rank 1 (process {pid}, gone)")),
        "{text}"
    );
    child.wait().unwrap();
    drop(local);
    // Neither a file nor a socket: the next generation, and even the same one, starts clean.
    let left = std::fs::read_dir("/dev/shm").unwrap().flatten();
    assert_eq!(
        left.filter(|e| e.file_name().to_string_lossy().contains("fovea"))
            .count(),
        0
    );
    let guest = LocalOptions {
        rank: 1,
        ..options.clone()
    };
    let guest =
        std::thread::spawn(move || LocalCollective::join(&guest, &AbortHandle::new(), soon()));
    LocalCollective::join(&options, &AbortHandle::new(), soon()).unwrap();
    guest.join().unwrap().unwrap();
}
