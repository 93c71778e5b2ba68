//! Shared by the layouts with masks of the four lesions: names of their folders and files, masks joined to images.

use std::collections::HashMap;

use fovea_task::Task;

use super::names::{ByStem, is_picture, stem};
use super::scan::{PictureName, Scan};
use super::set::{Evidence, RawImage, RawSet};
use crate::Result;

/// The classes of [`Task::lesions`], as they stand in names of files and folders.
pub(super) const CODES: [&str; 4] = ["MA", "HE", "EX", "SE"];

/// How folders of masks are named, by class, as keys (see `folder_key`).
pub(super) const FOLDERS: [&[&str]; 4] = [
    &["ma", "microaneurysms"],
    &["he", "haemorrhages", "hemorrhages"],
    &["ex", "hard exudates", "hardexudates"],
    &["se", "soft exudates", "softexudates"],
];

/// Images with their masks: by class, then by the position of their image.
pub(super) fn with_masks(images: &[PictureName], masks: &[HashMap<usize, usize>]) -> Vec<RawImage> {
    let of = |image: &PictureName| {
        let of_class = masks
            .iter()
            .map(|masks| masks.get(&image.position).copied());
        RawImage {
            cells: Evidence::Masks(of_class.collect()),
            ..image.image()
        }
    };
    images.iter().map(of).collect()
}

/// Images with masks of the four lesions.
pub(super) fn set(images: Vec<RawImage>) -> RawSet {
    RawSet {
        task: Task::lesions(),
        images,
    }
}

/// Masks of `class` among `pictures`, by the position of their image. Each must belong to one.
pub(super) fn masks(
    scan: &Scan,
    pictures: &[PictureName],
    class: usize,
    images: &ByStem<usize>,
    images_folder: &str,
) -> Result<HashMap<usize, usize>> {
    let mut masks = HashMap::new();
    for picture in pictures {
        let name = scan.name(picture.position);
        let image = match belongs(picture.stem, class, images) {
            Belongs::To(image) => image,
            Belongs::ToClass(other) => {
                return Err(scan.error(
                    format!(
                        "{name} lies among the masks of {}, and its name says {}",
                        CODES[class], CODES[other]
                    ),
                    "move it to the folder of its class, or rename it",
                ));
            }
            Belongs::Nowhere => {
                return Err(scan.error(
                    format!("{name} belongs to no image in {images_folder}/"),
                    "a mask has its image's name but for the extension (or with the class behind it, NAME_MA.png): rename it, or remove it",
                ));
            }
        };
        if let Some(first) = masks.insert(image, picture.position) {
            return Err(scan.error(
                format!(
                    "{name} is the second mask of that image and class, after {}",
                    scan.name(first)
                ),
                "keep one of them",
            ));
        }
    }
    Ok(masks)
}

/// What a file that may be a mask belongs to by its name.
enum Belongs {
    /// The image at this position.
    To(usize),
    /// An image, but another class than its folder's.
    ToClass(usize),
    Nowhere,
}

/// The image that a mask of `class` belongs to by its stem: the image's own, with the class behind it, or with the
/// image's extension in it (`a.jpg.png`).
fn belongs(mask: &str, class: usize, images: &ByStem<usize>) -> Belongs {
    if let Some(image) = images.get(mask) {
        return Belongs::To(image);
    }
    if is_picture(mask)
        && let Some(image) = images.get(stem(mask))
    {
        return Belongs::To(image);
    }
    match class_behind(mask) {
        Some((bare, of)) => match images.get(bare) {
            Some(image) if of == class => Belongs::To(image),
            Some(_) => Belongs::ToClass(of),
            None => Belongs::Nowhere,
        },
        None => Belongs::Nowhere,
    }
}

/// `NAME_MA` as `NAME` and the class.
pub(super) fn class_behind(stem: &str) -> Option<(&str, usize)> {
    let (at, _) = stem.char_indices().nth_back(2)?;
    let (bare, rest) = stem.split_at(at);
    let code = rest.strip_prefix(['_', '-', '.', ' '])?;
    let class = CODES
        .iter()
        .position(|class| class.eq_ignore_ascii_case(code))?;
    (!bare.is_empty()).then_some((bare, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_names_of_the_lesions() {
        let lesions = Task::lesions();
        let classes = lesions.cell_classes().iter();
        assert_eq!(
            classes.map(|class| class.name.as_str()).collect::<Vec<_>>(),
            CODES
        );
    }

    #[test]
    fn classes_behind_names() {
        for (stem, expected) in [
            ("IDRiD_01_MA", Some(("IDRiD_01", 0))),
            ("a-ex", Some(("a", 2))),
            ("ü SE", Some(("ü", 3))),
            ("_MA", None),
            ("MA", None),
            ("a_OD", None),
            ("aüMA", None),
        ] {
            assert_eq!(class_behind(stem), expected, "{stem}");
        }
    }
}
