//! Throughput and time left, from commits alone. Pure: time is an argument.

use std::collections::VecDeque;

/// Steps that the throughput is taken over.
const WINDOW: usize = 64;

/// How fast samples are committed.
#[derive(Clone, Debug, Default)]
pub struct CommitRate {
    /// Epoch and time of the newest commit.
    last: Option<(u32, u64)>,
    /// (milliseconds, samples) of the newest steps.
    steps: VecDeque<(u64, u64)>,
}

impl CommitRate {
    /// A step of `epoch` with `samples` was committed. The time to the first commit of an epoch is
    /// not counted: an evaluation lies in it.
    pub fn commit(&mut self, epoch: u32, samples: u64, now_ms: u64) {
        if let Some((last_epoch, last_ms)) = self.last
            && last_epoch == epoch
        {
            if self.steps.len() == WINDOW {
                self.steps.pop_front();
            }
            self.steps
                .push_back((now_ms.saturating_sub(last_ms), samples));
        }
        self.last = Some((epoch, now_ms));
    }

    /// Forgets the time of the newest commit, as when training starts again.
    pub fn restart(&mut self) {
        self.last = None;
    }

    /// Samples per second over the last steps, 0 while unknown.
    pub fn samples_per_s(&self) -> f64 {
        let (ms, samples) = self
            .steps
            .iter()
            .fold((0, 0), |(ms, n), step| (ms + step.0, n + step.1));
        if ms == 0 {
            return 0.0;
        }
        samples as f64 * 1000.0 / ms as f64
    }

    /// The median time from one commit to the next, in milliseconds; `None` while unknown.
    pub fn median_step_ms(&self) -> Option<u64> {
        let mut times: Vec<u64> = self.steps.iter().map(|step| step.0).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// Seconds that `samples` more take; `None` while the throughput is unknown.
    pub fn eta_s(&self, samples: u64) -> Option<f64> {
        let rate = self.samples_per_s();
        (rate > 0.0).then(|| samples as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_leaves_out_evaluations_and_forgets_old_steps() {
        let mut progress = CommitRate::default();
        assert_eq!(progress.eta_s(10), None);
        progress.commit(0, 100, 1_000);
        assert_eq!(progress.samples_per_s(), 0.0);
        progress.commit(0, 100, 1_500);
        assert_eq!(progress.samples_per_s(), 200.0);
        // An hour of evaluation between two epochs.
        progress.commit(1, 100, 3_601_500);
        progress.commit(1, 100, 3_602_000);
        assert_eq!(progress.samples_per_s(), 200.0);
        assert_eq!(progress.eta_s(400), Some(2.0));
        assert_eq!(progress.median_step_ms(), Some(500));
        for i in 1..=WINDOW as u64 {
            progress.commit(1, 100, 3_602_000 + i * 100);
        }
        assert_eq!(progress.samples_per_s(), 1000.0);
    }
}
