//! Cuts a square or another window out of a picture and scales it to the working size.

use crate::wide::wide;

/// A square of source pixels; parts outside the picture are black.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Square {
    /// Left edge in pixels; negative when the square begins outside the picture.
    pub x: i64,
    /// Upper edge in pixels.
    pub y: i64,
    /// Length of an edge in pixels, at least 1.
    pub side: u32,
}

impl Square {
    /// The smallest square around a whole picture, centred.
    pub fn around(width: u32, height: u32) -> Self {
        let side = width.max(height).max(1);
        let start = |length: u32| -i64::from((side - length) / 2);
        Self {
            x: start(width),
            y: start(height),
            side,
        }
    }
}

/// A window of source pixels that is brought to some number of pixels along each axis; parts outside the picture are black.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Left edge in source pixels; negative when the window begins outside the picture.
    pub x: f64,
    /// Upper edge in source pixels.
    pub y: f64,
    /// Source pixels per pixel of the result, along a row.
    pub step_x: f64,
    /// The same along a column.
    pub step_y: f64,
}

impl Square {
    /// The square as a window that is brought to `size` pixels.
    #[must_use]
    pub fn window(self, size: usize) -> Window {
        let step = f64::from(self.side) / size as f64;
        Window {
            x: self.x as f64,
            y: self.y as f64,
            step_x: step,
            step_y: step,
        }
    }
}

/// A picture in memory.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// The samples, row by row: `[height, width, channels]`.
    pub data: &'a [u8],
    /// Pixels in a row.
    pub width: usize,
    /// How many rows there are.
    pub height: usize,
    /// Bytes of a pixel.
    pub channels: usize,
}

/// The share that each source pixel has in one output pixel.
struct PixelShares {
    /// First source pixel, inside the picture.
    first: usize,
    weights: Vec<f32>,
}

/// Triangle filter of `out` pixels of `scale` source pixels each from `start`, widened by the scale when it shrinks (the
/// antialiased bilinear filter). Weights of pixels outside `0..length` count towards the sum: outside is black.
fn taps(start: f64, scale: f64, length: usize, out: usize) -> Vec<PixelShares> {
    let reach = scale.max(1.0);
    (0..out)
        .map(|i| {
            let centre = start + (i as f64 + 0.5) * scale;
            let from = (centre - reach).floor() as i64;
            let to = (centre + reach).ceil() as i64;
            let weight = |j: i64| (1.0 - ((j as f64 + 0.5 - centre) / reach).abs()).max(0.0);
            let sum: f64 = (from..to).map(weight).sum();
            let first = from.clamp(0, length as i64);
            let last = to.clamp(first, length as i64);
            let weights = (first..last).map(|j| (weight(j) / sum) as f32).collect();
            PixelShares {
                first: first as usize,
                weights,
            }
        })
        .collect()
}

/// `square` of `source` brought to `size x size`, `[size, size, channels]`.
pub fn resample(source: Plane, square: Square, size: usize) -> Vec<u8> {
    resample_window(source, square.window(size), size)
}

/// `window` of `source` brought to `size x size`, `[size, size, channels]`.
pub fn resample_window(source: Plane, window: Window, size: usize) -> Vec<u8> {
    let Plane {
        data,
        width,
        height,
        channels,
    } = source;
    let columns = taps(window.x, window.step_x, width, size);
    let mut out = vec![0; size * size * channels];
    let mut row = vec![0f32; width * channels];
    for (taps, out_row) in taps(window.y, window.step_y, height, size)
        .iter()
        .zip(out.chunks_exact_mut(size * channels))
    {
        let source_rows = || {
            let rows = taps.weights.iter().zip(taps.first..);
            rows.map(|(weight, y)| (*weight, &data[y * width * channels..][..width * channels]))
        };
        // The output is black already.
        if source_rows().all(|(_, source_row)| is_black(source_row)) {
            continue;
        }
        row.fill(0.0);
        for (weight, source_row) in source_rows() {
            add_row(&mut row, source_row, weight);
        }
        match channels {
            3 => shrink_row::<3>(&row, &columns, out_row),
            _ => shrink_row::<1>(&row, &columns, out_row),
        }
    }
    out
}

wide! {
    fn add_row(sums: &mut [f32], values: &[u8], weight: f32) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * f32::from(*value);
        }
    }
}

wide! {
    /// Whether all values are 0.
    fn is_black(values: &[u8]) -> bool {
        // In pieces: a row with something in it is known by its first ones.
        values.chunks(256).all(|piece| piece.iter().fold(0, |bits, v| bits | v) == 0)
    }
}

fn shrink_row<const C: usize>(row: &[f32], columns: &[PixelShares], out: &mut [u8]) {
    for (taps, pixel) in columns.iter().zip(out.chunks_exact_mut(C)) {
        let mut sum = [0.5f32; C];
        for (weight, source) in taps
            .weights
            .iter()
            .zip(row[taps.first * C..].chunks_exact(C))
        {
            for (sum, value) in sum.iter_mut().zip(source) {
                *sum += weight * value;
            }
        }
        for (pixel, sum) in pixel.iter_mut().zip(sum) {
            // Float to integer conversion saturates.
            *pixel = sum as u8;
        }
    }
}

/// A `window` of a lesion mask (255 for lesion, 0 elsewhere) brought to `size x size`: 1 where at least half of the pixel is
/// lesion. A lesion too small for that keeps its strongest pixel: shrinking must not turn a diseased cell into a healthy one.
pub fn resample_mask(source: Plane, window: Window, size: usize) -> Vec<u8> {
    let coverage = resample_window(source, window, size);
    let mut mask = vec![0u8; coverage.len()];
    let mut seen = vec![false; coverage.len()];
    let mut stack = Vec::new();
    let lit = (0..size).filter(|y| !is_black(&coverage[y * size..(y + 1) * size]));
    for start in lit.flat_map(|y| y * size..(y + 1) * size) {
        if coverage[start] == 0 || seen[start] {
            continue;
        }
        // One 8-connected lesion at a time.
        let mut strongest = start;
        seen[start] = true;
        stack.push(start);
        while let Some(at) = stack.pop() {
            mask[at] = u8::from(coverage[at] >= 128);
            if (coverage[at], strongest) > (coverage[strongest], at) {
                strongest = at;
            }
            let (x, y) = (at % size, at / size);
            for y in y.saturating_sub(1)..(y + 2).min(size) {
                for x in x.saturating_sub(1)..(x + 2).min(size) {
                    let next = y * size + x;
                    if coverage[next] > 0 && !seen[next] {
                        seen[next] = true;
                        stack.push(next);
                    }
                }
            }
        }
        mask[strongest] = 1;
    }
    mask
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plane(data: &[u8], width: usize, channels: usize) -> Plane<'_> {
        Plane {
            data,
            width,
            height: data.len() / width / channels,
            channels,
        }
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_same_picture(data in prop::collection::vec(any::<u8>(), 12 * 12 * 3)) {
            let square = Square::around(12, 12);
            prop_assert_eq!(resample(plane(&data, 12, 3), square, 12), data);
        }

        #[test]
        fn one_colour_stays_that_colour(value: u8, side in 4u32..60, size in 4usize..40) {
            let data = vec![value; (side * side) as usize];
            let out = resample(plane(&data, side as usize, 1), Square { x: i64::from(side) / 4, y: i64::from(side) / 4, side: side / 2 }, size);
            // Away from the picture's edge nothing of the black outside enters.
            let inner = &out[size / 2 * size + size / 4..][..size / 2];
            prop_assert!(inner.iter().all(|v| v.abs_diff(value) <= 1), "{:?}", inner);
        }
    }

    #[test]
    fn halving_weighs_neighbours_as_a_triangle_does() {
        // Weights at scale 2: 1/8, 3/8, 3/8, 1/8.
        let data: Vec<u8> = [0u8, 0, 80, 160, 0, 0].repeat(6);
        let out = resample(plane(&data, 6, 1), Square::around(6, 6), 3);
        assert_eq!(out[3..6], [10, 90, 20]);
    }

    #[test]
    fn outside_is_black_and_the_square_is_centred() {
        assert_eq!(
            Square::around(100, 60),
            Square {
                x: 0,
                y: -20,
                side: 100
            }
        );
        let data = vec![200u8; 100 * 60];
        let out = resample(plane(&data, 100, 1), Square::around(100, 60), 50);
        assert_eq!(out[..8 * 50], vec![0; 400]);
        assert_eq!(out[12 * 50 + 1..12 * 50 + 49], vec![200; 48]);
        assert_eq!(out[42 * 50..], vec![0; 400]);
    }

    #[test]
    fn no_lesion_vanishes_and_large_ones_keep_their_area() {
        let mut data = vec![0u8; 100 * 100];
        data[5 * 100 + 7] = 255;
        for y in 40..80 {
            for x in 40..80 {
                data[y * 100 + x] = 255;
            }
        }
        let mask = resample_mask(
            plane(&data, 100, 1),
            Square::around(100, 100).window(20),
            20,
        );
        assert_eq!(mask[20 + 1], 1, "one pixel of 10000 is still there");
        let inside = (8..16).flat_map(|y| (8..16).map(move |x| y * 20 + x));
        assert!(inside.clone().all(|i| mask[i] == 1));
        assert_eq!(mask.iter().filter(|m| **m == 1).count(), 1 + inside.count());
    }
}
