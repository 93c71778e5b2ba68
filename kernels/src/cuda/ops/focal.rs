//! Focal loss on a GPU.

use bytemuck::{Pod, Zeroable};

use super::THREADS;
use super::flat::{loads, partial_blocks, sum_partials};
use crate::FocalParams;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32, wide};
use crate::error::checked_elements;
use crate::focal::MAX_CLASSES;

/// Weights per class and label, as the kernel reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct FocalWeights {
    negative: [f32; MAX_CLASSES],
    positive: [f32; MAX_CLASSES],
}

impl FocalWeights {
    /// The record of checked parameters.
    ///
    /// # Errors
    ///
    /// As [`crate::focal_loss`] refuses them.
    pub fn new(params: &FocalParams) -> crate::Result<Self> {
        params.check()?;
        let mut weights = Self::zeroed();
        for (c, &alpha) in params.alpha.iter().enumerate() {
            weights.negative[c] = alpha * params.neg_weight;
            weights.positive[c] = alpha * params.pos_weight;
        }
        Ok(weights)
    }
}

/// [`crate::focal_loss`]: the summed loss and `scale` times its gradient, in one pass over the logits.
///
/// Terms are f32, within 2e-6 of the twin's f64 ones, or 1e-8 of the class weight for those that are much
/// smaller than it; they are added in f64 in a fixed tree, so the bits are the same in every run and on
/// every GPU. Label bits beyond the classes are ignored (the twin refuses them).
#[derive(Clone, Copy, Debug)]
pub struct FocalLoss {
    /// `[n, classes]` f32.
    pub logits: u64,
    /// `[n]` u8: bit c is class c.
    pub targets: u64,
    /// Rows; `n * classes` is at most 2147483647.
    pub n: usize,
    /// Classes, 1 to 8: the length of `FocalParams::alpha`.
    pub classes: usize,
    /// Focusing exponent, 0 or more.
    pub gamma: f32,
    /// One [`FocalWeights`].
    pub weights: u64,
    /// One f32: factor on `dlogits`, not on the loss.
    pub scale: u64,
    /// `[n, classes]` f32, written.
    pub dlogits: u64,
    /// One f64, written: the summed loss, 0 without rows.
    pub loss: u64,
    /// [`FocalLoss::scratch_bytes`] bytes, 8-byte aligned.
    pub scratch: u64,
}

impl FocalLoss {
    /// Bytes of scratch memory: one partial sum per block.
    #[must_use]
    pub fn scratch_bytes(n: usize, classes: usize) -> usize {
        8 * partial_blocks(n * classes)
    }
}

impl Op for FocalLoss {
    fn launches(&self) -> Result<Vec<Launch>> {
        if !(1..=MAX_CLASSES).contains(&self.classes) {
            return Err(crate::Error::Argument {
                what: "FocalLoss::classes",
                limit: "1 to 8",
                actual: self.classes.to_string(),
                help: "a label byte holds at most 8 classes",
            }
            .into());
        }
        if !(self.gamma.is_finite() && self.gamma >= 0.0) {
            return Err(crate::Error::Argument {
                what: "FocalLoss::gamma",
                limit: "0 or more, finite",
                actual: self.gamma.to_string(),
                help: "check the loss settings",
            }
            .into());
        }
        let elements = checked_elements("FocalLoss::logits", &[self.n, self.classes])?;
        let count = index32("FocalLoss::n times classes", elements)?;
        address("FocalLoss::loss", self.loss, 8)?;
        let blocks = partial_blocks(elements);
        let mut launches = Vec::new();
        if elements > 0 {
            address("FocalLoss::logits", self.logits, 4)?;
            address("FocalLoss::targets", self.targets, 1)?;
            address("FocalLoss::weights", self.weights, 4)?;
            address("FocalLoss::scale", self.scale, 4)?;
            address("FocalLoss::dlogits", self.dlogits, 4)?;
            address("FocalLoss::scratch", self.scratch, 8)?;
            launches.push(
                Launch::new("fovea_focal_loss", "FocalLoss", [blocks, 1, 1], THREADS)?
                    .u64(self.logits)
                    .u64(self.targets)
                    .u32(count)
                    .u32(self.classes as u32)
                    .u64(self.weights)
                    .f32(self.gamma)
                    .u64(self.scale)
                    .u32(loads(elements))
                    .flag(wide(&[self.logits, self.dlogits]))
                    .u64(self.dlogits)
                    .u64(self.scratch),
            );
        }
        launches.push(sum_partials(self.scratch, blocks, self.loss)?);
        Ok(launches)
    }
}
