//! Judges what Slurm's configuration means for a job of fovea.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Line, Version};

/// Whether slurmctld, Slurm's controller, answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// `scontrol show config` succeeded.
    #[default]
    Answers,
    /// It did not; the last line of its error, or that it did not answer in time.
    Silent(String),
}

/// One partition, as `scontrol show partition` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Name of the partition.
    pub name: String,
    /// `PreemptMode`: how Slurm preempts its jobs; `OFF` when Slurm does not report it.
    pub preempt_mode: String,
    /// `GraceTime`: seconds between the signal to a preempted job and its end; 0 when Slurm does not report it.
    pub grace_s: u64,
}

/// Slurm as this node sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scheduler {
    /// Slurm's version; none when `scontrol --version` fails or prints no number.
    pub version: Option<Version>,
    /// Whether the controller answers; when it is silent, `config`, `partitions` and `job_requeue` stay empty.
    pub controller: Controller,
    /// Keys and values of `scontrol show config`.
    pub config: BTreeMap<String, String>,
    /// The partitions that this user may see.
    pub partitions: Vec<Partition>,
    /// Id of the job that this process is part of; none outside of a job.
    pub job: Option<u32>,
    /// Whether Slurm may requeue that job; none when there is no job or Slurm does not tell.
    pub job_requeue: Option<bool>,
    /// Seconds that the run's newest checkpoint took to write; none before the first.
    pub save_s: Option<f64>,
}

impl Scheduler {
    fn value(&self, key: &str) -> Option<&str> {
        let value = self.config.get(key)?.as_str();
        (value != "(null)").then_some(value)
    }

    /// The number at the beginning of a value such as "30 sec".
    fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.split_whitespace().next()?.parse().ok()
    }
}

/// Seconds assumed for a checkpoint when none has been written yet.
const ASSUMED_SAVE_S: f64 = 5.0;
/// Seconds between the signal and the beginning of the checkpoint: the current step must end first.
const STEP_S: f64 = 5.0;
/// The first version with `srun --overlap`.
const OLDEST: Version = Version(20, 11, 0);

pub(super) fn judge(scheduler: Option<&Scheduler>) -> Vec<Line> {
    const TOPIC: &str = "Slurm";
    let Some(slurm) = scheduler else {
        return vec![Line::ok(
            TOPIC,
            "not installed: `fovea train` runs on this machine",
        )];
    };
    let version = slurm.version.map_or_else(
        || "installed".to_owned(),
        |Version(year, month, patch)| format!("{year}.{month:02}.{patch}"),
    );
    if let Controller::Silent(said) = &slurm.controller {
        let text = format!("{version}, but its controller does not answer: {said}");
        return vec![match slurm.job {
            Some(_) => Line::fail(
                TOPIC,
                text,
                "a job could not requeue itself from here: in a container mount Slurm's configuration and the munge socket, or set requeue = \"chain\" in site.toml",
            ),
            None => Line::warn(
                TOPIC,
                text,
                "no jobs from here until it does: on a cluster run this on a login node, where `scontrol ping` shows more; elsewhere `fovea train` needs no Slurm",
            ),
        }];
    }
    let name = slurm.value("ClusterName").unwrap_or("without a name");
    let text = format!("{version}, cluster {name}");
    let first = match slurm.version {
        Some(v) if v < OLDEST => Line::warn(
            TOPIC,
            text,
            format!(
                "older than {}.{:02}, the oldest that this is made for: steps cannot overlap, so staging waits for the trainers",
                OLDEST.0, OLDEST.1
            ),
        ),
        _ => Line::ok(TOPIC, text),
    };
    vec![
        first,
        requeue(slurm),
        exit_codes(slurm),
        preemption(slurm),
        time_to_save(slurm),
    ]
}

fn requeue(slurm: &Scheduler) -> Line {
    const TOPIC: &str = "requeue";
    match (slurm.job_requeue, slurm.number("JobRequeue")) {
        (Some(false), _) => Line::fail(
            TOPIC,
            "this job was submitted with --no-requeue: it will not come back after preemption",
            "submit with --requeue, as `fovea submit` does; `scontrol update JobId=$SLURM_JOB_ID Requeue=1` mends this one",
        ),
        (_, Some(0)) => Line::ok(
            TOPIC,
            "off unless a job asks for it (JobRequeue=0); jobs of `fovea submit` do",
        ),
        (_, Some(_)) => Line::ok(TOPIC, "allowed (JobRequeue=1)"),
        (_, None) => Line::warn(
            TOPIC,
            "Slurm does not say whether jobs may be requeued",
            "ask the administrator for JobRequeue; where it is forbidden set requeue = \"chain\" in site.toml",
        ),
    }
}

/// A job's exit code decides what happens next; Slurm's settings must not override it.
fn exit_codes(slurm: &Scheduler) -> Line {
    const TOPIC: &str = "exit codes";
    let requeued = slurm.value("RequeueExit").unwrap_or_default();
    let held = slurm.value("RequeueExitHold").unwrap_or_default();
    if [1, 2].iter().any(|code| lists(requeued, *code)) {
        return Line::warn(
            TOPIC,
            format!(
                "Slurm requeues jobs that end with {requeued} (RequeueExit): one that failed (1) or has a wrong configuration (2) starts again and again"
            ),
            "`scancel` ends it; ask the administrator whether 1 and 2 must be there",
        );
    }
    if lists(held, 85) || lists(held, 0) {
        return Line::warn(
            TOPIC,
            format!(
                "Slurm holds jobs that end with {held} (RequeueExitHold), among them one that wants to go on (85)"
            ),
            "`scontrol release JOB` lets it go on; ask the administrator to take 85 out",
        );
    }
    let text = if requeued.is_empty() {
        "none that Slurm requeues by itself: the job asks for it".to_owned()
    } else {
        format!("Slurm requeues {requeued}; failures (1, 2) are not among them")
    };
    Line::ok(TOPIC, text)
}

/// Whether a list such as "1-3,99" contains `code`.
fn lists(list: &str, code: u32) -> bool {
    list.split(',').any(|part| {
        let mut ends = part.trim().splitn(2, '-').map(str::parse::<u32>);
        match (ends.next(), ends.next()) {
            (Some(Ok(only)), None) => only == code,
            (Some(Ok(low)), Some(Ok(high))) => (low..=high).contains(&code),
            _ => false,
        }
    })
}

fn preemption(slurm: &Scheduler) -> Line {
    const TOPIC: &str = "preemption";
    let kind = slurm.value("PreemptType").unwrap_or("preempt/none");
    let mode = slurm.value("PreemptMode").unwrap_or("OFF");
    if kind == "preempt/none" {
        return Line::ok(TOPIC, "never: a job keeps its nodes until its time limit");
    }
    let mut modes: Vec<(String, Vec<&str>)> = Vec::new();
    for partition in &slurm.partitions {
        let mode = partition.preempt_mode.to_uppercase();
        match modes.iter_mut().find(|(other, _)| *other == mode) {
            Some((_, names)) => names.push(&partition.name),
            None => modes.push((mode, vec![&partition.name])),
        }
    }
    if modes.is_empty() {
        modes.push((mode.to_uppercase(), vec!["all partitions"]));
    }
    let texts = modes
        .iter()
        .map(|(mode, names)| format!("{mode} in {}", names.join(", ")));
    let text = format!("{} by {kind}", texts.collect::<Vec<_>>().join("; "));
    let any = |word: &str| modes.iter().any(|(mode, _)| mode.contains(word));
    if any("CANCEL") {
        return Line::warn(
            TOPIC,
            format!("{text}: a cancelled job is over, Slurm does not bring it back"),
            "use a partition with REQUEUE, or set requeue = \"chain\" in site.toml: jobs then wait in line behind each other",
        );
    }
    if any("SUSPEND") {
        return Line::warn(
            TOPIC,
            format!(
                "{text}: a suspended job stands still with its GPU memory taken, and may lose ranks to time-outs when it goes on"
            ),
            "use a partition with REQUEUE: there the job saves, leaves, and comes back",
        );
    }
    Line::ok(TOPIC, text)
}

/// How long a job lives after the signal: the grace time, where there is one, and then KillWait.
fn time_to_save(slurm: &Scheduler) -> Line {
    const TOPIC: &str = "time to save";
    let kill_wait = slurm.number("KillWait").unwrap_or(30);
    let save = slurm.save_s.unwrap_or(ASSUMED_SAVE_S);
    let needed = save + STEP_S;
    let known = match slurm.save_s {
        Some(s) => format!("a save of this run takes {s:.1} s"),
        None => format!("a save takes perhaps {save:.0} s"),
    };
    let preemptible = |p: &&Partition| p.preempt_mode.to_uppercase().contains("REQUEUE");
    let shortest = slurm
        .partitions
        .iter()
        .filter(preemptible)
        .min_by_key(|p| p.grace_s);
    let (given, what) = match shortest {
        Some(p) if p.grace_s > 0 => (
            p.grace_s + kill_wait,
            format!(
                "{} s of grace in {} and KillWait {kill_wait} s",
                p.grace_s, p.name
            ),
        ),
        Some(p) => (
            kill_wait,
            format!("KillWait {kill_wait} s, no grace in {}", p.name),
        ),
        None => (kill_wait, format!("KillWait {kill_wait} s")),
    };
    let text = format!("{given} s from the signal to the end ({what}); {known}");
    if (given as f64) < needed {
        return Line::warn(
            TOPIC,
            format!("{text}, and a step must end first"),
            format!(
                "a preempted job may lose the steps since its last checkpoint: ask the administrator for KillWait or GraceTime of {:.0} s, or write checkpoints more often; at the time limit `fovea submit` asks for the signal early enough",
                needed.max(30.0)
            ),
        );
    }
    Line::ok(TOPIC, text)
}

/// Parses `Key = value` lines.
pub(super) fn parse_config(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .filter(|(key, _)| !key.is_empty() && !key.contains(' '))
        .collect()
}

/// Parses one partition per line (`scontrol show partition --oneliner`).
pub(super) fn parse_partitions(text: &str) -> Vec<Partition> {
    text.lines()
        .filter_map(|line| {
            let value = |key: &str| field(line, key);
            Some(Partition {
                name: value("PartitionName")?.to_owned(),
                preempt_mode: value("PreemptMode").unwrap_or("OFF").to_owned(),
                grace_s: value("GraceTime").and_then(|s| s.parse().ok()).unwrap_or(0),
            })
        })
        .collect()
}

/// The value of `key` in a line of `Key=value` words.
pub(super) fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(name, value)| (name == key).then_some(value))
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
