//! How far a run is: a checkpoint without its tensors.

use fovea_coordinator::protocol::StartPoint;
use serde::{Deserialize, Serialize};

use fovea_run::config::{Config, EarlyStopping, PlateauState};

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Committed steps of its checkpoint.
    pub step: u64,
    /// The epoch after which it was evaluated, counted from 1.
    pub epoch: u32,
    /// Value of the watched metric.
    pub value: f64,
}

/// Committed progress; a pure value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epoch in progress, from 0.
    pub epoch: u32,
    /// Committed steps of the run.
    pub step: u64,
    /// Samples of `epoch` that are committed.
    pub cursor: u64,
    /// Learning-rate reductions so far.
    pub plateau: PlateauState,
    /// The watched metric's history in short.
    pub early: EarlyStopping,
    /// Where the best checkpoint is.
    pub best: Option<Best>,
    /// Early stopping ended the run.
    pub stopped: bool,
}

impl Progress {
    /// The progress of a run that has committed nothing yet.
    pub fn new(config: &Config) -> Self {
        Self {
            epoch: 0,
            step: 0,
            cursor: 0,
            plateau: PlateauState::default(),
            early: EarlyStopping::new(&config.early_stopping),
            best: None,
            stopped: false,
        }
    }

    /// Where the run stands.
    pub fn point(&self) -> StartPoint {
        StartPoint {
            epoch: self.epoch,
            step: self.step,
            cursor: self.cursor,
        }
    }

    /// A step is committed by all ranks.
    pub fn commit(&mut self, step: u64, cursor: u64) {
        self.step = step;
        self.cursor = cursor;
    }

    /// An epoch was evaluated; says whether it is the best so far.
    pub fn evaluated(&mut self, config: &Config, value: f64) -> bool {
        let verdict = self.early.observe(value);
        self.plateau.observe(&config.schedule, verdict.improved);
        if verdict.improved {
            self.best = Some(Best {
                step: self.step,
                epoch: self.epoch + 1,
                value,
            });
        }
        self.stopped = verdict.stop;
        verdict.improved
    }

    /// The next epoch begins.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        self.cursor = 0;
    }
}
