//! DDR lesion_segmentation as published: `train/`, `valid/` and `test/`, each with pictures and a folder of masks per lesion.
//!
//! Li et al., "Diagnostic Assessment of Deep Learning Algorithms for Diabetic Retinopathy Screening" (Information Sciences,
//! 2019). 757 JPEGs of varying size, two-valued TIFF masks. The published split is kept.

use std::collections::HashMap;

use crate::raw::layout::Layout;
use crate::raw::lesions::{self, CODES};
use crate::raw::names::ByStem;
use crate::raw::scan::Scan;
use crate::raw::set::{RawImage, RawSet};
use crate::raw::tree::{Folders, join};
use crate::{Result, Split};

/// DDR's part with lesion masks.
pub struct Ddr;

const PARTS: [(&[&str], &str, Split); 3] = [
    (&["train", "training"], "train", Split::Train),
    (&["valid", "val", "validation"], "valid", Split::Val),
    (&["test", "testing"], "test", Split::Test),
];
const IMAGES: &[&str] = &["image", "images"];
const MASKS: &[&str] = &["label", "labels", "segmentation label"];

const HELP: &str = "unpack DDR's `lesion_segmentation` again; a class that no image has still needs one mask (all black)";

impl Layout for Ddr {
    fn name(&self) -> &'static str {
        "ddr"
    }

    fn looks_like(&self) -> &'static str {
        "train/, valid/ and test/, each with image/ and label/ (or `segmentation label/`), and in that MA/, HE/, EX/, SE/"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        let has_classes =
            |masks: &&str| !folders.named(masks, &lesions::FOLDERS.concat()).is_empty();
        let is_part = |part: &&str| {
            !folders.named(part, IMAGES).is_empty()
                && folders.named(part, MASKS).iter().any(has_classes)
        };
        let (keys, ..) = PARTS[0];
        folders.named(folder, keys).iter().any(is_part)
    }

    fn folders(&self) -> Vec<&'static str> {
        PARTS.map(|(keys, ..)| keys).concat()
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let mut images: Vec<RawImage> = Vec::new();
        let mut has = [false; 3];
        for (number, (keys, shown, split)) in PARTS.into_iter().enumerate() {
            let Some(folder) = scan.folder(root, keys)? else {
                continue;
            };
            let of_part = part(scan, folder)?;
            has[number] = !of_part.is_empty();
            if !has[number] {
                let help = "unpack DDR's `lesion_segmentation` again";
                return Err(scan.empty(
                    &join(folder, "image"),
                    format!("pictures of {shown}"),
                    help,
                ));
            }
            let of_split = |image: RawImage| RawImage {
                split: Some(split),
                ..image
            };
            images.extend(of_part.into_iter().map(of_split));
        }
        // With parts of the download missing, validation is drawn from train, and a test set from it when that is missing too.
        if !has[1] {
            for image in &mut images {
                image.split = image.split.filter(|split| *split == Split::Test);
            }
        }
        Ok(lesions::set(images))
    }
}

/// The images of one part, with their masks.
fn part(scan: &mut Scan, folder: &str) -> Result<Vec<RawImage>> {
    let Some(pictures) = scan.folder(folder, IMAGES)? else {
        return Ok(Vec::new());
    };
    let mut by_stem = ByStem::default();
    let images = scan.images(pictures, &mut by_stem)?;
    let Some(all_masks) = scan.folder(folder, MASKS)? else {
        return Err(scan.error(format!("{folder}/label/ is missing"), HELP));
    };
    let mut masks: Vec<HashMap<usize, usize>> = Vec::new();
    for (class, code) in CODES.iter().enumerate() {
        let found = match scan.folder(all_masks, lesions::FOLDERS[class])? {
            Some(folder) => {
                let found = scan.pictures(folder);
                scan.refuse_others(folder, &found, false)?;
                found
            }
            None => Vec::new(),
        };
        if found.is_empty() {
            return Err(scan.error(format!("{all_masks}/{code}/ holds no masks"), HELP));
        }
        masks.push(lesions::masks(scan, &found, class, &by_stem, pictures)?);
    }
    Ok(lesions::with_masks(&images, &masks))
}
