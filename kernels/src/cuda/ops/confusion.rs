//! Confusion counts on a GPU.

use fovea_task::Kind;

use super::THREADS;
use crate::confusion::CountLayout;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32};
use crate::error::checked_elements;

/// [`crate::confusion::confusion_counts`], with the same bits as long as each count stays below 2^24.
#[derive(Clone, Copy, Debug)]
pub struct ConfusionCounts {
    /// Which counts.
    pub layout: CountLayout,
    /// Address of the logits, `[n, C]` f32.
    pub logits: u64,
    /// Address of the labels, `[n]` [`fovea_task::Label`], 8-byte aligned.
    pub labels: u64,
    /// Number of rows; `n * C` is at most 2147483647.
    pub n: usize,
    /// The lowest logit that predicts a class, see [`crate::confusion::lowest_logit`].
    pub lowest: f32,
    /// Address of the counts, [`CountLayout::len`] f32; added to.
    pub counts: u64,
}

impl Op for ConfusionCounts {
    fn launches(&self) -> Result<Vec<Launch>> {
        self.layout.check()?;
        let elements = checked_elements("ConfusionCounts::logits", &[self.n, self.layout.classes])?;
        index32("ConfusionCounts::n times classes", elements)?;
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("ConfusionCounts::logits", self.logits, 4)?;
        address("ConfusionCounts::labels", self.labels, 8)?;
        address("ConfusionCounts::counts", self.counts, 4)?;
        let grid = [self.n.div_ceil(THREADS as usize), 1, 1];
        Ok(vec![
            Launch::new("fovea_confusion_counts", "ConfusionCounts", grid, THREADS)?
                .u64(self.logits)
                .u64(self.labels)
                .u32(self.n as u32)
                .u32(self.layout.classes as u32)
                .flag(self.layout.kind == Kind::OneOf)
                .f32(self.lowest)
                .u64(self.counts),
        ])
    }
}
