//! Names of files and folders: as text, as an image's id, and when two of them mean the same.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Extensions that say "a picture"; any case.
const PICTURES: [&str; 17] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "jif", "tif", "tiff", "bmp", "dib", "gif", "webp", "pnm",
    "pgm", "ppm", "pbm", "pam",
];

/// What systems leave beside the user's own files; never worth a word.
const LITTER: [&str; 16] = [
    ".ds_store",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    ".spotlight-v100",
    ".trashes",
    ".fseventsd",
    ".temporaryitems",
    ".apdisk",
    ".directory",
    "icon\r",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
];

/// A name as text: UTF-8 where it is valid, else each byte as the character of that number (Latin-1).
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(name) => name.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Whether a system left it there.
pub(crate) fn is_litter(name: &str) -> bool {
    name.starts_with("._")
        || name.to_lowercase().starts_with("thumbs.db")
        || name.starts_with(".nfs")
        || name.ends_with(":Zone.Identifier")
        || LITTER.contains(&name.to_lowercase().as_str())
}

/// Whether the extension of a file's name says that it is a picture.
pub fn is_picture(name: &str) -> bool {
    extension(name).is_some_and(is_picture_extension)
}

/// Whether its extension says that other files are packed in it.
pub(crate) fn is_archive(name: &str) -> bool {
    const PACKED: [&str; 10] = [
        "zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar", "z01",
    ];
    extension(name).is_some_and(|found| PACKED.iter().any(|one| found.eq_ignore_ascii_case(one)))
}

fn is_picture_extension(extension: &str) -> bool {
    PICTURES
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

fn extension(name: &str) -> Option<&str> {
    let (stem, extension) = name.rsplit_once('.')?;
    (!stem.is_empty()).then_some(extension)
}

/// A file name (no folder) without its extension. What follows the last dot is one when it names a kind of picture, or
/// is short and not a number: `scan.12` is the whole name of a picture without extension.
pub fn stem(name: &str) -> &str {
    let is_extension = |extension: &str| {
        is_picture_extension(extension)
            || (1..=5).contains(&extension.len())
                && extension.bytes().all(|b| b.is_ascii_alphanumeric())
                && extension.bytes().any(|b| b.is_ascii_alphabetic())
    };
    match extension(name) {
        Some(extension) if is_extension(extension) => &name[..name.len() - extension.len() - 1],
        _ => name,
    }
}

/// The form in which stems are compared: composed, so that `ü` and `u` with two dots are one.
pub(super) fn composed(name: &str) -> Cow<'_, str> {
    if is_nfc(name) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.nfc().collect())
    }
}

/// The form in which names of folders are compared: composed, in lower case, with one kind of gap, and without a number
/// or letter in front: `1. Original Images` has the key `original images`.
pub fn folder_key(name: &str) -> String {
    let lower = composed(name).to_lowercase();
    let bare = match lower.split_once('.') {
        Some((count, rest)) if is_count(count, rest) && !rest.trim().is_empty() => rest,
        _ => &lower,
    };
    let words = bare.split(|c: char| c.is_whitespace() || c == '_' || c == '-');
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `1.`, `12.`, or a letter and a gap after it.
fn is_count(count: &str, rest: &str) -> bool {
    let number = (1..=2).contains(&count.len()) && count.bytes().all(|b| b.is_ascii_digit());
    let letter = count.len() == 1 && count.as_bytes()[0].is_ascii_alphabetic();
    number || letter && rest.starts_with(char::is_whitespace)
}

/// Things by the stem of their file name: the stem itself counts in its composed form; where no thing has it, one that
/// differs only in case does, when there is only one.
#[derive(Debug, Default)]
pub struct ByStem<T> {
    exact: HashMap<String, T>,
    /// By stem in lower case; `None` where several things have it.
    lower: HashMap<String, Option<T>>,
}

impl<T: Copy> ByStem<T> {
    /// Adds a thing, unless one has the same stem already: then that one is returned.
    pub fn insert(&mut self, stem: &str, thing: T) -> Option<T> {
        let stem = composed(stem);
        match self.lower.entry(stem.to_lowercase()) {
            Slot::Vacant(slot) => {
                slot.insert(Some(thing));
            }
            Slot::Occupied(mut slot) => {
                slot.insert(None);
            }
        }
        match self.exact.entry(stem.into_owned()) {
            Slot::Occupied(slot) => Some(*slot.get()),
            Slot::Vacant(slot) => {
                slot.insert(thing);
                None
            }
        }
    }

    /// The thing meant by `stem`.
    pub fn get(&self, stem: &str) -> Option<T> {
        let stem = composed(stem);
        let exact = self.exact.get(stem.as_ref()).copied();
        exact.or_else(|| self.lower.get(&stem.to_lowercase()).copied().flatten())
    }
}

/// "1 image", "3 images".
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `a, b, c` and, when there are more, `and 4 more`.
pub(crate) fn first_few<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let shown: Vec<&str> = names.iter().take(most).map(AsRef::as_ref).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_utf8_are_read_as_latin_1() {
        assert_eq!(text(b"m\xfcller_00.png"), "müller_00.png");
        assert_eq!(text("müller".as_bytes()), "müller");
        assert_eq!(text(b"plain"), "plain");
    }

    #[test]
    fn stems_lose_extensions_and_no_more() {
        for (name, expected) in [
            ("a.png", "a"),
            ("a.b.JPEG", "a.b"),
            ("a.dat", "a"),
            ("a", "a"),
            ("scan.12", "scan.12"),
            ("1.2.840.113619", "1.2.840.113619"),
            (".png", ".png"),
            ("007-5846-300.jfif", "007-5846-300"),
            ("Dr. Weiss 7", "Dr. Weiss 7"),
        ] {
            assert_eq!(stem(name), expected);
        }
        assert!(is_picture("a.JPE") && is_picture("b.c.pbm") && is_picture("c.PAM"));
        assert!(!is_picture("png") && !is_picture(".png") && !is_picture("a.txt"));
    }

    #[test]
    fn folders_are_known_in_any_spelling() {
        for name in [
            "Original_Images",
            "1. Original Images",
            "original-images",
            "a. ORIGINAL  IMAGES",
        ] {
            assert_eq!(folder_key(name), "original images");
        }
        assert_eq!(folder_key("MA"), "ma");
        assert_eq!(folder_key("v1.images"), "v1.images");
        assert_eq!(folder_key("a.images"), "a.images");
        assert_eq!(folder_key("A."), "a.");
    }

    #[test]
    fn stems_join_in_either_unicode_form_and_in_another_case_when_that_is_clear() {
        let mut by = ByStem::default();
        assert_eq!(by.insert("mu\u{308}ller", 1), None);
        assert_eq!(by.insert("Anna", 2), None);
        assert_eq!(by.insert("anna", 3), None);
        assert_eq!(
            ["müller", "MÜLLER", "Anna", "anna", "ANNA", "none"].map(|stem| by.get(stem)),
            [Some(1), Some(1), Some(2), Some(3), None, None]
        );
        assert_eq!(by.insert("m\u{fc}ller", 4), Some(1));
    }

    #[test]
    fn litter_is_told_from_what_is_merely_hidden() {
        for name in [
            ".DS_Store",
            "Thumbs.db",
            "._a.png",
            "__MACOSX",
            "a.png:Zone.Identifier",
        ] {
            assert!(is_litter(name), "{name}");
        }
        for name in [".gitkeep", ".hidden.png", "notes.txt"] {
            assert!(!is_litter(name), "{name}");
        }
    }
}
