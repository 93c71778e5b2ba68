//! Cross-entropy over a softmax, as PyTorch's `CrossEntropyLoss` with class weights and label smoothing.

mod op;

use std::sync::Arc;

use fovea_task::{Kind, Label};
use rayon::prelude::*;

use self::op::CrossEntropyOp;
use super::sigmoid::math::{exp_nonpositive, log_from_one, log1p_unit};
use super::{Loss, LossAt, LossEntry, LossSettings, check_shapes};
use crate::cuda::Op;
use crate::cuda::source::{Source, SourceFile};
use crate::error::{Error, Result};

/// The row of [`super::LOSSES`].
pub(super) static ENTRY: LossEntry = LossEntry {
    name: "cross_entropy",
    kind: Kind::OneOf,
    reads: &["alpha", "label_smoothing"],
    build: |settings| Ok(Arc::new(CrossEntropy::new(settings)?)),
    source: Source {
        file: SourceFile {
            name: "cross_entropy.cu",
            text: include_str!("cross_entropy.cu"),
        },
        kernels: &["fovea_cross_entropy_loss"],
    },
};

/// Rows whose losses are summed in order before the blocks' sums are added in order; part of the definition.
const BLOCK_ROWS: usize = 256;

/// Sum over rows of `sum over c of q_c * -ln softmax(z)_c`, where a label y gives
/// `q_c = (1 - s) * alpha_y * [c = y] + s / C * alpha_c` with the smoothing s (Szegedy et al., CVPR 2016).
///
/// This is PyTorch's `reduction="sum"` with `weight = alpha`. The caller divides by a number of rows; PyTorch's
/// `reduction="mean"` divides by the sum of alpha over the labels instead, which is the same without class weights.
///
/// Everything inside is f64: losses are added in row order within blocks of 256 rows, then the blocks in order.
#[derive(Debug)]
struct CrossEntropy {
    smoothing: f32,
    /// Weight of each class, `[C]`; the kernel reads them too.
    alpha: Vec<f32>,
}

/// The numbers of a row that every class's gradient needs.
struct Row {
    /// The largest logit, and the class that has it first.
    highest: f64,
    first: usize,
    /// `exp(z - highest)` of that class: 1, or NaN if the logit is infinite or NaN.
    own: f64,
    /// Sum of `exp(z - highest)` over the other classes, and over all.
    rest: f64,
    sum: f64,
}

impl Row {
    #[inline(always)]
    fn of(logits: &[f32]) -> Self {
        let mut first = 0;
        for (class, &z) in logits.iter().enumerate() {
            if z > logits[first] {
                first = class;
            }
        }
        let highest = f64::from(logits[first]);
        let mut rest = 0.0;
        for (class, &z) in logits.iter().enumerate() {
            if class != first {
                rest += exp_nonpositive(f64::from(z) - highest);
            }
        }
        let own = exp_nonpositive(f64::from(logits[first]) - highest);
        Self {
            highest,
            first,
            own,
            rest,
            sum: own + rest,
        }
    }

    /// ln(sum). Where one class is nearly certain, `rest` has digits that `sum` has lost.
    #[inline(always)]
    fn log_sum(&self) -> f64 {
        if self.rest <= 1.0 {
            log1p_unit(self.rest) + (self.own - 1.0)
        } else {
            log_from_one(self.sum)
        }
    }
}

impl CrossEntropy {
    /// Returns an error for settings without a meaning, such as negative weights.
    fn new(settings: &LossSettings) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            smoothing: settings.label_smoothing,
            alpha: settings.alpha.clone(),
        })
    }

    /// Returns an error for a label that is none of the classes.
    fn check_labels(&self, labels: &[Label]) -> Result<()> {
        let classes = self.alpha.len();
        let stray = |label: &Label| label.is_known() && label.0 >= classes as u64;
        match labels.iter().position(stray) {
            None => Ok(()),
            Some(row) => Err(Error::Argument {
                what: "a label",
                limit: "below the number of classes",
                actual: format!("{} in row {row} with {classes} classes", labels[row].0),
                help: "a label is the index of its class; pass one alpha per class of the dataset",
            }),
        }
    }

    /// Loss of one row; writes `scale` times its gradient.
    ///
    /// With Q the sum of q, the gradient is `Q p_c - q_c`. For the label's class it is computed as
    /// `(Q - q_y) - Q (1 - p_y)`, which loses no digits where p_y is nearly 1.
    #[inline(always)]
    fn row(&self, logits: &[f32], label: usize, scale: f64, dlogits: &mut [f32]) -> f64 {
        let classes = self.alpha.len();
        let row = Row::of(logits);
        let log_sum = row.log_sum();
        let smoothing = f64::from(self.smoothing);
        let share = smoothing / classes as f64;
        let mut total = 0.0;
        for &alpha in &self.alpha {
            total += f64::from(alpha);
        }
        let of_label = f64::from(self.alpha[label]);
        let sharp = (1.0 - smoothing) * of_label;
        let missed = |class: usize| log_sum - (f64::from(logits[class]) - row.highest);
        let mut loss = sharp * missed(label);
        if smoothing > 0.0 {
            for (class, &alpha) in self.alpha.iter().enumerate() {
                loss += share * f64::from(alpha) * missed(class);
            }
        }
        let all = sharp + share * total;
        for (class, dlogit) in dlogits.iter_mut().enumerate() {
            let own = exp_nonpositive(f64::from(logits[class]) - row.highest);
            let p = own / row.sum;
            let slope = if class == label {
                let others = if class == row.first {
                    row.rest / row.sum
                } else {
                    1.0 - p
                };
                share * (total - of_label) - all * others
            } else {
                all * p - share * f64::from(self.alpha[class])
            };
            *dlogit = (slope * scale) as f32;
        }
        loss
    }
}

impl Loss for CrossEntropy {
    fn entry(&self) -> &'static LossEntry {
        &ENTRY
    }

    fn classes(&self) -> usize {
        self.alpha.len()
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
        let block = BLOCK_ROWS * classes;
        let sums: Vec<f64> = dlogits
            .par_chunks_mut(block)
            .zip(logits.par_chunks(block))
            .zip(labels.par_chunks(BLOCK_ROWS))
            .map(|((dlogits, logits), labels)| {
                let rows = dlogits.chunks_mut(classes).zip(logits.chunks(classes));
                let mut sum = 0.0;
                for ((dlogits, logits), label) in rows.zip(labels) {
                    if label.is_known() {
                        sum += self.row(logits, label.0 as usize, f64::from(scale), dlogits);
                    } else {
                        dlogits.fill(0.0);
                    }
                }
                sum
            })
            .collect();
        Ok(sums.iter().sum())
    }

    fn record(&self) -> &[u8] {
        bytemuck::cast_slice(&self.alpha)
    }

    fn scratch_bytes(&self, n: usize) -> usize {
        op::scratch_bytes(n)
    }

    fn op(&self, at: LossAt) -> Box<dyn Op> {
        Box::new(CrossEntropyOp {
            at,
            classes: self.classes(),
            smoothing: self.smoothing,
        })
    }
}

#[cfg(test)]
mod tests;
