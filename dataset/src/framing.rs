//! How a photograph becomes a square of the working size: what of it is kept, and how that fits.

use std::fmt;
use std::str::FromStr;

use fovea_pictures::fov::{self, Fov};
use fovea_pictures::pillow::{self, Axis};
use fovea_pictures::resample::{Plane, Square, Window, resample, resample_window};
use serde::{Deserialize, Serialize};

/// What of a photograph is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The field of view: the square around the bright disc of a fundus photograph.
    #[default]
    Fov,
    /// The whole picture.
    None,
}

/// How what is kept is brought to a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Both sides to the working size S, as torchvision's `Resize((S, S))`.
    Stretch,
    /// Padded with black to a square first.
    #[default]
    Pad,
    /// The shorter side to round(S * 256 / 224), and of that the middle S x S, as torchvision's `Resize` and `CenterCrop`.
    Centre,
}

impl Crop {
    /// The name in manifests and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fov => "fov",
            Self::None => "none",
        }
    }

    pub(crate) fn is_fov(&self) -> bool {
        *self == Self::Fov
    }
}

impl Fit {
    /// The name in manifests and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Pad => "pad",
            Self::Centre => "centre",
        }
    }

    /// The usual fit of what `crop` keeps: the field of view is a square; whole pictures are stretched.
    #[must_use]
    pub const fn usual(crop: Crop) -> Self {
        match crop {
            Crop::Fov => Self::Pad,
            Crop::None => Self::Stretch,
        }
    }

    pub(crate) fn is_pad(&self) -> bool {
        *self == Self::Pad
    }
}

impl fmt::Display for Crop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Crop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Fov, Self::None]
            .into_iter()
            .find(|crop| crop.name() == text)
            .ok_or_else(|| format!("`{text}` is no way to crop\n  help: use fov, none or auto"))
    }
}

impl FromStr for Fit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Stretch, Self::Pad, Self::Centre]
            .into_iter()
            .find(|fit| fit.name() == text)
            .ok_or_else(|| format!("`{text}` is no fit\n  help: use stretch, pad or centre"))
    }
}

/// What is kept of a photograph, and how it fits. The default is that of fundus photographs: the field of view, padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framing {
    /// What is kept.
    #[serde(default, skip_serializing_if = "Crop::is_fov")]
    pub crop: Crop,
    /// How it is brought to a square.
    #[serde(default, skip_serializing_if = "Fit::is_pad")]
    pub fit: Fit,
}

impl Framing {
    /// Whether it is the default.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A photograph brought to the working size.
pub(crate) struct Framed {
    /// `[size, size, 3]`; `None`: the photograph is it already.
    pub pixels: Option<Vec<u8>>,
    /// The part of the photograph that the pixels show, for its masks; `None` as above.
    pub window: Option<Window>,
    /// Its field of view; without a search for one, the whole picture.
    pub fov: Fov,
}

/// RGB pixels of a photograph.
#[derive(Clone, Copy)]
pub(crate) struct Upright<'a> {
    pub data: &'a [u8],
    pub width: usize,
    pub height: usize,
}

impl<'a> Upright<'a> {
    fn plane(self) -> Plane<'a> {
        Plane {
            data: self.data,
            width: self.width,
            height: self.height,
            channels: 3,
        }
    }

    fn whole(self) -> Square {
        Square::around(self.width as u32, self.height as u32)
    }
}

/// A picture whose resize would need more memory between its passes is resampled in floats, which differs by a rounding:
/// one of a few pixels by millions.
const MOST_BYTES: usize = 256 << 20;

impl Framing {
    /// Brings `photo` to `size x size`. `keeps_squares`: a square picture is cropped to the eye already.
    pub(crate) fn apply(self, photo: Upright, size: usize, keeps_squares: bool) -> Framed {
        let Upright { width, height, .. } = photo;
        let fov = match self.crop {
            Crop::Fov if keeps_squares && width == height => uncut(photo),
            Crop::Fov => fov::detect(photo.data, width, height),
            Crop::None => uncut(photo),
        };
        // A field of view is a square, so nothing is left to stretch or pad, and prepared datasets count on this filter's
        // bits.
        if self.crop == Crop::Fov && self.fit != Fit::Centre {
            if fov.square == photo.whole() && (width, height) == (size, size) {
                return untouched(fov);
            }
            return Framed {
                pixels: Some(resample(photo.plane(), fov.square, size)),
                window: Some(fov.square.window(size)),
                fov,
            };
        }
        let square = fov.square;
        let side = square.side as usize;
        let all_of = |length: usize, offset: i64| Axis {
            length,
            offset,
            ..Axis::whole(length, size)
        };
        let (columns, rows) = match (self.fit, self.crop) {
            (Fit::Pad, _) => (all_of(side, -square.x), all_of(side, -square.y)),
            (Fit::Stretch, _) => (all_of(width, 0), all_of(height, 0)),
            (Fit::Centre, Crop::None) => middle((width, 0), (height, 0), size),
            (Fit::Centre, Crop::Fov) => middle((side, -square.x), (side, -square.y), size),
        };
        let is_same = |axis: Axis, length| axis == Axis::whole(length, length);
        if (width, height) == (size, size) && is_same(columns, width) && is_same(rows, height) {
            return untouched(fov);
        }
        let ((x, step_x), (y, step_y)) = (columns.start_and_step(), rows.start_and_step());
        let window = Window {
            x,
            y,
            step_x,
            step_y,
        };
        let pixels = match pillow::memory(photo.plane(), &columns) > MOST_BYTES {
            true => resample_window(photo.plane(), window, size),
            false => pillow::resize_part(photo.plane(), &columns, &rows),
        };
        Framed {
            pixels: Some(pixels),
            window: Some(window),
            fov,
        }
    }
}

/// The whole picture as what is seen.
fn uncut(photo: Upright) -> Fov {
    let (width, height) = (photo.width as f64, photo.height as f64);
    Fov {
        cx: width / 2.0,
        cy: height / 2.0,
        radius: width.max(height) / 2.0,
        square: photo.whole(),
        found: true,
    }
}

fn untouched(fov: Fov) -> Framed {
    Framed {
        pixels: None,
        window: None,
        fov,
    }
}

/// The shorter of two sides brought to round(size * 256 / 224), the longer one in proportion and cut off to a whole number of
/// pixels, and the middle of that: `Resize` and `CenterCrop` of torchvision, whose halves round to even. A side comes with the
/// place of the picture on it.
fn middle((width, x): (usize, i64), (height, y): (usize, i64), size: usize) -> (Axis, Axis) {
    let shorter = (size as f64 * 256.0 / 224.0).round_ties_even() as usize;
    let longer = |side: usize, of: usize| shorter * side / of.max(1);
    let (w, h) = match width <= height {
        true => (shorter, longer(height, width)),
        false => (longer(width, height), shorter),
    };
    let axis = |length: usize, offset: i64, resized: usize| Axis {
        length,
        offset,
        resized,
        first: ((resized - size) as f64 / 2.0).round_ties_even() as usize,
        count: size,
    };
    (axis(width, x, w), axis(height, y, h))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in `tests/golden/pillow_resize.py`.
    fn pattern(width: usize, height: usize) -> Vec<u8> {
        let mut state = 12_345u32;
        (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    fn framed(crop: Crop, fit: Fit, (width, height): (usize, usize), size: usize) -> Framed {
        let data = pattern(width, height);
        let photo = Upright {
            data: &data,
            width,
            height,
        };
        Framing { crop, fit }.apply(photo, size, false)
    }

    #[test]
    fn the_middle_is_torchvisions_bit_for_bit() {
        let golden = include_str!("../../tests/golden/torchvision_centre.txt");
        let lines = golden.lines().filter(|line| !line.starts_with('#'));
        let cases = lines.map(|line| {
            let numbers: Vec<usize> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let (source, size) = ((numbers[0], numbers[1]), numbers[2]);
            let expected: Vec<u8> = numbers[3..].iter().map(|v| *v as u8).collect();
            let found = framed(Crop::None, Fit::Centre, source, size);
            assert_eq!(found.pixels.unwrap(), expected, "{source:?} to {size}");
        });
        assert_eq!(cases.count(), 6);
    }

    #[test]
    fn windows_show_what_the_pixels_show() {
        let near = |window: Option<Window>, expected: [f64; 4]| {
            let w = window.unwrap();
            let found = [w.x, w.y, w.step_x, w.step_y];
            let is_near = found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-9);
            assert!(is_near, "{found:?}, not {expected:?}");
        };
        near(
            framed(Crop::None, Fit::Stretch, (40, 20), 10).window,
            [0.0, 0.0, 4.0, 2.0],
        );
        near(
            framed(Crop::None, Fit::Pad, (40, 20), 10).window,
            [0.0, -10.0, 4.0, 4.0],
        );
        // 14 -> 16 pixels of the shorter side: 32 x 16, of which x 9..23 and y 1..15 are kept.
        near(
            framed(Crop::None, Fit::Centre, (64, 32), 14).window,
            [18.0, 2.0, 2.0, 2.0],
        );
    }

    #[test]
    fn the_middle_of_a_field_of_view_is_cut_out_of_its_square() {
        let data = pattern(30, 20);
        let photo = Upright {
            data: &data,
            width: 30,
            height: 20,
        };
        let framing = Framing {
            crop: Crop::Fov,
            fit: Fit::Centre,
        };
        let found = framing.apply(photo, 14, false);
        // The square by hand, black where it reaches out of the picture.
        let square = found.fov.square;
        let side = i64::from(square.side);
        let places = (0..side).flat_map(|y| (0..side).map(move |x| (x + square.x, y + square.y)));
        let pixel = |(x, y): (i64, i64)| match (0..30).contains(&x) && (0..20).contains(&y) {
            true => [0, 1, 2].map(|k| data[((y * 30 + x) * 3) as usize + k]),
            false => [0; 3],
        };
        let ground: Vec<u8> = places.flat_map(pixel).collect();
        let ground = Upright {
            data: &ground,
            width: side as usize,
            height: side as usize,
        };
        let framing = Framing {
            crop: Crop::None,
            fit: Fit::Centre,
        };
        assert_eq!(found.pixels, framing.apply(ground, 14, false).pixels);
    }

    #[test]
    fn a_picture_of_the_size_is_not_touched_and_padding_is_black() {
        for fit in [Fit::Stretch, Fit::Pad] {
            assert_eq!(framed(Crop::None, fit, (12, 12), 12).pixels, None);
        }
        let padded = framed(Crop::None, Fit::Pad, (12, 6), 12).pixels.unwrap();
        assert_eq!(padded[..12 * 3 * 3], [0; 12 * 3 * 3]);
        assert_eq!(padded[12 * 3 * 3..12 * 9 * 3], pattern(12, 6));
    }

    #[test]
    fn spellings_come_back() {
        for crop in [Crop::Fov, Crop::None] {
            assert_eq!(crop.name().parse(), Ok(crop));
        }
        for fit in [Fit::Stretch, Fit::Pad, Fit::Centre] {
            assert_eq!(fit.name().parse(), Ok(fit));
        }
        assert!("disc".parse::<Crop>().unwrap_err().contains("  help: "));
        assert!("crop".parse::<Fit>().unwrap_err().contains("  help: "));
        assert_eq!(serde_json::to_string(&Framing::default()).unwrap(), "{}");
        let other = Framing {
            crop: Crop::None,
            fit: Fit::Centre,
        };
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(text, r#"{"crop":"none","fit":"centre"}"#);
        assert_eq!(serde_json::from_str::<Framing>(&text).unwrap(), other);
    }
}
