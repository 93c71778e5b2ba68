//! What a process learns from Slurm's environment: its job, the nodes, and its task in the step.
//!
//! Everything is pure over a lookup function, so tests can use captured environments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::hostlist;

/// Slurm's variables are missing or cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The process is not part of a Slurm job.
    #[error(
        "SLURM_JOB_ID is not set: this is not inside a Slurm job\n  help: submit it with `fovea submit`, or run it under salloc or sbatch"
    )]
    NoJob,
    /// A variable that every job has is missing.
    #[error(
        "{0} is not set, though SLURM_JOB_ID is\n  help: run this under sbatch, salloc or srun, and let the environment through (a container: without --cleanenv)"
    )]
    Missing(&'static str),
    /// A variable cannot be parsed.
    #[error(
        "{name}={value:?}: {what}\n  help: something has changed Slurm's variables; remove what sets {name} in the job script or profile"
    )]
    Value {
        /// Name of the variable.
        name: &'static str,
        /// The value that was found.
        value: String,
        /// What is wrong with the value.
        what: String,
    },
}

/// The element of an array job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayElement {
    /// `SLURM_ARRAY_JOB_ID`, the id of the whole array; one of its elements has the same `SLURM_JOB_ID`.
    pub job: u64,
    /// `SLURM_ARRAY_TASK_ID`: the number of this element, one of those that `--array` lists.
    pub task: u32,
}

/// The place of a process in a job step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobTask {
    /// `SLURM_STEP_ID`: the number of the step in its job, from 0.
    pub step: u32,
    /// `SLURM_PROCID`: 0.. over all nodes of the step.
    pub procid: u32,
    /// `SLURM_LOCALID`: 0.. on this node.
    pub localid: u32,
    /// `SLURM_NODEID`: the node's place in the step's node list.
    pub nodeid: u32,
    /// `SLURM_STEP_NUM_TASKS`: number of tasks in the step, over all its nodes.
    pub tasks: u32,
}

/// What Slurm has allocated to a job, as seen from one of its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// `SLURM_JOB_ID`. Unique, but not always this element's alone: see [`Self::id_text`].
    pub job_id: u64,
    /// The element, in an array job.
    pub array: Option<ArrayElement>,
    /// How often the job was requeued; 0 at first, when Slurm leaves `SLURM_RESTART_COUNT` unset.
    pub restart_count: u32,
    /// The job's nodes by name, in Slurm's order.
    pub nodes: Vec<String>,
    /// Tasks per node, one number for each of `nodes`.
    pub tasks_per_node: Vec<u32>,
    /// `SLURM_NTASKS`, else the sum of `tasks_per_node`.
    pub ntasks: u32,
    /// This process's place in its step; `None` in the batch script.
    pub task: Option<JobTask>,
    /// GPUs of the job on this node.
    pub gpus_on_node: u32,
    /// CPUs of each task (`SLURM_CPUS_PER_TASK`); `None` unless the job asked with `--cpus-per-task`.
    pub cpus_per_task: Option<u32>,
    /// CPUs of the job on this node (`SLURM_CPUS_ON_NODE`).
    pub cpus_on_node: Option<u32>,
    /// `SLURM_JOB_PARTITION`: the partition that the job runs in.
    pub partition: Option<String>,
    /// `SLURMD_NODENAME`: this node as Slurm calls it, which need not be its host name.
    pub node_name: Option<String>,
    /// `SLURM_SUBMIT_DIR`: the directory that `sbatch` ran in.
    pub submit_dir: Option<String>,
    /// The end of the job's time limit. `None` in Slurm before 23.02, which does not set it; ask `squeue` then.
    pub end_time: Option<SystemTime>,
}

impl Allocation {
    /// Reads the variables through `lookup`; an empty variable counts as one that is not set.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let vars = Vars(|name: &str| lookup(name).filter(|value| !value.is_empty()));
        let job_id = vars.number("SLURM_JOB_ID")?.ok_or(Error::NoJob)?;
        let array = match (
            vars.number("SLURM_ARRAY_JOB_ID")?,
            vars.number("SLURM_ARRAY_TASK_ID")?,
        ) {
            (Some(job), Some(task)) => Some(ArrayElement { job, task }),
            _ => None,
        };
        let nodes = vars.nodes()?;
        let tasks_per_node = vars.tasks_per_node(nodes.len())?;
        let all: u32 = tasks_per_node
            .iter()
            .fold(0, |sum, tasks| sum.saturating_add(*tasks));
        let end_time = vars
            .number::<u64>("SLURM_JOB_END_TIME")?
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        Ok(Self {
            job_id,
            array,
            restart_count: vars.number("SLURM_RESTART_COUNT")?.unwrap_or(0),
            ntasks: vars.number("SLURM_NTASKS")?.unwrap_or(all),
            nodes,
            tasks_per_node,
            task: vars.task()?,
            gpus_on_node: vars.gpus()?,
            cpus_per_task: vars.number("SLURM_CPUS_PER_TASK")?,
            cpus_on_node: vars.number("SLURM_CPUS_ON_NODE")?,
            partition: vars.text("SLURM_JOB_PARTITION"),
            node_name: vars.text("SLURMD_NODENAME"),
            submit_dir: vars.text("SLURM_SUBMIT_DIR"),
            end_time,
        })
    }

    /// Reads the environment of this process.
    pub fn of_process() -> Result<Self, Error> {
        Self::from_env(|name| std::env::var(name).ok())
    }

    /// The id that names this job, and nothing else, to Slurm's commands: `17`, or `15_3` in an array. The last element
    /// of an array has the array's own id as `SLURM_JOB_ID`; `scontrol requeue` with that id requeues every element.
    pub fn id_text(&self) -> String {
        match &self.array {
            Some(element) => format!("{}_{}", element.job, element.task),
            None => self.job_id.to_string(),
        }
    }

    /// Time left at `now`, zero after the end; `None` where the environment has no end time.
    pub fn time_left(&self, now: SystemTime) -> Option<Duration> {
        let end = self.end_time?;
        Some(end.duration_since(now).unwrap_or(Duration::ZERO))
    }
}

struct Vars<F>(F);

impl<F: Fn(&str) -> Option<String>> Vars<F> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, Error> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::Value {
                name,
                value,
                what: "not a number in range".to_owned(),
            }),
        }
    }

    /// A number that every process of a step must have.
    fn needed(&self, name: &'static str) -> Result<u32, Error> {
        self.number(name)?.ok_or(Error::Missing(name))
    }

    fn nodes(&self) -> Result<Vec<String>, Error> {
        let (name, value) = match (self.text("SLURM_JOB_NODELIST"), self.text("SLURM_NODELIST")) {
            (Some(list), _) => ("SLURM_JOB_NODELIST", list),
            (None, Some(list)) => ("SLURM_NODELIST", list),
            (None, None) => return Err(Error::Missing("SLURM_JOB_NODELIST")),
        };
        hostlist::expand(&value).map_err(|error| Error::Value {
            name,
            value,
            what: at(&error),
        })
    }

    /// Tasks of each node; one each where the variable is not set, as in some allocations without tasks.
    fn tasks_per_node(&self, nodes: usize) -> Result<Vec<u32>, Error> {
        let name = "SLURM_TASKS_PER_NODE";
        let Some(value) = self.text(name) else {
            return Ok(vec![1; nodes]);
        };
        let counts = hostlist::expand_counts(&value).map_err(|error| Error::Value {
            name,
            value: value.clone(),
            what: at(&error),
        })?;
        if counts.len() == nodes {
            return Ok(counts);
        }
        // In a step on some of the job's nodes, srun sets the variable to the step's own counts.
        if self.text("SLURM_STEP_ID").is_some() {
            return Ok(counts);
        }
        let what = format!("{} counts for {nodes} nodes", counts.len());
        Err(Error::Value { name, value, what })
    }

    /// `None` in the batch script: it has the numbers of a task too (all 0), but no step.
    fn task(&self) -> Result<Option<JobTask>, Error> {
        let Some(step) = self.number("SLURM_STEP_ID")? else {
            return Ok(None);
        };
        Ok(Some(JobTask {
            step,
            procid: self.needed("SLURM_PROCID")?,
            localid: self.needed("SLURM_LOCALID")?,
            nodeid: self.needed("SLURM_NODEID")?,
            tasks: self.needed("SLURM_STEP_NUM_TASKS")?,
        }))
    }

    /// The count of GPUs, or the length of the list of ids: Slurm before 20.11 sets only the list.
    fn gpus(&self) -> Result<u32, Error> {
        if let Some(count) = self.number("SLURM_GPUS_ON_NODE")? {
            return Ok(count);
        }
        let ids = self
            .text("SLURM_JOB_GPUS")
            .or_else(|| self.text("SLURM_STEP_GPUS"));
        Ok(ids.map_or(0, |ids| {
            u32::try_from(ids.split(',').count()).unwrap_or(u32::MAX)
        }))
    }
}

fn at(error: &hostlist::Error) -> String {
    format!("at character {}: {}", error.at, error.what)
}

#[cfg(test)]
mod tests;
