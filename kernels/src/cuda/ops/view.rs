//! The whole-image branch's input on a GPU.

use super::{THREADS, augment, bands, check_side, interpolating, interpolation};
use crate::augment::Augment;
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32, wide};
use crate::{DType, error};

/// Rows whose grey one block sums: one per warp.
const ROWS: usize = THREADS as usize / 32;

/// [`crate::global_view`] of a batch of resized images, with the same bits.
///
/// An index beyond the resized images gives NaN.
#[derive(Clone, Copy, Debug)]
pub struct GlobalView<'a> {
    /// Address of the resized images, `[count, size, size, 3]` f32 in 0..255, from [`crate::cuda::Resize`].
    pub resized: u64,
    /// Number of resized images.
    pub count: usize,
    /// Address of `[n]` u32: index of each sample's resized image.
    pub selection: u64,
    /// Address of `[n]` u64: the ids that the samples' draws are hashed from.
    pub sample_ids: u64,
    /// Number of images in the batch, at most 65535.
    pub n: usize,
    /// Address of one [`crate::cuda::StepRecord`].
    pub step: u64,
    /// Side of the images and of the views, pixels, 1 to 16384.
    pub size: usize,
    /// Strengths, whose offset is ignored; with none the views are normalised only.
    pub augment: Option<&'a Augment>,
    /// Address of [`GlobalView::scratch_bytes`] bytes, 8-byte aligned; may be 0 where that is 0.
    pub scratch: u64,
    /// Element type of `out`.
    pub dtype: DType,
    /// Address of the result, `[n, size, size, 3]`, a channels-last batch. With 16-byte alignment and a `size` that is
    /// a multiple of 8 the kernel writes 16 bytes at a time.
    pub out: u64,
}

impl GlobalView<'_> {
    /// Bytes of scratch memory: with contrast, sums per row and means; without, 0.
    #[must_use]
    pub fn scratch_bytes(n: usize, size: usize, augment: Option<&Augment>) -> usize {
        if with_means(augment) {
            n * size * 8 + n * 4
        } else {
            0
        }
    }

    /// A launch with the arguments that the kernels for rows and views begin with.
    fn begin(&self, kernel: &'static str, grid: [usize; 3]) -> Result<Launch> {
        let launch = Launch::new(kernel, "GlobalView", grid, THREADS)?
            .u64(self.resized)
            .u32(index32("GlobalView::count", self.count)?)
            .u64(self.selection)
            .u64(self.sample_ids)
            .u64(self.step)
            .u32(self.size as u32);
        Ok(augment(launch, self.augment))
    }
}

fn with_means(augment: Option<&Augment>) -> bool {
    augment.is_some_and(|augment| augment.contrast != 0.0)
}

impl Op for GlobalView<'_> {
    fn launches(&self) -> Result<Vec<Launch>> {
        check_side("GlobalView::size", self.size)?;
        if let Some(augment) = self.augment {
            augment.check()?;
        }
        let most = self.n.max(self.count);
        error::checked_elements("GlobalView::out", &[most, self.size, self.size, 12])?;
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("GlobalView::resized", self.resized, 4)?;
        address("GlobalView::selection", self.selection, 4)?;
        address("GlobalView::sample_ids", self.sample_ids, 8)?;
        address("GlobalView::step", self.step, 8)?;
        let shown = interpolating(self.augment);
        let (kernel, bytes) = match (self.dtype, shown.is_some()) {
            (DType::F32, false) => ("fovea_view_f32", 4),
            (DType::Bf16, false) => ("fovea_view_bf16", 2),
            (DType::F32, true) => ("fovea_view_show_f32", 4),
            (DType::Bf16, true) => ("fovea_view_show_bf16", 2),
        };
        address("GlobalView::out", self.out, bytes)?;
        let mut launches = Vec::new();
        let mut means = 0;
        if with_means(self.augment) {
            address("GlobalView::scratch", self.scratch, 8)?;
            means = self.scratch + 8 * (self.n * self.size) as u64;
            let grid = [self.size.div_ceil(ROWS), self.n, 1];
            launches.push(self.begin("fovea_view_rows", grid)?.u64(self.scratch));
            launches.push(
                Launch::new("fovea_view_mean", "GlobalView", [self.n, 1, 1], THREADS)?
                    .u64(self.scratch)
                    .u32(self.size as u32)
                    .u64(means),
            );
        }
        let grid = [self.n, bands(self.n, self.size), 1];
        if let Some(shown) = shown {
            let launch = interpolation(self.begin(kernel, grid)?.u64(means), shown);
            launches.push(launch.u64(self.out));
            return Ok(launches);
        }
        let wide_in = self.size.is_multiple_of(4) && wide(&[self.resized]);
        let wide_out = self.size.is_multiple_of(8) && wide(&[self.out]);
        launches.push(
            self.begin(kernel, grid)?
                .u64(means)
                .flag(wide_in)
                .flag(wide_out)
                .u64(self.out),
        );
        Ok(launches)
    }
}
