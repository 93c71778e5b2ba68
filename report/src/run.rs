//! What a run directory holds, read and sorted. Missing data becomes a note, damaged data
//! an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fovea_coordinator::client::status_of;
use fovea_coordinator::status::{STATUS_FILE, Status};
use fovea_dataset::Split;
use fovea_run::checkpoint;
use fovea_run::config::{Config, EarlyStopping};
use fovea_run::metrics::{self, Baseline, Metrics, MetricsRow, Table};
use fovea_run::predictions::Prediction;
use fovea_run::run_dir::RunDir;
use fovea_run::tuning::{self, Tuning};
use fovea_task::{Target, Task};

use super::predictions;
use super::throughput::{self, Throughput};
use super::{Error, Result};

/// The predictions for one target, with what follows from them.
#[derive(Clone, Debug)]
pub(super) struct TargetScores {
    pub(super) table: Table,
    pub(super) metrics: Metrics,
    pub(super) baseline: Baseline,
    /// The epoch in `metrics.csv` with the same confusion counts, if any.
    pub(super) epoch: Option<u32>,
}

/// Everything the report is made of.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    /// What the model was asked.
    pub(super) task: Task,
    pub(super) config: Config,
    pub(super) status: Option<Status>,
    /// Whether a coordinator answers: an unfinished run without one has died.
    pub(super) live: bool,
    /// By (epoch, split, target); of a row written twice the later counts.
    pub(super) metrics: Vec<MetricsRow>,
    pub(super) throughput: Option<Throughput>,
    /// Of the validation split, temperatures applied.
    pub(super) predictions: Vec<Prediction>,
    /// Per target of the task, of each class: those of the record beside the best checkpoint, or the configured one.
    pub(super) thresholds: Vec<Vec<f32>>,
    /// The record of thresholds and temperatures beside the best checkpoint, in words, when there is one.
    pub(super) tuned: Option<String>,
    /// Per target of the task; `None` without labelled predictions.
    pub(super) scores: Vec<Option<TargetScores>>,
    /// What could not be shown, and why.
    pub(super) notes: Vec<String>,
}

impl Run {
    /// Reads the directory `dir`.
    ///
    /// # Errors
    /// `dir` is not a run directory, or one of its files is damaged.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        check(dir)?;
        let files = RunDir::new(dir);
        let mut notes = Vec::new();
        let config = Config::load(&files.config()).unwrap_or_else(|error| {
            let reason = first_line(&error);
            notes.push(format!(
                "The configuration could not be read, so defaults are assumed: {reason}"
            ));
            Config::default()
        });
        let (status, live) = read_status(dir, &mut notes).unzip();
        let task = files.task()?;
        let metrics = read_metrics(&files.metrics(), &task)?;
        if metrics.is_empty() {
            notes.push("No epoch has been validated yet: metrics.csv is missing or empty, so there are no curves.".to_owned());
        }
        let throughput = throughput::read(&files.throughput())?;
        if throughput.is_none() {
            notes.push(
                "No step has been recorded yet: throughput.csv is missing or empty.".to_owned(),
            );
        }
        let predictions = predictions::read(&files.predictions(), &task)?;
        let mut run = Self {
            dir: dir.to_owned(),
            name: name_of(dir),
            task,
            config,
            status,
            live: live.unwrap_or(false),
            metrics,
            throughput,
            predictions,
            thresholds: Vec::new(),
            tuned: None,
            scores: Vec::new(),
            notes,
        };
        run.notes.extend(run.on_the_watched_metric());
        let configured = run.config.eval.threshold;
        let targets = run.task.targets().iter();
        run.thresholds = targets.map(|t| vec![configured; t.classes.len()]).collect();
        let tuning = run.tuning();
        let scores = (0..run.task.targets().len()).map(|index| run.score(index));
        run.scores = scores.collect::<Result<_>>()?;
        if let Some(tuning) = tuning {
            run.tune(&tuning)?;
        }
        Ok(run)
    }

    /// The record beside the best checkpoint; one that is no good costs a note.
    fn tuning(&mut self) -> Option<Tuning> {
        let dir = RunDir::new(&self.dir).checkpoints();
        let newest = checkpoint::list(&dir).ok()?.pop()?;
        let best = newest.state.ok()?.best_step.unwrap_or(newest.step);
        let path = tuning::beside(&checkpoint::directory(&dir, best));
        match Tuning::read(&path, &self.task) {
            Ok(found) => found,
            Err(error) => {
                self.notes.push(format!(
                    "Thresholds and temperatures are left out: {}",
                    first_line(&error)
                ));
                None
            }
        }
    }

    /// Applies temperatures and thresholds to the predictions and the scores.
    fn tune(&mut self, tuning: &Tuning) -> Result<()> {
        for line in &mut self.predictions {
            let target = &self.task.targets()[line.target];
            line.probabilities = tuning.targets[line.target].tempered(target, &line.probabilities);
        }
        let targets = tuning.targets.iter();
        self.thresholds = targets.map(|t| t.thresholds.clone()).collect();
        self.tuned = Some(tuning.describe());
        for index in 0..self.scores.len() {
            // The epoch was found by the scores that the trainer logged, without tuning.
            let tuned = self.score(index)?;
            if let (Some(before), Some(tuned)) = (&mut self.scores[index], tuned) {
                let epoch = before.epoch;
                *before = TargetScores { epoch, ..tuned };
            }
        }
        Ok(())
    }

    fn score(&self, index: usize) -> Result<Option<TargetScores>> {
        let target = &self.task.targets()[index];
        let table = predictions::scored(&self.predictions, index);
        if !table.labels.iter().any(|label| label.is_known()) {
            return Ok(None);
        }
        let metrics = metrics::compute(target, &table, &self.thresholds[index], 0.0)?;
        let same = self
            .history(Split::Val, target)
            .rev()
            .find(|row| same_scores(&row.metrics, &metrics));
        let baseline = metrics::best_constant(target, &table)?;
        Ok(Some(TargetScores {
            epoch: same.map(|row| row.epoch),
            table,
            metrics,
            baseline,
        }))
    }

    /// Why there is no best epoch, why some cannot be it, or why there are no predictions: a sentence, when there is
    /// something to say.
    fn on_the_watched_metric(&self) -> Option<String> {
        const MISSING: &str =
            "no ROC and precision-recall curves, confusion tables and sample pictures";
        let watched = &self.config.early_stopping;
        let Some(target) = self.watched() else {
            return Some(format!(
                "There is no best epoch: early_stopping.level is \"{}\", and the task has no target at that level.",
                watched.level
            ));
        };
        let history = self.history(Split::Val, target);
        let undefined: Vec<(u32, String)> = history
            .filter_map(|row| {
                let why = metrics::undefined(watched.metric, target, &row.metrics)?;
                Some((row.epoch, why))
            })
            .collect();
        let epochs = self.history(Split::Val, target).count();
        let Some((last, why)) = undefined.last() else {
            return self.predictions.is_empty().then(|| {
                format!("No validation predictions yet: predictions-val.csv is missing or empty, so there are {MISSING}.")
            });
        };
        let metric = format!("{} at {} level", watched.metric, watched.level);
        Some(if undefined.len() == epochs {
            format!(
                "There is no best epoch, and so there are no validation predictions, {MISSING}: the watched metric {metric} was undefined in {}: {why}. Watch another one with early_stopping.metric.",
                match epochs {
                    1 => "the only epoch that was validated".to_owned(),
                    n => format!("all {n} epochs that were validated"),
                }
            )
        } else {
            format!(
                "The watched metric {metric} was undefined in {} of {epochs} validated epochs, so none of these can be the best one; in epoch {last}: {why}.",
                undefined.len()
            )
        })
    }

    /// The task's targets in the order of the page, patches first.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        metrics::table_order(&self.task).map(|(_, target)| target)
    }

    /// The target whose metric decides which epoch is the best.
    pub(super) fn watched(&self) -> Option<&Target> {
        let level = self.config.early_stopping.level;
        metrics::watched(&self.task, level).map(|(_, target)| target)
    }

    /// The scores computed from the predictions for `target`.
    pub(super) fn scores_of(&self, target: &Target) -> Option<&TargetScores> {
        let targets = self.task.targets().iter().zip(&self.scores);
        let mut same = targets.filter(|(other, _)| other.name == target.name);
        same.next()?.1.as_ref()
    }

    /// Rows of one split and target by epoch.
    pub(super) fn history(
        &self,
        split: Split,
        target: &Target,
    ) -> impl DoubleEndedIterator<Item = &MetricsRow> {
        self.metrics
            .iter()
            .filter(move |row| row.split == split && row.target == target.name)
    }

    /// The best epoch by the rule of the trainer itself: the watched metric and `min_delta` of the
    /// configuration.
    pub(super) fn best_epoch(&self) -> Option<u32> {
        let watched = &self.config.early_stopping;
        let mut rule = EarlyStopping::new(watched);
        let mut best = None;
        for row in self.history(Split::Val, self.watched()?) {
            if rule
                .observe(row.metrics.get(watched.metric).unwrap_or(f64::NAN))
                .improved
            {
                best = Some(row.epoch);
            }
        }
        best
    }

    /// Validation scores of `target` at the best epoch.
    pub(super) fn best_row(&self, target: &Target) -> Option<&MetricsRow> {
        let epoch = self.best_epoch()?;
        self.history(Split::Val, target)
            .find(|row| row.epoch == epoch)
    }

    /// What constants reach on the validation labels of `target`: from the predictions' labels when
    /// there are any, else the part that follows from the counts in `metrics.csv`.
    pub(super) fn baseline(&self, target: &Target) -> Option<Baseline> {
        if let Some(scores) = self.scores_of(target) {
            return Some(scores.baseline);
        }
        let last = &self.history(Split::Val, target).next_back()?.metrics;
        let positives: Vec<u64> = last.per_class.iter().map(|c| c.positives).collect();
        metrics::best_constant_from_counts(target, &positives, last.samples).ok()
    }

    /// Where the prepared dataset is: as configured, or, when that is relative and not beneath the
    /// current directory, beneath one of the directories above the run.
    pub(super) fn dataset_dir(&self) -> Option<PathBuf> {
        let given = Path::new(&self.config.data.path);
        if given.as_os_str().is_empty() {
            return None;
        }
        let absolute = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        std::iter::once(given.to_owned())
            .chain(absolute.ancestors().map(|above| above.join(given)))
            .find(|dir| dir.join("manifest.json").is_file())
    }
}

/// Refuses what is not a run directory.
fn check(dir: &Path) -> Result<()> {
    let reason = if !dir.exists() {
        "there is no such directory"
    } else if !dir.is_dir() {
        "this is a file, not a run directory"
    } else if !RunDir::new(dir).config().is_file() {
        "this is not a run directory: it has no config.toml"
    } else {
        return Ok(());
    };
    Err(Error::NotARun {
        path: dir.to_owned(),
        reason,
    })
}

/// The state of the run, and whether its coordinator has told it; else it is that of `RUN/status.json`, which,
/// damaged, costs a note.
fn read_status(dir: &Path, notes: &mut Vec<String>) -> Option<(Status, bool)> {
    if !dir.join(STATUS_FILE).is_file() {
        return None;
    }
    status_of(dir)
        .map_err(|error| {
            notes.push(format!(
                "The run's state is not known: {}",
                first_line(&error)
            ))
        })
        .ok()
}

/// Whether both come from the same predictions: the counts at the threshold, and the correlation,
/// which hardly any two epochs share.
fn same_scores(a: &Metrics, b: &Metrics) -> bool {
    let counts = |m: &Metrics| -> Vec<_> {
        let classes = m.per_class.iter();
        classes.map(|c| (c.tp, c.fp, c.fn_, c.tn)).collect()
    };
    let r = |m: &Metrics| m.pearson_r.unwrap_or(0.0);
    counts(a) == counts(b) && (r(a) - r(b)).abs() < 1e-6
}

fn first_line(error: &impl std::fmt::Display) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn name_of(dir: &Path) -> String {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    absolute.file_name().map_or_else(
        || absolute.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn read_metrics(path: &Path, task: &Task) -> Result<Vec<MetricsRow>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut latest = BTreeMap::new();
    for row in metrics::log::read(path, task)? {
        latest.insert((row.epoch, row.split, row.target.clone()), row);
    }
    Ok(latest.into_values().collect())
}
