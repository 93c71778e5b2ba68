//! Cross-entropy on a GPU.

use super::super::LossAt;
use crate::cuda::Result;
use crate::cuda::launch::{Launch, Op, address, index32};
use crate::cuda::ops::THREADS;
use crate::cuda::ops::flat::sum_partials;
use crate::error::checked_elements;

/// Computes the twin's [`host`](super::super::Loss::host) with one thread per row.
///
/// Each row is computed in f64 as the twin does, so dlogits has the twin's bits. The losses are added in f64 in a fixed
/// tree: the same bits in every run and on every GPU. A label that is none of the classes counts as unknown (the twin
/// returns an error).
#[derive(Clone, Copy, Debug)]
pub(super) struct CrossEntropyOp {
    pub at: LossAt,
    /// C, 1 to [`fovea_task::MAX_CLASSES`]; the record holds as many weights.
    pub classes: usize,
    /// Label smoothing, 0 or more and below 1.
    pub smoothing: f32,
}

/// Blocks, and partial sums, of `n` rows.
fn blocks(n: usize) -> usize {
    n.div_ceil(THREADS as usize)
}

/// Bytes of scratch memory: one partial sum per block.
pub(super) fn scratch_bytes(n: usize) -> usize {
    8 * blocks(n)
}

impl Op for CrossEntropyOp {
    fn launches(&self) -> Result<Vec<Launch>> {
        let at = &self.at;
        let elements = checked_elements("LossAt::logits", &[at.n, self.classes])?;
        index32("LossAt::n times classes", elements)?;
        address("LossAt::loss", at.loss, 8)?;
        let blocks = blocks(at.n);
        let mut launches = Vec::new();
        if at.n > 0 {
            address("LossAt::logits", at.logits, 4)?;
            address("LossAt::labels", at.labels, 8)?;
            address("LossAt::record", at.record, 4)?;
            address("LossAt::scale", at.scale, 4)?;
            address("LossAt::dlogits", at.dlogits, 4)?;
            address("LossAt::scratch", at.scratch, 8)?;
            let kernel = "fovea_cross_entropy_loss";
            launches.push(
                Launch::new(kernel, "CrossEntropyOp", [blocks, 1, 1], THREADS)?
                    .u64(at.logits)
                    .u64(at.labels)
                    .u32(at.n as u32)
                    .u32(self.classes as u32)
                    .u64(at.record)
                    .f32(self.smoothing)
                    .u64(at.scale)
                    .u64(at.dlogits)
                    .u64(at.scratch),
            );
        }
        launches.push(sum_partials(at.scratch, blocks, at.loss)?);
        Ok(launches)
    }
}
