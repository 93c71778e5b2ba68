//! Multi-hot focal loss: the summed loss and its gradient in one pass over the logits.

mod math;

use rayon::prelude::*;

use crate::error::{Error, Result, check_len};
use crate::simd::{Level, multiversion};
use math::{exp_nonpositive, log1p_unit};

/// Rows whose loss is summed in order before blocks are added in order. Part of the definition.
const BLOCK_ROWS: usize = 256;

/// A label is one byte.
pub(crate) const MAX_CLASSES: usize = 8;

/// Rows that are expanded to one label and weight per logit at a time.
const TILE_ROWS: usize = 16;
const TILE: usize = TILE_ROWS * MAX_CLASSES;

/// Weights of the focal loss (Lin et al., "Focal loss for dense object detection", ICCV 2017).
#[derive(Clone, Debug, PartialEq)]
pub struct FocalParams {
    /// Focusing exponent, 0 or more; 0 is weighted binary cross-entropy.
    pub gamma: f32,
    /// One weight per class, 0 or more; the length is the number of classes C, 1 to 8.
    pub alpha: Vec<f32>,
    /// Factor where the label has the class, 0 or more.
    pub pos_weight: f32,
    /// Factor where the label does not have the class, 0 or more.
    pub neg_weight: f32,
}

impl FocalParams {
    /// Refuses numbers without meaning.
    pub(crate) fn check(&self) -> Result<()> {
        let classes = self.alpha.len();
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(Error::Argument {
                what: "FocalParams::alpha's length (the number of classes)",
                limit: "1 to 8",
                actual: classes.to_string(),
                help: "pass one weight per class; a label byte holds at most 8 classes",
            });
        }
        let numbers = [
            ("FocalParams::gamma", self.gamma),
            ("FocalParams::pos_weight", self.pos_weight),
            ("FocalParams::neg_weight", self.neg_weight),
        ];
        let alphas = self.alpha.iter().map(|&a| ("FocalParams::alpha", a));
        for (what, value) in numbers.into_iter().chain(alphas) {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Argument {
                    what,
                    limit: "0 or more, finite",
                    actual: value.to_string(),
                    help: "check the loss settings and the label counts the weights come from",
                });
            }
        }
        Ok(())
    }
}

/// [`FocalParams`] as the inner loop wants them.
struct Weights {
    classes: usize,
    gamma: f64,
    /// Per class, for labels without and with it.
    by_label: [[f64; 2]; MAX_CLASSES],
    scale: f64,
}

/// Sum over rows and classes of
/// `alpha_c * w(y) * (1 - p_t)^gamma * BCE(z, y)`, and `scale` times its gradient.
///
/// `logits` and `dlogits` are `[n, C]` row-major; bit c of `targets[row]` is class c; `w` is
/// `pos_weight` or `neg_weight`. `scale` multiplies `dlogits`, not the loss. Inside, everything is
/// f64: losses are added in row order within blocks of 256 rows and the blocks in order, whatever
/// the number of threads. NaN logits give a NaN loss and gradient. No rows give 0.
pub fn focal_loss(
    logits: &[f32],
    targets: &[u8],
    params: &FocalParams,
    scale: f32,
    dlogits: &mut [f32],
) -> Result<f64> {
    params.check()?;
    let classes = params.alpha.len();
    let elements = crate::error::checked_elements("logits", &[targets.len(), classes])?;
    check_len("logits", "[targets.len(), C]", logits.len(), elements)?;
    check_len("dlogits", "[targets.len(), C]", dlogits.len(), elements)?;
    check_labels(targets, classes)?;
    let mut by_label = [[0.0; 2]; MAX_CLASSES];
    for (by_label, &alpha) in by_label.iter_mut().zip(&params.alpha) {
        *by_label = [params.neg_weight, params.pos_weight].map(|w| f64::from(alpha) * f64::from(w));
    }
    let weights = Weights {
        classes,
        gamma: f64::from(params.gamma),
        by_label,
        scale: f64::from(scale),
    };
    let level = Level::detect();
    let block = BLOCK_ROWS * classes;
    let sums: Vec<f64> = dlogits
        .par_chunks_mut(block)
        .zip(logits.par_chunks(block))
        .zip(targets.par_chunks(BLOCK_ROWS))
        .map(|((dlogits, logits), targets)| {
            if weights.gamma == 2.0 {
                squared_block(level, logits, targets, &weights, dlogits)
            } else {
                power_block(level, logits, targets, &weights, dlogits)
            }
        })
        .collect();
    Ok(sums.iter().sum())
}

fn check_labels(targets: &[u8], classes: usize) -> Result<()> {
    let allowed = u8::MAX >> (MAX_CLASSES - classes);
    match targets.iter().position(|&label| label & !allowed != 0) {
        None => Ok(()),
        Some(row) => Err(Error::Argument {
            what: "a label in targets",
            limit: "bits below the number of classes",
            actual: format!("{:#010b} in row {row} with {classes} classes", targets[row]),
            help: "bit c of a label is class c; pass one alpha per class of the dataset",
        }),
    }
}

/// Loss and dL/dz of one logit, unweighted.
///
/// With x = -z for a positive and z for a negative label: 1 - p_t = sigmoid(x) = q and
/// BCE = softplus(x), so L = q^gamma * softplus(x) and
/// dL/dx = q^gamma * (q + gamma * (1 - q) * softplus(x)). Everything comes from exp(-|x|).
#[inline(always)]
fn element<const SQUARED: bool>(x: f64, gamma: f64) -> (f64, f64) {
    let e = exp_nonpositive(-x.abs());
    let log = log1p_unit(e);
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    // Comparisons keep NaN: it is in e, and both arms hold a value made of it.
    let (q, p, softplus, log_q) = if x > 0.0 {
        (large, small, x + log, -log)
    } else {
        (small, large, log, x - log)
    };
    let power = if SQUARED {
        q * q
    } else {
        // Finite, so that gamma 0 gives 1 also where q is 0.
        let log_q = if log_q < -1e30 { -1e30 } else { log_q };
        exp_nonpositive(gamma * log_q)
    };
    (power * softplus, power * (q + gamma * p * softplus))
}

#[inline(always)]
fn block<const SQUARED: bool>(
    logits: &[f32],
    targets: &[u8],
    weights: &Weights,
    dlogits: &mut [f32],
) -> f64 {
    let classes = weights.classes;
    let tile = TILE_ROWS * classes;
    let mut sign = [0.0f64; TILE];
    let mut weight = [0.0f64; TILE];
    let mut losses = [0.0f64; TILE];
    let mut sum = 0.0;
    let tiles = logits.chunks(tile).zip(dlogits.chunks_mut(tile));
    for ((logits, dlogits), targets) in tiles.zip(targets.chunks(TILE_ROWS)) {
        for (row, &label) in targets.iter().enumerate() {
            for (c, by_label) in weights.by_label[..classes].iter().enumerate() {
                let positive = usize::from(label >> c & 1);
                sign[row * classes + c] = [1.0, -1.0][positive];
                weight[row * classes + c] = by_label[positive];
            }
        }
        let outputs = dlogits.iter_mut().zip(&mut losses);
        let inputs = logits.iter().zip(sign.iter().zip(&weight));
        for ((dlogit, loss), (&logit, (&sign, &weight))) in outputs.zip(inputs) {
            let (value, slope) = element::<SQUARED>(sign * f64::from(logit), weights.gamma);
            *loss = weight * value;
            *dlogit = (sign * weight * slope * weights.scale) as f32;
        }
        for loss in &losses[..logits.len()] {
            sum += loss;
        }
    }
    sum
}

multiversion! {
    /// gamma = 2 without the power.
    fn squared_block(logits: &[f32], targets: &[u8], weights: &Weights, dlogits: &mut [f32]) -> f64 {
        block::<true>(logits, targets, weights, dlogits)
    }
}

multiversion! {
    fn power_block(logits: &[f32], targets: &[u8], weights: &Weights, dlogits: &mut [f32]) -> f64 {
        block::<false>(logits, targets, weights, dlogits)
    }
}

#[cfg(test)]
mod tests;
