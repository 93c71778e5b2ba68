//! Patch crop, resize, losses, normalisation and the passes over flat parameter buffers: the CPU twins, and in [`cuda`]
//! their GPU side.
//!
//! Each function outside [`cuda`] *defines* what a device kernel of the same name must compute. So it is pure
//! (randomness comes from a counter-based hash of its arguments, see [`philox`]), its result does not depend on the
//! number of threads, and it gives the same bits with AVX-512, with AVX2 and without both: it uses only correctly
//! rounded operations (no approximate reciprocal, no libm), in a fixed order, and fuses a multiply-add everywhere
//! ([`norm`]) or nowhere (all others).
//!
//! This room must not know about files (except the cache of compiled kernels), models, tensors or ranks.

#![cfg_attr(
    test,
    expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

mod affine;
mod augment;
pub mod confusion;
pub mod crop;
pub mod cuda;
mod error;
pub mod flat;
mod geometry;
mod global;
#[cfg(test)]
mod golden;
pub mod loss;
pub mod norm;
pub mod philox;
pub mod resize;
mod shade;
mod simd;

pub use affine::{Rectangle, erased};
pub use augment::{Augment, Draw, draw};
pub use crop::{CropSpec, crop_areas, patch_crop};
pub use error::{Error, Result};
pub use global::global_view;
pub use resize::resize_antialias;

use half::bf16;

/// Mean of the ImageNet training set on RGB / 255, red green blue.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of the ImageNet training set on RGB / 255, red green blue.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Element type of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 32-bit IEEE 754 binary floating point.
    F32,
    /// bfloat16: the upper 16 bits of an f32, rounded to nearest even.
    Bf16,
}

/// A borrowed 8-bit RGB image.
#[derive(Clone, Copy, Debug)]
pub struct ImageU8<'a> {
    /// `[height, width, 3]`, RGB, rows from the top, no padding between rows.
    pub data: &'a [u8],
    /// Height of the image, pixels.
    pub height: usize,
    /// Width of the image, pixels.
    pub width: usize,
}

impl ImageU8<'_> {
    /// Returns an error for data that is not `[height, width, 3]`.
    pub(crate) fn check(&self) -> Result<()> {
        let expected = error::checked_elements("ImageU8::data", &[self.height, self.width, 3])?;
        let shape = "[height, width, 3] bytes";
        error::check_len("ImageU8::data", shape, self.data.len(), expected)
    }
}

/// Where a batch of normalised pixels is written: `[n, size, size, 3]` in memory, which is a
/// channels-last `[n, 3, size, size]` tensor.
#[derive(Debug)]
pub enum BatchMut<'a> {
    /// f32 elements, the full precision of the computation.
    F32(&'a mut [f32]),
    /// bf16 elements, rounded to nearest even.
    Bf16(&'a mut [bf16]),
}

impl BatchMut<'_> {
    /// Element type of the batch.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// Elements (not bytes) of the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(buffer) => buffer.len(),
            Self::Bf16(buffer) => buffer.len(),
        }
    }

    /// Whether the batch has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
