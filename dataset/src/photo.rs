//! Photographs straight from a camera: found, cropped to the field of view or not, scaled to the working size.

use std::fs;
use std::path::Path;

use fovea_pictures::decode;
use fovea_pictures::fov::Fov;
use image::RgbImage;

use crate::cells::{BLACK_LEVEL, Cells, check_grid};
use crate::framing::{Crop, Framing, Upright};
use crate::{Error, Result};

/// A photograph in the form that models see: as an image of a prepared dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Photo {
    /// RGB, `[size, size, 3]`.
    pub pixels: Vec<u8>,
    /// 1 for black cells, `[grid, grid]` with grid = size / patch; empty without a grid.
    pub black: Vec<u8>,
    /// Where in the source the pixels come from; the whole photograph when nobody looked for a field of view.
    pub fov: Fov,
    /// Why a model's answer to this photograph means nothing; `None` when nothing speaks against it.
    pub note: Option<String>,
}

/// Reads a photograph, in whatever format, upright and in 8 bits; a warning says how its values were scaled where the file
/// leaves that open.
pub fn load_photo(path: &Path) -> Result<RgbImage> {
    let bad = |reason: String| Error::Picture {
        path: path.display().to_string(),
        reason,
    };
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut pixels = Vec::new();
    let picture = decode::rgb(&bytes, &mut pixels).map_err(bad)?;
    if let Some(note) = picture.note {
        tracing::warn!("{}: {note}", path.display());
    }
    RgbImage::from_raw(picture.width, picture.height, pixels)
        .ok_or_else(|| bad("decodes to fewer pixels than its header says".to_owned()))
}

/// Cuts a photograph to its field of view, pads with black, brings it to `size x size` pixels and finds the black
/// cells of `patch x patch`. The same steps as `prepare` takes for the `folder` layout.
pub fn prepare_photo(photo: &RgbImage, size: u32, patch: u32) -> Result<Photo> {
    frame_photo(photo, Framing::default(), size, patch)
}

/// As [`prepare_photo`], cropped and fitted as `framing` says; with `patch` 0 there are no cells. The same steps as
/// `prepare` takes for a dataset with these values in its manifest.
pub fn frame_photo(photo: &RgbImage, framing: Framing, size: u32, patch: u32) -> Result<Photo> {
    check_grid(size, patch)?;
    let (width, height) = (photo.width() as usize, photo.height() as usize);
    let size = size as usize;
    let source = Upright {
        data: photo.as_raw(),
        width,
        height,
    };
    let framed = framing.apply(source, size, false);
    let pixels = match framed.pixels {
        Some(pixels) => pixels,
        None => photo.as_raw().clone(),
    };
    let black = Cells {
        size,
        patch: patch as usize,
    }
    .black(&pixels);
    let note = unusable(photo, framing, &framed.fov, &black);
    Ok(Photo {
        pixels,
        black,
        fov: framed.fov,
        note,
    })
}

/// A photograph with a shorter edge shows nothing, in pixels.
const MIN_EDGE: u32 = 32;

/// A picture whose values differ by no more than this has one colour.
const ONE_COLOUR: u8 = 8;

/// Whether all pixels that are not black are alike. A photograph is known to have more by its first rows.
fn has_one_colour(rgb: &[u8]) -> bool {
    let mut spread = [(255u8, 0u8); 3];
    let pixels = rgb.as_chunks::<3>().0;
    pixels.iter().filter(|p| **p != [0; 3]).all(|pixel| {
        for ((least, most), value) in spread.iter_mut().zip(pixel) {
            (*least, *most) = ((*least).min(*value), (*most).max(*value));
        }
        spread
            .iter()
            .all(|(least, most)| most.saturating_sub(*least) <= ONE_COLOUR)
    })
}

/// Why a photograph shows nothing that a model could judge.
fn unusable(photo: &RgbImage, framing: Framing, fov: &Fov, black: &[u8]) -> Option<String> {
    let (width, height) = photo.dimensions();
    if let Some(tiny) = too_small(width, height) {
        return Some(tiny);
    }
    let is_black = match black {
        [] => photo.as_raw().iter().all(|value| *value < BLACK_LEVEL),
        black => black.iter().all(|cell| *cell != 0),
    };
    if is_black {
        let what = if black.is_empty() {
            "all of it is"
        } else {
            "every cell is"
        };
        return Some(format!("{what} black"));
    }
    let is_lost = framing.crop == Crop::Fov && !fov.found;
    plain(photo.as_raw()).or_else(|| is_lost.then(|| "no field of view found".to_owned()))
}

/// The message about a picture that is too small to show anything; `None` for others.
pub(crate) fn too_small(width: u32, height: u32) -> Option<String> {
    (width.min(height) < MIN_EDGE).then(|| format!("only {width} x {height} pixels"))
}

/// The message about RGB pixels of one colour, other than black; `None` for others.
pub(crate) fn plain(rgb: &[u8]) -> Option<String> {
    let has_colour = || rgb.iter().any(|value| *value != 0);
    (has_one_colour(rgb) && has_colour()).then(|| "one colour all over".to_owned())
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// A disc that touches left and right and is cut off at top and bottom.
    fn cut_off() -> RgbImage {
        RgbImage::from_fn(600, 440, |x, y| {
            let r = (f64::from(x) + 0.5 - 300.0).hypot(f64::from(y) + 0.5 - 218.0);
            if r <= 300.0 {
                Rgb([150, 80, 30])
            } else {
                Rgb([2, 1, 1])
            }
        })
    }

    #[test]
    fn black_cells_of_a_cut_off_disc_are_its_padding() {
        let photo = prepare_photo(&cut_off(), 256, 32).unwrap();
        assert_eq!(photo.pixels.len(), 256 * 256 * 3);
        let rows: Vec<String> = photo
            .black
            .chunks(8)
            .map(|row| {
                row.iter()
                    .map(|b| if *b == 1 { '#' } else { '.' })
                    .collect()
            })
            .collect();
        assert_eq!(
            rows,
            [
                "########", "........", "........", "........", "........", "........", "........",
                "########"
            ],
            "{:?}",
            photo.fov
        );
    }

    #[test]
    fn a_photo_of_the_working_size_is_not_touched() {
        let disc = RgbImage::from_fn(256, 256, |x, y| {
            let r = (f64::from(x) - 127.5).hypot(f64::from(y) - 127.5);
            if r <= 125.0 {
                Rgb([x as u8, y as u8 / 2 + 60, 30])
            } else {
                Rgb([0; 3])
            }
        });
        assert_eq!(
            prepare_photo(&disc, 256, 32).unwrap().pixels,
            *disc.as_raw()
        );
    }

    #[test]
    fn what_is_no_picture_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, b"x").unwrap();
        let text = load_photo(&path).unwrap_err().to_string();
        assert!(
            text.contains("a.png: is no picture that is read (PNG,") && text.contains("\n  help: "),
            "{text}"
        );
    }

    #[test]
    fn photographs_that_show_no_eye_carry_a_note() {
        let note = |photo: &RgbImage| prepare_photo(photo, 256, 32).unwrap().note;
        assert_eq!(note(&cut_off()), None);
        let plain = |width, height, value| RgbImage::from_pixel(width, height, Rgb([value; 3]));
        assert_eq!(
            note(&plain(300, 300, 0)).as_deref(),
            Some("every cell is black")
        );
        assert_eq!(
            note(&plain(300, 300, 255)).as_deref(),
            Some("one colour all over")
        );
        assert_eq!(
            note(&plain(1, 1, 255)).as_deref(),
            Some("only 1 x 1 pixels")
        );
        assert_eq!(
            note(&plain(900, 3, 90)).as_deref(),
            Some("only 900 x 3 pixels")
        );
        let page = RgbImage::from_fn(400, 300, |x, y| {
            Rgb([if x / 9 % 2 == y / 7 % 2 { 250 } else { 20 }; 3])
        });
        assert_eq!(note(&page).as_deref(), Some("no field of view found"));
    }

    #[test]
    fn sizes_that_cannot_be_cut_are_refused() {
        let text = prepare_photo(&cut_off(), 1000, 128)
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "--size is 1000, but must be a multiple of --patch 128\n  help: use 896 or 1024"
        );
    }
}
