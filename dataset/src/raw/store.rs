//! Where raw files come from: a directory, or a zip archive read in place.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use zip::ZipArchive;

use crate::{Error, Result};

/// No raw file may be larger.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// How deep files are looked for below the given directory.
const MAX_DEPTH: usize = 6;

/// A raw file by its name; the content is read when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path below the store with `/` between parts.
    pub name: String,
    /// Length (unpacked).
    pub bytes: u64,
    /// Changes when the content does: modification time in a directory, CRC-32 in an archive.
    pub stamp: u64,
    /// Position in the archive; unused for a directory.
    position: usize,
}

/// A directory or an archive, with the list of its files in name order.
pub(crate) struct Store {
    path: PathBuf,
    entries: Vec<Entry>,
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
            archive: None,
        };
        if kind.is_dir() {
            list_dir(path, "", 0, &mut store.entries)?;
        } else {
            let mut archive = open_zip(path)?;
            store.entries = list_zip(path, &mut archive)?;
            store.archive = Some(archive);
        }
        store.entries.sort_by(|a, b| a.name.cmp(&b.name));
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

/// Reads the files of a store.
pub(crate) struct Reader<'a> {
    store: &'a Store,
    archive: Option<ZipArchive<SharedFile>>,
}

impl Reader<'_> {
    /// Reads a whole file into `out`, replacing what was there; the reason when that fails.
    pub fn read(&mut self, entry: &Entry, out: &mut Vec<u8>) -> std::result::Result<(), String> {
        out.clear();
        if entry.bytes > MAX_FILE_BYTES {
            return Err(format!(
                "has {} bytes; the limit is {MAX_FILE_BYTES}",
                entry.bytes
            ));
        }
        out.reserve(entry.bytes as usize);
        let read = match &mut self.archive {
            None => {
                let file = File::open(self.store.path.join(&entry.name))
                    .map_err(|e| format!("cannot be opened: {e}"))?;
                file.take(MAX_FILE_BYTES + 1).read_to_end(out)
            }
            // The archive checks the CRC-32 at the end of an entry.
            Some(archive) => {
                let file = archive
                    .by_index(entry.position)
                    .map_err(|e| format!("cannot be unpacked: {e}"))?;
                file.take(MAX_FILE_BYTES + 1).read_to_end(out)
            }
        };
        let read = read.map_err(|e| format!("cannot be read: {e}"))?;
        if read as u64 != entry.bytes {
            return Err(format!("has {read} bytes, {} were announced", entry.bytes));
        }
        Ok(())
    }
}

fn list_dir(root: &Path, below: &str, depth: usize, entries: &mut Vec<Entry>) -> Result<()> {
    let dir = root.join(below);
    for item in fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
        let item = item.map_err(|e| Error::io("list", &dir, e))?;
        // A name that is no text cannot be an image's id, and so is none of ours.
        let Ok(name) = item.file_name().into_string() else {
            continue;
        };
        if is_hidden(&name) {
            continue;
        }
        let name = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        // Follows links; one that leads nowhere is no file.
        let Ok(metadata) = fs::metadata(item.path()) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            list_dir(root, &name, depth + 1, entries)?;
        } else if metadata.is_file() {
            let modified = metadata
                .modified()
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            entries.push(Entry {
                name,
                bytes: metadata.len(),
                stamp: modified.map_or(0, |time| time.as_nanos() as u64),
                position: 0,
            });
        }
    }
    Ok(())
}

fn open_zip(path: &Path) -> Result<ZipArchive<SharedFile>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length = file
        .metadata()
        .map_err(|e| Error::io("open", path, e))?
        .len();
    let shared = SharedFile {
        file: Arc::new(file),
        position: 0,
        length,
    };
    ZipArchive::new(shared).map_err(|e| zip_error(path, &e))
}

fn list_zip(path: &Path, archive: &mut ZipArchive<SharedFile>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for position in 0..archive.len() {
        let file = archive
            .by_index_raw(position)
            .map_err(|e| zip_error(path, &e))?;
        let name = file.name().replace('\\', "/");
        if file.is_file() && !name.split('/').any(is_hidden) {
            let stamp = u64::from(file.crc32());
            entries.push(Entry {
                name,
                bytes: file.size(),
                stamp,
                position,
            });
        }
    }
    Ok(entries)
}

fn zip_error(path: &Path, error: &zip::result::ZipError) -> Error {
    Error::Zip {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Files that systems leave beside the user's own.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX" || name == "Thumbs.db" || name == "desktop.ini"
}

/// A file read at positions of its own, so that threads share one descriptor without a lock.
#[derive(Clone)]
struct SharedFile {
    file: Arc<File>,
    position: u64,
    length: u64,
}

impl Read for SharedFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(out, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
