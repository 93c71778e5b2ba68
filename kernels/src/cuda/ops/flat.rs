//! Passes over flat buffers on a GPU.

use super::THREADS;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32, wide};

/// Elements per thread in the passes that write as much as they read.
const PER_THREAD: usize = 8;
/// Elements per load in the passes that sum.
const PER_LOAD: usize = 4;

/// Loads per thread in the passes that sum. Large buffers need more, else they would have too many partial sums.
pub(crate) fn loads(elements: usize) -> u32 {
    if elements >= 1 << 20 { 4 } else { 1 }
}

/// Blocks, and partial sums, of a pass that sums `elements`. They depend on nothing else, so the order of additions is
/// the same on every GPU.
pub(crate) fn partial_blocks(elements: usize) -> usize {
    elements.div_ceil(THREADS as usize * PER_LOAD * loads(elements) as usize)
}

/// Blocks of a pass that handles each of `n` elements alone.
pub(super) fn elementwise_blocks(n: usize) -> usize {
    n.div_ceil(THREADS as usize * PER_THREAD)
}

/// Adds up partial sums; without any the total is 0.
pub(crate) fn sum_partials(partials: u64, count: usize, total: u64) -> Result<Launch> {
    Ok(
        Launch::new("fovea_sum", "partial sums", [1, 1, 1], THREADS)?
            .u64(partials)
            .u32(index32("partial sums", count)?)
            .u64(total),
    )
}

/// [`crate::flat::to_bf16`], with the same bits.
#[derive(Clone, Copy, Debug)]
pub struct ToBf16 {
    /// Address of the source, `[n]` f32.
    pub src: u64,
    /// Address of the result, `[n]` bf16; written.
    pub dst: u64,
    /// Number of elements to round.
    pub n: usize,
}

impl Op for ToBf16 {
    fn launches(&self) -> Result<Vec<Launch>> {
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("ToBf16::src", self.src, 4)?;
        address("ToBf16::dst", self.dst, 2)?;
        let grid = [elementwise_blocks(self.n), 1, 1];
        Ok(vec![
            Launch::new("fovea_to_bf16", "ToBf16", grid, THREADS)?
                .u64(self.src)
                .u64(self.dst)
                .u64(self.n as u64)
                .flag(wide(&[self.src, self.dst])),
        ])
    }
}

/// [`crate::flat::accumulate_bf16`], with the same bits.
#[derive(Clone, Copy, Debug)]
pub struct AccumulateBf16 {
    /// Address of the source, `[n]` bf16.
    pub src: u64,
    /// Address of the sum, `[n]` f32; overwritten when `first`, else added to.
    pub dst: u64,
    /// Number of elements to add.
    pub n: usize,
    /// Whether this is the first addend: then the content of `dst` does not matter.
    pub first: bool,
}

impl Op for AccumulateBf16 {
    fn launches(&self) -> Result<Vec<Launch>> {
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("AccumulateBf16::src", self.src, 2)?;
        address("AccumulateBf16::dst", self.dst, 4)?;
        let grid = [elementwise_blocks(self.n), 1, 1];
        Ok(vec![
            Launch::new("fovea_accumulate_bf16", "AccumulateBf16", grid, THREADS)?
                .u64(self.src)
                .u64(self.dst)
                .u64(self.n as u64)
                .flag(!self.first)
                .flag(wide(&[self.src, self.dst])),
        ])
    }
}

/// [`crate::flat::sum_squares`] in another fixed order (within 1e-13 of it): the same bits in every run and on every
/// GPU. The sum is finite exactly if every element is.
#[derive(Clone, Copy, Debug)]
pub struct SumSquares {
    /// Address of the elements, `[n]` f32.
    pub x: u64,
    /// Number of elements to sum.
    pub n: usize,
    /// Address of the sum, one f64; written.
    pub total: u64,
    /// Address of [`SumSquares::scratch_bytes`] bytes, 8-byte aligned.
    pub scratch: u64,
}

impl SumSquares {
    /// Bytes of scratch memory: one partial sum per block.
    #[must_use]
    pub fn scratch_bytes(n: usize) -> usize {
        8 * partial_blocks(n)
    }
}

impl Op for SumSquares {
    fn launches(&self) -> Result<Vec<Launch>> {
        address("SumSquares::total", self.total, 8)?;
        let blocks = partial_blocks(self.n);
        let mut launches = Vec::new();
        if self.n > 0 {
            address("SumSquares::x", self.x, 4)?;
            address("SumSquares::scratch", self.scratch, 8)?;
            launches.push(
                Launch::new("fovea_sum_squares", "SumSquares", [blocks, 1, 1], THREADS)?
                    .u64(self.x)
                    .u64(self.n as u64)
                    .u32(loads(self.n))
                    .flag(wide(&[self.x]))
                    .u64(self.scratch),
            );
        }
        launches.push(sum_partials(self.scratch, blocks, self.total)?);
        Ok(launches)
    }
}
