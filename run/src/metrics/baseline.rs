//! The best score without looking at a picture: one constant label for every sample.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use fovea_task::{Kind, Label, Target};
use serde::{Deserialize, Serialize};

use super::compute::set_overlap;
use super::table::{bad_label, set_of};
use super::{Error, MetricName, Result, Table, mean_defined, ratio};

/// What constant predictions reach on a set of labels. A model has learned something when it beats
/// these clearly.
///
/// `classes` and `f1_micro` belong to the set of classes with the best micro-F1. The other
/// threshold scores are each the best that any constant set reaches on that score, which makes
/// them the harder bar (most patches are healthy, so "always healthy" has a high subset accuracy).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The label that is predicted for every sample.
    pub classes: Label,
    /// Its micro-F1: the best of all constant predictions.
    pub f1_micro: f64,
    /// The macro-F1 of that label.
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

/// Most classes of a target for which every set of classes is tried as a constant.
const ALL_SETS: usize = 8;

/// The baseline of the labelled rows of `table` (probabilities are not looked at), in any order.
///
/// Beyond 8 classes, subset accuracy, IoU and Dice are the best of the sets that occur and of the most frequent 0, 1, ..
/// classes, instead of all sets.
///
/// # Errors
/// No labelled rows, or a label that is none of the target's.
pub fn best_constant(target: &Target, table: &Table) -> Result<Baseline> {
    let mut histogram: BTreeMap<u64, u64> = BTreeMap::new();
    for (&id, &label) in table.ids.iter().zip(&table.labels) {
        if !target.allows(label) {
            return Err(bad_label(target, id, label));
        }
        if label.is_known() {
            *histogram.entry(set_of(target, label)).or_default() += 1;
        }
    }
    let samples: u64 = histogram.values().sum();
    let count = |class: usize| -> u64 {
        let with = histogram.iter().filter(|(set, _)| *set >> class & 1 == 1);
        with.map(|(_, n)| n).sum()
    };
    let positives: Vec<u64> = (0..target.classes.len()).map(count).collect();
    let baseline = best_constant_from_counts(target, &positives, samples)?;
    let guesses: Vec<u64> = match target.classes.len() {
        classes if target.kind == Kind::AnyOf && classes <= ALL_SETS => (0..1 << classes).collect(),
        _ => {
            let frequent = frequent_sets(target, &positives);
            histogram.keys().copied().chain(frequent).collect()
        }
    };
    let best = |score: &dyn Fn(u64, u64) -> f64| {
        let mean = |guess: &u64| {
            let sum: f64 = histogram
                .iter()
                .map(|(&truth, &n)| n as f64 * score(truth, *guess))
                .sum();
            sum / samples as f64
        };
        guesses.iter().map(mean).fold(0.0, f64::max)
    };
    Ok(Baseline {
        subset_acc: Some(best(&|truth, guess| f64::from(u8::from(truth == guess)))),
        iou: Some(best(&|truth, guess| set_overlap(truth, guess).0)),
        dice: Some(best(&|truth, guess| set_overlap(truth, guess).1)),
        ..baseline
    })
}

/// The part of the baseline that follows from the number of positives per class among `samples`
/// (a row of `metrics.csv` has them); what needs whole label sets is `None`.
///
/// # Errors
/// No samples.
pub fn best_constant_from_counts(
    target: &Target,
    positives: &[u64],
    samples: u64,
) -> Result<Baseline> {
    if samples == 0 {
        return Err(Error::Empty);
    }
    let classes = positives.len();
    let total: u64 = positives.iter().sum();
    let of = |set: u64| (0..classes).filter(move |class| set >> class & 1 == 1);
    let f1_of = |set: u64| {
        let hits: u64 = of(set).map(|class| positives[class]).sum();
        ratio(2 * hits, u64::from(set.count_ones()) * samples + total)
    };
    // Strictly better only: of equal sets the smallest stays.
    let mut sets = frequent_sets(target, positives);
    sets.sort_unstable();
    let best = |best, set| if f1_of(set) > f1_of(best) { set } else { best };
    let set = sets.into_iter().reduce(best).unwrap_or_default();
    let class_f1 = |class| ratio(2 * positives[class], samples + positives[class]);
    let wrong: u64 = match target.kind {
        Kind::AnyOf => {
            let fewer = |&p: &u64| p.min(samples.saturating_sub(p));
            positives.iter().map(fewer).sum()
        }
        Kind::OneOf => samples - positives.iter().max().copied().unwrap_or(0).min(samples),
    };
    let answers = match target.kind {
        Kind::AnyOf => samples as f64 * classes as f64,
        Kind::OneOf => samples as f64,
    };
    Ok(Baseline {
        classes: match target.kind {
            Kind::AnyOf => Label(set),
            Kind::OneOf => Label(u64::from(set.trailing_zeros())),
        },
        f1_micro: f1_of(set),
        f1_macro: of(set).map(class_f1).sum::<f64>() / classes as f64,
        hamming: wrong as f64 / answers,
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

/// The constants among which the best micro-F1 is: of each size the set of the most frequent classes (of equally frequent
/// ones the first), since F1 depends on the size and on the hits alone. With one class per sample, that of one class.
fn frequent_sets(target: &Target, positives: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..positives.len()).collect();
    order.sort_by_key(|&class| Reverse(positives[class]));
    let growing = order.iter().scan(0u64, |set, class| {
        *set |= 1 << class;
        Some(*set)
    });
    match target.kind {
        Kind::AnyOf => std::iter::once(0).chain(growing).collect(),
        Kind::OneOf => growing.take(1).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compute;
    use crate::metrics::fixture::{grade, lesions};
    use proptest::prelude::*;

    /// Samples of these labels, all with the same probabilities.
    fn labelled(labels: &[u8], probs: [f32; 4]) -> Table {
        let rows = labels.iter().enumerate();
        let rows: Vec<_> = rows.map(|(i, &label)| (i as u64, label, probs)).collect();
        Table::of(&rows)
    }

    proptest! {
        /// Every constant prediction is scored by `compute`; the baseline must be the best of them.
        #[test]
        fn no_constant_is_better(labels in prop::collection::vec(0u8..16, 1..40)) {
            let baseline = best_constant(&lesions(), &labelled(&labels, [0.0; 4])).unwrap();
            let scores: Vec<_> = (0u8..16).map(|set| {
                let probs = std::array::from_fn(|c| f32::from(set >> c & 1));
                compute(&lesions(), &labelled(&labels, probs), &[0.5; 4], 0.0).unwrap()
            }).collect();
            let max = |f: &dyn Fn(&crate::metrics::Metrics) -> f64| scores.iter().map(f).fold(0.0, f64::max);
            prop_assert_eq!(baseline.f1_micro, max(&|m| m.f1_micro));
            prop_assert!((scores[baseline.classes.0 as usize].f1_micro - baseline.f1_micro).abs() < 1e-12);
            prop_assert!((scores[baseline.classes.0 as usize].f1_macro - baseline.f1_macro).abs() < 1e-12);
            prop_assert!((baseline.hamming - (1.0 - max(&|m| 1.0 - m.hamming))).abs() < 1e-12);
            prop_assert!((baseline.subset_acc.unwrap() - max(&|m| m.subset_acc)).abs() < 1e-12);
            prop_assert!((baseline.iou.unwrap() - max(&|m| m.iou)).abs() < 1e-12);
            prop_assert!((baseline.dice.unwrap() - max(&|m| m.dice)).abs() < 1e-12);
            let prevalence = (baseline.mean_ap.unwrap_or(-1.0), scores[0].mean_ap.unwrap_or(-1.0));
            prop_assert!((prevalence.0 - prevalence.1).abs() < 1e-12);
        }

        /// The same where a sample has one class: a constant is one of them.
        #[test]
        fn no_class_is_a_better_constant(labels in prop::collection::vec(0u8..4, 1..40)) {
            let target = grade(4);
            let baseline = best_constant(&target, &labelled(&labels, [0.0; 4])).unwrap();
            let scores: Vec<_> = (0..4).map(|class| {
                let probs = std::array::from_fn(|c| f32::from(u8::from(c == class)));
                compute(&target, &labelled(&labels, probs), &[], 0.0).unwrap()
            }).collect();
            let max = |f: &dyn Fn(&crate::metrics::Metrics) -> f64| scores.iter().map(f).fold(0.0, f64::max);
            let it = &scores[baseline.classes.0 as usize];
            prop_assert_eq!(baseline.f1_micro, max(&|m| m.f1_micro));
            prop_assert_eq!((baseline.f1_micro, baseline.f1_macro), (it.f1_micro, it.f1_macro));
            prop_assert_eq!(baseline.hamming, it.hamming);
            for (best, of) in [
                (baseline.subset_acc, (|m| m.subset_acc) as fn(&crate::metrics::Metrics) -> f64),
                (baseline.iou, |m| m.iou),
                (baseline.dice, |m| m.dice),
            ] {
                prop_assert!((best.unwrap() - max(&of)).abs() < 1e-12);
            }
        }

        /// Micro-F1 by the most frequent classes alone is that of all sets, and of equal ones the smallest is named.
        #[test]
        fn frequent_classes_are_enough(positives in prop::collection::vec(0u64..12, 1..7), more in 0u64..6) {
            let mut target = lesions();
            let class = target.classes[0].clone();
            target.classes = vec![class; positives.len()];
            let samples = positives.iter().max().unwrap() + more + 1;
            let baseline = best_constant_from_counts(&target, &positives, samples).unwrap();
            let total: u64 = positives.iter().sum();
            let f1 = |set: u64| {
                let hits: u64 = (0..positives.len()).filter(|c| set >> c & 1 == 1).map(|c| positives[c]).sum();
                ratio(2 * hits, u64::from(set.count_ones()) * samples + total)
            };
            let best = (0..1u64 << positives.len()).fold(0, |best, set| if f1(set) > f1(best) { set } else { best });
            prop_assert_eq!((baseline.classes, baseline.f1_micro), (Label(best), f1(best)));
        }
    }

    #[test]
    fn more_classes_than_sets_can_be_tried() {
        let mut target = lesions();
        target.classes = (0..40)
            .map(|c| fovea_task::Class {
                name: format!("c{c}"),
                ..target.classes[0].clone()
            })
            .collect();
        let mut table = Table::default();
        for (id, label) in [1u64 << 39, 1 << 39, 3, 1 << 39 | 1]
            .into_iter()
            .enumerate()
        {
            table.push(id as u64, Label(label), &[0.0; 40]);
        }
        let baseline = best_constant(&target, &table).unwrap();
        assert_eq!(baseline.classes, Label(1 << 39 | 1));
        assert_eq!(
            (baseline.subset_acc, baseline.iou),
            (Some(0.5), Some(0.625))
        );
    }

    #[test]
    fn rare_classes_are_left_out() {
        // 100 samples: HE in 60, SE in 2.
        let baseline = best_constant_from_counts(&lesions(), &[0, 60, 0, 2], 100).unwrap();
        assert_eq!(baseline.classes, Label(0b0010));
        assert_eq!(baseline.f1_micro, 120.0 / 162.0);
        assert_eq!(baseline.hamming, 42.0 / 400.0);
        assert_eq!(baseline.mean_ap, Some(0.31));
    }

    #[test]
    fn empty_and_all_healthy() {
        assert!(matches!(
            best_constant(&lesions(), &Table::default()),
            Err(Error::Empty)
        ));
        let healthy = best_constant(&lesions(), &labelled(&[0, 0, 0], [0.0; 4])).unwrap();
        assert_eq!(
            (healthy.classes, healthy.f1_micro, healthy.mean_ap),
            (Label(0), 0.0, None)
        );
        assert_eq!(healthy.subset_acc, Some(1.0));
    }
}
