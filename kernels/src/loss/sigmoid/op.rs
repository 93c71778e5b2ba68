//! Losses with one sigmoid per class on a GPU.

use super::super::LossAt;
use crate::cuda::Result;
use crate::cuda::launch::{Launch, Op, address, index32, wide};
use crate::cuda::ops::THREADS;
use crate::cuda::ops::flat::{loads, partial_blocks, sum_partials};
use crate::error::checked_elements;

/// Computes the twin's [`host`](super::super::Loss::host) in one pass over the logits.
///
/// Terms are f32: within 2e-6 of the twin's f64 terms, or, for terms that are much smaller than the class weight,
/// within 1e-8 of that weight. They are added in f64 in a fixed tree, so the bits are the same in every run and on
/// every GPU. The kernel ignores label bits beyond the classes (the twin returns an error).
#[derive(Clone, Copy, Debug)]
pub(super) struct SigmoidOp {
    pub at: LossAt,
    /// C, 1 to [`fovea_task::MAX_CLASSES`]; the record holds as many weights of each sign.
    pub classes: usize,
    /// Focusing exponent, 0 or more.
    pub gamma: f32,
    /// Name of the kernel.
    pub kernel: &'static str,
}

/// Bytes of scratch memory: one partial sum per block.
pub(super) fn scratch_bytes(n: usize, classes: usize) -> usize {
    8 * partial_blocks(n * classes)
}

impl Op for SigmoidOp {
    fn launches(&self) -> Result<Vec<Launch>> {
        let at = &self.at;
        let elements = checked_elements("LossAt::logits", &[at.n, self.classes])?;
        let count = index32("LossAt::n times classes", elements)?;
        address("LossAt::loss", at.loss, 8)?;
        let blocks = partial_blocks(elements);
        let mut launches = Vec::new();
        if elements > 0 {
            address("LossAt::logits", at.logits, 4)?;
            address("LossAt::labels", at.labels, 8)?;
            address("LossAt::record", at.record, 4)?;
            address("LossAt::scale", at.scale, 4)?;
            address("LossAt::dlogits", at.dlogits, 4)?;
            address("LossAt::scratch", at.scratch, 8)?;
            launches.push(
                Launch::new(self.kernel, "SigmoidOp", [blocks, 1, 1], THREADS)?
                    .u64(at.logits)
                    .u64(at.labels)
                    .u32(count)
                    .u32(self.classes as u32)
                    .u64(at.record)
                    .f32(self.gamma)
                    .u64(at.scale)
                    .u32(loads(elements))
                    .flag(wide(&[at.logits, at.dlogits]))
                    .u64(at.dlogits)
                    .u64(at.scratch),
            );
        }
        launches.push(sum_partials(at.scratch, blocks, at.loss)?);
        Ok(launches)
    }
}
