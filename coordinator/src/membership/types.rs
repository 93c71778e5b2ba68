//! Input and output of the state machine.

use std::collections::BTreeMap;

use crate::journal::JournalEntry;
use crate::ledger::LedgerEntry;
use crate::protocol::{
    Generation, MemberId, MemberState, Ready, Reply, StartPoint, TrainerEvent, TrainerInfo, Vote,
};

/// What does not change during a run.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// Ranks that the run shall have.
    pub world: usize,
    /// Which numbers of ranks can train: [`crate::order::allowed_world_sizes`].
    pub virtual_shards: usize,
    /// The remaining ranks can form a new generation, so the loss of one is not the end. In an MPI
    /// world it is.
    pub elastic: bool,
    /// With fewer ranks than this, an elastic run waits.
    pub min_ranks: usize,
    /// Epochs to train, for the status.
    pub epochs: u32,
    /// A member that stays silent for longer counts as dead, in milliseconds.
    pub heartbeat_lapse_ms: u64,
    /// A rank whose training thread gets nothing done for this long hangs, in milliseconds...
    pub watchdog_ms: u64,
    /// ...or for this many median steps, whichever is longer.
    pub watchdog_steps: u64,
    /// How long the run waits for missing ranks, in milliseconds.
    pub join_ms: u64,
    /// How long the run waits for the ranks of a lost coordinator, in milliseconds.
    pub rejoin_ms: u64,
    /// When the run must have ended, in milliseconds of [`super::Membership::apply`]'s clock.
    pub deadline_ms: Option<u64>,
    /// Where training starts when no member holds a state: the newest complete checkpoint.
    pub start: StartPoint,
    /// The newest step that was ever committed. A member that claims more is not believed.
    pub newest: StartPoint,
    /// Members that had a rank when an earlier coordinator was lost, with that rank. They may come back.
    pub absent: BTreeMap<MemberId, usize>,
    /// Highest generation that was ever announced; 0 when none was.
    pub last_generation: Generation,
    /// Id of the first new member; the following ones count up from it.
    pub first_member: MemberId,
    /// What trains, for the status.
    pub summary: BTreeMap<String, String>,
}

/// A reason that is longer takes no further ones, in bytes.
const REASON_MAX: usize = 16 << 10;

/// Names a connection until its member has an id.
pub type Ticket = u64;

/// An input of the state machine: a message of a peer, the end of a connection, or the clock.
#[derive(Clone, Debug, PartialEq)]
pub enum MembershipEvent {
    /// A trainer showed the token.
    Join {
        /// The connection, which has no member id yet.
        ticket: Ticket,
        /// The trainer's introduction, which the token proof covered.
        info: TrainerInfo,
    },
    /// A trainer can take a seat.
    Ready {
        /// The trainer that is ready.
        member: MemberId,
        /// Its terms and the state that it holds.
        ready: Ready,
    },
    /// A trainer is alive.
    Heartbeat {
        /// The trainer that is alive.
        member: MemberId,
        /// Activity of its training thread.
        state: MemberState,
        /// Newest step it knows of.
        step: u64,
        /// Its throughput, 0 when unknown.
        samples_per_s: f32,
        /// Count of its training thread's progress.
        beat: u64,
    },
    /// A trainer voted for an attempt.
    Vote {
        /// The trainer that voted.
        member: MemberId,
        /// Its vote, unchecked.
        vote: Vote,
    },
    /// A trainer reports something.
    Trainer {
        /// The trainer that reports.
        member: MemberId,
        /// Its report, unchecked.
        event: TrainerEvent,
    },
    /// A trainer's connection is gone.
    Disconnected {
        /// The trainer that was connected.
        member: MemberId,
        /// How the connection ended, for the reason.
        detail: String,
    },
    /// A trainer publishes something to the ranks of its generation.
    Publish {
        /// The trainer that publishes; only rank 0 may.
        member: MemberId,
        /// The generation it means.
        generation: Generation,
        /// The bytes to forward, unchecked.
        bytes: Vec<u8>,
    },
    /// Someone asks that the next committed step be the last.
    Drain {
        /// Why, and who asks.
        reason: String,
    },
    /// Someone stops the run.
    Shutdown {
        /// Who asks for the stop, and why.
        reason: String,
    },
    /// Someone outside the ranks knows that the run cannot continue.
    Fail {
        /// Why the run cannot continue.
        reason: String,
    },
    /// The answer to [`Effect::FindCheckpoint`]: where the newest complete one stands, or why none can
    /// be used.
    Checkpoint(Result<StartPoint, String>),
    /// Time has passed; the shell reports it at an interval.
    Tick,
}

/// An output of the state machine. The shell carries effects out in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Let a trainer in under this id.
    Admit {
        /// The connection to welcome.
        ticket: Ticket,
        /// The id of the new member, or the one that it had before.
        member: MemberId,
    },
    /// Tell a trainer that it cannot take part, and close.
    Refuse {
        /// The connection to close.
        ticket: Ticket,
        /// Sent before the connection closes, with a help line.
        reason: String,
    },
    /// As `Refuse`, for a member that was let in before.
    Dismiss {
        /// The member to close the connection of.
        member: MemberId,
        /// Sent before the connection closes, with a help line.
        reason: String,
    },
    /// Put this on disk before the next effect.
    Journal(JournalEntry),
    /// Append this before the next effect.
    Ledger(LedgerEntry),
    /// No member holds a state any more: look for the newest complete checkpoint.
    FindCheckpoint,
    /// A checkpoint is complete: the ledger's records up to it must reach the disk.
    SyncLedger,
    /// Send to each of them.
    Send {
        /// The receivers, ascending.
        to: Vec<MemberId>,
        /// One message for all of them; it is encoded once.
        reply: Reply,
    },
    /// The run is over.
    End(RunOutcome),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// Training is complete: all epochs, or an early stop.
    Finished {
        /// Committed steps of the whole run.
        step: u64,
    },
    /// All ranks left after the agreed step; it can be resumed from there.
    Drained {
        /// Committed steps of the whole run.
        step: u64,
    },
    /// Stopped at once; it can be resumed from the newest checkpoint.
    Stopped {
        /// Who stopped the run, and why.
        reason: String,
    },
    /// The run could not continue.
    Failed {
        /// What failed, with the numbers.
        reason: String,
    },
}

impl RunOutcome {
    pub(super) fn name(&self) -> &'static str {
        match self {
            RunOutcome::Finished { .. } => "finished",
            RunOutcome::Drained { .. } => "drained",
            RunOutcome::Stopped { .. } => "stopped",
            RunOutcome::Failed { .. } => "failed",
        }
    }
}

/// The consequences of an event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transition {
    /// Effects to carry out, in order.
    pub effects: Vec<Effect>,
    /// Why, with numbers. Always there when there are effects.
    pub reason: Option<String>,
}

impl Transition {
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// This, and then another one.
    pub(super) fn and(mut self, next: Self) -> Self {
        self.effects.extend(next.effects);
        self.reason = match (self.reason, next.reason) {
            // A thousand ranks that are lost together are not all listed.
            (Some(first), Some(_)) if first.len() > REASON_MAX => Some(first),
            (Some(first), Some(then)) => Some(format!("{first}; {then}")),
            (first, then) => first.or(then),
        };
        self
    }

    pub(super) fn because(reason: impl Into<String>, effects: Vec<Effect>) -> Self {
        Self {
            effects,
            reason: Some(reason.into()),
        }
    }
}
