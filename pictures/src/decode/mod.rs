//! Pictures in memory to pixels, as their author meant them.
//!
//! A file's first bytes say what it is ([`sniff`]). A format's module decodes it to samples at full depth; [`samples`]
//! makes RGB of them, [`masks`] a mask; at the end the picture is turned upright. Files with several pictures, or not
//! whole, are refused. Reasons are plain text that says what to do where copying the file again does not help: the
//! caller knows the file's name.

mod exif;
mod jpeg;
mod masks;
mod png;
mod samples;
mod sniff;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;
mod tiff;
mod usual;

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};

pub use masks::Values;
use samples::Picture;
pub use sniff::{Content, Format, HEAD, sniff};

/// No picture may have more pixels: 64 Mpixel, about eight times a camera photograph.
pub const MAX_PIXELS: u64 = 64 << 20;

/// No picture may have more bytes of samples.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// A reason why a picture cannot be used.
pub type Reason = String;

/// A photograph as RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels, upright.
    pub width: u32,
    /// Height in pixels, upright.
    pub height: u32,
    /// Whether it is stored turned by a quarter, so that width and height are those of the file exchanged.
    pub turned: bool,
    /// How its values were scaled, where the file leaves that open.
    pub note: Option<String>,
}

/// A mask, one value per pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// Width in pixels, upright.
    pub width: u32,
    /// Height in pixels, upright.
    pub height: u32,
    /// What the values are.
    pub values: Values,
    /// Whether its format changes values a little (JPEG, WebP).
    pub lossy: bool,
}

/// Bytes of memory that decoding takes at most, by the header alone.
pub fn memory(bytes: &[u8]) -> Result<u64, Reason> {
    let (width, height, pixel) = size(bytes)?;
    // The samples, and what is made of them: another buffer of at most three bytes per pixel, and one turned upright.
    Ok(u64::from(width) * u64::from(height) * (pixel + 6))
}

/// Width and height in pixels, by the header alone; upright for a JPEG, as stored for other formats.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), Reason> {
    let (width, height, _) = size(bytes)?;
    let is_turned = matches!(format(bytes)?, Format::Jpeg)
        && jpeg::facts(bytes).is_ok_and(|facts| is_quarter(facts.orientation));
    Ok(match is_turned {
        true => (height, width),
        false => (width, height),
    })
}

/// Decodes to RGB, `[height, width, 3]`, upright, into `out` (resized to fit).
pub fn rgb(bytes: &[u8], out: &mut Vec<u8>) -> Result<Rgb, Reason> {
    let (picture, orientation) = decode(bytes, out)?;
    let (width, height) = (picture.width, picture.height);
    let (pixels, note) = picture.into_rgb()?;
    *out = pixels;
    let (upright_width, upright_height) = upright::<RgbImage>(out, (width, height), orientation)?;
    Ok(Rgb {
        width: upright_width,
        height: upright_height,
        turned: is_quarter(orientation),
        note,
    })
}

/// Decodes to one value per pixel, the largest of R, G, B times the opacity, `[height, width]`, upright, into `out` (resized
/// to fit).
pub fn mask(bytes: &[u8], out: &mut Vec<u8>) -> Result<Mask, Reason> {
    let (picture, orientation) = decode(bytes, out)?;
    let size = (picture.width, picture.height);
    let (mut plane, mut values) = picture.into_mask()?;
    // Some programs write numbers as palette indices, and a palette that lacks them: everything is black then.
    if values.largest == 0.0
        && let Ok(Format::Png) = format(bytes)
        && let Some(indices) = png::indices(bytes)
        && indices.len() == plane.len()
        && indices.iter().any(|index| *index != indices[0])
    {
        (plane, values) = masks::of_bytes(indices);
    }
    *out = plane;
    let (width, height) = upright::<GrayImage>(out, size, orientation)?;
    Ok(Mask {
        width,
        height,
        values,
        lossy: matches!(format(bytes)?, Format::Jpeg | Format::WebP),
    })
}

/// Width, height (as stored) and bytes of a decoded pixel.
fn size(bytes: &[u8]) -> Result<(u32, u32, u64), Reason> {
    let format = format(bytes)?;
    let (width, height, pixel) = match format {
        Format::Jpeg => jpeg::facts(bytes).map(|facts| (facts.width, facts.height, 3)),
        Format::Png => png::size(bytes),
        Format::Tiff => tiff::size(bytes),
        other => guarded(|| usual::size(other, bytes)),
    }?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "has {width} x {height} pixels; the limit is {MAX_PIXELS} in all"
        ));
    }
    Ok((width, height, pixel))
}

/// Samples, and how they have to be turned. The memory of `out` may be used for them.
fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(Picture, Orientation), Reason> {
    // The limit of pixels is checked before anything is made room for.
    size(bytes)?;
    let buffer = std::mem::take(out);
    guarded(|| match format(bytes)? {
        Format::Jpeg => {
            let facts = jpeg::facts(bytes)?;
            Ok((jpeg::decode(bytes, facts, buffer)?, facts.orientation))
        }
        Format::Png => png::decode(bytes, buffer),
        Format::Tiff => tiff::decode(bytes),
        other => usual::decode(other, bytes),
    })
}

fn format(bytes: &[u8]) -> Result<Format, Reason> {
    match sniff(bytes) {
        _ if bytes.is_empty() => Err("the file is empty".to_owned()),
        Content::Picture(format) => Ok(format),
        Content::Other { what, help } => Err(format!("is {what}: {help}")),
        Content::Unknown if bytes.iter().take(HEAD).all(|byte| *byte == 0) => {
            Err("begins with nothing but zeros: it was not copied whole".to_owned())
        }
        Content::Unknown => {
            Err("is no picture that is read (PNG, JPEG, TIFF, BMP, GIF, WebP, PNM)".to_owned())
        }
    }
}

/// A file that holds `what` where one picture is wanted.
fn several(what: &str) -> Reason {
    format!(
        "holds {what}, and which one is meant is not known: save the right one as a file of its own"
    )
}

/// A picture in an `image` buffer, to be turned.
trait Turnable {
    fn turned(
        data: Vec<u8>,
        size: (u32, u32),
        orientation: Orientation,
    ) -> Option<(Vec<u8>, (u32, u32))>;
}

macro_rules! turned {
    ($buffer:ident, $kind:ident, $back:ident) => {
        impl Turnable for $buffer {
            fn turned(
                data: Vec<u8>,
                (width, height): (u32, u32),
                orientation: Orientation,
            ) -> Option<(Vec<u8>, (u32, u32))> {
                let mut picture = DynamicImage::$kind(Self::from_raw(width, height, data)?);
                picture.apply_orientation(orientation);
                let picture = picture.$back();
                let size = picture.dimensions();
                Some((picture.into_raw(), size))
            }
        }
    };
}

turned!(RgbImage, ImageRgb8, into_rgb8);
turned!(GrayImage, ImageLuma8, into_luma8);

/// Turns pixels upright in place; width and height afterwards.
fn upright<T: Turnable>(
    pixels: &mut Vec<u8>,
    size: (u32, u32),
    orientation: Orientation,
) -> Result<(u32, u32), Reason> {
    if orientation == Orientation::NoTransforms {
        return Ok(size);
    }
    let (turned, size) = T::turned(std::mem::take(pixels), size, orientation)
        .ok_or("decodes to fewer pixels than its header says")?;
    *pixels = turned;
    Ok(size)
}

fn is_quarter(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// Damaged files have made decoders panic before; here that is one bad file, not the end of the run.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Reason>) -> Result<T, Reason> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err("its decoder failed on it".to_owned()))
}
