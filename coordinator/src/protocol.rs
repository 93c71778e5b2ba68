//! The messages on the wire. Their framing is in [`crate::codec`]; who sends what when is in
//! `docs/protocol.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::ids::{Abort, Cause, CheckpointInfo, Generation, MemberId, MemberState};
use crate::status::Status;

/// Version byte of every frame. Two versions do not talk to each other, except that
/// [`Reply::Drop`] can be read by all of them.
pub const PROTOCOL_VERSION: u8 = 5;

/// Most bytes that rank 0 may publish in a generation.
pub const PUBLISH_MAX: usize = 1024;

/// Where training continues: the newest committed step and the cursor it left. Ordered by progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StartPoint {
    /// Epoch that `cursor` counts in, from 0.
    pub epoch: u32,
    /// Committed steps of the whole run; the next attempt is at step `step + 1`.
    pub step: u64,
    /// Samples of `epoch` that are committed.
    pub cursor: u64,
}

/// Who a peer is. Part of what the token proof covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A training process, which may take a seat.
    Trainer(TrainerInfo),
    /// May ask for the status, nothing else.
    Observer,
    /// May also drain, stop and fail the run.
    Launcher,
}

impl Role {
    /// The role's name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Role::Trainer(_) => "trainer",
            Role::Observer => "observer",
            Role::Launcher => "launcher",
        }
    }
}

impl TrainerInfo {
    /// This process, without an id yet.
    pub fn this_process(preferred_rank: Option<u32>) -> Self {
        Self {
            member: None,
            host: crate::host::hostname(),
            machine: crate::host::machine(),
            pid: std::process::id(),
            preferred_rank,
        }
    }

    /// Whether two introductions are of one process.
    pub fn is_process(&self, other: &Self) -> bool {
        (self.pid, &self.machine) == (other.pid, &other.machine)
    }
}

/// The process behind a trainer's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerInfo {
    /// Its id, when it had one from this run before; `None` asks for a new one.
    pub member: Option<MemberId>,
    /// Host name, for people.
    pub host: String,
    /// Tells machines apart: [`crate::host::machine`].
    pub machine: String,
    /// Process id on that host.
    pub pid: u32,
    /// The rank it would like, as its MPI rank; given when free.
    pub preferred_rank: Option<u32>,
}

/// A trainer can take a seat: at the start, and again in every rendezvous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Must equal the other ranks' terms.
    pub terms: Terms,
    /// The newest committed step whose state (parameters, moments, statistics, progress) it holds.
    /// `None` for a process that has just started.
    pub have: Option<StartPoint>,
    /// Why it left a running generation by itself, as when a collective failed under it.
    pub gave_up: Option<String>,
}

/// What a trainer trains. All ranks must report the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Samples (non-black training patches) in one epoch: [`crate::order::EpochOrder::total_samples`].
    pub samples_per_epoch: u64,
    /// A hash over resolved config and manifest, so that ranks with another config or other data
    /// are refused instead of training on it. At most 256 bytes.
    pub fingerprint: String,
    /// The ranks can form a new generation in the same processes. Ranks of an MPI world cannot.
    pub elastic: bool,
}

/// One rank's word on an attempt. It is agreed when all ranks said the same `generation`, `epoch`,
/// `step` and `cursor_after`, all are finite, and their `samples` add up to the range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// Generation from the [`Assignment`].
    pub generation: Generation,
    /// Epoch of the batch.
    pub epoch: u32,
    /// The step that this attempt would commit: committed steps + 1.
    pub step: u64,
    /// Samples of `epoch` committed when this step is.
    pub cursor_after: u64,
    /// Mean loss per sample over this rank's samples (or over all ranks' samples: the weighted mean
    /// is then the same). 0 without samples.
    pub loss: f64,
    /// Loss and gradient norm are finite.
    pub finite: bool,
    /// Samples that this rank trained on in this attempt.
    pub samples: u64,
    /// Wall time of the attempt in milliseconds.
    pub step_ms: f32,
}

/// A rank's seat and where to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The new generation; every vote in it carries this number.
    pub generation: Generation,
    /// This member's rank, from 0.
    pub rank: usize,
    /// Number of ranks in this generation.
    pub world: usize,
    /// Where the ranks run: the machine of rank 0 and, when they are not all there, the lowest rank
    /// on another machine. (All of them would be a message of quadratic size over all ranks.)
    pub machines: Vec<Seated>,
    /// The newest committed step and the cursor that all ranks start from.
    pub start: StartPoint,
    /// The lowest rank that holds the state of `start`; `None`: rank 0 reads the checkpoint of
    /// `start.step`, or begins at step 0.
    pub source: Option<usize>,
    /// Some rank does not hold the state of `start`: all get it from `source`.
    pub share: bool,
    /// This generation takes no step: it saves a checkpoint of `start` and leaves.
    pub last: bool,
}

/// A rank and its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seated {
    /// Position in the world, from 0.
    pub rank: usize,
    /// That rank's [`TrainerInfo::machine`].
    pub machine: String,
}

/// What follows a committed step; the same for all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// The next attempt, in the same generation.
    Step,
    /// A rendezvous: say [`Request::Ready`]. Others want to take part.
    Regroup,
    /// Nothing: save a checkpoint, send [`TrainerEvent::Left`], leave.
    Leave,
}

/// A message from a peer to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// The first frame of a peer, in answer to [`Reply::Challenge`].
    Hello {
        /// BLAKE3 keyed hash, see [`crate::token::Token::proof`].
        proof: [u8; 32],
        /// Role of the peer, which decides what it may send.
        role: Role,
    },
    /// Trainer: can take a seat.
    Ready(Ready),
    /// Trainer: its process is alive.
    Heartbeat {
        /// Generation it is in, 0 before the first.
        generation: Generation,
        /// Activity of its training thread.
        state: MemberState,
        /// Newest committed step it knows of.
        step: u64,
        /// Samples per second of this rank, as it measures; 0 when it does not know.
        samples_per_s: f32,
        /// Counts what the training thread gets done (attempts, evaluated images, waits). A thread
        /// that hangs does not count on, while the heartbeats of its process do.
        beat: u64,
    },
    /// Trainer: an attempt is done.
    Vote(Vote),
    /// Trainer: a report for the other ranks or the status.
    Event(TrainerEvent),
    /// Observer or launcher: send the status.
    GetStatus,
    /// Launcher or trainer: the next committed step shall be the last.
    Drain {
        /// Who asks, and why; shown in the status.
        reason: String,
    },
    /// Launcher: stop at once; the run can be resumed.
    Shutdown {
        /// Who asks, and why; shown in the status.
        reason: String,
    },
    /// Launcher: the run cannot continue, as when a trainer ended before it had joined.
    Fail {
        /// Why the run cannot continue, with the numbers.
        reason: String,
    },
    /// Rank 0: what the other ranks need in order to meet it (NCCL's unique id). Once per generation.
    Publish {
        /// Generation from the [`Assignment`].
        generation: Generation,
        /// 1 to [`PUBLISH_MAX`] bytes.
        bytes: Vec<u8>,
    },
}

/// A report of a trainer, which waits for no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TrainerEvent {
    /// An epoch is evaluated. One rank's report is enough.
    EpochEnd {
        /// The evaluated epoch, as the trainer counts it.
        epoch: u32,
        /// Named figures (`f1_micro`, ...). Figures that are not finite are ignored.
        metrics: BTreeMap<String, f64>,
        /// Why the watched metric has no value, so that nothing is decided by it.
        undefined: Option<String>,
    },
    /// A checkpoint is complete on disk. One rank's report is enough.
    CheckpointSaved(CheckpointInfo),
    /// Training is complete (not: drained). Every rank sends it; then it may close the connection.
    Finished {
        /// Committed steps; must equal the coordinator's.
        step: u64,
        /// Hash over all tensors; all ranks that give one must give the same.
        weights_blake3: Option<String>,
    },
    /// The agreed drain step is done and saved. Every rank sends it; then it may close the connection.
    Left {
        /// Committed steps; must be the agreed last one.
        step: u64,
    },
    /// The ranks were given the state of `source`; this rank has it now.
    Shared {
        /// Committed steps of that state.
        step: u64,
        /// Hash over parameters, moments and statistics. All ranks must report the same.
        state_blake3: String,
    },
    /// This rank cannot continue. In an elastic run the others do.
    Failed {
        /// What failed on this rank, with the numbers.
        reason: String,
    },
    /// A checkpoint could not be written. Training continues; the one before stays the newest.
    CheckpointFailed {
        /// Committed steps that it would have held.
        step: u64,
        /// Which file could not be written, and the system's error.
        reason: String,
    },
}

/// A message from the coordinator to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The peer is told why, then the connection is closed. Stays variant 0 with one string in
    /// every protocol version, so that a peer of any version can read it.
    Drop {
        /// For people, with a help line where there is something to do.
        reason: String,
    },
    /// The first frame of a connection.
    Challenge {
        /// Random; the proof has to cover it.
        nonce: [u8; 32],
    },
    /// The handshake is complete.
    Welcome {
        /// A trainer's id; `None` for the others.
        member: Option<MemberId>,
        /// How often a trainer has to send a heartbeat, in milliseconds.
        heartbeat_ms: u32,
    },
    /// All ranks are there.
    Assign(Assignment),
    /// All ranks voted for this step: the optimizer moves.
    Commit {
        /// Generation of the votes.
        generation: Generation,
        /// The committed step, as in the votes.
        step: u64,
        /// What comes after it.
        next: Next,
    },
    /// The generation is over, the attempt is abandoned.
    Abort(Abort),
    /// The answer to [`Request::GetStatus`].
    StatusReport(Box<Status>),
    /// Answer to a launcher's order.
    Noted {
        /// The effect of the order, for people.
        detail: String,
    },
    /// What rank 0 published, to all other ranks of the generation. The coordinator does not keep it.
    Published {
        /// The generation that rank 0 published in.
        generation: Generation,
        /// As rank 0 gave them.
        bytes: Vec<u8>,
    },
}
