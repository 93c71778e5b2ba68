//! FGADR Seg-set: one folder per kind, the same file name in each.
//!
//! Zhou et al., "A Benchmark for Studying Diabetic Retinopathy: Segmentation, Grading, and Transferability" (IEEE TMI
//! 2021). 1280 x 1280 PNG; masks are grey or RGB with equal channels and anti-aliased edges.

use std::collections::HashMap;

use crate::raw::grade_table::{self, GradeRow};
use crate::raw::layout::Layout;
use crate::raw::lesions::{self, CODES};
use crate::raw::names::{ByStem, first_few, stem};
use crate::raw::scan::{PictureName, Scan};
use crate::raw::set::{MaskRule, RawImage, RawSet};
use crate::raw::tree::{Folders, join, last};
use crate::{Error, Result};

/// FGADR Seg-set, as it is distributed.
pub struct Fgadr;

const IMAGES: &str = "original images";
const IMAGES_SHOWN: &str = "Original_Images";

/// Mask folders by class, as keys and as they are shown. `Hemohedge` is the dataset's own spelling.
const MASKS: [&[&str]; 4] = [
    &["microaneurysms masks"],
    &["hemohedge masks", "hemorrhage masks"],
    &["hardexudate masks"],
    &["softexudate masks"],
];
const MASKS_SHOWN: [&[&str]; 4] = [
    &["Microaneurysms_Masks"],
    &["Hemohedge_Masks", "Hemorrhage_Masks"],
    &["HardExudate_Masks"],
    &["SoftExudate_Masks"],
];
const UNUSED: [&str; 2] = ["irma masks", "neovascularization masks"];

const GRADES: &str = "DR_Seg_Grading_Label.csv";

/// At most this many names stand in one message.
const NAMES: usize = 5;

impl Layout for Fgadr {
    fn name(&self) -> &'static str {
        "fgadr"
    }

    fn looks_like(&self) -> &'static str {
        "Original_Images/, Microaneurysms_Masks/, Hemohedge_Masks/ (or Hemorrhage_Masks/), HardExudate_Masks/, SoftExudate_Masks/"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        let has = |keys: &[&str]| !folders.named(folder, keys).is_empty();
        has(&[IMAGES]) && has(&MASKS.concat())
    }

    fn folders(&self) -> Vec<&'static str> {
        [&[IMAGES], &*MASKS.concat()].concat()
    }

    fn photographs(&self) -> Option<&'static str> {
        Some(IMAGES)
    }

    fn mask_rule(&self) -> MaskRule {
        MaskRule::Half
    }

    /// FGADR's pictures are cut already, and its published figures count on it.
    fn keeps_squares(&self) -> bool {
        true
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let Some(folder) = scan.folder(root, &[IMAGES])? else {
            unreachable!("the layout was found by this folder");
        };
        let mut by_stem = ByStem::default();
        let images = scan.images(folder, &mut by_stem)?;
        if images.is_empty() {
            let help = "unpack the whole Seg-set again";
            return Err(scan.empty(folder, "pictures".to_owned(), help));
        }
        let mut masks: Vec<HashMap<usize, usize>> = Vec::new();
        for class in 0..CODES.len() {
            masks.push(class_masks(scan, root, class, &by_stem)?);
        }
        let missing: Vec<String> = images
            .iter()
            .flat_map(|image| (0..CODES.len()).map(move |class| (image, class)))
            .filter(|(image, class)| !masks[*class].contains_key(&image.position))
            .map(|(image, class)| {
                let name = last(scan.name(image.position));
                format!("{name} in {}", MASKS_SHOWN[class][0])
            })
            .collect();
        if !missing.is_empty() {
            return Err(scan.error(
                format!("{} masks are missing: {}", missing.len(), first_few(&missing, NAMES)),
                "in FGADR every image has a mask of every class, black where there is nothing: unpack it again, or remove these images",
            ));
        }
        for unused in scan.folders().named(root, &UNUSED) {
            for &position in scan.folders().files(unused) {
                scan.pass_over(position, "a class that is not used");
            }
        }
        let grades = read_grades(scan, root, &images, &by_stem)?;
        let raw = |raw: RawImage| RawImage {
            grade: grades.get(&raw.image).copied(),
            ..raw
        };
        let images = lesions::with_masks(&images, &masks);
        Ok(lesions::set(images.into_iter().map(raw).collect()))
    }
}

/// Masks of a class by the position of their image. One without an image is skipped: absence means nothing here.
fn class_masks(
    scan: &mut Scan,
    root: &str,
    class: usize,
    images: &ByStem<usize>,
) -> Result<HashMap<usize, usize>> {
    let mut found = Vec::new();
    for key in MASKS[class] {
        if let Some(folder) = scan.folder(root, &[key])? {
            let pictures = scan.pictures(folder);
            if !pictures.is_empty() {
                found.push(pictures);
            }
        }
    }
    let shown: Vec<String> = MASKS_SHOWN[class]
        .iter()
        .map(|name| join(root, name))
        .collect();
    let problem = match found.len() {
        1 => {
            let with_image = |picture: &PictureName| {
                let known = images.get(picture.stem).is_some();
                if !known {
                    scan.pass_over(picture.position, "a mask without an image");
                }
                known
            };
            let pictures: Vec<PictureName> =
                found.remove(0).into_iter().filter(with_image).collect();
            return lesions::masks(scan, &pictures, class, images, IMAGES_SHOWN);
        }
        0 => format!("no masks of {} in {}", CODES[class], shown.join(" or ")),
        _ => format!("masks of {} in both {}", CODES[class], shown.join(" and ")),
    };
    Err(scan.error(
        problem,
        "there must be exactly one such folder: unpack the Seg-set again, or rename the right one",
    ))
}

/// Grades by the position of their image; the table is optional.
fn read_grades(
    scan: &mut Scan,
    root: &str,
    images: &[PictureName],
    by_stem: &ByStem<usize>,
) -> Result<HashMap<usize, u8>> {
    let is_table = |path: &str| last(path).eq_ignore_ascii_case(GRADES);
    if let Some(folder) = scan
        .folders()
        .children(root)
        .find(|folder| is_table(folder))
    {
        return Err(scan.error(
            format!("{folder} is a folder, and should be the table of grades"),
            "some programs unpack a table into a folder of its name: take the table out of it, or remove the folder (grades are optional)",
        ));
    }
    let tables: Vec<usize> = scan
        .folders()
        .files(root)
        .iter()
        .copied()
        .filter(|position| is_table(scan.name(*position)))
        .collect();
    let table = match tables[..] {
        [] => return Ok(HashMap::new()),
        [one] => one,
        [one, other, ..] => {
            let problem = format!("{} and {} mean the same", scan.name(one), scan.name(other));
            return Err(scan.error(problem, "keep one of the tables"));
        }
    };
    let path = scan.describe(table);
    let bad = |(line, reason): (u64, String)| Error::Csv {
        path: path.clone(),
        line,
        reason,
    };
    let bytes = scan.read(table).map_err(|reason| bad((1, reason)))?;
    let grade_table::GradeTable { rows, doubt } = grade_table::table(&bytes).map_err(bad)?;
    let find = |name: &str| by_stem.get(name).or_else(|| by_stem.get(stem(name)));
    let joined = join_rows(&rows, find).map_err(bad)?;
    scan.has_read(table);
    if let Some(column) = doubt {
        let name = scan.name(table);
        scan.warn(format!(
            "{name}: grades are taken from column {column}: no heading is called `grade`; if another column holds them, name it so"
        ));
    }
    if joined.grades.is_empty() && !rows.is_empty() {
        return Err(scan.error(
            format!(
                "none of the {} rows of {} gives a grade to one of the {} images (the table has `{}`, the first image is {})",
                rows.len(),
                scan.name(table),
                images.len(),
                rows[0].name,
                last(scan.name(images[0].position))
            ),
            "the first column holds file names as in Original_Images/, the second grades: correct it, or remove the table (grades are optional)",
        ));
    }
    let without: Vec<&str> = images
        .iter()
        .filter(|image| !joined.grades.contains_key(&image.position))
        .map(|image| image.stem)
        .collect();
    let mut word = |names: &[&str], total: usize, what: &str| {
        if !names.is_empty() {
            scan.warn(format!(
                "{}: {} of the {total} {what}: {}",
                scan.name(table),
                names.len(),
                first_few(names, NAMES)
            ));
        }
    };
    word(&joined.unmatched, rows.len(), "rows name no image");
    word(&without, images.len(), "images have no grade in it");
    Ok(joined.grades)
}

struct Joined<'a> {
    grades: HashMap<usize, u8>,
    /// Names of rows that no image has.
    unmatched: Vec<&'a str>,
}

/// Rows joined to images; the line and reason when an image has two grades.
fn join_rows<'a>(
    rows: &'a [GradeRow],
    find: impl Fn(&str) -> Option<usize>,
) -> std::result::Result<Joined<'a>, (u64, String)> {
    let mut joined = Joined {
        grades: HashMap::new(),
        unmatched: Vec::new(),
    };
    for row in rows {
        let Some(image) = find(&row.name) else {
            joined.unmatched.push(&row.name);
            continue;
        };
        let Some(grade) = row.grade else { continue };
        let before = joined.grades.insert(image, grade);
        if before.is_some_and(|before| before != grade) {
            return Err((row.line, format!("`{}` has two grades", row.name)));
        }
    }
    Ok(joined)
}
