//! IDRiD segmentation as published: numbered folders, parts a and b, the class after each mask's name.
//!
//! Porwal et al., "Indian Diabetic Retinopathy Image Dataset" (Data, 2018). 4288 x 2848 JPEG; masks are two-valued
//! TIFFs in which all but zero is lesion. A missing mask means that the lesion is absent.

use std::collections::HashMap;

use crate::raw::layout::Layout;
use crate::raw::lesions;
use crate::raw::names::ByStem;
use crate::raw::scan::Scan;
use crate::raw::set::{RawImage, RawSet};
use crate::raw::tree::{Folders, join};
use crate::{Result, Split};

/// IDRiD segmentation, with the folders and names it is published with.
pub struct Idrid;

const IMAGES: &str = "original images";
const MASKS: &[&str] = &["all segmentation groundtruths", "segmentation groundtruths"];

/// Folders of part a and of part b, as keys and as published.
const PARTS: [(&[&str], &str); 2] = [
    (
        &["training set", "train set", "training", "train"],
        "a. Training Set",
    ),
    (
        &["testing set", "test set", "testing", "test"],
        "b. Testing Set",
    ),
];
const CLASSES_SHOWN: [&str; 4] = [
    "1. Microaneurysms",
    "2. Haemorrhages",
    "3. Hard Exudates",
    "4. Soft Exudates",
];
const OPTIC_DISC: &[&str] = &["optic disc", "od"];

impl Layout for Idrid {
    fn name(&self) -> &'static str {
        "idrid"
    }

    fn looks_like(&self) -> &'static str {
        "1. Original Images/ and 2. All Segmentation Groundtruths/, each with a. Training Set/ or b. Testing Set/; masks in 1. Microaneurysms/, 2. Haemorrhages/, 3. Hard Exudates/, 4. Soft Exudates/"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        let has = |keys: &[&str]| !folders.named(folder, keys).is_empty();
        has(&[IMAGES]) && has(MASKS)
    }

    fn folders(&self) -> Vec<&'static str> {
        [&[IMAGES], MASKS].concat()
    }

    fn photographs(&self) -> Option<&'static str> {
        Some(IMAGES)
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let (Some(all_images), Some(all_masks)) =
            (scan.folder(root, &[IMAGES])?, scan.folder(root, MASKS)?)
        else {
            unreachable!("the layout was found by these folders");
        };
        let mut parts = Vec::new();
        for (keys, shown) in PARTS {
            let images = scan.folder(all_images, keys)?;
            let masks = scan.folder(all_masks, keys)?;
            let found = match images {
                Some(folder) => part(scan, folder, masks, &join(all_masks, shown))?,
                None => Vec::new(),
            };
            if let (true, Some(masks)) = (found.is_empty(), masks) {
                note_below(scan, masks, "masks of a part without images");
            }
            parts.push(found);
        }
        // Of both parts the second is the published test set; one alone is divided like any other dataset.
        let published = parts.iter().all(|part| !part.is_empty());
        let split = |(part, image): (usize, RawImage)| RawImage {
            split: (published && part == 1).then_some(Split::Test),
            ..image
        };
        let images: Vec<RawImage> = parts
            .into_iter()
            .enumerate()
            .flat_map(|(part, images)| images.into_iter().map(move |image| (part, image)))
            .map(split)
            .collect();
        if images.is_empty() {
            let looked_for = format!("pictures in {}/ or {}/", PARTS[0].1, PARTS[1].1);
            let help = "unpack `A. Segmentation.zip` of IDRiD again";
            return Err(scan.empty(all_images, looked_for, help));
        }
        Ok(lesions::set(images))
    }
}

/// The images of one part.
fn part(
    scan: &mut Scan,
    images_folder: &str,
    masks_folder: Option<&str>,
    masks_shown: &str,
) -> Result<Vec<RawImage>> {
    let mut by_stem = ByStem::default();
    let images = scan.images(images_folder, &mut by_stem)?;
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let missing = |scan: &Scan, name: String| {
        scan.error(
            format!("there are images in {images_folder}/, but {name}/ is missing or empty"),
            "unpack `A. Segmentation.zip` of IDRiD again, with its ground truths; a class that no image has still needs one mask (all black)",
        )
    };
    let Some(masks_folder) = masks_folder else {
        return Err(missing(scan, masks_shown.to_owned()));
    };
    let mut masks: Vec<HashMap<usize, usize>> = Vec::new();
    for (class, shown) in CLASSES_SHOWN.iter().enumerate() {
        let pictures = match scan.folder(masks_folder, lesions::FOLDERS[class])? {
            Some(folder) => {
                let pictures = scan.pictures(folder);
                scan.refuse_others(folder, &pictures, false)?;
                pictures
            }
            None => Vec::new(),
        };
        if pictures.is_empty() {
            return Err(missing(scan, join(masks_folder, shown)));
        }
        masks.push(lesions::masks(
            scan,
            &pictures,
            class,
            &by_stem,
            images_folder,
        )?);
    }
    for folder in scan.folders().named(masks_folder, OPTIC_DISC) {
        note_below(scan, folder, "the optic disc is no class of lesions");
    }
    Ok(lesions::with_masks(&images, &masks))
}

/// Notes why nothing in `folder` is used.
fn note_below(scan: &mut Scan, folder: &str, note: &str) {
    let all = scan.folders();
    for folder in [folder].into_iter().chain(all.children(folder)) {
        for &position in all.files(folder) {
            scan.pass_over(position, note);
        }
    }
}
