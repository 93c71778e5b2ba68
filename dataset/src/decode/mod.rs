//! Pictures in memory to pixels. PNG goes through the `png` crate directly (checksums verified, no conversion that is
//! not needed); JPEG and TIFF go through `image`. Reasons are plain text: the caller knows the file's name.

#[allow(dead_code, reason = "the raw side begins to use it")]
mod sniff;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{ColorType, DynamicImage, ImageFormat, ImageReader};
use png::{BitDepth, Transformations};

/// No picture may have more pixels: 64 Mpixel, about eight times a camera photograph.
pub(crate) const MAX_PIXELS: u64 = 64 << 20;

/// A reason why a picture cannot be used.
pub(crate) type Reason = String;

#[allow(unused_imports, reason = "the raw side begins to use it")]
pub(crate) use sniff::{Content, HEAD, sniff};

const PNG_MAGIC: [u8; 8] = [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a];

/// Width and height by the header.
pub(crate) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), Reason> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let (width, height) = if bytes.starts_with(&PNG_MAGIC) {
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.read_header_info().map_err(png_reason)?.size()
    } else {
        guarded(|| reader(bytes)?.into_dimensions().map_err(|e| e.to_string()))?
    };
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "has {width} x {height} pixels; the limit is {MAX_PIXELS} in all"
        ));
    }
    Ok((width, height))
}

/// Decodes to RGB, `[height, width, 3]`, into `out` (resized to fit); width and height.
pub(crate) fn rgb(bytes: &[u8], out: &mut Vec<u8>) -> Result<(u32, u32), Reason> {
    let (width, height) = dimensions(bytes)?;
    if !bytes.starts_with(&PNG_MAGIC) {
        *out = guarded(|| {
            Ok(reader(bytes)?
                .decode()
                .map_err(|e| e.to_string())?
                .into_rgb8()
                .into_raw())
        })?;
        return Ok((width, height));
    }
    match decode_png(bytes, out)? {
        3 => {}
        1 => *out = out.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => *out = out.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        _ => keep_rgb(out),
    }
    Ok((width, height))
}

/// Decodes to one value per pixel, the largest of R, G, B times the opacity, `[height, width]`; width and height.
pub(crate) fn grey(bytes: &[u8], out: &mut Vec<u8>) -> Result<(u32, u32), Reason> {
    let (width, height) = dimensions(bytes)?;
    let channels = if bytes.starts_with(&PNG_MAGIC) {
        decode_png(bytes, out)?
    } else {
        let picture = guarded(|| reader(bytes)?.decode().map_err(|e| e.to_string()))?;
        let (raw, channels) = eight_bit(picture);
        *out = raw;
        channels
    };
    match channels {
        1 => {}
        2 => *out = out.chunks_exact(2).map(|p| seen(p[0], p[1])).collect(),
        3 => *out = out.chunks_exact(3).map(brightest).collect(),
        n => {
            *out = out
                .chunks_exact(n)
                .map(|p| seen(brightest(p), p[3]))
                .collect()
        }
    }
    Ok((width, height))
}

fn brightest(pixel: &[u8]) -> u8 {
    pixel[0].max(pixel[1]).max(pixel[2])
}

/// What is to be seen of a value: tools that paint lesions on a transparent layer may leave any colour where nothing
/// was painted.
fn seen(value: u8, alpha: u8) -> u8 {
    ((u16::from(value) * u16::from(alpha) + 127) / 255) as u8
}

/// Decodes a PNG as it is, 8 bits per channel, palette and small depths expanded; the number of channels.
fn decode_png(bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Reason> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.ignore_checksums(false);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(png_reason)?;
    let (colour, depth) = reader.output_color_type();
    debug_assert_eq!(depth, BitDepth::Eight);
    // The header was checked against MAX_PIXELS, so this is at most 4 bytes for each of them.
    let length = reader.output_buffer_size().ok_or("is too large")?;
    out.resize(length, 0);
    reader.next_frame(out).map_err(png_reason)?;
    // Up to the end mark: a file cut after its last pixel is cut all the same.
    reader.finish().map_err(png_reason)?;
    Ok(colour.samples())
}

/// RGBA to RGB in place.
fn keep_rgb(pixels: &mut Vec<u8>) {
    let count = pixels.len() / 4;
    for i in 0..count {
        pixels.copy_within(4 * i..4 * i + 3, 3 * i);
    }
    pixels.truncate(3 * count);
}

/// 8-bit samples and channels of a decoded picture.
fn eight_bit(picture: DynamicImage) -> (Vec<u8>, usize) {
    match picture.color() {
        ColorType::L8 | ColorType::L16 => (picture.into_luma8().into_raw(), 1),
        ColorType::La8 | ColorType::La16 => (picture.into_luma_alpha8().into_raw(), 2),
        ColorType::Rgba8 | ColorType::Rgba16 | ColorType::Rgba32F => {
            (picture.into_rgba8().into_raw(), 4)
        }
        _ => (picture.into_rgb8().into_raw(), 3),
    }
}

/// The decoder behind `image` for JPEG and TIFF. A JPEG decoder paints grey what a cut file lacks, so a JPEG without an
/// end mark is refused here: inside the compressed data 0xff is always followed by 0 or a restart mark, so an end mark
/// after the last start of a scan can only be the real one.
fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, Reason> {
    let last = |mark: u8| bytes.windows(2).rposition(|pair| pair == [0xff, mark]);
    if bytes.starts_with(&[0xff, 0xd8]) && last(0xd9) <= last(0xda) {
        return Err("the JPEG ends too early (truncated)".to_owned());
    }
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| e.to_string())?;
    if !matches!(
        reader.format(),
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Tiff)
    ) {
        return Err("is neither PNG, JPEG nor TIFF".to_owned());
    }
    Ok(reader)
}

/// Damaged files have made decoders panic before; here that is one bad file, not the end of the run.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Reason>) -> Result<T, Reason> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err("its decoder failed on it".to_owned()))
}

fn png_reason(error: png::DecodingError) -> Reason {
    match error {
        png::DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the PNG ends too early (truncated)".to_owned()
        }
        error => format!("damaged PNG: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn colours() -> RgbImage {
        RgbImage::from_fn(40, 30, |x, y| {
            Rgb([x as u8 * 6, y as u8 * 8, (x * y) as u8])
        })
    }

    #[test]
    fn colour_pictures_keep_their_pixels() {
        let mut out = Vec::new();
        let with_alpha: RgbaImage = DynamicImage::from(colours()).into_rgba8();
        let pictures = [
            encode(colours(), ImageFormat::Png),
            encode(with_alpha, ImageFormat::Png),
            encode(DynamicImage::from(colours()).into_rgb16(), ImageFormat::Png),
            encode(colours(), ImageFormat::Tiff),
        ];
        for bytes in pictures {
            assert_eq!(rgb(&bytes, &mut out), Ok((40, 30)));
            assert_eq!(out, colours().into_raw());
            assert_eq!(grey(&bytes, &mut out), Ok((40, 30)));
            assert!(
                out.iter()
                    .zip(colours().pixels())
                    .all(|(v, p)| *v == p.0[0].max(p.0[1]).max(p.0[2]))
            );
        }
        assert_eq!(
            rgb(&encode(colours(), ImageFormat::Jpeg), &mut out),
            Ok((40, 30))
        );
        assert_eq!(out.len(), 3600);
    }

    #[test]
    fn grey_pictures_read_as_grey_and_as_colour() {
        let picture = GrayImage::from_fn(16, 16, |x, y| Luma([(x * 16 + y) as u8]));
        let mut out = Vec::new();
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            let bytes = encode(picture.clone(), format);
            assert_eq!(grey(&bytes, &mut out), Ok((16, 16)));
            assert_eq!(out, picture.as_raw()[..]);
            rgb(&bytes, &mut out).unwrap();
            assert_eq!(out[..6], [0, 0, 0, 16, 16, 16]);
        }
    }

    #[test]
    fn what_is_transparent_is_no_lesion() {
        // A lesion on the left, white everywhere.
        let alpha = |x: u32| if x < 8 { 255 } else { 0 };
        let colour = RgbaImage::from_fn(16, 4, |x, _| Rgba([255, 255, 255, alpha(x)]));
        let grey_layer =
            image::GrayAlphaImage::from_fn(16, 4, |x, _| image::LumaA([255, alpha(x)]));
        let mut out = Vec::new();
        for bytes in [
            encode(colour.clone(), ImageFormat::Png),
            encode(colour, ImageFormat::Tiff),
            encode(grey_layer, ImageFormat::Png),
        ] {
            assert_eq!(grey(&bytes, &mut out), Ok((16, 4)));
            assert_eq!(out[..16], [[255; 8], [0; 8]].concat());
        }
        let half = RgbaImage::from_pixel(2, 2, Rgba([255, 0, 0, 128]));
        grey(&encode(half, ImageFormat::Png), &mut out).unwrap();
        assert_eq!(out, [128; 4]);
    }

    #[test]
    fn a_two_valued_png_expands() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 16, 2);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(BitDepth::One);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0b1000_0001, 0, 0, 0xff]).unwrap();
        writer.finish().unwrap();
        let mut out = Vec::new();
        assert_eq!(grey(&bytes, &mut out), Ok((16, 2)));
        assert_eq!((out[0], out[1], out[7], out[24]), (255, 0, 255, 255));
    }

    #[test]
    fn damage_is_a_reason_and_never_a_panic() {
        let mut out = Vec::new();
        let whole = encode(colours(), ImageFormat::Png);
        for length in 0..whole.len() {
            let reason = rgb(&whole[..length], &mut out).unwrap_err();
            assert!(!reason.is_empty());
        }
        assert_eq!(
            rgb(&whole[..whole.len() - 20], &mut out).unwrap_err(),
            "the PNG ends too early (truncated)"
        );
        for i in (8..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[i] ^= 0x55;
            assert!(
                rgb(&bytes, &mut out).is_err(),
                "byte {i} of {} is covered by a checksum",
                whole.len()
            );
        }
        assert_eq!(rgb(b"", &mut out).unwrap_err(), "the file is empty");
        assert_eq!(
            rgb(b"GIF89a, no", &mut out).unwrap_err(),
            "is neither PNG, JPEG nor TIFF"
        );
        let jpeg = encode(colours(), ImageFormat::Jpeg);
        for length in 4..jpeg.len() {
            assert_eq!(
                rgb(&jpeg[..length], &mut out).unwrap_err(),
                "the JPEG ends too early (truncated)"
            );
        }
        let tiff = encode(colours(), ImageFormat::Tiff);
        assert!(rgb(&tiff[..12], &mut out).is_err());
        assert!(rgb(&tiff[..1000], &mut out).is_err());
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bytes = encode(colours(), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        let reason = rgb(&bytes, &mut Vec::new()).unwrap_err();
        assert_eq!(
            reason,
            "has 60000 x 60000 pixels; the limit is 67108864 in all"
        );
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 {
                    crc >> 1 ^ 0xedb8_8320
                } else {
                    crc >> 1
                }
            })
        })
    }
}
