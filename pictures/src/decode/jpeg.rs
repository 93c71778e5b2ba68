//! JPEG: this module parses its markers, `zune-jpeg` decodes its pixels.
//!
//! A decoder paints grey what a cut file lacks, so this module first walks the markers: the picture is whole if it
//! reaches the end mark. It ignores what follows that mark (padding, a phone's video, a second picture).

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Reason;
use super::samples::{ColourModel, Opacity, Picture, Samples};

/// What the markers of a whole JPEG say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JpegFacts {
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
}

const CUT: &str = "the JPEG ends too early (truncated)";

/// Walks from mark to mark up to the end of the picture.
pub(super) fn facts(bytes: &[u8]) -> Result<JpegFacts, Reason> {
    let mut frame = None;
    let mut orientation = None;
    let mut at = 2;
    loop {
        // A mark is 0xff, any number of fill bytes 0xff, and a code.
        at += memchr::memchr(0xff, bytes.get(at..).ok_or(CUT)?).ok_or(CUT)?;
        while bytes.get(at) == Some(&0xff) {
            at += 1;
        }
        let code = *bytes.get(at).ok_or(CUT)?;
        at += 1;
        match code {
            0xd9 => break,
            0xf7 => return Err(unread("a JPEG-LS picture")),
            // Marks without content, and a 0xff in compressed data.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let segment = segment(bytes, at)?;
                at += 2 + segment.len();
                match code {
                    0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) && frame.is_none() => {
                        frame = Some(size(code, segment)?);
                    }
                    0xe1 if orientation.is_none() => {
                        orientation = segment
                            .strip_prefix(b"Exif\0\0")
                            .and_then(super::exif::orientation);
                    }
                    _ => {}
                }
            }
        }
    }
    let (width, height) = frame.ok_or("damaged JPEG: it has no picture in it")?;
    Ok(JpegFacts {
        width,
        height,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

/// The content of a mark, behind the two bytes of its length.
fn segment(bytes: &[u8], at: usize) -> Result<&[u8], Reason> {
    let length = bytes.get(at..at + 2).ok_or(CUT)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(format!(
            "damaged JPEG: a mark of length {length} at byte {at}"
        ));
    }
    Ok(bytes.get(at + 2..at + length).ok_or(CUT)?)
}

fn unread(kind: &str) -> Reason {
    format!("is {kind}, which is not read: convert it to PNG or TIFF first")
}

/// Width and height of a frame header; kinds of JPEG that the decoder does not know are named.
fn size(code: u8, segment: &[u8]) -> Result<(u32, u32), Reason> {
    let [depth, h1, h0, w1, w0, ..] = *segment else {
        return Err("damaged JPEG: its frame header is too short".to_owned());
    };
    let kind = match code {
        0xc3 | 0xc7 | 0xcb | 0xcf => Some("a lossless JPEG".to_owned()),
        0xc5 | 0xc6 => Some("a hierarchical JPEG".to_owned()),
        0xc9..=0xce => Some("a JPEG with arithmetic coding".to_owned()),
        _ if depth != 8 => Some(format!("a JPEG of {depth} bits per sample")),
        _ => None,
    };
    if let Some(kind) = kind {
        return Err(unread(&kind));
    }
    let [width, height] = [[w1, w0], [h1, h0]].map(|pair| u32::from(u16::from_be_bytes(pair)));
    if width == 0 || height == 0 {
        return Err(format!("damaged JPEG: {width} x {height} pixels"));
    }
    Ok((width, height))
}

/// Decodes into `out`, of which the memory is used again.
pub(super) fn decode(bytes: &[u8], facts: JpegFacts, mut out: Vec<u8>) -> Result<Picture, Reason> {
    let reason = |e: zune_jpeg::errors::DecodeErrors| format!("damaged JPEG: {e}");
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(reason)?;
    let (target, colour) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma | ColorSpace::LumaA) => (ColorSpace::Luma, ColourModel::Grey),
        _ => (ColorSpace::RGB, ColourModel::Rgb),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(target));
    let size = decoder.dimensions().map(|(w, h)| (w as u32, h as u32));
    if size != Some((facts.width, facts.height)) {
        return Err("damaged JPEG: it holds two sizes".to_owned());
    }
    let length = decoder.output_buffer_size().ok_or("is too large")?;
    out.resize(length, 0);
    decoder.decode_into(&mut out).map_err(reason)?;
    Ok(Picture {
        width: facts.width,
        height: facts.height,
        colour,
        alpha: Opacity::None,
        samples: Samples::U8(out),
        stated: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marks of a JPEG of 3 x 2 pixels; its compressed data are not those of a picture.
    fn marks() -> Vec<u8> {
        let mut bytes = b"\xff\xd8".to_vec();
        bytes.extend(b"\xff\xc0\0\x0b\x08\0\x02\0\x03\x01\x01\x11\0");
        bytes.extend(b"\xff\xda\0\x08\x01\x01\0\0\x3f\0");
        bytes.extend(b"\x12\xff\0\x34\xff\xd0\x56\xff\xd9");
        bytes
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let mut segment =
            b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        segment.extend([orientation, 0, 0, 0, 0, 0, 0]);
        segment
    }

    #[test]
    fn the_end_mark_is_found_by_walking() {
        let facts = facts(&marks()).unwrap();
        assert_eq!((facts.width, facts.height), (3, 2));
        let whole = marks().len();
        for cut in 0..whole {
            assert!(super::facts(&marks()[..cut]).is_err(), "{cut}");
        }
        // Zeros, or a second picture's start of a scan, behind the end.
        for trailer in [&[0; 64][..], b"\xff\xda\0\x08", b"mdat\xff\xda\xff"] {
            assert_eq!(super::facts(&[&marks()[..], trailer].concat()), Ok(facts));
        }
        // An end mark inside a comment is none.
        let comment = b"\xff\xd8\xff\xfe\0\x06\xff\xd9\xff\xd9";
        assert_eq!(
            super::facts(&[&comment[..], &marks()[2..whole - 2]].concat()),
            Err(CUT.to_owned())
        );
    }

    #[test]
    fn the_orientation_is_that_of_the_exif_mark() {
        for (value, expected) in [
            (1, Orientation::NoTransforms),
            (3, Orientation::Rotate180),
            (6, Orientation::Rotate90),
        ] {
            let bytes = [b"\xff\xd8", &exif(value)[..], &marks()[2..]].concat();
            assert_eq!(facts(&bytes).unwrap().orientation, expected);
        }
        assert_eq!(
            facts(&marks()).unwrap().orientation,
            Orientation::NoTransforms
        );
    }

    #[test]
    fn the_orientation_may_have_any_whole_type() {
        let mut long = exif(6);
        // LONG: the value takes all four bytes.
        let at = long.len() - 8;
        long[at - 5] = 4;
        long[at..at + 4].copy_from_slice(&[0, 0, 0, 6]);
        let mut byte = exif(6);
        byte[at - 5] = 1;
        byte[at..at + 4].copy_from_slice(&[6, 0, 0, 0]);
        for segment in [exif(6), long, byte] {
            let bytes = [b"\xff\xd8", &segment[..], &marks()[2..]].concat();
            assert_eq!(
                facts(&bytes).unwrap().orientation,
                Orientation::Rotate90,
                "{segment:?}"
            );
        }
    }

    #[test]
    fn kinds_that_are_not_read_are_named() {
        for (code, depth, word) in [
            (0xc3, 8, "lossless"),
            (0xc9, 8, "arithmetic"),
            (0xf7, 8, "JPEG-LS"),
            (0xc1, 12, "12 bits"),
        ] {
            let mut bytes = marks();
            (bytes[3], bytes[6]) = (code, depth);
            let reason = facts(&bytes).unwrap_err();
            assert!(
                reason.contains(word) && reason.contains("convert it"),
                "{reason}"
            );
        }
    }
}
