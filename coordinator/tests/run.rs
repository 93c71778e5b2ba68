//! Whole runs over real sockets: training, draining, losing ranks, restarting.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use common::{Coordinator, TOTAL, Trainer, on_ranks, options, ready, soon, trainer};
use fovea_coordinator::client::{Client, Decision, Endpoint, Observer, status_of};
use fovea_coordinator::journal::{self, JournalEntry};
use fovea_coordinator::ledger;
use fovea_coordinator::protocol::{
    Abort, Cause, CheckpointInfo, MemberState, Next, PUBLISH_MAX, Role, StartPoint, TrainerEvent,
    Vote,
};
use fovea_coordinator::rundir::{CoordinatorInfo, RunLock};
use fovea_coordinator::server::{RunOutcome, ServerOptions};
use fovea_coordinator::status::{RunState, Status};
use fovea_coordinator::{Error, server};

/// The steps that the ledger says made the newest weights.
fn committed(run: &Path) -> Vec<ledger::CommittedStep> {
    let records = ledger::read(run).unwrap().records;
    ledger::history(records.iter().map(|record| &record.entry))
}

#[test]
fn four_ranks_train_two_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 4));
    let endpoint = Endpoint::RunDir(dir.path().join("run"));
    let ranks = on_ranks(&endpoint, 4, |mut trainer| {
        let rank = trainer.seat.rank;
        assert_eq!(trainer.seat.machines.len(), 1, "all are on one machine");
        for _ in 0..20 {
            assert!(matches!(
                trainer.step(),
                Decision::Commit {
                    next: Next::Step,
                    ..
                }
            ));
        }
        if rank == 0 {
            let metrics = [("f1_micro".to_owned(), 0.5), ("nan".to_owned(), f64::NAN)];
            let event = TrainerEvent::EpochEnd {
                epoch: 1,
                metrics: metrics.into(),
                undefined: Some("no val patch".to_owned()),
            };
            trainer.client.event(event).unwrap();
            let saved = CheckpointInfo {
                step: 20,
                path: "checkpoints/step-00000020".to_owned(),
                weights_blake3: "w".to_owned(),
                took_ms: 5,
            };
            // Any thread may report.
            let reporter = trainer.client.reporter();
            let writer =
                std::thread::spawn(move || reporter.event(TrainerEvent::CheckpointSaved(saved)));
            writer.join().unwrap().unwrap();
        }
        trainer.finish();
        rank
    });
    let seats: BTreeSet<usize> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert_eq!(seats, BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(coordinator.outcome(), RunOutcome::Finished { step: 20 });

    let run = dir.path().join("run");
    let steps = committed(&run);
    let ranges: Vec<_> = steps
        .iter()
        .map(|s| (s.epoch, s.step, s.cursor_start, s.cursor_end))
        .collect();
    let expected: Vec<_> = (0..20u32)
        .map(|i| {
            (
                i / 10,
                u64::from(i) + 1,
                u64::from(i % 10) * 10,
                u64::from(i % 10) * 10 + 10,
            )
        })
        .collect();
    assert_eq!(ranges, expected);

    assert!(
        CoordinatorInfo::load(&run).is_err(),
        "the address file is gone"
    );
    let (status, live) = status_of(&run).unwrap();
    assert!(!live);
    assert_eq!(status.state, RunState::Finished);
    assert_eq!((status.step, status.epoch, status.cursor), (20, 1, TOTAL));
    assert_eq!((status.generation, status.loss), (1, Some(0.5)));
    assert_eq!(status.checkpoint.unwrap().step, 20);
    let metrics = status.last_epoch.unwrap().metrics;
    assert_eq!(
        metrics.into_iter().collect::<Vec<_>>(),
        [("f1_micro".to_owned(), 0.5)]
    );
    let entries = journal::read(&run).unwrap().records;
    assert!(
        matches!(&entries[2].entry, JournalEntry::Ended { outcome, step: 20, .. } if outcome == "finished")
    );
}

#[test]
fn a_launcher_drains_all_ranks_at_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 4));
    let (told, first_steps) = mpsc::channel();
    let ranks = on_ranks(&coordinator.endpoint, 4, move |mut trainer| {
        trainer.step();
        told.send(()).unwrap();
        trainer.until_drained()
    });
    first_steps.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut launcher = Observer::connect_launcher(&coordinator.endpoint, soon()).unwrap();
    let noted = launcher.drain("Ctrl-C").unwrap();
    assert!(noted.contains("will be the last one: Ctrl-C"), "{noted}");
    drop(launcher);
    let last: BTreeSet<u64> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert_eq!(last.len(), 1);
    let step = *last.first().unwrap();
    assert_eq!(coordinator.outcome(), RunOutcome::Drained { step });
    let status = Status::load(&dir.path().join("run")).unwrap();
    assert_eq!((status.state, status.step), (RunState::Stopped, step));
    assert!(status.reason.contains("Ctrl-C"), "{}", status.reason);
}

#[test]
fn a_trainer_drains_all_ranks_too() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let ranks = on_ranks(&coordinator.endpoint, 2, |mut trainer| {
        trainer.step();
        if trainer.seat.rank == 1 {
            trainer.client.drain("rank 1 got SIGTERM").unwrap();
        }
        trainer.until_drained()
    });
    let last: Vec<u64> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    // Rank 1 asked before it voted for step 2.
    assert_eq!(last, [2, 2]);
    assert_eq!(coordinator.outcome(), RunOutcome::Drained { step: 2 });
}

#[test]
fn a_drain_before_the_first_step_ends_the_run_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let mut client = Client::connect(&coordinator.endpoint, trainer(0), soon()).unwrap();
    let waiting = std::thread::spawn(move || client.ready(&ready(), soon()).unwrap_err());
    let mut launcher = Observer::connect_launcher(&coordinator.endpoint, soon()).unwrap();
    launcher.drain("SIGTERM").unwrap();
    assert_eq!(coordinator.outcome(), RunOutcome::Drained { step: 0 });
    let error = waiting.join().unwrap();
    assert!(
        matches!(&error, Error::Aborted(abort) if abort.cause == Cause::Drained),
        "{error}"
    );
}

#[test]
fn a_rank_that_vanishes_is_named_and_the_others_are_aborted_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 4));
    let ranks = on_ranks(&coordinator.endpoint, 4, |mut trainer| {
        trainer.step();
        trainer.step();
        match trainer.seat.rank {
            // As a killed process: the socket closes.
            2 => None,
            // In a collective, not in a vote.
            0 => {
                let (sender, aborted) = mpsc::channel();
                let signal = trainer.client.abort_signal();
                signal.on_abort(move |notice| sender.send(notice.clone()).unwrap());
                let notice = aborted.recv_timeout(Duration::from_secs(20)).unwrap();
                assert!(signal.is_set() && !notice.lost);
                // The vote that it would have cast is not sent into the void.
                assert!(matches!(trainer.step(), Decision::Abort(_)));
                Some((notice.abort.cause, notice.abort.reason))
            }
            _ => match trainer.step() {
                Decision::Abort(abort) if abort.generation == 1 => {
                    Some((abort.cause, abort.reason))
                }
                other => panic!("{other:?}"),
            },
        }
    });
    let expected = "rank 2 (host testhost, pid 2, last step 2) is gone while the run was at step 2";
    for told in ranks.into_iter().filter_map(|rank| rank.join().unwrap()) {
        assert_eq!(told.0, Cause::Failed);
        assert!(told.1.starts_with(expected), "{}", told.1);
    }
    let RunOutcome::Failed { reason } = coordinator.outcome() else {
        panic!("not failed");
    };
    assert!(reason.starts_with(expected), "{reason}");
    let status = Status::load(&dir.path().join("run")).unwrap();
    assert_eq!((status.state, status.step), (RunState::Failed, 2));
}

#[test]
fn what_rank_0_publishes_reaches_the_others_until_the_generation_ends() {
    let dir = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(dir.path().join("run"), 4, 4, 2);
    let coordinator = Coordinator::start(options);
    let all_told = Arc::new(Barrier::new(4));
    let ranks = on_ranks(&coordinator.endpoint, 4, move |mut trainer| {
        let client = &mut trainer.client;
        if trainer.seat.rank == 0 {
            client.publish(1, vec![9; PUBLISH_MAX]).unwrap();
            all_told.wait();
            return; // and the connection closes
        }
        let bytes = client.published(1, soon()).unwrap();
        assert_eq!(bytes, vec![9; PUBLISH_MAX]);
        all_told.wait();
        let error = client.published(1, soon()).unwrap_err();
        let ended = matches!(&error, Error::Aborted(Abort { cause: Cause::Regroup, reason, .. })
            if reason.contains("rank 0"));
        assert!(ended, "{error}");
    });
    for rank in ranks {
        rank.join().unwrap();
    }
    coordinator.stop("end of test");
}

#[test]
fn a_rank_that_publishes_what_it_may_not_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(ServerOptions::new(dir.path().join("run"), 1, 4, 2));
    let mut trainer = Trainer::join(&coordinator.endpoint, 0);
    trainer.client.publish(1, vec![9; PUBLISH_MAX + 1]).unwrap();
    let error = trainer.client.published(1, soon()).unwrap_err().to_string();
    assert!(
        error.contains("published 1025 bytes") || error.contains("gave up"),
        "{error}"
    );
    coordinator.stop("end of test");
}

#[test]
fn a_rank_without_heartbeats_is_lost_after_the_lapse() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 2);
    options.heartbeat_lapse_ms = 400;
    let coordinator = Coordinator::start(options);
    // A process that is stopped: its socket stays open, nothing comes.
    let (mut silent, _) = coordinator.dial_as(Role::Trainer(trainer(1)));
    let request = fovea_coordinator::protocol::Request::Ready(ready());
    fovea_coordinator::codec::write_frame(&mut silent, &request).unwrap();
    let mut alive = Trainer::join(&coordinator.endpoint, 0);
    let told = alive.step();
    let Decision::Abort(Abort { reason, .. }) = told else {
        panic!("{told:?}");
    };
    assert!(
        reason.starts_with("rank 1 (host testhost, pid 1") && reason.contains("limit is 400 ms"),
        "{reason}"
    );
    assert_eq!(coordinator.outcome(), RunOutcome::Failed { reason });
}

#[test]
fn heartbeats_alone_keep_a_busy_rank_alive() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    options.heartbeat_lapse_ms = 300;
    let coordinator = Coordinator::start(options);
    let mut busy = Trainer::join(&coordinator.endpoint, 0);
    busy.client
        .heartbeat_state(MemberState::Evaluating, 0, 12.5);
    let mut observer = Observer::connect(&coordinator.endpoint, soon()).unwrap();
    // Until the state has arrived, and then for three times the lapse.
    let mut until = soon();
    let mut seen = false;
    while std::time::Instant::now() < until {
        let status = observer.status().unwrap();
        assert!(matches!(
            status.state,
            RunState::Training | RunState::Evaluating
        ));
        if status.state == RunState::Evaluating && !seen {
            assert_eq!(status.ranks[0].samples_per_s, 12.5);
            seen = true;
            until = std::time::Instant::now() + Duration::from_millis(900);
        }
        std::thread::yield_now();
    }
    assert!(seen);
    busy.step();
    busy.finish();
    assert_eq!(coordinator.outcome(), RunOutcome::Finished { step: 1 });
}

#[test]
fn a_rank_that_says_why_it_fails_is_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let ranks = on_ranks(&coordinator.endpoint, 2, |mut trainer| {
        trainer.step();
        if trainer.seat.rank == 1 {
            let reason = "shard 3 is damaged".to_owned();
            trainer
                .client
                .event(TrainerEvent::Failed { reason })
                .unwrap();
            return;
        }
        assert!(matches!(trainer.step(), Decision::Abort(abort) if abort.cause == Cause::Failed));
    });
    for rank in ranks {
        rank.join().unwrap();
    }
    let outcome = coordinator.outcome();
    assert!(
        matches!(&outcome, RunOutcome::Failed { reason } if reason.ends_with("failed: shard 3 is damaged")),
        "{outcome:?}"
    );
}

#[test]
fn a_loss_that_is_not_finite_moves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let ranks = on_ranks(&coordinator.endpoint, 2, |mut trainer| {
        trainer.step();
        let vote = Vote {
            finite: trainer.seat.rank != 1,
            loss: f64::NAN,
            ..trainer.next_vote()
        };
        let told = trainer.client.vote(&vote, soon()).unwrap();
        assert!(
            matches!(&told, Decision::Abort(Abort { reason, .. }) if reason.contains("not finite in step 2")),
            "{told:?}"
        );
    });
    for rank in ranks {
        rank.join().unwrap();
    }
    assert!(matches!(coordinator.outcome(), RunOutcome::Failed { .. }));
    let steps = committed(&dir.path().join("run"));
    assert_eq!(steps.len(), 1);
}

#[test]
fn a_resumed_run_has_a_new_generation_and_new_ids() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let first = coordinator.token.clone();
    let ranks = on_ranks(&coordinator.endpoint, 2, |mut trainer| {
        for _ in 0..4 {
            trainer.step();
        }
        (
            trainer.client.member(),
            trainer.client.reporter().drain("x").is_ok(),
        )
    });
    let ids: Vec<_> = ranks
        .into_iter()
        .map(|rank| rank.join().unwrap().0)
        .collect();
    // Both vanished without leaving.
    assert!(matches!(coordinator.outcome(), RunOutcome::Failed { .. }));

    let mut again = options(dir.path(), 1);
    again.start = StartPoint {
        epoch: 0,
        step: 2,
        cursor: 20,
    };
    let coordinator = Coordinator::start(again);
    assert_eq!(
        coordinator.token, first,
        "trainers that come back know the token"
    );
    let mut trainer = Trainer::join(&coordinator.endpoint, 0);
    assert_eq!((trainer.seat.generation, trainer.seat.start.step), (2, 2));
    assert!(!ids.contains(&trainer.client.member()));
    for _ in 0..8 {
        trainer.step();
    }
    trainer.finish();
    assert_eq!(coordinator.outcome(), RunOutcome::Finished { step: 10 });
    let steps = committed(&run);
    let from: Vec<u64> = steps.iter().map(|s| s.cursor_start).collect();
    assert_eq!(from, (0..10).map(|i| i * 10).collect::<Vec<_>>());
    let generations: Vec<u64> = steps.iter().map(|s| s.generation).collect();
    assert_eq!(generations, [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
}

#[test]
fn a_live_run_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let second = server::run(options(dir.path(), 1), std::future::pending());
    let error = runtime.block_on(second).unwrap_err().to_string();
    let expected = format!("is in use by pid {} on host ", std::process::id());
    assert!(
        error.contains(&expected) && error.contains("help:"),
        "{error}"
    );
    assert!(
        matches!(coordinator.stop("second Ctrl-C"), RunOutcome::Stopped { reason } if reason == "second Ctrl-C")
    );
    RunLock::acquire(&dir.path().join("run")).unwrap();
}

#[test]
fn a_shutdown_reaches_the_ranks_and_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let mut trainer = Trainer::join(&coordinator.endpoint, 0);
    trainer.step();
    let mut launcher = Observer::connect_launcher(&coordinator.endpoint, soon()).unwrap();
    launcher.shutdown("user").unwrap();
    assert!(matches!(trainer.step(), Decision::Abort(abort) if abort.cause == Cause::Stopped));
    let reason = "user".to_owned();
    assert_eq!(coordinator.outcome(), RunOutcome::Stopped { reason });
}

#[test]
fn a_launcher_fails_a_run_whose_trainer_never_came() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let mut client = Client::connect(&coordinator.endpoint, trainer(0), soon()).unwrap();
    let waiting = std::thread::spawn(move || client.ready(&ready(), soon()).unwrap_err());
    let mut launcher = Observer::connect_launcher(&coordinator.endpoint, soon()).unwrap();
    launcher.fail("trainer 1 ended with signal 9").unwrap();
    let error = waiting.join().unwrap().to_string();
    assert!(error.contains("trainer 1 ended with signal 9"), "{error}");
    assert!(matches!(coordinator.outcome(), RunOutcome::Failed { .. }));
}

#[test]
fn a_coordinator_that_dies_sets_the_abort_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    options.run_dir = dir.path().join("other");
    let lock = RunLock::acquire(&options.run_dir).unwrap();
    let server = server::Server::bind(options, lock).unwrap();
    let endpoint = server.endpoint();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let task = runtime.spawn(server.run(std::future::pending()));
    let mut trainer = Trainer::join(&endpoint, 0);
    let (sender, aborted) = mpsc::channel();
    trainer
        .client
        .abort_signal()
        .on_abort(move |notice| sender.send(notice.clone()).unwrap());
    // The task is dropped with all its sockets, as the kernel does with a killed process.
    task.abort();
    let notice = aborted.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(notice.lost, "{notice:?}");
    let vote = trainer.next_vote();
    let error = trainer.client.vote(&vote, soon()).unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
}

#[test]
fn waits_have_deadlines() {
    let dir = tempfile::tempdir().unwrap();
    let now = std::time::Instant::now();
    let nobody = Endpoint::RunDir(dir.path().join("nothing"));
    let error = Client::connect(&nobody, trainer(0), now).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("coordinator.json"), "{error}");
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let mut client = Client::connect(&coordinator.endpoint, trainer(0), soon()).unwrap();
    let error = client.ready(&ready(), now).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    drop(client);
    coordinator.stop("end of test");
}
