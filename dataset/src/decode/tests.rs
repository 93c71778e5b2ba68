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
