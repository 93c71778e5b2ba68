//! Mirroring and quarter turns: permutations of the pixels of a square window.

use crate::augment::Draw;

/// Rows that are permuted together. Whole cache lines of the source are used even when rows become columns, and the
/// band stays in the first-level cache.
pub(crate) const BAND: usize = 16;

/// A square of RGB pixels inside a larger image.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a, T> {
    /// Pixels from the top left one of the square on, at least `(size - 1) * stride + size`.
    pub pixels: &'a [[T; 3]],
    /// Distance from one row to the next, pixels.
    pub stride: usize,
    /// Length of a side, pixels.
    pub size: usize,
}

impl<'a, T: Copy> Window<'a, T> {
    /// Row `y` of the window, as it lies in the image.
    pub(crate) fn row(&self, y: usize) -> &'a [[T; 3]] {
        let start = y * self.stride;
        &self.pixels[start..start + self.size]
    }

    /// Writes the rows of the output from `first` on: mirrored, then turned. `band` is `[rows, size]` pixels.
    ///
    /// With `last = size - 1`, pixel (i, j) of the output is pixel (y, x) of the window: (i, j) without a turn, (j,
    /// last - i) after one, (last - i, last - j) after two, (last - j, i) after three; for a mirrored window, last - x
    /// takes the place of x.
    pub(crate) fn place(&self, draw: &Draw, first: usize, band: &mut [[T; 3]]) {
        if draw.turns.is_multiple_of(2) {
            self.place_rows(draw, first, band);
        } else {
            self.place_columns(draw, first, band);
        }
    }

    /// No turn or a half turn: rows stay rows.
    fn place_rows(&self, draw: &Draw, first: usize, band: &mut [[T; 3]]) {
        let half_turn = draw.turns == 2;
        for (i, out) in (first..).zip(band.chunks_exact_mut(self.size)) {
            let row = self.row(if half_turn { self.size - 1 - i } else { i });
            if half_turn == draw.flip {
                out.copy_from_slice(row);
            } else {
                for (out, pixel) in out.iter_mut().zip(row.iter().rev()) {
                    *out = *pixel;
                }
            }
        }
    }

    /// A quarter turn either way: columns become rows.
    fn place_columns(&self, draw: &Draw, first: usize, band: &mut [[T; 3]]) {
        let size = self.size;
        let rows = band.len() / size;
        let from_right = (draw.turns == 1) != draw.flip;
        let columns = if from_right {
            size - first - rows..size - first
        } else {
            first..first + rows
        };
        for j in 0..size {
            let y = if draw.turns == 3 { size - 1 - j } else { j };
            let pixels = &self.row(y)[columns.clone()];
            let outputs = band.chunks_exact_mut(size);
            if from_right {
                for (out, pixel) in outputs.zip(pixels.iter().rev()) {
                    out[j] = *pixel;
                }
            } else {
                for (out, pixel) in outputs.zip(pixels) {
                    out[j] = *pixel;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place_all(size: usize, flip: bool, turns: u8, band: usize) -> Vec<[u32; 3]> {
        let stride = size + 3;
        let pixels: Vec<[u32; 3]> = (0..(stride * size) as u32)
            .map(|i| [3 * i, 3 * i + 1, 3 * i + 2])
            .collect();
        let window = Window {
            pixels: &pixels,
            stride,
            size,
        };
        let draw = Draw {
            flip,
            turns,
            ..Draw::IDENTITY
        };
        let mut out = vec![[0; 3]; size * size];
        for (index, chunk) in out.chunks_mut(band * size).enumerate() {
            window.place(&draw, index * band, chunk);
        }
        // Back to (row, column) in the window.
        out.iter_mut().for_each(|p| {
            let index = p[0] / 3;
            assert_eq!(
                *p,
                [3 * index, 3 * index + 1, 3 * index + 2],
                "channels stay together"
            );
            *p = [index / stride as u32, index % stride as u32, 0];
        });
        out
    }

    #[test]
    fn one_turn_is_counter_clockwise() {
        // [[a b], [c d]] -> [[b d], [a c]], as numpy.rot90 and torch.rot90.
        let out = place_all(2, false, 1, 1);
        assert_eq!(out, [[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]);
    }

    #[test]
    fn mirror_comes_before_the_turn() {
        // [[a b], [c d]] -> [[b a], [d c]] -> [[a c], [b d]].
        let out = place_all(2, true, 1, 2);
        assert_eq!(out, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]);
    }

    proptest! {
        #[test]
        fn all_eight_are_permutations(size in 1usize..40, flip: bool, turns in 0u8..4, band in 1usize..20) {
            let out = place_all(size, flip, turns, band);
            let mut seen = out.clone();
            seen.sort_unstable();
            let all: Vec<[u32; 3]> = (0..size as u32)
                .flat_map(|y| (0..size as u32).map(move |x| [y, x, 0]))
                .collect();
            prop_assert_eq!(seen, all);
            let last = size - 1;
            for i in 0..size {
                for j in 0..size {
                    let (y, x) = [(i, j), (j, last - i), (last - i, last - j), (last - j, i)][turns as usize];
                    let x = if flip { last - x } else { x };
                    prop_assert_eq!(out[i * size + j], [y as u32, x as u32, 0]);
                }
            }
        }
    }
}
