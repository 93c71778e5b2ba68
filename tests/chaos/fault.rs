//! The faults of a storm, and the moments at which they happen.

use std::fmt;

/// What happens to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// kill -9 of this many trainers at once.
    Kill(u32),
    /// kill -9 of a trainer, and of another one while the ranks meet again.
    KillInRecovery,
    /// SIGSTOP of a trainer, for good.
    Stop,
    /// SIGSTOP of a trainer for longer than the lapse, then SIGCONT.
    Pause,
    /// The training thread hangs, but its process lives.
    Hang,
    /// kill -9 of the coordinator.
    KillCoordinator,
    /// kill -9 of the coordinator and of a trainer.
    KillCoordinatorAndRank,
    /// SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 to any one process; then `--resume` with any number of ranks.
    Preempt,
    /// kill -9 of the launcher, which ends all other processes; then `--resume`.
    KillLauncher,
    /// A byte of the newest checkpoint flips, and a trainer is killed.
    CorruptCheckpoint,
    /// The disk is full for a moment while checkpoints are due.
    FullDisk,
    /// All connections to the coordinator break.
    DropConnections,
    /// All traffic to and from the coordinator stands still, for less than the lapse.
    Delay,
    /// The clock of all processes jumps by an hour, back or forth.
    ClockJump,
}

/// The moment at which the fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Anytime,
    /// A rank waits for the others.
    InCollective,
    /// A checkpoint is being written.
    InCheckpoint,
    InEvaluation,
    /// The ranks of the next generation meet.
    InRendezvous,
}

/// A fault, and the moment for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: What,
    pub when: When,
}

const fn at(what: What, when: When) -> Fault {
    Fault { what, when }
}

/// One fault of each kind, in the order of the short storm.
pub const ALL: [Fault; 20] = [
    at(What::Kill(1), When::InCollective),
    at(What::Kill(1), When::InEvaluation),
    at(What::Kill(1), When::InCheckpoint),
    at(What::Kill(2), When::Anytime),
    at(What::Kill(3), When::InCollective),
    at(What::KillInRecovery, When::Anytime),
    at(What::Kill(1), When::InRendezvous),
    at(What::Stop, When::Anytime),
    at(What::Pause, When::Anytime),
    at(What::Hang, When::Anytime),
    at(What::KillCoordinator, When::Anytime),
    at(What::KillCoordinator, When::InEvaluation),
    at(What::KillCoordinatorAndRank, When::Anytime),
    at(What::DropConnections, When::Anytime),
    at(What::Delay, When::Anytime),
    at(What::ClockJump, When::Anytime),
    at(What::CorruptCheckpoint, When::Anytime),
    at(What::FullDisk, When::Anytime),
    at(What::Preempt, When::Anytime),
    at(What::KillLauncher, When::Anytime),
];

impl What {
    /// Whether a generation ends with it.
    pub fn ends_the_generation(self) -> bool {
        !matches!(self, Self::Delay | Self::ClockJump | Self::FullDisk)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill(1) => "kill -9 of a rank",
            Self::Kill(2) => "kill -9 of two ranks",
            Self::Kill(_) => "kill -9 of three ranks",
            Self::KillInRecovery => "kill -9, another in recovery",
            Self::Stop => "SIGSTOP",
            Self::Pause => "SIGSTOP, SIGCONT after 3 s",
            Self::Hang => "training thread hangs",
            Self::KillCoordinator => "kill -9 of the coordinator",
            Self::KillCoordinatorAndRank => "kill -9 of coordinator and rank",
            Self::Preempt => "preemption signal, resume",
            Self::KillLauncher => "kill -9 of the launcher, resume",
            Self::CorruptCheckpoint => "corrupt checkpoint, kill -9",
            Self::FullDisk => "disk full for a moment",
            Self::DropConnections => "connections dropped",
            Self::Delay => "traffic held for 1.2 s",
            Self::ClockJump => "clock jumps by an hour",
        })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anytime => "any time",
            Self::InCollective => "in a collective",
            Self::InCheckpoint => "in a checkpoint",
            Self::InEvaluation => "in evaluation",
            Self::InRendezvous => "in rendezvous",
        })
    }
}
