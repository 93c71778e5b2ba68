//! The directories of a TIFF: which pictures a file holds, and the fields of the one that counts.

use std::collections::HashSet;

use super::super::{Reason, several};

/// Numbers of fields (TIFF 6.0).
pub(super) mod tag {
    pub const NEW_SUBFILE_TYPE: u16 = 254;
    pub const SUBFILE_TYPE: u16 = 255;
    pub const IMAGE_WIDTH: u16 = 256;
    pub const IMAGE_LENGTH: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const IMAGE_DESCRIPTION: u16 = 270;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTE_COUNTS: u16 = 279;
    pub const MAX_SAMPLE_VALUE: u16 = 281;
    pub const PLANAR_CONFIGURATION: u16 = 284;
    pub const PREDICTOR: u16 = 317;
    pub const COLOR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_LENGTH: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTE_COUNTS: u16 = 325;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const CHROMA_SUBSAMPLING: u16 = 530;
    pub const IMAGE_DEPTH: u16 = 32997;

    /// Those whose values a decoder makes room for.
    pub const READ: [u16; 21] = [
        IMAGE_WIDTH,
        IMAGE_LENGTH,
        COMPRESSION,
        PHOTOMETRIC,
        SAMPLES_PER_PIXEL,
        ROWS_PER_STRIP,
        PLANAR_CONFIGURATION,
        PREDICTOR,
        TILE_WIDTH,
        TILE_LENGTH,
        BITS_PER_SAMPLE,
        STRIP_OFFSETS,
        STRIP_BYTE_COUNTS,
        COLOR_MAP,
        TILE_OFFSETS,
        TILE_BYTE_COUNTS,
        EXTRA_SAMPLES,
        SAMPLE_FORMAT,
        JPEG_TABLES,
        CHROMA_SUBSAMPLING,
        REFERENCE_BLACK_WHITE,
    ];
    pub const S_MAX_SAMPLE_VALUE: u16 = 341;
    pub const YCBCR_COEFFICIENTS: u16 = 529;
    pub const REFERENCE_BLACK_WHITE: u16 = 532;
}

/// Nobody uses it: what a field is called that must not be read.
const FORGOTTEN: u16 = 65_000;

/// More directories than this are not looked for.
const MAX_DIRECTORIES: usize = 10_000;

/// No field that is read here has more values: a palette of 16 bits.
const MAX_VALUES: u64 = 3 << 16;

const CUT: &str = "the TIFF ends too early (truncated)";

/// A field, by where its description lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    tag: u16,
    kind: u16,
    count: u64,
    at: usize,
}

/// A directory: one picture.
#[derive(Debug)]
pub(super) struct Directory {
    at: u64,
    fields: Vec<Field>,
}

impl Directory {
    pub fn find(&self, tag: u16) -> Option<&Field> {
        // Of several with one number the last counts, as it does for the decoder.
        self.fields.iter().rev().find(|field| field.tag == tag)
    }
}

/// A file with its directories.
pub(super) struct TiffFile<'a> {
    bytes: &'a [u8],
    little: bool,
    /// BigTIFF: positions and counts of 64 bits.
    big: bool,
    directories: Vec<Directory>,
}

impl<'a> TiffFile<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reason> {
        let little = bytes.starts_with(b"II");
        let mut file = Self {
            bytes,
            little,
            big: false,
            directories: Vec::new(),
        };
        file.big = file.u16(2).ok_or(CUT)? == 43;
        let mut next = if file.big {
            file.u64(8).ok_or(CUT)?
        } else {
            file.u32(4).ok_or(CUT)?.into()
        };
        let mut seen = HashSet::new();
        while next != 0 {
            if !seen.insert(next) || seen.len() > MAX_DIRECTORIES {
                return Err("damaged TIFF: its directories lead in a circle".to_owned());
            }
            let (directory, following) = file.directory(next).ok_or(CUT)?;
            file.directories.push(directory);
            next = following;
        }
        if file.directories.is_empty() {
            return Err("damaged TIFF: it has no picture in it".to_owned());
        }
        Ok(file)
    }

    /// The one picture of the file. Smaller versions of it and its transparency are no pictures of their own.
    pub fn picture(&self) -> Result<&Directory, Reason> {
        let value = |directory: &Directory, tag: u16| {
            let field = directory.find(tag)?;
            self.number(field)
        };
        let whole = |directory: &&Directory| {
            value(directory, tag::NEW_SUBFILE_TYPE).unwrap_or(0) & 0b101 == 0
                && value(directory, tag::SUBFILE_TYPE) != Some(2)
        };
        let pictures: Vec<&Directory> = self.directories.iter().filter(whole).collect();
        match pictures[..] {
            [one] => match self.stacked(one) {
                None => Ok(one),
                Some(count) => Err(several(&format!("{count} pictures (an ImageJ stack)"))),
            },
            [] if self.directories.len() == 1 => Ok(&self.directories[0]),
            [] => Err(several(&format!("{} pictures", self.directories.len()))),
            _ => Err(several(&format!("{} pictures (pages)", pictures.len()))),
        }
    }

    /// ImageJ describes a large stack by its first picture and the words `images=N`.
    fn stacked(&self, directory: &Directory) -> Option<u32> {
        let field = directory.find(tag::IMAGE_DESCRIPTION)?;
        let at = self.content(field)?;
        let length = usize::try_from(field.count).ok()?.min(4096);
        let text = self.bytes.get(at..)?.get(..length)?;
        let text = std::str::from_utf8(text)
            .ok()
            .filter(|text| text.starts_with("ImageJ="))?;
        let count = text.lines().find_map(|line| line.strip_prefix("images="))?;
        count.trim().parse().ok().filter(|count| *count > 1)
    }

    /// `length` bytes from `at` on.
    pub fn part(&self, at: usize, length: usize) -> Option<&'a [u8]> {
        self.bytes.get(at..at.checked_add(length)?)
    }

    pub fn is_first(&self, directory: &Directory) -> bool {
        self.directories
            .first()
            .is_some_and(|first| first.at == directory.at)
    }

    /// Refuses values that reach beyond the file's end.
    pub fn check_reach(&self, directory: &Directory) -> Result<(), Reason> {
        let read = |field: &&Field| tag::READ.contains(&field.tag);
        for field in directory.fields.iter().filter(read) {
            let bytes =
                kind_bytes(field.kind).and_then(|size| field.count.checked_mul(size as u64));
            let start = self.content(field).map(|at| at as u64);
            let end = start
                .zip(bytes)
                .and_then(|(start, bytes)| start.checked_add(bytes));
            if end.is_none_or(|end| end > self.bytes.len() as u64) {
                return Err(format!(
                    "damaged TIFF: tag {} reaches beyond the end of the file",
                    field.tag
                ));
            }
        }
        Ok(())
    }

    /// Makes `directory` the first one in `copy`, a copy of the file.
    pub fn put_first(&self, copy: &mut [u8], directory: &Directory) {
        if self.big {
            self.write(copy, 8, 8, directory.at);
        } else {
            self.write(copy, 4, 4, directory.at);
        }
    }

    /// Gives a field one value in a copy of the file.
    pub fn set(&self, copy: &mut [u8], field: &Field, value: u32) {
        self.write(copy, field.at + 2, 2, 4); // LONG
        if self.big {
            self.write(copy, field.at + 4, 8, 1);
            self.write(copy, field.at + 12, 8, 0);
            self.write(copy, field.at + 12, 4, value.into());
        } else {
            self.write(copy, field.at + 4, 4, 1);
            self.write(copy, field.at + 8, 4, value.into());
        }
    }

    /// Leaves a field part `at` of `of` equal ones of its values in a copy of the file; `None` when it cannot be divided.
    pub fn keep_part(&self, copy: &mut [u8], field: &Field, at: u32, of: u32) -> Option<()> {
        let (at, of) = (u64::from(at), u64::from(of));
        if !field.count.is_multiple_of(of) {
            return None;
        }
        let size = kind_bytes(field.kind)? as u64;
        let count = field.count / of;
        let from =
            (self.content(field)? as u64).checked_add(at.checked_mul(count)?.checked_mul(size)?)?;
        let (number, inline, room) = if self.big {
            (field.at + 4, field.at + 12, 8)
        } else {
            (field.at + 4, field.at + 8, 4)
        };
        self.write(copy, number, room as usize, count);
        let bytes = count.checked_mul(size)?;
        if bytes > room {
            self.write(copy, inline, room as usize, from);
        } else {
            let from = usize::try_from(from).ok()?;
            let values = self.bytes.get(from..from.checked_add(bytes as usize)?)?;
            copy.get_mut(inline..inline + values.len())?
                .copy_from_slice(values);
        }
        Some(())
    }

    /// Has nobody find a field in a copy of the file.
    pub fn forget(&self, copy: &mut [u8], field: &Field) {
        self.write(copy, field.at, 2, FORGOTTEN.into());
    }

    fn write(&self, copy: &mut [u8], at: usize, length: usize, value: u64) {
        let Some(place) = copy.get_mut(at..at + length) else {
            return;
        };
        if self.little {
            place.copy_from_slice(&value.to_le_bytes()[..length]);
        } else {
            place.copy_from_slice(&value.to_be_bytes()[8 - length..]);
        }
    }

    /// A field's first value as a whole number.
    pub fn number(&self, field: &Field) -> Option<u32> {
        let value = *self.numbers(field)?.first()?;
        (value >= 0.0 && value <= f64::from(u32::MAX)).then_some(value as u32)
    }

    /// All values of a field of numbers.
    pub fn numbers(&self, field: &Field) -> Option<Vec<f64>> {
        if field.count > MAX_VALUES {
            return None;
        }
        let at = self.content(field)?;
        let size = kind_bytes(field.kind)?;
        (0..field.count as usize)
            .map(|i| self.value(field.kind, at.checked_add(i * size)?))
            .collect()
    }

    fn value(&self, kind: u16, at: usize) -> Option<f64> {
        Some(match kind {
            1 | 7 => f64::from(*self.bytes.get(at)?),
            6 => f64::from(*self.bytes.get(at)? as i8),
            3 => f64::from(self.u16(at)?),
            8 => f64::from(self.u16(at)? as i16),
            4 | 13 => f64::from(self.u32(at)?),
            9 => f64::from(self.u32(at)? as i32),
            5 => f64::from(self.u32(at)?) / f64::from(self.u32(at + 4)?.max(1)),
            10 => f64::from(self.u32(at)? as i32) / f64::from((self.u32(at + 4)? as i32).max(1)),
            11 => f64::from(f32::from_bits(self.u32(at)?)),
            12 => f64::from_bits(self.u64(at)?),
            16 | 18 => self.u64(at)? as f64,
            17 => self.u64(at)? as i64 as f64,
            _ => return None,
        })
    }

    /// Where the values of a field lie: in its description when they fit, else elsewhere.
    fn content(&self, field: &Field) -> Option<usize> {
        let bytes = (kind_bytes(field.kind)? as u64).checked_mul(field.count)?;
        let (inline, room) = if self.big {
            (field.at + 12, 8)
        } else {
            (field.at + 8, 4)
        };
        if bytes <= room {
            return Some(inline);
        }
        let at = if self.big {
            self.u64(inline)?
        } else {
            self.u32(inline)?.into()
        };
        usize::try_from(at).ok()
    }

    fn directory(&self, at: u64) -> Option<(Directory, u64)> {
        let start = usize::try_from(at).ok()?;
        let (count, head, size) = if self.big {
            (usize::try_from(self.u64(start)?).ok()?, 8, 20)
        } else {
            (usize::from(self.u16(start)?), 2, 12)
        };
        let first = start.checked_add(head)?;
        let end = first.checked_add(count.checked_mul(size)?)?;
        if end > self.bytes.len() {
            return None;
        }
        let field = |at: usize| {
            let count = if self.big {
                self.u64(at + 4)?
            } else {
                self.u32(at + 4)?.into()
            };
            Some(Field {
                tag: self.u16(at)?,
                kind: self.u16(at + 2)?,
                count,
                at,
            })
        };
        let fields = (0..count)
            .map(|i| field(first + i * size))
            .collect::<Option<Vec<_>>>()?;
        // A file may end right behind its last directory's fields.
        let next = if self.big {
            self.u64(end)
        } else {
            self.u32(end).map(u64::from)
        };
        Some((Directory { at, fields }, next.unwrap_or(0)))
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    }

    fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
        Some(if self.little {
            u64::from_le_bytes(bytes)
        } else {
            u64::from_be_bytes(bytes)
        })
    }
}

/// Bytes of one value by its type.
fn kind_bytes(kind: u16) -> Option<usize> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => return None,
    })
}
