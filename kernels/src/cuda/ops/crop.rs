//! Patch crop on a GPU.

use bytemuck::{Pod, Zeroable};

use super::{THREADS, augment, bands, check_side};
use crate::augment::Augment;
use crate::crop::{CropSpec, check_specs};
use crate::cuda::error::Result;
use crate::cuda::launch::{Launch, Op, address, index32, wide};
use crate::{DType, error};

/// An image in device memory, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ImageRecord {
    /// Address of `[height, width, 3]` bytes, RGB; any alignment.
    pub data: u64,
    /// Rows, pixels.
    pub height: u32,
    /// Columns, pixels.
    pub width: u32,
}

/// A [`CropSpec`] as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SpecRecord {
    sample_id: u64,
    image: u32,
    y: u32,
    x: u32,
    unused: u32,
}

/// What randomness is hashed from besides the sample ids, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct StepRecord {
    seed: u64,
    epoch: u32,
    unused: u32,
}

impl StepRecord {
    /// The record of an epoch.
    #[must_use]
    pub fn new(seed: u64, epoch: u32) -> Self {
        Self {
            seed,
            epoch,
            unused: 0,
        }
    }
}

/// Checks `specs` as [`crate::patch_crop`] does, against the (height, width) of the resident images,
/// and gives the records to upload.
///
/// # Errors
///
/// A spec whose image does not exist or whose window leaves it.
pub fn spec_records(
    images: &[(usize, usize)],
    specs: &[CropSpec],
    size: usize,
) -> crate::Result<Vec<SpecRecord>> {
    check_side("size", size)?;
    check_specs(images.len(), |image| images[image], specs, size)?;
    Ok(specs
        .iter()
        .map(|spec| SpecRecord {
            sample_id: spec.sample_id,
            // An index into resident images; their records alone would fill the device's memory
            // before this overflows.
            image: spec.image as u32,
            y: spec.y,
            x: spec.x,
            unused: 0,
        })
        .collect())
}

/// [`crate::patch_crop`] from resident images, with the same bits.
///
/// A spec that does not fit its image (they are in device memory, where nothing checks them) gives a
/// patch of NaN and touches no other memory.
#[derive(Clone, Copy, Debug)]
pub struct PatchCrop<'a> {
    /// `[image_count]` [`ImageRecord`].
    pub images: u64,
    /// Resident images.
    pub image_count: usize,
    /// `[n]` [`SpecRecord`] from [`spec_records`].
    pub specs: u64,
    /// Patches of the batch.
    pub n: usize,
    /// One [`StepRecord`].
    pub step: u64,
    /// Side of a patch, pixels, 1 to 16384.
    pub size: usize,
    /// Strengths; none is the bare crop.
    pub augment: Option<&'a Augment>,
    /// Element type of `out`.
    pub dtype: DType,
    /// `[n, size, size, 3]`, a channels-last batch. With 16-byte alignment and a `size` that is a
    /// multiple of 8 it is written 16 bytes at a time.
    pub out: u64,
}

impl Op for PatchCrop<'_> {
    fn launches(&self) -> Result<Vec<Launch>> {
        check_side("PatchCrop::size", self.size)?;
        if let Some(augment) = self.augment {
            augment.check()?;
        }
        error::checked_elements("PatchCrop::out", &[self.n, self.size, self.size, 12])?;
        let images = index32("PatchCrop::image_count", self.image_count)?;
        if self.n == 0 {
            return Ok(Vec::new());
        }
        address("PatchCrop::images", self.images, 8)?;
        address("PatchCrop::specs", self.specs, 8)?;
        address("PatchCrop::step", self.step, 8)?;
        let (kernel, bytes) = match self.dtype {
            DType::F32 => ("fovea_patch_crop_f32", 4),
            DType::Bf16 => ("fovea_patch_crop_bf16", 2),
        };
        address("PatchCrop::out", self.out, bytes)?;
        let grid = [self.n, bands(self.n, self.size), 1];
        let launch = Launch::new(kernel, "PatchCrop", grid, THREADS)?
            .u64(self.images)
            .u32(images)
            .u64(self.specs)
            .u64(self.step)
            .u32(self.size as u32);
        let wide = self.size.is_multiple_of(8) && wide(&[self.out]);
        Ok(vec![augment(launch, self.augment).flag(wide).u64(self.out)])
    }
}
