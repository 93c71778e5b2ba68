//! Where raw files come from: a directory, or a zip archive read in place.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fovea_pictures::decode::{Content, HEAD, sniff};
use zip::ZipArchive;

use super::archive::{self, SharedFile};
use super::entry::{ContentPlace, Entry};
use super::walk::{Obstructed, walk};
use crate::{Error, Result};

/// No raw file may be larger.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// A directory or an archive, with the list of its files in name order.
pub(crate) struct Store {
    path: PathBuf,
    entries: Vec<Entry>,
    obstructed: Vec<Obstructed>,
    archive: Option<ZipArchive<SharedFile>>,
}

impl Store {
    /// Lists the files of `path`: all below a directory, or all in an archive.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                what: "raw dataset",
                path: path.to_owned(),
                help: "give a directory or a .zip; `fovea synth` makes one to try".to_owned(),
            },
            _ => Error::io("open", path, e),
        })?;
        let mut store = Self {
            path: path.to_owned(),
            entries: Vec::new(),
            obstructed: Vec::new(),
            archive: None,
        };
        if kind.is_dir() {
            let (files, obstructed) = walk(path)?;
            let entry = |file: super::walk::Walked| Entry {
                name: file.name,
                bytes: file.bytes,
                stamp: file.modified,
                place: file.path.map_or(ContentPlace::Name, ContentPlace::Path),
            };
            store.entries = files.into_iter().map(entry).collect();
            store.obstructed = obstructed;
        } else if !kind.is_file() {
            return Err(Error::Layout {
                path: path.to_owned(),
                problem: "is a device or a pipe".to_owned(),
                help: "give a directory or a zip archive".to_owned(),
            });
        } else {
            let mut archive = archive::open(path)?;
            (store.entries, store.obstructed) = archive::list(path, &mut archive)?;
            store.archive = Some(archive);
        }
        store.entries.sort_by(|a, b| a.name.cmp(&b.name));
        // `a/b` and `./a/b`, `a\\b`. In a directory, a later error explains names that only look alike.
        let mut pairs = store.entries.windows(2);
        if store.archive.is_some()
            && let Some(pair) = pairs.find(|pair| pair[0].name == pair[1].name)
        {
            return Err(Error::Layout {
                path: path.to_owned(),
                problem: format!("holds two files that unpack as {}", pair[0].name),
                help: "remove one of them from the archive, or unpack it and give the folder"
                    .to_owned(),
            });
        }
        Ok(store)
    }

    /// The directory or archive.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its files in name order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Files and folders that cannot be used, in name order.
    pub fn obstructed(&self) -> &[Obstructed] {
        &self.obstructed
    }

    /// Whether it is an archive.
    pub fn is_archive(&self) -> bool {
        self.archive.is_some()
    }

    /// How a file is named to the user.
    pub fn describe(&self, entry: &Entry) -> String {
        match self.archive {
            Some(_) => format!("{}!{}", self.path.display(), entry.name),
            None => self.path.join(&entry.name).display().to_string(),
        }
    }

    /// A handle that reads files; one per thread.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            store: self,
            archive: self.archive.clone(),
        }
    }
}

/// What the file at `path` is by its first bytes; the reason when they cannot be read.
pub(crate) fn content_of(path: &Path) -> std::result::Result<Content, String> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let read = file.take(HEAD as u64).read_to_end(&mut head);
    read.map_err(|e| format!("cannot be read: {e}"))?;
    Ok(sniff(&head))
}

/// Reads the files of a store.
pub(crate) struct Reader<'a> {
    store: &'a Store,
    archive: Option<ZipArchive<SharedFile>>,
}

impl Reader<'_> {
    /// Reads a whole file into `out`, replacing what was there; the reason when that fails.
    pub fn read(&mut self, entry: &Entry, out: &mut Vec<u8>) -> std::result::Result<(), String> {
        if entry.bytes > MAX_FILE_BYTES {
            return Err(format!(
                "has {} bytes; the limit is {MAX_FILE_BYTES}",
                entry.bytes
            ));
        }
        out.clear();
        out.reserve(entry.bytes as usize);
        let read = self.read_up_to(entry, MAX_FILE_BYTES + 1, out)?;
        if read as u64 != entry.bytes {
            return Err(format!("has {read} bytes, {} were announced", entry.bytes));
        }
        Ok(())
    }

    /// What a file is by its first bytes; the reason when they cannot be read.
    pub fn content(&mut self, entry: &Entry) -> std::result::Result<Content, String> {
        let mut head = Vec::new();
        self.read_up_to(entry, HEAD as u64, &mut head)?;
        Ok(sniff(&head))
    }

    fn read_up_to(
        &mut self,
        entry: &Entry,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> std::result::Result<usize, String> {
        let from_folder = |path: &Path, out: &mut Vec<u8>| {
            let file = File::open(self.store.path.join(path))
                .map_err(|e| format!("cannot be opened: {e}"))?;
            Ok::<_, String>(file.take(limit).read_to_end(out))
        };
        let read = match (&entry.place, &mut self.archive) {
            (ContentPlace::Path(path), _) => from_folder(path, out)?,
            // The archive checks the CRC-32 at the end of an entry.
            (ContentPlace::Packed(position), Some(archive)) => {
                let file = archive
                    .by_index(*position)
                    .map_err(|e| format!("cannot be unpacked: {e}"))?;
                file.take(limit).read_to_end(out)
            }
            (ContentPlace::Locked(lock), _) => return Err(archive::locked(*lock)),
            _ => from_folder(Path::new(&entry.name), out)?,
        };
        read.map_err(|e| format!("cannot be read: {e}"))
    }
}
