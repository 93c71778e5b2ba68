//! Augmentation: the changes to a sample are a pure function of (seed, epoch, sample id).

use crate::error::{Error, Result};
use crate::philox::philox4x32;

/// Largest offset jitter, pixels: far beyond any patch, and small enough to be added to any coordinate.
const MAX_OFFSET: u32 = 1 << 16;

/// Strengths of the augmentation; everything is off in the default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Mirror left-right with probability 1/2.
    pub flip: bool,
    /// Turn counter-clockwise by 0, 90, 180 or 270 degrees with equal probability.
    pub quarter_turns: bool,
    /// Largest shift of the window in x and in y, pixels; the window is clamped into the image.
    pub offset: u32,
    /// Brightness factor is uniform in `[max(0, 1 - brightness), 1 + brightness)`.
    pub brightness: f32,
    /// Contrast factor is uniform in `[max(0, 1 - contrast), 1 + contrast)`.
    pub contrast: f32,
    /// Saturation factor is uniform in `[max(0, 1 - saturation), 1 + saturation)`.
    pub saturation: f32,
    /// Largest turn either way, degrees, 0 to 180; the angle is uniform in `[-rotation, rotation)`.
    pub rotation: f32,
    /// Scale is uniform in `[1 - scale, 1 + scale)`; 0 to 0.9.
    pub scale: f32,
    /// Probability that a rectangle of the sample is erased, 0 to 1; see [`crate::erased`].
    pub erasing: f32,
}

impl Augment {
    /// Whether a sample may be more than a permutation of an image's pixels, so that the slower kernels make it.
    pub(crate) fn interpolates(&self) -> bool {
        self.rotation != 0.0 || self.scale != 0.0 || self.erasing != 0.0
    }

    /// Returns an error for strengths that are negative or not finite, and for offsets beyond 65536 pixels.
    pub fn check(&self) -> Result<()> {
        let strengths = [
            ("Augment::brightness", self.brightness),
            ("Augment::contrast", self.contrast),
            ("Augment::saturation", self.saturation),
        ];
        for (what, value) in strengths {
            if !(0.0..=1000.0).contains(&value) {
                return Err(Error::Argument {
                    what,
                    limit: "0 to 1000",
                    actual: value.to_string(),
                    help: "use 0 to switch it off, or a fraction such as 0.2",
                });
            }
        }
        let limited = [
            (
                "Augment::rotation",
                self.rotation,
                180.0,
                "0 to 180 degrees",
            ),
            ("Augment::scale", self.scale, 0.9, "0 to 0.9"),
            ("Augment::erasing", self.erasing, 1.0, "0 to 1"),
        ];
        for (what, value, most, limit) in limited {
            if !(0.0..=most).contains(&value) {
                return Err(Error::Argument {
                    what,
                    limit,
                    actual: value.to_string(),
                    help: "use 0 to switch it off",
                });
            }
        }
        if self.offset > MAX_OFFSET {
            return Err(Error::Argument {
                what: "Augment::offset",
                limit: "0 to 65536 pixels",
                actual: self.offset.to_string(),
                help: "use a shift smaller than the patch",
            });
        }
        Ok(())
    }
}

/// The draws of one sample. They apply in this order: shift the window, rotate and scale about its middle, mirror, turn,
/// brightness, contrast, saturation, normalise, erase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Mirror left-right, before turning.
    pub flip: bool,
    /// Counter-clockwise quarter turns, 0 to 3.
    pub turns: u8,
    /// Shift of the window to the right, pixels, before it is clamped into the image.
    pub dx: i32,
    /// Shift of the window downwards, pixels, before it is clamped into the image.
    pub dy: i32,
    /// Factor on the pixel values; 1 changes nothing.
    pub brightness: f32,
    /// Weight of the pixel against the mean grey of the patch; 1 changes nothing.
    pub contrast: f32,
    /// Weight of the pixel against its own grey; 1 changes nothing.
    pub saturation: f32,
    /// Turn counter-clockwise, degrees, before mirror and quarter turns; 0 changes nothing.
    pub rotation: f32,
    /// Size of what the sample shows, against the image's; 1 changes nothing.
    pub scale: f32,
}

impl Draw {
    /// The draw that changes nothing.
    pub const IDENTITY: Self = Self {
        flip: false,
        turns: 0,
        dx: 0,
        dy: 0,
        brightness: 1.0,
        contrast: 1.0,
        saturation: 1.0,
        rotation: 0.0,
        scale: 1.0,
    };

    /// Whether the sample shows whole pixels of the image: neither rotated nor scaled.
    pub(crate) fn is_upright(&self) -> bool {
        self.rotation == 0.0 && self.scale == 1.0
    }
}

/// The draw of sample `sample_id` in `epoch`.
///
/// Philox with key = seed (low word first) and counter = (sample id low, sample id high, epoch,
/// block). Each choice owns its random word, so switching one kind of augmentation on or off leaves the others
/// unchanged: block 0 is (mirror in bit 31 and turns in bits 30..29, dx, dy, brightness), block 1 is (contrast,
/// saturation, rotation, scale); [`crate::erased`] takes its own blocks.
#[must_use]
pub fn draw(seed: u64, epoch: u32, sample_id: u64, aug: &Augment) -> Draw {
    let key = [seed as u32, (seed >> 32) as u32];
    let (low, high) = (sample_id as u32, (sample_id >> 32) as u32);
    let [geometry, dx, dy, brightness] = philox4x32([low, high, epoch, 0], key);
    let [contrast, saturation, rotation, scale] = philox4x32([low, high, epoch, 1], key);
    Draw {
        flip: aug.flip && geometry >> 31 == 1,
        turns: if aug.quarter_turns {
            (geometry >> 29 & 3) as u8
        } else {
            0
        },
        dx: shift(dx, aug.offset),
        dy: shift(dy, aug.offset),
        brightness: factor(brightness, aug.brightness),
        contrast: factor(contrast, aug.contrast),
        saturation: factor(saturation, aug.saturation),
        rotation: angle(rotation, aug.rotation),
        scale: factor(scale, aug.scale),
    }
}

/// Uniform integer in `-limit..=limit`.
fn shift(word: u32, limit: u32) -> i32 {
    let limit = limit.min(MAX_OFFSET);
    let choice = (u64::from(word) * u64::from(2 * limit + 1)) >> 32;
    choice as i32 - limit as i32
}

/// Uniform angle in `[-limit, limit)`.
fn angle(word: u32, limit: f32) -> f32 {
    let unit = (word >> 8) as f32 * (1.0 / 16_777_216.0);
    (unit * 2.0 - 1.0) * limit
}

/// Uniform factor in `[max(0, 1 - strength), 1 + strength)`, exactly 1 for strength 0.
fn factor(word: u32, strength: f32) -> f32 {
    let unit = (word >> 8) as f32 * (1.0 / 16_777_216.0);
    let low = (1.0 - strength).max(0.0);
    low + (1.0 + strength - low) * unit
}

#[cfg(test)]
pub(crate) mod tests;
