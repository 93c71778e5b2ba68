//! `tuning.json`: thresholds and temperatures beside the checkpoint that they belong to.
//!
//! The record names the weights by hash, so that it cannot be used with others, and the split that it was chosen on,
//! so that nobody reports a score of that split as if it were an honest one.

use std::path::{Path, PathBuf};

use fovea_dataset::Split;
use fovea_files::{Durability, Mode};
use fovea_task::{Kind, Target, Task};
use serde::{Deserialize, Serialize};

use super::Rule;
use super::temperature::softplus;
use crate::error::{Error, Result};

/// The format written, and the only one read.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the record in a checkpoint's directory.
const NAME: &str = "tuning.json";
/// A record has a few numbers per class; a longer file is something else.
const MOST_BYTES: u64 = 16 << 20;

/// Thresholds and temperatures of a model, or of an ensemble, for all targets of its task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// [`FORMAT_VERSION`] of the fovea that wrote it.
    pub format_version: u32,
    /// The models whose probabilities were averaged; one, or the members of an ensemble in their order.
    pub models: Vec<Member>,
    /// Views of each picture that were averaged: 1, 5 or 8.
    pub views: u32,
    /// blake3 of the manifest of the dataset that everything was chosen on.
    pub dataset_blake3: String,
    /// The part of that dataset.
    pub split: Split,
    /// How thresholds were chosen.
    pub rule: Rule,
    /// Per target of the task, in its order.
    pub targets: Vec<TargetTuning>,
}

/// One of the models of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// [`crate::checkpoint::weights_blake3`] of its weights.
    pub weights_blake3: String,
    /// Its share of the average; the shares of all members sum to 1.
    pub weight: f64,
}

/// Thresholds and temperatures of one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetTuning {
    /// Name of the target.
    pub target: String,
    /// What divides the logits: one number per class where a sample has any number of classes, else one for all.
    pub temperature: Vec<f64>,
    /// The probability, after the temperature, from which a class counts as predicted, per class. Not used where a
    /// sample has exactly one class.
    pub thresholds: Vec<f32>,
    /// Labelled samples that were looked at.
    pub samples: u64,
    /// Scores with temperature 1 and the configured threshold; `None` without labels.
    pub before: Option<TuningScores>,
    /// Scores with the chosen numbers, on the same samples.
    pub after: Option<TuningScores>,
}

/// What tuning changes, measured on the samples that it looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningScores {
    /// [`super::temperature::mean_nll`].
    pub nll: f64,
    /// F1 of the counts pooled over classes.
    pub f1_micro: f64,
    /// Mean of the per-class F1.
    pub f1_macro: f64,
    /// F1 per class.
    pub f1: Vec<f64>,
    /// Share of the positives that is found, per class.
    pub sensitivity: Vec<f64>,
}

impl TargetTuning {
    /// Temperature 1 and one threshold for all classes: as if nothing had been tuned.
    #[must_use]
    pub fn neutral(target: &Target, threshold: f32) -> Self {
        Self {
            target: target.name.clone(),
            temperature: vec![1.0; temperatures(target)],
            thresholds: vec![threshold; target.classes.len()],
            samples: 0,
            before: None,
            after: None,
        }
    }

    /// The temperature of a class.
    fn of(&self, class: usize) -> f64 {
        let one = self.temperature.first().copied().unwrap_or(1.0);
        self.temperature.get(class).copied().unwrap_or(one)
    }

    /// Divides logits, `[n, C]` row-major, by their temperatures.
    pub fn temper(&self, logits: &mut [f32]) {
        let classes = self.thresholds.len().max(1);
        for (i, z) in logits.iter_mut().enumerate() {
            *z = (f64::from(*z) / self.of(i % classes)) as f32;
        }
    }

    /// The probabilities of one sample as the temperature makes them of `probabilities`, those without it; 0 and 1 stay.
    #[must_use]
    pub fn tempered(&self, target: &Target, probabilities: &[f32]) -> Vec<f32> {
        let powers = probabilities.iter().enumerate().map(|(class, &p)| {
            let p = f64::from(p);
            match target.kind {
                Kind::AnyOf => {
                    let logit = (p.ln() - (1.0 - p).ln()) / self.of(class);
                    (-softplus(-logit)).exp()
                }
                Kind::OneOf => p.powf(1.0 / self.of(class)),
            }
        });
        let powers: Vec<f64> = powers.collect();
        let sum = match target.kind {
            Kind::AnyOf => 1.0,
            Kind::OneOf => powers.iter().sum(),
        };
        powers.iter().map(|p| (p / sum) as f32).collect()
    }
}

/// Temperatures that a target has.
fn temperatures(target: &Target) -> usize {
    match target.kind {
        Kind::AnyOf => target.classes.len(),
        Kind::OneOf => 1,
    }
}

impl Tuning {
    /// Reads a record; `None` when there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, is none of this version, or is not for `task`.
    pub fn read(path: &Path, task: &Task) -> Result<Option<Self>> {
        let bytes = match fovea_files::read_capped(path, MOST_BYTES) {
            Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file(path, &e.source, "check its permissions")),
            Ok(bytes) => bytes,
        };
        let bytes = bytes.ok_or_else(|| damaged(path, format!("more than {MOST_BYTES} bytes")))?;
        let version = serde_json::from_slice::<Version>(&bytes);
        let found = version
            .map_err(|e| damaged(path, e.to_string()))?
            .format_version;
        if found != u64::from(FORMAT_VERSION) {
            return Err(damaged(
                path,
                format!("it has format version {found}, this fovea reads version {FORMAT_VERSION}"),
            ));
        }
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|e| damaged(path, e.to_string()))?;
        record.check(task).map_err(|why| damaged(path, why))?;
        Ok(Some(record))
    }

    /// Writes the record in one rename.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Internal(format!("tuning.json: {e}")))?;
        fovea_files::replace(path, &bytes, Durability::Synced, Mode::Shared).map_err(|e| {
            let help = "check free space and permissions of the directory, or choose another file with --out";
            Error::file(path, &e.source, help)
        })?;
        Ok(())
    }

    /// Whether the record fits the task, and its numbers are possible.
    fn check(&self, task: &Task) -> Result<(), String> {
        let targets = task.targets();
        let ours: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        let theirs: Vec<&str> = self.targets.iter().map(|t| t.target.as_str()).collect();
        if ours != theirs {
            return Err(format!(
                "it is for the targets {}, the model answers {}",
                theirs.join(", "),
                ours.join(", ")
            ));
        }
        if self.models.is_empty() {
            return Err("it names no model".to_owned());
        }
        for (target, tuning) in targets.iter().zip(&self.targets) {
            let (classes, temperatures) = (target.classes.len(), temperatures(target));
            if tuning.thresholds.len() != classes || tuning.temperature.len() != temperatures {
                return Err(format!(
                    "target {}: {} thresholds and {} temperatures for {classes} classes",
                    target.name,
                    tuning.thresholds.len(),
                    tuning.temperature.len()
                ));
            }
            if let Some(t) = tuning.thresholds.iter().find(|t| !(0.0..=1.0).contains(*t)) {
                return Err(format!("target {}: a threshold of {t}", target.name));
            }
            let possible = |t: &&f64| !(t.is_finite() && **t > 0.0);
            if let Some(t) = tuning.temperature.iter().find(possible) {
                return Err(format!("target {}: a temperature of {t}", target.name));
            }
        }
        Ok(())
    }

    /// What the record says in one line: how, where and with how many views it was chosen.
    #[must_use]
    pub fn describe(&self) -> String {
        let ensemble = match self.models.len() {
            1 => String::new(),
            n => format!(", for an ensemble of {n}"),
        };
        let views = match self.views {
            1 => String::new(),
            n => format!(", over {n} views"),
        };
        format!("chosen on {} by {}{views}{ensemble}", self.split, self.rule)
    }
}

/// The one field that all versions have.
#[derive(Deserialize)]
struct Version {
    format_version: u64,
}

/// Where the record of a checkpoint is: in its directory, or beside a bare file of weights (`x.safetensors`:
/// `x.tuning.json`).
#[must_use]
pub fn beside(checkpoint: &Path) -> PathBuf {
    match checkpoint.is_dir() {
        true => checkpoint.join(NAME),
        false => checkpoint.with_extension(NAME),
    }
}

fn damaged(path: &Path, what: String) -> Error {
    Error::File {
        path: path.to_owned(),
        what,
        help: "make it again with `fovea tune`, or go without it: --untuned".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::metrics::fixture::grade;

    fn record(task: &Task) -> Tuning {
        let neutral = |target: &Target| TargetTuning::neutral(target, 0.5);
        Tuning {
            format_version: FORMAT_VERSION,
            models: vec![Member {
                weights_blake3: "ab".to_owned(),
                weight: 1.0,
            }],
            views: 1,
            dataset_blake3: "cd".to_owned(),
            split: Split::Val,
            rule: Rule::Grid(0.05),
            targets: task.targets().iter().map(neutral).collect(),
        }
    }

    #[test]
    fn a_record_comes_back_with_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(dir.path());
        assert_eq!(path, dir.path().join("tuning.json"));
        let task = Task::lesions();
        assert_eq!(Tuning::read(&path, &task).unwrap(), None);
        let mut written = record(&task);
        written.targets[0].temperature = vec![1.0 / 3.0, 0.05, 20.0, f64::MIN_POSITIVE];
        written.targets[1].thresholds = vec![0.1, 1.0, 0.0, f32::MIN_POSITIVE];
        written.targets[0].after = Some(TuningScores {
            nll: 0.1 + 0.2,
            f1_micro: 0.5,
            f1_macro: 0.25,
            f1: vec![0.25; 4],
            sensitivity: vec![1.0; 4],
        });
        written.write(&path).unwrap();
        assert_eq!(Tuning::read(&path, &task).unwrap(), Some(written));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let weights = dir.path().join("x.safetensors");
        assert_eq!(beside(&weights), dir.path().join("x.tuning.json"));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.json");
        let task = Task::lesions();
        let other = Task::new(vec![grade(3)]).unwrap();
        let good = record(&task);
        let change = |edit: &dyn Fn(&mut Tuning)| {
            let mut record = good.clone();
            edit(&mut record);
            serde_json::to_string(&record).unwrap()
        };
        let for_other = serde_json::to_string(&record(&other)).unwrap();
        for (text, why) in [
            (String::new(), "EOF"),
            ("{}".to_owned(), "format_version"),
            (change(&|r| r.format_version = 2), "format version 2"),
            (change(&|r| r.models.clear()), "names no model"),
            (
                change(&|r| r.targets[0].thresholds[1] = 1.5),
                "a threshold of 1.5",
            ),
            (
                change(&|r| r.targets[0].temperature[2] = 0.0),
                "a temperature of 0",
            ),
            (
                change(&|r| r.targets[1].thresholds.truncate(3)),
                "3 thresholds",
            ),
            (
                change(&|r| r.targets.truncate(1)),
                "the targets image, the model",
            ),
            (
                for_other,
                "the targets grade, the model answers image, patch",
            ),
        ] {
            fs::write(&path, &text).unwrap();
            let error = Tuning::read(&path, &task).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("\n  help: "),
                "{error}"
            );
        }
    }

    #[test]
    fn probabilities_follow_the_temperature_as_logits_do() {
        let lesions = Task::lesions();
        let target = lesions.cells().unwrap();
        let mut tuning = TargetTuning::neutral(target, 0.5);
        assert_eq!(
            tuning.tempered(target, &[0.0, 0.25, 0.5, 1.0]),
            [0.0, 0.25, 0.5, 1.0]
        );
        tuning.temperature = vec![2.0, 0.5, 1.0, 3.0];
        let logits = [1.5f32, -2.0, 0.25, 4.0];
        let sigmoid = |z: f32| 1.0 / (1.0 + (-z).exp());
        let mut tempered = logits;
        tuning.temper(&mut tempered);
        let (before, after) = (logits.map(sigmoid), tempered.map(sigmoid));
        for (p, q) in tuning.tempered(target, &before).iter().zip(after) {
            assert!((p - q).abs() < 1e-6, "{p} and {q}");
        }
        let one = grade(3);
        let mut tuning = TargetTuning::neutral(&one, 0.5);
        tuning.temperature = vec![0.5];
        let p = tuning.tempered(&one, &[0.2, 0.3, 0.5]);
        let sum = 0.04 + 0.09 + 0.25;
        for (p, q) in p.iter().zip([0.04 / sum, 0.09 / sum, 0.25 / sum]) {
            assert!((p - q).abs() < 1e-6, "{p} and {q}");
        }
    }
}
