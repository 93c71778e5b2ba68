//! A rank's note about its next operation, so that ranks out of step notice before they mix data.

use std::fmt;

use super::{Error, Result};

/// The operations that have a number in a [`Note`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CollectiveOperation {
    Join = 1,
    AllReduce = 2,
    Broadcast = 3,
    AllGather = 4,
    Barrier = 5,
}

impl CollectiveOperation {
    fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::AllReduce => "all_reduce",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all_gather",
            Self::Barrier => "barrier",
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        [
            Self::Join,
            Self::AllReduce,
            Self::Broadcast,
            Self::AllGather,
            Self::Barrier,
        ]
        .into_iter()
        .find(|op| *op as u64 == number)
    }
}

/// Operation, length (f32 for all_reduce, else bytes) and root, as three numbers in shared memory or
/// in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    op: u64,
    pub(super) len: u64,
    root: u64,
}

impl Note {
    pub(super) fn new(op: CollectiveOperation, len: usize, root: usize) -> Self {
        Self {
            op: op as u64,
            len: len as u64,
            root: root as u64,
        }
    }

    /// The note of a broadcast, whose root must be one of `world` ranks.
    pub(super) fn broadcast(len: usize, root: usize, world: usize) -> Result<Self> {
        if root >= world {
            return Err(Error::BadRoot { root, world });
        }
        Ok(Self::new(CollectiveOperation::Broadcast, len, root))
    }

    pub(super) fn words(self) -> [u64; 3] {
        [self.op, self.len, self.root]
    }

    pub(super) fn from_words([op, len, root]: [u64; 3]) -> Self {
        Self { op, len, root }
    }

    pub(super) fn op_name(self) -> &'static str {
        CollectiveOperation::from_number(self.op).map_or("nothing", CollectiveOperation::name)
    }

    /// An error unless all ranks, whose notes these are in rank order, are in the same operation as `rank`.
    pub(super) fn agree(self, rank: usize, notes: impl Iterator<Item = Self>) -> Result<()> {
        match notes.enumerate().find(|(_, theirs)| !self.matches(*theirs)) {
            None => Ok(()),
            Some((other, theirs)) => Err(Error::Mismatch {
                rank,
                mine: self.to_string(),
                other,
                theirs: theirs.to_string(),
            }),
        }
    }

    /// Whether two ranks are in the same operation; only all_gather takes any length.
    fn matches(self, other: Self) -> bool {
        let any_len = self.op == CollectiveOperation::AllGather as u64;
        self.op == other.op && self.root == other.root && (any_len || self.len == other.len)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, len) = (self.op_name(), self.len);
        match CollectiveOperation::from_number(self.op) {
            Some(CollectiveOperation::AllReduce) => write!(f, "{name} of {len} f32"),
            Some(CollectiveOperation::Broadcast) => {
                write!(f, "{name} of {len} bytes from rank {}", self.root)
            }
            Some(CollectiveOperation::AllGather) => write!(f, "{name} giving {len} bytes"),
            Some(CollectiveOperation::Join | CollectiveOperation::Barrier) | None => {
                write!(f, "{name}")
            }
        }
    }
}
