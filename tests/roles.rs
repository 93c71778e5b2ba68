//! Coordinator, trainers and observers as separate processes, and unauthorised peers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{FINISHED, Process, RESUME, Run, Signal, fovea, turn};
use fovea_coordinator::codec::{self, MAX_FRAME};
use fovea_coordinator::protocol::{Reply, Request, Role, TrainerInfo};
use fovea_coordinator::rundir::CoordinatorInfo;

/// Connects to a live coordinator, reads its challenge, sends `frame` and returns why it is dropped.
fn turned_away(run: &Run, frame: &[u8]) -> String {
    let address = CoordinatorInfo::load(&run.path).unwrap().addr;
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let body = codec::read_body(&mut stream, MAX_FRAME).unwrap().unwrap();
    assert!(matches!(
        codec::decode_reply(&body),
        Ok(Reply::Challenge { .. })
    ));
    stream.write_all(frame).unwrap();
    let body = codec::read_body(&mut stream, MAX_FRAME)
        .unwrap()
        .expect("a reason before the end");
    let Ok(Reply::Drop { reason }) = codec::decode_reply(&body) else {
        panic!("{body:?}")
    };
    assert!(
        codec::read_body(&mut stream, MAX_FRAME).unwrap().is_none(),
        "the connection is closed"
    );
    reason
}

#[test]
fn strangers_are_told_why_and_the_run_goes_on() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=40"]);
    let mut process = run.start(2);
    let before = run.wait_for_step(&mut process, 1);

    let mode = fs::metadata(run.path.join("token"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // A peer without the token, in every role.
    for role in [
        Role::Observer,
        Role::Launcher,
        Role::Trainer(TrainerInfo::this_process(Some(0))),
    ] {
        let frame = codec::encode(&Request::Hello {
            proof: [7; 32],
            role,
        })
        .unwrap();
        let reason = turned_away(&run, &frame);
        assert!(
            reason.contains("token") && reason.contains("\n  help: "),
            "{reason}"
        );
    }
    // A peer of another version, which is the byte after the length.
    let mut frame = codec::encode(&Request::Hello {
        proof: [7; 32],
        role: Role::Observer,
    })
    .unwrap();
    frame[4] = 9;
    let reason = turned_away(&run, &frame);
    assert!(
        reason.contains("version 9") && reason.contains("version 5"),
        "{reason}"
    );
    // A peer that speaks another protocol.
    let reason = turned_away(&run, b"GET / HTTP/1.1\r\n\r\n");
    assert!(reason.contains("limit"), "{reason}");
    // A peer that sends a request before it has shown the token.
    let reason = turned_away(
        &run,
        &codec::encode(&Request::Drain {
            reason: "please".to_owned(),
        })
        .unwrap(),
    );
    assert!(reason.contains("token"), "{reason}");

    // A surplus trainer has the token but gets no seat: it stands by.
    let third = Process::start(&["trainer", run.text()], None);
    run.wait_until(&mut process, "a spare", |status| {
        status.ranks.len() == 3 && status.ranks[2].rank.is_none()
    });

    // None of this has stopped the run, and all who may ask get its status.
    let after = run.wait_for_step(&mut process, before.step + 2);
    assert_eq!(after.world, 2);
    let status = run.status();
    assert!(
        ["training", "evaluating"].contains(&status["state"].as_str().unwrap()),
        "{status:#}"
    );
    assert!(status["step"].as_u64().unwrap() >= after.step);
    fovea(&["status", run.text()]).with_code(FINISHED).prints(&[
        "state ",
        "epoch ",
        "of 40",
        "patches/s",
        "rank 0",
        "rank 1",
        "checkpoint",
    ]);

    process.signal(Signal::TERM);
    process.wait().with_code(RESUME);
    third.wait().with_code(RESUME);
    common::assert_nobody_left(&run.path);
    fovea(&["status", run.text()])
        .with_code(FINISHED)
        .prints(&["stopped", "weights_blake3"]);
    assert_eq!(run.status()["state"], "stopped");
}

#[test]
fn status_of_what_is_no_run() {
    let directory = common::scratch();
    let empty = directory.path().to_str().unwrap();
    fovea(&["status", empty])
        .with_code(common::USAGE)
        .explains(&[empty]);
    let nowhere = format!("{empty}/nowhere");
    fovea(&["status", &nowhere])
        .with_code(common::USAGE)
        .explains(&[&nowhere]);
    fovea(&["report", &nowhere])
        .with_code(common::USAGE)
        .explains(&[&nowhere]);
    fovea(&["coordinator", &nowhere])
        .with_code(common::USAGE)
        .explains(&[&nowhere]);
    fovea(&["trainer", &nowhere])
        .with_code(common::USAGE)
        .explains(&[&nowhere]);
    assert!(!directory.path().join("nowhere").exists());
}

/// Does a launcher's work by hand: a configuration, a coordinator, two trainers in any order.
#[test]
fn roles_started_by_hand_finish_a_run() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=1"]);
    fs::create_dir(&run.path).unwrap();
    let mut words = run.first(2);
    words.push("--print-config".to_owned());
    let config = fovea(&words).with_code(FINISHED).stdout;
    fs::write(run.path.join("config.toml"), config).unwrap();

    let role = |words: &[&str]| Process::start(words, Some(&run.path));
    // The trainers start first and wait for their coordinator.
    let second = role(&["trainer", run.text(), "--rank", "1"]);
    let first = role(&["trainer", run.text(), "--rank", "0"]);
    let mut coordinator = role(&["coordinator", run.text()]);
    let status = run.wait_for_step(&mut coordinator, 1);
    let pids: Vec<u32> = status.ranks.iter().map(|rank| rank.pid).collect();
    assert_eq!(
        pids,
        [first.pid(), second.pid()],
        "each has the rank that it asked for"
    );
    for process in [first, second, coordinator] {
        process.wait().with_code(FINISHED);
    }
    run.final_hash();
    assert_eq!(run.steps().len(), 7);
}

/// A signal to the coordinator or to one trainer alone drains the whole run.
#[test]
fn any_process_can_be_asked_to_stop() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=40"]);
    let mut launcher = run.start(2);
    run.wait_for_step(&mut launcher, 1);
    common::send(common::process_of(&run.path, "--rank 1"), Signal::TERM);
    launcher.wait().with_code(RESUME);

    let mut launcher = run.resume(2);
    let step = run.wait_for_step(&mut launcher, 1).step;
    run.wait_for_step(&mut launcher, step + 1);
    common::send(common::process_of(&run.path, "coordinator"), Signal::TERM);
    launcher.wait().with_code(RESUME);
    common::assert_nobody_left(&run.path);

    // The run waits for a process that stands still for less than the run's patience.
    let mut launcher = run.resume(2);
    let step = run.wait_for_step(&mut launcher, 1).step;
    let step = run.wait_for_step(&mut launcher, step + 1).step;
    let stopped = common::process_of(&run.path, "--rank 0");
    common::send(stopped, Signal::STOP);
    std::thread::sleep(Duration::from_secs(2));
    common::send(stopped, Signal::CONT);
    let begun = Instant::now();
    run.wait_for_step(&mut launcher, step + 2);
    println!("went on after {:?}", begun.elapsed());
    launcher.signal(Signal::INT);
    launcher.wait().with_code(RESUME);
}
