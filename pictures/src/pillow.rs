//! Pillow's antialiased bilinear filter on 8-bit pictures, bit for bit.
//!
//! `PIL.Image.resize(size, BILINEAR)`, and so torchvision's `Resize` of a PIL image: a triangle filter, widened by the
//! scale where it shrinks, first along rows, then along columns, each pass in integers of [`PRECISION`] bits and rounded to
//! 8 bits (Pillow, `src/libImaging/Resample.c`).

use crate::resample::Plane;
use crate::wide::wide;

/// Bits behind the point of a weight; the sums of 8-bit values fit 32 bits.
const PRECISION: u32 = 32 - 8 - 2;

/// One axis of a resize: a line of pixels on which the picture lies, and which of the resized line's pixels are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Pixels of the line that is resized. Those that the picture does not cover are black.
    pub length: usize,
    /// Where on it the picture begins; negative when the picture begins before it.
    pub offset: i64,
    /// Pixels of the line once resized.
    pub resized: usize,
    /// The first of them that is wanted.
    pub first: usize,
    /// How many are wanted.
    pub count: usize,
}

impl Axis {
    /// All of `length` pixels, brought to `resized`.
    #[must_use]
    pub fn whole(length: usize, resized: usize) -> Self {
        Self {
            length,
            offset: 0,
            resized,
            first: 0,
            count: resized,
        }
    }

    /// Where the wanted part begins, and the length of its pixels, in pixels of the picture.
    #[must_use]
    pub fn start_and_step(&self) -> (f64, f64) {
        let step = self.length as f64 / self.resized as f64;
        (self.first as f64 * step - self.offset as f64, step)
    }

    /// The triangle filter of each wanted pixel over the `picture` pixels of the picture.
    fn blends(&self, picture: usize) -> Vec<Blend> {
        let scale = self.length as f64 / self.resized as f64;
        let support = scale.max(1.0);
        let one = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            let from = (centre - support + 0.5).max(0.0) as usize;
            let to = ((centre + support + 0.5) as usize).min(self.length);
            let share =
                |j: usize| (1.0 - ((j as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
            let sum: f64 = (from..to).map(share).sum();
            let weight = |j: usize| (0.5 + share(j) / sum * f64::from(1 << PRECISION)) as i32;
            let inside = |at: usize| (at as i64 - self.offset).clamp(0, picture as i64) as usize;
            let (first, last) = (inside(from), inside(to));
            let weights = first..last.max(first);
            Blend {
                first,
                weights: weights
                    .map(|j| weight((j as i64 + self.offset) as usize))
                    .collect(),
            }
        };
        (self.first..self.first + self.count).map(one).collect()
    }
}

/// The source pixels that one output pixel blends, along one axis.
struct Blend {
    first: usize,
    /// Weights in units of 2^-[`PRECISION`].
    weights: Vec<i32>,
}

/// Bytes between the two passes, `[rows of the picture, wanted columns, channels]`.
#[must_use]
pub fn memory(source: Plane, columns: &Axis) -> usize {
    source.height * columns.count * source.channels
}

/// The whole of `source` brought to `width x height`, `[height, width, channels]`.
#[must_use]
pub fn resize(source: Plane, width: usize, height: usize) -> Vec<u8> {
    let columns = Axis::whole(source.width, width);
    resize_part(source, &columns, &Axis::whole(source.height, height))
}

/// The wanted part of `source` on a larger or smaller ground, resized: `[rows.count, columns.count, channels]`. The bits are
/// those of `resize` of the whole line that each axis describes.
#[must_use]
pub fn resize_part(source: Plane, columns: &Axis, rows: &Axis) -> Vec<u8> {
    let channels = source.channels;
    let sides = [columns, rows].map(|axis| axis.count.min(axis.length).min(axis.resized));
    if sides.contains(&0) || [source.width, source.height, channels].contains(&0) {
        return vec![0; rows.count * columns.count * channels];
    }
    let narrow = match channels {
        3 => along_rows::<3>(source, columns),
        _ => along_rows::<1>(source, columns),
    };
    along_columns(&narrow, columns.count * channels, source.height, rows)
}

/// A sum of weighted values as 8 bits.
#[inline(always)]
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn along_rows<const C: usize>(source: Plane, columns: &Axis) -> Vec<u8> {
    let width = columns.count;
    let columns = columns.blends(source.width);
    let mut out = vec![0; width * source.height * C];
    let rows = source.data.chunks_exact(source.width * C);
    for (row, out) in rows.zip(out.chunks_exact_mut(width * C)) {
        for (blend, pixel) in columns.iter().zip(out.as_chunks_mut::<C>().0) {
            let mut sums = [1i32 << (PRECISION - 1); C];
            let values = row[blend.first * C..].as_chunks::<C>().0;
            for (weight, value) in blend.weights.iter().zip(values) {
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum += weight * i32::from(*value);
                }
            }
            for (pixel, sum) in pixel.iter_mut().zip(sums) {
                *pixel = rounded(sum);
            }
        }
    }
    out
}

/// The `height` rows of `length` values each, resized.
fn along_columns(values: &[u8], length: usize, height: usize, rows: &Axis) -> Vec<u8> {
    let mut out = vec![0; length * rows.count];
    let mut sums = vec![0i32; length];
    let blends = rows.blends(height);
    for (blend, out) in blends.iter().zip(out.chunks_exact_mut(length)) {
        sums.fill(1 << (PRECISION - 1));
        let rows = values[blend.first * length..].chunks_exact(length);
        for (weight, row) in blend.weights.iter().zip(rows) {
            add_row(&mut sums, row, *weight);
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = rounded(*sum);
        }
    }
    out
}

wide! {
    fn add_row(sums: &mut [i32], values: &[u8], weight: i32) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * i32::from(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The picture of the golden numbers: `[height, width, channels]`, by the generator that their script has too.
    fn pattern(width: usize, height: usize, channels: usize) -> Vec<u8> {
        let mut state = 12_345u32;
        (0..width * height * channels)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn every_bit_is_pillows() {
        let golden = include_str!("../../tests/golden/pillow_resize.txt");
        let mut cases = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let numbers: Vec<usize> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let [channels, w, h, width, height] = numbers[..5] else {
                panic!("{line}")
            };
            let data = pattern(w, h, channels);
            let plane = Plane {
                data: &data,
                width: w,
                height: h,
                channels,
            };
            let expected: Vec<u8> = numbers[5..].iter().map(|v| *v as u8).collect();
            assert_eq!(
                resize(plane, width, height),
                expected,
                "{w} x {h} to {width} x {height}"
            );
            cases += 1;
        }
        assert!(cases >= 12, "{cases}");
    }

    /// A part of a picture on a larger ground has the bits of the whole, made by hand.
    #[test]
    fn a_part_on_a_ground_is_that_of_the_whole() {
        let data = pattern(9, 4, 3);
        let source = Plane {
            data: &data,
            width: 9,
            height: 4,
            channels: 3,
        };
        let mut ground = vec![0u8; 9 * 9 * 3];
        ground[2 * 27..6 * 27].copy_from_slice(&data);
        let ground = Plane {
            data: &ground,
            height: 9,
            ..source
        };
        let whole = resize(ground, 7, 7);
        let axis = |offset| Axis {
            length: 9,
            offset,
            resized: 7,
            first: 2,
            count: 4,
        };
        assert_eq!(axis(2).start_and_step(), (2.0 * 9.0 / 7.0 - 2.0, 9.0 / 7.0));
        let part = resize_part(source, &axis(0), &axis(2));
        for y in 0..4 {
            let from = ((y + 2) * 7 + 2) * 3;
            assert_eq!(part[y * 12..y * 12 + 12], whole[from..from + 12], "row {y}");
        }
        // A line that the picture does not touch is black.
        assert_eq!(resize_part(source, &axis(20), &axis(0)), [0; 48]);
        assert_eq!(resize_part(source, &axis(-20), &axis(0)), [0; 48]);
    }

    proptest! {
        #[test]
        fn any_sizes_give_a_picture_within_the_range_of_the_source(
            w in 1usize..20, h in 1usize..20, width in 1usize..30, height in 1usize..30, low in 0u8..100, spread in 0u8..100,
        ) {
            let data: Vec<u8> = pattern(w, h, 3).iter().map(|v| low + v % (spread + 1)).collect();
            let plane = Plane { data: &data, width: w, height: h, channels: 3 };
            let out = resize(plane, width, height);
            prop_assert_eq!(out.len(), width * height * 3);
            // Weights are rounded, so a sum may miss the range by one.
            prop_assert!(out.iter().all(|v| (low.saturating_sub(1)..=low + spread + 1).contains(v)));
            if (w, h) == (width, height) {
                prop_assert_eq!(out, data);
            }
        }
    }
}
