//! A run that stops, or loses a process, and continues with `--resume` has the same weights and records as one that was
//! never interrupted, whatever the number of ranks.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Dice, FAILED, FINISHED, Outcome, Process, RESUME, Run, Signal, once, turn};

/// Training scores are part of the records too: each committed sample counts once in them.
const SCORED: &str = "eval.train_metrics=true";

/// The result of the run without interruption; it trains once for all tests.
fn reference() -> Outcome {
    once("resume-reference", || {
        let run = Run::new(&[SCORED]);
        run.start(2).wait().with_code(FINISHED);
        outcome(&run)
    })
}

#[track_caller]
fn outcome(run: &Run) -> Outcome {
    common::assert_nobody_left(&run.path);
    common::outcome(run)
}

/// Lets a run take some steps, sends the signal, and checks how it leaves. Returns its last step.
#[track_caller]
fn stop(run: &Run, mut process: Process, after: u64, signal: Signal) -> u64 {
    run.wait_for_step(&mut process, after);
    process.signal(signal);
    let done = process.wait().with_code(RESUME);
    let how = format!("fovea train --out {} --resume", run.path.display());
    done.prints(&["stopped after step", &how]);
    common::assert_nobody_left(&run.path);
    let status = run.status();
    assert_eq!(status["state"], "stopped", "{status:#}");
    assert_eq!(status["checkpoint"]["step"], status["step"], "{status:#}");
    let step = status["step"].as_u64().unwrap();
    assert!(
        (after..=after + 3).contains(&step),
        "asked to stop after step {after}, stopped after {step}"
    );
    step
}

/// Two ranks, then one, then four, then two, with Ctrl-C between them.
#[test]
fn stopped_runs_go_on_with_other_ranks() {
    let _turn = turn();
    let reference = reference();
    let mut dice = Dice::new("stopped_runs_go_on_with_other_ranks");
    let run = Run::new(&[SCORED]);
    let first = stop(&run, run.start(2), dice.roll(1, 3), Signal::INT);
    let second = stop(&run, run.resume(1), first + dice.roll(1, 2), Signal::INT);
    let third = stop(&run, run.resume(4), second + dice.roll(1, 2), Signal::INT);
    println!("stopped after steps {first}, {second}, {third}");
    run.resume(2).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference);
    let ranks: Vec<usize> = run.steps().values().map(|s| s.ranks.len()).collect();
    for (step, ranks) in (1..).zip(ranks) {
        let expected = if step <= first {
            2
        } else if step <= second {
            1
        } else if step <= third {
            4
        } else {
            2
        };
        assert_eq!(ranks, expected, "ranks of step {step}");
    }
}

/// A signal before the first step loses nothing, and SIGTERM does what Ctrl-C does; from two ranks to four.
#[test]
fn a_run_that_is_stopped_at_once_goes_on() {
    let _turn = turn();
    let reference = reference();
    let mut dice = Dice::new("a_run_that_is_stopped_at_once_goes_on");
    let run = Run::new(&[SCORED]);
    let mut process = run.start(2);
    run.wait_until(&mut process, "a coordinator", |_| true);
    process.signal(Signal::INT);
    let done = process.wait().with_code(RESUME);
    done.prints(&["stopped after step", "--resume"]);
    common::assert_nobody_left(&run.path);

    let at = run.status()["step"].as_u64().unwrap();
    stop(&run, run.resume(2), at + dice.roll(1, 8), Signal::TERM);
    run.resume(4).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference);
}

/// Every process of a run is killed in turn, each time during training. The run continues by itself, except after the
/// death of the launcher, which ends all processes.
#[test]
fn killed_processes_cost_no_more_than_a_step() {
    let _turn = turn();
    let reference = reference();
    let mut dice = Dice::new("killed_processes_cost_no_more_than_a_step");
    let run = Run::new(&[SCORED, "checkpoint.every_steps=1", "checkpoint.keep_last=2"]);

    // A trainer dies: the other one continues, and a new one joins it.
    let mut process = run.start(2);
    run.wait_for_step(&mut process, dice.roll(2, 3));
    let victim = dice.roll(0, 1);
    let pid = common::process_of(&run.path, &format!("--rank {victim}"));
    common::send(pid, Signal::KILL);
    let status = run.wait_until(&mut process, "a new rank", |status| {
        status.generation > 1 && status.world == 2 && status.ranks.iter().all(|r| r.pid != pid)
    });
    let incident = status.last_incident.clone().unwrap_or_default();
    assert!(
        status.incidents == 1 && incident.contains(&format!("pid {pid}")),
        "{status:?}"
    );

    // The coordinator dies: the trainers wait for a new one.
    let status = run.wait_for_step(&mut process, status.step + 1);
    common::send(common::process_of(&run.path, "coordinator"), Signal::KILL);
    let status = run.wait_until(&mut process, "a new coordinator", |again| {
        again.generation > status.generation && again.step > status.step
    });

    // The launcher dies: no process stays behind.
    run.wait_for_step(&mut process, status.step + 1);
    process.signal(Signal::KILL);
    assert_eq!(process.wait().status.code(), None);
    common::assert_nobody_left(&run.path);

    run.resume(4).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference);
}

/// MPI ends all of its processes when one dies: the launcher restarts the world from the newest checkpoint. Ranks whose
/// `mpirun` is killed save their last step first, and the new world waits for that.
#[cfg(feature = "mpi")]
#[test]
fn an_mpi_world_that_loses_a_rank_is_started_again() {
    let _turn = turn();
    let reference = reference();
    let run = Run::new(&[SCORED, "train.backend=mpi", "checkpoint.every_steps=2"]);
    let mut process = run.start(2);
    run.wait_until(&mut process, "a checkpoint", |s| {
        s.checkpoint.is_some() && s.step >= 3
    });
    let kill = |is_rank: bool| {
        let program = |line: &str| {
            line.split(' ')
                .next()
                .unwrap_or_default()
                .ends_with("/fovea")
        };
        let all = common::processes_of(&run.path);
        let victim = all
            .iter()
            .find(|(_, line)| line.contains(" trainer ") && program(line) == is_rank);
        common::send(
            victim.unwrap_or_else(|| panic!("{is_rank}: {all:?}")).0,
            Signal::KILL,
        );
    };
    kill(true);
    let first = run.wait_until(&mut process, "another generation", |s| {
        s.generation > 1 && s.step >= 5
    });
    kill(false);
    run.wait_until(&mut process, "a third generation", |s| {
        s.generation > first.generation
    });
    process.wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference);
}

/// Without restarts left, the others continue without a lost rank; the loss of the last one ends the run, which reports
/// the missing rank.
#[test]
fn a_run_that_may_not_restart_says_who_is_missing() {
    let _turn = turn();
    let run = Run::new(&["elastic.max_restarts=0", "train.epochs=8"]);
    let mut process = run.start(2);
    let before = run.wait_for_step(&mut process, 2);
    let kill = |words: &str| common::send(common::process_of(&run.path, words), Signal::KILL);
    kill("--rank 1");
    run.wait_until(&mut process, "a step of one rank", |status| {
        status.generation > before.generation && status.step > before.step + 1
    });
    // Give the launcher time to notice as well.
    std::thread::sleep(std::time::Duration::from_secs(1));
    kill("--rank 0");
    let done = process.wait().with_code(FAILED);
    assert!(
        done.stderr.contains("the others go on without it: rank-1"),
        "{done}"
    );
    done.explains(&["rank-0", "SIGKILL", "--resume"]);
    common::assert_nobody_left(&run.path);
}

/// Two signals at once count as one request: `timeout`, for example, sends two.
#[test]
fn a_pair_of_signals_is_one_drain() {
    let _turn = turn();
    let run = Run::new(&[SCORED, "checkpoint.every_steps=100"]);
    let mut process = run.start(2);
    run.wait_for_step(&mut process, 4);
    process.signal(Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(20));
    process.signal(Signal::INT);
    process.wait().with_code(RESUME);
    common::assert_nobody_left(&run.path);
    let status = run.status();
    assert_eq!(status["checkpoint"]["step"], status["step"], "{status:#}");
    run.resume(1).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference());
}

/// The second Ctrl-C does not wait for a coordinator that does not answer. No process stays behind, and no saved work
/// is lost.
#[test]
fn ctrl_c_twice_leaves_at_once() {
    let _turn = turn();
    let run = Run::new(&[SCORED, "checkpoint.every_steps=3"]);
    let mut process = run.start(2);
    run.wait_for_step(&mut process, 4);
    let coordinator = common::process_of(&run.path, " coordinator ");
    common::send(coordinator, Signal::STOP);
    process.signal(Signal::INT);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let begun = std::time::Instant::now();
    process.signal(Signal::INT);
    process.wait().with_code(RESUME);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    common::send(coordinator, Signal::CONT);
    common::assert_nobody_left(&run.path);
    run.resume(1).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference());
}

/// A finished run has nothing left to do; it reports that, with the same weights.
#[test]
fn resuming_a_finished_run_changes_nothing() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=1"]);
    run.start(1).wait().with_code(FINISHED);
    let before = outcome(&run);
    run.resume(2)
        .wait()
        .with_code(FINISHED)
        .prints(&["finished after step 7"]);
    assert_eq!(outcome(&run), before);
}

/// A run with a deadline leaves by itself before it, with everything saved.
#[test]
fn a_run_leaves_before_its_deadline() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=100000"]);
    let mut words = run.first(2);
    words.extend(["--deadline", "25s"].map(str::to_owned));
    let begun = std::time::Instant::now();
    let done = Process::start(&words, Some(&run.path))
        .wait()
        .with_code(RESUME);
    let took = begun.elapsed();
    assert!(took.as_secs() < 25, "it took {took:?}\n{done}");
    common::assert_nobody_left(&run.path);
    let status = run.status();
    assert_eq!(status["state"], "stopped", "{status:#}");
    assert_eq!(status["checkpoint"]["step"], status["step"], "{status:#}");
    assert!(status["step"].as_u64().unwrap() >= 1, "{status:#}");
    let why = status["reason"].as_str().unwrap();
    assert!(why.contains("left until the deadline"), "{why}");
    common::fovea(&["audit", run.text()]).with_code(FINISHED);
}

/// A run whose records have gaps does not continue, and never restarts silently.
#[test]
fn a_resume_needs_the_ledger_and_the_checkpoints_of_the_run() {
    let _turn = turn();
    let run = Run::new(&[SCORED]);
    stop(&run, run.start(2), 2, Signal::TERM);
    let (ledger, checkpoints) = (run.path.join("ledger"), run.path.join("checkpoints"));
    let aside = |path: &std::path::Path| path.with_extension("aside");

    std::fs::rename(&ledger, aside(&ledger)).unwrap();
    let refused = run.resume(2).wait().with_code(common::USAGE);
    refused.explains(&["ledger of this run ends at step 0", "not known any more"]);
    std::fs::rename(aside(&ledger), &ledger).unwrap();

    std::fs::rename(&checkpoints, aside(&checkpoints)).unwrap();
    let refused = run.resume(2).wait().with_code(common::USAGE);
    refused.explains(&["there is no checkpoint, though this run has saved one"]);
    let _ = std::fs::remove_dir(&checkpoints);
    std::fs::rename(aside(&checkpoints), &checkpoints).unwrap();

    run.resume(2).wait().with_code(FINISHED);
    assert_eq!(outcome(&run), reference());
}

/// A coordinator that is stopped for good is replaced.
#[test]
fn a_stopped_coordinator_is_replaced() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=8"]);
    let mut process = run.start(2);
    let before = run.wait_for_step(&mut process, 2);
    let stopped = common::process_of(&run.path, " coordinator ");
    common::send(stopped, Signal::STOP);
    let deadline = std::time::Instant::now() + common::LIMIT;
    let replaced = || {
        let all = common::processes_of(&run.path);
        let mut coordinators = all
            .iter()
            .filter(|(_, line)| line.contains(" coordinator "));
        coordinators.any(|(pid, _)| *pid != stopped)
    };
    while !replaced() {
        assert!(std::time::Instant::now() < deadline, "nobody replaces it");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    run.wait_for_step(&mut process, before.step + 1);
    process.wait().with_code(FINISHED);
    common::assert_nobody_left(&run.path);
    common::fovea(&["audit", run.text()]).with_code(FINISHED);
}

/// Nobody reads the run's output, and it cannot be written: the run continues all the same.
#[test]
fn messages_that_cannot_be_written_cost_nothing() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=6"]);
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fovea"));
    command
        .args(run.first(2))
        .stdin(std::process::Stdio::null());
    let mut launcher = command.stdout(full()).stderr(full()).spawn().unwrap();
    let deadline = std::time::Instant::now() + common::LIMIT;
    let trainer = loop {
        let trainers = common::processes_of(&run.path);
        let trainer = trainers.iter().find(|(_, line)| line.contains(" trainer "));
        let steps = std::fs::read_to_string(run.path.join("status.json")).unwrap_or_default();
        let begun = serde_json::from_str::<serde_json::Value>(&steps)
            .is_ok_and(|status| status["step"].as_u64() >= Some(2));
        if let (Some((pid, _)), true) = (trainer, begun) {
            break *pid;
        }
        assert!(std::time::Instant::now() < deadline, "no second step");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    // The death of a trainer causes a warning.
    common::send(trainer, Signal::KILL);
    assert_eq!(launcher.wait().unwrap().code(), Some(FINISHED));
    common::assert_nobody_left(&run.path);
    assert_eq!(run.status()["state"], "finished");
}
