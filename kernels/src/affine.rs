//! Turning by any angle, scaling and erasing: the views of a sample that are more than a permutation of its pixels.
//!
//! Pixel (y, x) of the upright window, which mirror and quarter turns then permute, shows the point
//! `middle + 1/scale * R(rotation) (y, x - middle of the window)` of the image, by bilinear interpolation between pixel
//! centres (`align_corners` false, as `torch.nn.functional.grid_sample`). What lies outside the image is black.
//!
//! Sine, cosine and exponential are fixed polynomials in f64 of operations that IEEE 754 rounds in one way, so that a GPU
//! gives the same bits.

use crate::augment::{Augment, Draw};
use crate::philox::philox4x32;

/// Terms of sine and cosine: the next one is below 1e-14 for half of any angle up to 180 degrees.
const TERMS: u32 = 9;
/// Terms of the exponential: the next one is below 1e-17 for the logarithm of any aspect ratio.
const EXP_TERMS: u32 = 20;
/// torchvision's `RandomErasing`: share of the area that is erased, from and to.
const ERASED_AREA: [f64; 2] = [0.02, 0.33];
/// Logarithms of the smallest and the largest aspect ratio, 0.3 and 3.3.
const LOG_RATIO: [f64; 2] = [-1.203_972_804_325_936, 1.193_922_468_472_434_6];
/// How often a rectangle is drawn anew because it does not fit.
const ATTEMPTS: u32 = 10;

/// A rectangle of a sample, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Rectangle {
    /// Columns of row `row` that it covers; an empty range where it does not reach.
    pub(crate) fn columns(&self, row: usize) -> std::ops::Range<usize> {
        let (top, left) = (self.top as usize, self.left as usize);
        match (top..top + self.height as usize).contains(&row) {
            true => left..left + self.width as usize,
            false => 0..0,
        }
    }
}

/// Sine and cosine of an angle from -180 to 180 degrees, by way of half the angle.
fn sin_cos(degrees: f32) -> (f64, f64) {
    let half = f64::from(degrees) * (std::f64::consts::PI / 360.0);
    let square = half * half;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=TERMS).rev() {
        sin = 1.0 - square / f64::from(2 * k * (2 * k + 1)) * sin;
        cos = 1.0 - square / f64::from((2 * k - 1) * 2 * k) * cos;
    }
    sin *= half;
    (2.0 * sin * cos, cos * cos - sin * sin)
}

/// The exponential of a number around 0.
fn exp(x: f64) -> f64 {
    (1..=EXP_TERMS)
        .rev()
        .fold(1.0, |sum, k| 1.0 + x / f64::from(k) * sum)
}

/// A word as a number in 0..1, in steps of 2^-24.
fn unit(word: u32) -> f64 {
    f64::from(word >> 8) * (1.0 / 16_777_216.0)
}

/// The rectangle of sample `sample_id` that is erased in `epoch`, of a square of `size` pixels; `None` for none. As
/// torchvision's `RandomErasing(p = aug.erasing)`: up to ten attempts at a rectangle that fits.
///
/// Philox as in [`crate::draw`]: block 2 is (whether, unused, unused, unused), block 3 + k is attempt k (area, aspect,
/// row, column).
#[must_use]
pub fn erased(
    seed: u64,
    epoch: u32,
    sample_id: u64,
    aug: &Augment,
    size: usize,
) -> Option<Rectangle> {
    let key = [seed as u32, (seed >> 32) as u32];
    let (low, high) = (sample_id as u32, (sample_id >> 32) as u32);
    let [whether, ..] = philox4x32([low, high, epoch, 2], key);
    if unit(whether) >= f64::from(aug.erasing) {
        return None;
    }
    let area = size as f64 * size as f64;
    (0..ATTEMPTS).find_map(|attempt| {
        let [share, aspect, row, column] = philox4x32([low, high, epoch, 3 + attempt], key);
        let share = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * unit(share);
        let aspect = exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * unit(aspect));
        let height = ((area * share * aspect).sqrt() + 0.5) as u32;
        let width = ((area * share / aspect).sqrt() + 0.5) as u32;
        let side = size as u32;
        if height >= side || width >= side {
            return None;
        }
        let place = |word: u32, length: u32| {
            ((u64::from(word) * u64::from(side - length + 1)) >> 32) as u32
        };
        Some(Rectangle {
            top: place(row, height),
            left: place(column, width),
            height,
            width,
        })
    })
}

/// The map from pixels of the upright window to points of the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointMap {
    /// Cosine and sine of the angle over the scale.
    along: f32,
    across: f32,
    /// Middle of the window, in pixels from its first one.
    middle: f32,
    /// Middle of the window in the image.
    y: f32,
    x: f32,
}

impl PointMap {
    /// The map of a window of `size` pixels at `top`, `left` of its image.
    pub(crate) fn new(draw: &Draw, (top, left): (usize, usize), size: usize) -> Self {
        let (sin, cos) = sin_cos(draw.rotation);
        let scale = f64::from(draw.scale);
        let middle = (size - 1) as f32 * 0.5;
        Self {
            along: (cos / scale) as f32,
            across: (sin / scale) as f32,
            middle,
            y: top as f32 + middle,
            x: left as f32 + middle,
        }
    }

    /// The point (y, x) of the image that pixel (y, x) of the upright window shows, in pixel centres.
    pub(crate) fn source(&self, y: usize, x: usize) -> (f32, f32) {
        let (dy, dx) = (y as f32 - self.middle, x as f32 - self.middle);
        (
            self.y + (self.across * dx + self.along * dy),
            self.x + (self.along * dx - self.across * dy),
        )
    }
}

/// The largest whole number up to `value`, and the rest in 0..1.
fn floor(value: f32) -> (i32, f32) {
    let whole = value as i32;
    let whole = if whole as f32 > value {
        whole - 1
    } else {
        whole
    };
    (whole, value - whole as f32)
}

/// An image to interpolate in, RGB values in 0..255.
#[derive(Clone, Copy)]
pub(crate) struct SourceImage<'a, T> {
    /// `[height, width]` pixels.
    pub pixels: &'a [[T; 3]],
    pub height: usize,
    pub width: usize,
}

impl<T: Copy + Into<f32>> SourceImage<'_, T> {
    fn at(&self, y: i32, x: i32) -> [f32; 3] {
        match (usize::try_from(y), usize::try_from(x)) {
            (Ok(y), Ok(x)) if y < self.height && x < self.width => {
                self.pixels[y * self.width + x].map(Into::into)
            }
            _ => [0.0; 3],
        }
    }

    /// The value between the four pixels around a point; black outside.
    fn between(&self, (y, x): (f32, f32)) -> [f32; 3] {
        let ((y, down), (x, right)) = (floor(y), floor(x));
        let (a, b) = (self.at(y, x), self.at(y, x + 1));
        let (c, d) = (self.at(y + 1, x), self.at(y + 1, x + 1));
        let (up, left) = (1.0 - down, 1.0 - right);
        [0, 1, 2].map(|k| {
            let upper = left * a[k] + right * b[k];
            let lower = left * c[k] + right * d[k];
            up * upper + down * lower
        })
    }

    /// Writes the rows of a sample from `first` on; `band` is `[rows, size]` pixels.
    pub(crate) fn show(
        &self,
        map: &PointMap,
        draw: &Draw,
        size: usize,
        first: usize,
        band: &mut [[f32; 3]],
    ) {
        for (i, row) in (first..).zip(band.chunks_exact_mut(size)) {
            for (j, out) in row.iter_mut().enumerate() {
                let (y, x) = upright(draw, size, i, j);
                *out = self.between(map.source(y, x));
            }
        }
    }
}

/// The pixel (y, x) of the upright window that pixel (i, j) of the output shows, as `Window::place` has it.
fn upright(draw: &Draw, size: usize, i: usize, j: usize) -> (usize, usize) {
    let last = size - 1;
    let (y, x) = match draw.turns {
        0 => (i, j),
        1 => (j, last - i),
        2 => (last - i, last - j),
        _ => (last - j, i),
    };
    (y, if draw.flip { last - x } else { x })
}

/// The number of pixels of a sample that show each class of a mask, `[height, width]` class bits: those of the window at
/// `corner` (top, left), as rotation and scale change it, by the nearest pixel. Mirror, quarter turns and erasing change no
/// count.
pub(crate) fn class_counts(
    mask: &[u8],
    (height, width): (usize, usize),
    corner: (usize, usize),
    size: usize,
    draw: &Draw,
) -> [u32; 8] {
    let mut times = [0u32; 256];
    let mut count = |bits: u8| times[usize::from(bits)] += 1;
    if draw.is_upright() {
        for row in mask.chunks_exact(width).skip(corner.0).take(size) {
            row[corner.1..corner.1 + size]
                .iter()
                .copied()
                .for_each(&mut count);
        }
    } else {
        let map = PointMap::new(draw, corner, size);
        let inside =
            |value: i32, length: usize| usize::try_from(value).ok().filter(|v| *v < length);
        for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
            let (y, x) = map.source(y, x);
            let (y, x) = (floor(y + 0.5).0, floor(x + 0.5).0);
            if let (Some(y), Some(x)) = (inside(y, height), inside(x, width)) {
                count(mask[y * width + x]);
            }
        }
    }
    let mut counts = [0; 8];
    for (bits, times) in times.iter().enumerate() {
        for (class, count) in counts.iter_mut().enumerate() {
            *count += times * (bits as u32 >> class & 1);
        }
    }
    counts
}

#[cfg(test)]
mod tests;
