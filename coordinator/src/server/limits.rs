//! What connections may cost: how many there are, how fast they talk, and what was turned away.
//!
//! Decisions only; time is an argument. `server/connection.rs` waits and closes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::membership::Ticket;
use crate::status::Turned;

/// Connections in addition to the members': observers, launchers, and peers in the handshake.
pub(super) const OTHERS: usize = 64;
/// Connections that may stay open only to read why they are closed. Further ones close without a reason.
pub(super) const FAREWELLS: usize = 64;
/// Bytes that cost as much as one frame more.
const BYTES_PER_FRAME: usize = 4 << 10;
/// What may be sent at once, in seconds of the rate.
const BURST_S: f64 = 2.0;

const HELP_OTHERS: &str = "close some of the `fovea status` and launchers that are connected";
const HELP_FULL: &str = "do not start more trainers than the run has ranks, and close some of the observers that are connected";
const HELP_EVICTED: &str = "answer the challenge at once";

/// A token bucket: how long to wait after a frame before the next one is read.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Frames per second that the bucket refills.
    rate: f64,
    /// Frames that may come at once; negative while the peer is ahead of its rate.
    level: f64,
    filled: Instant,
}

impl TokenBucket {
    pub fn new(frames_per_s: u32, now: Instant) -> Self {
        let rate = f64::from(frames_per_s.max(1));
        Self {
            rate,
            level: rate * BURST_S,
            filled: now,
        }
    }

    /// A frame of so many bytes came.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.level = (self.level + passed * self.rate).min(self.rate * BURST_S);
        self.level -= 1.0 + (bytes / BYTES_PER_FRAME) as f64;
        match self.level < 0.0 {
            true => Duration::from_secs_f64(-self.level / self.rate),
            false => Duration::ZERO,
        }
    }
}

/// What was turned away so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    malformed: AtomicU64,
    tokens: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    /// A connection is closed because of this error. Returns whether it is worth a line in the log:
    /// a peer that tries without end does not fill the disk.
    pub fn closed_for(&self, error: &Error) -> bool {
        match error {
            Error::FrameTooLarge { .. } | Error::FrameContent { .. } | Error::Version { .. } => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
            }
            Error::Token { .. } => {
                self.tokens.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.closed()
    }

    /// As [`Counters::closed_for`], for any other reason.
    pub fn closed(&self) -> bool {
        let count = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        count <= 20 || count.is_power_of_two()
    }

    pub fn read(&self) -> Turned {
        Turned {
            malformed_frames: self.malformed.load(Ordering::Relaxed),
            refused_tokens: self.tokens.load(Ordering::Relaxed),
            dropped_connections: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// The connections that have a place. A peer in the handshake loses its place to a newer one when no
/// other is free: peers that never finish the handshake cannot keep a trainer out.
#[derive(Clone, Debug)]
pub(super) struct AdmissionGate(Arc<Mutex<Places>>);

#[derive(Debug)]
struct Places {
    limit: usize,
    /// Those in the handshake, oldest first.
    handshakes: BTreeMap<Ticket, oneshot::Sender<()>>,
    trainers: usize,
    others: usize,
}

/// What a connection holds while it has a place.
#[derive(Debug)]
pub(super) struct Admission {
    gate: AdmissionGate,
    ticket: Ticket,
    settled: Option<PeerKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerKind {
    Trainer,
    Other,
}

impl AdmissionGate {
    /// With room for so many members.
    pub fn new(members: usize) -> Self {
        Self(Arc::new(Mutex::new(Places {
            limit: members.saturating_add(OTHERS),
            handshakes: BTreeMap::new(),
            trainers: 0,
            others: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // What it guards is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that have a place at most.
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// A place for a new connection, and what tells it that it has to give it up; or why not.
    pub fn enter(&self, ticket: Ticket) -> Result<(Admission, oneshot::Receiver<()>), Error> {
        let mut places = self.lock();
        let open = places.handshakes.len() + places.trainers + places.others;
        if open >= places.limit {
            let Some((_, oldest)) = places.handshakes.pop_first() else {
                return Err(Error::Limit {
                    detail: format!("{open} connections are open, the limit is {}", places.limit),
                    help: HELP_FULL,
                });
            };
            // A connection that has just ended needs no message.
            let _ = oldest.send(());
        }
        let (sender, evicted) = oneshot::channel();
        places.handshakes.insert(ticket, sender);
        let pass = Admission {
            gate: self.clone(),
            ticket,
            settled: None,
        };
        Ok((pass, evicted))
    }

    /// What a peer is told whose place in the handshake was given to another one.
    pub fn evicted(&self) -> Error {
        Error::Limit {
            detail: format!(
                "{} connections are open, which is the limit, and this one was longest in the handshake",
                self.limit()
            ),
            help: HELP_EVICTED,
        }
    }
}

impl Admission {
    /// The handshake is complete.
    pub fn settle(&mut self, kind: PeerKind) -> Result<(), Error> {
        let mut places = self.gate.lock();
        if places.handshakes.remove(&self.ticket).is_none() {
            drop(places);
            return Err(self.gate.evicted());
        }
        match kind {
            PeerKind::Trainer => places.trainers += 1,
            PeerKind::Other if places.others >= OTHERS => {
                return Err(Error::Limit {
                    detail: format!(
                        "{} observers and launchers are connected, the limit is {OTHERS}",
                        places.others
                    ),
                    help: HELP_OTHERS,
                });
            }
            PeerKind::Other => places.others += 1,
        }
        self.settled = Some(kind);
        Ok(())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut places = self.gate.lock();
        match self.settled {
            Some(PeerKind::Trainer) => places.trainers -= 1,
            Some(PeerKind::Other) => places.others -= 1,
            None => {
                places.handshakes.remove(&self.ticket);
            }
        }
    }
}

/// Files that a process needs in addition to its connections.
const OTHER_FILES: u64 = 128;

/// Raises the soft limit of open files as far as so many connections need.
///
/// # Errors
/// [`Error::Options`] when the hard limit is lower.
pub fn raise_file_limit(connections: usize) -> Result<(), Error> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = connections as u64 + OTHER_FILES;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|soft| soft >= needed) {
        return Ok(());
    }
    let limit = Rlimit {
        current: Some(needed),
        ..now
    };
    if now.maximum.is_some_and(|hard| hard < needed) || setrlimit(Resource::Nofile, limit).is_err()
    {
        return Err(Error::Options {
            detail: format!(
                "{connections} connections need {needed} open files, the hard limit is {}",
                now.maximum.unwrap_or_default()
            ),
            help: "raise it (`ulimit -Hn`, LimitNOFILE, or --ulimit nofile of the container), or measure fewer members",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_peer_is_slowed_to_its_rate_and_a_slow_one_never_waits() {
        let begun = Instant::now();
        let mut bucket = TokenBucket::new(100, begun);
        let mut now = begun;
        for _ in 0..1200 {
            now += bucket.take(30, now);
        }
        // 200 at once, the other 1000 at 100 per second.
        let took = (now - begun).as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took}");
        for _ in 0..1000 {
            now += Duration::from_millis(11);
            assert_eq!(bucket.take(30, now), Duration::ZERO);
        }
        // A large frame costs as many as its bytes.
        let mut bucket = TokenBucket::new(100, now);
        let wait = bucket.take(1 << 20, now).as_secs_f64();
        assert!((0.5..0.6).contains(&wait), "{wait}");
    }

    #[test]
    fn the_handshake_cannot_keep_trainers_out() {
        let gate = AdmissionGate::new(2);
        let mut waiting: Vec<_> = (0..66).map(|t| gate.enter(t).unwrap()).collect();
        let (mut trainer, _) = gate.enter(66).unwrap();
        assert!(waiting[0].1.try_recv().is_ok(), "the oldest has to go");
        assert!(waiting[1].1.try_recv().is_err());
        trainer.settle(PeerKind::Trainer).unwrap();
        let told = waiting[0]
            .0
            .settle(PeerKind::Trainer)
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("66 connections") && told.contains("help:"),
            "{told}"
        );
        drop(waiting);
        // 64 others at most, so that there is a place for both members.
        let mut others: Vec<_> = (100..164).map(|t| gate.enter(t).unwrap().0).collect();
        for other in &mut others {
            other.settle(PeerKind::Other).unwrap();
        }
        let (mut one_more, _) = gate.enter(200).unwrap();
        let told = one_more.settle(PeerKind::Other).unwrap_err().to_string();
        assert!(told.contains("64 observers and launchers"), "{told}");
        drop(one_more);
        let (mut second, _) = gate.enter(201).unwrap();
        second.settle(PeerKind::Trainer).unwrap();
        let full = gate.enter(202).unwrap_err().to_string();
        assert!(full.contains("66 connections are open"), "{full}");
        drop((trainer, second, others));
        let places = gate.lock();
        assert_eq!((places.trainers, places.others), (0, 0));
    }
}
