//! The layout of a run directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fovea_files::{Durability, Mode};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics::Level;

/// Paths of a run directory.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Names an existing or future run directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// Metrics per epoch, split and level.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.csv")
    }

    /// What the threads of a rank did when, in the first steps.
    pub fn trace(&self, rank: usize) -> PathBuf {
        self.0.join("trace").join(format!("rank-{rank}.json"))
    }

    /// Steps per rank.
    pub fn throughput(&self) -> PathBuf {
        self.0.join("throughput.csv")
    }

    /// Validation predictions of the best epoch so far.
    pub fn predictions(&self) -> PathBuf {
        self.0.join("predictions-val.csv")
    }

    /// Output of a child process of the launcher.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }
}

/// One rank's share of one step, as `throughput.csv` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Epoch, from 1.
    pub epoch: u32,
    /// Committed step, from 1.
    pub step: u64,
    /// Rank.
    pub rank: usize,
    /// Patches of this rank.
    pub samples: u64,
    /// Wall time from the previous commit to this one, milliseconds.
    pub step_ms: f32,
    /// Time in forward, backward and optimizer since the ranks exchanged gradients for the step
    /// before, milliseconds.
    pub compute_ms: f32,
    /// Time spent waiting since then: for data, other ranks, the coordinator.
    pub wait_ms: f32,
    /// Global mean loss.
    pub loss: f64,
    /// Learning rate.
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

/// A prediction as CSV: `image_id,row,col,[label,]p_MA,p_HE,p_EX,p_SE[,usable,note]`; images leave row and col empty.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Image id as in the manifest, or a photograph's file stem.
    pub image_id: String,
    /// Grid position of a patch.
    pub cell: Option<(u32, u32)>,
    /// True labels, where known.
    pub label: Option<u8>,
    /// Probabilities MA, HE, EX, SE.
    pub probs: [f32; 4],
    /// Why they mean nothing, of a photograph that a model has no answer to; `None` when nothing speaks against them.
    pub note: Option<String>,
}

/// Columns of predictions besides those that all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `label`, the label byte, after the place.
    Label,
    /// `usable` (1 or 0) and `note` (why not) at the end.
    Usable,
}

impl Prediction {
    /// Patch or image.
    pub fn level(&self) -> Level {
        if self.cell.is_some() {
            Level::Patch
        } else {
            Level::Image
        }
    }
}

/// A line of predictions with [`Columns::Label`], as it is read back: what [`write_predictions`] has written, by the
/// names of its columns.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct LabelledPrediction {
    /// Id of the image in the manifest.
    pub image_id: String,
    /// Grid row of a patch; empty for an image.
    pub row: Option<u32>,
    /// Grid column of a patch; empty for an image.
    pub col: Option<u32>,
    /// Label byte.
    pub label: u8,
    /// Probability of MA.
    #[serde(rename = "p_MA")]
    pub p_ma: f32,
    /// Probability of HE.
    #[serde(rename = "p_HE")]
    pub p_he: f32,
    /// Probability of EX.
    #[serde(rename = "p_EX")]
    pub p_ex: f32,
    /// Probability of SE.
    #[serde(rename = "p_SE")]
    pub p_se: f32,
}

impl LabelledPrediction {
    /// Probabilities in class order.
    pub fn probs(&self) -> [f32; 4] {
        [self.p_ma, self.p_he, self.p_ex, self.p_se]
    }

    /// `(row, col)` of a patch, `None` for an image.
    pub fn cell(&self) -> Option<(u32, u32)> {
        self.row.zip(self.col)
    }

    /// Patch or image.
    pub fn level(&self) -> Level {
        if self.row.is_some() {
            Level::Patch
        } else {
            Level::Image
        }
    }
}

/// Writes predictions, in one rename.
pub fn write_predictions(path: &Path, rows: &[Prediction], columns: Columns) -> Result<()> {
    let (labels, usable) = (columns == Columns::Label, columns == Columns::Usable);
    let broken = |e: &dyn std::fmt::Display| Error::Internal(format!("predictions: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = vec!["image_id", "row", "col"];
    header.extend(labels.then_some("label"));
    header.extend(["p_MA", "p_HE", "p_EX", "p_SE"]);
    header.extend(usable.then_some(["usable", "note"]).into_iter().flatten());
    writer.write_record(&header).map_err(|e| broken(&e))?;
    for row in rows {
        let mut record = vec![row.image_id.clone()];
        match row.cell {
            Some((r, c)) => record.extend([r.to_string(), c.to_string()]),
            None => record.extend([String::new(), String::new()]),
        }
        if labels {
            record.push(row.label.map_or_else(String::new, |l| l.to_string()));
        }
        record.extend(row.probs.iter().map(|p| p.to_string()));
        if usable {
            record.push(u8::from(row.note.is_none()).to_string());
            record.push(row.note.clone().unwrap_or_default());
        }
        writer.write_record(&record).map_err(|e| broken(&e))?;
    }
    replace(path, &writer.into_inner().map_err(|e| broken(&e))?)
}
