//! The blocking clients: [`Client`] for a trainer, [`Observer`] for everyone who watches or steers.
//!
//! A trainer's client has two threads of its own. One sends heartbeats, so a training thread that
//! is busy for minutes does not pass for dead. One reads, so an abort is known at once
//! even while the training thread waits in a collective.

mod abort;
mod connect;
mod observer;

use std::io::BufReader;
use std::net::{Shutdown, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use abort::{AbortNotice, AbortSignal};
pub use connect::Endpoint;
pub use observer::{Observer, status_of};

use crate::codec;
use crate::error::{Error, Result};
use crate::protocol::{
    Abort, Assignment, Cause, Generation, MemberId, MemberState, Next, Ready, Reply, Request, Role,
    TrainerEvent, TrainerInfo, Vote,
};

/// Longest that a write may block before the connection counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leaving client waits for the coordinator to have read everything.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const HELP_JOIN: &str = "one of the ranks did not start: see `fovea status` for those that are \
    there, and the logs of the others";
const HELP_PUBLISHED: &str = "rank 0 hangs before it has told how to meet it: see its log";
const HELP_VOTE: &str = "a rank hangs in this step: see `fovea status` for the one that is behind, \
    and raise the deadline if it is only slow";

/// The coordinator's answer to a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All ranks voted for the step: move the optimizer and the cursor.
    Commit {
        /// The committed step, as in the vote.
        step: u64,
        /// What comes after it.
        next: Next,
    },
    /// The attempt is abandoned: touch nothing.
    Abort(Abort),
}

/// A trainer's connection. Dropping it closes the connection after all that was sent was read;
/// without [`TrainerEvent::Finished`] or [`TrainerEvent::Left`] before, the rank counts as lost.
#[derive(Debug)]
pub struct Client {
    reporter: Reporter,
    member: MemberId,
    inbox: Receiver<Reply>,
    threads: Vec<JoinHandle<()>>,
}

/// The part of a [`Client`] that any thread may use, as the one that writes checkpoints.
#[derive(Clone, Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    peer: String,
    writer: Mutex<TcpStream>,
    /// Of the newest generation.
    abort: Mutex<AbortSignal>,
    generation: AtomicU64,
    state: AtomicU8,
    step: AtomicU64,
    beat: AtomicU64,
    /// Bits of an `f32`.
    samples_per_s: AtomicU32,
    /// The end of the connection is expected.
    leaving: AtomicBool,
    stop: Mutex<bool>,
    stopped: Condvar,
}

impl Client {
    /// Connects and shows the token, trying again until `deadline` while the coordinator is not
    /// there yet. A refusal (wrong token, other version, no free seat) is returned at once.
    pub fn connect(endpoint: &Endpoint, info: TrainerInfo, deadline: Instant) -> Result<Self> {
        let opened = connect::open(endpoint, &Role::Trainer(info), deadline)?;
        let member = opened.member.ok_or_else(|| Error::Unexpected {
            peer: opened.peer.clone(),
            got: "a welcome without a member id".to_owned(),
            expected: "a welcome with one",
        })?;
        let stream = opened.reader.get_ref().try_clone()?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let shared = Arc::new(Shared {
            peer: opened.peer,
            writer: Mutex::new(stream),
            abort: Mutex::default(),
            generation: AtomicU64::new(0),
            state: AtomicU8::new(MemberState::Starting as u8),
            step: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            samples_per_s: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        });
        let (sender, inbox) = channel();
        let every = Duration::from_millis(u64::from(opened.heartbeat_ms.max(1)));
        let mut client = Self {
            reporter: Reporter {
                shared: Arc::clone(&shared),
            },
            member,
            inbox,
            threads: Vec::with_capacity(2),
        };
        let reading = Arc::clone(&shared);
        let reader = opened.reader;
        client.spawn("fovea-coord-read", move || {
            reading.read_all(reader, &sender)
        })?;
        client.spawn("fovea-heartbeat", move || shared.heartbeats(every))?;
        Ok(client)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)?;
        self.threads.push(thread);
        Ok(())
    }

    /// This process's id in the run.
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// A handle for other threads.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Reports that this process can take a seat, at the start or in a later rendezvous, and waits for
    /// the seat. From then on [`Reporter::abort_signal`] is the new generation's.
    ///
    /// # Errors
    /// [`Error::Aborted`] when the run is over, [`Error::Lost`] or [`Error::Dropped`] when the
    /// connection is, [`Error::Timeout`] after the deadline.
    pub fn ready(&mut self, ready: &Ready, deadline: Instant) -> Result<Assignment> {
        self.shared
            .send(&Request::Ready(ready.clone()))
            .map_err(|error| self.told_why(error))?;
        loop {
            match self.next(deadline, "all ranks to join", HELP_JOIN)? {
                Reply::Assign(assignment) => {
                    self.shared
                        .step
                        .store(assignment.start.step, Ordering::Relaxed);
                    return Ok(assignment);
                }
                // Of the generation that this rank has left.
                Reply::Abort(Abort {
                    cause: Cause::Regroup,
                    ..
                })
                | Reply::Commit { .. }
                | Reply::Published { .. } => {}
                Reply::Abort(abort) => return Err(Error::Aborted(abort)),
                other => return Err(self.unexpected(&other, "an assignment")),
            }
        }
    }

    /// Gives `bytes` (1 to [`crate::protocol::PUBLISH_MAX`]) to the other ranks of `generation`. For rank 0, once.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is. A coordinator that does not allow it drops this rank, which
    /// shows in the next call.
    pub fn publish(&self, generation: Generation, bytes: Vec<u8>) -> Result<()> {
        self.shared
            .send(&Request::Publish { generation, bytes })
            .map_err(|error| self.told_why(error))
    }

    /// Waits for what rank 0 publishes in `generation`. For the other ranks, once, right after
    /// [`Client::ready`].
    ///
    /// # Errors
    /// [`Error::Aborted`] when the generation ends before, [`Error::Lost`] or [`Error::Dropped`] when the
    /// connection does, [`Error::Timeout`] after the deadline.
    pub fn published(&mut self, generation: Generation, deadline: Instant) -> Result<Vec<u8>> {
        match self.next(deadline, "what rank 0 publishes", HELP_PUBLISHED)? {
            Reply::Published {
                generation: given,
                bytes,
            } if given == generation => Ok(bytes),
            Reply::Abort(abort) => Err(Error::Aborted(abort)),
            other => Err(self.unexpected(&other, "what rank 0 publishes")),
        }
    }

    /// Votes for an attempt and waits for the decision, which comes when all ranks have voted.
    pub fn vote(&mut self, vote: &Vote, deadline: Instant) -> Result<Decision> {
        if let Some(notice) = self.abort_signal().notice() {
            if notice.lost {
                return Err(self.shared.lost());
            }
            return Ok(Decision::Abort(notice.abort));
        }
        if let Err(error) = self.shared.send(&Request::Vote(vote.clone())) {
            return match self.told_why(error) {
                Error::Aborted(abort) => Ok(Decision::Abort(abort)),
                other => Err(other),
            };
        }
        match self.next(deadline, "the other ranks' votes", HELP_VOTE)? {
            Reply::Commit {
                generation,
                step,
                next,
            } if generation == vote.generation && step == vote.step => {
                self.shared.step.store(step, Ordering::Relaxed);
                Ok(Decision::Commit { step, next })
            }
            Reply::Abort(abort) => Ok(Decision::Abort(abort)),
            other => Err(self.unexpected(&other, "the decision on this rank's vote")),
        }
    }

    /// The next message of the coordinator.
    fn next(&self, deadline: Instant, what: &str, help: &'static str) -> Result<Reply> {
        let begun = Instant::now();
        match self
            .inbox
            .recv_timeout(deadline.saturating_duration_since(begun))
        {
            Ok(Reply::Drop { reason }) => Err(Error::Dropped { reason }),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Disconnected) => Err(self.shared.lost()),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout {
                what: what.to_owned(),
                waited_ms: begun.elapsed().as_millis() as u64,
                help,
            }),
        }
    }

    /// A write failed: most likely the coordinator closed the connection after it sent a reason, and
    /// the caller needs that reason.
    fn told_why(&self, error: Error) -> Error {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        loop {
            match self.next(deadline, "the coordinator's reason", "") {
                Ok(Reply::Abort(abort)) => return Error::Aborted(abort),
                Ok(_) => {}
                Err(Error::Timeout { .. }) => return error,
                Err(why) => return why,
            }
        }
    }

    fn unexpected(&self, reply: &Reply, expected: &'static str) -> Error {
        Error::Unexpected {
            peer: self.shared.peer.clone(),
            got: format!("{reply:?}").chars().take(200).collect(),
            expected,
        }
    }
}

/// A client can do all that its reporter can.
impl Deref for Client {
    type Target = Reporter;

    fn deref(&self) -> &Reporter {
        &self.reporter
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        let _ = lock(&self.shared.writer).shutdown(Shutdown::Write);
        // The coordinator reads to the end and closes; only then is everything sent known to be
        // read. Exiting with unread bytes on this side would reset the connection instead.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while let Ok(_reply) = self
            .inbox
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {}
        let _ = lock(&self.shared.writer).shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Reporter {
    /// The training thread got something done; the next heartbeat carries the count. One atomic
    /// addition: call it freely. A rank that does not call it for long counts as hung.
    pub fn beat(&self) {
        self.shared.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// What this rank does; the next heartbeat carries it. A few atomic stores: call it freely.
    pub fn state(&self, state: MemberState) {
        self.beat();
        self.shared.state.store(state as u8, Ordering::Relaxed);
    }

    /// As [`Reporter::state`], with the newest committed step that this rank holds and its throughput
    /// (0 when unknown).
    pub fn heartbeat_state(&self, state: MemberState, step: u64, samples_per_s: f32) {
        self.beat();
        let shared = &self.shared;
        shared.state.store(state as u8, Ordering::Relaxed);
        shared.step.store(step, Ordering::Relaxed);
        shared
            .samples_per_s
            .store(samples_per_s.to_bits(), Ordering::Relaxed);
    }

    /// Set once the coordinator abandoned the newest generation that this rank has a seat in, or the
    /// connection is lost.
    pub fn abort_signal(&self) -> AbortSignal {
        lock(&self.shared.abort).clone()
    }

    /// Tells the coordinator something; returns when it is handed to the system.
    pub fn event(&self, event: TrainerEvent) -> Result<()> {
        if matches!(
            event,
            TrainerEvent::Finished { .. } | TrainerEvent::Left { .. } | TrainerEvent::Failed { .. }
        ) {
            self.shared.leaving.store(true, Ordering::Relaxed);
        }
        self.shared.send(&Request::Event(event))
    }

    /// Asks that the next committed step be the last one of all ranks, as on SIGTERM.
    pub fn drain(&self, reason: &str) -> Result<()> {
        self.shared.send(&Request::Drain {
            reason: reason.to_owned(),
        })
    }
}

impl Shared {
    fn send(&self, request: &Request) -> Result<()> {
        let frame = codec::encode(request)?;
        let mut writer = lock(&self.writer);
        std::io::Write::write_all(&mut *writer, &frame).map_err(|error| {
            // Half a frame may be out: nothing can follow it.
            let _ = writer.shutdown(Shutdown::Write);
            Error::Lost {
                peer: self.peer.clone(),
                detail: error.to_string(),
            }
        })
    }

    fn lost(&self) -> Error {
        let detail = match lock(&self.abort).notice() {
            Some(notice) => notice.abort.reason,
            None => "this side closed it".to_owned(),
        };
        Error::Lost {
            peer: self.peer.clone(),
            detail,
        }
    }

    /// The reading thread: everything goes to the inbox, an abort also to the signal first.
    fn read_all(&self, mut reader: BufReader<TcpStream>, inbox: &Sender<Reply>) {
        let detail = loop {
            let reply = match codec::read_body(&mut reader, codec::MAX_FRAME) {
                Ok(Some(body)) => codec::decode_reply(&body),
                Ok(None) => break "the coordinator closed it".to_owned(),
                Err(error) => Err(error),
            };
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => break error.to_string(),
            };
            match &reply {
                // Here, and not where the assignment is taken from the inbox: an abort of this
                // generation may be the next message.
                Reply::Assign(assignment) => {
                    self.generation
                        .store(assignment.generation, Ordering::Relaxed);
                    *lock(&self.abort) = AbortSignal::default();
                }
                Reply::Abort(abort) => self.raise(&AbortNotice {
                    abort: abort.clone(),
                    lost: false,
                }),
                Reply::Drop { reason } => self.raise(&self.notice_lost(reason.clone())),
                _ => {}
            }
            if inbox.send(reply).is_err() {
                return;
            }
        };
        if !self.leaving.load(Ordering::Relaxed) {
            self.raise(&self.notice_lost(detail));
        }
    }

    fn raise(&self, notice: &AbortNotice) {
        let signal = lock(&self.abort).clone();
        signal.set(notice);
    }

    fn notice_lost(&self, reason: String) -> AbortNotice {
        let abort = Abort {
            generation: self.generation.load(Ordering::Relaxed),
            cause: Cause::Failed,
            reason,
        };
        AbortNotice { abort, lost: true }
    }

    /// The heartbeat thread. It ends when the client is dropped or the connection is lost; the
    /// reading thread is the one that tells about that.
    fn heartbeats(&self, every: Duration) {
        loop {
            let (stop, _) = self
                .stopped
                .wait_timeout_while(lock(&self.stop), every, |stop| !*stop)
                .unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            let heartbeat = Request::Heartbeat {
                generation: self.generation.load(Ordering::Relaxed),
                state: MemberState::from_u8(self.state.load(Ordering::Relaxed)),
                step: self.step.load(Ordering::Relaxed),
                samples_per_s: f32::from_bits(self.samples_per_s.load(Ordering::Relaxed)),
                beat: self.beat.load(Ordering::Relaxed),
            };
            if self.send(&heartbeat).is_err() {
                return;
            }
        }
    }
}

/// A poisoned lock only means that another thread panicked between two writes; the guarded values
/// here are consistent at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
