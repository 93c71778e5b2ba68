//! A run's history under the scheduler: `RUN/slurm/history.jsonl` records every start of the run and how each one
//! ended, as one JSON object per line.
//!
//! The file outlives jobs: a requeued or resubmitted job continues it. It tells how often the run has failed without
//! progress, and the reason for each restart.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::next::NextAction;

/// Folder of the run directory for the scheduler's files: script, logs, submission, history.
pub const FOLDER: &str = "slurm";
const FILE: &str = "history.jsonl";
/// Bytes of the file that are parsed, from its end; a longer file loses its oldest events.
const READ_MAX: usize = 4 << 20;

/// One line of the history. `fovea job plan` appends `Start`, `fovea job next` appends `End`; a plan that refuses the
/// configuration appends an `End` without a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum HistoryEvent {
    /// The processes of the run are about to start.
    Start {
        /// Milliseconds since 1970 (UTC).
        unix_ms: u64,
        /// The job's id as `scontrol` takes it: `17`, or `17_3` for the element of an array.
        job: String,
        /// How often the scheduler had requeued it.
        requeues: u32,
        /// The nodes that ranks start on, by Slurm's names and in Slurm's order.
        nodes: Vec<String>,
        /// World size of this start.
        world: usize,
        /// The backend that exchanges the gradients, spelled as in `train.backend`.
        backend: String,
        /// Committed step of the checkpoint that the run continues from; 0 for a new run.
        step: u64,
    },
    /// All processes of the run have exited.
    End {
        /// Milliseconds since 1970 (UTC).
        unix_ms: u64,
        /// The job's id as in `Start`; `none` outside of a Slurm job.
        job: String,
        /// Newest committed step by `status.json`; 0 when there is none.
        step: u64,
        /// What the batch script does next.
        verdict: NextAction,
        /// The reason for the verdict in words, with numbers; shown by `fovea status`.
        why: String,
    },
}

/// All events of a run, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(pub Vec<HistoryEvent>);

impl History {
    /// Reads the history of the run in `run`; it is empty when no job ever started the run. Lines that cannot be
    /// parsed, such as a torn last one, are skipped.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn load(run: &Path) -> std::io::Result<Self> {
        let bytes = match fs::read(path(run)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let tail = &bytes[bytes.len().saturating_sub(READ_MAX)..];
        let lines = tail.split(|byte| *byte == b'\n');
        Ok(Self(
            lines
                .filter_map(|line| serde_json::from_slice(line).ok())
                .collect(),
        ))
    }

    /// The job that started the run last, as `scontrol` knows it (`17`, `17_3`), and when (milliseconds since 1970).
    pub fn newest_job(&self) -> Option<(&str, u64)> {
        self.0.iter().rev().find_map(|event| match event {
            HistoryEvent::Start { job, unix_ms, .. } => Some((job.as_str(), *unix_ms)),
            HistoryEvent::End { .. } => None,
        })
    }

    /// The newest committed step at the run's last end; 0 before the first.
    pub fn last_step(&self) -> u64 {
        let ends = self.0.iter().rev().filter_map(|event| match event {
            HistoryEvent::End { step, .. } => Some(*step),
            HistoryEvent::Start { .. } => None,
        });
        ends.into_iter().next().unwrap_or(0)
    }

    /// Consecutive failures of the newest job without a new committed step between them.
    pub fn failures_without_progress(&self) -> u32 {
        let mut failures = 0;
        let mut at = 0;
        let mut of = None;
        for event in &self.0 {
            let HistoryEvent::End {
                step, verdict, job, ..
            } = event
            else {
                continue;
            };
            // A new job is the user's new attempt.
            let anew = of.replace(job) != Some(job);
            if *step > at || !verdict.is_failure() || anew {
                failures = 0;
            }
            at = *step;
            failures += u32::from(verdict.is_failure());
        }
        failures
    }
}

/// Appends a line and syncs the file to disk.
///
/// # Errors
/// When the file cannot be written.
pub fn append(run: &Path, event: &HistoryEvent) -> std::io::Result<()> {
    let path = path(run);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(&path)?;
    // The leading newline ends a line that an earlier write left torn.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, event)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_all()
}

/// Path of the history of the run in `run`.
pub fn path(run: &Path) -> PathBuf {
    run.join(FOLDER).join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(step: u64, verdict: NextAction) -> HistoryEvent {
        HistoryEvent::End {
            unix_ms: 0,
            job: "7".to_owned(),
            step,
            verdict,
            why: "it says why".to_owned(),
        }
    }

    #[test]
    fn failures_count_from_the_last_progress() {
        let count = |events: &[HistoryEvent]| History(events.to_vec()).failures_without_progress();
        assert_eq!(count(&[]), 0);
        assert_eq!(
            count(&[end(0, NextAction::Again), end(0, NextAction::Again)]),
            2
        );
        assert_eq!(
            count(&[end(4, NextAction::Again), end(9, NextAction::Again)]),
            1
        );
        assert_eq!(
            count(&[end(4, NextAction::Again), end(4, NextAction::Requeue)]),
            0
        );
        let stuck = [end(4, NextAction::Requeue), end(4, NextAction::Again)];
        assert_eq!(count(&stuck), 1);
        let anew = HistoryEvent::End {
            unix_ms: 0,
            job: "8".to_owned(),
            step: 4,
            verdict: NextAction::Again,
            why: String::new(),
        };
        assert_eq!(
            count(&[end(4, NextAction::Again), end(4, NextAction::GiveUp), anew]),
            1
        );
        // A run that fell back to an older step has made no progress.
        assert_eq!(
            count(&[end(9, NextAction::Again), end(6, NextAction::Again)]),
            2
        );
    }

    #[test]
    fn torn_lines_are_passed_over() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(History::load(run.path()).unwrap(), History::default());
        append(run.path(), &end(3, NextAction::Requeue)).unwrap();
        let mut bytes = fs::read(path(run.path())).unwrap();
        bytes.extend_from_slice(br#"{"event":"end","unix_"#);
        fs::write(path(run.path()), bytes).unwrap();
        append(run.path(), &end(5, NextAction::Finished)).unwrap();
        let expected = vec![end(3, NextAction::Requeue), end(5, NextAction::Finished)];
        assert_eq!(History::load(run.path()).unwrap().0, expected);
    }
}
