//! Signals that were ignored at a run's start stay ignored, and yet no process outlives its launcher.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{FINISHED, Run, Signal, assert_nobody_left, send, turn};

/// Starts a run like `nohup` or a background job of a script does: SIGHUP and SIGINT are ignored from the start.
fn start_ignoring(words: Vec<String>) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fovea"));
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // SAFETY: between fork and exec only `signal` is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGUSR2] {
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Waits until the run has committed `step`; its launcher must still be there.
fn wait_for_step(run: &Run, launcher: &mut std::process::Child, step: u64) {
    let deadline = std::time::Instant::now() + common::LIMIT;
    loop {
        let text = std::fs::read_to_string(run.path.join("status.json")).unwrap_or_default();
        let status: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        if status.is_some_and(|status| status["step"].as_u64() >= Some(step)) {
            return;
        }
        assert!(
            launcher.try_wait().unwrap().is_none(),
            "ended before step {step}"
        );
        assert!(std::time::Instant::now() < deadline, "no step {step}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// One run ignores the signals that were ignored at its start. When its launcher is killed, all its processes leave:
/// they notice without a signal, which they might ignore. A resume then takes the run to its end.
#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    let _turn = turn();
    let run = Run::new(&[]);
    let mut launcher = start_ignoring(run.first(2));
    wait_for_step(&run, &mut launcher, 2);
    let tell_all = || {
        // Every process gets the signals, as from a terminal that closes.
        for signal in [Signal::HUP, Signal::INT, Signal::USR2] {
            for (pid, _) in common::processes_of(&run.path) {
                send(pid, signal);
            }
        }
    };
    tell_all();
    wait_for_step(&run, &mut launcher, 4);
    send(launcher.id(), Signal::KILL);
    launcher.wait().unwrap();
    assert_nobody_left(&run.path);
    // The processes left in order.
    let status = run.status();
    assert_eq!(status["state"], "stopped", "{status:#}");
    assert_eq!(status["checkpoint"]["step"], status["step"], "{status:#}");

    let words = ["train", "--out", run.text(), "--resume"].map(str::to_owned);
    let mut launcher = start_ignoring(words.to_vec());
    let step = status["step"].as_u64().unwrap();
    wait_for_step(&run, &mut launcher, step + 1);
    tell_all();
    assert_eq!(launcher.wait().unwrap().code(), Some(FINISHED));
    assert_nobody_left(&run.path);
    assert_eq!(run.status()["state"], "finished");
}
