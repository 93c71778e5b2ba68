//! The pixel planes that everything is drawn on. Positions are in pixels; pixel (x, y) covers
//! `[x, x + 1) x [y, y + 1)` and is sampled at its centre.

/// Axis-aligned box of whole pixels, end exclusive, already cut to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    /// The first column, from 0 at the left.
    pub(super) x0: usize,
    /// The first row, from 0 at the top.
    pub(super) y0: usize,
    /// One past the last column.
    pub(super) x1: usize,
    /// One past the last row.
    pub(super) y1: usize,
}

impl Rect {
    /// The pixels within `reach` of (x, y) in an image of `size` x `size`; may be empty.
    pub(super) fn around(x: f32, y: f32, reach: f32, size: usize) -> Self {
        let low = |v: f32| (v - reach).floor().clamp(0.0, size as f32) as usize;
        let high = |v: f32| (v + reach).ceil().clamp(0.0, size as f32) as usize;
        Self {
            x0: low(x),
            y0: low(y),
            x1: high(x),
            y1: high(y),
        }
    }

    /// Calls `f(index, x, y)` for every pixel: its place in a plane and its centre.
    pub(super) fn for_each(self, size: usize, mut f: impl FnMut(usize, f32, f32)) {
        for row in self.y0..self.y1 {
            for column in self.x0..self.x1 {
                f(row * size + column, column as f32 + 0.5, row as f32 + 0.5);
            }
        }
    }
}

/// One f32 per pixel, `[size, size]`.
pub(super) struct ScalarField {
    /// Edge length in pixels.
    pub(super) size: usize,
    /// One value per pixel, row by row.
    pub(super) data: Vec<f32>,
}

impl ScalarField {
    /// A field of `size` x `size` zeros.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            data: vec![0.0; size * size],
        }
    }

    /// Keeps the larger of what is there and `f(x, y)` within `rect`.
    pub(super) fn stamp(&mut self, rect: Rect, f: impl Fn(f32, f32) -> f32) {
        let data = &mut self.data;
        rect.for_each(self.size, |i, x, y| data[i] = data[i].max(f(x, y)));
    }

    /// Sets every pixel to zero, for the next image.
    pub(super) fn clear(&mut self) {
        self.data.fill(0.0);
    }
}

/// The photograph while it is painted: RGB in display space, 0 black, 1 white, `[size, size]`.
pub(super) struct Canvas {
    /// Edge length in pixels.
    pub(super) size: usize,
    /// Red, green and blue per pixel, row by row.
    pub(super) rgb: Vec<[f32; 3]>,
}

impl Canvas {
    /// A black picture of `size` x `size` pixels.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            rgb: vec![[0.0; 3]; size * size],
        }
    }

    /// Lays an absorbing layer over the picture: colour times `exp(-density * absorption)`
    /// (Beer-Lambert, per channel).
    pub(super) fn absorb(&mut self, density: &ScalarField, absorption: [f32; 3]) {
        for (pixel, &d) in self.rgb.iter_mut().zip(&density.data) {
            if d > 1e-3 {
                for (value, k) in pixel.iter_mut().zip(absorption) {
                    *value *= (-d * k).exp();
                }
            }
        }
    }

    /// Lays a scattering layer over the picture: adds `alpha * gain` in units of the local red
    /// (the retina's brightness there), so that deposits in the shade stay in the shade.
    pub(super) fn scatter(&mut self, alpha: &ScalarField, gain: [f32; 3]) {
        for (pixel, &a) in self.rgb.iter_mut().zip(&alpha.data) {
            if a > 1e-3 {
                let light = pixel[0];
                for (value, g) in pixel.iter_mut().zip(gain) {
                    *value += a * g * light;
                }
            }
        }
    }
}

/// A lesion mask: coverage of each pixel in 1/255, `[size, size]`, and the grid cells it touches.
pub(super) struct LesionMask {
    /// Edge length in pixels.
    pub(super) size: usize,
    /// The coverage per pixel, row by row.
    pub(super) data: Vec<u8>,
    cells: [bool; CELLS * CELLS],
}

/// Cells per edge that lesion counts are planned in: FGADR's 128-pixel patches at 1280 pixels.
pub(super) const CELLS: usize = 10;

/// The value from which a pixel counts as lesion (FGADR's masks are anti-aliased).
pub(super) const POSITIVE: u8 = 128;

impl LesionMask {
    /// A mask of `size` x `size` pixels without a lesion.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            data: vec![0; size * size],
            cells: [false; CELLS * CELLS],
        }
    }

    /// Adds coverage (0..1) to the pixel at `index` (the larger of old and new stays).
    pub(super) fn cover(&mut self, index: usize, coverage: f32) {
        let value = (coverage * 255.0 + 0.5) as u8;
        if value > self.data[index] {
            self.data[index] = value;
            if value >= POSITIVE {
                let (row, column) = (index / self.size, index % self.size);
                self.cells[row * CELLS / self.size * CELLS + column * CELLS / self.size] = true;
            }
        }
    }

    /// Number of grid cells with at least one positive pixel.
    pub(super) fn cells_touched(&self) -> usize {
        self.cells.iter().filter(|&&touched| touched).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_to_the_image() {
        let rect = Rect::around(2.0, 98.5, 4.0, 100);
        assert_eq!(
            rect,
            Rect {
                x0: 0,
                y0: 94,
                x1: 6,
                y1: 100
            }
        );
        let outside = Rect::around(-50.0, 20.0, 4.0, 100);
        assert_eq!(outside.x1, 0);
    }

    #[test]
    fn a_mask_counts_cells_by_positive_pixels_only() {
        let mut mask = LesionMask::new(100);
        mask.cover(5 * 100 + 5, 0.4);
        assert_eq!(mask.cells_touched(), 0);
        mask.cover(5 * 100 + 5, 0.9);
        mask.cover(5 * 100 + 6, 1.0);
        mask.cover(95 * 100 + 95, 1.0);
        assert_eq!(mask.cells_touched(), 2);
        assert_eq!(mask.data[5 * 100 + 5], 230);
    }
}
