//! `images/` and `masks/{MA,HE,EX,SE}/`: the layout for one's own data. A missing mask file means that the lesion is
//! absent from that image; a missing class folder is an error, because it may as well mean that nobody looked.

use std::collections::{BTreeSet, HashMap};

use super::{RawImage, Store, pictures};
use crate::{CLASSES, Error, Result};

pub(super) const LOOKS_LIKE: &str = "images/ with png, jpg or tif files, masks/MA/, masks/HE/, masks/EX/, masks/SE/ with the same names";

pub(super) const IMAGES: &str = "images";
pub(super) const MASKS: &str = "masks";

pub(super) const WITHOUT_MASKS_HELP: &str = "training needs masks of all four classes; photographs alone go to `fovea predict RUN FOLDER --out FILE.csv` or `fovea data FOLDER --mosaic FILE.png`";

/// What is missing where there are images and no masks at all.
pub(super) fn without_masks(folders: &BTreeSet<&str>) -> Option<String> {
    let of = |name: &&&str| name.rsplit('/').next() == Some(IMAGES);
    let images = folders.iter().find(of)?;
    let root = images.strip_suffix(IMAGES)?;
    let masks = format!("{root}{MASKS}");
    (!folders.contains(masks.as_str())).then(|| {
        format!("there is {images}/, but {masks}/ is missing (with MA/, HE/, EX/, SE/ in it)")
    })
}

const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "tif", "tiff"];

pub(super) fn images(store: &Store, root: &str) -> Result<Vec<RawImage>> {
    let images = pictures(store, &format!("{root}{IMAGES}"), &EXTENSIONS);
    if images.is_empty() {
        return Err(Error::Empty {
            path: store.path().join(format!("{root}{IMAGES}")),
            looked_for: "png, jpg or tif images".to_owned(),
            help: "put the photographs there".to_owned(),
        });
    }
    let stems: BTreeSet<&str> = images.iter().map(|(stem, _)| *stem).collect();
    let mut masks = Vec::new();
    for class in CLASSES {
        masks.push(class_masks(
            store,
            &format!("{root}{MASKS}/{class}"),
            &stems,
        )?);
    }
    let raw = |(stem, image): (&str, usize)| RawImage {
        id: stem.to_owned(),
        image,
        masks: std::array::from_fn(|class| masks[class].get(stem).copied()),
        grade: None,
    };
    Ok(images.into_iter().map(raw).collect())
}

fn class_masks<'a>(
    store: &'a Store,
    folder: &str,
    stems: &BTreeSet<&str>,
) -> Result<HashMap<&'a str, usize>> {
    let layout_error = |problem: String, help: &str| Error::Layout {
        path: store.path().to_owned(),
        problem,
        help: help.to_owned(),
    };
    let files = pictures(store, folder, &EXTENSIONS);
    if files.is_empty() {
        return Err(layout_error(
            format!("{folder}/ holds no masks"),
            "a class that no image has still needs one mask (all black), to say that it was looked for",
        ));
    }
    let mut masks = HashMap::new();
    for (stem, position) in files {
        let name = &store.entries()[position].name;
        if !stems.contains(stem) {
            return Err(layout_error(
                format!("{name} belongs to no image in {IMAGES}/"),
                "a mask has its image's name but for the extension: rename it, or remove it",
            ));
        }
        if masks.insert(stem, position).is_some() {
            return Err(layout_error(
                format!("{name} is the second mask of that image and class"),
                "keep one of them",
            ));
        }
    }
    Ok(masks)
}
