//! Scores of counts that were added up, where the rows themselves are not kept.

use fovea_task::{Kind, Target};

use super::compute::agreement;
use super::{ClassMetrics, Error, Metrics, Result};

/// Counts of a set of labelled samples, from which every score at a threshold follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetCounts {
    /// Of samples with any number of classes.
    AnyOf {
        /// True positives, false positives and false negatives of each class, `[C]`.
        per_class: Vec<[u64; 3]>,
        /// Samples by how truth and prediction overlap; every sample is in one of them.
        overlap: Vec<Overlap>,
    },
    /// Of samples with exactly one class: their number by true class (row) and predicted class (column), `[C][C]`.
    OneOf(Vec<Vec<u64>>),
}

/// Samples whose true and predicted sets of classes overlap in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// How many classes truth or prediction has.
    pub either: u32,
    /// How many classes both have, at most `either`.
    pub both: u32,
    /// Number of these samples.
    pub samples: u64,
}

impl SetCounts {
    fn samples(&self) -> u64 {
        match self {
            Self::AnyOf { overlap, .. } => overlap.iter().map(|it| it.samples).sum(),
            Self::OneOf(confusion) => confusion.iter().flatten().sum(),
        }
    }

    fn per_class(&self, samples: u64) -> Vec<ClassMetrics> {
        let of = |[tp, fp, fn_]: [u64; 3]| {
            let tn = samples.saturating_sub(tp + fp + fn_);
            ClassMetrics::from_counts(tp, fp, fn_, tn)
        };
        match self {
            Self::AnyOf { per_class, .. } => per_class.iter().map(|&counts| of(counts)).collect(),
            Self::OneOf(confusion) => (0..confusion.len())
                .map(|class| {
                    let right = confusion[class].get(class).copied().unwrap_or(0);
                    let truth: u64 = confusion[class].iter().sum();
                    let guess: u64 = confusion.iter().filter_map(|row| row.get(class)).sum();
                    of([right, guess - right, truth - right])
                })
                .collect(),
        }
    }
}

impl Metrics {
    /// The scores of [`super::compute`] as far as they follow from counts: all at the threshold, but neither areas nor
    /// the correlation, which are `None`. `loss` is the mean loss that the caller measured.
    ///
    /// # Errors
    /// No samples, counts of another kind or number of classes than the target's, or a loss that is not finite.
    pub fn from_counts(target: &Target, counts: &SetCounts, loss: f64) -> Result<Self> {
        if !loss.is_finite() {
            return Err(Error::BadLoss(loss));
        }
        let samples = counts.samples();
        let per_class = counts.per_class(samples);
        let (given, classes) = (per_class.len(), target.classes.len());
        let is_kind = matches!(counts, SetCounts::AnyOf { .. }) == (target.kind == Kind::AnyOf);
        if given != classes || !is_kind {
            return Err(Error::Foreign {
                target: target.name.clone(),
                classes: given,
            });
        }
        if samples == 0 {
            return Err(Error::Empty);
        }
        let sum = |count: fn(&ClassMetrics) -> u64| per_class.iter().map(count).sum::<u64>();
        let (tp, fp, fn_) = (sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_));
        let all = samples as f64;
        let (hamming, [subset_acc, iou, dice], agreement) = match counts {
            SetCounts::AnyOf { overlap, .. } => {
                let hamming = (fp + fn_) as f64 / (all * classes as f64);
                (hamming, overlaps(overlap).map(|sum| sum / all), None)
            }
            SetCounts::OneOf(confusion) => {
                let right = tp as f64 / all;
                let agreement = agreement(confusion.clone());
                (fn_ as f64 / all, [right; 3], Some(agreement))
            }
        };
        Ok(Self {
            f1_micro: ClassMetrics::from_counts(tp, fp, fn_, 0).f1,
            f1_macro: per_class.iter().map(|c| c.f1).sum::<f64>() / classes as f64,
            hamming,
            subset_acc,
            iou,
            dice,
            pearson_r: None,
            loss,
            per_class,
            mean_auroc: None,
            mean_ap: None,
            samples,
            agreement,
        })
    }
}

/// Exact matches, Jaccard index and Dice coefficient, each summed over samples; two empty sets agree fully.
fn overlaps(all: &[Overlap]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for it in all {
        let (samples, either, both) = (it.samples as f64, f64::from(it.either), f64::from(it.both));
        let scores = match it.either {
            0 => [1.0; 3],
            _ => [
                f64::from(u8::from(it.either == it.both)),
                both / either,
                2.0 * both / (both + either),
            ],
        };
        for (sum, score) in sums.iter_mut().zip(scores) {
            *sum += samples * score;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fovea_task::Label;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::fixture::{grade, lesions};
    use crate::metrics::{Table, compute};

    /// All scores but the areas and the correlation agree; sums of fractions are added in another order.
    fn agree(got: &Metrics, want: &Metrics) {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{got:?}\n{want:?}");
        close(got.f1_micro, want.f1_micro);
        close(got.f1_macro, want.f1_macro);
        close(got.hamming, want.hamming);
        close(got.subset_acc, want.subset_acc);
        close(got.iou, want.iou);
        close(got.dice, want.dice);
        assert_eq!((got.loss, got.samples), (want.loss, want.samples));
        assert_eq!(
            (got.pearson_r, got.mean_auroc, got.mean_ap),
            (None, None, None)
        );
        assert_eq!(got.agreement, want.agreement);
        assert_eq!(got.per_class.len(), want.per_class.len());
        for (got, want) in got.per_class.iter().zip(&want.per_class) {
            let without_areas = ClassMetrics {
                auroc: None,
                ap: None,
                ..*want
            };
            assert_eq!(*got, without_areas);
        }
    }

    proptest! {
        #[test]
        fn counts_score_as_their_rows_do(rows in prop::collection::vec((0u64..16, 0u64..16), 1..60)) {
            let target = lesions();
            let mut table = Table::default();
            let mut per_class = vec![[0u64; 3]; 4];
            let mut overlap = BTreeMap::new();
            for (id, &(truth, guess)) in rows.iter().enumerate() {
                let scores: Vec<f32> = (0..4).map(|c| (guess >> c & 1) as f32).collect();
                table.push(id as u64, Label(truth), &scores);
                for (c, counts) in per_class.iter_mut().enumerate() {
                    match (truth >> c & 1, guess >> c & 1) {
                        (1, 1) => counts[0] += 1,
                        (0, 1) => counts[1] += 1,
                        (1, 0) => counts[2] += 1,
                        _ => {}
                    }
                }
                let how = ((truth | guess).count_ones(), (truth & guess).count_ones());
                *overlap.entry(how).or_insert(0u64) += 1;
            }
            let overlap = overlap.into_iter();
            let overlap = overlap.map(|((either, both), samples)| Overlap { either, both, samples });
            let counts = SetCounts::AnyOf { per_class, overlap: overlap.collect() };
            let want = compute(&target, &table, &[0.5; 4], 0.25).unwrap();
            agree(&Metrics::from_counts(&target, &counts, 0.25).unwrap(), &want);
        }

        #[test]
        fn confusion_scores_as_its_rows_do(rows in prop::collection::vec((0u64..3, 0u64..3), 1..60)) {
            let target = grade(3);
            let mut table = Table::default();
            let mut confusion = vec![vec![0u64; 3]; 3];
            for (id, &(truth, guess)) in rows.iter().enumerate() {
                let scores: Vec<f32> = (0..3).map(|c| f32::from(u8::from(c == guess))).collect();
                table.push(id as u64, Label(truth), &scores);
                confusion[truth as usize][guess as usize] += 1;
            }
            let want = compute(&target, &table, &[], 0.5).unwrap();
            let got = Metrics::from_counts(&target, &SetCounts::OneOf(confusion), 0.5).unwrap();
            agree(&got, &want);
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let none = SetCounts::OneOf(vec![vec![0; 3]; 3]);
        let score = |target: &Target, loss| Metrics::from_counts(target, &none, loss).unwrap_err();
        assert!(matches!(score(&grade(3), 0.0), Error::Empty));
        assert!(matches!(score(&grade(3), f64::NAN), Error::BadLoss(_)));
        assert!(matches!(score(&grade(4), 0.0), Error::Foreign { .. }));
        assert!(matches!(score(&lesions(), 0.0), Error::Foreign { .. }));
    }
}
