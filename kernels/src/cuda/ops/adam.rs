//! Adam and AdamW on a GPU.

use super::THREADS;
use super::flat::elementwise_blocks;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, wide};

/// [`crate::flat::adam`]: one step over `[n]` parameters in a single pass, with the same bits.
///
/// The kernel reads everything that changes from step to step from `scalars`.
#[derive(Clone, Copy, Debug)]
pub struct FusedAdam {
    /// Address of the parameters, `[n]` f32; updated.
    pub params: u64,
    /// Address of the gradients, `[n]` f32; only read.
    pub grads: u64,
    /// Address of Adam's first moments, `[n]` f32; updated.
    pub m: u64,
    /// Address of Adam's second moments, `[n]` f32; updated.
    pub v: u64,
    /// Address of the parameters rounded to bf16, `[n]`; written. 0 for none.
    pub working: u64,
    /// Number of parameters, gaps in the buffers included.
    pub n: usize,
    /// Address of one [`crate::flat::AdamScalars`], the scalars of this step.
    pub scalars: u64,
}

impl Op for FusedAdam {
    fn launches(&self) -> Result<Vec<Launch>> {
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("FusedAdam::params", self.params, 4)?;
        address("FusedAdam::grads", self.grads, 4)?;
        address("FusedAdam::m", self.m, 4)?;
        address("FusedAdam::v", self.v, 4)?;
        address("FusedAdam::scalars", self.scalars, 4)?;
        if self.working != 0 {
            address("FusedAdam::working", self.working, 2)?;
        }
        let buffers = [self.params, self.grads, self.m, self.v, self.working];
        let grid = [elementwise_blocks(self.n), 1, 1];
        Ok(vec![
            Launch::new("fovea_fused_adam", "FusedAdam", grid, THREADS)?
                .u64(self.params)
                .u64(self.grads)
                .u64(self.m)
                .u64(self.v)
                .u64(self.working)
                .u64(self.n as u64)
                .u64(self.scalars)
                .flag(wide(&buffers)),
        ])
    }
}
