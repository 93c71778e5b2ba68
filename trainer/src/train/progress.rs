//! The progress of a run: a checkpoint without its tensors.

use fovea_coordinator::protocol::StartPoint;
use serde::{Deserialize, Serialize};

use fovea_run::config::{Config, EarlyStopping, PlateauState};

use crate::scores::{EpochScores, HeadScores};

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Number of committed steps of its checkpoint.
    pub step: u64,
    /// The epoch after which it was evaluated, counted from 1.
    pub epoch: u32,
    /// Value of the watched metric in that evaluation.
    pub value: f64,
}

/// Committed progress; a pure value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch in progress, counted from 0.
    pub epoch: u32,
    /// Number of committed steps of the run.
    pub step: u64,
    /// Number of committed samples of `epoch`.
    pub cursor: u64,
    /// State of the learning rate schedule: its reductions so far.
    pub plateau: PlateauState,
    /// State of early stopping: a summary of the watched metric's history.
    pub early: EarlyStopping,
    /// The best evaluation so far; none before the first with a value.
    pub best: Option<Best>,
    /// Whether early stopping ended the run.
    pub stopped: bool,
    /// Scores of the committed steps of `epoch`; none where training is not scored, or nothing is committed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<EpochScores>,
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
            training: None,
        }
    }

    /// The point where the run stands, for a rendezvous.
    pub fn point(&self) -> StartPoint {
        StartPoint {
            epoch: self.epoch,
            step: self.step,
            cursor: self.cursor,
        }
    }

    /// Notes that all ranks have committed a step, with what it adds to the training scores.
    pub fn commit(&mut self, step: u64, cursor: u64, scores: Option<Vec<HeadScores>>) {
        self.training = EpochScores::after(self.training.take(), scores, self.cursor);
        self.step = step;
        self.cursor = cursor;
    }

    /// Notes the evaluation of an epoch; returns whether it is the best so far.
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

    /// Begins the next epoch.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        self.cursor = 0;
        self.training = None;
    }
}
