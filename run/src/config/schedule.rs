//! Learning rate and early stopping as pure functions of numbers that a checkpoint holds.
//!
//! Nothing here reads a clock or keeps hidden state, so a resumed run continues the same curve, and
//! every rank that knows (step, total, plateau state) computes the same rate.

use serde::{Deserialize, Serialize};

use super::sections::{EarlyStoppingConfig, MetricName, ScheduleConfig, ScheduleKind};

/// The learning rate of one step.
///
/// * `step`: steps committed before this one (the first step is 0).
/// * `total_steps`: steps the whole run will commit; only `cosine` looks at it.
///
/// With `w = warmup_steps`, `lr0 = base_lr`:
/// * `step < w`: linear warm-up `lr0 * (step + 1) / w` (gradual warm-up, Goyal et al. 2017,
///   arXiv:1706.02677, section 2.2); `min_lr` does not apply.
/// * `constant`: `lr0`.
/// * `cosine`: `min_lr + (lr0 - min_lr) / 2 * (1 + cos(pi * t / T))` with `t = step - w` and
///   `T = total_steps - w` (Loshchilov & Hutter, SGDR, ICLR 2017, equation 5, without restarts; the
///   same numbers as PyTorch's `CosineAnnealingLR(T_max = T)`). From `total_steps` on: `min_lr`.
/// * `plateau`: `max(lr0 * plateau_factor ^ reductions, min_lr)` (as PyTorch's
///   `ReduceLROnPlateau`, counted by [`PlateauState`]).
///
/// Computed in f64 and rounded once.
#[must_use]
pub fn learning_rate(
    schedule: &ScheduleConfig,
    base_lr: f32,
    step: u64,
    total_steps: u64,
    plateau: &PlateauState,
) -> f32 {
    let base = f64::from(base_lr);
    let floor = f64::from(schedule.min_lr);
    let warmup = u64::from(schedule.warmup_steps);
    if step < warmup {
        return (base * (step + 1) as f64 / warmup as f64) as f32;
    }
    let rate = match schedule.kind {
        ScheduleKind::Constant => base,
        ScheduleKind::Cosine if step >= total_steps => floor,
        ScheduleKind::Cosine => {
            // step < total_steps and step >= warmup, so the length is at least 1.
            let done = (step - warmup) as f64 / (total_steps - warmup) as f64;
            annealed(base, floor, done)
        }
        ScheduleKind::Plateau => {
            let factor = f64::from(schedule.plateau_factor);
            (base * power(factor, plateau.reductions)).max(floor)
        }
    };
    rate as f32
}

/// The half cosine from `base` to `floor` when the part `done` of it is over; behind 1 it rises again.
pub(super) fn annealed(base: f64, floor: f64, done: f64) -> f64 {
    floor + (base - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// `x ^ n` by squaring: plain products, because the precision of `f64::powi` differs by platform and
/// ranks on two kinds of machine must agree.
fn power(mut x: f64, mut n: u32) -> f64 {
    let mut result = 1.0;
    while n > 0 {
        if n & 1 == 1 {
            result *= x;
        }
        x *= x;
        n >>= 1;
    }
    result
}

/// How often the rate has been reduced under `schedule.kind = "plateau"`; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlateauState {
    /// Evaluations in a row without improvement since the last improvement or reduction.
    pub waited: u32,
    /// How often the rate has been reduced since the start of the run.
    pub reductions: u32,
}

impl PlateauState {
    /// Takes one evaluation's outcome (from [`EarlyStopping::observe`], so both agree on what an
    /// improvement is) and returns whether the rate was reduced.
    ///
    /// A reduction happens at the `plateau_patience`-th evaluation in a row without improvement, the
    /// same way of counting as `early_stopping.patience`. (PyTorch's `ReduceLROnPlateau(patience=n)`
    /// acts one evaluation later.) Under another schedule nothing is counted.
    pub fn observe(&mut self, schedule: &ScheduleConfig, improved: bool) -> bool {
        if schedule.kind != ScheduleKind::Plateau {
            return false;
        }
        if improved {
            self.waited = 0;
            return false;
        }
        self.waited = self.waited.saturating_add(1);
        if self.waited < schedule.plateau_patience {
            return false;
        }
        self.waited = 0;
        self.reductions = self.reductions.saturating_add(1);
        true
    }
}

/// What one evaluation meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopVerdict {
    /// The value is the best so far: keep this checkpoint as the best one.
    pub improved: bool,
    /// The patience is used up: end the run.
    pub stop: bool,
}

/// Watches one validation metric: which evaluation was best, and when to stop (the patience rule of
/// Goodfellow, Bengio & Courville, "Deep Learning", 2016, algorithm 7.1).
///
/// Serialisable, so that a resumed run remembers its best value and how long it has waited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    metric: MetricName,
    patience: u32,
    min_delta: f64,
    best: Option<f64>,
    best_at: Option<u64>,
    observed: u64,
    waited: u32,
}

impl EarlyStopping {
    /// Watches `config.metric`. With `patience` 0 it still tells improvements, but never stops.
    #[must_use]
    pub fn new(config: &EarlyStoppingConfig) -> Self {
        Self {
            metric: config.metric,
            patience: config.patience,
            min_delta: f64::from(config.min_delta),
            best: None,
            best_at: None,
            observed: 0,
            waited: 0,
        }
    }

    /// Takes the metric's value at the next evaluation.
    ///
    /// It is an improvement when it is finite and beats the best so far by more than `min_delta`
    /// (upwards or downwards as the metric wants it); the first finite value always is. A value that
    /// is not finite (a metric undefined on this split, a diverged loss) counts as no improvement.
    pub fn observe(&mut self, value: f64) -> StopVerdict {
        let improved = value.is_finite()
            && match self.best {
                None => true,
                Some(best) if self.metric.higher_is_better() => value > best + self.min_delta,
                Some(best) => value < best - self.min_delta,
            };
        if improved {
            self.best = Some(value);
            self.best_at = Some(self.observed);
            self.waited = 0;
        } else {
            self.waited = self.waited.saturating_add(1);
        }
        self.observed += 1;
        StopVerdict {
            improved,
            stop: self.patience > 0 && self.waited >= self.patience,
        }
    }

    /// The metric whose best value it remembers.
    #[must_use]
    pub const fn metric(&self) -> MetricName {
        self.metric
    }

    /// Best value so far; none before the first finite one.
    #[must_use]
    pub const fn best(&self) -> Option<f64> {
        self.best
    }

    /// Waits from zero again; the best value stays.
    pub const fn restart(&mut self) {
        self.waited = 0;
    }

    /// Which evaluation (counted from 0) was the best.
    #[must_use]
    pub const fn best_at(&self) -> Option<u64> {
        self.best_at
    }

    /// Evaluations in a row without improvement.
    #[must_use]
    pub const fn waited(&self) -> u32 {
        self.waited
    }
}
