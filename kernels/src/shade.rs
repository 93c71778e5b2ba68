//! Pixel values: colour jitter and normalisation, one row of interleaved RGB at a time.
//!
//! The formulas are those of torchvision's float `adjust_brightness`, `adjust_contrast` and
//! `adjust_saturation`, each clamped to 0..1, in this order. Rows stay interleaved: constants that
//! differ between the channels repeat every [`GROUP`] elements, so no step shuffles lanes.

use half::bf16;

use crate::augment::Draw;
use crate::flat::round_chunk;
use crate::simd::{SimdLevel, multiversion};
use crate::{IMAGENET_MEAN, IMAGENET_STD};

/// Luma weights of red, green and blue (ITU-R BT.601, as torchvision rounds them).
pub(crate) const GREY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Channels and 16-lane vectors line up again after this many elements.
const GROUP: usize = 48;

/// Readable elements that a row needs before and after it: the grey looks two elements to either side.
const PAD: usize = 2;

/// The factor from 0..255 to 0..1.
const UNIT: f32 = 1.0 / 255.0;

/// `(x - mean) / std` as `x * SCALE + BIAS`.
const SCALE: [f32; GROUP] = per_channel([
    1.0 / IMAGENET_STD[0],
    1.0 / IMAGENET_STD[1],
    1.0 / IMAGENET_STD[2],
]);
const BIAS: [f32; GROUP] = per_channel([
    -IMAGENET_MEAN[0] / IMAGENET_STD[0],
    -IMAGENET_MEAN[1] / IMAGENET_STD[1],
    -IMAGENET_MEAN[2] / IMAGENET_STD[2],
]);

/// `TAPS[d][k]`: weight in the grey of element k's pixel of the element at k + d - 2; zero where
/// that element belongs to a neighbouring pixel.
const TAPS: [[f32; GROUP]; 2 * PAD + 1] = [
    per_channel([0.0, 0.0, GREY[0]]),
    per_channel([0.0, GREY[0], GREY[1]]),
    per_channel([GREY[0], GREY[1], GREY[2]]),
    per_channel([GREY[1], GREY[2], 0.0]),
    per_channel([GREY[2], 0.0, 0.0]),
];

const fn per_channel(values: [f32; 3]) -> [f32; GROUP] {
    let mut out = [0.0; GROUP];
    let mut k = 0;
    while k < GROUP {
        out[k] = values[k % 3];
        k += 1;
    }
    out
}

/// The types of a source image's pixel values; 0..255 in either type.
pub(crate) trait SourcePixel: Copy + Default + Send + Sync {
    /// Writes `source / 255` to `unit`.
    fn to_unit(level: SimdLevel, source: &[Self], unit: &mut [f32]);
}

impl SourcePixel for u8 {
    fn to_unit(level: SimdLevel, source: &[Self], unit: &mut [f32]) {
        unit_from_u8(level, source, unit);
    }
}

impl SourcePixel for f32 {
    fn to_unit(level: SimdLevel, source: &[Self], unit: &mut [f32]) {
        unit_from_f32(level, source, unit);
    }
}

/// The element types of a batch.
pub(crate) trait OutputElement: Copy + Send {
    /// The mean colour, normalised.
    const ZERO: Self;

    /// Writes a row of f32 results.
    fn store(
        level: SimdLevel,
        out: &mut [Self],
        scratch: &mut [f32],
        fill: impl FnOnce(&mut [f32]),
    );
}

impl OutputElement for f32 {
    const ZERO: Self = 0.0;

    fn store(_: SimdLevel, out: &mut [Self], _: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        fill(out);
    }
}

impl OutputElement for bf16 {
    const ZERO: Self = bf16::ZERO;

    fn store(
        level: SimdLevel,
        out: &mut [Self],
        scratch: &mut [f32],
        fill: impl FnOnce(&mut [f32]),
    ) {
        fill(scratch);
        round_chunk(level, out, scratch);
    }
}

/// Colour jitter of one sample whose mean grey is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jitter {
    pub brightness: f32,
    pub contrast: f32,
    /// Mean over the sample of the grey after brightness, 0..1.
    pub mean_grey: f32,
    pub saturation: f32,
}

impl Jitter {
    /// The jitter of `draw`, `None` if it changes nothing. Calls `mean_grey` with the brightness only where contrast
    /// needs the mean.
    pub(crate) fn new(draw: &Draw, mean_grey: impl FnOnce(f32) -> f32) -> Option<Self> {
        let Draw {
            brightness,
            contrast,
            saturation,
            ..
        } = *draw;
        if [brightness, contrast, saturation] == [1.0; 3] {
            return None;
        }
        Some(Self {
            brightness,
            contrast,
            mean_grey: if contrast == 1.0 {
                0.0
            } else {
                mean_grey(brightness)
            },
            saturation,
        })
    }
}

/// Turns rows of source pixels into rows of a batch; owns the row buffers of one thread.
pub(crate) struct Shader {
    level: SimdLevel,
    /// One row in 0..1 with [`PAD`] zeros at both ends.
    unit: Vec<f32>,
    /// One row of results that must still be rounded.
    result: Vec<f32>,
}

impl Shader {
    /// For rows of `size` pixels.
    pub(crate) fn new(level: SimdLevel, size: usize) -> Self {
        Self {
            level,
            unit: vec![0.0; 3 * size + 2 * PAD],
            result: vec![0.0; 3 * size],
        }
    }

    /// Shades one row of `size` pixels.
    pub(crate) fn row<S: SourcePixel, E: OutputElement>(
        &mut self,
        source: &[S],
        jitter: Option<&Jitter>,
        out: &mut [E],
    ) {
        let Self {
            level,
            unit,
            result,
        } = self;
        let level = *level;
        let end = PAD + source.len();
        S::to_unit(level, source, &mut unit[PAD..end]);
        if let Some(jitter) = jitter {
            tone(level, &mut unit[PAD..end], *jitter);
        }
        match jitter {
            Some(jitter) if jitter.saturation != 1.0 => E::store(level, out, result, |out| {
                saturate_and_normalise(level, unit, jitter.saturation, out);
            }),
            _ => E::store(level, out, result, |out| {
                normalise(level, &unit[PAD..end], out);
            }),
        }
    }
}

multiversion! {
    fn unit_from_u8(source: &[u8], unit: &mut [f32]) {
        for (unit, &value) in unit.iter_mut().zip(source) {
            *unit = f32::from(value) * UNIT;
        }
    }
}

multiversion! {
    fn unit_from_f32(source: &[f32], unit: &mut [f32]) {
        for (unit, &value) in unit.iter_mut().zip(source) {
            *unit = value * UNIT;
        }
    }
}

multiversion! {
    /// Applies brightness, then contrast, to values in 0..1.
    fn tone(unit: &mut [f32], jitter: Jitter) {
        let lift = (1.0 - jitter.contrast) * jitter.mean_grey;
        for value in unit {
            let bright = (*value * jitter.brightness).clamp(0.0, 1.0);
            *value = (bright * jitter.contrast + lift).clamp(0.0, 1.0);
        }
    }
}

multiversion! {
    fn normalise(unit: &[f32], out: &mut [f32]) {
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        let (units, unit_rest) = unit.as_chunks::<GROUP>();
        for (out, unit) in groups.iter_mut().zip(units) {
            for k in 0..GROUP {
                out[k] = unit[k] * SCALE[k] + BIAS[k];
            }
        }
        for (k, (out, unit)) in rest.iter_mut().zip(unit_rest).enumerate() {
            *out = unit * SCALE[k] + BIAS[k];
        }
    }
}

multiversion! {
    /// `padded` has [`PAD`] elements before and after the row of `out`.
    fn saturate_and_normalise(padded: &[f32], saturation: f32, out: &mut [f32]) {
        #[inline(always)]
        fn element(window: &[f32], k: usize, saturation: f32) -> f32 {
            // Zero taps come first or last, so all three channels add red, green, blue in order.
            let grey = TAPS[0][k] * window[k]
                + TAPS[1][k] * window[k + 1]
                + TAPS[2][k] * window[k + 2]
                + TAPS[3][k] * window[k + 3]
                + TAPS[4][k] * window[k + 4];
            let value = window[k + PAD] * saturation + (1.0 - saturation) * grey;
            value.clamp(0.0, 1.0) * SCALE[k] + BIAS[k]
        }
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        let whole = groups.len() * GROUP;
        for (out, start) in groups.iter_mut().zip((0..).step_by(GROUP)) {
            let window = &padded[start..start + GROUP + 2 * PAD];
            for (k, out) in out.iter_mut().enumerate() {
                *out = element(window, k, saturation);
            }
        }
        for (k, out) in rest.iter_mut().enumerate() {
            *out = element(&padded[whole..], k, saturation);
        }
    }
}
