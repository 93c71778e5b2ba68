//! The layout of a run directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fovea_files::{Durability, Mode};
use fovea_task::Task;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Paths of a run directory.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Names a run directory, whether or not it exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself, as it was given.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The resolved configuration, written before the first process starts.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// Metrics per epoch, split and target; rank 0 appends after each validation.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.csv")
    }

    /// Timeline of a rank's threads over the first `train.trace_steps` steps.
    pub fn trace(&self, rank: usize) -> PathBuf {
        self.0.join("trace").join(format!("rank-{rank}.json"))
    }

    /// Time, loss and samples of each step and rank.
    pub fn throughput(&self) -> PathBuf {
        self.0.join("throughput.csv")
    }

    /// What the model was asked, as JSON; absent from a run over [`Task::lesions`].
    fn task_file(&self) -> PathBuf {
        self.0.join("task.json")
    }

    /// The task whose records the run holds.
    ///
    /// # Errors
    /// The file is there and cannot be read, or holds no task.
    pub fn task(&self) -> Result<Task> {
        let path = self.task_file();
        let failed = |what: String| Error::File {
            path: path.clone(),
            what,
            help: "copy `task` from the manifest.json of the dataset into this file".to_owned(),
        };
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Task::lesions()),
            Err(e) => Err(failed(e.to_string())),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string())),
        }
    }

    /// Writes the task beside the records of a run, once, unless it is [`Task::lesions`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_task(&self, task: &Task) -> Result<()> {
        if self.task().is_ok_and(|kept| kept == *task) {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(task)
            .map_err(|e| Error::Internal(format!("task.json: {e}")))?;
        replace(&self.task_file(), &bytes)
    }

    /// Validation predictions of the best epoch so far.
    pub fn predictions(&self) -> PathBuf {
        self.0.join("predictions-val.csv")
    }

    /// Output of a child process of the launcher.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }

    /// The directory of checkpoints, one directory per step.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }
}

/// One rank's share of one step, as `throughput.csv` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// The pass over the data that it belongs to, from 1.
    pub epoch: u32,
    /// Number of the committed step, from 1.
    pub step: u64,
    /// The rank that reports, from 0.
    pub rank: usize,
    /// Patches that this rank computed for the step.
    pub samples: u64,
    /// Wall time from the previous commit to this one, milliseconds.
    pub step_ms: f32,
    /// Time in forward, backward and optimizer since the ranks exchanged gradients for the step
    /// before, milliseconds.
    pub compute_ms: f32,
    /// Time spent waiting since then for data, other ranks or the coordinator, milliseconds.
    pub wait_ms: f32,
    /// Mean loss per sample over all ranks.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f32,
    /// Generation that committed the step; of a step that was void and taken again, the last one's count.
    #[serde(default)]
    pub generation: u64,
}

/// Appends rows; writes the header when the file is new.
pub fn append_steps(path: &Path, rows: &[StepRow]) -> Result<()> {
    let failed = |e: &std::io::Error| {
        Error::file(
            path,
            e,
            "check free space and permissions of the run directory",
        )
    };
    let fresh = fs::metadata(path).map_or(true, |m| m.len() == 0);
    let bytes = steps_csv(rows, fresh)?;
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| failed(&e))?;
    file.write_all(&bytes).map_err(|e| failed(&e))
}

/// Drops rows of steps after `step`, which are about to be taken again, and adds those of `more` that
/// are not in the file.
pub fn merge_steps(path: &Path, step: u64, more: Vec<StepRow>) -> Result<()> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && more.is_empty() => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        text => {
            text.map_err(|e| Error::file(path, &e, "check the permissions of the run directory"))?
        }
    };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_slice());
    // A row that does not parse is the torn end of a write that was killed.
    let read = reader.deserialize().filter_map(|r| r.ok());
    let kept = read
        .chain(more)
        .filter(|r: &StepRow| r.step <= step)
        .collect();
    replace(path, &steps_csv(&valid_steps(kept), true)?)
}

/// The rows of each step that its last generation wrote, once each, in order. A rank that stood by while a
/// step was void and taken again may still know the rows of the first time.
pub fn valid_steps(mut rows: Vec<StepRow>) -> Vec<StepRow> {
    rows.sort_by_key(|row| (row.step, std::cmp::Reverse(row.generation), row.rank));
    let mut last = None;
    rows.retain(|row| {
        let (step, generation) = *last.get_or_insert((row.step, row.generation));
        if step != row.step {
            last = Some((row.step, row.generation));
            return true;
        }
        generation == row.generation
    });
    rows.dedup_by_key(|row| (row.step, row.rank));
    rows
}

fn steps_csv(rows: &[StepRow], header: bool) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("throughput.csv: {e}"));
    let mut writer = csv::WriterBuilder::new()
        .has_headers(header)
        .from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

/// Replaces a file in one rename.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fovea_files::replace(path, bytes, Durability::Synced, Mode::Shared).map_err(|e| {
        Error::file(
            path,
            &e.source,
            "check free space and permissions of the directory",
        )
    })?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use super::*;
    use crate::metrics::fixture::grade;

    #[test]
    fn only_another_task_than_lesions_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        run.keep_task(&Task::lesions()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(run.task().unwrap(), Task::lesions());
        let task = Task::new(vec![grade(5)]).unwrap();
        run.keep_task(&task).unwrap();
        assert_eq!(run.task().unwrap(), task);
        fs::write(run.task_file(), "{\"targets\": []}").unwrap();
        let message = run.task().unwrap_err().to_string();
        assert!(
            message.contains("task.json: a task needs a target"),
            "{message}"
        );
        assert!(message.contains("\n  help: "), "{message}");
    }
}
