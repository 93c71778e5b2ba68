//! What can go wrong between ranks, and what to do about it.

use std::fmt;
use std::io;
use std::time::Duration;

/// The result of a collective operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a collective operation failed, or the joining of a generation. After any of these from a running
/// engine the attempt is over for all ranks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody raised the abort: this rank's [`super::AbortHandle`], another rank's, or another rank's
    /// error. Part of every membership change, so the caller decides whether it is a failure.
    #[error(
        "{op} on rank {rank} was aborted by {}: {reason}\n  help: the attempt is abandoned and the \
         committed step stands; look at the coordinator's log for why the generation ended",
        Rank(*by)
    )]
    Aborted {
        /// The operation that was ended.
        op: &'static str,
        /// The rank that reports the error, `0..world`.
        rank: usize,
        /// The rank that raised it, where that is known.
        by: Option<usize>,
        /// The reason given by whoever raised it (at most 248 bytes of it from another process).
        reason: String,
    },

    /// Some ranks did not arrive before the deadline.
    #[error(
        "{op} on rank {rank} of {world} gave up after {waited_ms} ms: waiting for {}\n  help: see the \
         log of the ranks named; if they are alive but slow, raise the step's deadline",
        List(absent)
    )]
    Deadline {
        /// The operation that was waiting.
        op: &'static str,
        /// The rank that reports the error, `0..world`.
        rank: usize,
        /// Number of ranks in the generation.
        world: usize,
        /// How long this rank waited, in ms.
        waited_ms: u64,
        /// The ranks that had not arrived; empty where the backend cannot say.
        absent: Vec<Absent>,
    },

    /// Two ranks are not in the same operation. This is a bug in the loop, or ranks started with
    /// different settings.
    #[error(
        "ranks are out of step: rank {rank} is in {mine}, rank {other} in {theirs}\n  help: all ranks \
         must run the same binary with the same config; compare RUN/config.toml and `fovea --version` \
         on the two"
    )]
    Mismatch {
        /// The rank that reports the error, `0..world`.
        rank: usize,
        /// What this rank called.
        mine: String,
        /// The rank that differs.
        other: usize,
        /// What that rank called.
        theirs: String,
    },

    /// The root of a broadcast is no rank of this world.
    #[error("broadcast from rank {root}, but the ranks are 0 to {}\n  help: this is a bug in the caller; \
             please report it", world - 1)]
    BadRoot {
        /// The root asked for.
        root: usize,
        /// Number of ranks in the generation.
        world: usize,
    },

    /// A rank outside the world, or a world of a size the backend does not take.
    #[error(
        "rank {rank} of {world} is no seat: ranks are 0 to world size - 1, world size 1 to {max_world}\
         \n  help: check the rank and the number of ranks this process was started with"
    )]
    BadSeat {
        /// The rank asked for.
        rank: usize,
        /// The world size asked for.
        world: usize,
        /// The largest world this backend takes.
        max_world: usize,
    },

    /// The system does not give the memory that the ranks share.
    #[error(
        "no room for the memory shared by {world} ranks: {needed_bytes} bytes needed, {available_bytes} \
         available ({source})\n  help: free memory on this machine or raise the job's memory limit; fewer \
         ranks need less"
    )]
    NoRoom {
        /// Number of ranks in the generation.
        world: usize,
        /// Size of the segment in bytes.
        needed_bytes: u64,
        /// What the system says is available, in bytes.
        available_bytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },

    /// Shared memory reaches one machine only.
    #[error(
        "backend local needs all ranks on one machine, but rank {rank} is on {host} and rank {other} on \
         {other_host}\n  help: use `--backend mpi` for ranks on different hosts"
    )]
    DifferentHosts {
        /// One of two ranks on different machines.
        rank: usize,
        /// The machine of `rank`.
        host: String,
        /// The other of the two.
        other: usize,
        /// The machine of `other`.
        other_host: String,
    },

    /// Rank 0 did not let this rank in.
    #[error(
        "rank {rank} was refused in generation {generation}: {reason}\n  help: each rank starts once per \
         generation, with the world size and settings of the others; ask for a new generation"
    )]
    Refused {
        /// The rank that reports the error, `0..world`.
        rank: usize,
        /// The generation it wanted to join.
        generation: u64,
        /// What rank 0 said.
        reason: String,
    },

    /// The system refused a call that joining needs.
    #[error("rank {rank} could not {what}: {source}\n  help: {help}")]
    System {
        /// The rank that reports the error, `0..world`.
        rank: usize,
        /// What the rank tried, as the end of "could not".
        what: String,
        /// What the kernel answered.
        source: io::Error,
        /// What to do about it.
        help: &'static str,
    },

    /// No NCCL was found, or none that can be used.
    #[error(
        "no NCCL library that can be loaded; tried {tried}\n  help: a pip installation of torch with CUDA has \
         it (python3 -m pip install nvidia-nccl-cu13); set FOVEA_NCCL to its libnccl.so.2 or the folder that \
         holds it, or train with another backend"
    )]
    NcclMissing {
        /// Each place and what the loader said.
        tried: String,
    },

    /// An NCCL without what this backend needs.
    #[error(
        "{path} is NCCL {version}, and the oldest that can be aborted safely is {oldest}\n  help: install \
         NCCL 2.27 or 2.29 and set FOVEA_NCCL to its libnccl.so.2 or the folder that holds it"
    )]
    NcclTooOld {
        /// Path of the library that was loaded.
        path: String,
        /// What `ncclGetVersion` of it gives, as major.minor.patch.
        version: String,
        /// The oldest that will do.
        oldest: String,
    },

    /// A call into NCCL failed, or NCCL noticed later that something had.
    #[error(
        "{call} failed on rank {rank} with {code} ({text}){}\n  help: {help}",
        if details.is_empty() { String::new() } else { format!(": {details}") }
    )]
    Nccl {
        /// The NCCL function that failed, or whose work did.
        call: &'static str,
        /// This rank (0 before it is known).
        rank: usize,
        /// The `ncclResult_t` that it returned or that the communicator is in.
        code: i32,
        /// NCCL's words for the code.
        text: String,
        /// What NCCL last said about it, in one line.
        details: String,
        /// What to do about it.
        help: &'static str,
    },

    /// The CUDA driver refused a call.
    #[error(transparent)]
    Cuda(#[from] fovea_kernels::cuda::Error),

    /// The way to the other ranks, over which they find each other.
    #[error(transparent)]
    Coordinator(#[from] fovea_coordinator::Error),

    /// The request makes no sense as given.
    #[error("{what}\n  help: {help}")]
    Usage {
        /// What was asked for and why it cannot be done.
        what: String,
        /// What the user must do, as an instruction.
        help: String,
    },

    /// An invariant of this program does not hold.
    #[error("internal error: {0}\n  help: please report this with the command that led to it")]
    Internal(String),

    /// A call into the MPI library failed.
    #[error("{call} failed on rank {rank}: {message}\n  help: {help}")]
    Mpi {
        /// The MPI function that did not return `MPI_SUCCESS`.
        call: &'static str,
        /// This rank (0 before it is known).
        rank: usize,
        /// The library's own words.
        message: String,
        /// What to do about it.
        help: &'static str,
    },
}

impl Error {
    /// Whether the request is wrong, or this machine lacks what the backend needs: starting again does not help.
    pub fn is_usage(&self) -> bool {
        use fovea_kernels::cuda::Error as Cuda;
        match self {
            Self::Usage { .. } | Self::NcclMissing { .. } | Self::NcclTooOld { .. } => true,
            Self::Cuda(error) => matches!(
                error,
                Cuda::DriverMissing | Cuda::NvrtcMissing { .. } | Cuda::TooOld { .. }
            ),
            Self::Coordinator(error) => error.is_usage(),
            _ => false,
        }
    }

    /// What happened, without the advice: fit for being quoted in another error.
    pub(super) fn headline(&self) -> String {
        let text = self.to_string();
        text.split("\n  help: ")
            .next()
            .unwrap_or_default()
            .to_string()
    }

    /// [`Self::Deadline`] after a wait of this long.
    pub(super) fn deadline(
        op: &'static str,
        (rank, world): (usize, usize),
        waited: Duration,
        absent: Vec<Absent>,
    ) -> Self {
        Self::Deadline {
            op,
            rank,
            world,
            waited_ms: waited.as_millis().try_into().unwrap_or(u64::MAX),
            absent,
        }
    }

    pub(super) fn aborted(op: &'static str, rank: usize, by: Option<usize>, reason: &str) -> Self {
        Self::Aborted {
            op,
            rank,
            by,
            reason: if reason.is_empty() {
                "no reason given".to_string()
            } else {
                reason.to_string()
            },
        }
    }
}

/// A rank that did not arrive in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// The rank that is waited for.
    pub rank: usize,
    /// Its process id, where known, and what the system says of it: "alive", "stopped" or "gone".
    pub process: Option<(u32, &'static str)>,
}

impl Absent {
    /// One of which nothing but its rank is known.
    pub(super) fn unseen(rank: usize) -> Self {
        Self {
            rank,
            process: None,
        }
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            None => write!(f, "rank {}", self.rank),
            Some((pid, state)) => write!(f, "rank {} (process {pid}, {state})", self.rank),
        }
    }
}

struct List<'a>(&'a [Absent]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "at least one of the others (NCCL cannot say which)");
        }
        for (i, absent) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{absent}")?;
        }
        Ok(())
    }
}

struct Rank(Option<usize>);

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rank) => write!(f, "rank {rank}"),
            None => write!(f, "another rank"),
        }
    }
}
