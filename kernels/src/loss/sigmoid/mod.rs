//! Losses with one sigmoid per class, which differ in weights and exponent alone: their twin and their operation.

pub(super) mod math;
mod op;

use fovea_task::{Label, MAX_CLASSES};
use rayon::prelude::*;

use self::math::{exp_nonpositive, log1p_unit};
use self::op::SigmoidOp;
use super::{Loss, LossAt, LossEntry, LossSettings, check_numbers, check_shapes};
use crate::cuda::Op;
use crate::error::{Error, Result};
use crate::simd::{SimdLevel, multiversion};

/// Rows whose losses are summed in order before the blocks' sums are added in order; part of the definition.
const BLOCK_ROWS: usize = 256;

/// Most rows, and most elements unless one row has more, that are expanded to one label and one weight per logit at a
/// time.
const TILE_ROWS: usize = 16;
const TILE: usize = 128;
const _: () = assert!(MAX_CLASSES <= TILE, "a row must fit a tile");

/// How the power `(1 - p_t)^gamma` is computed: not at all for gamma 0, by a product for 2, else by exp.
const NONE: u8 = 0;
const SQUARED: u8 = 1;
const ANY: u8 = 2;

/// Sum over rows and classes of `weight(c, y) * (1 - p_t)^gamma * BCE(z, y)`: bit c of a label is class c.
///
/// Everything inside is f64: losses are added in row order within blocks of 256 rows, then the blocks in order.
#[derive(Debug)]
pub(super) struct Sigmoid {
    /// The loss that it is. Its source has one kernel, whose parameters are those of `fovea_focal_loss`.
    entry: &'static LossEntry,
    gamma: f32,
    /// Weight of each class, for labels without and with the class.
    by_label: Vec<[f64; 2]>,
    /// The weights that the kernel reads: `[2, C]` f32, for labels without and with the class.
    record: Vec<f32>,
}

impl Sigmoid {
    /// With one pair of factors per class, whose product is the weight of a label that has the class, and one for labels
    /// without it. Returns an error for settings without a meaning, such as negative weights.
    pub fn new(
        entry: &'static LossEntry,
        settings: &LossSettings,
        gamma: f32,
        alpha: &[f32],
        signs: impl Fn(usize) -> [f32; 2],
    ) -> Result<Self> {
        settings.check()?;
        check_numbers("LossSettings::alpha", alpha)?;
        let signs: Vec<[f32; 2]> = (0..alpha.len()).map(signs).collect();
        let of = |sign: usize| alpha.iter().zip(&signs).map(move |(a, s)| (*a, s[sign]));
        Ok(Self {
            gamma,
            by_label: of(0)
                .zip(of(1))
                .map(|pair| [pair.0, pair.1].map(|(a, w)| f64::from(a) * f64::from(w)))
                .collect(),
            record: of(0).chain(of(1)).map(|(a, w)| a * w).collect(),
            entry,
        })
    }

    /// Returns an error for a label with a bit beyond the classes.
    fn check_labels(&self, labels: &[Label]) -> Result<()> {
        let classes = self.by_label.len();
        let stray = |label: &Label| label.is_known() && label.0 >> classes != 0;
        match labels.iter().position(stray) {
            None => Ok(()),
            Some(row) => Err(Error::Argument {
                what: "a label",
                limit: "bits below the number of classes",
                actual: format!(
                    "{:#010b} in row {row} with {classes} classes",
                    labels[row].0
                ),
                help: "bit c of a label is class c; pass one alpha per class of the dataset",
            }),
        }
    }
}

impl Loss for Sigmoid {
    fn entry(&self) -> &'static LossEntry {
        self.entry
    }

    fn classes(&self) -> usize {
        self.by_label.len()
    }

    fn host(
        &self,
        logits: &[f32],
        labels: &[Label],
        scale: f32,
        dlogits: &mut [f32],
    ) -> Result<f64> {
        let classes = self.classes();
        check_shapes(classes, logits, labels, dlogits)?;
        self.check_labels(labels)?;
        let weights = Weights {
            gamma: f64::from(self.gamma),
            by_label: &self.by_label,
            scale: f64::from(scale),
        };
        let level = SimdLevel::detect();
        let block = BLOCK_ROWS * classes;
        let sums: Vec<f64> = dlogits
            .par_chunks_mut(block)
            .zip(logits.par_chunks(block))
            .zip(labels.par_chunks(BLOCK_ROWS))
            .map(|((dlogits, logits), labels)| {
                if weights.gamma == 2.0 {
                    squared_block(level, logits, labels, &weights, dlogits)
                } else if weights.gamma == 0.0 {
                    plain_block(level, logits, labels, &weights, dlogits)
                } else {
                    power_block(level, logits, labels, &weights, dlogits)
                }
            })
            .collect();
        Ok(sums.iter().sum())
    }

    fn record(&self) -> &[u8] {
        bytemuck::cast_slice(&self.record)
    }

    fn scratch_bytes(&self, n: usize) -> usize {
        op::scratch_bytes(n, self.classes())
    }

    fn op(&self, at: LossAt) -> Box<dyn Op> {
        Box::new(SigmoidOp {
            at,
            classes: self.classes(),
            gamma: self.gamma,
            kernel: self.entry.source.kernels[0],
        })
    }
}

/// [`Sigmoid`] in the form of the inner loop.
struct Weights<'a> {
    gamma: f64,
    by_label: &'a [[f64; 2]],
    scale: f64,
}

/// Loss and dL/dz of one logit, unweighted.
///
/// With x = -z for a positive and z for a negative label: 1 - p_t = sigmoid(x) = q and
/// BCE = softplus(x), so L = q^gamma * softplus(x) and
/// dL/dx = q^gamma * (q + gamma * (1 - q) * softplus(x)). Everything comes from exp(-|x|).
#[inline(always)]
fn element<const POWER: u8>(x: f64, gamma: f64) -> (f64, f64) {
    let e = exp_nonpositive(-x.abs());
    let log = log1p_unit(e);
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    // Comparisons keep NaN: e is NaN, and both arms compute with it.
    let (q, p, softplus, log_q) = if x > 0.0 {
        (large, small, x + log, -log)
    } else {
        (small, large, log, x - log)
    };
    if POWER == NONE {
        return (softplus, q);
    }
    let power = if POWER == SQUARED {
        q * q
    } else {
        // Finite, because a small gamma times the logarithm of 0 must not be NaN.
        let log_q = if log_q < -1e30 { -1e30 } else { log_q };
        exp_nonpositive(gamma * log_q)
    };
    (power * softplus, power * (q + gamma * p * softplus))
}

#[inline(always)]
fn block<const POWER: u8>(
    logits: &[f32],
    labels: &[Label],
    weights: &Weights<'_>,
    dlogits: &mut [f32],
) -> f64 {
    let classes = weights.by_label.len();
    let rows = TILE_ROWS.min(TILE / classes);
    let tile = rows * classes;
    let mut sign = [0.0f64; TILE];
    let mut weight = [0.0f64; TILE];
    let mut losses = [0.0f64; TILE];
    let mut sum = 0.0;
    let tiles = logits.chunks(tile).zip(dlogits.chunks_mut(tile));
    for ((logits, dlogits), labels) in tiles.zip(labels.chunks(rows)) {
        for (row, &label) in labels.iter().enumerate() {
            for (c, by_label) in weights.by_label.iter().enumerate() {
                let positive = (label.0 >> c & 1) as usize;
                sign[row * classes + c] = [1.0, -1.0][positive];
                weight[row * classes + c] = by_label[positive];
            }
        }
        let outputs = dlogits.iter_mut().zip(&mut losses);
        let inputs = logits.iter().zip(sign.iter().zip(&weight));
        for ((dlogit, loss), (&logit, (&sign, &weight))) in outputs.zip(inputs) {
            let (value, slope) = element::<POWER>(sign * f64::from(logit), weights.gamma);
            *loss = weight * value;
            *dlogit = (sign * weight * slope * weights.scale) as f32;
        }
        // After the loop over all rows, which stays free of branches. A weight of 0 would not do: NaN times 0 is NaN.
        for (row, _) in labels.iter().enumerate().filter(|(_, l)| !l.is_known()) {
            losses[row * classes..][..classes].fill(0.0);
            dlogits[row * classes..][..classes].fill(0.0);
        }
        for loss in &losses[..logits.len()] {
            sum += loss;
        }
    }
    sum
}

multiversion! {
    /// gamma = 0, where the power is 1.
    fn plain_block(logits: &[f32], labels: &[Label], weights: &Weights<'_>, dlogits: &mut [f32]) -> f64 {
        block::<NONE>(logits, labels, weights, dlogits)
    }
}

multiversion! {
    /// gamma = 2, which needs no power function.
    fn squared_block(logits: &[f32], labels: &[Label], weights: &Weights<'_>, dlogits: &mut [f32]) -> f64 {
        block::<SQUARED>(logits, labels, weights, dlogits)
    }
}

multiversion! {
    fn power_block(logits: &[f32], labels: &[Label], weights: &Weights<'_>, dlogits: &mut [f32]) -> f64 {
        block::<ANY>(logits, labels, weights, dlogits)
    }
}

#[cfg(test)]
mod tests;
