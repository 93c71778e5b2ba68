//! BMP, GIF, WebP and PNM, by the `image` crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::pnm::{PnmDecoder, PnmHeader, SampleEncoding};
use image::codecs::webp::WebPDecoder;
use image::error::DecodingError;
use image::metadata::Orientation;
use image::{
    AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageResult, Limits,
};

use super::samples::{ColourModel, Opacity, Picture, Samples};
use super::{Format, Reason, several};

/// What a decoder may take for tables and buffers.
const ROOM: u64 = 1 << 20;

/// Width, height and bytes of a decoded pixel, by the header.
pub(super) fn size(format: Format, bytes: &[u8]) -> Result<(u32, u32, u64), Reason> {
    let of = |decoder: ImageResult<Box<dyn ImageDecoder + '_>>| {
        let decoder = decoder.map_err(reason(format))?;
        let (width, height) = decoder.dimensions();
        Ok((
            width,
            height,
            u64::from(decoder.color_type().bytes_per_pixel()),
        ))
    };
    let cursor = Cursor::new(bytes);
    match format {
        Format::Bmp => of(BmpDecoder::new(cursor).map(|d| Box::new(d) as _)),
        Format::Gif => of(GifDecoder::new(cursor).map(|d| Box::new(d) as _)),
        Format::WebP => of(whole_webp(bytes)
            .and_then(|()| WebPDecoder::new(cursor))
            .map(|d| Box::new(d) as _)),
        _ => of(PnmDecoder::new(cursor).map(|d| Box::new(d) as _)),
    }
}

/// Decodes the one picture of a file; and how it has to be turned.
pub(super) fn decode(format: Format, bytes: &[u8]) -> Result<(Picture, Orientation), Reason> {
    let cursor = Cursor::new(bytes);
    // A part of the picture may claim to be larger than the picture.
    let (width, height, pixel) = size(format, bytes)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(u64::from(width) * u64::from(height) * (pixel + 8) + ROOM);
    let decoded = match format {
        Format::Bmp => BmpDecoder::new(cursor).and_then(|d| whole(d, limits)),
        Format::Gif => gif(bytes, limits)?,
        Format::WebP => whole_webp(bytes)
            .and_then(|()| WebPDecoder::new(cursor))
            .and_then(|decoder| {
                if decoder.has_animation() {
                    return Ok(None);
                }
                whole(decoder, limits)
            }),
        _ => {
            let end = pnm_end(bytes).map_err(reason(format))?;
            // Several pictures may follow each other in one file. What else lies behind the first is not looked at.
            if end.and_then(|end| bytes.get(end..)).is_some_and(|rest| {
                matches!(rest.trim_ascii_start(), [b'P', b'1'..=b'7', space, ..] if space.is_ascii_whitespace())
            }) {
                return Err(several("several pictures"));
            }
            PnmDecoder::new(cursor).and_then(|d| whole(d, limits))
        }
    };
    match decoded.map_err(reason(format))? {
        Some((picture, orientation)) => {
            let mut picture = samples(picture)?;
            if format == Format::Pnm {
                picture.stated = pnm_white(bytes);
            }
            Ok((picture, orientation))
        }
        None => Err(several("several pictures (an animation)")),
    }
}

fn whole(
    mut decoder: impl ImageDecoder,
    limits: Limits,
) -> ImageResult<Option<(DynamicImage, Orientation)>> {
    decoder.set_limits(limits)?;
    // Exif that cannot be read turns nothing.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder)?;
    Ok(Some((picture, orientation)))
}

/// Walks the parts of a WebP: the decoder makes room for a part's length before it has read any of it.
fn whole_webp(bytes: &[u8]) -> ImageResult<()> {
    let cut = || ImageError::IoError(std::io::ErrorKind::UnexpectedEof.into());
    let mut at = 12usize;
    loop {
        let head = match bytes.get(at..) {
            None | Some([]) => return Ok(()),
            Some(rest) => rest.get(..8).ok_or_else(cut)?,
        };
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let content = bytes
            .get(at + 8..)
            .and_then(|rest| rest.get(..length))
            .ok_or_else(cut)?;
        if &head[..4] == b"VP8 " && bytes.get(12..16) == Some(b"VP8X") {
            check_frame(bytes, content)?;
        }
        // Parts begin at even places.
        at += 8 + length + length % 2;
    }
}

/// Refuses compressed pixels of another size than the canvas.
fn check_frame(bytes: &[u8], content: &[u8]) -> ImageResult<()> {
    let size = |at: usize| {
        Some(u32::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?, *bytes.get(at + 2)?, 0]) + 1)
    };
    let side = |at: usize| {
        Some(u32::from(
            u16::from_le_bytes([*content.get(at)?, *content.get(at + 1)?]) & 0x3fff,
        ))
    };
    if (size(24), size(27)) == (side(6), side(8)) {
        return Ok(());
    }
    let what = "its pixels have another size than the picture";
    Err(ImageError::Decoding(DecodingError::new(
        ImageFormat::WebP.into(),
        what,
    )))
}

/// The only picture of a GIF on its canvas; `None` when there are several.
fn gif(
    bytes: &[u8],
    limits: Limits,
) -> Result<ImageResult<Option<(DynamicImage, Orientation)>>, Reason> {
    let decoder = GifDecoder::new(Cursor::new(bytes)).and_then(|mut decoder| {
        decoder.set_limits(limits)?;
        Ok(decoder)
    });
    let mut frames = decoder.map_err(reason(Format::Gif))?.into_frames();
    let Some(first) = frames.next() else {
        return Err("damaged GIF: it has no picture in it".to_owned());
    };
    let first = first.map_err(reason(Format::Gif))?;
    match frames.next() {
        None => Ok(Ok(Some((
            DynamicImage::ImageRgba8(first.into_buffer()),
            Orientation::NoTransforms,
        )))),
        Some(second) => Ok(second.map(|_| None)),
    }
}

/// Where the first picture of a binary PNM ends; `None` for one in plain text.
fn pnm_end(bytes: &[u8]) -> ImageResult<Option<usize>> {
    let decoder = PnmDecoder::new(Cursor::new(bytes))?;
    let total = decoder.total_bytes();
    let (rest, header) = decoder.into_inner();
    if header.subtype().sample_encoding() == SampleEncoding::Ascii {
        return Ok(None);
    }
    let pixels = match is_bitmap(&header) {
        true => u64::from(header.width().div_ceil(8)) * u64::from(header.height()),
        false => total,
    };
    Ok(usize::try_from(rest.position().saturating_add(pixels)).ok())
}

/// A PNM states its largest value, and the decoder brings that to the whole range. 65535 is what tools state that know
/// no other depth, so it states nothing.
fn pnm_white(bytes: &[u8]) -> Option<f64> {
    let decoder = PnmDecoder::new(Cursor::new(bytes)).ok()?;
    (decoder.header().maximal_sample() != 65535).then_some(65535.0)
}

fn is_bitmap(header: &PnmHeader) -> bool {
    header.as_bitmap().is_some()
}

fn samples(picture: DynamicImage) -> Result<Picture, Reason> {
    let (width, height) = (picture.width(), picture.height());
    let (colour, alpha, samples) = match picture {
        DynamicImage::ImageLuma8(p) => {
            (ColourModel::Grey, Opacity::None, Samples::U8(p.into_raw()))
        }
        DynamicImage::ImageLumaA8(p) => (
            ColourModel::Grey,
            Opacity::Straight,
            Samples::U8(p.into_raw()),
        ),
        DynamicImage::ImageRgb8(p) => (ColourModel::Rgb, Opacity::None, Samples::U8(p.into_raw())),
        DynamicImage::ImageRgba8(p) => (
            ColourModel::Rgb,
            Opacity::Straight,
            Samples::U8(p.into_raw()),
        ),
        DynamicImage::ImageLuma16(p) => {
            (ColourModel::Grey, Opacity::None, Samples::U16(p.into_raw()))
        }
        DynamicImage::ImageLumaA16(p) => (
            ColourModel::Grey,
            Opacity::Straight,
            Samples::U16(p.into_raw()),
        ),
        DynamicImage::ImageRgb16(p) => {
            (ColourModel::Rgb, Opacity::None, Samples::U16(p.into_raw()))
        }
        DynamicImage::ImageRgba16(p) => (
            ColourModel::Rgb,
            Opacity::Straight,
            Samples::U16(p.into_raw()),
        ),
        other => {
            return Err(format!(
                "has pixels of an unusual kind ({:?}): convert it to PNG first",
                other.color()
            ));
        }
    };
    Ok(Picture {
        width,
        height,
        colour,
        alpha,
        samples,
        stated: None,
    })
}

fn reason(format: Format) -> impl Fn(ImageError) -> Reason {
    move |error| {
        let name = match format {
            Format::Bmp => "BMP",
            Format::Gif => "GIF",
            Format::WebP => "WebP",
            _ => "PNM",
        };
        match &error {
            ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                format!("the {name} ends too early (truncated)")
            }
            ImageError::Unsupported(_) => {
                format!("is a {name} of an unusual kind ({error}): convert it to PNG first")
            }
            _ => format!("damaged {name}: {error}"),
        }
    }
}
