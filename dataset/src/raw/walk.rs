//! The files below a directory, and why some are unreachable.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::names;
use crate::{Error, Result};

/// How deep files are looked for below the given directory.
const MAX_DEPTH: usize = 16;

/// A file below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    /// Path below the directory as text, with `/` between parts.
    pub name: String,
    /// The same as bytes, where it is no UTF-8.
    pub path: Option<PathBuf>,
    /// Length in bytes.
    pub bytes: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified: u64,
}

/// A file or folder that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstructed {
    /// Path below the store as text, with `/` between parts.
    pub name: String,
    /// "a link that leads nowhere"
    pub reason: String,
    /// Whether it may be one of the files that are looked for: hidden ones are not.
    pub matters: bool,
}

/// Lists a directory and all below it, links followed; hidden files are among the obstructed, what systems leave behind
/// is in neither list. In name order.
///
/// # Errors
/// When `root` itself cannot be listed.
pub(crate) fn walk(root: &Path) -> Result<(Vec<Walked>, Vec<Obstructed>)> {
    let failed = |e| Error::io("list", root, e);
    let mut walker = Walker {
        root,
        above: vec![identity(&fs::metadata(root).map_err(failed)?)],
        files: Vec::new(),
        obstructed: Vec::new(),
    };
    walker.folder(Path::new("")).map_err(failed)?;
    let Walker {
        mut files,
        mut obstructed,
        ..
    } = walker;
    files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    obstructed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((files, obstructed))
}

struct Walker<'a> {
    root: &'a Path,
    /// Folders from the root to the present one: one that comes again is a circle.
    above: Vec<(u64, u64)>,
    files: Vec<Walked>,
    obstructed: Vec<Obstructed>,
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Walker<'_> {
    fn folder(&mut self, below: &Path) -> io::Result<()> {
        for item in fs::read_dir(self.root.join(below))? {
            let name = item?.file_name();
            let text = names::text(name.as_bytes());
            if names::is_litter(&text) {
                continue;
            }
            let path = below.join(&name);
            if text.starts_with('.') {
                self.obstruct(&path, "hidden".to_owned(), false);
                continue;
            }
            match fs::metadata(self.root.join(&path)) {
                Ok(metadata) if metadata.is_dir() => self.enter(&path, &metadata),
                Ok(metadata) if metadata.is_file() => self.files.push(walked(path, &metadata)),
                Ok(_) => self.obstruct(&path, "a pipe, socket or device".to_owned(), true),
                Err(error) => {
                    let reason = match error.kind() {
                        io::ErrorKind::NotFound => "a link that leads nowhere".to_owned(),
                        _ if error.raw_os_error() == Some(LOOP) => CIRCLE.to_owned(),
                        _ => format!("cannot be looked at: {error}"),
                    };
                    self.obstruct(&path, reason, true);
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, path: &Path, metadata: &Metadata) {
        let identity = identity(metadata);
        if self.above.contains(&identity) {
            return self.obstruct(path, CIRCLE.to_owned(), false);
        }
        if self.above.len() > MAX_DEPTH {
            let reason = format!("a folder deeper than {MAX_DEPTH} others");
            return self.obstruct(path, reason, true);
        }
        self.above.push(identity);
        if let Err(error) = self.folder(path) {
            self.obstruct(
                path,
                format!("a folder that cannot be listed: {error}"),
                true,
            );
        }
        self.above.pop();
    }

    fn obstruct(&mut self, path: &Path, reason: String, matters: bool) {
        self.obstructed.push(Obstructed {
            name: text_of(path),
            reason,
            matters,
        });
    }
}

/// ELOOP: links that lead to each other.
const LOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

const CIRCLE: &str = "a link that leads in a circle";

fn walked(path: PathBuf, metadata: &Metadata) -> Walked {
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Walked {
        name: text_of(&path),
        path: path.to_str().is_none().then_some(path),
        bytes: metadata.len(),
        modified: modified.map_or(0, |time| time.as_nanos() as u64),
    }
}

/// Each part of a path by itself: one may be UTF-8 and the next not.
fn text_of(path: &Path) -> String {
    let parts = path.iter().map(|part| names::text(part.as_bytes()));
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_kind_of_obstacle_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("sub")).unwrap();
        for name in ["a.png", "sub/b", ".hidden.png", ".DS_Store", "sub/._b"] {
            fs::write(root.join(name), b"x").unwrap();
        }
        fs::write(root.join(OsStr::from_bytes(b"m\xfcller.png")), b"xyz").unwrap();
        symlink("nowhere.png", root.join("c.png")).unwrap();
        symlink("..", root.join("sub/up")).unwrap();
        symlink("self", root.join("self")).unwrap();
        symlink("../a.png", root.join("sub/linked.png")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let deep = root.join(vec!["d"; MAX_DEPTH + 1].join("/"));
        fs::create_dir_all(&deep).unwrap();

        let (files, obstructed) = walk(root).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.png", "müller.png", "sub/b", "sub/linked.png"]);
        assert_eq!((files[1].bytes, files[0].path.is_none()), (3, true));
        let path = files[1].path.clone().unwrap();
        assert_eq!(fs::read(root.join(path)).unwrap(), b"xyz");
        let told: Vec<_> = obstructed
            .iter()
            .map(|o| (o.name.as_str(), o.reason.as_str(), o.matters))
            .collect();
        let deepest = vec!["d"; MAX_DEPTH + 1].join("/");
        assert_eq!(
            told,
            [
                (".hidden.png", "hidden", false),
                ("c.png", "a link that leads nowhere", true),
                (&*deepest, "a folder deeper than 16 others", true),
                ("self", CIRCLE, true),
                ("socket", "a pipe, socket or device", true),
                ("sub/up", CIRCLE, false),
            ]
        );
        drop(socket);
    }
}
