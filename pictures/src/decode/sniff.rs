//! What a file is, by its first bytes: names and extensions lie.

/// A picture format that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Windows bitmap (`BM`), with any header.
    Bmp,
    /// GIF, 87a and 89a.
    Gif,
    /// JPEG, from its start-of-image marker on.
    Jpeg,
    /// PNG, animated ones among them.
    Png,
    /// Portable anymap: P1 to P7.
    Pnm,
    /// TIFF and BigTIFF of either byte order.
    Tiff,
    /// WebP, lossy and lossless.
    WebP,
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A picture that can be decoded.
    Picture(Format),
    /// Something else that people keep beside photographs, or download in place of them.
    Other {
        /// The format with its article ("a DICOM file").
        what: &'static str,
        /// What to do with it.
        help: &'static str,
    },
    /// No format that this crate has a word for.
    Unknown,
}

/// How many first bytes [`sniff`] looks at, at most.
pub const HEAD: usize = 512;

const TO_PNG: &str = "convert it to PNG or TIFF first";
const UNPACK: &str = "unpack it first, and give the folder";

/// Formats with a fixed beginning: where it lies, its bytes, what it is, what to do.
const KNOWN: &[(usize, &[u8], &str, &str)] = &[
    (
        128,
        b"DICM",
        "a DICOM file",
        "export the photograph as PNG or TIFF, for example with `dcmj2pnm --write-png IN.dcm OUT.png` (package dcmtk)",
    ),
    (
        0,
        b"\0\0\0\x0cjP  \r\n\x87\n",
        "a JPEG 2000 picture",
        TO_PNG,
    ),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 code stream", TO_PNG),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture", TO_PNG),
    (0, b"\xff\x0a", "a JPEG XL picture", TO_PNG),
    (0, b"II\xbc\x01", "a JPEG XR picture", TO_PNG),
    (
        0,
        b"8BPS",
        "a Photoshop file",
        "export the flattened picture as PNG",
    ),
    (
        0,
        b"gimp xcf",
        "a GIMP file",
        "export the flattened picture as PNG",
    ),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture", TO_PNG),
    (0, b"qoif", "a QOI picture", TO_PNG),
    (0, b"\0\0\x01\0", "an icon", TO_PNG),
    (0, b"#?RADIANCE", "a Radiance HDR picture", TO_PNG),
    (
        0,
        b"IIRO",
        "a camera's raw file",
        "develop it to TIFF or PNG first",
    ),
    (
        0,
        b"FUJIFILMCCD-RAW",
        "a camera's raw file",
        "develop it to TIFF or PNG first",
    ),
    (
        344,
        b"n+1\0",
        "a NIfTI volume",
        "export its slices as PNG or TIFF",
    ),
    (
        344,
        b"ni1\0",
        "a NIfTI volume",
        "export its slices as PNG or TIFF",
    ),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array",
        "save it as PNG, for example with imageio.imwrite",
    ),
    (
        0,
        b"MATLAB 5.0 MAT-file",
        "a MATLAB file",
        "save the picture with imwrite(..., 'x.png')",
    ),
    (
        0,
        b"\x89HDF",
        "an HDF5 file",
        "save its pictures as PNG or TIFF",
    ),
    (
        0,
        b"%PDF",
        "a PDF document",
        "extract its pictures, for example with `pdfimages -png`",
    ),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (
        0,
        b"PK\x05\x06",
        "an empty zip archive",
        "download it again",
    ),
    (0, b"\x1f\x8b", "a gzip file", UNPACK),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer and not the file itself",
        "run `git lfs pull` where it was cloned",
    ),
    (
        0,
        b"/annex/objects/",
        "a git-annex pointer and not the file itself",
        "run `git annex get` where it was cloned",
    ),
];

/// Looks at the beginning of a file; [`HEAD`] bytes are enough.
pub fn sniff(head: &[u8]) -> Content {
    let picture = match head {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some(Format::Png),
        [0xff, 0xd8, 0xff, ..] => Some(Format::Jpeg),
        // Canon's CR2 is a TIFF by its first bytes, and is none that could be used.
        [b'I', b'I', 42, 0, _, _, _, _, b'C', b'R', ..] => None,
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Format::Tiff),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some(Format::WebP),
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Some(Format::Pnm),
        [b'B', b'M', rest @ ..] if is_bmp(rest) => Some(Format::Bmp),
        _ => None,
    };
    if let Some(format) = picture {
        return Content::Picture(format);
    }
    let known = KNOWN
        .iter()
        .find(|(at, bytes, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(bytes)));
    if let Some((_, _, what, help)) = known {
        return Content::Other { what, help };
    }
    other(head)
}

/// Formats whose beginning is not fixed to the byte.
fn other(head: &[u8]) -> Content {
    if head.starts_with(b"II*\0") {
        return Content::Other {
            what: "a camera's raw file",
            help: "develop it to TIFF or PNG first",
        };
    }
    if head.get(4..8) == Some(b"ftyp") {
        let brand = head.get(8..12).unwrap_or_default();
        let what = match brand {
            b"avif" | b"avis" => "an AVIF picture",
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => {
                "a HEIC picture (a telephone's)"
            }
            b"crx " => "a camera's raw file",
            _ => "a video",
        };
        return Content::Other { what, help: TO_PNG };
    }
    let text = head.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let begins = |word: &[u8]| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if begins(b"<!doctype html") || begins(b"<html") {
        return Content::Other {
            what: "a web page",
            help: "the download gave a page (a login, an error) in place of the file: download it again",
        };
    }
    if begins(b"<svg") || begins(b"<?xml") {
        return Content::Other {
            what: "an XML file (SVG, annotations)",
            help: "draw it to a PNG of the photograph's size first",
        };
    }
    Content::Unknown
}

/// After `BM`: a length, two reserved words, an offset, and the size of one of the known headers. `BM` alone begins
/// many a text.
fn is_bmp(rest: &[u8]) -> bool {
    let header = rest.get(12..16).and_then(|bytes| bytes.try_into().ok());
    matches!(
        header.map(u32::from_le_bytes),
        Some(12 | 16 | 40 | 52 | 56 | 64 | 108 | 124)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> &'static str {
        match sniff(head) {
            Content::Other { what, .. } => what,
            content => panic!("{content:?}"),
        }
    }

    #[test]
    fn pictures_are_told_by_content() {
        let pictures: [(&[u8], Format); 9] = [
            (b"\x89PNG\r\n\x1a\n", Format::Png),
            (b"\xff\xd8\xff\xe0", Format::Jpeg),
            (b"II*\0\x08\0\0\0\x0c\0", Format::Tiff),
            (b"MM\0*\0\0\0\x08", Format::Tiff),
            (b"II+\0\x08\0\0\0", Format::Tiff),
            (b"GIF89a", Format::Gif),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Format::WebP),
            (b"P5\n2 2\n255\n", Format::Pnm),
            (b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", Format::Bmp),
        ];
        for (head, format) in pictures {
            assert_eq!(sniff(head), Content::Picture(format), "{head:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM\x02\0");
        assert_eq!(what(&dicom), "a DICOM file");
        assert_eq!(
            what(b"\0\0\0\x18ftypheic"),
            "a HEIC picture (a telephone's)"
        );
        assert_eq!(what(b"\n <!DOCTYPE html><html>"), "a web page");
        assert_eq!(
            what(b"version https://git-lfs.github.com/spec/v1"),
            "a Git LFS pointer and not the file itself"
        );
        assert_eq!(what(b"II*\0\x10\0\0\0CR\x02\0"), "a camera's raw file");
        assert_eq!(what(b"PK\x03\x04"), "a zip archive");
        for head in [
            &b""[..],
            b"BMI of patients\n1,2,3,4,5",
            b"P",
            b"P9 1",
            b"notes",
            b"\xff\xd8",
        ] {
            assert_eq!(sniff(head), Content::Unknown, "{head:?}");
        }
    }
}
