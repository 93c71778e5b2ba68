//! One raw image with its masks, brought to the prepared form.

use crate::BadFile;
use crate::CLASSES;
use crate::cells::Cells;
use crate::decode;
use crate::fov;
use crate::raw::{MaskRule, Raw, RawImage, Reader};
use crate::resample::{Plane, Square, resample, resample_mask};
use crate::shard::Row;

/// A thread keeps buffers up to this length for the next image.
const KEEP_BYTES: usize = 16 << 20;

/// The smallest value that counts as lesion in a mask with more than two values.
const MIDDLE: u8 = 128;

/// A mask without lesions that was stored as a JPEG has values up to about this.
const NOISE: u8 = 8;

/// Buffers of one thread, reused from image to image, and the image that was made last.
#[derive(Default)]
pub(super) struct Desk {
    /// Raw file content.
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
}

/// A picture's size and what is cut out of it.
struct Frame {
    width: u32,
    height: u32,
    /// `None`: the picture has the working size and stays as it is.
    cut: Option<Square>,
}

impl Desk {
    /// The prepared image.
    pub fn row(&self) -> Row<'_> {
        Row {
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

    /// Lets go of buffers that one large picture needed and most do not.
    pub fn clear(&mut self) {
        for buffer in [
            &mut self.file,
            &mut self.plane,
            &mut self.pixels,
            &mut self.mask,
        ] {
            if buffer.capacity() > KEEP_BYTES {
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
        let entry = &raw.store.entries()[image.image];
        let size = reader
            .read(entry, &mut self.file)
            .and_then(|()| decode::dimensions(&self.file));
        let (width, height) = size.map_err(|reason| BadFile {
            path: raw.store.describe(entry),
            reason,
        })?;
        // The source twice as RGB (decoder and conversion) and a mask; the result, its mask, a mask's coverage.
        Ok(u64::from(width) * u64::from(height) * 7
            + (cells.size * cells.size * 6) as u64
            + entry.bytes)
    }

    /// Prepares the picture that was loaded, and its masks; every file of it that is bad.
    pub fn prepare(
        &mut self,
        raw: &Raw,
        reader: &mut Reader,
        image: &RawImage,
        cells: Cells,
    ) -> Result<(), Vec<BadFile>> {
        let mut bad = Vec::new();
        let frame = self.picture(raw, image, cells.size);
        self.mask.clear();
        self.mask.resize(cells.size * cells.size, 0);
        for class in 0..CLASSES.len() {
            let Some(number) = image.masks[class] else {
                continue;
            };
            let entry = &raw.store.entries()[number];
            let done = reader
                .read(entry, &mut self.file)
                .and_then(|()| decode::grey(&self.file, &mut self.plane))
                .and_then(|size| {
                    self.lesions(
                        class,
                        size,
                        frame.as_ref().ok(),
                        raw.mask_rule(),
                        cells.size,
                    )
                });
            let path = || raw.store.describe(entry);
            match done {
                Ok(None) => {}
                Ok(Some(largest)) => {
                    self.faint_masks += 1;
                    tracing::warn!(
                        "{}: this mask counts as empty: its brightest pixel is {largest}, lesions begin at {MIDDLE}",
                        path()
                    );
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
        self.areas = cells.areas(&self.mask);
        self.black = cells.black(&self.pixels);
        Ok(())
    }

    fn picture(&mut self, raw: &Raw, image: &RawImage, size: usize) -> Result<Frame, String> {
        // Most pictures have the working size: they are decoded where they stay.
        let (width, height) = decode::rgb(&self.file, &mut self.pixels)?;
        let (w, h) = (width as usize, height as usize);
        let square = if raw.keeps_squares() && w == h {
            Square::around(width, height)
        } else {
            let fov = fov::detect(&self.pixels, w, h);
            if !fov.found {
                tracing::warn!(
                    image = image.id,
                    "no field of view found; the whole picture is taken"
                );
            }
            fov.square
        };
        if square == Square::around(width, height) && w == size && h == size {
            return Ok(Frame {
                width,
                height,
                cut: None,
            });
        }
        let source = Plane {
            data: &self.pixels,
            width: w,
            height: h,
            channels: 3,
        };
        self.pixels = resample(source, square, size);
        Ok(Frame {
            width,
            height,
            cut: Some(square),
        })
    }

    /// Adds the decoded mask in `plane` to the class bits; its largest value when that is too dark to count. Without
    /// a frame (its picture is bad) only decoding counts.
    fn lesions(
        &mut self,
        class: usize,
        (width, height): (u32, u32),
        frame: Option<&Frame>,
        rule: MaskRule,
        size: usize,
    ) -> Result<Option<u8>, String> {
        let Some(frame) = frame else { return Ok(None) };
        if (width, height) != (frame.width, frame.height) {
            return Err(format!(
                "is {width} x {height} pixels, its image {} x {}",
                frame.width, frame.height
            ));
        }
        let threshold = threshold(&self.plane, rule);
        let faint = faint(&self.plane, threshold);
        let Some(square) = frame.cut else {
            for (bits, value) in self.mask.iter_mut().zip(&self.plane) {
                *bits |= u8::from(*value >= threshold) << class;
            }
            return Ok(faint);
        };
        for value in &mut self.plane {
            *value = if *value >= threshold { 255 } else { 0 };
        }
        let source = Plane {
            data: &self.plane,
            width: width as usize,
            height: height as usize,
            channels: 1,
        };
        for (bits, lesion) in self
            .mask
            .iter_mut()
            .zip(resample_mask(source, square, size))
        {
            *bits |= lesion << class;
        }
        Ok(faint)
    }
}

/// The smallest value that counts as lesion.
fn threshold(plane: &[u8], rule: MaskRule) -> u8 {
    let largest = largest(plane);
    match rule {
        MaskRule::HalfOrTwoValued if largest < MIDDLE && two_valued(plane, largest) => largest,
        _ => MIDDLE,
    }
}

/// The largest value of a mask that is below the threshold and no mere noise.
fn faint(plane: &[u8], threshold: u8) -> Option<u8> {
    let largest = largest(plane);
    (largest < threshold && (largest > NOISE || two_valued(plane, largest))).then_some(largest)
}

fn largest(plane: &[u8]) -> u8 {
    plane.iter().copied().max().unwrap_or(0)
}

fn two_valued(plane: &[u8], largest: u8) -> bool {
    largest > 0 && plane.iter().all(|value| *value == 0 || *value == largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_count_from_the_middle_or_from_their_only_value() {
        let soft = [0, 1, 100, 127, 128, 254];
        assert_eq!(threshold(&soft, MaskRule::Half), 128);
        assert_eq!(threshold(&soft, MaskRule::HalfOrTwoValued), 128);
        assert_eq!(threshold(&[0, 76, 0], MaskRule::HalfOrTwoValued), 76);
        assert_eq!(threshold(&[0, 1, 0], MaskRule::HalfOrTwoValued), 1);
        assert_eq!(threshold(&[0, 1, 0], MaskRule::Half), 128);
        // The noise of a JPEG without lesions has many values.
        assert_eq!(threshold(&[0, 1, 3], MaskRule::HalfOrTwoValued), 128);
        assert_eq!(threshold(&[0; 4], MaskRule::HalfOrTwoValued), 128);
    }

    #[test]
    fn masks_that_are_too_dark_to_count_are_told_from_empty_ones() {
        assert_eq!(faint(&[0, 60, 100], 128), Some(100));
        assert_eq!(faint(&[0, 1, 0], 128), Some(1));
        assert_eq!(faint(&[0, 1, 0], 1), None);
        assert_eq!(faint(&[0, 1, 3], 128), None);
        assert_eq!(faint(&[0; 4], 128), None);
        assert_eq!(faint(&[0, 90, 130], 128), None);
    }
}
