//! Averages of probabilities, over views of a picture and over the models of an ensemble.
//!
//! An average is kept as the logits that give it: sigmoid or softmax of them is the mean of the parts' probabilities. So
//! losses, temperatures and metrics read it like the answer of one model. Everything runs in f64 on logarithms, where no
//! probability is too close to 0 or 1 for a number.

use fovea_run::tuning::temperature::{log_sum_exp, softplus};
use fovea_task::{Kind, Target};

/// The logits of one of several answers, and its weight in their average.
pub type Part<'a> = (&'a [f32], f64);

/// Logits whose probabilities are the weighted mean of those of `parts`, `[rows, C]` row-major; the parts have the same
/// rows, and weights of which one is above 0. One part alone comes back unchanged.
#[must_use]
pub fn average(target: &Target, parts: &[Part<'_>]) -> Vec<f32> {
    let total: f64 = parts.iter().map(|part| part.1).sum();
    let shares: Vec<f64> = parts.iter().map(|part| (part.1 / total).ln()).collect();
    match parts {
        [] => Vec::new(),
        [(one, _)] => one.to_vec(),
        [(first, _), ..] => match target.kind {
            Kind::AnyOf => (0..first.len())
                .map(|at| mean_of_sigmoids(parts, &shares, at))
                .collect(),
            Kind::OneOf => {
                let classes = target.classes.len();
                let rows = 0..first.len() / classes;
                rows.flat_map(|row| mean_of_softmaxes(parts, &shares, row * classes, classes))
                    .collect()
            }
        },
    }
}

/// `ln p - ln (1 - p)` of the mean p at place `at`; `shares` are logarithms.
fn mean_of_sigmoids(parts: &[Part<'_>], shares: &[f64], at: usize) -> f32 {
    let logits = parts.iter().map(|(logits, _)| f64::from(logits[at]));
    let logits: Vec<f64> = logits.collect();
    let log_mean = |sign: f64| {
        let terms = logits.iter().zip(shares);
        let terms: Vec<f64> = terms.map(|(z, ln)| ln - softplus(-sign * z)).collect();
        log_sum_exp(&terms)
    };
    (log_mean(1.0) - log_mean(-1.0)) as f32
}

/// `ln p` of the mean p of each class of the row that begins at `start`.
fn mean_of_softmaxes(parts: &[Part<'_>], shares: &[f64], start: usize, classes: usize) -> Vec<f32> {
    let rows: Vec<Vec<f64>> = parts
        .iter()
        .map(|(logits, _)| {
            let row = logits[start..start + classes].iter();
            let row: Vec<f64> = row.map(|&z| f64::from(z)).collect();
            let all = log_sum_exp(&row);
            row.iter().map(|z| z - all).collect()
        })
        .collect();
    let mean = |class: usize| {
        let terms = rows.iter().zip(shares).map(|(row, ln)| ln + row[class]);
        log_sum_exp(&terms.collect::<Vec<f64>>()) as f32
    };
    (0..classes).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use fovea_task::Task;
    use proptest::prelude::*;

    use super::*;
    use crate::evaluate::probabilities;

    fn target(kind: Kind) -> Target {
        Target {
            kind,
            union_of_cells: false,
            ..Task::lesions().targets()[0].clone()
        }
    }

    #[test]
    fn one_answer_is_its_own_average_to_the_bit() {
        let logits = [1e30f32, -3.3, 0.1, -0.0];
        for kind in [Kind::AnyOf, Kind::OneOf] {
            assert_eq!(average(&target(kind), &[(&logits, 0.3)]), logits);
        }
    }

    #[test]
    fn far_logits_keep_their_side() {
        let (sure, surer) = ([200.0f32; 4], [600.0f32; 4]);
        let mean = average(&target(Kind::AnyOf), &[(&sure, 1.0), (&surer, 1.0)]);
        // 1 - p is half of e^-200.
        assert!((mean[0] - 200.693).abs() < 1e-2, "{mean:?}");
        let none = average(&target(Kind::AnyOf), &[(&sure, 1.0), (&[0.0; 4], 0.0)]);
        assert!(
            (none[0] - 200.0).abs() < 1e-4,
            "a weight of 0 takes no part: {none:?}"
        );
    }

    proptest! {
        #[test]
        fn probabilities_are_averaged(
            parts in prop::collection::vec((prop::array::uniform8(-9f32..9.0), 0.1f64..2.0), 2..5)
        ) {
            let total: f64 = parts.iter().map(|p| p.1).sum();
            let given: Vec<Part<'_>> = parts.iter().map(|(z, w)| (&z[..], *w)).collect();
            for kind in [Kind::AnyOf, Kind::OneOf] {
                let target = target(kind);
                let of = |logits: &[f32]| -> Vec<f32> {
                    logits.chunks(4).flat_map(|row| probabilities(&target, row)).collect()
                };
                let mean = of(&average(&target, &given));
                for (at, &p) in mean.iter().enumerate() {
                    let parts = parts.iter().map(|(z, w)| f64::from(of(z)[at]) * w / total);
                    let expected: f64 = parts.sum();
                    prop_assert!((f64::from(p) - expected).abs() < 1e-6, "{} and {}", p, expected);
                }
            }
        }
    }
}
