//! Decoded samples at their full depth, and what becomes of them: RGB of 8 bits, or a mask.
//!
//! A value is judged before it is cut to 8 bits. Cameras store 10, 12 or 14 bits in 16, and tools store two-valued
//! masks at any depth, so the largest possible value of a type says little about the brightest value of a picture.

use super::Reason;
use crate::wide::wide;

/// How the samples of a pixel make a colour. Samples are interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Rgb,
}

impl Colour {
    fn samples(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

/// Whether a sample behind the colour says how much of it is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    /// There is none.
    None,
    /// The colour is that of the opaque pixel.
    Straight,
    /// The colour is what is to be seen of it over black.
    Premultiplied,
}

/// Samples by their type.
#[derive(Debug)]
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
    /// Numbers of colours (`Colour::Rgb`, no opacity).
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
    pub colour: Colour,
    pub alpha: Alpha,
    pub samples: Samples,
    /// The brightest possible value, where the file states it (sBIT, MaxSampleValue).
    pub stated: Option<f64>,
}

/// What a plane of mask values is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Values {
    /// There are only 0 and one other value, and that value occurs. The plane then holds 0 and 255.
    pub two_valued: bool,
    /// The largest value at full depth.
    pub largest: f64,
    /// The value that stands for white at full depth: 255, 4095, 65535, 1.
    pub white: f64,
    /// Of the pixels that are not black, the share below half of white; 0 when there are only two values.
    pub dim: f64,
    /// How many values there are besides 0, in 8 bits.
    pub levels: usize,
}

impl Picture {
    /// RGB, `[height, width, 3]`, laid over black where it is transparent; with a word about the scale when the file
    /// leaves it open.
    pub fn into_rgb(self) -> Result<(Vec<u8>, Option<String>), Reason> {
        let channels = self.colour.samples() + usize::from(self.alpha != Alpha::None);
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

    /// One value per pixel, `[height, width]`: the largest of R, G, B times the opacity, in 8 bits.
    ///
    /// What is transparent is no lesion: tools that paint on a transparent layer may leave any colour where nothing was
    /// painted.
    pub fn into_mask(self) -> Result<(Vec<u8>, Values), Reason> {
        let colours = self.colour.samples();
        let shape = (colours, self.alpha);
        match self.samples {
            Samples::U8(data) => Ok(byte_mask(data, shape)),
            Samples::Indexed { mut data, palette } => {
                let light = palette.map(|[r, g, b]| r.max(g).max(b));
                // Most of a mask is ground, eight pixels at a time.
                let ground = [0; 8];
                let (eights, rest) = data.as_chunks_mut::<8>();
                for value in eights
                    .iter_mut()
                    .filter(|eight| light[0] != 0 || **eight != ground)
                    .flatten()
                    .chain(rest)
                {
                    *value = light[usize::from(*value)];
                }
                Ok(byte_mask(data, (1, Alpha::None)))
            }
            Samples::U16(data) => {
                let plane = brightest(&data, shape, 65535.0, |v| f32::from(*v));
                let largest = largest(&plane);
                let white = white_of_integers(largest, 16, self.stated).0;
                Ok(wide_mask(&plane, largest, white))
            }
            Samples::Float { data, whole } => {
                finite(&data)?;
                let plane = brightest(&data, shape, 1.0, |v| *v);
                let largest = largest(&plane);
                let white = if whole {
                    white_of_integers(largest, 32, self.stated).0
                } else {
                    white_of_floats(largest, self.stated).0
                };
                Ok(wide_mask(&plane, largest, white))
            }
        }
    }
}

/// The value that stands for white among integers of `bits` bits: the stated one when no value exceeds it, else that
/// of the least usual depth of cameras that holds the largest value; a word when it had to be guessed.
fn white_of_integers(largest: f64, bits: u32, stated: Option<f64>) -> (f64, Option<String>) {
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
fn white_of_floats(largest: f64, stated: Option<f64>) -> (f64, Option<String>) {
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
fn largest_colour<T>(data: &[T], channels: usize, alpha: Alpha, value: impl Fn(&T) -> f64) -> f64 {
    let colours = channels - usize::from(alpha != Alpha::None);
    data.chunks_exact(channels)
        .flat_map(|pixel| &pixel[..colours])
        .fold(0.0, |largest, v| value(v).max(largest))
}

/// Opacity has the colour's scale where it fits in, else its type's.
fn white_of_alpha<T>(
    data: &[T],
    channels: usize,
    alpha: Alpha,
    white: f64,
    value: impl Fn(&T) -> f64,
    full: f64,
) -> f64 {
    if alpha == Alpha::None {
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
    alpha: Alpha,
    white: f64,
    white_alpha: f64,
    value: impl Fn(&T) -> f32,
) -> Vec<u8> {
    let scale = (255.0 / white) as f32;
    let scale_alpha = (255.0 / white_alpha) as f32;
    let last = if alpha == Alpha::None {
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
fn over_black(bytes: Vec<u8>, colour: Colour, alpha: Alpha) -> Vec<u8> {
    let opacity = |a: u8| if alpha == Alpha::Straight { a } else { 255 };
    match (colour, alpha) {
        (Colour::Rgb, Alpha::None) => bytes,
        (Colour::Grey, Alpha::None) => bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
        (Colour::Grey, _) => bytes
            .chunks_exact(2)
            .flat_map(|p| [seen(p[0], opacity(p[1])); 3])
            .collect(),
        (Colour::Rgb, _) => bytes
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]].map(|value| seen(value, opacity(p[3]))))
            .collect(),
    }
}

/// What is to be seen of a value over black.
fn seen(value: u8, alpha: u8) -> u8 {
    ((u16::from(value) * u16::from(alpha) + 127) / 255) as u8
}

fn byte_mask(data: Vec<u8>, (colours, alpha): (usize, Alpha)) -> (Vec<u8>, Values) {
    let top = |pixel: &[u8]| pixel.iter().copied().max().unwrap_or(0);
    let mut plane: Vec<u8> = match (colours, alpha) {
        (1, Alpha::None) => data,
        (3, Alpha::None) => data
            .chunks_exact(3)
            .map(|p| p[0].max(p[1]).max(p[2]))
            .collect(),
        (n, _) => {
            let opacity = |a: u8| if alpha == Alpha::Straight { a } else { 255 };
            data.chunks_exact(n + 1)
                .map(|p| seen(top(&p[..n]), opacity(p[n])))
                .collect()
        }
    };
    let largest = largest_byte(&plane);
    let two_valued = largest > 0 && others(&plane, largest) == 0;
    if two_valued && largest < 255 {
        for value in &mut plane {
            *value = if *value == 0 { 0 } else { 255 };
        }
    }
    let (dim, levels) = if two_valued { (0.0, 1) } else { spread(&plane) };
    let values = Values {
        two_valued,
        largest: f64::from(largest),
        white: 255.0,
        dim,
        levels,
    };
    (plane, values)
}

/// The share of dim pixels among those that are not black, and how many values these have.
fn spread(plane: &[u8]) -> (f64, usize) {
    let mut counts = [0u64; 256];
    for value in plane {
        counts[usize::from(*value)] += 1;
    }
    let sum = |range: std::ops::Range<usize>| counts[range].iter().sum::<u64>();
    let levels = counts[1..].iter().filter(|count| **count > 0).count();
    (sum(1..128) as f64 / sum(1..256).max(1) as f64, levels)
}

wide! {
    fn largest_byte(plane: &[u8]) -> u8 {
        plane.iter().copied().max().unwrap_or(0)
    }
}

wide! {
    /// Bits of the values that are neither 0 nor `value`.
    fn others(plane: &[u8], value: u8) -> u8 {
        plane.iter().fold(0, |bits, v| bits | if *v == value { 0 } else { *v })
    }
}

/// One value per pixel at full depth; negative ones count as 0, unless there are no others: some tools cast "true" to -1.
fn brightest<T>(
    data: &[T],
    (colours, alpha): (usize, Alpha),
    full: f32,
    value: impl Fn(&T) -> f32,
) -> Vec<f32> {
    let channels = colours + usize::from(alpha != Alpha::None);
    let opaque = match alpha {
        Alpha::Straight => data
            .chunks_exact(channels)
            .fold(full, |opaque, pixel| value(&pixel[colours]).max(opaque)),
        _ => full,
    };
    let colour = |pixel: &[T]| pixel[..colours].iter().map(&value).fold(f32::MIN, f32::max);
    let sign = match data
        .chunks_exact(channels)
        .all(|pixel| colour(pixel) <= 0.0)
    {
        true => -1.0,
        false => 1.0,
    };
    data.chunks_exact(channels)
        .map(|pixel| {
            let top = pixel[..colours]
                .iter()
                .fold(0f32, |top, v| (sign * value(v)).max(top));
            match alpha {
                Alpha::Straight => top * (value(&pixel[colours]) / opaque).clamp(0.0, 1.0),
                _ => top,
            }
        })
        .collect()
}

fn largest(plane: &[f32]) -> f64 {
    f64::from(plane.iter().copied().fold(0.0, f32::max))
}

fn wide_mask(plane: &[f32], largest: f64, white: f64) -> (Vec<u8>, Values) {
    let top = largest as f32;
    let two_valued = largest > 0.0 && plane.iter().all(|value| *value == 0.0 || *value == top);
    let bytes: Vec<u8> = if two_valued {
        plane
            .iter()
            .map(|value| if *value == 0.0 { 0 } else { 255 })
            .collect()
    } else {
        let scale = (255.0 / white) as f32;
        // Half of white becomes 128, the smallest value that counts as lesion.
        plane
            .iter()
            .map(|value| (value * scale + 0.5) as u8)
            .collect()
    };
    let (dim, levels) = if two_valued { (0.0, 1) } else { spread(&bytes) };
    let values = Values {
        two_valued,
        largest,
        white,
        dim,
        levels,
    };
    (bytes, values)
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

fn finite(data: &[f32]) -> Result<(), Reason> {
    match data.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        n => Err(format!(
            "{n} of its {} values are not finite numbers (NaN or infinity): save it without them",
            data.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(colour: Colour, alpha: Alpha, samples: Samples) -> Picture {
        Picture {
            width: 1,
            height: 1,
            colour,
            alpha,
            samples,
            stated: None,
        }
    }

    fn grey16(values: &[u16], stated: Option<f64>) -> Picture {
        Picture {
            stated,
            ..picture(Colour::Grey, Alpha::None, Samples::U16(values.to_vec()))
        }
    }

    fn grey32(values: &[f32], whole: bool) -> Picture {
        let data = values.to_vec();
        picture(Colour::Grey, Alpha::None, Samples::Float { data, whole })
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
        // All of the depth is used: nothing is to be said.
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
            Colour::Rgb,
            Alpha::Straight,
            Samples::U8(vec![200, 100, 50, 255, 255, 255, 255, 0, 200, 100, 50, 128]),
        );
        assert_eq!(
            rgba.into_rgb().unwrap().0,
            [200, 100, 50, 0, 0, 0, 100, 50, 25]
        );
        let rgba = picture(
            Colour::Rgb,
            Alpha::Premultiplied,
            Samples::U8(vec![100, 50, 25, 128]),
        );
        assert_eq!(rgba.into_rgb().unwrap().0, [100, 50, 25]);
        let grey = picture(
            Colour::Grey,
            Alpha::Straight,
            Samples::U16(vec![65535, 65535, 65535, 0]),
        );
        assert_eq!(grey.into_rgb().unwrap().0, [255, 255, 255, 0, 0, 0]);
        // 12 bits of colour beside a full alpha.
        let grey = picture(
            Colour::Grey,
            Alpha::Straight,
            Samples::U16(vec![4095, 65535, 4095, 0]),
        );
        assert_eq!(firsts(&grey.into_rgb().unwrap().0), [255, 0]);
        let layer = picture(
            Colour::Rgb,
            Alpha::Straight,
            Samples::U8(vec![255, 255, 255, 0, 255, 0, 0, 255]),
        );
        assert_eq!(
            layer.into_mask().unwrap().0,
            [0, 255],
            "painted on a transparent layer"
        );
    }

    #[test]
    fn two_values_are_two_values_at_any_depth() {
        let judged = |picture: Picture| {
            picture
                .into_mask()
                .map(|(plane, values)| (plane, values.two_valued))
                .unwrap()
        };
        for v in [1, 76, 255, 4095, 65535] {
            assert_eq!(
                judged(grey16(&[0, v, 0], None)),
                (vec![0, 255, 0], true),
                "{v}"
            );
            assert_eq!(
                judged(grey32(&[0.0, f32::from(v), 0.0], true)),
                (vec![0, 255, 0], true),
                "{v}"
            );
        }
        assert_eq!(
            judged(grey32(&[0.0, 0.2, -1.0], false)),
            (vec![0, 255, 0], true)
        );
        for v in [1, 76, 255] {
            let bytes = picture(Colour::Grey, Alpha::None, Samples::U8(vec![0, v, 0]));
            assert_eq!(judged(bytes), (vec![0, 255, 0], true));
        }
        assert_eq!(judged(grey16(&[0; 3], None)), (vec![0; 3], false));
    }

    #[test]
    fn soft_masks_are_cut_at_half_of_white() {
        let half = |picture: Picture| {
            let (plane, values) = picture.into_mask().unwrap();
            assert!(!values.two_valued);
            plane.iter().map(|v| *v >= 128).collect::<Vec<_>>()
        };
        assert_eq!(
            half(grey16(&[32767, 32768, 65535], None)),
            [false, true, true]
        );
        assert_eq!(half(grey16(&[2047, 2048, 4095], None)), [false, true, true]);
        assert_eq!(half(grey16(&[127, 128, 255], None)), [false, true, true]);
        assert_eq!(
            half(grey32(&[0.0, 0.49, 0.5, 1.0], false)),
            [false, false, true, true]
        );
        let bytes = picture(Colour::Grey, Alpha::None, Samples::U8(vec![1, 127, 128]));
        assert_eq!(half(bytes), [false, false, true]);
        assert!(grey32(&[f32::INFINITY], false).into_mask().is_err());
    }
}
