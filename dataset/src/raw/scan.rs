//! Shared by all layouts: folders by any spelling, the pictures in them, masks joined to images.

use std::collections::{BTreeMap, HashMap, HashSet};

use fovea_pictures::decode::Content;

use super::RawImage;
use super::names::{ByStem, composed, counted, first_few, is_picture, stem};
use super::store::{Reader, Store};
use super::tree::{Tree, is_below, last};
use crate::{CLASSES, Error, Result};

/// How folders of masks are named, by class, as keys (see `folder_key`).
pub(super) const CLASS_FOLDERS: [&[&str]; 4] = [
    &["ma", "microaneurysms"],
    &["he", "haemorrhages", "hemorrhages"],
    &["ex", "hard exudates", "hardexudates"],
    &["se", "soft exudates", "softexudates"],
];

/// Offenders named in an error.
const NAMES: usize = 5;

/// Extensions of files that hold a picture and are none of the dataset's: other forms of a picture beside them.
const BESIDE: [&str; 16] = [
    "bak",
    "orig",
    "old",
    "tmp",
    "part",
    "crdownload",
    "swp",
    "thm",
    "cr2",
    "cr3",
    "nef",
    "arw",
    "dng",
    "orf",
    "rw2",
    "svs",
];

/// A picture by the stem of its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct PictureName<'a> {
    pub stem: &'a str,
    pub position: usize,
}

impl PictureName<'_> {
    /// The picture as an image, with its masks: by class, then by the position of their image.
    pub fn with(&self, masks: &[HashMap<usize, usize>]) -> RawImage {
        RawImage {
            id: self.stem.to_owned(),
            image: self.position,
            masks: std::array::from_fn(|class| masks[class].get(&self.position).copied()),
            labels: Vec::new(),
            grade: None,
            split: None,
        }
    }
}

/// A raw dataset while its files are sorted.
pub(super) struct Scan<'a> {
    pub store: &'a Store,
    pub tree: &'a Tree<'a>,
    reader: Reader<'a>,
    /// Why files are not used, by position.
    pub notes: BTreeMap<usize, String>,
    /// What the user should know.
    pub words: Vec<String>,
}

/// What became of a file that may be a mask.
enum Belongs {
    To(usize),
    /// Its name says that it is of this class, its folder says another.
    ToClass(usize),
    Nowhere,
}

impl<'a> Scan<'a> {
    pub fn new(store: &'a Store, tree: &'a Tree<'a>) -> Self {
        Self {
            store,
            tree,
            reader: store.reader(),
            notes: BTreeMap::new(),
            words: Vec::new(),
        }
    }

    pub fn error(&self, problem: String, help: &str) -> Error {
        Error::Layout {
            path: self.store.path().to_owned(),
            problem,
            help: help.to_owned(),
        }
    }

    pub fn name(&self, position: usize) -> &'a str {
        &self.store.entries()[position].name
    }

    /// Reads a whole file.
    pub fn read(&mut self, position: usize) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let entry = &self.store.entries()[position];
        self.reader.read(entry, &mut bytes).map(|()| bytes)
    }

    /// The folder in `parent` whose name means one of `keys`.
    pub fn folder(&self, parent: &str, keys: &[&str]) -> Result<Option<&'a str>> {
        match self.tree.named(parent, keys)[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            ref several => Err(self.error(
                format!("{}/ mean the same", several.join("/ and ")),
                "put the files into one of them, and remove the other",
            )),
        }
    }

    /// The pictures directly in `folder`: by their extension, else by their content. Of the others, why they are none
    /// is in `notes`.
    pub fn pictures(&mut self, folder: &str) -> Vec<PictureName<'a>> {
        let mut pictures = Vec::new();
        for &position in self.tree.files(folder) {
            let name = last(self.name(position));
            if is_picture(name) {
                pictures.push(position);
                continue;
            }
            match self.why_no_picture(position, name) {
                None => pictures.push(position),
                Some(reason) => {
                    self.notes.insert(position, reason);
                }
            }
        }
        let picture = |position| PictureName {
            stem: stem(last(self.name(position))),
            position,
        };
        pictures.into_iter().map(picture).collect()
    }

    fn why_no_picture(&mut self, position: usize, name: &str) -> Option<String> {
        why_no_picture(name, || {
            self.reader.content(&self.store.entries()[position])
        })
    }

    /// The pictures directly in `folder` as images by stem, which must differ.
    pub fn images(
        &mut self,
        folder: &str,
        images: &mut ByStem<usize>,
    ) -> Result<Vec<PictureName<'a>>> {
        let pictures = self.pictures(folder);
        for picture in &pictures {
            if let Some(other) = images.insert(picture.stem, picture.position) {
                return Err(self.same_name(other, picture.position));
            }
        }
        Ok(pictures)
    }

    /// The error of two images that masks could not tell apart.
    pub fn same_name(&self, one: usize, other: usize) -> Error {
        let [one, other] = [one, other].map(|position| self.name(position));
        let [a, b] = [one, other].map(|name| stem(last(name)));
        let but = match (a == b, composed(a) == composed(b)) {
            (true, _) if last(one) == last(other) => "",
            (true, _) => " but for the extension",
            (false, true) => " but for how its letters are stored (composed or not)",
            (false, false) => " but for small and capital letters",
        };
        self.error(
            format!("{one} and {other} have the same name{but}"),
            "rename one of them and its masks: masks are found by the name without extension",
        )
    }

    /// Masks of `class` among `pictures`, by the position of their image. Each must belong to one.
    pub fn masks(
        &self,
        pictures: &[PictureName<'a>],
        class: usize,
        images: &ByStem<usize>,
        images_folder: &str,
    ) -> Result<HashMap<usize, usize>> {
        let mut masks = HashMap::new();
        for picture in pictures {
            let name = self.name(picture.position);
            let image = match belongs(picture.stem, class, images) {
                Belongs::To(image) => image,
                Belongs::ToClass(other) => {
                    return Err(self.error(
                        format!(
                            "{name} lies among the masks of {}, and its name says {}",
                            CLASSES[class], CLASSES[other]
                        ),
                        "move it to the folder of its class, or rename it",
                    ));
                }
                Belongs::Nowhere => {
                    return Err(self.error(
                        format!("{name} belongs to no image in {images_folder}/"),
                        "a mask has its image's name but for the extension (or with the class behind it, NAME_MA.png): rename it, or remove it",
                    ));
                }
            };
            if let Some(first) = masks.insert(image, picture.position) {
                return Err(self.error(
                    format!(
                        "{name} is the second mask of that image and class, after {}",
                        self.name(first)
                    ),
                    "keep one of them",
                ));
            }
        }
        Ok(masks)
    }

    /// Refuses files in or below `folder` that are no masks: where a missing mask means that there is no lesion, they
    /// must not be passed over. `direct`: only those directly in it.
    pub fn refuse_others(
        &self,
        folder: &str,
        pictures: &[PictureName<'a>],
        direct: bool,
    ) -> Result<()> {
        let masks: HashSet<usize> = pictures.iter().map(|picture| picture.position).collect();
        let mut others: Vec<String> = Vec::new();
        for (position, entry) in self.store.entries().iter().enumerate() {
            let in_it = is_below(&entry.name, folder);
            let directly = self.tree.files(folder).binary_search(&position).is_ok();
            if !in_it || (direct && !directly) || (directly && masks.contains(&position)) {
                continue;
            }
            let why = match self.notes.get(&position) {
                Some(reason) => reason.as_str(),
                None => "in a folder of its own",
            };
            others.push(format!("{} ({why})", entry.name));
        }
        if others.is_empty() {
            return Ok(());
        }
        Err(self.error(
            format!(
                "{} in {folder}/ cannot be taken for a mask: {}",
                counted(others.len(), "file"),
                first_few(&others, NAMES)
            ),
            "a missing mask means that there is no such lesion, so nothing in this folder is passed over: turn them into pictures, or move them elsewhere",
        ))
    }
}

/// Why a file without a picture's extension is none; `None`: by its content it is one.
pub(crate) fn why_no_picture(
    name: &str,
    content: impl FnOnce() -> std::result::Result<Content, String>,
) -> Option<String> {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let beside = BESIDE
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known));
    if beside || name.ends_with('~') || name.ends_with("_original") {
        return Some("by its name a backup, a part or another form of a picture".to_owned());
    }
    match content() {
        Ok(Content::Picture(_)) => None,
        Ok(Content::Other { what, help }) => Some(format!("{what}: {help}")),
        Ok(Content::Unknown) => Some("no picture".to_owned()),
        Err(reason) => Some(reason),
    }
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
    let class = CLASSES
        .iter()
        .position(|class| class.eq_ignore_ascii_case(code))?;
    (!bare.is_empty()).then_some((bare, class))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn backups_and_raw_files_are_no_further_images() {
        let jpeg = || Ok(fovea_pictures::decode::sniff(b"\xff\xd8\xff\xe0"));
        for name in ["a.jpg~", "a.jpg_original", "a.CR2", "a.png.bak", "a.THM"] {
            assert!(
                why_no_picture(name, jpeg).unwrap().contains("backup"),
                "{name}"
            );
        }
        for name in ["a", "a.img", "scan.12"] {
            assert_eq!(why_no_picture(name, jpeg), None);
        }
        assert_eq!(
            why_no_picture("notes.txt", || Ok(Content::Unknown)).unwrap(),
            "no picture"
        );
    }
}
