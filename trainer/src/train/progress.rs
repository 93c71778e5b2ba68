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
    /// Number of committed steps before the present stage; the optimizer's steps count from there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stage_step: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
            stage_step: 0,
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
        let stage = config.stage_of(self.epoch);
        self.plateau.observe(&stage.schedule, verdict.improved);
        if verdict.improved {
            self.best = Some(Best {
                step: self.step,
                epoch: self.epoch + 1,
                value,
            });
        }
        // A stage that is not the last always runs to its end.
        self.stopped = verdict.stop && stage.is_last();
        verdict.improved
    }

    /// Begins the next epoch; returns whether a stage begins with it, which has a new optimizer: its moments must be
    /// zero.
    pub fn next_epoch(&mut self, config: &Config) -> bool {
        let before = config.stage_of(self.epoch).number;
        self.epoch += 1;
        self.cursor = 0;
        self.training = None;
        let is_new = config.stage_of(self.epoch).number != before;
        if is_new {
            self.stage_step = self.step;
            self.plateau = PlateauState::default();
            self.early.restart();
        }
        is_new
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn two_stages() -> Config {
        let mut config = Config::default();
        config
            .set("stages=[{epochs=3, train=\"head\", kind=\"plateau\", plateau_patience=1}, {epochs=4}]")
            .unwrap();
        config.set("early_stopping.patience=2").unwrap();
        config.validate().unwrap();
        config
    }

    /// One epoch of ten steps whose evaluation gives `value`; returns whether a stage begins.
    fn epoch(progress: &mut Progress, config: &Config, value: f64) -> bool {
        progress.commit(progress.step + 10, 100, None);
        progress.evaluated(config, value);
        progress.next_epoch(config)
    }

    #[test]
    fn a_stage_begins_with_a_new_optimizer_and_a_new_schedule() {
        let config = two_stages();
        let mut progress = Progress::new(&config);
        assert!(!epoch(&mut progress, &config, 0.5));
        assert!(!epoch(&mut progress, &config, 0.4));
        assert_eq!(progress.plateau.reductions, 1);
        // Three evaluations in a row without improvement, but this is not the last stage.
        assert!(epoch(&mut progress, &config, 0.3));
        assert!(!progress.stopped);
        assert_eq!((progress.epoch, progress.stage_step), (3, 30));
        assert_eq!(progress.plateau, PlateauState::default());
        assert_eq!(progress.early.waited(), 0);
        assert_eq!(
            progress.best.unwrap().value,
            0.5,
            "the run's, not the stage's"
        );
        assert!(!epoch(&mut progress, &config, 0.4));
        assert!(!progress.stopped);
        assert!(!epoch(&mut progress, &config, 0.4));
        assert!(
            progress.stopped,
            "two without improvement in the last stage"
        );
        assert_eq!(progress.stage_step, 30);
    }

    /// A run without stages has the progress that it always had, and a checkpoint from before stages is read.
    #[test]
    fn without_stages_nothing_is_added() {
        let mut config = Config::default();
        config.train.epochs = 3;
        let mut progress = Progress::new(&config);
        for _ in 0..3 {
            assert!(!epoch(&mut progress, &config, 0.5));
        }
        let json = serde_json::to_value(&progress).unwrap();
        assert!(json.get("stage_step").is_none(), "{json}");
        assert_eq!(serde_json::from_value::<Progress>(json).unwrap(), progress);
    }
}
