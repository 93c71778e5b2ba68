//! Shared by all layouts: folders by any spelling, and the pictures in them.

use std::collections::{BTreeMap, HashSet};

use fovea_pictures::decode::Content;

use super::TableOptions;
use super::names::{ByStem, composed, counted, first_few, is_picture, stem};
use super::set::{Evidence, RawImage};
use super::store::{Reader, Store};
use super::tree::{Folders, is_below, last};
use crate::{Error, Result};

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
pub struct PictureName<'a> {
    /// The name of its file without folder and extension.
    pub stem: &'a str,
    /// Its position in the list of all files.
    pub position: usize,
}

impl PictureName<'_> {
    /// The picture as an image with its stem as id, and without labels.
    pub fn image(&self) -> RawImage {
        RawImage {
            id: self.stem.to_owned(),
            image: self.position,
            labels: Vec::new(),
            cells: Evidence::None,
            grade: None,
            split: None,
            group: None,
            columns: Vec::new(),
        }
    }
}

/// A raw dataset while its layout sorts its files: lists folders and pictures, reads tables, and collects what the user
/// should know.
pub struct Scan<'a> {
    store: &'a Store,
    folders: &'a Folders<'a>,
    reader: Reader<'a>,
    options: &'a TableOptions,
    /// Why files are no images, by position; empty for those that were read.
    notes: BTreeMap<usize, String>,
    words: Vec<String>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(
        store: &'a Store,
        folders: &'a Folders<'a>,
        options: &'a TableOptions,
    ) -> Self {
        Self {
            store,
            folders,
            reader: store.reader(),
            options,
            notes: BTreeMap::new(),
            words: Vec::new(),
        }
    }

    /// What the user says of tables.
    pub fn options(&self) -> &'a TableOptions {
        self.options
    }

    /// The files of the dataset.
    pub(crate) fn store(&self) -> &'a Store {
        self.store
    }

    /// Why a file is no image, where the layout noted it; empty for one that it read.
    pub(crate) fn noted(&self, position: usize) -> Option<&str> {
        self.notes.get(&position).map(String::as_str)
    }

    /// What the layout wants the user to know.
    pub(crate) fn words(&self) -> &[String] {
        &self.words
    }

    /// The folders of the dataset.
    pub fn folders(&self) -> &'a Folders<'a> {
        self.folders
    }

    /// Notes why a file is not used; said in a warning unless it is used all the same.
    pub fn pass_over(&mut self, position: usize, why: &str) {
        self.notes.insert(position, why.to_owned());
    }

    /// Notes that a file which is no image was read, a table for example.
    pub fn has_read(&mut self, position: usize) {
        self.notes.insert(position, String::new());
    }

    /// Warns the user of something that is no error.
    pub fn warn(&mut self, word: String) {
        self.words.push(word);
    }

    /// The error of a dataset that is not as its layout must be: what does not fit, and what the user must do.
    pub fn error(&self, problem: String, help: &str) -> Error {
        Error::Layout {
            path: self.store.path().to_owned(),
            problem,
            help: help.to_owned(),
        }
    }

    /// The error of a `folder` without any of what it must hold.
    pub fn empty(&self, folder: &str, looked_for: String, help: &str) -> Error {
        Error::Empty {
            path: match folder {
                "" => self.store.path().to_owned(),
                folder => self.store.path().join(folder),
            },
            looked_for,
            help: help.to_owned(),
        }
    }

    /// The path of a file in the dataset.
    pub fn name(&self, position: usize) -> &'a str {
        self.folders.name(position)
    }

    /// How messages name a file: its path, or `archive.zip!path`.
    pub fn describe(&self, position: usize) -> String {
        self.store.describe(&self.store.entries()[position])
    }

    /// Reads a whole file; the reason when it cannot be read.
    pub fn read(&mut self, position: usize) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let entry = &self.store.entries()[position];
        self.reader.read(entry, &mut bytes).map(|()| bytes)
    }

    /// The folder in `parent` whose name means one of `keys` (see [`folder_key`](super::folder_key)).
    ///
    /// # Errors
    /// Several do.
    pub fn folder(&self, parent: &str, keys: &[&str]) -> Result<Option<&'a str>> {
        match self.folders.named(parent, keys)[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            ref several => Err(self.error(
                format!("{}/ mean the same", several.join("/ and ")),
                "put the files into one of them, and remove the other",
            )),
        }
    }

    /// The pictures directly in `folder`: by their extension, else by their content. Why the others are none is noted.
    pub fn pictures(&mut self, folder: &str) -> Vec<PictureName<'a>> {
        let mut pictures = Vec::new();
        for &position in self.folders.files(folder) {
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

    /// The pictures directly in `folder` as images, which are added to `images` by their stems.
    ///
    /// # Errors
    /// Two have the same stem.
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
            "rename one of them, and its masks if it has any: masks are found by the name without extension",
        )
    }

    /// Refuses files in or below `folder` that are not among `pictures`, which are masks: where a missing mask means that
    /// there is no lesion, they must not be skipped. `direct`: only those directly in it.
    ///
    /// # Errors
    /// There are some.
    pub fn refuse_others(
        &self,
        folder: &str,
        pictures: &[PictureName],
        direct: bool,
    ) -> Result<()> {
        let masks: HashSet<usize> = pictures.iter().map(|picture| picture.position).collect();
        let mut others: Vec<String> = Vec::new();
        for (position, entry) in self.store.entries().iter().enumerate() {
            let in_it = is_below(&entry.name, folder);
            let directly = self.folders.files(folder).binary_search(&position).is_ok();
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

#[cfg(test)]
mod tests {
    use super::*;

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
