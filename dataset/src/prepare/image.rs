//! One raw image with its masks, brought to the prepared form.

use fovea_pictures::decode::{self, Mask, Values};
use fovea_pictures::resample::{Plane, Window, resample_mask};

use crate::BadFile;
use crate::cells::Cells;
use crate::framing::{Framing, Upright};
use crate::photo;
use crate::raw::{MaskRule, Raw, RawImage, Reader};
use crate::shard::ShardRow;

/// The smallest value of 8 bits that counts as lesion in a mask with more than two values.
const MIDDLE: u8 = 128;

/// A mask without soft edges has at most this many values besides black; and the shares of dim pixels that are worth a
/// warning, where the mask has so few values and where it has more.
const FEW_LEVELS: usize = 8;
const SOME_DIM: f64 = 0.1;
const MOST_DIM: f64 = 0.75;

/// Buffers of one thread, reused from image to image, and the image that was made last.
#[derive(Default)]
pub(super) struct Desk {
    /// Content of the raw file that was read last.
    file: Vec<u8>,
    /// Decoded picture or mask, source size.
    plane: Vec<u8>,
    /// Prepared pixels, `[size, size, 3]`.
    pixels: Vec<u8>,
    /// Class bits per pixel, `[size, size]`.
    mask: Vec<u8>,
    areas: Vec<u16>,
    black: Vec<u8>,
    /// Masks of the image with something in them that is too dark to count.
    faint_masks: usize,
    /// Why the picture cannot show an eye.
    no_eye: Option<String>,
    /// Buffers up to this length are kept for the next image.
    keep_bytes: usize,
}

/// A picture's size and what is cut out of it.
struct SourceFrame {
    width: u32,
    height: u32,
    /// Whether the file holds it turned by a quarter.
    turned: bool,
    /// `None`: the picture has the working size and stays as it is.
    cut: Option<Window>,
}

impl Desk {
    /// A desk that keeps each of its buffers up to `keep_bytes`.
    pub fn new(keep_bytes: usize) -> Self {
        Self {
            keep_bytes,
            ..Self::default()
        }
    }

    /// The prepared image as a shard stores it.
    pub fn row(&self) -> ShardRow<'_> {
        ShardRow {
            areas: &self.areas,
            black: &self.black,
            image: &self.pixels,
            mask: &self.mask,
        }
    }

    /// How many masks of the prepared image are not black and yet count as empty.
    pub fn faint_masks(&self) -> usize {
        self.faint_masks
    }

    /// Why the prepared picture cannot show an eye; `None` when nothing speaks against it.
    pub fn no_eye(&mut self) -> Option<String> {
        self.no_eye.take()
    }

    /// Lets go of buffers that one large picture needed and most do not.
    pub fn clear(&mut self) {
        for buffer in [
            &mut self.file,
            &mut self.plane,
            &mut self.pixels,
            &mut self.mask,
        ] {
            if buffer.capacity() > self.keep_bytes {
                *buffer = Vec::new();
            }
        }
    }

    /// Reads the raw picture; memory in bytes that [`Desk::prepare`] will take for it at most.
    pub fn load(
        &mut self,
        raw: &Raw,
        reader: &mut Reader,
        image: &RawImage,
        cells: Cells,
    ) -> Result<u64, BadFile> {
        self.faint_masks = 0;
        self.no_eye = None;
        let entry = &raw.store.entries()[image.image];
        let decoding = reader
            .read(entry, &mut self.file)
            .and_then(|()| decode::memory(&self.file));
        let decoding = decoding.map_err(|reason| BadFile {
            path: raw.store.describe(entry),
            reason,
        })?;
        // Decoding, the result, its mask, a mask's coverage.
        Ok(decoding + (cells.size * cells.size * 6) as u64 + entry.bytes)
    }

    /// Prepares the picture that was loaded, and its masks; every file of it that is bad.
    pub fn prepare(
        &mut self,
        raw: &Raw,
        reader: &mut Reader,
        image: &RawImage,
        cells: Cells,
        framing: Framing,
    ) -> Result<(), Vec<BadFile>> {
        let mut bad = Vec::new();
        let frame = self.picture(raw, image, cells.size, framing);
        let classes = image.masks().len();
        self.mask.clear();
        if classes > 0 {
            self.mask.resize(cells.size * cells.size, 0);
        }
        for (class, number) in image.masks().iter().enumerate() {
            let Some(number) = *number else {
                continue;
            };
            let entry = &raw.store.entries()[number];
            let done = reader
                .read(entry, &mut self.file)
                .and_then(|()| decode::mask(&self.file, &mut self.plane))
                .and_then(|mask| {
                    let frame = frame.as_ref().ok();
                    self.lesions(class, mask, frame, raw.layout.mask_rule(), cells.size)
                });
            let path = || raw.store.describe(entry);
            match done {
                Ok(None) => {}
                Ok(Some(doubt)) => {
                    if !matches!(doubt, Doubt::Dim { .. }) {
                        self.faint_masks += 1;
                    }
                    tracing::warn!("{}: {doubt}", path());
                }
                Err(reason) => bad.push(BadFile {
                    path: path(),
                    reason,
                }),
            }
        }
        if let Err(reason) = frame {
            let path = raw.store.describe(&raw.store.entries()[image.image]);
            bad.insert(0, BadFile { path, reason });
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        self.areas = cells.areas(&self.mask, classes);
        self.black = cells.black(&self.pixels);
        Ok(())
    }

    fn picture(
        &mut self,
        raw: &Raw,
        image: &RawImage,
        size: usize,
        framing: Framing,
    ) -> Result<SourceFrame, String> {
        // Most pictures have the working size: they are decoded where they stay.
        let picture = decode::rgb(&self.file, &mut self.pixels)?;
        if let Some(note) = &picture.note {
            let path = raw.store.describe(&raw.store.entries()[image.image]);
            tracing::warn!("{path}: {note}");
        }
        self.no_eye =
            photo::too_small(picture.width, picture.height).or_else(|| photo::plain(&self.pixels));
        let source = Upright {
            data: &self.pixels,
            width: picture.width as usize,
            height: picture.height as usize,
        };
        let framed = framing.apply(source, size, raw.layout.keeps_squares());
        if !framed.fov.found && self.no_eye.is_none() {
            tracing::warn!(
                image = image.id,
                "no field of view found; the whole picture is taken"
            );
        }
        if let Some(pixels) = framed.pixels {
            self.pixels = pixels;
        }
        Ok(SourceFrame {
            width: picture.width,
            height: picture.height,
            turned: picture.turned,
            cut: framed.window,
        })
    }

    /// Adds the decoded mask in `plane` to the class bits; tells when it is too dark to count. Without a frame (its
    /// picture is bad) only decoding counts.
    fn lesions(
        &mut self,
        class: usize,
        mask: Mask,
        frame: Option<&SourceFrame>,
        rule: MaskRule,
        size: usize,
    ) -> Result<Option<Doubt>, String> {
        let Some(frame) = frame else { return Ok(None) };
        if (mask.width, mask.height) != (frame.width, frame.height) {
            return Err(other_size(mask, frame));
        }
        if !counts(mask.values, rule, mask.lossy) {
            return Ok(faint(mask.values));
        }
        // FGADR's edges are soft; that their dark part does not count is its published rule.
        let doubt = match rule {
            MaskRule::Half => None,
            MaskRule::HalfOrTwoValued => dim(mask.values, mask.lossy),
        };
        let Some(window) = frame.cut else {
            for (bits, value) in self.mask.iter_mut().zip(&self.plane) {
                *bits |= u8::from(*value >= MIDDLE) << class;
            }
            return Ok(doubt);
        };
        if !mask.values.two_valued {
            for value in &mut self.plane {
                *value = if *value >= MIDDLE { 255 } else { 0 };
            }
        }
        let source = Plane {
            data: &self.plane,
            width: mask.width as usize,
            height: mask.height as usize,
            channels: 1,
        };
        for (bits, lesion) in self
            .mask
            .iter_mut()
            .zip(resample_mask(source, window, size))
        {
            *bits |= lesion << class;
        }
        Ok(doubt)
    }
}

/// What is wrong with the size of a mask. Of one drawn on the picture as it is stored, not upright, it says so.
fn other_size(mask: Mask, frame: &SourceFrame) -> String {
    let stored = (frame.height, frame.width) == (mask.width, mask.height);
    let why = match frame.turned && stored {
        true => {
            " once it is upright (its orientation tag turns it by a quarter): turn the mask, or remove the tag"
        }
        false => "",
    };
    format!(
        "is {} x {} pixels, its image {} x {}{why}",
        mask.width, mask.height, frame.width, frame.height
    )
}

/// What the author of a mask may not have meant, by its values at full depth; `least` is the smallest that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doubt {
    /// It is not black and yet has no lesion.
    Empty { largest: f64, least: f64 },
    /// It has no lesion, because all that is not black is transparent.
    Transparent,
    /// Some pixels count as lesion, and this share of those that are not black does not.
    Dim { share: f64, least: f64 },
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty { largest, least } => write!(
                f,
                "this mask counts as empty: its largest value is {largest}, lesions begin at {least}; store lesions as white"
            ),
            Self::Transparent => f.write_str(
                "this mask counts as empty: all of it that is not black is transparent; save it without transparency, with lesions in white",
            ),
            Self::Dim { share, least } => write!(
                f,
                "{:.0} % of the pixels of this mask that are not black do not count: lesions begin at {least}; if its values are numbers of lesions or classes, store lesions as white",
                100.0 * share
            ),
        }
    }
}

/// Whether any pixel counts as lesion: one of at least half of white, or the other value of two. In FGADR, whose edges
/// are anti-aliased, a lone dark value is the edge of nothing; only 1 is a value that people store for yes. A lossy format
/// makes several dark values of one, and keeps none reliably.
fn counts(values: Values, rule: MaskRule, lossy: bool) -> bool {
    let bright = values.largest >= half(values.white);
    match rule {
        _ if lossy => bright,
        MaskRule::HalfOrTwoValued => bright || values.two_valued,
        MaskRule::Half => bright || (values.two_valued && values.largest == 1.0),
    }
}

/// The smallest value of at least half of white: 128 of 255, 32768 of 65535, 0.5 of 1.
fn half(white: f64) -> f64 {
    match white {
        1.0 => 0.5,
        _ => (white / 2.0).ceil(),
    }
}

/// The warning about a mask that counts as empty; `None` when it is black.
fn faint(values: Values) -> Option<Doubt> {
    if values.hidden {
        return Some(Doubt::Transparent);
    }
    (values.largest > 0.0).then(|| Doubt::Empty {
        largest: values.largest,
        least: half(values.white),
    })
}

/// The warning about a mask with pixels that do not count: when they are most, or when there are so few values that
/// they are no soft edges.
fn dim(values: Values, lossy: bool) -> Option<Doubt> {
    let few = !lossy && values.levels <= FEW_LEVELS && values.dim > SOME_DIM;
    // A small lesion with a wide soft edge is mostly edge; a lossy format makes no edges that wide.
    let most = lossy && values.dim > MOST_DIM;
    (few || most).then(|| Doubt::Dim {
        share: values.dim,
        least: half(values.white),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(largest: f64, white: f64, two_valued: bool) -> Values {
        Values {
            two_valued,
            largest,
            white,
            dim: 0.0,
            levels: 1,
            hidden: false,
        }
    }

    #[test]
    fn masks_count_from_the_middle_or_from_their_only_value() {
        use MaskRule::{Half, HalfOrTwoValued};
        for rule in [Half, HalfOrTwoValued] {
            assert!(counts(values(254.0, 255.0, false), rule, false));
            assert!(counts(values(128.0, 255.0, false), rule, false));
            assert!(counts(values(32768.0, 65535.0, false), rule, false));
            assert!(counts(values(0.5, 1.0, false), rule, false));
            assert!(!counts(values(127.0, 255.0, false), rule, false));
            // The noise of a JPEG without lesions has many values.
            assert!(!counts(values(3.0, 255.0, false), rule, false));
            assert!(!counts(values(0.0, 255.0, false), rule, false));
            // 255 in 16 bits is all of the 8 bits that are used; 1 is what people store for yes.
            assert!(counts(values(255.0, 255.0, true), rule, false));
            assert!(counts(values(1.0, 255.0, true), rule, false));
        }
        assert!(counts(values(76.0, 255.0, true), HalfOrTwoValued, false));
        assert!(!counts(values(76.0, 255.0, true), Half, false));
        assert!(
            !counts(values(1.0, 255.0, true), HalfOrTwoValued, true),
            "a JPEG"
        );
    }

    #[test]
    fn masks_that_are_too_dark_to_count_are_told_from_empty_ones() {
        let told = |largest, white, two| match faint(values(largest, white, two))? {
            Doubt::Empty { largest, least } => Some((largest, least)),
            Doubt::Dim { .. } | Doubt::Transparent => None,
        };
        assert_eq!(told(100.0, 255.0, false), Some((100.0, 128.0)));
        assert_eq!(told(60.0, 255.0, true), Some((60.0, 128.0)));
        assert_eq!(told(300.0, 1023.0, false), Some((300.0, 512.0)));
        assert_eq!(told(0.4, 1.0, false), Some((0.4, 0.5)));
        assert_eq!(told(3.0, 255.0, false), Some((3.0, 128.0)));
        assert_eq!(told(0.0, 255.0, false), None);
        let hidden = Values {
            hidden: true,
            ..values(0.0, 255.0, false)
        };
        assert_eq!(faint(hidden), Some(Doubt::Transparent));
    }

    #[test]
    fn numbers_of_lesions_are_told_from_soft_edges() {
        let told = |dim_share, levels, lossy| {
            let values = Values {
                dim: dim_share,
                levels,
                ..values(255.0, 255.0, false)
            };
            dim(values, lossy).is_some()
        };
        assert!(told(0.4, 2, false), "0, 100 and 200");
        assert!(!told(0.4, 60, false), "a soft edge");
        assert!(!told(0.95, 60, false), "a small lesion with a wide one");
        assert!(!told(0.4, 2, true));
        assert!(told(0.8, 60, true), "dark red as a JPEG");
    }

    #[test]
    fn a_mask_of_the_picture_as_it_is_stored_is_told() {
        let frame = SourceFrame {
            width: 260,
            height: 360,
            turned: true,
            cut: None,
        };
        let mask = |width, height| Mask {
            width,
            height,
            values: values(255.0, 255.0, true),
            lossy: false,
        };
        let text = other_size(mask(360, 260), &frame);
        assert!(
            text.starts_with("is 360 x 260 pixels, its image 260 x 360 once it is upright"),
            "{text}"
        );
        assert_eq!(
            other_size(mask(10, 20), &frame),
            "is 10 x 20 pixels, its image 260 x 360"
        );
    }
}
