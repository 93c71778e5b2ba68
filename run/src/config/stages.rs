//! Stages of a run: which parameters move in which epochs, and at which learning rates.
//!
//! `[[stages]]` is a list of tables. Without one a run has a single stage, in which everything moves under
//! `[optimizer]` and `[schedule]`. The stage of an epoch and the rates of a step are pure functions of the
//! configuration, so a resumed run and every rank know them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Config;
use super::schedule::{PlateauState, annealed, learning_rate};
use super::sections::{FrozenNorms, ScheduleConfig, ScheduleKind};

/// The word for every parameter of the model, in [`StageConfig::train`].
pub const ALL: &str = "all";
/// The word for the parameters that the model calls its head, in [`StageConfig::train`].
pub const HEAD: &str = "head";

/// One table of `[[stages]]`, as it is written: what it leaves out comes from `[optimizer]` and `[schedule]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageConfig {
    /// Passes over the training split.
    pub epochs: u32,
    /// Which parameters move: [`ALL`], [`HEAD`], or prefixes of parameter names.
    pub train: Vec<String>,
    /// Base learning rate; none = `optimizer.lr`.
    pub lr: Option<f32>,
    /// Base learning rates of parameters whose names begin with a prefix, by prefix.
    pub groups: BTreeMap<String, f32>,
    /// Shape of the rate over the stage; none = `schedule.kind`.
    pub kind: Option<ScheduleKind>,
    /// Length of the half cosine in epochs; 0 = the stage's.
    pub t_max: u32,
    /// Steps of linear warm-up at the stage's beginning; none = `schedule.warmup_steps`.
    pub warmup_steps: Option<u32>,
    /// Floor of the rate after the warm-up; none = `schedule.min_lr`.
    pub min_lr: Option<f32>,
    /// What a reduction multiplies the rate by; none = `schedule.plateau_factor`.
    pub plateau_factor: Option<f32>,
    /// Evaluations without improvement that cause a reduction; none = `schedule.plateau_patience`.
    pub plateau_patience: Option<u32>,
    /// What batch normalisation does where its parameters do not move.
    pub frozen_norms: FrozenNorms,
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            train: vec![ALL.to_owned()],
            lr: None,
            groups: BTreeMap::new(),
            kind: None,
            t_max: 0,
            warmup_steps: None,
            min_lr: None,
            plateau_factor: None,
            plateau_patience: None,
            frozen_norms: FrozenNorms::Eval,
        }
    }
}

impl StageConfig {
    /// The same stage with nothing left out.
    #[must_use]
    pub fn filled(&self, config: &Config) -> Self {
        let schedule = &config.schedule;
        Self {
            lr: self.lr.or(Some(config.optimizer.lr)),
            kind: self.kind.or(Some(schedule.kind)),
            warmup_steps: self.warmup_steps.or(Some(schedule.warmup_steps)),
            min_lr: self.min_lr.or(Some(schedule.min_lr)),
            plateau_factor: self.plateau_factor.or(Some(schedule.plateau_factor)),
            plateau_patience: self.plateau_patience.or(Some(schedule.plateau_patience)),
            ..self.clone()
        }
    }
}

/// A stage with its place in the run, and nothing left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its number, counted from 1.
    pub number: usize,
    /// Number of stages of the run.
    pub of: usize,
    /// Its first epoch, counted from 0.
    pub first_epoch: u32,
    /// Number of its epochs.
    pub epochs: u32,
    /// See [`StageConfig::train`].
    pub train: Vec<String>,
    /// Base learning rate.
    pub lr: f32,
    /// Prefixes of parameter names with base rates of their own, in byte order.
    pub groups: Vec<(String, f32)>,
    /// Shape of the rates over the stage.
    pub schedule: ScheduleConfig,
    /// See [`StageConfig::t_max`].
    pub t_max: u32,
    /// See [`StageConfig::frozen_norms`].
    pub frozen_norms: FrozenNorms,
}

impl Stage {
    /// Whether the run ends with it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.number == self.of
    }

    /// The learning rates of one step: that of the stage, then those of [`Self::groups`].
    ///
    /// `step` counts the steps committed in this stage before this one, from 0. Each rate is that of
    /// [`learning_rate`] with the base rate of its group over the steps of the stage. With `t_max`, the cosine is
    /// `min_lr + (lr0 - min_lr) / 2 * (1 + cos(pi * t / T))` with `T = t_max * steps_per_epoch - warmup_steps`; a
    /// stage that is longer follows the formula on, so the rate rises again, as PyTorch's `CosineAnnealingLR` does.
    #[must_use]
    pub fn rates(&self, step: u64, steps_per_epoch: u64, plateau: &PlateauState) -> Vec<f32> {
        let bases = std::iter::once(self.lr).chain(self.groups.iter().map(|(_, lr)| *lr));
        bases
            .map(|base| self.rate(base, step, steps_per_epoch, plateau))
            .collect()
    }

    fn rate(&self, base: f32, step: u64, steps_per_epoch: u64, plateau: &PlateauState) -> f32 {
        let schedule = &self.schedule;
        let warmup = u64::from(schedule.warmup_steps);
        let has_period = schedule.kind == ScheduleKind::Cosine && self.t_max > 0;
        if !has_period || step < warmup {
            let total = steps_per_epoch * u64::from(self.epochs);
            return learning_rate(schedule, base, step, total, plateau);
        }
        let period = (steps_per_epoch * u64::from(self.t_max)).saturating_sub(warmup);
        let done = (step - warmup) as f64 / period.max(1) as f64;
        annealed(f64::from(base), f64::from(schedule.min_lr), done) as f32
    }
}

impl Config {
    /// The stages of the run, at least one.
    #[must_use]
    pub fn plan(&self) -> Vec<Stage> {
        let single = [StageConfig {
            epochs: self.train.epochs,
            ..StageConfig::default()
        }];
        let written = match self.stages.as_slice() {
            [] => &single[..],
            stages => stages,
        };
        let mut first_epoch = 0u32;
        let stage = |(index, stage): (usize, &StageConfig)| {
            let own = &self.schedule;
            let begins = first_epoch;
            first_epoch = first_epoch.saturating_add(stage.epochs);
            Stage {
                number: index + 1,
                of: written.len(),
                first_epoch: begins,
                epochs: stage.epochs,
                train: stage.train.clone(),
                lr: stage.lr.unwrap_or(self.optimizer.lr),
                groups: stage.groups.clone().into_iter().collect(),
                schedule: ScheduleConfig {
                    kind: stage.kind.unwrap_or(own.kind),
                    warmup_steps: stage.warmup_steps.unwrap_or(own.warmup_steps),
                    min_lr: stage.min_lr.unwrap_or(own.min_lr),
                    plateau_factor: stage.plateau_factor.unwrap_or(own.plateau_factor),
                    plateau_patience: stage.plateau_patience.unwrap_or(own.plateau_patience),
                },
                t_max: stage.t_max,
                frozen_norms: stage.frozen_norms,
            }
        };
        written.iter().enumerate().map(stage).collect()
    }

    /// The stage of an epoch (counted from 0); behind the end, the last one.
    #[must_use]
    pub fn stage_of(&self, epoch: u32) -> Stage {
        let mut plan = self.plan();
        let later = |stage: &Stage| stage.first_epoch > epoch;
        let index = plan.iter().position(later).unwrap_or(plan.len());
        plan.swap_remove(index.saturating_sub(1))
    }

    /// Epochs of all stages together.
    pub(super) fn stage_epochs(&self) -> u32 {
        let epochs = self.stages.iter().map(|stage| stage.epochs);
        epochs.fold(0, u32::saturating_add)
    }
}
