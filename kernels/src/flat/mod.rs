//! Passes over the flat parameter, gradient and moment buffers.
//!
//! Every pass works on fixed chunks in parallel, so its bits never depend on the number of threads. It touches each
//! element once, because memory bandwidth bounds these passes at 22.5 million parameters.

mod adam;
mod clip;

pub use adam::{AdamParams, AdamScalars, adam};
pub use clip::clip_scale;

use half::bf16;
use rayon::prelude::*;

use crate::error::{Result, check_len};
use crate::simd::{SimdLevel, multiversion};

/// Elements that one thread takes at a time. They are part of the definition of [`sum_squares`], whose partial sums are
/// per chunk.
pub(crate) const CHUNK: usize = 1 << 16;

/// Lanes of the partial sums of [`sum_squares`]: four 512-bit accumulators hide the latency of the addition.
const LANES: usize = 32;

/// `dst = src` when `first`, else `dst += src`, widening to f32: one microbatch's bf16 gradients
/// into the flat fp32 buffer. Both `[n]`.
pub fn accumulate_bf16(src: &[bf16], dst: &mut [f32], first: bool) -> Result<()> {
    check_len("src", "[n], as many as dst", src.len(), dst.len())?;
    let level = SimdLevel::detect();
    let chunks = dst.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK));
    if first {
        chunks.for_each(|(dst, src)| widen_chunk(level, dst, src));
    } else {
        chunks.for_each(|(dst, src)| accumulate_chunk(level, dst, src));
    }
    Ok(())
}

/// `dst += src`, both `[n]`.
pub fn add_assign(dst: &mut [f32], src: &[f32]) -> Result<()> {
    check_len("src", "[n], as many as dst", src.len(), dst.len())?;
    let level = SimdLevel::detect();
    dst.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(dst, src)| add_chunk(level, dst, src));
    Ok(())
}

/// `dst = src` rounded to nearest even, both `[n]`. NaN stays NaN.
pub fn to_bf16(src: &[f32], dst: &mut [bf16]) -> Result<()> {
    check_len("dst", "[n], as many as src", dst.len(), src.len())?;
    let level = SimdLevel::detect();
    dst.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(dst, src)| round_chunk(level, dst, src));
    Ok(())
}

/// Sum of the squares of `x` in f64, in a fixed order: 32 interleaved lanes per chunk of 65536 elements, lanes in
/// order, chunks in order. NaN and infinity propagate: a finite result proves that every element is finite.
#[must_use]
pub fn sum_squares(x: &[f32]) -> f64 {
    let level = SimdLevel::detect();
    let chunks: Vec<f64> = x
        .par_chunks(CHUNK)
        .map(|chunk| sum_squares_chunk(level, chunk))
        .collect();
    chunks.iter().sum()
}

/// `x` rounded to nearest even, without a branch. Unlike the processor's own conversion it keeps subnormals, so the
/// bits are the same on every machine.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    // A NaN keeps its upper payload and becomes quiet, because rounding could otherwise turn it into infinity.
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

/// `x` as f32, exactly.
#[inline(always)]
fn widen_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

multiversion! {
    fn widen_chunk(dst: &mut [f32], src: &[bf16]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = widen_bf16(s);
        }
    }
}

multiversion! {
    fn accumulate_chunk(dst: &mut [f32], src: &[bf16]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d += widen_bf16(s);
        }
    }
}

multiversion! {
    fn add_chunk(dst: &mut [f32], src: &[f32]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d += s;
        }
    }
}

multiversion! {
    /// Rounds as many elements as the shorter of the two slices has.
    pub(crate) fn round_chunk(dst: &mut [bf16], src: &[f32]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = round_bf16(s);
        }
    }
}

multiversion! {
    fn sum_squares_chunk(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (groups, rest) = x.as_chunks::<LANES>();
        for group in groups {
            for (lane, &value) in lanes.iter_mut().zip(group) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests;
