//! `images/` and `masks/{MA,HE,EX,SE}/`: the layout for your own data. A missing mask file means that the lesion is
//! absent from that image; a missing class folder is an error, because perhaps nobody looked.

use std::collections::HashMap;

use crate::Result;
use crate::raw::layout::Layout;
use crate::raw::lesions::{self, CODES, class_behind};
use crate::raw::names::{self, ByStem, folder_key};
use crate::raw::scan::{PictureName, Scan};
use crate::raw::set::RawSet;
use crate::raw::tree::{Folders, join, last, parent};

/// Your own photographs in `images/`, with masks in `masks/{MA,HE,EX,SE}/`.
pub struct Folder;

const IMAGES: &str = "images";
const MASKS: &str = "masks";

const WITHOUT_MASKS_HELP: &str = "training needs masks of all four classes; photographs alone go to `fovea predict RUN FOLDER --out FILE.csv` or `fovea data FOLDER --mosaic FILE.png`";

const LOOKED_FOR_HELP: &str =
    "a class that no image has still needs one mask (all black), to say that it was looked for";

impl Layout for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn looks_like(&self) -> &'static str {
        "images/ with png, jpg, tif or other pictures, masks/MA/, masks/HE/, masks/EX/, masks/SE/ with the same names"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        let of_class = |position: &usize| {
            let name = last(folders.name(*position));
            names::is_picture(name) && class_behind(names::stem(name)).is_some()
        };
        let has_classes = |masks: &&str| {
            !folders.named(masks, &lesions::FOLDERS.concat()).is_empty()
                || folders.files(masks).iter().any(of_class)
        };
        !folders.named(folder, &[IMAGES]).is_empty()
            && folders.named(folder, &[MASKS]).iter().any(has_classes)
    }

    fn folders(&self) -> Vec<&'static str> {
        vec![IMAGES, MASKS]
    }

    fn photographs(&self) -> Option<&'static str> {
        Some(IMAGES)
    }

    /// There are images and no masks at all.
    fn near_miss(&self, folders: &Folders) -> Option<(String, String)> {
        let images = folders
            .all()
            .find(|path| folder_key(last(path)) == IMAGES)?;
        let masks = join(parent(images), MASKS);
        folders.named(parent(images), &[MASKS]).is_empty().then(|| {
            let problem = format!(
                "there is {images}/, but {masks}/ is missing (with MA/, HE/, EX/, SE/ in it)"
            );
            (problem, WITHOUT_MASKS_HELP.to_owned())
        })
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let (Some(images_folder), Some(masks_folder)) =
            (scan.folder(root, &[IMAGES])?, scan.folder(root, &[MASKS])?)
        else {
            unreachable!("the layout was found by these folders");
        };
        let mut by_stem = ByStem::default();
        let images = scan.images(images_folder, &mut by_stem)?;
        if images.is_empty() {
            let help = "put the photographs there";
            return Err(scan.empty(images_folder, "pictures".to_owned(), help));
        }
        let loose = scan.pictures(masks_folder);
        let mut loose = by_class(scan, &loose, &by_stem, images_folder)?;
        let flat = loose.iter().any(|masks| !masks.is_empty());
        if flat {
            let all: Vec<PictureName> = loose.iter().flatten().copied().collect();
            scan.refuse_others(masks_folder, &all, true)?;
        }
        let mut masks: Vec<HashMap<usize, usize>> = Vec::new();
        for (class, loose) in loose.iter_mut().enumerate() {
            let mut pictures = std::mem::take(loose);
            if let Some(folder) = scan.folder(masks_folder, lesions::FOLDERS[class])? {
                let in_folder = scan.pictures(folder);
                scan.refuse_others(folder, &in_folder, false)?;
                pictures.extend(in_folder);
            }
            if pictures.is_empty() {
                let name = CODES[class];
                let problem = match flat {
                    true => format!("{masks_folder}/ holds no masks NAME_{name}"),
                    false => format!("{masks_folder}/{name}/ holds no masks"),
                };
                return Err(scan.error(problem, LOOKED_FOR_HELP));
            }
            masks.push(lesions::masks(
                scan,
                &pictures,
                class,
                &by_stem,
                images_folder,
            )?);
        }
        Ok(lesions::set(lesions::with_masks(&images, &masks)))
    }
}

/// Masks that lie in the folder of masks itself, by the class behind their names.
fn by_class<'a>(
    scan: &Scan<'a>,
    loose: &[PictureName<'a>],
    images: &ByStem<usize>,
    images_folder: &str,
) -> Result<[Vec<PictureName<'a>>; 4]> {
    let mut classes: [Vec<PictureName>; 4] = Default::default();
    for picture in loose {
        match class_behind(picture.stem) {
            Some((bare, class)) if images.get(bare).is_some() => classes[class].push(*picture),
            _ => {
                return Err(scan.error(
                    format!(
                        "{} is no mask of an image in {images_folder}/ and a class",
                        scan.name(picture.position)
                    ),
                    "move it to the folder of its class (MA/, HE/, EX/, SE/), name it NAME_MA.png, or remove it",
                ));
            }
        }
    }
    Ok(classes)
}
