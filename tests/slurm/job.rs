//! Jobs as `scontrol show job` has them.

use std::path::PathBuf;

/// What Slurm says of a job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Of this job alone, also for an element of an array.
    pub id: String,
    /// `PENDING`, `RUNNING`, `COMPLETING`, `COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT`, `NODE_FAIL`, ...
    pub state: String,
    /// Why it waits: `Resources`, `Priority`, `BeginTime`, ...
    pub reason: String,
    /// How many times it was requeued.
    pub restarts: u32,
    /// Of the batch script.
    pub exit_code: i32,
    /// `n[1-2]`; empty while it waits.
    pub nodes: String,
    /// What it prints.
    pub output: PathBuf,
    /// The element of an array.
    pub element: Option<u32>,
}

impl Job {
    /// From a line of `scontrol -o show job`.
    pub fn parse(line: &str) -> Option<Self> {
        let words = || line.split(' ').filter_map(|word| word.split_once('='));
        let value = |key: &str| words().find_map(|(k, v)| (k == key).then(|| v.to_owned()));
        let nodes = value("NodeList").filter(|nodes| nodes != "(null)");
        Some(Self {
            id: value("JobId")?,
            state: value("JobState")?,
            reason: value("Reason")?,
            restarts: value("Restarts")?.parse().ok()?,
            exit_code: value("ExitCode")?.split_once(':')?.0.parse().ok()?,
            nodes: nodes.unwrap_or_default(),
            output: value("StdOut").unwrap_or_default().into(),
            element: value("ArrayTaskId").and_then(|id| id.parse().ok()),
        })
    }

    /// Requeued, and not to start before some time has passed.
    pub fn is_held_back(&self) -> bool {
        self.state == "PENDING" && self.reason == "BeginTime"
    }

    /// It will not run again by itself.
    pub fn is_over(&self) -> bool {
        // All others are on the way to somewhere: COMPLETING, SIGNALING, REQUEUED, ...
        [
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "BOOT_FAIL",
            "DEADLINE",
        ]
        .contains(&&*self.state)
    }
}
