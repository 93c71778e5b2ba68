//! Names of members, generations and checkpoints: the words that protocol, status and errors share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Membership version: rises with every new set of ranks, journaled before it is announced and
/// never reused. 0 means none yet.
pub type Generation = u64;

/// A process's stable id for its whole life; a rank is only its seat.
///
/// The upper 32 bits count the starts of the coordinator in this run directory, so an id is never
/// issued twice, not even by a restarted coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// What a trainer is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum MemberState {
    /// Loading libraries, data, a checkpoint.
    #[default]
    Starting = 0,
    /// Computing and committing steps.
    Training = 1,
    /// Evaluating a split; no step is committed meanwhile.
    Evaluating = 2,
    /// Holding the training thread for a checkpoint.
    Saving = 3,
    /// Waiting for the others.
    Waiting = 4,
}

impl MemberState {
    /// The state with this number, `Starting` for any other.
    pub fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Training,
            2 => Self::Evaluating,
            3 => Self::Saving,
            4 => Self::Waiting,
            _ => Self::Starting,
        }
    }
}

/// Why a generation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The run cannot continue.
    Failed,
    /// A rank is lost or gave up: abandon the attempt and say [`crate::protocol::Request::Ready`] again.
    Regroup,
    /// The run has finished: for members without a seat in its last generation.
    Finished,
    /// Someone stopped the run at once.
    Stopped,
    /// The run was drained before it had taken a step: nothing is lost.
    Drained,
}

/// The end of a generation, as the coordinator announced it. Errors, decisions and notices carry it whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    /// The generation that is over; 0 when none had begun.
    pub generation: Generation,
    /// Tells a rank whether to meet the others again, to leave, or to fail.
    pub cause: Cause,
    /// For people: which rank or which order ended it, with the numbers.
    pub reason: String,
}

/// A checkpoint directory that is complete on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Committed steps in it.
    pub step: u64,
    /// Its directory, as the rank that wrote it names it.
    pub path: String,
    /// Hash over tensor names, shapes and bytes in name order.
    pub weights_blake3: String,
    /// From the copy of the state to the complete checkpoint, in milliseconds; 0 when not known.
    pub took_ms: u64,
}
