//! TIFF and BigTIFF: this module reads directories, the `tiff` crate decodes pixels.
//!
//! The crate knows colours and depths that are common on screens. Scanners, microscopes and scientific tools write
//! more: palettes, 2, 4, 10, 12 or 14 bits. This module describes such a file to the crate as one that it knows
//! (palette indices as grey, samples of any depth as a row of single bits) by changing the numbers in a copy of the
//! directory, then interprets the samples.

mod colours;
mod directory;

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use tiff::decoder::{Decoder, DecodingResult, Limits};

use self::directory::{Directory, TiffFile, tag};
use super::samples::{ColourModel, Opacity, Picture, Samples};
use super::{Format, MAX_DECODED_BYTES, Reason, several, usual};

/// What the directory of the one picture says; the names of the fields are those of the standard.
#[derive(Debug)]
pub(super) struct TiffFacts {
    pub width: u32,
    pub height: u32,
    bits: u32,
    samples: u32,
    photometric: u32,
    compression: u32,
    predictor: u32,
    planar: bool,
    format: u32,
    extra: Option<u32>,
    /// Bytes of a decoded tile; 0 when the file has strips.
    tile_bytes: u64,
    /// The largest value by the tag MaxSampleValue or SMaxSampleValue.
    stated: Option<f64>,
    pub orientation: Orientation,
}

mod photometric {
    pub const WHITE_IS_ZERO: u32 = 0;
    pub const BLACK_IS_ZERO: u32 = 1;
    pub const RGB: u32 = 2;
    pub const PALETTE: u32 = 3;
    pub const CMYK: u32 = 5;
    pub const YCBCR: u32 = 6;
}

const JPEG: u32 = 7;
const ZSTD: u32 = 50000;
const WEBP: u32 = 50001;

/// What zstd looks back on at most, and holds in memory.
const ZSTD_WINDOW: u64 = 128 << 20;

/// Compression methods that are not read, by their number.
const UNREAD: &[(u32, &str)] = &[
    (2, "CCITT Huffman (modified)"),
    (3, "CCITT group 3 (fax)"),
    (6, "old-style JPEG"),
    (9, "JBIG"),
    (10, "JBIG"),
    (32766, "NeXT"),
    (32771, "CCITT, word-aligned"),
    (32809, "ThunderScan"),
    (33003, "JPEG 2000 (Aperio)"),
    (33005, "JPEG 2000 (Aperio)"),
    (34661, "JBIG"),
    (34676, "SGI LogLuv"),
    (34677, "SGI LogLuv"),
    (34712, "JPEG 2000"),
    (34887, "LERC"),
    (34925, "LZMA"),
    (50002, "JPEG XL"),
    (52546, "JPEG XL"),
];

const OTHER_COUNT: &str =
    "damaged TIFF: it decodes to another number of samples than its directory says";

fn convert(what: &str) -> Reason {
    format!("{what}, which is not read: convert it to PNG, or to a TIFF without compression, first")
}

/// The facts of the one picture in a file, and bytes of a decoded pixel.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32, u64), Reason> {
    let file = TiffFile::read(bytes)?;
    let facts = TiffFacts::read(&file, file.picture()?)?;
    // As decoded, and as samples in the form that is judged.
    let sample = u64::from(facts.bits.div_ceil(8)) + 4;
    let pixels = u64::from(facts.width) * u64::from(facts.height);
    let window = if facts.compression == ZSTD {
        ZSTD_WINDOW
    } else {
        0
    };
    let tile = (facts.tile_bytes + window).div_ceil(pixels.max(1));
    Ok((
        facts.width,
        facts.height,
        u64::from(facts.samples) * sample + tile,
    ))
}

impl TiffFacts {
    fn read(file: &TiffFile<'_>, page: &Directory) -> Result<Self, Reason> {
        let number = |tag: u16, default: Option<u32>| -> Result<u32, Reason> {
            match page.find(tag) {
                Some(field) => file
                    .number(field)
                    .ok_or_else(|| format!("damaged TIFF: tag {tag} holds no number")),
                None => default.ok_or_else(|| format!("damaged TIFF: tag {tag} is missing")),
            }
        };
        let same = |tag: u16, default: u32, what: &str| -> Result<u32, Reason> {
            let Some(field) = page.find(tag) else {
                return Ok(default);
            };
            let values = file
                .numbers(field)
                .ok_or_else(|| format!("damaged TIFF: tag {tag} holds no numbers"))?;
            match values[..] {
                [first, ref rest @ ..] if rest.iter().all(|other| *other == first) => {
                    Ok(first as u32)
                }
                _ => Err(convert(&format!(
                    "is a TIFF whose samples differ in {what} ({values:?})"
                ))),
            }
        };
        let values = |tag: u16| page.find(tag).and_then(|field| file.numbers(field));
        let stated = [tag::S_MAX_SAMPLE_VALUE, tag::MAX_SAMPLE_VALUE]
            .into_iter()
            .find_map(values);
        let orientation = number(tag::ORIENTATION, Some(1))?;
        let tile = u64::from(number(tag::TILE_WIDTH, Some(0))?)
            .saturating_mul(number(tag::TILE_LENGTH, Some(0))?.into());
        file.check_reach(page)?;
        let mut facts = Self {
            tile_bytes: 0,
            width: number(tag::IMAGE_WIDTH, None)?,
            height: number(tag::IMAGE_LENGTH, None)?,
            bits: same(tag::BITS_PER_SAMPLE, 1, "depth")?,
            samples: number(tag::SAMPLES_PER_PIXEL, Some(1))?,
            photometric: number(tag::PHOTOMETRIC, None)?,
            compression: number(tag::COMPRESSION, Some(1))?,
            predictor: number(tag::PREDICTOR, Some(1))?,
            planar: number(tag::PLANAR_CONFIGURATION, Some(1))? == 2,
            format: same(tag::SAMPLE_FORMAT, 1, "type")?,
            extra: values(tag::EXTRA_SAMPLES)
                .and_then(|extra| extra.first().map(|first| *first as u32)),
            stated: stated.and_then(|all| all.into_iter().reduce(f64::max)),
            orientation: u8::try_from(orientation)
                .ok()
                .and_then(Orientation::from_exif)
                .unwrap_or(Orientation::NoTransforms),
        };
        facts.check(file, page)?;
        let pixel_bits = u64::from(facts.samples * facts.bits);
        facts.tile_bytes = tile.saturating_mul(pixel_bits).div_ceil(8);
        if facts.tile_bytes > MAX_DECODED_BYTES {
            return Err(format!(
                "damaged TIFF: tiles of {} bytes in a picture of {}",
                facts.tile_bytes,
                facts.bytes()
            ));
        }
        Ok(facts)
    }

    /// Refuses by name what cannot be decoded.
    fn check(&self, file: &TiffFile<'_>, page: &Directory) -> Result<(), Reason> {
        if self.width == 0 || self.height == 0 {
            return Err(format!(
                "damaged TIFF: {} x {} pixels",
                self.width, self.height
            ));
        }
        if self.samples == 0 || self.samples > 64 || self.bits == 0 || self.bits > 64 {
            return Err(format!(
                "damaged TIFF: {} samples of {} bits",
                self.samples, self.bits
            ));
        }
        if let Some((_, name)) = UNREAD
            .iter()
            .find(|(number, _)| *number == self.compression)
        {
            return Err(convert(&format!("is a TIFF with {name} compression")));
        }
        let enough = match self.photometric {
            photometric::WHITE_IS_ZERO | photometric::BLACK_IS_ZERO | photometric::PALETTE => 1,
            photometric::RGB | photometric::YCBCR => 3,
            photometric::CMYK => 4,
            4 => return Err(convert("is a TIFF that holds only a transparency mask")),
            8..=10 => return Err(convert("is a TIFF in CIE L*a*b*")),
            32803 | 34892 => {
                return Err("is a camera's raw file: develop it to TIFF or PNG first".to_owned());
            }
            other => return Err(convert(&format!("is a TIFF of colour kind {other}"))),
        };
        if self.samples < enough {
            return Err(format!(
                "damaged TIFF: a colour of {enough} parts in {} samples",
                self.samples
            ));
        }
        if self.photometric == photometric::YCBCR && self.planar && self.compression == JPEG {
            return Err(convert("is a TIFF of JPEG planes"));
        }
        let grey = enough == 1;
        let opacity = self.alpha(ColourModel::Grey) != Opacity::None && self.samples == 2;
        if grey && self.samples > 1 && !opacity {
            return Err(several(&format!("{} channels of grey", self.samples)));
        }
        let depth = page
            .find(tag::IMAGE_DEPTH)
            .and_then(|field| file.number(field));
        if let Some(depth) = depth.filter(|depth| *depth > 1) {
            return Err(several(&format!("{depth} slices of a volume")));
        }
        let fill = page
            .find(tag::FILL_ORDER)
            .and_then(|field| file.number(field));
        if fill == Some(2) && self.bits < 8 {
            return Err(convert("is a TIFF with its bits in reverse order"));
        }
        Ok(())
    }

    /// What the first sample behind the colour is.
    fn alpha(&self, colour: ColourModel) -> Opacity {
        match self.extra {
            Some(1) if self.samples as usize > colour.samples() => Opacity::Premultiplied,
            Some(2) if self.samples as usize > colour.samples() => Opacity::Straight,
            _ => Opacity::None,
        }
    }

    /// Whether the crate decodes these samples under their own name.
    fn is_usual(&self) -> bool {
        matches!(self.bits, 8 | 16 | 32 | 64)
    }

    /// Bytes of all decoded samples.
    fn bytes(&self) -> u64 {
        let bits = u64::from(self.width) * u64::from(self.samples) * u64::from(self.bits);
        bits.div_ceil(8) * u64::from(self.height)
    }
}

/// Decodes the one picture of a file; and how it has to be turned.
pub(super) fn decode(bytes: &[u8]) -> Result<(Picture, Orientation), Reason> {
    let file = TiffFile::read(bytes)?;
    let page = file.picture()?;
    let facts = TiffFacts::read(&file, page)?;
    if facts.bytes() > MAX_DECODED_BYTES {
        return Err(format!(
            "takes {} bytes decoded; the limit is {MAX_DECODED_BYTES}",
            facts.bytes()
        ));
    }
    if facts.compression == WEBP {
        check_webp(&file, page, &facts)?;
    }
    let samples = if facts.planar {
        interleaved(bytes, &file, page, &facts)?
    } else {
        let described = describe(bytes, &file, page, &facts, None)?;
        unpacked(&facts, facts.samples, pixels(&described)?)?
    };
    let picture = match facts.photometric {
        photometric::PALETTE => colours::palette(&file, page, &facts, samples)?,
        photometric::YCBCR => colours::ycbcr(&file, page, &facts, samples)?,
        photometric::CMYK => colours::cmyk(&facts, samples)?,
        _ => colours::plain(&facts, samples)?,
    };
    Ok((picture, facts.orientation))
}

/// Refuses parts in WebP that are not whole, or larger than the picture or its tiles.
fn check_webp(file: &TiffFile<'_>, page: &Directory, facts: &TiffFacts) -> Result<(), Reason> {
    for (offsets, lengths) in [
        (tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS),
        (tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS),
    ] {
        let numbers = |tag: u16| page.find(tag).and_then(|field| file.numbers(field));
        let (offsets, lengths) = (numbers(offsets), numbers(lengths));
        for (at, length) in offsets
            .into_iter()
            .flatten()
            .zip(lengths.into_iter().flatten())
        {
            let part = file.part(at as usize, length as usize);
            let size = part.and_then(|part| usual::size(Format::WebP, part).ok());
            let (width, height, _) = size.ok_or("damaged TIFF: a part of it is no whole WebP")?;
            let room = facts.bytes().max(facts.tile_bytes);
            if u64::from(width) * u64::from(height) > room {
                return Err("damaged TIFF: a part of it is larger than the picture".to_owned());
            }
        }
    }
    Ok(())
}

/// The file with its picture first, in words that the crate knows; or with one of its planes as a grey picture.
fn describe<'a>(
    bytes: &'a [u8],
    file: &TiffFile<'_>,
    page: &Directory,
    facts: &TiffFacts,
    plane: Option<u32>,
) -> Result<Cow<'a, [u8]>, Reason> {
    let mut copy = Cow::Borrowed(bytes);
    if !file.is_first(page) {
        file.put_first(copy.to_mut(), page);
    }
    if let Some(plane) = plane {
        for tag in [
            tag::STRIP_OFFSETS,
            tag::STRIP_BYTE_COUNTS,
            tag::TILE_OFFSETS,
            tag::TILE_BYTE_COUNTS,
        ] {
            if let Some(field) = page.find(tag) {
                file.keep_part(copy.to_mut(), field, plane, facts.samples)
                    .ok_or_else(|| {
                        format!(
                            "damaged TIFF: its {} planes do not divide its parts",
                            facts.samples
                        )
                    })?;
            }
        }
    }
    let samples = if plane.is_some() { 1 } else { facts.samples };
    let mut set = |tag: u16, value: u32| {
        if let Some(field) = page.find(tag) {
            file.set(copy.to_mut(), field, value);
        }
    };
    if !facts.is_usual() {
        if facts.predictor != 1 || facts.compression == JPEG || facts.format > 2 {
            let bits = facts.bits;
            return Err(convert(&format!(
                "is a TIFF of {bits} bits per sample in an unusual arrangement"
            )));
        }
        // A row of samples is a row of bits.
        let wide = |width: u32| {
            width
                .checked_mul(facts.bits * samples)
                .ok_or_else(|| "damaged TIFF: its rows are too long".to_owned())
        };
        set(tag::IMAGE_WIDTH, wide(facts.width)?);
        if let Some(width) = page
            .find(tag::TILE_WIDTH)
            .and_then(|field| file.number(field))
        {
            set(tag::TILE_WIDTH, wide(width)?);
        }
        set(tag::BITS_PER_SAMPLE, 1);
        set(tag::SAMPLE_FORMAT, 1);
    }
    if !facts.is_usual() || plane.is_some() || facts.photometric == photometric::PALETTE {
        set(tag::PHOTOMETRIC, photometric::BLACK_IS_ZERO);
    }
    if facts.is_usual() && plane.is_some() {
        set(tag::BITS_PER_SAMPLE, facts.bits);
        set(tag::SAMPLE_FORMAT, facts.format);
    }
    if !facts.is_usual() || plane.is_some() {
        set(tag::SAMPLES_PER_PIXEL, 1);
        set(tag::PLANAR_CONFIGURATION, 1);
        if let Some(field) = page.find(tag::EXTRA_SAMPLES) {
            file.forget(copy.to_mut(), field);
        }
    }
    Ok(copy)
}

/// The samples of a file with a plane for each, brought together by pixel.
fn interleaved(
    bytes: &[u8],
    file: &TiffFile<'_>,
    page: &Directory,
    facts: &TiffFacts,
) -> Result<Samples, Reason> {
    fn weave<T: Copy + Default>(woven: &mut Vec<T>, plane: &[T], at: usize, of: usize) {
        woven.resize(plane.len() * of, T::default());
        for (pixel, value) in woven.chunks_exact_mut(of).zip(plane) {
            pixel[at] = *value;
        }
    }
    let count = facts.samples as usize;
    let mut all: Option<Samples> = None;
    for plane in 0..facts.samples {
        let described = describe(bytes, file, page, facts, Some(plane))?;
        let samples = unpacked(facts, 1, pixels(&described)?)?;
        let at = plane as usize;
        match (all.get_or_insert_with(|| samples.empty()), samples) {
            (Samples::U8(all), Samples::U8(plane)) => weave(all, &plane, at, count),
            (Samples::U16(all), Samples::U16(plane)) => weave(all, &plane, at, count),
            (Samples::Float { data: all, .. }, Samples::Float { data, .. }) => {
                weave(all, &data, at, count)
            }
            _ => return Err("damaged TIFF: its planes differ in type".to_owned()),
        }
    }
    all.ok_or_else(|| "damaged TIFF: it has no planes".to_owned())
}

/// The samples of a file, as the decoder returns them.
fn pixels(bytes: &[u8]) -> Result<DecodingResult, Reason> {
    let reason = |e: tiff::TiffError| match e {
        tiff::TiffError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the TIFF ends too early (truncated)".to_owned()
        }
        tiff::TiffError::UnsupportedError(e) => {
            convert(&format!("is a TIFF of an unusual kind ({e})"))
        }
        e => format!("damaged TIFF: {e}"),
    };
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_DECODED_BYTES as usize;
    limits.intermediate_buffer_size = MAX_DECODED_BYTES as usize;
    limits.ifd_value_size = 4 << 20;
    let mut decoder = Decoder::new(Cursor::new(bytes))
        .map_err(reason)?
        .with_limits(limits);
    let mut decoded = DecodingResult::U8(Vec::new());
    decoder.read_image_to_buffer(&mut decoded).map_err(reason)?;
    Ok(decoded)
}

fn samples(decoded: DecodingResult) -> Samples {
    fn float<T>(data: Vec<T>, value: impl Fn(T) -> f32, whole: bool) -> Samples {
        Samples::Float {
            data: data.into_iter().map(value).collect(),
            whole,
        }
    }
    match decoded {
        DecodingResult::U8(data) => Samples::U8(data),
        DecodingResult::U16(data) => Samples::U16(data),
        DecodingResult::U32(data) => float(data, |v| v as f32, true),
        DecodingResult::U64(data) => float(data, |v| v as f32, true),
        DecodingResult::I8(data) => float(data, f32::from, true),
        DecodingResult::I16(data) => float(data, f32::from, true),
        DecodingResult::I32(data) => float(data, |v| v as f32, true),
        DecodingResult::I64(data) => float(data, |v| v as f32, true),
        DecodingResult::F16(data) => float(data, f32::from, false),
        DecodingResult::F32(data) => Samples::Float { data, whole: false },
        DecodingResult::F64(data) => float(data, |v| v as f32, false),
    }
}

/// Samples by pixel; those of an unusual depth are taken from rows of bits, and spread over a byte when they fit in one
/// and are no palette's indices.
fn unpacked(
    facts: &TiffFacts,
    samples_per_pixel: u32,
    decoded: DecodingResult,
) -> Result<Samples, Reason> {
    if facts.is_usual() {
        return Ok(samples(decoded));
    }
    let DecodingResult::U8(rows) = decoded else {
        return Err(convert("is a TIFF of an unusual kind"));
    };
    let bits = facts.bits as usize;
    let per_row = facts.width as usize * samples_per_pixel as usize;
    let row_bytes = (per_row * bits).div_ceil(8);
    if rows.len() != row_bytes * facts.height as usize {
        return Err(OTHER_COUNT.to_owned());
    }
    let largest = u64::MAX >> (64 - bits);
    let mut values = Vec::with_capacity(per_row * facts.height as usize);
    for row in rows.chunks_exact(row_bytes) {
        let (mut held, mut count) = (0u128, 0);
        let mut bytes = row.iter();
        for _ in 0..per_row {
            while count < bits {
                held = held << 8 | u128::from(*bytes.next().unwrap_or(&0));
                count += 8;
            }
            count -= bits;
            values.push((held >> count) as u64 & largest);
            held &= (1 << count) - 1;
        }
    }
    if facts.photometric == photometric::WHITE_IS_ZERO {
        for value in &mut values {
            *value = largest - *value;
        }
    }
    let is_index = facts.photometric == photometric::PALETTE;
    Ok(match bits {
        ..8 if is_index => Samples::U8(values.iter().map(|v| *v as u8).collect()),
        ..8 => Samples::U8(values.iter().map(|v| (v * 255 / largest) as u8).collect()),
        8..16 => Samples::U16(values.iter().map(|v| *v as u16).collect()),
        _ => Samples::Float {
            data: values.iter().map(|v| *v as f32).collect(),
            whole: true,
        },
    })
}
