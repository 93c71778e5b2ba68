//! The orientation in Exif: tag 274 of the first directory, of whatever whole type.
//!
//! The standard wants a SHORT (Exif 3.0, 4.6.5.1.5); some programs write a BYTE or a LONG, which viewers accept.

use image::metadata::Orientation;

const ORIENTATION: u16 = 0x0112;

/// The orientation in `exif`, which begins with the byte order (`II` or `MM`). `None` without one, or when what is there is
/// no Exif.
pub(super) fn orientation(exif: &[u8]) -> Option<Orientation> {
    let little = match exif.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let pair = [*exif.get(at)?, *exif.get(at + 1)?];
        Some(if little {
            u16::from_le_bytes(pair)
        } else {
            u16::from_be_bytes(pair)
        })
    };
    let long = |at: usize| {
        let (a, b) = (u32::from(short(at)?), u32::from(short(at + 2)?));
        Some(if little { b << 16 | a } else { a << 16 | b })
    };
    let directory = usize::try_from(long(4)?).ok()?;
    let count = usize::from(short(directory)?);
    let fields = (0..count).map(|i| directory + 2 + 12 * i);
    let field = fields
        .take_while(|at| *at + 12 <= exif.len())
        .find(|at| short(*at) == Some(ORIENTATION))?;
    let value = match short(field + 2)? {
        1 => u32::from(*exif.get(field + 8)?),
        3 => u32::from(short(field + 8)?),
        4 => long(field + 8)?,
        _ => return None,
    };
    Orientation::from_exif(u8::try_from(value).ok()?)
}
