//! The grid of cells over an image: lesion pixels per class, black cells.

use crate::{Error, Result};

/// Largest working size: pixels along an edge.
pub const MAX_SIZE: u32 = 8192;

/// Smallest working size of images without cells, pixels.
pub const MIN_SIZE: u32 = 8;

/// Largest patch: pixels along an edge. One more and a cell's pixels would not fit u16.
pub const MAX_PATCH: u32 = 255;

/// Most classes of a target at patch level: a mask holds one bit of a byte for each.
pub const MAX_PATCH_CLASSES: usize = 8;

/// A pixel is dark when max(R, G, B) is below this.
pub const BLACK_LEVEL: u8 = 10;

/// A cell is black when at least this share of its pixels is dark.
pub const BLACK_FRACTION: f64 = 0.9;

/// How an image of `size x size` pixels is cut into `grid x grid` cells of `patch x patch`; with `patch` 0 it is not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cells {
    pub size: usize,
    pub patch: usize,
}

impl Cells {
    pub fn grid(self) -> usize {
        self.size.checked_div(self.patch).unwrap_or(0)
    }

    pub fn count(self) -> usize {
        self.grid() * self.grid()
    }

    /// Lesion pixels per cell and class, `[grid, grid, classes]`, from class bits per pixel `[size, size]`. Without
    /// classes the mask may be empty.
    pub fn areas(self, mask: &[u8], classes: usize) -> Vec<u16> {
        let grid = self.grid();
        let mut areas = vec![0u16; self.count() * classes];
        if areas.is_empty() {
            return areas;
        }
        for (y, row) in mask.chunks_exact(self.size).enumerate() {
            let first = y / self.patch * grid;
            for (column, pixels) in row.chunks_exact(self.patch).enumerate() {
                if pixels.iter().fold(0, |all, bits| all | bits) == 0 {
                    continue;
                }
                let cell = &mut areas[(first + column) * classes..][..classes];
                for (class, area) in cell.iter_mut().enumerate() {
                    // A patch is at most 255 wide, so a row of a cell counts up to 255 and a cell fits u16.
                    *area += pixels
                        .iter()
                        .map(|bits| u16::from(bits >> class & 1))
                        .sum::<u16>();
                }
            }
        }
        areas
    }

    /// 1 for black cells, `[grid, grid]`, from RGB pixels `[size, size, 3]`.
    pub fn black(self, pixels: &[u8]) -> Vec<u8> {
        let grid = self.grid();
        let mut dark = vec![0u32; self.count()];
        if dark.is_empty() {
            return Vec::new();
        }
        for (y, row) in pixels.chunks_exact(self.size * 3).enumerate() {
            let first = y / self.patch * grid;
            for (column, cell) in row.chunks_exact(self.patch * 3).enumerate() {
                let count: u16 = cell
                    .chunks_exact(3)
                    .map(|p| {
                        u16::from(
                            (p[0] < BLACK_LEVEL) & (p[1] < BLACK_LEVEL) & (p[2] < BLACK_LEVEL),
                        )
                    })
                    .sum();
                dark[first + column] += u32::from(count);
            }
        }
        let pixels_per_cell = (self.patch * self.patch) as f64;
        dark.into_iter()
            .map(|count| u8::from(f64::from(count) >= BLACK_FRACTION * pixels_per_cell))
            .collect()
    }
}

/// Whether a picture of `size` pixels can be cut into cells of `patch`; 0 for none.
pub(crate) fn check_grid(size: u32, patch: u32) -> Result<()> {
    if patch == 0 {
        return match (MIN_SIZE..=MAX_SIZE).contains(&size) {
            true => Ok(()),
            false => refuse(
                "--size",
                size,
                format!("must be {MIN_SIZE} to {MAX_SIZE}"),
                "256 is the usual size of images without cells",
            ),
        };
    }
    if !(8..=MAX_PATCH).contains(&patch) {
        return refuse(
            "--patch",
            patch,
            format!("must be 8 to {MAX_PATCH}"),
            "128 is the usual patch",
        );
    }
    if !(patch..=MAX_SIZE).contains(&size) {
        return refuse(
            "--size",
            size,
            format!("must be {patch} (--patch) to {MAX_SIZE}"),
            "1280 is the usual size",
        );
    }
    if !size.is_multiple_of(patch) {
        let below = size / patch * patch;
        let help = format!(
            "use {below} or {}",
            (below + patch).min(MAX_SIZE / patch * patch)
        );
        return refuse(
            "--size",
            size,
            format!("must be a multiple of --patch {patch}"),
            &help,
        );
    }
    Ok(())
}

/// The error of an option that is out of its range.
pub(crate) fn refuse(option: &'static str, value: u32, limit: String, help: &str) -> Result<()> {
    Err(Error::Option {
        option,
        value: value.to_string(),
        limit,
        help: help.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use fovea_task::{Label, Task};
    use proptest::prelude::*;

    use super::*;
    use crate::labels;

    const CELLS: Cells = Cells { size: 24, patch: 8 };

    proptest! {
        #[test]
        fn areas_and_labels_match_the_definition(mask in prop::collection::vec(0u8..16, 24 * 24), min in 1u32..20) {
            let areas = CELLS.areas(&mask, 4);
            let task = Task::lesions();
            let labels = labels::of_cells(task.cells().unwrap(), &areas, min);
            for row in 0..3 {
                for column in 0..3 {
                    let mut label = 0;
                    for class in 0..4 {
                        let mut count = 0;
                        for y in row * 8..row * 8 + 8 {
                            for x in column * 8..column * 8 + 8 {
                                count += u32::from(mask[y * 24 + x] >> class & 1);
                            }
                        }
                        prop_assert_eq!(u32::from(areas[(row * 3 + column) * 4 + class]), count);
                        label |= u64::from(count >= min) << class;
                    }
                    prop_assert_eq!(labels[row * 3 + column], Label(label));
                }
            }
        }
    }

    #[test]
    fn a_cell_turns_black_at_ninety_percent() {
        let cells = Cells {
            size: 20,
            patch: 10,
        };
        let mut pixels = vec![0u8; 20 * 20 * 3];
        // Cell (0, 1): 11 of 100 pixels lit, 89 % dark. Cell (1, 0): 10 lit, 90 % dark. A pixel is lit by one channel at 10.
        for x in 10..20 {
            pixels[(3 * 20 + x) * 3 + 1] = 10;
            pixels[(13 * 20 + x - 10) * 3 + 2] = 10;
        }
        pixels[(4 * 20 + 10) * 3] = 10;
        assert_eq!(cells.black(&pixels), [1, 0, 1, 1]);
        // Level 9 in all channels is still dark.
        assert_eq!(cells.black(&vec![9; 1200]), [1; 4]);
    }

    #[test]
    fn the_largest_cell_fits_its_count() {
        let cells = Cells {
            size: 255,
            patch: 255,
        };
        assert_eq!(
            cells.areas(&vec![0b1001; 255 * 255], 4),
            [65025, 0, 0, 65025]
        );
        assert!(cells.areas(&[], 0).is_empty());
    }
}
