//! What on this machine prevents a run, and how to fix it.
//!
//! [`gather()`](gather::gather) collects facts: it runs commands, opens libraries, writes a small file. [`judge`] turns
//! the facts into lines and touches nothing. A missing command or library is a fact too.

mod command;
mod cuda;
pub mod gather;
mod launch;
mod network;
mod page;
mod scheduler;
mod storage;

use serde::Serialize;

pub use cuda::{Cuda, InstalledGpu, Libtorch, Nccl, Version};
pub use launch::Mpi;
pub use network::{NodeNetwork, Skew};
pub use page::page;
pub use scheduler::{Controller, Partition, Scheduler};
pub use storage::{RunDirectory, Scratch};

/// The severity of a line, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is as it should be. Green.
    Ok,
    /// It works, but not as well as it could, or not for everything. Amber.
    Warn,
    /// A run would not start, or would not survive what it should survive. Red.
    Fail,
}

/// One line of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What the line is about, such as "NCCL".
    pub topic: &'static str,
    /// The severity of this line.
    pub verdict: Verdict,
    /// What was found and what it means.
    pub text: String,
    /// What to do; none with [`Verdict::Ok`].
    pub remedy: Option<String>,
}

impl Line {
    fn ok(topic: &'static str, text: impl Into<String>) -> Self {
        Self {
            topic,
            verdict: Verdict::Ok,
            text: text.into(),
            remedy: None,
        }
    }

    fn warn(topic: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(topic, text)
        }
    }

    fn fail(topic: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(topic, text, remedy)
        }
    }
}

/// All facts about this machine, as `fovea doctor --json` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// This node's name: Slurm's name for it in a job, its host name elsewhere.
    pub node: String,
    /// The libtorch that this process has loaded.
    pub libtorch: Libtorch,
    /// The driver and the GPUs.
    pub cuda: Cuda,
    /// The NCCL that libtorch would load.
    pub nccl: Nccl,
    /// MPI in this program, its mpirun, and srun's plugins for it.
    pub mpi: Mpi,
    /// Slurm; none where its commands are not installed.
    pub scheduler: Option<Scheduler>,
    /// The run directory and its file system.
    pub run: RunDirectory,
    /// The node's disks for a copy of the dataset.
    pub scratch: Scratch,
    /// Interfaces of this node, and clocks of the allocation's nodes.
    pub network: NodeNetwork,
}

/// The page's lines, in the order of the page.
pub fn judge(facts: &Facts) -> Vec<Line> {
    // Slurm's commands alone start no ranks: there must be a cluster behind them.
    let cluster = facts
        .scheduler
        .as_ref()
        .filter(|slurm| slurm.controller == Controller::Answers || slurm.job.is_some());
    let mut lines = vec![cuda::libtorch(&facts.libtorch, &facts.cuda)];
    lines.extend(cuda::driver(&facts.libtorch, &facts.cuda));
    lines.push(cuda::nccl(&facts.nccl, &facts.cuda));
    lines.extend(launch::mpi(&facts.mpi, cluster));
    lines.extend(scheduler::judge(facts.scheduler.as_ref()));
    lines.extend(storage::run(&facts.run, cluster.is_some()));
    lines.push(storage::scratch(&facts.scratch));
    lines.extend(network::judge(&facts.network));
    lines
}

/// The worst of all verdicts; `Ok` without lines.
pub fn worst(lines: &[Line]) -> Verdict {
    lines
        .iter()
        .map(|line| line.verdict)
        .max()
        .unwrap_or(Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verdict and text of the line about `topic`.
    pub(super) fn about<'a>(lines: &'a [Line], topic: &str) -> (Verdict, &'a str) {
        let found: Vec<&Line> = lines.iter().filter(|line| line.topic == topic).collect();
        assert_eq!(found.len(), 1, "{topic} in {lines:?}");
        assert_eq!(
            found[0].remedy.is_some(),
            found[0].verdict != Verdict::Ok,
            "a remedy where it is needed: {:?}",
            found[0]
        );
        (found[0].verdict, &found[0].text)
    }
}
