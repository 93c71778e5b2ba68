//! A map of heat over a photograph, as a picture of its own.

use std::path::Path;

use image::{Rgb, RgbImage, imageops};

use super::error::Result;
use super::pictures::heat_colour;
use super::text::blend;
use super::{Error, files};

/// Most pixels along a side of the photograph in a picture.
const MOST: u32 = 640;
/// Pixels between the photograph and the photograph beneath the heat.
const GAP: u32 = 8;
/// Opacity of the greatest heat; none has none.
const OPACITY: f32 = 0.75;

/// Writes the photograph beside the same photograph beneath its heat, as a PNG. `pixels` are `[side, side, 3]`, `heat` is
/// `[side, side]` from 0 to 1.
///
/// # Errors
/// The numbers are not as many as the pixels, or the file cannot be written.
pub fn write(path: &Path, pixels: &[u8], side: usize, heat: &[f32]) -> Result<()> {
    files::replace(path, &files::png(&drawn(pixels, side, heat)?)?)
}

fn drawn(pixels: &[u8], side: usize, heat: &[f32]) -> Result<RgbImage> {
    let photo = RgbImage::from_raw(side as u32, side as u32, pixels.to_vec());
    let photo = photo.filter(|_| heat.len() == side * side).ok_or_else(|| {
        let (pixels, values) = (pixels.len() / 3, heat.len());
        Error::Draw(format!(
            "{pixels} pixels and {values} numbers of a picture of {side} x {side}"
        ))
    })?;
    let mut warm = photo.clone();
    for (at, &value) in heat.iter().enumerate() {
        let (x, y) = ((at % side) as i64, (at / side) as i64);
        blend(&mut warm, x, y, heat_colour(value), OPACITY * value);
    }
    let shown = (side as u32).min(MOST);
    let mut sheet = RgbImage::from_pixel(2 * shown + GAP, shown, Rgb([255; 3]));
    for (picture, left) in [(&photo, 0), (&warm, shown + GAP)] {
        let small = imageops::resize(picture, shown, shown, imageops::FilterType::Triangle);
        imageops::replace(&mut sheet, &small, i64::from(left), 0);
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_lies_over_the_right_half_alone() {
        let mut heat = vec![0.0; 16];
        heat[5] = 1.0;
        let sheet = drawn(&[100; 48], 4, &heat).unwrap();
        assert_eq!(sheet.dimensions(), (16, 4));
        assert_eq!(sheet.get_pixel(1, 1).0, [100; 3]);
        assert_eq!(sheet.get_pixel(12, 0).0, [100; 3], "no heat, no colour");
        let hot = sheet.get_pixel(13, 1).0;
        let full =
            heat_colour(1.0).map(|c| (100.0 + (f32::from(c) - 100.0) * OPACITY).round() as u8);
        assert_eq!(hot, full);
        assert!(drawn(&[100; 48], 4, &heat[1..]).is_err());
        assert!(drawn(&[100; 47], 4, &heat).is_err());
    }

    #[test]
    fn large_photographs_are_made_smaller() {
        let side = 700;
        let sheet = drawn(&vec![9; side * side * 3], side, &vec![0.5; side * side]).unwrap();
        assert_eq!(sheet.dimensions(), (2 * MOST + GAP, MOST));
    }
}
