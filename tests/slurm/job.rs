//! Jobs as `scontrol show job` describes them.

use std::path::PathBuf;

/// Slurm's description of a job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Id of this job alone, also for an element of an array.
    pub id: String,
    /// `PENDING`, `RUNNING`, `COMPLETING`, `COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT`, `NODE_FAIL`, ...
    pub state: String,
    /// Why it waits: `Resources`, `Priority`, `BeginTime`, ...
    pub reason: String,
    /// How many times it was requeued.
    pub restarts: u32,
    /// Exit code of the batch script.
    pub exit_code: i32,
    /// `n[1-2]`; empty while it waits.
    pub nodes: String,
    /// The file that the batch script's output goes to.
    pub output: PathBuf,
    /// The element's number in an array; `None` for a single job.
    pub element: Option<u32>,
}

impl Job {
    /// Parses a line of `scontrol -o show job`.
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

    /// Whether it was requeued and must not start before some time has passed.
    pub fn is_held_back(&self) -> bool {
        self.state == "PENDING" && self.reason == "BeginTime"
    }

    /// Whether it will not run again by itself.
    pub fn is_over(&self) -> bool {
        // All other states are transitions: COMPLETING, SIGNALING, REQUEUED, ...
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
