//! Antialiased bilinear resize, as
//! `torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)` computes
//! it on floats (ATen `UpSampleKernel.cpp`, itself after Pillow): a triangle filter that is as wide
//! as an output pixel when shrinking, applied per axis, weights normalised at the borders.

use rayon::prelude::*;

use crate::ImageU8;
use crate::error::{Error, Result, checked_elements};
use crate::simd::{SimdLevel, multiversion};

/// The source pixels that one output pixel blends, along one axis.
pub(crate) struct Taps {
    pub(crate) first: usize,
    /// Weights of `first..`, at least one; their sum is 1.
    pub(crate) weights: Vec<f32>,
}

/// Taps of every output pixel of an axis that goes from `input` to `output` pixels.
pub(crate) fn taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let support = scale.max(1.0);
    (0..output)
        .map(|i| {
            let center = scale * (i as f64 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let raw: Vec<f64> = (first..end)
                .map(|j| (1.0 - ((j as f64 - center + 0.5) / support).abs()).max(0.0))
                .collect();
            let total: f64 = raw.iter().sum();
            let weights = raw.iter().map(|w| (w / total) as f32).collect();
            Taps { first, weights }
        })
        .collect()
}

/// `image` resized to `[out_h, out_w, 3]`, values in 0..255 (not normalised, not rounded).
pub fn resize_antialias(image: &ImageU8<'_>, out_h: usize, out_w: usize) -> Result<Vec<f32>> {
    image.check()?;
    let sides = [
        ("ImageU8::height", image.height),
        ("ImageU8::width", image.width),
        ("out_h", out_h),
        ("out_w", out_w),
    ];
    if let Some(&(what, _)) = sides.iter().find(|(_, side)| *side == 0) {
        return Err(Error::Argument {
            what,
            limit: "1 or more pixels",
            actual: "0".into(),
            help: "an image without pixels cannot be resized",
        });
    }
    let level = SimdLevel::detect();
    let mut out = vec![0.0; checked_elements("the resized image", &[out_h, out_w, 3])?];
    let columns = taps(image.width, out_w);
    // The vertical pass comes first: it reads whole rows of bytes, and its result is one row that
    // stays in the cache for the horizontal pass.
    out.par_chunks_exact_mut(3 * out_w)
        .zip(taps(image.height, out_h))
        .for_each_init(
            || vec![0.0; 3 * image.width],
            |row, (out, taps)| {
                blend_rows(level, image, &taps, row);
                blend_columns(row.as_chunks::<3>().0, &columns, out.as_chunks_mut::<3>().0);
            },
        );
    Ok(out)
}

/// Weighted sum of the rows in `taps`.
fn blend_rows(level: SimdLevel, image: &ImageU8<'_>, taps: &Taps, out: &mut [f32]) {
    out.fill(0.0);
    let rows = image.data[3 * image.width * taps.first..].chunks_exact(3 * image.width);
    for (row, &weight) in rows.zip(&taps.weights) {
        add_row(level, row, weight, out);
    }
}

multiversion! {
    fn add_row(row: &[u8], weight: f32, out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(row) {
            *out += weight * f32::from(value);
        }
    }
}

/// Weighted sum of the pixels of `row` for every output pixel.
fn blend_columns(row: &[[f32; 3]], columns: &[Taps], out: &mut [[f32; 3]]) {
    for (out, taps) in out.iter_mut().zip(columns) {
        let mut sum = [0.0f32; 3];
        for (pixel, &weight) in row[taps.first..].iter().zip(&taps.weights) {
            for c in 0..3 {
                sum[c] += weight * pixel[c];
            }
        }
        *out = sum;
    }
}

#[cfg(test)]
mod tests;
