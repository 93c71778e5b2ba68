//! Patch crop: 8-bit images to a normalised batch in one pass.

use rayon::prelude::*;

use crate::affine::{PointMap, Rectangle, SourceImage, class_counts, erased};
use crate::augment::{Augment, Draw, draw};
use crate::error::{Error, Result, check_len, checked_elements};
use crate::geometry::{BAND, Window};
use crate::shade::{GREY, Jitter, OutputElement, Shader};
use crate::simd::{SimdLevel, multiversion};
use crate::{BatchMut, ImageU8};

/// Channels line up with 32-lane byte vectors after this many elements.
const BYTES: usize = 96;

/// Where one sample lies, and its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropSpec {
    /// Index into the `images` of the same call.
    pub image: usize,
    /// Top row of the grid cell, pixels.
    pub y: u32,
    /// Left column of the grid cell, pixels.
    pub x: u32,
    /// Identity of the sample; its draws are hashed from it.
    pub sample_id: u64,
}

/// Crops one `size` x `size` patch per spec, augments it by the [`draw`] of its sample id, and writes `(x / 255 - mean)
/// / std` to `out`, `[specs.len(), size, size, 3]`.
///
/// In order: the window is shifted by the offset jitter and clamped into the image, rotated and scaled about its middle
/// (so it shows the image around it; beyond the image, black), mirrored, turned, then brightness (factor on the value),
/// contrast (blend with the mean grey of the window before it was rotated and scaled), saturation (blend with the
/// pixel's own grey), each clamped to 0..1, then normalised, and the [`erased`] rectangle set to 0. With `None` the patch
/// is cropped and normalised only.
pub fn patch_crop(
    images: &[ImageU8<'_>],
    specs: &[CropSpec],
    size: usize,
    seed: u64,
    epoch: u32,
    aug: Option<&Augment>,
    out: BatchMut<'_>,
) -> Result<()> {
    check(images, specs, size, &out)?;
    if let Some(aug) = aug {
        aug.check()?;
    }
    if let Some(aug) = aug.filter(|aug| aug.interpolates()) {
        let samples = views(images, specs, size, |spec| {
            let id = spec.sample_id;
            (
                draw(seed, epoch, id, aug),
                erased(seed, epoch, id, aug, size),
            )
        });
        match out {
            BatchMut::F32(out) => show_all(SimdLevel::detect(), &samples, size, out),
            BatchMut::Bf16(out) => show_all(SimdLevel::detect(), &samples, size, out),
        }
        return Ok(());
    }
    let samples: Vec<(Window<'_, u8>, Draw)> = specs
        .iter()
        .map(|spec| {
            let draw = aug.map_or(Draw::IDENTITY, |aug| draw(seed, epoch, spec.sample_id, aug));
            (window(&images[spec.image], spec, size, &draw), draw)
        })
        .collect();
    match out {
        BatchMut::F32(out) => shade_all(SimdLevel::detect(), &samples, size, out),
        BatchMut::Bf16(out) => shade_all(SimdLevel::detect(), &samples, size, out),
    }
    Ok(())
}

fn check(
    images: &[ImageU8<'_>],
    specs: &[CropSpec],
    size: usize,
    out: &BatchMut<'_>,
) -> Result<()> {
    if size == 0 {
        return Err(Error::Argument {
            what: "size",
            limit: "1 or more pixels",
            actual: "0".into(),
            help: "pass the patch size of the prepared dataset",
        });
    }
    for image in images {
        image.check()?;
    }
    let expected = checked_elements("out", &[specs.len(), size, size, 3])?;
    check_len("out", "[specs.len(), size, size, 3]", out.len(), expected)?;
    let side = |image: usize| (images[image].height, images[image].width);
    check_specs(images.len(), side, specs, size)
}

/// Returns an error for a spec that does not lie inside its image; `sides` gives (height, width) of an image.
pub(crate) fn check_specs(
    images: usize,
    sides: impl Fn(usize) -> (usize, usize),
    specs: &[CropSpec],
    size: usize,
) -> Result<()> {
    for &CropSpec {
        image,
        y,
        x,
        sample_id,
    } in specs
    {
        if image >= images {
            return Err(Error::ImageIndex {
                sample_id,
                image,
                images,
            });
        }
        let (height, width) = sides(image);
        let fits = |start: u32, length: usize| {
            length
                .checked_sub(size)
                .is_some_and(|last| start as usize <= last)
        };
        if !fits(y, height) || !fits(x, width) {
            return Err(Error::CropOutside {
                sample_id,
                image,
                y,
                x,
                size,
                height,
                width,
            });
        }
    }
    Ok(())
}

/// Pixels of each class under a crop: `mask` holds the class bits of the pixels of its image, `[height, width]`; the crop
/// is that of [`patch_crop`] for `draw`. Of a rotated or scaled crop, each pixel counts with the mask's nearest one, and
/// not at all beyond the image. Mirror, turns and erasing change no count.
///
/// # Errors
///
/// A mask that is not `[height, width]`, or a spec that does not lie inside it (its `image` is not looked at).
pub fn crop_areas(
    mask: &[u8],
    (height, width): (usize, usize),
    spec: &CropSpec,
    size: usize,
    draw: &Draw,
) -> Result<[u32; 8]> {
    let expected = checked_elements("mask", &[height, width])?;
    check_len("mask", "[height, width]", mask.len(), expected)?;
    let of_one = CropSpec { image: 0, ..*spec };
    check_specs(1, |_| (height, width), &[of_one], size)?;
    let corner = corner((height, width), spec, size, draw);
    Ok(class_counts(mask, (height, width), corner, size, draw))
}

/// Top row and left column of a checked spec's window, shifted and clamped into the image.
fn corner(
    (height, width): (usize, usize),
    spec: &CropSpec,
    size: usize,
    draw: &Draw,
) -> (usize, usize) {
    let shifted = |start: u32, shift: i32, length: usize| {
        let moved = (start as usize).saturating_add_signed(shift as isize);
        moved.min(length - size)
    };
    (
        shifted(spec.y, draw.dy, height),
        shifted(spec.x, draw.dx, width),
    )
}

/// The window of a checked spec, shifted and clamped into the image.
fn window<'a>(image: &ImageU8<'a>, spec: &CropSpec, size: usize, draw: &Draw) -> Window<'a, u8> {
    let (y, x) = corner((image.height, image.width), spec, size, draw);
    let (pixels, _) = image.data.as_chunks::<3>();
    Window {
        pixels: &pixels[y * image.width + x..],
        stride: image.width,
        size,
    }
}

fn shade_all<E: OutputElement>(
    level: SimdLevel,
    samples: &[(Window<'_, u8>, Draw)],
    size: usize,
    out: &mut [E],
) {
    out.par_chunks_exact_mut(3 * size * size)
        .zip(samples)
        .for_each_init(
            || (Shader::new(level, size), vec![[0; 3]; BAND * size]),
            |(shader, band), (out, (window, draw))| {
                let jitter = Jitter::new(draw, |brightness| mean_grey(level, window, brightness));
                for (index, out) in out.chunks_mut(3 * size * BAND).enumerate() {
                    let band = &mut band[..out.len() / 3];
                    window.place(draw, index * BAND, band);
                    let rows = band.chunks_exact(size).zip(out.chunks_exact_mut(3 * size));
                    for (row, out) in rows {
                        shader.row(row.as_flattened(), jitter.as_ref(), out);
                    }
                }
            },
        );
}

/// A sample that is interpolated: its window, the image around it, and what is drawn for it.
struct ShownSample<'a> {
    window: Window<'a, u8>,
    surface: SourceImage<'a, u8>,
    map: PointMap,
    draw: Draw,
    erased: Option<Rectangle>,
}

fn views<'a>(
    images: &[ImageU8<'a>],
    specs: &[CropSpec],
    size: usize,
    drawn: impl Fn(&CropSpec) -> (Draw, Option<Rectangle>),
) -> Vec<ShownSample<'a>> {
    let view = |spec: &CropSpec| {
        let image = &images[spec.image];
        let (draw, erased) = drawn(spec);
        let corner = corner((image.height, image.width), spec, size, &draw);
        ShownSample {
            window: window(image, spec, size, &draw),
            surface: SourceImage {
                pixels: image.data.as_chunks::<3>().0,
                height: image.height,
                width: image.width,
            },
            map: PointMap::new(&draw, corner, size),
            draw,
            erased,
        }
    };
    specs.iter().map(view).collect()
}

/// As [`shade_all`] for samples that are interpolated.
fn show_all<E: OutputElement>(
    level: SimdLevel,
    samples: &[ShownSample<'_>],
    size: usize,
    out: &mut [E],
) {
    out.par_chunks_exact_mut(3 * size * size)
        .zip(samples)
        .for_each_init(
            || (Shader::new(level, size), vec![[0.0; 3]; size]),
            |(shader, shown), (out, view)| {
                let ShownSample { window, draw, .. } = view;
                let jitter = Jitter::new(draw, |brightness| mean_grey(level, window, brightness));
                for (i, out) in out.chunks_exact_mut(3 * size).enumerate() {
                    view.surface.show(&view.map, draw, size, i, shown);
                    shader.row(shown.as_flattened(), jitter.as_ref(), out);
                    erase(view.erased, i, out);
                }
            },
        );
}

/// Sets what is erased of row `i`, `[size, 3]`, to the mean colour.
pub(crate) fn erase<E: OutputElement>(erased: Option<Rectangle>, i: usize, row: &mut [E]) {
    if let Some(rectangle) = erased {
        let columns = rectangle.columns(i);
        row[3 * columns.start..3 * columns.end].fill(E::ZERO);
    }
}

/// Mean grey of the window after brightness, 0..1. The sums are over integers, hence exact in any
/// order.
fn mean_grey(level: SimdLevel, window: &Window<'_, u8>, brightness: f32) -> f32 {
    // Values above the limit saturate at 1.
    let limit = (255.0 / brightness).min(255.0) as u8;
    let ChannelSums { below, above } = channel_sums(level, window, limit);
    let grey: f64 = (0..3)
        .map(|c| {
            let linear = below[c] as f64 * f64::from(brightness) / 255.0;
            f64::from(GREY[c]) * (linear + above[c] as f64)
        })
        .sum();
    (grey / (window.size * window.size) as f64) as f32
}

/// Per channel: the sum of the values up to a limit, and the number of values above it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct ChannelSums {
    below: [u64; 3],
    above: [u64; 3],
}

/// [`ChannelSums`] that are still spread over byte vectors.
struct ByteLanes {
    below: [u16; BYTES],
    above: [u16; BYTES],
    blocks: usize,
}

impl ByteLanes {
    /// Number of blocks whose sums fill 16 bits: 257 * 255 = 65535.
    const FULL: usize = 257;

    const EMPTY: Self = Self {
        below: [0; BYTES],
        above: [0; BYTES],
        blocks: 0,
    };

    /// Makes room for `blocks` more, if need be by moving the partial sums to `sums`.
    fn flush_unless_room(&mut self, blocks: usize, sums: &mut ChannelSums) {
        if self.blocks + blocks > Self::FULL {
            for k in 0..BYTES {
                sums.below[k % 3] += u64::from(self.below[k]);
                sums.above[k % 3] += u64::from(self.above[k]);
            }
            *self = Self::EMPTY;
        }
        self.blocks += blocks;
    }
}

multiversion! {
    fn channel_sums(window: &Window<'_, u8>, limit: u8) -> ChannelSums {
        let mut sums = ChannelSums::default();
        let mut lanes = ByteLanes::EMPTY;
        for y in 0..window.size {
            let (blocks, rest) = window.row(y).as_flattened().as_chunks::<BYTES>();
            for blocks in blocks.chunks(ByteLanes::FULL) {
                lanes.flush_unless_room(blocks.len(), &mut sums);
                for block in blocks {
                    let lanes = lanes.below.iter_mut().zip(&mut lanes.above);
                    for ((below, above), &value) in lanes.zip(block) {
                        let over = value > limit;
                        *below += if over { 0 } else { u16::from(value) };
                        *above += u16::from(over);
                    }
                }
            }
            for (k, &value) in rest.iter().enumerate() {
                let over = value > limit;
                sums.below[k % 3] += if over { 0 } else { u64::from(value) };
                sums.above[k % 3] += u64::from(over);
            }
        }
        lanes.flush_unless_room(ByteLanes::FULL + 1, &mut sums);
        sums
    }
}

#[cfg(test)]
mod tests;
