//! Scores of an epoch's training steps: counts that the steps add up, in place of their rows.
//!
//! A step's counts travel with its gradients through the reduction tree, so every rank knows the sums over all ranks;
//! they join the epoch's when the step is committed, and are part of [`crate::train::Progress`]. So no rank that is
//! lost takes counts along, an attempt that is abandoned counts nowhere, and a resume continues them.

use fovea_kernels::confusion::CountLayout;
use fovea_kernels::loss::Loss;
use fovea_run::metrics::{Metrics, Overlap, SetCounts};
use fovea_task::{Kind, Target, Task};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The counts of a head's logits.
pub(crate) fn layout_of(loss: &dyn Loss) -> CountLayout {
    CountLayout {
        kind: loss.kind(),
        classes: loss.classes(),
    }
}

/// What one head's labelled rows add up to, over all ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadScores {
    /// Summed loss.
    pub loss: f64,
    /// Counts as [`CountLayout`] orders them.
    pub counts: Vec<u64>,
}

/// What the committed steps of an epoch add up to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochScores {
    /// Samples of the epoch that were committed before counting began: 0 unless it was turned on in mid-epoch.
    pub from: u64,
    /// One entry per target of the task, in its order.
    pub heads: Vec<HeadScores>,
}

impl EpochScores {
    /// The scores of an epoch, with those of a step that committed the samples after `cursor`: none without any.
    pub fn after(before: Option<Self>, step: Option<Vec<HeadScores>>, cursor: u64) -> Option<Self> {
        let step = step?;
        let Some(mut scores) = before.filter(|before| before.heads.len() == step.len()) else {
            return Some(Self {
                from: cursor,
                heads: step,
            });
        };
        for (head, more) in scores.heads.iter_mut().zip(step) {
            head.loss += more.loss;
            head.counts.resize(more.counts.len(), 0);
            for (count, more) in head.counts.iter_mut().zip(more.counts) {
                *count += more;
            }
        }
        Some(scores)
    }

    /// Metrics per target, `None` for a target of which no row had a label.
    ///
    /// # Errors
    /// The counts are not those of the task.
    pub fn metrics(&self, task: &Task) -> Result<Vec<Option<Metrics>>> {
        let targets = task.targets();
        if targets.len() != self.heads.len() {
            return Err(Error::Internal(format!(
                "training scores of {} heads, the task has {} targets",
                self.heads.len(),
                targets.len()
            )));
        }
        let heads = targets.iter().zip(&self.heads);
        heads.map(|(target, head)| head.metrics(target)).collect()
    }
}

impl HeadScores {
    fn metrics(&self, target: &Target) -> Result<Option<Metrics>> {
        let layout = CountLayout {
            kind: target.kind,
            classes: target.classes.len(),
        };
        if self.counts.len() != layout.len() {
            return Err(Error::Internal(format!(
                "{} counts of target `{}`, which has {}",
                self.counts.len(),
                target.name,
                layout.len()
            )));
        }
        let counts = set_counts(layout, &self.counts);
        let samples: u64 = match &counts {
            SetCounts::AnyOf { overlap, .. } => overlap.iter().map(|it| it.samples).sum(),
            SetCounts::OneOf(confusion) => confusion.iter().flatten().sum(),
        };
        if samples == 0 {
            return Ok(None);
        }
        let loss = self.loss / samples as f64;
        Ok(Some(Metrics::from_counts(target, &counts, loss)?))
    }
}

/// The counts in the order of [`CountLayout`], by what they mean.
fn set_counts(layout: CountLayout, counts: &[u64]) -> SetCounts {
    let classes = layout.classes;
    match layout.kind {
        Kind::OneOf => SetCounts::OneOf(counts.chunks(classes).map(<[u64]>::to_vec).collect()),
        Kind::AnyOf => {
            let (per_class, overlap) = counts.split_at(3 * classes);
            let of_class = |c: usize| [0, 1, 2].map(|kind| per_class[kind * classes + c]);
            let overlap = overlap
                .iter()
                .enumerate()
                .filter(|(_, samples)| **samples > 0);
            SetCounts::AnyOf {
                per_class: (0..classes).map(of_class).collect(),
                overlap: overlap
                    .map(|(at, &samples)| Overlap {
                        either: (at / (classes + 1)) as u32,
                        both: (at % (classes + 1)) as u32,
                        samples,
                    })
                    .collect(),
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fovea_kernels::confusion::{confusion_counts, lowest_logit};
    use fovea_kernels::loss::sigmoid;
    use fovea_run::metrics::{Table, compute};
    use fovea_task::Label;

    use super::*;

    fn head(layout: CountLayout, logits: &[f32], labels: &[Label], loss: f64) -> HeadScores {
        let mut counts = vec![0.0; layout.len()];
        confusion_counts(layout, logits, labels, lowest_logit(0.3), &mut counts).unwrap();
        HeadScores {
            loss,
            counts: counts.iter().map(|&count| count as u64).collect(),
        }
    }

    /// Steps that are added up score as all their rows in one table.
    #[test]
    fn steps_add_up_to_the_scores_of_their_rows() {
        let task = Task::lesions();
        let target = &task.targets()[0];
        let logits: Vec<f32> = (0..4 * 50u32)
            .map(|k| (k * 37 % 101) as f32 / 20.0 - 3.0)
            .collect();
        let labels: Vec<Label> = (0..50u64)
            .map(|k| match k % 7 {
                3 => Label::UNKNOWN,
                _ => Label(k * 11 % 16),
            })
            .collect();
        let layout = CountLayout {
            kind: Kind::AnyOf,
            classes: 4,
        };
        let mut scores = None;
        for (step, labels) in labels.chunks(8).enumerate() {
            let logits = &logits[32 * step..][..4 * labels.len()];
            let step_scores = head(layout, logits, labels, 0.5);
            let empty = head(layout, &[], &[], 0.0);
            scores = EpochScores::after(scores, Some(vec![step_scores, empty]), 8 * step as u64);
        }
        let scores = scores.unwrap();
        assert_eq!(scores.from, 0);
        let metrics = scores.metrics(&task).unwrap();
        assert_eq!(metrics[1], None, "no row had a label");
        let got = metrics[0].as_ref().unwrap();

        let mut table = Table::default();
        for (id, (logits, &label)) in logits.chunks(4).zip(&labels).enumerate() {
            let probabilities: Vec<f32> = logits.iter().map(|&z| sigmoid(z)).collect();
            table.push(id as u64, label, &probabilities);
        }
        let want = compute(target, &table, &[0.3; 4], got.loss).unwrap();
        assert_eq!(got.samples, 43);
        assert!((got.loss - 3.5 / 43.0).abs() < 1e-15);
        assert_eq!(
            (got.f1_micro, got.subset_acc),
            (want.f1_micro, want.subset_acc)
        );
        assert!((got.iou - want.iou).abs() < 1e-12 && (got.dice - want.dice).abs() < 1e-12);
        for (got, want) in got.per_class.iter().zip(&want.per_class) {
            assert_eq!(
                (got.tp, got.fp, got.fn_, got.tn),
                (want.tp, want.fp, want.fn_, want.tn)
            );
        }
    }

    #[test]
    fn counting_that_begins_late_or_stops_is_known() {
        let one = || {
            Some(vec![HeadScores {
                loss: 1.0,
                counts: vec![1],
            }])
        };
        let late = EpochScores::after(None, one(), 40).unwrap();
        assert_eq!(late.from, 40);
        let more = EpochScores::after(Some(late.clone()), one(), 44).unwrap();
        assert_eq!(
            (more.from, more.heads[0].counts[0], more.heads[0].loss),
            (40, 2, 2.0)
        );
        assert_eq!(EpochScores::after(Some(late.clone()), None, 44), None);
        assert!(late.metrics(&Task::lesions()).is_err());
        let text = serde_json::to_string(&more).unwrap();
        assert_eq!(serde_json::from_str::<EpochScores>(&text).unwrap(), more);
    }
}
