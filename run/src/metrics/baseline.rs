//! The best score without looking at a picture: one constant label set for every sample.

use serde::{Deserialize, Serialize};

use super::compute::set_overlap;
use super::{CLASS_COUNT, Error, LABEL_MASK, MetricName, Result, Scored, mean_defined, ratio};

/// What constant predictions reach on a set of labels. A model has learned something when it beats
/// these clearly.
///
/// `classes` and `f1_micro` belong to the set of classes with the best micro-F1. The other
/// threshold scores are each the best that any constant set reaches on that score, which makes
/// them the harder bar (most patches are healthy, so "always healthy" has a high subset accuracy).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Label byte that is predicted for every sample.
    pub classes: u8,
    /// Its micro-F1: the best of the 16 constant predictions.
    pub f1_micro: f64,
    /// Its macro-F1.
    pub f1_macro: f64,
    /// The lowest Hamming loss of any constant prediction.
    pub hamming: f64,
    /// 0.5: a constant score ranks nothing.
    pub mean_auroc: f64,
    /// Mean prevalence of the classes that occur: the average precision of a constant score.
    /// `None` when no class occurs.
    pub mean_ap: Option<f64>,
    /// The highest subset accuracy of any constant; `None` when only class counts are known.
    pub subset_acc: Option<f64>,
    /// The highest sample-averaged IoU of any constant; `None` when only class counts are known.
    pub iou: Option<f64>,
    /// The highest sample-averaged Dice of any constant; `None` when only class counts are known.
    pub dice: Option<f64>,
    /// Samples the baseline is for.
    pub samples: u64,
}

impl Baseline {
    /// The constant's score under the name a configuration uses; `None` where it has none.
    #[must_use]
    pub fn get(&self, name: MetricName) -> Option<f64> {
        match name {
            MetricName::F1Micro => Some(self.f1_micro),
            MetricName::F1Macro => Some(self.f1_macro),
            MetricName::MeanAuroc => Some(self.mean_auroc),
            MetricName::MeanAp => self.mean_ap,
            MetricName::Hamming => Some(self.hamming),
            MetricName::SubsetAcc => self.subset_acc,
            MetricName::Iou => self.iou,
            MetricName::Dice => self.dice,
            MetricName::PearsonR | MetricName::Loss => None,
        }
    }
}

/// The baseline of labelled rows (probabilities are not looked at), in any order.
///
/// # Errors
/// No rows, or a label beyond the four classes.
pub fn best_constant(rows: &[Scored]) -> Result<Baseline> {
    let mut histogram = [0u64; 1 << CLASS_COUNT];
    for row in rows {
        if row.label & !LABEL_MASK != 0 {
            return Err(Error::BadLabel {
                id: row.id,
                label: row.label,
            });
        }
        histogram[usize::from(row.label)] += 1;
    }
    let positives = std::array::from_fn(|class| {
        (0..histogram.len())
            .filter(|label| label >> class & 1 == 1)
            .map(|label| histogram[label])
            .sum()
    });
    let baseline = best_constant_from_counts(positives, rows.len() as u64)?;
    let best = |score: &dyn Fn(u8, u8) -> f64| {
        let mean = |guess: u8| {
            let sum: f64 = (0u8..=LABEL_MASK)
                .map(|label| histogram[usize::from(label)] as f64 * score(label, guess))
                .sum();
            sum / rows.len() as f64
        };
        (0u8..=LABEL_MASK).map(mean).fold(0.0, f64::max)
    };
    Ok(Baseline {
        subset_acc: Some(best(&|label, guess| f64::from(u8::from(label == guess)))),
        iou: Some(best(&|label, guess| set_overlap(label, guess).0)),
        dice: Some(best(&|label, guess| set_overlap(label, guess).1)),
        ..baseline
    })
}

/// The part of the baseline that follows from the number of positives per class among `samples`
/// (a row of `metrics.csv` has them); what needs whole label sets is `None`.
///
/// # Errors
/// No samples.
pub fn best_constant_from_counts(positives: [u64; CLASS_COUNT], samples: u64) -> Result<Baseline> {
    if samples == 0 {
        return Err(Error::Empty);
    }
    let total: u64 = positives.iter().sum();
    let f1_of = |set: u8| {
        let hits: u64 = (0..CLASS_COUNT)
            .filter(|c| set >> c & 1 == 1)
            .map(|c| positives[c])
            .sum();
        ratio(2 * hits, u64::from(set.count_ones()) * samples + total)
    };
    // Strictly better only: of equal sets the one with the smaller byte stays.
    let classes = (0u8..=LABEL_MASK).fold(
        0,
        |best, set| if f1_of(set) > f1_of(best) { set } else { best },
    );
    let class_f1 = |c: usize| {
        if classes >> c & 1 == 1 {
            ratio(2 * positives[c], samples + positives[c])
        } else {
            0.0
        }
    };
    let wrong_bits: u64 = positives
        .iter()
        .map(|&p| p.min(samples.saturating_sub(p)))
        .sum();
    Ok(Baseline {
        classes,
        f1_micro: f1_of(classes),
        f1_macro: (0..CLASS_COUNT).map(class_f1).sum::<f64>() / CLASS_COUNT as f64,
        hamming: wrong_bits as f64 / (samples as f64 * CLASS_COUNT as f64),
        mean_auroc: 0.5,
        mean_ap: mean_defined(
            positives
                .iter()
                .map(|&p| (p > 0).then(|| ratio(p, samples))),
        ),
        subset_acc: None,
        iou: None,
        dice: None,
        samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compute;
    use proptest::prelude::*;

    fn labelled(labels: &[u8]) -> Vec<Scored> {
        labels
            .iter()
            .enumerate()
            .map(|(i, &label)| Scored {
                id: i as u64,
                label,
                probs: [0.0; 4],
            })
            .collect()
    }

    proptest! {
        /// Every constant prediction is scored by `compute`; the baseline must be the best of them.
        #[test]
        fn no_constant_is_better(labels in prop::collection::vec(0u8..16, 1..40)) {
            let baseline = best_constant(&labelled(&labels)).unwrap();
            let scores: Vec<_> = (0u8..16).map(|set| {
                let probs = std::array::from_fn(|c| f32::from(set >> c & 1));
                let rows: Vec<_> = labelled(&labels).into_iter().map(|r| Scored { probs, ..r }).collect();
                compute(&rows, [0.5; 4], 0.0).unwrap()
            }).collect();
            let max = |f: &dyn Fn(&crate::metrics::Metrics) -> f64| scores.iter().map(f).fold(0.0, f64::max);
            prop_assert_eq!(baseline.f1_micro, max(&|m| m.f1_micro));
            prop_assert!((scores[usize::from(baseline.classes)].f1_micro - baseline.f1_micro).abs() < 1e-12);
            prop_assert!((scores[usize::from(baseline.classes)].f1_macro - baseline.f1_macro).abs() < 1e-12);
            prop_assert!((baseline.hamming - (1.0 - max(&|m| 1.0 - m.hamming))).abs() < 1e-12);
            prop_assert!((baseline.subset_acc.unwrap() - max(&|m| m.subset_acc)).abs() < 1e-12);
            prop_assert!((baseline.iou.unwrap() - max(&|m| m.iou)).abs() < 1e-12);
            prop_assert!((baseline.dice.unwrap() - max(&|m| m.dice)).abs() < 1e-12);
            let prevalence = (baseline.mean_ap.unwrap_or(-1.0), scores[0].mean_ap.unwrap_or(-1.0));
            prop_assert!((prevalence.0 - prevalence.1).abs() < 1e-12);
        }
    }

    #[test]
    fn rare_classes_are_left_out() {
        // 100 samples: HE in 60, SE in 2.
        let baseline = best_constant_from_counts([0, 60, 0, 2], 100).unwrap();
        assert_eq!(baseline.classes, 0b0010);
        assert_eq!(baseline.f1_micro, 120.0 / 162.0);
        assert_eq!(baseline.hamming, 42.0 / 400.0);
        assert_eq!(baseline.mean_ap, Some(0.31));
    }

    #[test]
    fn empty_and_all_healthy() {
        assert!(matches!(best_constant(&[]), Err(Error::Empty)));
        let healthy = best_constant(&labelled(&[0, 0, 0])).unwrap();
        assert_eq!(
            (healthy.classes, healthy.f1_micro, healthy.mean_ap),
            (0, 0.0, None)
        );
        assert_eq!(healthy.subset_acc, Some(1.0));
    }
}
