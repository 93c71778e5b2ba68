//! Patch crop on a GPU.

use bytemuck::{Pod, Zeroable};

use super::{THREADS, augment, bands, check_side, interpolating, interpolation};
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
    /// Height of the image, pixels.
    pub height: u32,
    /// Width of the image, pixels.
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

/// The seed and the epoch, which draws are hashed from in addition to the sample ids, as the kernels read them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct StepRecord {
    seed: u64,
    epoch: u32,
    unused: u32,
}

impl StepRecord {
    /// The record of `epoch` in a run with this seed.
    #[must_use]
    pub fn new(seed: u64, epoch: u32) -> Self {
        Self {
            seed,
            epoch,
            unused: 0,
        }
    }
}

/// Checks `specs` as [`crate::patch_crop`] does, against the (height, width) of the resident images, and returns the
/// records to upload.
///
/// # Errors
///
/// A spec whose image does not exist, or whose window leaves its image.
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
            // An index into resident images. Before it overflows, the records alone would fill the device's memory.
            image: spec.image as u32,
            y: spec.y,
            x: spec.x,
            unused: 0,
        })
        .collect())
}

/// [`crate::patch_crop`] from resident images, with the same bits.
///
/// A spec that does not fit its image gives a patch of NaN and touches no other memory: specs are in device memory,
/// where nothing checks them.
#[derive(Clone, Copy, Debug)]
pub struct PatchCrop<'a> {
    /// Address of the resident images' records, `[image_count]` [`ImageRecord`].
    pub images: u64,
    /// Number of resident images.
    pub image_count: usize,
    /// Address of the patches' places, `[n]` [`SpecRecord`] from [`spec_records`].
    pub specs: u64,
    /// Number of patches in the batch.
    pub n: usize,
    /// Address of one [`StepRecord`].
    pub step: u64,
    /// Side of a patch, pixels, 1 to 16384.
    pub size: usize,
    /// Strengths; with none the patches are cropped and normalised only.
    pub augment: Option<&'a Augment>,
    /// Element type of `out`.
    pub dtype: DType,
    /// Address of the result, `[n, size, size, 3]`, a channels-last batch. With 16-byte alignment and a `size` that is
    /// a multiple of 8 the kernel writes 16 bytes at a time.
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
        let shown = interpolating(self.augment);
        let (kernel, bytes) = match (self.dtype, shown.is_some()) {
            (DType::F32, false) => ("fovea_patch_crop_f32", 4),
            (DType::Bf16, false) => ("fovea_patch_crop_bf16", 2),
            (DType::F32, true) => ("fovea_patch_show_f32", 4),
            (DType::Bf16, true) => ("fovea_patch_show_bf16", 2),
        };
        address("PatchCrop::out", self.out, bytes)?;
        let grid = [self.n, bands(self.n, self.size), 1];
        let launch = Launch::new(kernel, "PatchCrop", grid, THREADS)?
            .u64(self.images)
            .u32(images)
            .u64(self.specs)
            .u64(self.step)
            .u32(self.size as u32);
        let launch = augment(launch, self.augment);
        if let Some(shown) = shown {
            return Ok(vec![interpolation(launch, shown).u64(self.out)]);
        }
        let wide = self.size.is_multiple_of(8) && wide(&[self.out]);
        Ok(vec![launch.flag(wide).u64(self.out)])
    }
}
