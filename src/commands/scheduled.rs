//! A run's state at the scheduler: its jobs, and the starts that it had.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fovea_run::run_dir::RunDir;
use fovea_slurm::client::{self, JobState};
use fovea_slurm::history::{History, HistoryEvent};
use fovea_slurm::script::{elements, quote, run_of_element};
use fovea_slurm::submit::{Submitted, jobs_of};
use fovea_slurm::{hostlist, time};
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::say;
use crate::say::Unsaid;
use crate::show;

/// Most events of the history that are shown, the newest ones.
const SHOWN: usize = 8;

/// The scheduler's view of one run; empty for a run that was never submitted.
pub struct Scheduled {
    submitted: Option<Submitted>,
    /// Ids of the run's jobs, as Slurm's commands take them.
    ids: Vec<String>,
    /// The states of these jobs, or the first line of the error.
    jobs: Result<Vec<JobState>, String>,
    history: History,
}

impl Scheduled {
    /// Reads the files of the run and asks `squeue` and `scontrol` for its jobs.
    pub fn load(run: &Path) -> Self {
        let history = History::load(run).unwrap_or_default();
        let (submitted, unread) = match Submitted::load(run) {
            Ok(submitted) => (submitted, None),
            Err(e) => (None, Some(first_line(e))),
        };
        let ids = jobs_of(submitted.as_ref(), &history);
        let jobs = match unread {
            Some(why) => Err(why),
            None => client::job_states(&ids).map_err(first_line),
        };
        Self {
            submitted,
            ids,
            jobs,
            history,
        }
    }

    pub fn is_any(&self) -> bool {
        self.submitted.is_some() || !self.history.0.is_empty()
    }

    /// Whether `run` is the directory of an array, which holds its elements' runs instead of one of its own.
    pub fn is_of_array(&self, run: &Path) -> bool {
        self.submitted.as_ref().is_some_and(|s| s.array.is_some())
            && !run.join(fovea_coordinator::status::STATUS_FILE).is_file()
            && self.history.0.is_empty()
    }

    /// The words behind an ETA that lies after the end of this job; empty otherwise.
    pub fn beyond(&self, eta_s: f64) -> String {
        let jobs = self.jobs.as_deref().unwrap_or_default();
        let running = jobs.iter().find(|job| job.state == "RUNNING");
        match running.and_then(|job| job.time_left) {
            Some(left) if left.as_secs_f64() < eta_s => format!(
                " of training; this job has {} left, so it takes a requeue",
                show::duration(left.as_secs_f64())
            ),
            _ => String::new(),
        }
    }

    /// Whether the run has jobs and all of them have ended.
    fn are_over(&self) -> bool {
        let over = |jobs: &Vec<JobState>| jobs.iter().all(JobState::is_over);
        !self.ids.is_empty() && self.jobs.as_ref().is_ok_and(over)
    }

    /// Prints how to continue the run in `run`, when no job does that by itself.
    pub fn print_next(&self, run: &Path) -> Result<(), Unsaid> {
        // An element continues with its array, and has no submission of its own.
        if self.submitted.is_some() && self.are_over() {
            let run = quote(&run.display().to_string());
            say!("to go on     fovea submit --out {run}")?;
        }
        Ok(())
    }

    pub fn print(&self) -> Result<(), Unsaid> {
        let jobs = self.jobs.as_deref().unwrap_or_default();
        for job in jobs {
            say!("job          {}", sentence(job))?;
        }
        let ids = self.ids.join(", ");
        match &self.jobs {
            Ok(_) if !jobs.is_empty() || ids.is_empty() => {}
            Ok(_) => say!("job          {ids}: no longer in the queue")?,
            Err(why) if ids.is_empty() => say!("job          {why}")?,
            Err(why) => say!("job          {ids}: {why}")?,
        }
        let starts = self
            .history
            .0
            .iter()
            .filter(|e| matches!(e, HistoryEvent::Start { .. }));
        let starts = starts.count();
        if starts > 0 {
            say!("starts       {starts}")?;
        }
        let skip = self.history.0.len().saturating_sub(SHOWN);
        for event in self.history.0.iter().skip(skip) {
            say!("  {}", line(event))?;
        }
        Ok(())
    }

    pub fn to_json(&self) -> Value {
        let jobs = self.jobs.as_deref().unwrap_or_default();
        let jobs: Vec<Value> = jobs
            .iter()
            .map(|job| {
                json!({
                    "id": job.id,
                    "state": job.state,
                    "reason": job.reason,
                    "nodes": job.nodes,
                    "time_left_s": job.time_left.map(|left| left.as_secs()),
                })
            })
            .collect();
        json!({ "submitted": self.submitted, "jobs": jobs, "history": self.history.0 })
    }

    /// The history of another run, for a table; empty when it cannot be read.
    pub fn history_of(run: &Path) -> Vec<HistoryEvent> {
        History::load(run).unwrap_or_default().0
    }

    /// The first line of the reason why the last start ended; empty while it runs.
    pub fn last_words(run: &Path) -> String {
        match Self::history_of(run).pop() {
            Some(HistoryEvent::End { why, .. }) => {
                why.lines().next().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        }
    }
}

/// Refuses the directory of an array, and a run that no job has started yet, where a command needs a run.
pub fn refuse_not_begun(run: &Path) -> Result<(), Usage> {
    if RunDir::new(run).config().is_file() {
        return Ok(());
    }
    let Ok(Some(submitted)) = Submitted::load(run) else {
        return Ok(());
    };
    let path = run.display();
    Err(Usage(match &submitted.array {
        Some(array) => {
            let first = elements(array).map_or(0, |all| all[0]);
            format!(
                "{path} holds an array ({array}), each element of which has a run of its own\n  help: give one of them, such as {}",
                run_of_element(&submitted.run, first)
            )
        }
        None => format!("{path}: no job has begun this run yet\n  help: see `fovea status {path}`"),
    }))
}

fn sentence(job: &JobState) -> String {
    let mut text = format!("{} {}", job.id, job.state.to_lowercase());
    if !job.nodes.is_empty() {
        text += &format!(" on {}", job.nodes);
    }
    if let Some(left) = job.time_left {
        // A waiting job has all of its time limit left.
        let what = if job.is_waiting() { "limit" } else { "left" };
        text += &format!(", {} {what}", time::format(Some(left)));
    }
    if job.is_waiting() {
        text += &format!(" ({})", job.reason);
    }
    text
}

fn line(event: &HistoryEvent) -> String {
    let at = |unix_ms: u64| {
        let at = UNIX_EPOCH + Duration::from_millis(unix_ms);
        humantime::format_rfc3339_seconds(at).to_string()
    };
    match event {
        HistoryEvent::Start {
            unix_ms,
            job,
            requeues,
            nodes,
            world,
            backend,
            step,
        } => format!(
            "{} job {job} start {} after step {step}: {} on {} ({backend})",
            at(*unix_ms),
            requeues + 1,
            show::counted(*world, "rank"),
            hostlist::compress(nodes)
        ),
        HistoryEvent::End {
            unix_ms, job, why, ..
        } => format!("{} job {job} {why}", at(*unix_ms)),
    }
}

fn first_line(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
