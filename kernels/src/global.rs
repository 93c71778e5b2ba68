//! The whole-image branch's input: a resized image, augmented and normalised.

use rayon::prelude::*;

use crate::BatchMut;
use crate::affine::{PointMap, Rectangle, SourceImage, erased};
use crate::augment::{Augment, Draw, draw};
use crate::crop::erase;
use crate::error::{Error, Result, check_len, checked_elements};
use crate::geometry::{BAND, Window};
use crate::shade::{GREY, Jitter, OutputElement, Shader};
use crate::simd::{SimdLevel, multiversion};

/// Channels and f64 lanes line up after this many elements.
const LANES: usize = 24;

/// Augments and normalises one image, `resized` `[size, size, 3]` in 0..255, and writes
/// `(x / 255 - mean) / std` to `out`, `[size, size, 3]`.
///
/// As [`crate::patch_crop`], with the same [`draw`], except that the offset jitter is ignored: there are no pixels
/// outside the image to shift in. What rotation and scale bring in from outside is black.
pub fn global_view(
    resized: &[f32],
    size: usize,
    seed: u64,
    epoch: u32,
    sample_id: u64,
    aug: Option<&Augment>,
    out: BatchMut<'_>,
) -> Result<()> {
    if size == 0 {
        return Err(Error::Argument {
            what: "size",
            limit: "1 or more pixels",
            actual: "0".into(),
            help: "pass the side that the image was resized to",
        });
    }
    let expected = checked_elements("resized", &[size, size, 3])?;
    check_len("resized", "[size, size, 3]", resized.len(), expected)?;
    check_len("out", "[size, size, 3]", out.len(), expected)?;
    if let Some(aug) = aug {
        aug.check()?;
    }
    let draw = aug.map_or(Draw::IDENTITY, |aug| draw(seed, epoch, sample_id, aug));
    let window = Window {
        pixels: resized.as_chunks::<3>().0,
        stride: size,
        size,
    };
    if let Some(aug) = aug.filter(|aug| aug.interpolates()) {
        let erased = erased(seed, epoch, sample_id, aug, size);
        match out {
            BatchMut::F32(out) => show(SimdLevel::detect(), window, &draw, erased, out),
            BatchMut::Bf16(out) => show(SimdLevel::detect(), window, &draw, erased, out),
        }
        return Ok(());
    }
    match out {
        BatchMut::F32(out) => shade(SimdLevel::detect(), window, &draw, out),
        BatchMut::Bf16(out) => shade(SimdLevel::detect(), window, &draw, out),
    }
    Ok(())
}

fn shade<E: OutputElement>(level: SimdLevel, window: Window<'_, f32>, draw: &Draw, out: &mut [E]) {
    let size = window.size;
    let jitter = Jitter::new(draw, |brightness| mean_grey(level, window, brightness));
    out.par_chunks_mut(3 * size * BAND)
        .enumerate()
        .for_each_init(
            || (Shader::new(level, size), vec![[0.0; 3]; BAND * size]),
            |(shader, band), (index, out)| {
                let band = &mut band[..out.len() / 3];
                window.place(draw, index * BAND, band);
                let rows = band.chunks_exact(size).zip(out.chunks_exact_mut(3 * size));
                for (row, out) in rows {
                    shader.row(row.as_flattened(), jitter.as_ref(), out);
                }
            },
        );
}

/// As [`shade`] for an image that is interpolated.
fn show<E: OutputElement>(
    level: SimdLevel,
    window: Window<'_, f32>,
    draw: &Draw,
    erased: Option<Rectangle>,
    out: &mut [E],
) {
    let size = window.size;
    let jitter = Jitter::new(draw, |brightness| mean_grey(level, window, brightness));
    let surface = SourceImage {
        pixels: window.pixels,
        height: size,
        width: size,
    };
    let map = PointMap::new(draw, (0, 0), size);
    out.par_chunks_exact_mut(3 * size)
        .enumerate()
        .for_each_init(
            || (Shader::new(level, size), vec![[0.0; 3]; size]),
            |(shader, shown), (i, out)| {
                surface.show(&map, draw, size, i, shown);
                shader.row(shown.as_flattened(), jitter.as_ref(), out);
                erase(erased, i, out);
            },
        );
}

/// Mean grey after brightness, 0..1: each row is summed in fixed lanes, then the rows in order.
fn mean_grey(level: SimdLevel, window: Window<'_, f32>, brightness: f32) -> f32 {
    let rows: Vec<f64> = (0..window.size)
        .into_par_iter()
        .map(|y| grey_sum(level, window.row(y).as_flattened(), brightness))
        .collect();
    (rows.iter().sum::<f64>() / (window.size * window.size) as f64) as f32
}

multiversion! {
    fn grey_sum(row: &[f32], brightness: f32) -> f64 {
        #[inline(always)]
        fn bright(value: f32, brightness: f32) -> f64 {
            f64::from((value * (1.0 / 255.0) * brightness).clamp(0.0, 1.0))
        }
        let mut lanes = [0.0f64; LANES];
        let (blocks, rest) = row.as_chunks::<LANES>();
        for block in blocks {
            for (lane, &value) in lanes.iter_mut().zip(block) {
                *lane += bright(value, brightness);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += bright(value, brightness);
        }
        let mut sum = 0.0;
        for (k, lane) in lanes.iter().enumerate() {
            sum += f64::from(GREY[k % 3]) * lane;
        }
        sum
    }
}

#[cfg(test)]
mod tests;
