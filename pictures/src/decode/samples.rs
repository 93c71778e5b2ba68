//! Decoded samples at their full depth, and 8-bit RGB made of them; `masks` makes masks.
//!
//! A value is judged before it is cut to 8 bits. Cameras store 10, 12 or 14 bits in 16, and tools store two-valued
//! masks at any depth, so a type's largest value says little about a picture's brightest one.

use super::Reason;

/// How the samples of a pixel make a colour. Samples are interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColourModel {
    Grey,
    Rgb,
}

impl ColourModel {
    /// Samples of a pixel's colour.
    pub fn samples(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

/// What the sample behind the colour means for how much of the colour is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opacity {
    /// No sample says so: every pixel is opaque.
    None,
    /// The colour is that of the opaque pixel.
    Straight,
    /// The colour is already what is visible of it over black.
    Premultiplied,
}

/// Samples by their type.
#[derive(Debug)]
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
    /// Numbers of colours (`ColourModel::Rgb`, no opacity).
    Indexed {
        data: Vec<u8>,
        palette: Box<[[u8; 3]; 256]>,
    },
    /// Everything wider; `whole` when the file's type is an integer.
    Float {
        data: Vec<f32>,
        whole: bool,
    },
}

impl Samples {
    /// No samples, of the same type.
    pub fn empty(&self) -> Self {
        match self {
            Self::U8(_) => Self::U8(Vec::new()),
            Self::U16(_) => Self::U16(Vec::new()),
            Self::Indexed { palette, .. } => Self::Indexed {
                data: Vec::new(),
                palette: palette.clone(),
            },
            Self::Float { whole, .. } => Self::Float {
                data: Vec::new(),
                whole: *whole,
            },
        }
    }
}

/// A picture as its file has it, not turned upright.
#[derive(Debug)]
pub(super) struct Picture {
    pub width: u32,
    pub height: u32,
    pub colour: ColourModel,
    pub alpha: Opacity,
    pub samples: Samples,
    /// The brightest possible value, where the file states it (sBIT, MaxSampleValue).
    pub stated: Option<f64>,
}

impl Picture {
    /// RGB, `[height, width, 3]`, laid over black where it is transparent; with a word about the scale when the file
    /// leaves it open.
    pub fn into_rgb(self) -> Result<(Vec<u8>, Option<String>), Reason> {
        let channels = self.colour.samples() + usize::from(self.alpha != Opacity::None);
        let (bytes, note) = match self.samples {
            Samples::U8(data) => (data, None),
            Samples::Indexed { data, palette } => {
                let colours = data.iter().flat_map(|i| palette[usize::from(*i)]);
                (colours.collect(), None)
            }
            Samples::U16(data) => {
                let largest = largest_colour(&data, channels, self.alpha, |v| f64::from(*v));
                let (white, note) = white_of_integers(largest, 16, self.stated);
                let white_alpha = white_of_alpha(
                    &data,
                    channels,
                    self.alpha,
                    white,
                    |v| f64::from(*v),
                    65535.0,
                );
                (
                    to_bytes(&data, channels, self.alpha, white, white_alpha, |v| {
                        f32::from(*v)
                    }),
                    note,
                )
            }
            Samples::Float { data, whole } => {
                finite(&data)?;
                not_negative(&data)?;
                let largest = largest_colour(&data, channels, self.alpha, |v| f64::from(*v));
                let (white, note) = if whole {
                    white_of_integers(largest, 32, self.stated)
                } else {
                    white_of_floats(largest, self.stated)
                };
                let white_alpha =
                    white_of_alpha(&data, channels, self.alpha, white, |v| f64::from(*v), white);
                (
                    to_bytes(&data, channels, self.alpha, white, white_alpha, |v| *v),
                    note,
                )
            }
        };
        Ok((over_black(bytes, self.colour, self.alpha), note))
    }
}

/// The value that stands for white among integers of `bits` bits: the stated one when no value exceeds it, else that
/// of the least usual depth of cameras that holds the largest value; a word when it had to be guessed.
pub(super) fn white_of_integers(
    largest: f64,
    bits: u32,
    stated: Option<f64>,
) -> (f64, Option<String>) {
    if let Some(stated) = stated.filter(|stated| *stated >= largest.max(1.0)) {
        return (stated, None);
    }
    let full = 2f64.powi(bits as i32) - 1.0;
    if largest <= 0.0 {
        return (full, None);
    }
    // Signed types have one bit less.
    let usual = [8, 10, 12, 14, 15, 16, 24, 31, 32].map(|depth| (depth, 2f64.powi(depth) - 1.0));
    let usual = usual
        .into_iter()
        .filter(|(depth, _)| bits > 16 || *depth != 15);
    match usual.into_iter().find(|(_, white)| largest <= *white) {
        Some((depth, white)) if white < full => (
            white,
            Some(format!(
                "its values reach only {largest}: taken as {depth} bits"
            )),
        ),
        _ => (full, None),
    }
}

/// The same among floats: 1, 255, or that of a usual depth, or else the largest value.
pub(super) fn white_of_floats(largest: f64, stated: Option<f64>) -> (f64, Option<String>) {
    if let Some(stated) = stated.filter(|stated| *stated > 0.0 && *stated >= largest) {
        return (stated, None);
    }
    // Filters overshoot a little.
    if largest <= 1.0 {
        return (1.0, None);
    }
    let white = match largest {
        ..=1.5 => 1.0,
        _ => [255.0, 1023.0, 4095.0, 16383.0, 65535.0]
            .into_iter()
            .find(|white| largest <= *white)
            .unwrap_or(largest),
    };
    let note = format!("its floating-point values reach {largest}: {white} is taken for white");
    (white, Some(note))
}

/// Largest colour value; a transparent pixel's colour counts as well.
fn largest_colour<T>(
    data: &[T],
    channels: usize,
    alpha: Opacity,
    value: impl Fn(&T) -> f64,
) -> f64 {
    let colours = channels - usize::from(alpha != Opacity::None);
    data.chunks_exact(channels)
        .flat_map(|pixel| &pixel[..colours])
        .fold(0.0, |largest, v| value(v).max(largest))
}

/// Opacity has the colour's scale where it fits in, else its type's.
fn white_of_alpha<T>(
    data: &[T],
    channels: usize,
    alpha: Opacity,
    white: f64,
    value: impl Fn(&T) -> f64,
    full: f64,
) -> f64 {
    if alpha == Opacity::None {
        return full;
    }
    let opaque = data.chunks_exact(channels).fold(0.0, |largest, pixel| {
        value(&pixel[channels - 1]).max(largest)
    });
    if opaque <= white {
        white
    } else {
        full.max(opaque)
    }
}

fn to_bytes<T>(
    data: &[T],
    channels: usize,
    alpha: Opacity,
    white: f64,
    white_alpha: f64,
    value: impl Fn(&T) -> f32,
) -> Vec<u8> {
    let scale = (255.0 / white) as f32;
    let scale_alpha = (255.0 / white_alpha) as f32;
    let last = if alpha == Opacity::None {
        usize::MAX
    } else {
        channels - 1
    };
    let mut out = Vec::with_capacity(data.len());
    for pixel in data.chunks_exact(channels) {
        for (i, v) in pixel.iter().enumerate() {
            let scale = if i == last { scale_alpha } else { scale };
            // The cast cuts off what lies outside 0 to 255.
            out.push((value(v) * scale + 0.5) as u8);
        }
    }
    out
}

/// 8-bit pixels of any kind as RGB.
fn over_black(bytes: Vec<u8>, colour: ColourModel, alpha: Opacity) -> Vec<u8> {
    let opacity = |a: u8| if alpha == Opacity::Straight { a } else { 255 };
    match (colour, alpha) {
        (ColourModel::Rgb, Opacity::None) => bytes,
        (ColourModel::Grey, Opacity::None) => bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
        (ColourModel::Grey, _) => bytes
            .chunks_exact(2)
            .flat_map(|p| [seen(p[0], opacity(p[1])); 3])
            .collect(),
        (ColourModel::Rgb, _) => bytes
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]].map(|value| seen(value, opacity(p[3]))))
            .collect(),
    }
}

/// What is visible of a value over black.
pub(super) fn seen(value: u8, alpha: u8) -> u8 {
    ((u16::from(value) * u16::from(alpha) + 127) / 255) as u8
}

/// Filters leave values a little below 0, which are black; more of them mean something that is not known.
fn not_negative(data: &[f32]) -> Result<(), Reason> {
    let ends = |(least, most): (f32, f32), v: &f32| (least.min(*v), most.max(*v));
    let (least, most) = data.iter().fold((0.0, 0.0), ends);
    if least >= -0.15 * most.max(f32::MIN_POSITIVE) {
        return Ok(());
    }
    Err(format!(
        "its values reach from {least} to {most}, and what negative ones mean is not known: save it with black at 0"
    ))
}

pub(super) fn finite(data: &[f32]) -> Result<(), Reason> {
    match data.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        n => Err(format!(
            "{n} of its {} values are not finite numbers (NaN or infinity): save it without them",
            data.len()
        )),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn picture(colour: ColourModel, alpha: Opacity, samples: Samples) -> Picture {
        Picture {
            width: 1,
            height: 1,
            colour,
            alpha,
            samples,
            stated: None,
        }
    }

    pub fn grey16(values: &[u16], stated: Option<f64>) -> Picture {
        Picture {
            stated,
            ..picture(
                ColourModel::Grey,
                Opacity::None,
                Samples::U16(values.to_vec()),
            )
        }
    }

    pub fn grey32(values: &[f32], whole: bool) -> Picture {
        let data = values.to_vec();
        picture(
            ColourModel::Grey,
            Opacity::None,
            Samples::Float { data, whole },
        )
    }

    fn firsts(rgb: &[u8]) -> Vec<u8> {
        rgb.iter().step_by(3).copied().collect()
    }

    #[test]
    fn sixteen_bits_are_scaled_by_those_that_are_used() {
        for (largest, white, depth) in [
            (4095u16, 4095.0, "12"),
            (3000, 4095.0, "12"),
            (1023, 1023.0, "10"),
            (16000, 16383.0, "14"),
        ] {
            let (rgb, note) = grey16(&[0, largest / 2, largest], None).into_rgb().unwrap();
            let expected = |v: u16| (f64::from(v) * 255.0 / white).round() as u8;
            assert_eq!(firsts(&rgb), [0, expected(largest / 2), expected(largest)]);
            assert!(note.unwrap().contains(&format!("{depth} bits")));
        }
        // All of the depth is used: no note.
        let (rgb, note) = grey16(&[0, 257, 30000, 65535], None).into_rgb().unwrap();
        assert_eq!((firsts(&rgb), note), (vec![0, 1, 117, 255], None));
        // The file says so itself, but for values above what it says.
        let (rgb, note) = grey16(&[500, 1000], Some(4095.0)).into_rgb().unwrap();
        assert_eq!((firsts(&rgb), note), (vec![31, 62], None));
        let (rgb, _) = grey16(&[500, 60000], Some(4095.0)).into_rgb().unwrap();
        assert_eq!(firsts(&rgb), [2, 233]);
        assert_eq!(
            grey16(&[0, 0], None).into_rgb().unwrap().1,
            None,
            "black needs no scale"
        );
    }

    #[test]
    fn floats_are_scaled_by_their_range() {
        let rgb = |values: &[f32]| {
            grey32(values, false)
                .into_rgb()
                .map(|(rgb, note)| (firsts(&rgb), note.is_some()))
        };
        assert_eq!(
            rgb(&[-0.1, 0.0, 0.5, 1.0]),
            Ok((vec![0, 0, 128, 255], false))
        );
        assert_eq!(rgb(&[0.0, 1.02]), Ok((vec![0, 255], true)));
        assert_eq!(rgb(&[0.0, 100.0, 255.0]), Ok((vec![0, 100, 255], true)));
        assert_eq!(rgb(&[0.0, 2047.5, 4095.0]), Ok((vec![0, 128, 255], true)));
        assert_eq!(rgb(&[0.0, 1e6]), Ok((vec![0, 255], true)));
        assert!(
            rgb(&[0.0, f32::NAN])
                .unwrap_err()
                .contains("1 of its 2 values are not finite")
        );
        let (whole, _) = grey32(&[0.0, 255.0], true).into_rgb().unwrap();
        assert_eq!(firsts(&whole), [0, 255], "32-bit integers of 8 bits");
    }

    #[test]
    fn transparency_is_laid_over_black() {
        let rgba = picture(
            ColourModel::Rgb,
            Opacity::Straight,
            Samples::U8(vec![200, 100, 50, 255, 255, 255, 255, 0, 200, 100, 50, 128]),
        );
        assert_eq!(
            rgba.into_rgb().unwrap().0,
            [200, 100, 50, 0, 0, 0, 100, 50, 25]
        );
        let rgba = picture(
            ColourModel::Rgb,
            Opacity::Premultiplied,
            Samples::U8(vec![100, 50, 25, 128]),
        );
        assert_eq!(rgba.into_rgb().unwrap().0, [100, 50, 25]);
        let grey = picture(
            ColourModel::Grey,
            Opacity::Straight,
            Samples::U16(vec![65535, 65535, 65535, 0]),
        );
        assert_eq!(grey.into_rgb().unwrap().0, [255, 255, 255, 0, 0, 0]);
        // 12 bits of colour beside a full alpha.
        let grey = picture(
            ColourModel::Grey,
            Opacity::Straight,
            Samples::U16(vec![4095, 65535, 4095, 0]),
        );
        assert_eq!(firsts(&grey.into_rgb().unwrap().0), [255, 0]);
        let layer = picture(
            ColourModel::Rgb,
            Opacity::Straight,
            Samples::U8(vec![255, 255, 255, 0, 255, 0, 0, 255]),
        );
        assert_eq!(
            layer.into_mask().unwrap().0,
            [0, 255],
            "painted on a transparent layer"
        );
    }
}
