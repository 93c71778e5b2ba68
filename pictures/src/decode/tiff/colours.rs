//! What the decoded samples of a TIFF mean: grey, colours, palette indices, luma and chroma, inks.

use super::directory::{Directory, TiffFile, tag};
use super::{OTHER_COUNT, TiffFacts, convert, photometric};
use crate::decode::Reason;
use crate::decode::samples::{ColourModel, Opacity, Picture, Samples};

fn finish(
    facts: &TiffFacts,
    colour: ColourModel,
    alpha: Opacity,
    samples: Samples,
    stated: Option<f64>,
) -> Result<Picture, Reason> {
    let channels = colour.samples() + usize::from(alpha != Opacity::None);
    let found = match &samples {
        Samples::U8(data) => data.len(),
        Samples::Indexed { data, .. } => 3 * data.len(),
        Samples::U16(data) => data.len(),
        Samples::Float { data, .. } => data.len(),
    };
    if found != facts.width as usize * facts.height as usize * channels {
        return Err(OTHER_COUNT.to_owned());
    }
    Ok(Picture {
        width: facts.width,
        height: facts.height,
        colour,
        alpha,
        samples,
        stated,
    })
}

/// Grey and RGB, perhaps with opacity and other samples behind the colour.
pub(super) fn plain(facts: &TiffFacts, samples: Samples) -> Result<Picture, Reason> {
    let colour = match facts.photometric {
        photometric::RGB => ColourModel::Rgb,
        _ => ColourModel::Grey,
    };
    let alpha = facts.alpha(colour);
    let keep = colour.samples() + usize::from(alpha != Opacity::None);
    let pixels = facts.width as usize * facts.height as usize;
    let samples = match samples {
        Samples::U8(all) => Samples::U8(first_of_each(all, pixels, keep)),
        Samples::U16(all) => Samples::U16(first_of_each(all, pixels, keep)),
        indexed @ Samples::Indexed { .. } => indexed,
        Samples::Float { data, whole } => Samples::Float {
            data: first_of_each(data, pixels, keep),
            whole,
        },
    };
    let of_depth = matches!(facts.bits, 9..16).then(|| f64::from((1u32 << facts.bits) - 1));
    finish(facts, colour, alpha, samples, facts.stated.or(of_depth))
}

/// The first `keep` samples of every pixel.
fn first_of_each<T: Copy>(all: Vec<T>, pixels: usize, keep: usize) -> Vec<T> {
    let stride = all.len() / pixels.max(1);
    if stride <= keep {
        return all;
    }
    all.chunks_exact(stride)
        .flat_map(|pixel| &pixel[..keep])
        .copied()
        .collect()
}

/// Palette indices with their colours.
pub(super) fn palette(
    file: &TiffFile<'_>,
    page: &Directory,
    facts: &TiffFacts,
    samples: Samples,
) -> Result<Picture, Reason> {
    let map = page
        .find(tag::COLOR_MAP)
        .and_then(|field| file.numbers(field))
        .unwrap_or_default();
    let count = 1usize << facts.bits.min(16);
    if map.len() != 3 * count {
        return Err(format!(
            "damaged TIFF: a palette of {} values for {count} colours",
            map.len()
        ));
    }
    // Some writers fill the 16-bit table with 8-bit values, others scale those by 256, and others by 257.
    let scale = if map.iter().all(|value| *value <= 255.0) {
        1.0
    } else {
        256.0
    };
    let colour = |i: usize| [0, count, 2 * count].map(|plane| (map[plane + i] / scale) as u8);
    let pixels = facts.width as usize * facts.height as usize;
    let samples = match samples {
        Samples::U8(all) => {
            let mut palette = Box::new([[0; 3]; 256]);
            for (i, entry) in palette.iter_mut().enumerate().take(count) {
                *entry = colour(i);
            }
            Samples::Indexed {
                data: first_of_each(all, pixels, 1),
                palette,
            }
        }
        Samples::U16(all) => {
            let palette: Vec<[u8; 3]> = (0..count).map(colour).collect();
            let indices = first_of_each(all, pixels, 1);
            let colours = indices.iter().filter_map(|i| palette.get(usize::from(*i)));
            Samples::U8(colours.flatten().copied().collect())
        }
        Samples::Indexed { .. } | Samples::Float { .. } => {
            return Err(convert(&format!(
                "is a TIFF with a palette of {} bits",
                facts.bits
            )));
        }
    };
    finish(facts, ColourModel::Rgb, Opacity::None, samples, None)
}

/// ITU-R BT.601 with the coefficients and the range of the file (TIFF 6.0, section 21).
pub(super) fn ycbcr(
    file: &TiffFile<'_>,
    page: &Directory,
    facts: &TiffFacts,
    samples: Samples,
) -> Result<Picture, Reason> {
    let Samples::U8(all) = samples else {
        return Err(convert(&format!("is a YCbCr TIFF of {} bits", facts.bits)));
    };
    let numbers = |tag: u16, default: &[f64]| {
        let found = page.find(tag).and_then(|field| file.numbers(field));
        found
            .filter(|found| found.len() == default.len())
            .unwrap_or_else(|| default.to_vec())
    };
    let luma = numbers(tag::YCBCR_COEFFICIENTS, &[0.299, 0.587, 0.114]);
    let range = numbers(
        tag::REFERENCE_BLACK_WHITE,
        &[0.0, 255.0, 128.0, 255.0, 128.0, 255.0],
    );
    let [red, green, blue] = [luma[0], luma[1], luma[2]].map(|c| c as f32);
    let span = |at: usize, full: f64| {
        let span = range[at + 1] - range[at];
        (full / if span == 0.0 { full } else { span }) as f32
    };
    let (y_span, b_span, r_span) = (span(0, 255.0), span(2, 127.0), span(4, 127.0));
    let [y0, b0, r0] = [range[0], range[2], range[4]].map(|v| v as f32);
    let pixels = facts.width as usize * facts.height as usize;
    let mut data = first_of_each(all, pixels, 3);
    for pixel in data.chunks_exact_mut(3) {
        let y = (f32::from(pixel[0]) - y0) * y_span;
        let cb = (f32::from(pixel[1]) - b0) * b_span;
        let cr = (f32::from(pixel[2]) - r0) * r_span;
        let r = y + cr * (2.0 - 2.0 * red);
        let b = y + cb * (2.0 - 2.0 * blue);
        let g = (y - blue * b - red * r) / green.max(1e-6);
        for (out, value) in pixel.iter_mut().zip([r, g, b]) {
            *out = (value + 0.5) as u8;
        }
    }
    finish(
        facts,
        ColourModel::Rgb,
        Opacity::None,
        Samples::U8(data),
        None,
    )
}

/// Ink over white paper, without a colour profile.
pub(super) fn cmyk(facts: &TiffFacts, samples: Samples) -> Result<Picture, Reason> {
    let pixels = facts.width as usize * facts.height as usize;
    let bytes = match samples {
        Samples::U8(all) => all,
        Samples::U16(all) => all.into_iter().map(|v| (v >> 8) as u8).collect(),
        Samples::Indexed { .. } | Samples::Float { .. } => {
            return Err(convert(&format!("is a CMYK TIFF of {} bits", facts.bits)));
        }
    };
    let light = |ink: u8, black: u8| (u16::from(255 - ink) * u16::from(255 - black) + 127) / 255;
    let data = first_of_each(bytes, pixels, 4)
        .chunks_exact(4)
        .flat_map(|p| [p[0], p[1], p[2]].map(|ink| light(ink, p[3]) as u8))
        .collect();
    finish(
        facts,
        ColourModel::Rgb,
        Opacity::None,
        Samples::U8(data),
        None,
    )
}
