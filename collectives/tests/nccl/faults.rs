//! Lost ranks, failing calls, and what is left afterwards.

use std::sync::Barrier;

use fovea_collectives::Error;
use fovea_emulate::nccl::Set;

use super::device::wait_for_a_sum;
use super::testing::{exercise, soon};
use super::*;

/// Raises all handles, as the coordinator does, once `ready` ranks wait; says when.
fn coordinator(handles: &[AbortHandle], ready: &Barrier) -> Instant {
    ready.wait();
    std::thread::sleep(Duration::from_millis(30));
    let raised = Instant::now();
    for handle in handles {
        handle.abort("generation 2: rank 1 is lost");
    }
    raised
}

/// Every rank runs `body` in a world of which the abort handles are raised when all are at the barrier. The
/// errors must come at once, and each engine must end soon.
fn aborted_while(world: usize, body: impl Fn(NcclCollective, &Barrier) -> Error + Sync) {
    let id = library().unique_id().unwrap();
    let handles: Vec<AbortHandle> = (0..world).map(|_| AbortHandle::new()).collect();
    let ready = Barrier::new(world + 1);
    std::thread::scope(|scope| {
        let (body, ready, handles) = (&body, &ready, &handles);
        let start = |rank: usize| {
            scope.spawn(move || {
                let nccl = join(id, (rank, world), &handles[rank], soon()).unwrap();
                let error = body(nccl, ready);
                (error, Instant::now())
            })
        };
        let ranks: Vec<_> = (0..world).map(start).collect();
        let raised = coordinator(handles, ready);
        for (rank, thread) in ranks.into_iter().enumerate() {
            let (error, gone) = thread.join().unwrap();
            let told = matches!(&error, Error::Aborted { rank: r, reason, .. }
                if *r == rank && reason == "generation 2: rank 1 is lost");
            assert!(told, "{error}");
            assert!(gone - raised < AT_ONCE, "rank {rank}: {:?}", gone - raised);
        }
    });
}

#[test]
fn an_abort_ends_a_host_operation_that_hangs_and_a_new_generation_works() {
    let _turn = Turn::take(false);
    // Operation 0 is what joining gathers.
    standin::set(Set::HangAt(1));
    aborted_while(3, |mut nccl, ready| {
        ready.wait();
        nccl.all_reduce(&mut [1.0; 10], soon()).unwrap_err()
    });
    standin::set(Set::HangAt(-1));
    joined(2, |mut nccl| exercise(&mut nccl, 3, &[5, 100]));
}

#[test]
fn an_abort_ends_a_device_sum_that_hangs() {
    for lazy in [false, true] {
        let _turn = Turn::take(lazy);
        standin::set(Set::HangAt(1));
        aborted_while(3, |mut nccl, ready| {
            wait_for_a_sum(&mut nccl, soon(), || {
                ready.wait();
            })
        });
    }
}

#[test]
fn an_abort_ends_a_join_that_hangs() {
    let _turn = Turn::take(false);
    standin::set(Set::InitHangs);
    let errors = on_ranks(2, |rank, id, abort| {
        let raise = abort.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            raise.abort("generation 3");
        });
        let begun = Instant::now();
        let error = join(id, (rank, 2), &abort, soon()).map(|_| ()).unwrap_err();
        thread.join().unwrap();
        assert!(begun.elapsed() < AT_ONCE);
        error
    });
    for error in errors {
        let told =
            matches!(&error, Error::Aborted { op: "join", reason, .. } if reason == "generation 3");
        assert!(told, "{error}");
    }
    wait_until_none_is_live();
}

#[test]
fn a_join_to_which_not_all_come_has_a_deadline() {
    let _turn = Turn::take(false);
    let id = library().unique_id().unwrap();
    kernels();
    let deadline = Instant::now() + Duration::from_millis(200);
    let error = join(id, (0, 2), &AbortHandle::new(), deadline)
        .map(|_| ())
        .unwrap_err();
    assert!(Instant::now() >= deadline);
    let told = matches!(
        &error,
        Error::Deadline {
            op: "join",
            world: 2,
            ..
        }
    );
    assert!(told, "{error}");
    let text = error.to_string();
    assert!(text.contains("at least one of the others"), "{text}");
    wait_until_none_is_live();
}

/// A communicator that never got ready is aborted by a thread that nobody waits for.
fn wait_until_none_is_live() {
    let until = soon();
    while standin::live() > 0 {
        assert!(
            Instant::now() < until,
            "{} communicators are left",
            standin::live()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_operation_that_hangs_has_a_deadline_and_ends_the_engine() {
    let _turn = Turn::take(false);
    standin::set(Set::HangAt(1));
    let outcomes = joined(2, |mut nccl| {
        let deadline = Instant::now() + Duration::from_millis(60);
        let error = match nccl.rank() {
            0 => nccl.barrier(deadline).unwrap_err(),
            _ => nccl.all_gather(b"x", deadline).unwrap_err(),
        };
        (error, nccl.barrier(soon()).unwrap_err())
    });
    for (first, then) in outcomes {
        assert!(matches!(first, Error::Deadline { world: 2, .. }), "{first}");
        let over =
            matches!(&then, Error::Aborted { reason, .. } if reason.contains("gave up after"));
        assert!(over, "{then}");
    }
}

#[test]
fn a_device_sum_that_hangs_has_a_deadline() {
    let _turn = Turn::take(true);
    standin::set(Set::HangAt(1));
    let errors = joined(2, |mut nccl| {
        wait_for_a_sum(&mut nccl, Instant::now() + Duration::from_millis(60), || ())
    });
    for error in errors {
        let told = matches!(
            &error,
            Error::Deadline {
                op: "all_reduce on the device",
                ..
            }
        );
        assert!(told, "{error}");
    }
}

/// What an error of the library says: call, code, its words, its last message, and what to do.
fn assert_says(error: &Error, call: &str, code: i32, words: &str, help: &str) {
    let text = error.to_string();
    for part in [
        call,
        &format!("with {code} ("),
        words,
        "stand-in: what went wrong",
        help,
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn an_asynchronous_error_is_told_with_its_code_and_what_to_do() {
    let _turn = Turn::take(false);
    standin::set(Set::AsyncError {
        rank: 1,
        at: 1,
        code: 6,
    });
    let errors = joined(2, |mut nccl| {
        // Rank 0 only sees that it waits in vain.
        let patience = if nccl.rank() == 0 { 100 } else { 20_000 };
        let deadline = Instant::now() + Duration::from_millis(patience);
        wait_for_a_sum(&mut nccl, deadline, || ())
    });
    assert!(matches!(errors[0], Error::Deadline { .. }), "{}", errors[0]);
    let help = "another rank, or the network to it, is gone";
    assert_says(
        &errors[1],
        "ncclAllReduce",
        6,
        "remote process exited",
        help,
    );
}

#[test]
fn a_call_that_fails_is_told_with_its_code_and_what_to_do() {
    for (code, words, help) in [
        (1, "unhandled cuda error", "nvidia-smi"),
        (2, "unhandled system error", "NCCL_SOCKET_IFNAME"),
        (3, "internal error", "FOVEA_NCCL"),
        (5, "invalid usage", "NCCL_HOSTID"),
        (77, "unknown result code", "NCCL_DEBUG=WARN"),
    ] {
        let _turn = Turn::take(false);
        standin::set(Set::Fail {
            rank: 0,
            at: 1,
            code,
        });
        let errors = joined(2, |mut nccl| {
            let patience = if nccl.rank() == 0 { 20_000 } else { 50 };
            nccl.barrier(Instant::now() + Duration::from_millis(patience))
                .unwrap_err()
        });
        assert_says(&errors[0], "ncclAllGather", code, words, help);
        assert!(matches!(errors[1], Error::Deadline { .. }), "{}", errors[1]);
    }
}

#[test]
fn nobody_touches_a_communicator_while_it_is_being_aborted() {
    let _turn = Turn::take(false);
    standin::set(Set::HangAt(1));
    standin::set(Set::AbortMs(300));
    // The training thread learns of it while the abort goes on, tries again and again, and leaves. The
    // stand-in reports every call on a communicator that is aborted, and every second thread in one.
    aborted_while(2, |mut nccl, ready| {
        let error = wait_for_a_sum(&mut nccl, soon(), || {
            ready.wait();
        });
        for _ in 0..1000 {
            nccl.barrier(soon()).unwrap_err();
        }
        error
    });
}

#[test]
fn aborts_at_any_moment_leave_no_trace() {
    for delay_us in (0..3000).step_by(150) {
        let _turn = Turn::take(delay_us % 300 == 0);
        on_ranks(3, |rank, id, abort| {
            let raise = abort.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(delay_us + 40 * rank as u64));
                raise.abort("the next one");
            });
            if let Ok(mut nccl) = join(id, (rank, 3), &abort, soon()) {
                while nccl.all_reduce(&mut [1.0; 50], soon()).is_ok() {}
            }
            thread.join().unwrap();
        });
        wait_until_none_is_live();
    }
}

#[test]
fn a_rank_that_leaves_in_order_while_another_was_lost_does_not_wait_for_it() {
    let _turn = Turn::take(false);
    let begun = Instant::now();
    joined(2, |mut nccl| {
        nccl.barrier(soon()).unwrap();
        if nccl.rank() == 1 {
            nccl.abort_handle().abort("killed");
        }
    });
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
