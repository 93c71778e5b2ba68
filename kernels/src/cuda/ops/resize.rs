//! Antialiased resize on a GPU.

use super::check_side;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32};
use crate::error;

/// Threads of a block: one per channel of 64 output columns.
const THREADS: u32 = 192;
const COLUMNS: usize = 64;
/// 32-bit words of a table entry; the weights follow the entries.
const ENTRY: usize = 4;

/// The taps of an axis that goes from `input` to `output` pixels, ready to upload: `output` entries of 4 words (first
/// source pixel, number of taps, index of the first weight, 0), then all weights as the bits of f32.
///
/// # Errors
///
/// A side that is 0 or beyond 16384 pixels.
pub fn resize_table(input: usize, output: usize) -> crate::Result<Vec<u32>> {
    check_side("input", input)?;
    check_side("output", output)?;
    let taps = crate::resize::taps(input, output);
    let mut table = Vec::with_capacity(ENTRY * output);
    let mut start = 0;
    for taps in &taps {
        let count = taps.weights.len() as u32;
        table.extend([taps.first as u32, count, start, 0]);
        start += count;
    }
    let weights = taps.iter().flat_map(|taps| &taps.weights);
    table.extend(weights.map(|weight| weight.to_bits()));
    Ok(table)
}

/// [`crate::resize_antialias`] of resident images of one size, with the same bits.
///
/// An image of another size, or an index beyond the resident images, gives NaN.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    /// Address of the resident images' records, `[image_count]` [`crate::cuda::ImageRecord`].
    pub images: u64,
    /// Number of resident images.
    pub image_count: usize,
    /// Address of `[n]` u32: index of each image to resize.
    pub selection: u64,
    /// Number of images to resize, at most 65535.
    pub n: usize,
    /// Height and width of the images, pixels, each 1 to 16384.
    pub input: (usize, usize),
    /// Height and width of the result, pixels, each 1 to 16384.
    pub output: (usize, usize),
    /// Address of the [`resize_table`] of the heights.
    pub rows: u64,
    /// Address of the [`resize_table`] of the widths.
    pub columns: u64,
    /// Address of the result, `[n, height, width, 3]` f32 in 0..255; written.
    pub out: u64,
}

impl Op for Resize {
    fn launches(&self) -> Result<Vec<Launch>> {
        let ((in_height, in_width), (height, width)) = (self.input, self.output);
        check_side("Resize::input's height", in_height)?;
        check_side("Resize::input's width", in_width)?;
        check_side("Resize::output's height", height)?;
        check_side("Resize::output's width", width)?;
        error::checked_elements("Resize::out", &[self.n, height, width, 12])?;
        let images = index32("Resize::image_count", self.image_count)?;
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("Resize::images", self.images, 8)?;
        address("Resize::selection", self.selection, 4)?;
        address("Resize::rows", self.rows, 4)?;
        address("Resize::columns", self.columns, 4)?;
        address("Resize::out", self.out, 4)?;
        let grid = [width.div_ceil(COLUMNS), height, self.n];
        Ok(vec![
            Launch::new("fovea_resize", "Resize", grid, THREADS)?
                .u64(self.images)
                .u32(images)
                .u64(self.selection)
                .u64(self.rows)
                .u64(self.columns)
                .u32(in_height as u32)
                .u32(in_width as u32)
                .u32(height as u32)
                .u32(width as u32)
                .u64(self.out),
        ])
    }
}
