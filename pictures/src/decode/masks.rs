//! Masks from decoded samples: one value per pixel, judged at full depth.

use super::Reason;
use super::samples::{Opacity, Picture, Samples, finite, seen, white_of_floats, white_of_integers};
use crate::wide::wide;

/// What a plane of mask values is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Values {
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
    /// Nothing is left because all that is not black is transparent.
    pub hidden: bool,
}

impl Values {
    /// Of a plane in 8 bits, and what is known of it at full depth.
    fn of(plane: &[u8], two_valued: bool, largest: f64, white: f64) -> Self {
        let (dim, levels) = if two_valued { (0.0, 1) } else { spread(plane) };
        Self {
            two_valued,
            largest,
            white,
            dim,
            levels,
            hidden: false,
        }
    }
}

impl Picture {
    /// One value per pixel, `[height, width]`: the largest of R, G, B times the opacity, in 8 bits.
    ///
    /// What is transparent is no lesion: tools that paint on a transparent layer may leave any colour where nothing was
    /// painted. Where the colour is black all over and the opacity varies, the opacity is the mask: somebody painted black
    /// on a transparent layer.
    pub fn into_mask(self) -> Result<(Vec<u8>, Values), Reason> {
        let colours = self.colour.samples();
        let shape = (colours, self.alpha);
        match self.samples {
            Samples::U8(data) => Ok(byte_mask(data, shape)),
            Samples::Indexed { mut data, palette } => {
                let light = palette.map(|[r, g, b]| r.max(g).max(b));
                if light.iter().all(|light| *light == 0) && varies(data.iter()) {
                    return Ok(of_bytes(data));
                }
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
                Ok(byte_mask(data, (1, Opacity::None)))
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

/// A mask of one byte per pixel.
pub(super) fn of_bytes(data: Vec<u8>) -> (Vec<u8>, Values) {
    byte_mask(data, (1, Opacity::None))
}

fn byte_mask(data: Vec<u8>, (colours, alpha): (usize, Opacity)) -> (Vec<u8>, Values) {
    let top = |pixel: &[u8]| pixel.iter().copied().max().unwrap_or(0);
    let data_has_colour = alpha != Opacity::None
        && data
            .chunks_exact(colours + 1)
            .any(|pixel| top(&pixel[..colours]) > 0);
    let mut plane: Vec<u8> = match (colours, alpha) {
        (1, Opacity::None) => data,
        (3, Opacity::None) => data
            .chunks_exact(3)
            .map(|p| p[0].max(p[1]).max(p[2]))
            .collect(),
        (n, _) => {
            let pixels = || data.chunks_exact(n + 1);
            let most = pixels().map(|p| p[n]).max().unwrap_or(0);
            // Opacity of 0 all over: there is none. Of 0 and 1: a mask was stored in it.
            let opacity = |a: u8| match alpha {
                Opacity::Straight if most == 0 => 255,
                Opacity::Straight if most == 1 => 255 * a,
                Opacity::Straight => a,
                _ => 255,
            };
            match varies(pixels().map(|p| p[n])) && pixels().all(|p| p[..n] == [0; 3][..n]) {
                true => pixels().map(|p| p[n]).collect(),
                false => pixels()
                    .map(|p| seen(top(&p[..n]), opacity(p[n])))
                    .collect(),
            }
        }
    };
    let largest = largest_byte(&plane);
    let hidden = largest == 0 && data_has_colour;
    // One value all over is two-valued only as a whole mask of lesions: 1, or white.
    let is_one = !plane.contains(&0);
    let two_valued =
        largest > 0 && others(&plane, largest) == 0 && (!is_one || matches!(largest, 1 | 255));
    if two_valued && largest < 255 {
        for value in &mut plane {
            *value = if *value == 0 { 0 } else { 255 };
        }
    }
    let values = Values {
        hidden,
        ..Values::of(&plane, two_valued, f64::from(largest), 255.0)
    };
    (plane, values)
}

fn varies<T: PartialEq>(mut values: impl Iterator<Item = T>) -> bool {
    values
        .next()
        .is_some_and(|first| values.any(|value| value != first))
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
    (colours, alpha): (usize, Opacity),
    full: f32,
    value: impl Fn(&T) -> f32,
) -> Vec<f32> {
    let channels = colours + usize::from(alpha != Opacity::None);
    let opacities = || {
        data.chunks_exact(channels)
            .map(|pixel| &pixel[channels - 1])
    };
    let is_black = |pixel: &[T]| pixel[..colours].iter().all(|v| value(v) == 0.0);
    if alpha != Opacity::None
        && varies(opacities().map(&value))
        && data.chunks_exact(channels).all(is_black)
    {
        return opacities().map(value).collect();
    }
    let opaque = match alpha {
        Opacity::Straight => data
            .chunks_exact(channels)
            .fold(full, |opaque, pixel| value(&pixel[colours]).max(opaque)),
        _ => full,
    };
    let colour = |pixel: &[T]| pixel[..colours].iter().map(&value).fold(f32::MIN, f32::max);
    // Negative all over, without a zero, is the ground of a map of scores.
    let pixels = || data.chunks_exact(channels).map(colour);
    let sign = match pixels().all(|value| value <= 0.0) && pixels().any(|value| value == 0.0) {
        true => -1.0,
        false => 1.0,
    };
    data.chunks_exact(channels)
        .map(|pixel| {
            let top = pixel[..colours]
                .iter()
                .fold(0f32, |top, v| (sign * value(v)).max(top));
            match alpha {
                Opacity::Straight => top * (value(&pixel[colours]) / opaque).clamp(0.0, 1.0),
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
    let is_one = plane.iter().all(|value| *value != 0.0);
    let two_valued = largest > 0.0
        && plane.iter().all(|value| *value == 0.0 || *value == top)
        && (!is_one || largest == 1.0 || largest == white);
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
    let values = Values::of(&bytes, two_valued, largest, white);
    (bytes, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::samples::ColourModel;
    use crate::decode::samples::tests::{grey16, grey32, picture};

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
            let bytes = picture(ColourModel::Grey, Opacity::None, Samples::U8(vec![0, v, 0]));
            assert_eq!(judged(bytes), (vec![0, 255, 0], true));
        }
        assert_eq!(judged(grey16(&[0; 3], None)), (vec![0; 3], false));
    }

    #[test]
    fn black_paint_on_a_transparent_layer_is_the_mask() {
        for alpha in [Opacity::Straight, Opacity::Premultiplied] {
            let plane = |colour, samples| picture(colour, alpha, samples).into_mask().unwrap().0;
            let rgba = vec![0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 90];
            assert_eq!(plane(ColourModel::Rgb, Samples::U8(rgba)), [0, 255, 90]);
            let grey = vec![0, 0, 0, 65535];
            assert_eq!(plane(ColourModel::Grey, Samples::U16(grey)), [0, 255]);
            // Opaque everywhere: a black mask, whose lesion is absent.
            let opaque = vec![0, 0, 0, 255, 0, 0, 0, 255];
            assert_eq!(plane(ColourModel::Rgb, Samples::U8(opaque)), [0, 0]);
        }
    }

    #[test]
    fn one_value_all_over_is_no_mask_of_lesions_unless_it_is_one_or_white() {
        let two = |picture: Picture| picture.into_mask().unwrap().1.two_valued;
        let bytes = |v: u8| picture(ColourModel::Grey, Opacity::None, Samples::U8(vec![v; 3]));
        assert!(two(bytes(1)) && two(bytes(255)) && !two(bytes(76)));
        assert!(two(grey32(&[1.0; 3], false)) && !two(grey32(&[0.02; 3], false)));
        assert!(two(grey16(&[65535; 3], None)) && !two(grey16(&[300; 3], None)));
        // Scores below zero everywhere: nothing was found.
        let (plane, values) = grey32(&[-6.1; 3], false).into_mask().unwrap();
        assert_eq!((plane, values.largest), (vec![0; 3], 0.0));
    }

    #[test]
    fn lesions_that_are_transparent_are_told_or_seen() {
        let rgba = |pixels: &[[u8; 4]]| {
            let samples = Samples::U8(pixels.concat());
            picture(ColourModel::Rgb, Opacity::Straight, samples)
                .into_mask()
                .unwrap()
        };
        // No opacity anywhere: it was never meant.
        let (plane, values) = rgba(&[[255, 255, 255, 0], [0, 0, 0, 0]]);
        assert_eq!((plane, values.hidden), (vec![255, 0], false));
        let (plane, _) = rgba(&[[1, 1, 1, 1], [0, 0, 0, 0]]);
        assert_eq!(plane, [255, 0]);
        let (plane, values) = rgba(&[[255, 255, 255, 0], [0, 0, 0, 255]]);
        assert_eq!((plane, values.hidden), (vec![0, 0], true));
    }

    #[test]
    fn indices_of_a_black_palette_are_the_values() {
        let palette = Box::new([[0; 3]; 256]);
        let data = vec![0, 1, 0];
        let indexed = Samples::Indexed { data, palette };
        let (plane, values) = picture(ColourModel::Rgb, Opacity::None, indexed)
            .into_mask()
            .unwrap();
        assert_eq!((plane, values.two_valued), (vec![0, 255, 0], true));
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
        let bytes = picture(
            ColourModel::Grey,
            Opacity::None,
            Samples::U8(vec![1, 127, 128]),
        );
        assert_eq!(half(bytes), [false, false, true]);
        assert!(grey32(&[f32::INFINITY], false).into_mask().is_err());
    }
}
