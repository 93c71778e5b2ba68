//! Encoded pictures and atomically replaced files.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fovea_files::{Durability, Mode};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};

use super::error::io_error;
use super::{Error, Result};

/// Quality of photographs within the page; their lossless form is in the picture files.
const JPEG_QUALITY: u8 = 86;

/// Replaces a file of the report.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fovea_files::replace(path, bytes, Durability::Atomic, Mode::Shared)
        .map_err(|e| io_error(path, "write")(e.source))?;
    Ok(())
}

/// Removes pictures of an earlier report that this one does not have.
pub(super) fn remove_stale(dir: &Path, current: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io_error(dir, "list"))? {
        let path = entry.map_err(io_error(dir, "list"))?.path();
        if path.extension().is_some_and(|e| e == "png") && !current.contains(&path) {
            fs::remove_file(&path).map_err(io_error(&path, "remove"))?;
        }
    }
    Ok(())
}

/// The picture as a PNG file.
pub(super) fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|e| Error::Draw(e.to_string()))?;
    Ok(bytes.into_inner())
}

/// The picture as a `data:` URL for an `img`.
pub(super) fn data_url(picture: &RgbImage) -> Result<String> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    picture
        .write_with_encoder(encoder)
        .map_err(|e| Error::Draw(e.to_string()))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}
