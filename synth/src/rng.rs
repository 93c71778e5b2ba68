//! Random streams: one per (seed, image, purpose), so that no image depends on another, on the
//! thread that draws it or on how many numbers another part of the same image used.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Which image carries which lesions (one stream for the whole dataset).
    Plan,
    /// Side, optic disc, fovea, field of view.
    Geometry,
    /// Colour, illumination and textures of the retina.
    Tone,
    /// The courses of arteries and veins.
    Vessels,
    /// Places and shapes of microaneurysms, haemorrhages and exudates.
    Lesions,
    /// What looks like a lesion but is none.
    Distractors,
    /// Blur, noise, black level.
    Camera,
    /// Signs that a picture's labels name.
    Signs,
}

/// Random numbers of one purpose of one image.
pub(super) struct RandomStream(ChaCha8Rng);

impl RandomStream {
    /// The stream of `purpose` for image `index` of the dataset with this `seed`.
    pub(super) fn new(seed: u64, index: u64, purpose: Purpose) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16..].copy_from_slice(b"fovea synth v1\0\0");
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose as u64);
        Self(rng)
    }

    /// Uniform in `[0, 1)`, 24 random bits.
    pub(super) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Like [`RandomStream::range`], pushed towards `low` as `power` grows above 1.
    pub(super) fn skewed(&mut self, low: f32, high: f32, power: f32) -> f32 {
        low + (high - low) * self.unit().powf(power)
    }

    /// Standard normal (Box-Muller), cut at 2.5 so that no draw is absurd.
    pub(super) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        (radius * (std::f32::consts::TAU * self.unit()).cos()).clamp(-2.5, 2.5)
    }

    /// True with probability `p`.
    pub(super) fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// +1 or -1, equally likely.
    pub(super) fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// An angle in radians, any direction.
    pub(super) fn angle(&mut self) -> f32 {
        self.range(0.0, std::f32::consts::TAU)
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// A whole number, uniform in `low..=high`.
    pub(super) fn count(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// A seed for a [`super::noise::Noise`].
    pub(super) fn word(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// `0..n` in random order (Fisher-Yates).
    pub(super) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
