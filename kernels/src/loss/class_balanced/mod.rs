//! Class-balanced loss (Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019), with a
//! sigmoid per class.

use std::sync::Arc;

use fovea_task::Kind;

use super::sigmoid::Sigmoid;
use super::{LossEntry, LossSettings};
use crate::cuda::source::{Source, SourceFile};
use crate::error::Result;

/// The row of [`super::LOSSES`].
pub(super) static ENTRY: LossEntry = LossEntry {
    name: "class_balanced",
    kind: Kind::AnyOf,
    reads: &["beta", "gamma"],
    build: |settings| Ok(Arc::new(build(settings)?)),
    source: Source {
        file: SourceFile {
            name: "class_balanced.cu",
            text: include_str!("class_balanced.cu"),
        },
        kernels: &["fovea_class_balanced_loss"],
    },
};

/// Sum over rows and classes of `w_c * (1 - p_t)^gamma * BCE(z, y)`: bit c of a label is class c, `w` is
/// [`effective_number_weights`]. With gamma 0 the paper's class-balanced sigmoid cross-entropy, above its class-balanced
/// focal loss.
///
/// Returns an error for settings without a meaning, such as a beta of 1.
fn build(settings: &LossSettings) -> Result<Sigmoid> {
    settings.check()?;
    let weights = effective_number_weights(settings.beta, &settings.positives);
    Sigmoid::new(&ENTRY, settings, settings.gamma, &weights, |_| [1.0; 2])
}

/// `(1 - beta) / (1 - beta^n_c)` for `n_c` samples of class c, normalised to mean 1. A class that never occurs weighs as
/// much as the rarest one that does, since the formula divides by 0 there. `beta` is 0 or more and below 1.
#[must_use]
pub fn effective_number_weights(beta: f32, positives: &[u64]) -> Vec<f32> {
    let beta = f64::from(beta);
    let rarest = positives.iter().copied().filter(|&n| n > 0).min();
    let weight = |&n: &u64| {
        let n = if n == 0 { rarest.unwrap_or(1) } else { n };
        // 1 - beta^n without the digits that the difference would lose.
        (1.0 - beta) / -(n as f64 * beta.ln()).exp_m1()
    };
    let weights: Vec<f64> = positives.iter().map(weight).collect();
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    weights.iter().map(|w| (w / mean) as f32).collect()
}

#[cfg(test)]
mod tests;
