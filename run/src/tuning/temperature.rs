//! The temperature of logits, fitted by the negative log-likelihood of the labels.
//!
//! With `b = 1 / T` the likelihood is convex in b, so Newton's method finds its one minimum; a bracket that shrinks by
//! bisection where Newton leaves it makes the search safe. Sums run in the order of the rows, in f64.

use fovea_task::{Kind, Label, Target};

/// The range of a temperature. A minimum outside it (scores that tell all samples apart, or rank them the wrong way
/// round) is cut off at the border, where probabilities are still far enough from 1 to keep their order in f32.
pub const RANGE: (f64, f64) = (0.1, 10.0);

/// Derivatives of the negative log-likelihood by `1 / T`.
#[derive(Clone, Copy, Default)]
struct Slope {
    first: f64,
    second: f64,
}

impl Slope {
    fn add(self, first: f64, second: f64) -> Self {
        Self {
            first: self.first + first,
            second: self.second + second,
        }
    }
}

/// Temperatures of a target's logits: one per class where a sample has any number of classes, else one for all. `None`
/// stands for a class that the rows say nothing about, because all of them have it, or none has.
///
/// `labels` are known, `[n]`; `logits` are finite, `[n, C]` row-major.
#[must_use]
pub fn fit(target: &Target, labels: &[Label], logits: &[f32]) -> Vec<Option<f64>> {
    let classes = target.classes.len();
    match target.kind {
        Kind::AnyOf => (0..classes)
            .map(|class| {
                let scores = logits.iter().skip(class).step_by(classes);
                let rows = labels.iter().zip(scores);
                let rows = rows.map(|(&label, &z)| (f64::from(z), target.has(label, class)));
                let rows: Vec<(f64, bool)> = rows.collect();
                let both = rows.iter().any(|r| r.1) && rows.iter().any(|r| !r.1);
                both.then(|| minimum(|b| slope_of_sigmoids(&rows, b)))
            })
            .collect(),
        Kind::OneOf => {
            let several = labels.windows(2).any(|pair| pair[0] != pair[1]);
            let fitted = || minimum(|b| slope_of_softmax(labels, logits, classes, b));
            vec![several.then(fitted)]
        }
    }
}

/// Mean negative log-likelihood of the labels, natural logarithm: of all (sample, class) pairs, or of all samples where
/// each has exactly one class. 0 without rows.
#[must_use]
pub fn mean_nll(target: &Target, labels: &[Label], logits: &[f32]) -> f64 {
    let classes = target.classes.len();
    let rows = labels.iter().zip(logits.chunks_exact(classes));
    let sum: f64 = rows
        .map(|(&label, row)| match target.kind {
            Kind::AnyOf => (0..classes)
                .map(|class| {
                    let z = f64::from(row[class]);
                    softplus(if target.has(label, class) { -z } else { z })
                })
                .sum(),
            Kind::OneOf => {
                let row: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
                log_sum_exp(&row) - row.get(label.0 as usize).copied().unwrap_or(0.0)
            }
        })
        .sum();
    let count = match target.kind {
        Kind::AnyOf => labels.len() * classes,
        Kind::OneOf => labels.len(),
    };
    sum / count.max(1) as f64
}

/// `ln(1 + e^x)` without overflow.
#[must_use]
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `ln(sum e^x)` without overflow; minus infinity for an empty row.
#[must_use]
pub fn log_sum_exp(row: &[f64]) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln()
}

/// `softplus(-s b z)` with s = 1 for positives and -1 for others, derived by b.
fn slope_of_sigmoids(rows: &[(f64, bool)], b: f64) -> Slope {
    rows.iter().fold(Slope::default(), |sum, &(z, has)| {
        let z = if has { z } else { -z };
        let wrong = (-softplus(b * z)).exp(); // 1 - sigmoid(b z)
        sum.add(-z * wrong, z * z * wrong * (1.0 - wrong))
    })
}

/// `log_sum_exp(b z) - b z_y`, derived by b: the mean of z under softmax(b z) less `z_y`, and its variance.
fn slope_of_softmax(labels: &[Label], logits: &[f32], classes: usize, b: f64) -> Slope {
    let rows = labels.iter().zip(logits.chunks_exact(classes));
    rows.fold(Slope::default(), |sum, (label, row)| {
        let scaled: Vec<f64> = row.iter().map(|&z| b * f64::from(z)).collect();
        let all = log_sum_exp(&scaled);
        let of = |z: f32, scaled: f64| ((scaled - all).exp(), f64::from(z));
        let weighed: Vec<(f64, f64)> = row.iter().zip(&scaled).map(|(&z, &s)| of(z, s)).collect();
        let mean: f64 = weighed.iter().map(|(p, z)| p * z).sum();
        let variance: f64 = weighed.iter().map(|(p, z)| p * (z - mean).powi(2)).sum();
        let own = row.get(label.0 as usize).map_or(0.0, |&z| f64::from(z));
        sum.add(mean - own, variance)
    })
}

/// The temperature at which the slope is 0, within [`RANGE`]. 1 where the likelihood is flat.
fn minimum(slope: impl Fn(f64) -> Slope) -> f64 {
    let (mut low, mut high) = (1.0 / RANGE.1, 1.0 / RANGE.0);
    let (at_low, at_high) = (slope(low).first, slope(high).first);
    match (at_low >= 0.0, at_high <= 0.0) {
        (true, true) => return 1.0,
        (true, false) => return RANGE.1,
        (false, true) => return RANGE.0,
        (false, false) => {}
    }
    let mut b = 1.0;
    for _ in 0..200 {
        let Slope { first, second } = slope(b);
        match first > 0.0 {
            true => high = b,
            false => low = b,
        }
        let newton = b - first / second;
        let next = match newton > low && newton < high {
            true => newton,
            false => f64::midpoint(low, high),
        };
        if (next - b).abs() <= 1e-14 * b {
            break;
        }
        b = next;
    }
    1.0 / b
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::fixture::grade;

    fn any_of(classes: usize) -> Target {
        Target {
            kind: Kind::AnyOf,
            ..grade(classes)
        }
    }

    #[test]
    fn what_the_labels_leave_open_is_not_fitted() {
        let target = any_of(2);
        let labels = [Label(0b01), Label(0b01)];
        assert_eq!(fit(&target, &labels, &[1.0, -1.0, 2.0, 0.5]), [None, None]);
        assert_eq!(fit(&grade(2), &[Label(1); 2], &[0.0; 4]), [None]);
        assert_eq!(fit(&grade(2), &[], &[]), [None]);
        assert_eq!(mean_nll(&target, &[], &[]), 0.0);
    }

    #[test]
    fn borders_and_flat_likelihoods() {
        let target = any_of(1);
        let labels = [Label(1), Label(0)];
        assert_eq!(
            fit(&target, &labels, &[3.0, -3.0]),
            [Some(RANGE.0)],
            "told apart"
        );
        assert_eq!(
            fit(&target, &labels, &[-3.0, 3.0]),
            [Some(RANGE.1)],
            "reversed"
        );
        assert_eq!(fit(&target, &labels, &[0.0, 0.0]), [Some(1.0)], "flat");
        let labels = [Label(0), Label(1)];
        assert_eq!(
            fit(&grade(2), &labels, &[5.0, 0.0, 0.0, 5.0]),
            [Some(RANGE.0)]
        );
    }

    #[test]
    fn a_known_minimum() {
        // z = 2 is right 3 times of 4: sigmoid(2 / T) = 3/4, so T = 2 / ln 3.
        let labels = [1, 1, 1, 0].map(Label);
        let t = fit(&any_of(1), &labels, &[2.0; 4])[0].unwrap();
        assert!((t - 2.0 / 3f64.ln()).abs() < 1e-12, "{t}");
        // The same as a softmax over two classes.
        let rows = [0.0f32, 2.0].repeat(4);
        let t = fit(&grade(2), &labels, &rows)[0].unwrap();
        assert!((t - 2.0 / 3f64.ln()).abs() < 1e-12, "{t}");
    }

    proptest! {
        #[test]
        fn no_other_temperature_is_likelier(
            rows in prop::collection::vec((prop::array::uniform3(-8f32..8.0), 0u64..3), 2..40),
            other in 0.11f64..9.0,
        ) {
            let logits: Vec<f32> = rows.iter().flat_map(|r| r.0).collect();
            for target in [grade(3), any_of(3)] {
                let labels: Vec<Label> = rows.iter().map(|r| Label(r.1)).collect();
                let fitted = fit(&target, &labels, &logits);
                let scaled = |t: f64| -> Vec<f32> {
                    let of = |c: usize| fitted.get(c).copied().unwrap_or(fitted[0]).map_or(1.0, |_| t);
                    logits.iter().enumerate().map(|(i, z)| (f64::from(*z) / of(i % 3)) as f32).collect()
                };
                let best: Vec<f32> = logits.iter().enumerate().map(|(i, z)| {
                    let t = fitted.get(i % 3).copied().unwrap_or(fitted[0]).unwrap_or(1.0);
                    (f64::from(*z) / t) as f32
                }).collect();
                let (best, other) = (mean_nll(&target, &labels, &best), mean_nll(&target, &labels, &scaled(other)));
                prop_assert!(best <= other + 1e-6, "{} > {}", best, other);
            }
        }
    }
}
