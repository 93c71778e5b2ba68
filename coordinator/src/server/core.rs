//! The one place where events become effects, and effects happen.

mod effects;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::FindCheckpoint;
use super::connection::{Frame, Message, OUTBOX};
use super::limits::Counters;
use crate::codec;
use crate::journal::Journal;
use crate::ledger::{Ledger, LedgerEntry};
use crate::membership::{Effect, Membership, MembershipEvent, RunOutcome, Ticket, Transition};
use crate::protocol::{MemberId, Reply, Request, Role};
use crate::rundir::{CoordinatorInfo, INFO_FILE};
use crate::status::Status;
use crate::token::{TOKEN_FILE, Token};

/// How often `status.json` is written.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the ranks in a status frame; the rest of the frame is for everything else in it.
const STATUS_RANKS: usize = codec::MAX_FRAME - (256 << 10);
/// A status frame of more bytes serves every peer that asks within `STATUS_FRESH`: building one takes
/// as long as thousands of votes.
const STATUS_LARGE: usize = 64 << 10;
const STATUS_FRESH: Duration = Duration::from_millis(250);

struct Peer {
    outbox: mpsc::Sender<Frame>,
    role: Role,
    member: Option<MemberId>,
}

pub(super) struct Core {
    run_dir: PathBuf,
    begun: Instant,
    membership: Membership,
    journal: Journal,
    ledger: Ledger,
    peers: HashMap<Ticket, Peer>,
    tickets: BTreeMap<MemberId, Ticket>,
    outcome: Option<RunOutcome>,
    status_frame: Option<(Instant, Frame)>,
    status_written: Option<Instant>,
    status_writer: Option<JoinHandle<()>>,
    /// The newest `status.json` could not be written.
    status_behind: Arc<AtomicBool>,
    ledger_behind: bool,
    /// Connections whose outbox is full.
    stuck: Vec<Ticket>,
    pub counters: Arc<Counters>,
    pub heartbeat_ms: u32,
    pub find_checkpoint: Option<FindCheckpoint>,
    /// What others need to find and enter: address file and token.
    pub door: Option<(CoordinatorInfo, Token)>,
    inbox: mpsc::Sender<Message>,
}

impl Core {
    pub fn new(
        run_dir: &Path,
        membership: Membership,
        journal: Journal,
        ledger: Ledger,
        inbox: mpsc::Sender<Message>,
    ) -> Self {
        Self {
            run_dir: run_dir.to_path_buf(),
            begun: Instant::now(),
            membership,
            journal,
            ledger,
            peers: HashMap::new(),
            tickets: BTreeMap::new(),
            outcome: None,
            status_frame: None,
            status_written: None,
            status_writer: None,
            status_behind: Arc::default(),
            ledger_behind: false,
            stuck: Vec::new(),
            counters: Arc::default(),
            heartbeat_ms: 1000,
            find_checkpoint: None,
            door: None,
            inbox,
        }
    }

    pub fn outcome(&self) -> Option<&RunOutcome> {
        self.outcome.as_ref()
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    pub fn handle(&mut self, message: Message) {
        match message {
            Message::Opened {
                ticket,
                role,
                outbox,
            } => self.opened(ticket, role, outbox),
            Message::Request { ticket, request } => self.request(ticket, request),
            Message::Closed {
                ticket,
                detail,
                tell,
            } => {
                if let Some(reason) = tell {
                    self.send(&[ticket], &Reply::Drop { reason });
                }
                self.closed(ticket, detail);
            }
            Message::Checkpoint(found) => {
                self.apply(MembershipEvent::Checkpoint(found));
            }
        }
        self.close_stuck();
    }

    pub fn tick(&mut self) {
        self.apply(MembershipEvent::Tick);
        if self
            .status_written
            .is_none_or(|last| last.elapsed() >= STATUS_EVERY)
        {
            self.write_status();
            self.keep_the_door_open();
        }
        self.close_stuck();
    }

    /// Without these files nobody finds this coordinator; somebody may have removed them.
    fn keep_the_door_open(&mut self) {
        let Some((info, token)) = &self.door else {
            return;
        };
        if !self.run_dir.join(INFO_FILE).exists()
            && let Err(error) = info.store(&self.run_dir)
        {
            tracing::debug!("{error}");
        }
        if !self.run_dir.join(TOKEN_FILE).exists()
            && let Err(error) = token.store(&self.run_dir)
        {
            tracing::debug!("{error}");
        }
    }

    fn close_stuck(&mut self) {
        while let Some(ticket) = self.stuck.pop() {
            self.counters.closed();
            self.closed(
                ticket,
                format!("it does not read: {OUTBOX} messages wait for it"),
            );
        }
    }

    fn opened(&mut self, ticket: Ticket, role: Role, outbox: mpsc::Sender<Frame>) {
        let trainer = match &role {
            Role::Trainer(info) => Some(info.clone()),
            Role::Observer | Role::Launcher => None,
        };
        self.peers.insert(
            ticket,
            Peer {
                outbox,
                role,
                member: None,
            },
        );
        match trainer {
            Some(info) => {
                self.apply(MembershipEvent::Join { ticket, info });
            }
            None => self.welcome(ticket, None),
        }
    }

    fn welcome(&mut self, ticket: Ticket, member: Option<MemberId>) {
        let heartbeat_ms = self.heartbeat_ms;
        self.send(
            &[ticket],
            &Reply::Welcome {
                member,
                heartbeat_ms,
            },
        );
    }

    fn closed(&mut self, ticket: Ticket, detail: String) {
        let Some(peer) = self.peers.remove(&ticket) else {
            return;
        };
        if let Some(member) = peer.member
            && self.tickets.get(&member) == Some(&ticket)
        {
            self.tickets.remove(&member);
            self.apply(MembershipEvent::Disconnected { member, detail });
        }
    }

    /// Says why and lets go; the connection closes once that is written.
    fn drop_peer(&mut self, ticket: Ticket, reason: String) {
        self.counters.closed();
        self.send(&[ticket], &Reply::Drop { reason });
        if let Some(peer) = self.peers.remove(&ticket)
            && let Some(member) = peer.member
        {
            self.tickets.remove(&member);
        }
    }

    fn request(&mut self, ticket: Ticket, request: Request) {
        let Some(peer) = self.peers.get(&ticket) else {
            return;
        };
        match (&peer.role, peer.member) {
            (Role::Trainer(_), Some(member)) => self.trainer_request(ticket, member, request),
            (Role::Launcher, _) => self.launcher_request(ticket, request),
            (Role::Observer, _) if request == Request::GetStatus => self.report(ticket),
            (role, _) => {
                let role = role.name();
                self.not_allowed(ticket, role, &request);
            }
        }
    }

    fn trainer_request(&mut self, ticket: Ticket, member: MemberId, request: Request) {
        let event = match request {
            Request::Ready(ready) => MembershipEvent::Ready { member, ready },
            Request::Heartbeat {
                state,
                step,
                samples_per_s,
                beat,
                ..
            } => MembershipEvent::Heartbeat {
                member,
                state,
                step,
                samples_per_s,
                beat,
            },
            Request::Vote(vote) => MembershipEvent::Vote { member, vote },
            Request::Event(event) => MembershipEvent::Trainer { member, event },
            Request::Publish { generation, bytes } => MembershipEvent::Publish {
                member,
                generation,
                bytes,
            },
            Request::Drain { reason } => MembershipEvent::Drain { reason },
            Request::GetStatus => return self.report(ticket),
            Request::Hello { .. } | Request::Shutdown { .. } | Request::Fail { .. } => {
                self.not_allowed(ticket, "trainer", &request);
                return;
            }
        };
        self.apply(event);
    }

    fn launcher_request(&mut self, ticket: Ticket, request: Request) {
        let event = match request {
            Request::GetStatus => return self.report(ticket),
            Request::Drain { reason } => MembershipEvent::Drain { reason },
            Request::Shutdown { reason } => MembershipEvent::Shutdown { reason },
            Request::Fail { reason } => MembershipEvent::Fail { reason },
            other => return self.not_allowed(ticket, "launcher", &other),
        };
        let detail = self.apply(event).unwrap_or_default();
        self.send(&[ticket], &Reply::Noted { detail });
    }

    fn not_allowed(&mut self, ticket: Ticket, role: &str, request: &Request) {
        let name = match request {
            Request::Hello { .. } => "Hello",
            Request::Ready(_) => "Ready",
            Request::Heartbeat { .. } => "Heartbeat",
            Request::Vote(_) => "Vote",
            Request::Event(_) => "Event",
            Request::GetStatus => "GetStatus",
            Request::Drain { .. } => "Drain",
            Request::Shutdown { .. } => "Shutdown",
            Request::Fail { .. } => "Fail",
            Request::Publish { .. } => "Publish",
        };
        let detail = format!("the role {role} may not send {name} now");
        let reason =
            format!("{detail}\n  help: connect as the role that may: docs/protocol.md lists them");
        tracing::warn!("dropped connection {ticket}: {detail}");
        let member = self.peers.get(&ticket).and_then(|peer| peer.member);
        self.drop_peer(ticket, reason);
        if let Some(member) = member {
            self.apply(MembershipEvent::Disconnected { member, detail });
        }
    }

    fn report(&mut self, ticket: Ticket) {
        if let Some((made, frame)) = &self.status_frame
            && made.elapsed() < STATUS_FRESH
        {
            let frame = Arc::clone(frame);
            self.send_frame(&[ticket], &frame);
            return;
        }
        let mut status = self.status();
        status.fit(STATUS_RANKS);
        let Some(frame) = encode(&Reply::StatusReport(Box::new(status))) else {
            return;
        };
        self.send_frame(&[ticket], &frame);
        self.status_frame = (frame.len() > STATUS_LARGE).then(|| (Instant::now(), frame));
    }

    fn status(&self) -> Status {
        Status {
            turned: self.counters.read(),
            ..self.membership.status(self.now_ms())
        }
    }

    /// Applies an event, and the events that its effects cause. Returns the reason of the first.
    pub fn apply(&mut self, event: MembershipEvent) -> Option<String> {
        let mut told = None;
        let mut next = Some(event);
        while let Some(event) = next {
            let now_ms = self.now_ms();
            let Transition { effects, reason } = self.membership.apply(event, now_ms);
            if let Some(reason) = &reason {
                log(&effects, reason);
            }
            told = told.or(reason);
            next = self
                .perform(effects)
                .err()
                .map(|error| MembershipEvent::Fail {
                    reason: error.to_string(),
                });
        }
        told
    }

    /// Encodes once and hands the frame to each connection. One whose outbox is full does not
    /// read; it is let go.
    fn send(&mut self, tickets: &[Ticket], reply: &Reply) {
        if let Some(frame) = encode(reply) {
            self.send_frame(tickets, &frame);
        }
    }

    fn send_frame(&mut self, tickets: &[Ticket], frame: &Frame) {
        for ticket in tickets {
            let Some(peer) = self.peers.get(ticket) else {
                continue;
            };
            if let Err(mpsc::error::TrySendError::Full(_)) = peer.outbox.try_send(Arc::clone(frame))
            {
                self.stuck.push(*ticket);
            }
        }
    }

    /// Lets go of all peers; what waits for them is still written.
    pub fn close_connections(&mut self) {
        self.peers.clear();
        self.tickets.clear();
    }
}

fn encode(reply: &Reply) -> Option<Frame> {
    match codec::encode(reply) {
        Ok(frame) => Some(frame.into()),
        Err(error) => {
            tracing::error!("cannot send {:?}: {error}", std::mem::discriminant(reply));
            None
        }
    }
}

/// Commits are many and expected; everything else is worth a line.
fn log(effects: &[Effect], reason: &str) {
    let commit = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Ledger(LedgerEntry::Commit(_))));
    let failed = effects
        .iter()
        .any(|effect| matches!(effect, Effect::End(RunOutcome::Failed { .. })));
    if failed {
        tracing::error!("{reason}");
    } else if commit {
        tracing::debug!("{reason}");
    } else {
        tracing::info!("{reason}");
    }
}
