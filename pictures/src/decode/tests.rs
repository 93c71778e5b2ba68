use std::path::PathBuf;

use super::*;

fn pictures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pictures")
}

/// A line of `expected.txt`; tests/golden/pictures.py says what it holds.
struct Expected {
    file: String,
    kind: String,
    rest: String,
}

fn expected() -> Vec<Expected> {
    let text = std::fs::read_to_string(pictures().join("expected.txt")).unwrap();
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let mut next = || words.next().unwrap();
        Expected {
            file: next(),
            kind: next(),
            rest: next(),
        }
    };
    text.lines().map(line).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// What is wrong with the picture as it is decoded, if anything.
fn judge(expected: &Expected) -> Result<(), String> {
    let bytes = std::fs::read(pictures().join(&expected.file)).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    if expected.kind == "refused" {
        let reason = rgb(&bytes, &mut out).err().ok_or("is not refused")?;
        let as_mask = mask(&bytes, &mut out)
            .err()
            .ok_or("is not refused as a mask")?;
        return match reason.contains(&expected.rest) && as_mask == reason {
            true => Ok(()),
            false => Err(format!(
                "{reason:?} / {as_mask:?} does not say {:?}",
                expected.rest
            )),
        };
    }
    let mut words = expected.rest.split(' ');
    let mut number = || words.next().unwrap().parse::<u32>().unwrap();
    let size = (number(), number());
    let (found, tolerance) = match expected.kind.as_str() {
        "rgb" => {
            let tolerance = number();
            let picture = rgb(&bytes, &mut out)?;
            ((picture.width, picture.height), tolerance as u8)
        }
        _ => {
            let mask = mask(&bytes, &mut out)?;
            for value in &mut out {
                *value = u8::from(*value >= 128);
            }
            ((mask.width, mask.height), 0)
        }
    };
    if found != size {
        return Err(format!("is {found:?} pixels instead of {size:?}"));
    }
    let wanted = unhex(words.next().unwrap());
    let worst = out.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
    if out.len() != wanted.len() || worst.is_some_and(|worst| worst > tolerance) {
        return Err(format!(
            "is off by up to {worst:?}: {:?} instead of {:?}",
            &out[..out.len().min(24)],
            &wanted[..24.min(wanted.len())]
        ));
    }
    let needed = memory(&bytes)?;
    if needed < out.len() as u64 {
        return Err(format!("is said to take {needed} bytes"));
    }
    Ok(())
}

#[test]
fn every_kind_of_picture_shows_what_its_author_meant() {
    let all = expected();
    assert!(all.len() > 150, "{} pictures", all.len());
    let wrong: Vec<String> = all
        .iter()
        .filter_map(|expected| {
            judge(expected)
                .err()
                .map(|why| format!("{}: {why}", expected.file))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
}

/// The content of every picture.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    let file = |expected: Expected| std::fs::read(pictures().join(expected.file)).unwrap();
    expected().into_iter().map(file).collect()
}

pub(super) fn crc32(bytes: &[u8]) -> u32 {
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

fn picture(file: &str) -> Vec<u8> {
    std::fs::read(pictures().join(file)).unwrap()
}

#[test]
fn cut_files_are_never_taken_for_whole() {
    let mut out = Vec::new();
    // Up to the last byte that counts: behind a JPEG's or PNG's end mark nothing does.
    for file in ["rgb8.png", "interlaced.png", "444.jpg", "progressive.jpg"] {
        let whole = picture(file);
        for length in 0..whole.len() {
            let reason = rgb(&whole[..length], &mut out).unwrap_err();
            assert!(!reason.is_empty(), "{file} cut to {length} bytes");
        }
    }
    let whole = picture("rgb8.png");
    assert_eq!(
        rgb(&whole[..whole.len() - 20], &mut out).unwrap_err(),
        "the PNG ends too early (truncated)"
    );
    // The pixels of a TIFF may lie anywhere in it.
    for file in ["none.tif", "lzw.tif", "big.tif", "planar.tif"] {
        let whole = picture(file);
        assert!(rgb(&whole[..whole.len() / 2], &mut out).is_err(), "{file}");
    }
    assert_eq!(rgb(b"", &mut out).unwrap_err(), "the file is empty");
}

#[test]
fn every_byte_of_a_png_is_covered_by_a_checksum() {
    let whole = picture("rgb8.png");
    for i in (8..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[i] ^= 0x55;
        assert!(rgb(&bytes, &mut Vec::new()).is_err(), "byte {i}");
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let mut bytes = picture("rgb8.png");
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    let reason = rgb(&bytes, &mut Vec::new()).unwrap_err();
    assert_eq!(
        reason,
        "has 60000 x 60000 pixels; the limit is 67108864 in all"
    );
    assert_eq!(memory(&bytes).unwrap_err(), reason);
}
