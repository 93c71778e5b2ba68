//! The configuration of `fovea train`: TOML in, one resolved [`Config`] out.
//!
//! Everything below the command line reads this struct and nothing else: no flags, no environment.
//! A file states what differs from the defaults; `--set section.key=value` changes single keys; then
//! [`Config::validate`] checks the rules between keys. Only the table [`keys::KEYS`]
//! says what a key means, its range and whether it changes the result; it drives reading, `--set`,
//! `--print-config`, the hash and `docs/configuration.md`.
//!
//! This room does not look for data, devices or ranks, and holds no clock.

pub mod error;
pub mod keys;
mod print;
mod read;
pub mod schedule;
pub mod sections;
mod validate;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::path::Path;

use fovea_task::Task;
use serde::{Deserialize, Serialize};

pub use error::{Error, Place};
pub use schedule::{EarlyStopping, PlateauState, StopVerdict, learning_rate};
pub use sections::{
    Alpha, AugmentConfig, CheckpointConfig, DataConfig, Device, EarlyStoppingConfig, ElasticConfig,
    EvalConfig, Fusion, Level, LossConfig, MapAttention, MetricName, ModelConfig, OptimizerConfig,
    OptimizerKind, Pooling, Precision, ReduceDtype, RunConfig, ScheduleConfig, ScheduleKind,
    TrainConfig,
};

/// Result with this room's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that defines a training run. One field per section of the TOML file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is trained on.
    pub data: DataConfig,
    /// The network, and the weights it begins from.
    pub model: ModelConfig,
    /// The loss that training minimises, and its weights.
    pub loss: LossConfig,
    /// How much, how parallel and how exact.
    pub train: TrainConfig,
    /// Losing and gaining ranks while the run goes on.
    pub elastic: ElasticConfig,
    /// Adam and its numbers.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// The watched metric and when to give up.
    pub early_stopping: EarlyStoppingConfig,
    /// Random views of training samples.
    pub augment: AugmentConfig,
    /// When checkpoints are written and which are kept.
    pub checkpoint: CheckpointConfig,
    /// How often the validation split is scored, and at which threshold.
    pub eval: EvalConfig,
    /// The run directory that results are written to.
    pub run: RunConfig,
}

/// Presets that come with the program: name and TOML text of each file in `run/src/config/presets`.
pub const PRESETS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// One key on which two configurations differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key, as `section.name`.
    pub key: String,
    /// Its TOML value in the first configuration.
    pub ours: String,
    /// Its TOML value in the second one.
    pub theirs: String,
}

impl Config {
    /// Reads TOML text over the defaults. `origin` is the file name that errors show.
    ///
    /// Every key is checked by itself (known, right type, in range). Call [`Self::validate`] when all
    /// overrides are in: a file whose `ranks` fit only a `--set` value is not wrong yet.
    ///
    /// # Errors
    /// The first problem in file order, with its line.
    pub fn from_toml_str(text: &str, origin: &str) -> Result<Self> {
        read::parse(text, origin)
    }

    /// Reads a configuration file; see [`Self::from_toml_str`].
    ///
    /// # Errors
    /// When `path` is missing, not a file, too large, not UTF-8, or its content is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read::read_file(path)?;
        read::parse(&text, &path.display().to_string())
    }

    /// A preset by name; see [`PRESETS`].
    ///
    /// # Errors
    /// When there is no such preset; the message lists those there are.
    pub fn preset(name: &str) -> Result<Self> {
        match PRESETS.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => read::parse(text, &format!("preset {name}")),
            None => Err(Error::unknown_preset(name)),
        }
    }

    /// Applies one `section.key=value`, as `--set` takes it.
    ///
    /// The value is TOML; words and paths may stand without quotes. On error nothing is changed.
    ///
    /// # Errors
    /// When the key is unknown, or the value has the wrong type or is out of range.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        read::set(self, assignment)
    }

    /// Checks every range again (fields may have been set in code) and the rules between keys.
    ///
    /// # Errors
    /// The first broken rule, with the numbers and what is allowed.
    pub fn validate(&self) -> Result<()> {
        validate::validate(self)
    }

    /// Checks what depends on the dataset's task: that there are as many class weights as classes.
    ///
    /// # Errors
    /// [`Error::WrongType`] with the number of weights that a target needs.
    pub fn fits(&self, task: &Task) -> Result<()> {
        validate::fits(self, task)
    }

    /// The whole configuration as TOML with every key explained: what `--print-config` shows and
    /// `RUN/config.toml` holds. Reads back as an equal configuration.
    #[must_use]
    pub fn to_toml_documented(&self) -> String {
        print::documented(self)
    }

    /// Hash (64 hex digits) of everything that changes the result of training: not of where data and
    /// results lie, nor of how many processes and threads do the work, nor of when checkpoints are
    /// written. Which keys count is the column `changes_result` of [`keys::KEYS`].
    ///
    /// `auto` is hashed as `auto`: what it resolves to is the machine's business.
    #[must_use]
    pub fn blake3(&self) -> String {
        blake3::hash(print::canonical(self).as_bytes())
            .to_hex()
            .to_string()
    }

    /// The result-changing keys on which two configurations differ, in table order: what to tell a
    /// user whose `--resume` does not match the checkpoint. Empty exactly when the hashes are equal.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        keys::KEYS
            .iter()
            .filter(|key| key.changes_result)
            .map(|key| Difference {
                key: key.path(),
                ours: (key.get)(self).to_string(),
                theirs: (key.get)(other).to_string(),
            })
            .filter(|difference| difference.ours != difference.theirs)
            .collect()
    }
}

impl TrainConfig {
    /// Compute threads of one rank on a machine with `cores` processors.
    #[must_use]
    pub fn threads(&self, cores: usize) -> usize {
        match self.threads_per_rank {
            0 => (cores / self.ranks.max(1) as usize).max(1),
            threads => threads as usize,
        }
    }
}
