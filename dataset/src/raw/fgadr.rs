//! FGADR Seg-set: one folder per kind, the same file name in each.
//!
//! Zhou et al., "A Benchmark for Studying Diabetic Retinopathy: Segmentation, Grading, and Transferability" (IEEE TMI
//! 2021). 1280 x 1280 PNG; masks are grey or RGB with equal channels and anti-aliased edges.

use std::collections::HashMap;

use super::{RawImage, Store, pictures};
use crate::{CLASSES, Error, Result};

pub(super) const LOOKS_LIKE: &str = "Original_Images/, Microaneurysms_Masks/, Hemohedge_Masks/ (or Hemorrhage_Masks/), HardExudate_Masks/, SoftExudate_Masks/";

pub(super) const IMAGES: &str = "Original_Images";

/// Mask folders by class. `Hemohedge` is the dataset's own spelling.
pub(super) const MASKS: [&[&str]; 4] = [
    &["Microaneurysms_Masks"],
    &["Hemohedge_Masks", "Hemorrhage_Masks"],
    &["HardExudate_Masks"],
    &["SoftExudate_Masks"],
];

const GRADES: &str = "DR_Seg_Grading_Label.csv";

pub(super) fn images(store: &Store, root: &str) -> Result<Vec<RawImage>> {
    let images = pictures(store, &format!("{root}{IMAGES}"), &["png"]);
    if images.is_empty() {
        return Err(Error::Empty {
            path: store.path().join(format!("{root}{IMAGES}")),
            looked_for: "PNG images".to_owned(),
            help: "unpack the whole Seg-set again".to_owned(),
        });
    }
    let mut masks: Vec<HashMap<&str, usize>> = Vec::new();
    for (class, spellings) in MASKS.iter().enumerate() {
        masks.push(mask_folder(store, root, class, spellings)?);
    }
    let grades = grades(store, root)?;
    let missing: Vec<String> = images
        .iter()
        .flat_map(|(stem, _)| (0..CLASSES.len()).map(move |class| (*stem, class)))
        .filter(|(stem, class)| !masks[*class].contains_key(stem))
        .map(|(stem, class)| format!("{stem}.png in {}", MASKS[class][0]))
        .collect();
    if !missing.is_empty() {
        return Err(Error::Layout {
            path: store.path().to_owned(),
            problem: format!("{} masks are missing: {}", missing.len(), first_few(&missing)),
            help: "in FGADR every image has a mask of every class, black where there is nothing: unpack it again, or remove these images".to_owned(),
        });
    }
    let raw = |(stem, image): (&str, usize)| RawImage {
        id: stem.to_owned(),
        image,
        masks: std::array::from_fn(|class| masks[class].get(stem).copied()),
        grade: grades.get(stem).copied(),
    };
    Ok(images.into_iter().map(raw).collect())
}

fn mask_folder<'a>(
    store: &'a Store,
    root: &str,
    class: usize,
    spellings: &[&str],
) -> Result<HashMap<&'a str, usize>> {
    let mut found: Vec<_> = spellings
        .iter()
        .map(|name| (name, pictures(store, &format!("{root}{name}"), &["png"])))
        .filter(|(_, files)| !files.is_empty())
        .collect();
    let problem = match found.len() {
        1 => return Ok(found.remove(0).1.into_iter().collect()),
        0 => format!(
            "no PNG masks of {} in {root}{}",
            CLASSES[class],
            spellings.join(" or ")
        ),
        _ => format!(
            "masks of {} in both {root}{}",
            CLASSES[class],
            spellings.join(" and ")
        ),
    };
    Err(Error::Layout {
        path: store.path().to_owned(),
        problem,
        help: "there must be exactly one such folder: unpack the Seg-set again, or rename the right one".to_owned(),
    })
}

/// `name.png,grade` per line, no header, perhaps a byte order mark. The table is optional.
fn grades(store: &Store, root: &str) -> Result<HashMap<String, u8>> {
    let mut grades = HashMap::new();
    let Some(entry) = store
        .entries()
        .iter()
        .find(|entry| entry.name == format!("{root}{GRADES}"))
    else {
        return Ok(grades);
    };
    let path = store.describe(entry);
    let mut bytes = Vec::new();
    let bad = |line: u64, reason: String| Error::Csv {
        path: path.clone(),
        line,
        reason,
    };
    store
        .reader()
        .read(entry, &mut bytes)
        .map_err(|reason| bad(1, reason))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text);
    for record in reader.records() {
        let record =
            record.map_err(|e| bad(e.position().map_or(0, csv::Position::line), e.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let (Some(name), Some(grade)) = (record.get(0), record.get(1)) else {
            return Err(bad(line, format!("has {} fields", record.len())));
        };
        let value = grade.parse::<u8>().ok().filter(|grade| *grade <= 4);
        let value = value.ok_or_else(|| bad(line, format!("`{grade}` is no grade")))?;
        let stem = name.strip_suffix(".png").unwrap_or(name);
        if grades
            .insert(stem.to_owned(), value)
            .is_some_and(|before| before != value)
        {
            return Err(bad(line, format!("`{name}` has two grades")));
        }
    }
    Ok(grades)
}

fn first_few(names: &[String]) -> String {
    let more = if names.len() > 5 { ", ..." } else { "" };
    format!("{}{more}", names[..names.len().min(5)].join(", "))
}
