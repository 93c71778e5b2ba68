//! The next action after a run's processes have exited: finished, requeue, restart here, or give up.

use serde::{Deserialize, Serialize};

/// Exit code of a process of a run: training is complete.
pub const FINISHED: i32 = 0;
/// Exit code of a process that failed; from `fovea job next`: the job gives up.
pub const FAILED: i32 = 1;
/// Exit code for a wrong configuration or wrong input: a restart never helps.
pub const WRONG_INPUT: i32 = 2;
/// Exit code of a process that left early, with a complete checkpoint; from `fovea job next`: requeue.
pub const LEFT: i32 = 85;
/// Exit code of `fovea job next` alone: restart in this job.
pub const AGAIN: i32 = 75;

/// What the batch script does after a start of the run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextAction {
    /// Training is complete, and the job ends with success.
    Finished,
    /// The job goes back into the queue.
    Requeue,
    /// The processes restart in this job.
    Again,
    /// The job ends: it has failed too often without progress.
    GiveUp,
    /// The job ends: the configuration or the input is wrong.
    ConfigError,
}

impl NextAction {
    /// The exit code of `fovea job next`, by which the batch script acts.
    pub fn code(self) -> i32 {
        match self {
            Self::Finished => FINISHED,
            Self::Requeue => LEFT,
            Self::Again => AGAIN,
            Self::GiveUp => FAILED,
            Self::ConfigError => WRONG_INPUT,
        }
    }

    /// Whether this end counts as a failure: a restart in this job, giving up, or a wrong configuration.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Again | Self::GiveUp | Self::ConfigError)
    }
}

/// How a start of the run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code of the coordinator; above 128 a signal ended it (128 + its number).
    pub coordinator: i32,
    /// Exit code of the launcher; that of `srun` is the highest of the trainers'.
    pub trainers: i32,
    /// The signal by which the scheduler or the user asked the job to leave (`TERM`, `USR1`, `INT`), if one did.
    pub noticed: Option<String>,
    /// Newest committed step by `status.json`; 0 when there is none.
    pub step: u64,
    /// Failures before this end, by [`crate::history::History::failures_without_progress`].
    pub failures: u32,
    /// Newest committed step at the end before this one.
    pub failed_at: u64,
    /// Failures without progress after which the job gives up.
    pub max_restarts: u32,
}

/// The next action, and the reason for it with numbers.
pub fn next(ended: &Ended) -> (NextAction, String) {
    let (coordinator, trainers) = (ended.coordinator, ended.trainers);
    let codes = format!(
        "coordinator {}, trainers {}",
        code(coordinator),
        code(trainers)
    );
    if coordinator == FINISHED {
        return (
            NextAction::Finished,
            format!("finished at step {}", ended.step),
        );
    }
    if coordinator == WRONG_INPUT || trainers == WRONG_INPUT {
        let why = format!("the configuration or the input is wrong (exit codes: {codes})");
        return (NextAction::ConfigError, why);
    }
    if let Some(signal) = &ended.noticed {
        let left = match coordinator {
            LEFT => "left in order",
            _ => "could not leave in order; the newest complete checkpoint counts",
        };
        let cause = match signal.as_str() {
            "TERM" => "preempted or cancelled",
            "USR1" => "near the time limit, or asked to requeue",
            "INT" => "stopped by its user",
            _ => "asked to leave",
        };
        let why = format!(
            "{cause} ({signal}) at step {}: {left} ({codes})",
            ended.step
        );
        return (NextAction::Requeue, why);
    }
    // The scheduler may signal one trainer alone: the coordinator then drains all ranks, and all report it.
    if coordinator == LEFT && matches!(trainers, FINISHED | LEFT) {
        let why = format!("left in order at step {} ({codes})", ended.step);
        return (NextAction::Requeue, why);
    }
    let failures = match ended.step > ended.failed_at {
        true => 1,
        false => ended.failures + 1,
    };
    let (step, most) = (ended.step, ended.max_restarts);
    if failures > most {
        let why = format!(
            "failed {failures} times without a step after step {step}, the limit is {most} ({codes})"
        );
        return (NextAction::GiveUp, why);
    }
    let why =
        format!("failed at step {step} ({codes}); failure {failures} of {most} without progress");
    (NextAction::Again, why)
}

/// An exit code for people: with the signal, where one ended the process.
fn code(code: i32) -> String {
    match code - 128 {
        signal @ 1..=64 => format!("{code} (signal {signal})"),
        _ => code.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(coordinator: i32, trainers: i32) -> Ended {
        Ended {
            coordinator,
            trainers,
            noticed: None,
            step: 10,
            failures: 0,
            failed_at: 10,
            max_restarts: 2,
        }
    }

    #[test]
    fn each_end_has_its_consequence() {
        let verdict = |ended: &Ended| next(ended).0;
        assert_eq!(verdict(&ended(0, 0)), NextAction::Finished);
        // The run lost one trainer, and the others finished it.
        assert_eq!(verdict(&ended(0, 137)), NextAction::Finished);
        assert_eq!(verdict(&ended(85, 85)), NextAction::Requeue);
        assert_eq!(verdict(&ended(2, 143)), NextAction::ConfigError);
        assert_eq!(verdict(&ended(85, 2)), NextAction::ConfigError);
        // All trainers died, so the batch script asked the coordinator to end.
        assert_eq!(verdict(&ended(85, 139)), NextAction::Again);
        assert_eq!(verdict(&ended(1, 143)), NextAction::Again);
        let killed_at_the_end = Ended {
            noticed: Some("TERM".to_owned()),
            ..ended(137, 137)
        };
        assert_eq!(verdict(&killed_at_the_end), NextAction::Requeue);
        let why = next(&killed_at_the_end).1;
        assert!(why.contains("preempted or cancelled (TERM)"), "{why}");
        assert!(why.contains("trainers 137 (signal 9)"), "{why}");
    }

    #[test]
    fn gives_up_after_failures_without_progress_only() {
        let after = |failures, step| {
            next(&Ended {
                failures,
                step,
                ..ended(1, 1)
            })
        };
        assert_eq!(after(0, 10).0, NextAction::Again);
        assert_eq!(after(1, 10).0, NextAction::Again);
        let (verdict, why) = after(2, 10);
        assert_eq!(verdict, NextAction::GiveUp);
        assert!(
            why.contains("3 times") && why.contains("limit is 2"),
            "{why}"
        );
        assert_eq!(after(2, 11).0, NextAction::Again);
    }
}
