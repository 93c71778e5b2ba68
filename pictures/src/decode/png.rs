//! PNG, by the `png` crate itself: checksums verified, nothing converted that need not be.

use std::io::Cursor;

use image::metadata::Orientation;
use png::{BitDepth, ColorType, Transformations};

use super::Reason;
use super::samples::{ColourModel, Opacity, Picture, Samples};

/// Width, height and bytes of a decoded pixel, by the header.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32, u64), Reason> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    let info = decoder.read_header_info().map_err(reason)?;
    let deep = if info.bit_depth == BitDepth::Sixteen {
        2
    } else {
        1
    };
    // A transparent colour, which comes later in the file, may add a sample.
    Ok((info.width, info.height, 4 * deep))
}

/// The palette indices of a picture that has some, a byte each: what a mask means whose palette is black all over.
pub(super) fn indices(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().ok()?;
    let (colour, depth) = reader.output_color_type();
    if colour != ColorType::Indexed {
        return None;
    }
    let mut packed = vec![0; reader.output_buffer_size()?];
    let frame = reader.next_frame(&mut packed).ok()?;
    let bits = depth as usize;
    let row = |row: &[u8]| -> Vec<u8> {
        let index = |x: usize| {
            let (byte, shift) = (row[x * bits / 8], 8 - bits - x * bits % 8);
            byte >> shift & (0xff >> (8 - bits))
        };
        (0..frame.width as usize).map(index).collect()
    };
    Some(packed.chunks_exact(frame.line_size).flat_map(row).collect())
}

/// Decodes with palette, small depths and transparent colours expanded; and how the picture has to be turned. The memory of
/// `out` is used again.
pub(super) fn decode(bytes: &[u8], mut out: Vec<u8>) -> Result<(Picture, Orientation), Reason> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND);
    decoder.ignore_checksums(false);
    // ImageMagick keeps Exif in a text.
    decoder.set_ignore_text_chunk(false);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(reason)?;
    let frames = reader.info().animation_control.map_or(1, |a| a.num_frames);
    if frames > 1 {
        return Err(super::several(&format!("{frames} pictures (an animation)")));
    }
    let (colour, depth) = reader.output_color_type();
    // The header was checked against the limit of pixels, so this is at most 8 bytes for each of them.
    let length = reader.output_buffer_size().ok_or("is too large")?;
    out.resize(length, 0);
    reader.next_frame(&mut out).map_err(reason)?;
    // Up to the end mark: a file cut after its last pixel is cut all the same, and Exif may come last.
    reader.finish().map_err(reason)?;
    let info = reader.info();
    let (colour, alpha) = match colour {
        ColorType::Grayscale => (ColourModel::Grey, Opacity::None),
        ColorType::GrayscaleAlpha => (ColourModel::Grey, Opacity::Straight),
        ColorType::Rgba => (ColourModel::Rgb, Opacity::Straight),
        ColorType::Rgb | ColorType::Indexed => (ColourModel::Rgb, Opacity::None),
    };
    let (width, height) = info.size();
    let stated = stated(info.sbit.as_deref(), colour);
    let orientation = info
        .exif_metadata
        .as_deref()
        .and_then(super::exif::orientation)
        .or_else(|| raw_profile(info));
    let samples = match depth {
        BitDepth::Sixteen => Samples::U16(
            out.chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect(),
        ),
        _ => Samples::U8(out),
    };
    let picture = Picture {
        width,
        height,
        colour,
        alpha,
        samples,
        stated,
    };
    Ok((picture, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// The orientation in a text `Raw profile type exif`: a name, a length, and the bytes in hexadecimal digits.
fn raw_profile(info: &png::Info<'_>) -> Option<Orientation> {
    const NAMES: [&str; 2] = ["Raw profile type exif", "Raw profile type APP1"];
    let plain = info.uncompressed_latin1_text.iter();
    let plain = plain
        .filter(|text| NAMES.contains(&text.keyword.as_str()))
        .map(|text| text.text.clone());
    let packed = info.compressed_latin1_text.iter();
    let packed = packed
        .filter(|text| NAMES.contains(&text.keyword.as_str()))
        .filter_map(|text| text.get_text().ok());
    let text = plain.chain(packed).next()?;
    let digits: Vec<u32> = text
        .split_whitespace()
        .skip(2)
        .flat_map(str::chars)
        .map_while(|c| c.to_digit(16))
        .collect();
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect();
    super::exif::orientation(bytes.strip_prefix(b"Exif\0\0").unwrap_or(&bytes))
}

/// White by the significant bits of the colour samples. The standard wants samples scaled to the full depth all the
/// same; whoever does so has values above this, and is scaled by them.
fn stated(sbit: Option<&[u8]>, colour: ColourModel) -> Option<f64> {
    let colours = match colour {
        ColourModel::Grey => 1,
        ColourModel::Rgb => 3,
    };
    let bits = *sbit?.iter().take(colours).max()?;
    (1..=16)
        .contains(&bits)
        .then(|| f64::from((1u32 << bits) - 1))
}

fn reason(error: png::DecodingError) -> Reason {
    match error {
        png::DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the PNG ends too early (truncated)".to_owned()
        }
        error => format!("damaged PNG: {error}"),
    }
}
