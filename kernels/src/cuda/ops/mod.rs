//! The operations, one file per twin: inputs, checks, launches.

pub(super) mod adam;
pub(super) mod confusion;
pub(super) mod crop;
pub(crate) mod flat;
pub(super) mod resize;
pub(super) mod view;

use crate::augment::Augment;
use crate::cuda::launch::Launch;

/// Threads of a block in all kernels but the resize.
pub(crate) const THREADS: u32 = 256;

/// Side of the tiles in which images are turned, pixels.
const TILE: usize = 32;

/// Blocks that a launch should have to keep a large GPU busy: 8 on each of 256 multiprocessors.
const ENOUGH_BLOCKS: usize = 2048;

/// Largest side of a patch or view, pixels: up to it, 32-bit indices and sums within one are exact.
const LARGEST_SIDE: usize = 16_384;

/// Number of blocks that share one of `n` images of `size` x `size` pixels.
fn bands(n: usize, size: usize) -> usize {
    let tiles = size.div_ceil(TILE).pow(2);
    ENOUGH_BLOCKS.div_ceil(n.max(1)).min(tiles).clamp(1, 8)
}

/// Returns an error for a side that is 0 or too large.
fn check_side(what: &'static str, side: usize) -> crate::Result<()> {
    if (1..=LARGEST_SIDE).contains(&side) {
        return Ok(());
    }
    Err(crate::Error::Argument {
        what,
        limit: "1 to 16384 pixels",
        actual: side.to_string(),
        help: "pass the patch or image size of the prepared dataset",
    })
}

/// Adds the arguments of an augmentation; without one, those with everything off, which draw the identity.
fn augment(launch: Launch, augment: Option<&Augment>) -> Launch {
    let a = augment.copied().unwrap_or_default();
    launch
        .flag(a.flip)
        .flag(a.quarter_turns)
        .u32(a.offset)
        .f32(a.brightness)
        .f32(a.contrast)
        .f32(a.saturation)
}

/// The strengths of an augmentation that needs the kernels which interpolate, if it does.
fn interpolating(augment: Option<&Augment>) -> Option<&Augment> {
    augment.filter(|augment| augment.interpolates())
}

/// Adds the strengths that only the interpolating kernels read.
fn interpolation(launch: Launch, a: &Augment) -> Launch {
    launch.f32(a.rotation).f32(a.scale).f32(a.erasing)
}
