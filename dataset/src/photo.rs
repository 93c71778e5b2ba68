//! Photographs as they come from a camera: found, cut to the field of view, brought to the working size.

use std::fs;
use std::path::Path;

use image::RgbImage;

use crate::cells::Cells;
use crate::fov::{self, Fov};
use crate::resample::{Plane, Square, resample};
use crate::{Error, Result, decode};

/// A photograph in the form that models see: as an image of a prepared dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Photo {
    /// RGB, `[size, size, 3]`.
    pub pixels: Vec<u8>,
    /// 1 for black cells, `[grid, grid]` with grid = size / patch.
    pub black: Vec<u8>,
    /// Where in the source the pixels come from.
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
    crate::prepare::check_grid(size, patch)?;
    let (width, height) = (photo.width() as usize, photo.height() as usize);
    let size = size as usize;
    let fov = fov::detect(photo.as_raw(), width, height);
    let whole = Square::around(photo.width(), photo.height());
    let pixels = if fov.square == whole && width == size && height == size {
        photo.as_raw().clone()
    } else {
        resample(
            Plane {
                data: photo.as_raw(),
                width,
                height,
                channels: 3,
            },
            fov.square,
            size,
        )
    };
    let black = Cells {
        size,
        patch: patch as usize,
    }
    .black(&pixels);
    let note = (!fov.found).then(|| "no field of view found".to_owned());
    Ok(Photo {
        pixels,
        black,
        fov,
        note,
    })
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
