//! Who may say what: tokens, versions, roles, malformed frames. Raw sockets where it matters.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{Coordinator, Trainer, dropped, options, read, ready, soon, trainer};
use fovea_coordinator::Error;
use fovea_coordinator::client::{Client, Endpoint, Observer};
use fovea_coordinator::codec;
use fovea_coordinator::protocol::{PROTOCOL_VERSION, Reply, Request, Role};
use fovea_coordinator::status::{RunState, Status, Turned};
use fovea_coordinator::token::Token;

#[test]
fn a_peer_without_the_token_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    // No token at all: straight to a request.
    let (mut stream, _) = coordinator.dial();
    codec::write_frame(&mut stream, &Request::GetStatus).unwrap();
    let reason = dropped(&mut stream);
    assert!(
        reason.contains("was not shown") && reason.contains("help:"),
        "{reason}"
    );
    // A wrong one.
    let (mut stream, _) = coordinator.dial();
    let hello = Request::Hello {
        proof: [1; 32],
        role: Role::Launcher,
    };
    codec::write_frame(&mut stream, &hello).unwrap();
    let reason = dropped(&mut stream);
    assert!(
        reason.contains("the token of the launcher at 127.0.0.1")
            && reason.contains("not this run's"),
        "{reason}"
    );
    // Through the client.
    let other = Token::parse(&"00".repeat(32), "test").unwrap();
    let endpoint = Endpoint::Address {
        addr: coordinator.addr.clone(),
        token: other,
    };
    let begun = Instant::now();
    let error = Client::connect(&endpoint, trainer(0), soon()).unwrap_err();
    assert!(matches!(error, Error::Dropped { .. }), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "a refusal is not tried again"
    );
    coordinator.stop("end of test");
}

#[test]
fn a_proof_is_good_for_one_connection_and_one_role() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let (mut first, nonce) = coordinator.dial();
    let proof = *coordinator
        .token
        .proof(&nonce, &common::role_bytes(&Role::Observer))
        .as_bytes();
    let hello = Request::Hello {
        proof,
        role: Role::Observer,
    };
    codec::write_frame(&mut first, &hello).unwrap();
    assert!(matches!(
        read(&mut first),
        Some(Reply::Welcome { member: None, .. })
    ));
    // Replayed.
    let (mut second, _) = coordinator.dial();
    codec::write_frame(&mut second, &hello).unwrap();
    assert!(dropped(&mut second).contains("not this run's"));
    // For another role than was proved.
    let (mut third, nonce) = coordinator.dial();
    let proof = *coordinator
        .token
        .proof(&nonce, &common::role_bytes(&Role::Observer))
        .as_bytes();
    codec::write_frame(
        &mut third,
        &Request::Hello {
            proof,
            role: Role::Launcher,
        },
    )
    .unwrap();
    assert!(dropped(&mut third).contains("not this run's"));
    coordinator.stop("end of test");
}

#[test]
fn a_peer_of_another_version_is_told_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let (mut stream, _) = coordinator.dial();
    let mut frame = codec::encode(&Request::GetStatus).unwrap();
    frame[4] = PROTOCOL_VERSION + 6;
    stream.write_all(&frame).unwrap();
    let reason = dropped(&mut stream);
    let versions = [PROTOCOL_VERSION + 6, PROTOCOL_VERSION].map(|v| format!("version {v}"));
    assert!(
        versions.iter().all(|v| reason.contains(v)) && reason.contains("help:"),
        "{reason}"
    );
    coordinator.stop("end of test");
}

#[test]
fn a_client_of_another_version_says_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut frame = codec::encode(&Reply::Challenge { nonce: [0; 32] }).unwrap();
        frame[4] = PROTOCOL_VERSION + 6;
        stream.write_all(&frame).unwrap();
    });
    let token = Token::parse(&"00".repeat(32), "test").unwrap();
    let error = Observer::connect(&Endpoint::Address { addr, token }, soon()).unwrap_err();
    server.join().unwrap();
    assert!(
        matches!(error, Error::Version { ours, theirs }
            if ours == PROTOCOL_VERSION && theirs == PROTOCOL_VERSION + 6),
        "{error}"
    );
}

#[test]
fn malformed_handshakes_are_dropped_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let cases: [(&[u8], &str); 4] = [
        // 16 MiB announced.
        (
            &[0, 0, 0, 1, 1],
            "frame of 16777216 bytes is over the limit of 4096",
        ),
        (&[0, 0, 0, 0], "cannot be decoded: it is empty"),
        (
            &[3, 0, 0, 0, PROTOCOL_VERSION, 200, 200],
            "cannot be decoded",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", "over the limit of 4096"),
    ];
    for (bytes, expected) in cases {
        let (mut stream, _) = coordinator.dial();
        stream.write_all(bytes).unwrap();
        let reason = dropped(&mut stream);
        assert!(reason.contains(expected), "{reason}");
    }
    coordinator.stop("end of test");
}

#[test]
fn a_peer_that_says_nothing_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    options.handshake_ms = 100;
    let coordinator = Coordinator::start(options);
    let (mut stream, _) = coordinator.dial();
    let reason = dropped(&mut stream);
    assert!(
        reason.contains("100 ms") && reason.contains("handshake"),
        "{reason}"
    );
    coordinator.stop("end of test");
}

#[test]
fn observers_may_only_look() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 2);
    options
        .summary
        .insert("model".to_owned(), "hybrid".to_owned());
    let coordinator = Coordinator::start(options);
    let mut observer = Observer::connect(&coordinator.endpoint, soon()).unwrap();
    let status = observer.status().unwrap();
    assert_eq!(
        (status.state, status.world, status.ranks.len()),
        (RunState::Waiting, 2, 0)
    );
    assert_eq!(status.summary["model"], "hybrid");
    let error = observer.drain("mischief").unwrap_err().to_string();
    assert!(
        error.contains("role observer may not send Drain"),
        "{error}"
    );
    // A launcher is no trainer, and a trainer no launcher.
    let (mut launcher, _) = coordinator.dial_as(Role::Launcher);
    codec::write_frame(&mut launcher, &Request::Ready(ready())).unwrap();
    assert!(dropped(&mut launcher).contains("role launcher may not send Ready"));
    let (mut raw, _) = coordinator.dial_as(Role::Trainer(trainer(0)));
    codec::write_frame(
        &mut raw,
        &Request::Shutdown {
            reason: String::new(),
        },
    )
    .unwrap();
    assert!(dropped(&mut raw).contains("role trainer may not send Shutdown"));
    coordinator.stop("end of test");
}

#[test]
fn seats_that_are_taken_or_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let mut first = Client::connect(&coordinator.endpoint, trainer(0), soon()).unwrap();
    let (_second, reply) = coordinator.dial_as(Role::Trainer(trainer(1)));
    assert!(matches!(
        reply,
        Reply::Welcome {
            member: Some(_),
            ..
        }
    ));
    let error = Client::connect(&coordinator.endpoint, trainer(1), soon()).unwrap_err();
    assert!(
        error.to_string().contains("2 of 2 members are here"),
        "{error}"
    );
    let mut empty = ready();
    empty.terms.samples_per_epoch = 0;
    let error = first.ready(&empty, soon()).unwrap_err();
    assert!(
        matches!(&error, Error::Dropped { reason } if reason.contains("0 samples")),
        "{error}"
    );
    coordinator.stop("end of test");
}

/// Reads until the coordinator closes; the reason that it gave.
fn told(stream: &mut std::net::TcpStream) -> String {
    loop {
        match read(stream) {
            Some(Reply::Drop { reason }) => return reason,
            Some(_) => {}
            None => panic!("closed without a reason"),
        }
    }
}

#[test]
fn what_is_turned_away_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let (mut stream, _) = coordinator.dial();
    stream.write_all(&[0; 4]).unwrap();
    dropped(&mut stream);
    let (mut stream, _) = coordinator.dial_as(Role::Observer);
    stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    dropped(&mut stream);
    let (mut stream, _) = coordinator.dial();
    codec::write_frame(&mut stream, &Request::GetStatus).unwrap();
    dropped(&mut stream);
    let mut observer = Observer::connect(&coordinator.endpoint, soon()).unwrap();
    let turned = observer.status().unwrap().turned;
    let expected = Turned {
        malformed_frames: 2,
        refused_tokens: 1,
        dropped_connections: 3,
    };
    assert_eq!(turned, expected);
    drop(observer);
    coordinator.stop("end of test");
    let kept = Status::load(&dir.path().join("run")).unwrap().turned;
    assert_eq!(kept, expected);
}

#[test]
fn an_observer_that_says_nothing_is_closed_and_a_trainer_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    options.idle_ms = 300;
    let coordinator = Coordinator::start(options);
    let mut trainer = Trainer::join(&coordinator.endpoint, 0);
    let (mut observer, _) = coordinator.dial_as(Role::Observer);
    let begun = Instant::now();
    let reason = told(&mut observer);
    assert!(
        reason.contains("300 ms") && reason.contains("waiting for a request"),
        "{reason}"
    );
    assert!(begun.elapsed() >= Duration::from_millis(200));
    trainer.step();
    coordinator.stop("end of test");
}

#[test]
fn a_peer_that_sends_too_fast_is_slowed_and_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    options.frames_per_s = 100;
    let coordinator = Coordinator::start(options);
    let (mut stream, _) = coordinator.dial_as(Role::Observer);
    let begun = Instant::now();
    // 200 at once are free; the other 100 take a second.
    let frames = codec::encode(&Request::GetStatus).unwrap().repeat(300);
    stream.write_all(&frames).unwrap();
    for _ in 0..300 {
        assert!(matches!(read(&mut stream), Some(Reply::StatusReport(_))));
    }
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    coordinator.stop("end of test");
}

#[test]
fn peers_that_never_finish_the_handshake_and_observers_keep_no_trainer_out() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 1));
    let observers: Vec<_> = (0..64)
        .map(|_| coordinator.dial_as(Role::Observer))
        .collect();
    let (_, reply) = coordinator.dial_as(Role::Observer);
    assert!(
        matches!(&reply, Reply::Drop { reason } if reason.contains("limit is 64")),
        "{reply:?}"
    );
    // One place is left, which goes to the newest.
    let mut silent: Vec<_> = (0..5).map(|_| coordinator.dial().0).collect();
    let reason = told(&mut silent[0]);
    assert!(reason.contains("longest in the handshake"), "{reason}");
    let mut trainer = Trainer::join(&coordinator.endpoint, 0);
    trainer.step();
    let (mut late, reply) = {
        let mut stream = std::net::TcpStream::connect(&coordinator.addr).unwrap();
        let reply = read(&mut stream).unwrap();
        (stream, reply)
    };
    assert!(
        matches!(&reply, Reply::Drop { reason } if reason.contains("65 connections are open")),
        "{reply:?}"
    );
    assert_eq!(read(&mut late), None);
    drop(observers);
    coordinator.stop("end of test");
}
