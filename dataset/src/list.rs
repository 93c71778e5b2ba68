//! Photographs on disk: finds those in a folder, names them, and reports skipped files.

use std::path::{Path, PathBuf};

use crate::raw::names::{is_picture, stem};
use crate::raw::{Walked, content_of, images_of_dataset, passed, walk, why_no_picture};
use crate::{Error, Result};

/// A photograph on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhotoFile {
    /// Where to read it.
    pub path: PathBuf,
    /// Its path below the folder without extension (`sub/b`), as text also where the name is no UTF-8.
    pub id: String,
}

/// Photographs in `dir` and the folders below it, by id; `dir` may also be one photograph. A file is one by its
/// extension (png, jpg, tif, bmp, gif, webp, pnm and their variants, in any case), or by its content where the
/// extension says nothing. A warning counts and names the files that are skipped.
///
/// # Errors
/// [`Error::Missing`], [`Error::Empty`] without a photograph, [`Error::Layout`] for a raw dataset, whose masks are none.
pub fn list_photos(dir: &Path) -> Result<Vec<PhotoFile>> {
    let (photos, words) = look(dir)?;
    for word in words {
        tracing::warn!("{}: {word}", dir.display());
    }
    Ok(photos)
}

/// Whether [`list_photos`] finds photographs; says nothing of what it passes over.
pub fn holds_photos(dir: &Path) -> bool {
    look(dir).is_ok()
}

/// The photographs, and what to say of the other files.
fn look(dir: &Path) -> Result<(Vec<PhotoFile>, Vec<String>)> {
    if !dir.exists() {
        return Err(Error::Missing {
            what: "directory of photographs",
            path: dir.to_owned(),
            help: "give a photograph, or a directory with some".to_owned(),
        });
    }
    if !dir.is_dir() && !dir.is_file() {
        return Err(Error::Layout {
            path: dir.to_owned(),
            problem: "is a device or a pipe".to_owned(),
            help: "give a photograph, or a directory with some".to_owned(),
        });
    }
    if !dir.is_dir() {
        let name = dir.file_name().unwrap_or_default();
        let name = crate::raw::names::text(std::os::unix::ffi::OsStrExt::as_bytes(name));
        let id = stem(&name).to_owned();
        let path = dir.to_owned();
        return Ok((vec![PhotoFile { path, id }], Vec::new()));
    }
    let (files, obstructed) = walk(dir)?;
    if let Some((layout, images)) = images_of_dataset(files.iter().map(|file| file.name.clone())) {
        return Err(Error::Layout {
            path: dir.to_owned(),
            problem: format!(
                "is a raw dataset (layout {layout}), and its masks are no photographs"
            ),
            help: format!("give its photographs alone: {}", dir.join(images).display()),
        });
    }
    let mut photos = Vec::new();
    let mut passed: Vec<(&str, String)> = obstructed
        .iter()
        .map(|o| (o.name.as_str(), o.reason.clone()))
        .collect();
    for file in &files {
        let (folder, name) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
        let path = path_of(dir, file);
        if !is_picture(name)
            && let Some(reason) = why_no_picture(name, || content_of(&path))
        {
            passed.push((&file.name, reason));
            continue;
        }
        let id = match folder {
            "" => stem(name).to_owned(),
            folder => format!("{folder}/{}", stem(name)),
        };
        photos.push((file, PhotoFile { path, id }));
    }
    let words = passed::report(&passed, photos.iter().map(|(file, _)| file.name.as_str()));
    if photos.is_empty() {
        let found = match words.first() {
            Some(word) => format!("photographs; {word}"),
            None => "photographs".to_owned(),
        };
        return Err(Error::Empty {
            path: dir.to_owned(),
            looked_for: found,
            help: "give the folder that holds the photographs (png, jpg, tif, bmp, gif, webp, pnm)"
                .to_owned(),
        });
    }
    let mut photos: Vec<PhotoFile> = photos.into_iter().map(|(_, found)| found).collect();
    photos.sort_by(|a, b| (&a.id, &a.path).cmp(&(&b.id, &b.path)));
    Ok((photos, words))
}

fn path_of(dir: &Path, file: &Walked) -> PathBuf {
    match &file.path {
        Some(path) => dir.join(path),
        None => dir.join(&file.name),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0 and so on";

    #[test]
    fn every_kind_of_photograph_is_found_and_the_rest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/deeper")).unwrap();
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM");
        let files: [(&[u8], &[u8]); 11] = [
            (b"a.png", b"x"),
            (b"b.JPE", b"x"),
            (b"c.bmp", b"x"),
            (b"d.webp", b"x"),
            (b"sub/b.jpg", b"x"),
            (b"sub/deeper/noext", JPEG),
            (b"m\xfcller.tif", b"x"),
            (b"e.dcm", &dicom),
            (b"notes.txt", b"x"),
            (b"sub/.hidden.png", b"x"),
            (b"._a.png", b"x"),
        ];
        for (name, content) in files {
            fs::write(dir.path().join(OsStr::from_bytes(name)), content).unwrap();
        }
        let (photos, words) = look(dir.path()).unwrap();
        let ids: Vec<&str> = photos.iter().map(|found| found.id.as_str()).collect();
        assert_eq!(
            ids,
            ["a", "b", "c", "d", "müller", "sub/b", "sub/deeper/noext"]
        );
        assert!(photos.iter().all(|found| found.path.is_file()));
        assert_eq!(words.len(), 3, "{words:?}");
        assert!(
            words[0].starts_with(
                "1 file passed over (a DICOM file: export the photograph as PNG or TIFF"
            ),
            "{words:?}"
        );
        assert_eq!(words[1], "1 file passed over (no picture): notes.txt");
        assert_eq!(words[2], "in sub/ 1 file passed over (hidden): .hidden.png");
        // One alone, whatever its name.
        let alone = look(&photos[4].path).unwrap().0;
        assert_eq!(
            alone,
            [photos[4].clone()].map(|found| PhotoFile {
                id: "müller".to_owned(),
                ..found
            })
        );
    }

    #[test]
    fn folders_without_photographs_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| list_photos(path).unwrap_err().to_string();
        let none = text(&dir.path().join("none"));
        assert!(none.contains("none does not exist\n  help: "), "{none}");
        let empty = text(dir.path());
        assert!(empty.contains("holds no photographs\n  help: "), "{empty}");
        fs::write(dir.path().join("notes.txt"), b"x").unwrap();
        let notes = text(dir.path());
        assert!(
            notes.contains(
                "holds no photographs; 1 file passed over (no picture): notes.txt\n  help: "
            ),
            "{notes}"
        );
        assert!(!holds_photos(dir.path()));
        for name in ["own/images/a.png", "own/masks/MA/a.png"] {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let raw = text(dir.path());
        assert!(
            raw.contains("is a raw dataset (layout folder)") && raw.ends_with("own/images"),
            "{raw}"
        );
        assert!(holds_photos(&dir.path().join("own/images")));
    }
}
