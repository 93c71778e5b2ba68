//! 100,000 frames of garbage at a live coordinator, before and after the handshake, while two
//! trainers take steps: the run does not notice.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Coordinator, TOTAL, Trainer, on_ranks, options, ready, role_bytes, soon, trainer};
use fovea_coordinator::client::{Decision, Observer};
use fovea_coordinator::codec;
use fovea_coordinator::protocol::{Request, Role, TrainerEvent};
use fovea_coordinator::server::RunOutcome;
use fovea_coordinator::token::Token;

const FRAMES: u64 = 100_000;
const PEERS: usize = 4;
/// Random numbers that are the same in every run: a linear congruential generator, its upper half.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..1 + self.next() % most)
            .map(|_| self.next() as u8)
            .collect()
    }
}

/// Requests that nobody without a seat may send, or that an observer may.
fn templates() -> Vec<Vec<u8>> {
    let drain = Request::Drain {
        reason: "x".repeat(40),
    };
    let failed = TrainerEvent::Failed {
        reason: "y".repeat(9),
    };
    let hello = Request::Hello {
        proof: [3; 32],
        role: Role::Trainer(trainer(0)),
    };
    [
        drain,
        hello,
        Request::GetStatus,
        Request::Event(failed),
        Request::Ready(ready()),
    ]
    .iter()
    .map(|request| codec::encode(request).unwrap())
    .collect()
}

/// One frame, or what looks like one.
fn garbage(noise: &mut Noise, templates: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = templates[noise.next() % templates.len()].clone();
    match noise.next() % 8 {
        0 => noise.bytes(200),
        // A length far over the limit.
        1 => {
            frame[..4].copy_from_slice(&(u32::MAX - noise.next() as u32 % 1000).to_le_bytes());
            frame
        }
        // Half a frame; what follows is taken for its rest.
        2 => {
            frame.truncate(1 + noise.next() % frame.len());
            frame
        }
        // Not the length: what follows it has to be read as a message.
        3..=6 => {
            for _ in 0..1 + noise.next() % 6 {
                let at = 4 + noise.next() % (frame.len() - 4);
                frame[at] ^= noise.next() as u8;
            }
            frame
        }
        _ => frame,
    }
}

/// Connections of one kind after the other until all frames are sent.
fn attack(addr: &str, token: &Token, seed: u64, sent: &AtomicU64) {
    let mut noise = Noise(seed);
    let templates = templates();
    let mut old_hello = None;
    while sent.load(Ordering::Relaxed) < FRAMES {
        let Ok(mut stream) = TcpStream::connect(addr) else {
            continue;
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut closed = false;
        match noise.next() % 4 {
            // Without a handshake, or with one that was good for another connection.
            0 => {
                let hello: Vec<u8> = old_hello.clone().unwrap_or_else(|| noise.bytes(60));
                closed = stream.write_all(&hello).is_err();
                sent.fetch_add(1, Ordering::Relaxed);
            }
            1 => {}
            _ => match enter(&mut stream, token) {
                Some(hello) => old_hello = Some(hello),
                None => closed = true,
            },
        }
        for _ in 0..2 {
            if closed {
                break;
            }
            // Several in one piece: the coordinator closes at the first that it cannot read.
            let mut piece = Vec::new();
            let count = 1 + noise.next() % 40;
            for _ in 0..count {
                piece.extend(garbage(&mut noise, &templates));
            }
            sent.fetch_add(count as u64, Ordering::Relaxed);
            closed = stream.write_all(&piece).is_err();
        }
        // Some read what they are told, most just go.
        if noise.next().is_multiple_of(8) {
            let _ = stream.read(&mut [0; 512]);
        }
    }
}

/// The handshake of an observer; the frame that it took.
fn enter(stream: &mut TcpStream, token: &Token) -> Option<Vec<u8>> {
    let body = codec::read_body(stream, codec::MAX_HELLO).ok()??;
    let nonce = match codec::decode_reply(&body).ok()? {
        fovea_coordinator::protocol::Reply::Challenge { nonce } => nonce,
        _ => return None,
    };
    let role = Role::Observer;
    let proof = *token.proof(&nonce, &role_bytes(&role)).as_bytes();
    let hello = codec::encode(&Request::Hello { proof, role }).unwrap();
    stream.write_all(&hello).ok()?;
    Some(hello)
}

#[test]
fn a_run_does_not_notice_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(options(dir.path(), 2));
    let enough = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&enough);
    let ranks = on_ranks(&coordinator.endpoint, 2, move |mut trainer: Trainer| {
        let (mut slowest, mut last) = (Duration::ZERO, false);
        // Rank 0 says when it is enough; both hear of the last step by the same commit.
        while !last {
            let begun = Instant::now();
            if trainer.seat.rank == 0 && stop.load(Ordering::Relaxed) {
                trainer.client.drain("enough").unwrap();
            }
            match trainer.step() {
                Decision::Commit { next, .. } => {
                    last = next == fovea_coordinator::protocol::Next::Leave;
                }
                Decision::Abort(abort) => panic!("{}", abort.reason),
            }
            slowest = slowest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        let step = trainer.step;
        trainer.client.event(TrainerEvent::Left { step }).unwrap();
        (step, slowest)
    });
    let sent = Arc::new(AtomicU64::new(0));
    let peers: Vec<_> = (0..PEERS)
        .map(|peer| {
            let (addr, token) = (coordinator.addr.clone(), coordinator.token.clone());
            let sent = Arc::clone(&sent);
            std::thread::spawn(move || attack(&addr, &token, 77 + peer as u64, &sent))
        })
        .collect();
    for peer in peers {
        peer.join().unwrap();
    }
    let mut observer = Observer::connect(&coordinator.endpoint, soon()).unwrap();
    let status = observer.status().unwrap();
    assert!(sent.load(Ordering::Relaxed) >= FRAMES);
    assert!(status.step > 0 && status.incidents == 0, "{status:?}");
    assert!(status.turned.malformed_frames > 100, "{:?}", status.turned);
    assert!(status.turned.refused_tokens > 10, "{:?}", status.turned);
    assert!(
        status.turned.dropped_connections > 100,
        "{:?}",
        status.turned
    );
    drop(observer);
    enough.store(true, Ordering::Relaxed);
    let mut last = Vec::new();
    for rank in ranks {
        let (step, slowest) = rank.join().unwrap();
        assert!(slowest < Duration::from_secs(3), "a vote took {slowest:?}");
        last.push(step);
    }
    assert_eq!(last[0], last[1]);
    assert_eq!(coordinator.outcome(), RunOutcome::Drained { step: last[0] });
    // Every step is in the ledger once, none for what the garbage said.
    let records = fovea_coordinator::ledger::read(&dir.path().join("run")).unwrap();
    let steps = fovea_coordinator::ledger::history(records.records.iter().map(|r| &r.entry));
    let numbers: Vec<u64> = steps.iter().map(|step| step.step).collect();
    assert_eq!(numbers, (1..=last[0]).collect::<Vec<_>>());
    assert!(
        steps
            .iter()
            .all(|s| s.cursor_end - s.cursor_start == 10 && s.cursor_end <= TOTAL)
    );
}
