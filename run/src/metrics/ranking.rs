//! Samples of one class in order of falling score, ties grouped: all that ROC and precision-recall
//! areas need, as integer counts.

use std::cmp::Ordering;

/// Positives and negatives that share one score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tie {
    pub(super) positives: u64,
    pub(super) negatives: u64,
}

/// One class's samples grouped by distinct score, highest score first.
#[derive(Clone, Debug)]
pub struct Ranking {
    pub(super) ties: Vec<Tie>,
    pub(super) positives: u64,
    pub(super) negatives: u64,
}

impl Ranking {
    /// Groups `(score, is_positive)` pairs. Scores must not be NaN (`compute` has checked).
    #[must_use]
    pub fn new(mut scored: Vec<(f32, bool)>) -> Self {
        // `partial_cmp` and not `total_cmp`: 0.0 and -0.0 are the same score.
        scored.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        let ties: Vec<Tie> = scored
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| {
                let positives = group.iter().filter(|s| s.1).count() as u64;
                Tie {
                    positives,
                    negatives: group.len() as u64 - positives,
                }
            })
            .collect();
        Self {
            positives: ties.iter().map(|t| t.positives).sum(),
            negatives: ties.iter().map(|t| t.negatives).sum(),
            ties,
        }
    }

    /// Area under the ROC curve: `U / (P * N)`, ties counted half. `None` unless both kinds exist.
    #[must_use]
    pub fn auroc(&self) -> Option<f64> {
        if self.positives == 0 || self.negatives == 0 {
            return None;
        }
        // Twice U in integers (u128: P*N of two u32-sized counts already fills a u64).
        let mut negatives_below = u128::from(self.negatives);
        let mut twice_u = 0u128;
        for tie in &self.ties {
            let (positives, negatives) = (u128::from(tie.positives), u128::from(tie.negatives));
            negatives_below -= negatives;
            twice_u += positives * (2 * negatives_below + negatives);
        }
        let pairs = u128::from(self.positives) * u128::from(self.negatives);
        Some(twice_u as f64 / (2 * pairs) as f64)
    }

    /// `sum (R_n - R_(n-1)) * P_n` over distinct scores, as `sklearn.metrics.average_precision_score`.
    /// `None` without positives.
    #[must_use]
    pub fn average_precision(&self) -> Option<f64> {
        if self.positives == 0 {
            return None;
        }
        let (mut tp, mut predicted, mut sum) = (0u64, 0u64, 0f64);
        for tie in &self.ties {
            tp += tie.positives;
            predicted += tie.positives + tie.negatives;
            sum += tie.positives as f64 * (tp as f64 / predicted as f64);
        }
        Some(sum / self.positives as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfect_reversed_and_constant_scores() {
        let ranked = |scores: &[(f32, bool)]| Ranking::new(scores.to_vec());
        let perfect = ranked(&[(0.1, false), (0.9, true), (0.2, false), (0.8, true)]);
        assert_eq!(
            (perfect.auroc(), perfect.average_precision()),
            (Some(1.0), Some(1.0))
        );
        let reversed = ranked(&[(0.9, false), (0.1, true)]);
        assert_eq!(
            (reversed.auroc(), reversed.average_precision()),
            (Some(0.0), Some(0.5))
        );
        let constant = ranked(&[(0.5, true), (0.5, false), (0.5, false), (0.5, false)]);
        assert_eq!(
            (constant.auroc(), constant.average_precision()),
            (Some(0.5), Some(0.25))
        );
    }

    #[test]
    fn undefined_areas_are_none() {
        let positive_only = Ranking::new(vec![(0.3, true), (0.6, true)]);
        assert_eq!(positive_only.auroc(), None);
        assert_eq!(positive_only.average_precision(), Some(1.0));
        let negative_only = Ranking::new(vec![(0.3, false)]);
        assert_eq!(
            (negative_only.auroc(), negative_only.average_precision()),
            (None, None)
        );
        let empty = Ranking::new(vec![]);
        assert_eq!((empty.auroc(), empty.average_precision()), (None, None));
    }

    #[test]
    fn both_zeros_are_one_score() {
        let ranking = Ranking::new(vec![(0.0, true), (-0.0, false)]);
        assert_eq!(ranking.auroc(), Some(0.5));
    }
}
