//! One folder per class: `glioma/`, `meningioma/`, ... in one place, or in `Training/` and `Testing/` (or `train/`, `val/`,
//! `test/`). The name of a folder is the class; the classes exclude each other.

use fovea_task::{Kind, Label};

use super::labels::{image_task, in_order, keep_published, split_called};
use super::named::distinct_ids;
use crate::raw::layout::Layout;
use crate::raw::names::{first_few, folder_key, is_picture};
use crate::raw::scan::Scan;
use crate::raw::set::{RawImage, RawSet};
use crate::raw::tree::{Folders, last, parent};
use crate::{Crop, Result, Split};

/// A folder per class, in one place or in one of each split.
pub struct Classes;

/// Words in names of folders that hold something else than a class.
const NO_CLASSES: [&str; 12] = [
    "mask",
    "masks",
    "image",
    "images",
    "label",
    "labels",
    "annotation",
    "annotations",
    "groundtruth",
    "groundtruths",
    "segmentation",
    "segmentations",
];

impl Layout for Classes {
    fn name(&self) -> &'static str {
        "classes"
    }

    fn looks_like(&self) -> &'static str {
        "a folder with pictures for each class, also in Training/ and Testing/ or train/, val/ and test/"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        let of_splits = |folder: &str| {
            let mut parts = parts(folders, folder).peekable();
            parts.peek().is_some() && parts.all(|(part, _)| classes(folders, part).count() > 1)
        };
        let is_part = split_called(last(folder)).is_some() && of_splits(parent(folder));
        of_splits(folder) || (!is_part && classes(folders, folder).count() > 1)
    }

    fn crop(&self) -> Crop {
        Crop::None
    }

    fn turn(&self) -> u8 {
        2
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let all = scan.folders();
        let mut places: Vec<(&str, Option<Split>)> = parts(all, root)
            .map(|(part, split)| (part, Some(split)))
            .collect();
        if places.is_empty() {
            places.push((root, None));
        }
        let names = places.iter().flat_map(|(place, _)| classes(all, place));
        let names = in_order(names.map(|folder| last(folder).to_owned()));
        refuse_alike(scan, &names)?;
        let task = image_task(Kind::OneOf, &names).map_err(|e| {
            scan.error(
                e,
                "give the folder that holds one folder for each class, and no others",
            )
        })?;
        let mut images = Vec::new();
        for (place, split) in places {
            for folder in classes(all, place) {
                let class = names.iter().position(|name| name == last(folder));
                let label = Label(class.unwrap_or(0) as u64);
                let of_class = |picture: crate::raw::PictureName| RawImage {
                    labels: vec![(0, label)],
                    split,
                    ..picture.image()
                };
                images.extend(scan.pictures(folder).into_iter().map(of_class));
            }
        }
        keep_published(
            &mut images
                .iter_mut()
                .map(|image| &mut image.split)
                .collect::<Vec<_>>(),
        );
        distinct_ids(all, root, &mut images);
        Ok(RawSet { task, images })
    }
}

/// Folders in `folder` that are called by a split.
fn parts<'a>(folders: &Folders<'a>, folder: &str) -> impl Iterator<Item = (&'a str, Split)> {
    let called: Vec<(&str, Split)> = folders
        .children(folder)
        .filter_map(|child| Some((child, split_called(last(child))?)))
        .collect();
    called.into_iter()
}

/// Folders in `folder` that hold pictures, as classes do.
fn classes<'a>(folders: &Folders<'a>, folder: &str) -> impl Iterator<Item = &'a str> {
    let has_pictures = |child: &&str| {
        let mut files = folders.files(child).iter();
        files.any(|position| is_picture(last(folders.name(*position))))
    };
    let may_be_class = |child: &&str| {
        let key = folder_key(last(child));
        !key.split(' ').any(|word| NO_CLASSES.contains(&word)) && split_called(&key).is_none()
    };
    let found: Vec<&str> = folders
        .children(folder)
        .filter(may_be_class)
        .filter(has_pictures)
        .collect();
    found.into_iter()
}

/// Refuses classes whose names differ only in case or gaps: one of the parts spells a class in another way.
fn refuse_alike(scan: &Scan, names: &[String]) -> Result<()> {
    let alike: Vec<&str> = names
        .iter()
        .filter(|name| {
            let same = |other: &&String| folder_key(other) == folder_key(name);
            names.iter().filter(same).count() > 1
        })
        .map(String::as_str)
        .collect();
    match alike.is_empty() {
        true => Ok(()),
        false => Err(scan.error(
            format!(
                "the folders {} are spelled almost alike",
                first_few(&alike, 6)
            ),
            "give the folder of a class the same name in each part",
        )),
    }
}
