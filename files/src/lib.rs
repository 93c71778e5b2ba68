//! A file is complete or absent. Every file that Fovea replaces is replaced here: written next to its place,
//! synced if requested, renamed.
//!
//! Errors name the action, the path and the system's reason; the rooms turn them into their own errors, which say what
//! to do.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes read at a time while hashing.
const PIECE: usize = 1 << 20;

/// Result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on a file that the system refused.
#[derive(Debug)]
pub struct Error {
    /// What was tried, as a verb in front of the path: "create", "write", "sync".
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Bytes that were to be written; 0 where nothing was.
    pub bytes: u64,
    /// The system's reason.
    pub source: io::Error,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot {} {}: {}",
            self.action,
            self.path.display(),
            self.source
        )
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Error {
    /// A closure for `map_err`.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            bytes: 0,
            source,
        }
    }

    /// The same for a write of `bytes`.
    fn writing(path: &Path, bytes: &[u8]) -> impl FnOnce(io::Error) -> Self {
        let bytes = bytes.len() as u64;
        let failed = Self::of("write", path);
        move |source| Self {
            bytes,
            ..failed(source)
        }
    }
}

/// How far a write has gone when [`replace`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every reader sees the old content or the new, but a crash of the machine may lose the new one.
    Atomic,
    /// The new content and its name are on disk.
    Synced,
}

/// Who may read the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everyone who may enter the directory: `0644`.
    Shared,
    /// The owner: `0600`. The file is never readable by others, not even while it is written.
    Private,
    /// As these permissions say.
    Exactly(u32),
}

/// Replaces `path` by `bytes`: a reader sees the old content or the new and nothing else. Several processes may do so at
/// once; the last one wins. Returns the new file, open for writing behind its last byte. After an error nothing is left
/// beside `path`.
///
/// # Errors
/// The first operation that the system refused.
pub fn replace(path: &Path, bytes: &[u8], durability: Durability, mode: Mode) -> Result<File> {
    let dir = parent(path);
    // A temporary file is private until its mode is set.
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(dir)
        .map_err(Error::of("create a file beside", path))?;
    file.write_all(bytes).map_err(Error::writing(path, bytes))?;
    let mode = match mode {
        Mode::Shared => Some(0o644),
        Mode::Private => None,
        Mode::Exactly(mode) => Some(mode),
    };
    if let Some(mode) = mode {
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))
            .map_err(Error::of("set the mode of", path))?;
    }
    if durability == Durability::Synced {
        file.as_file().sync_all().map_err(Error::of("sync", path))?;
    }
    let file = file
        .persist(path)
        .map_err(|e| Error::of("rename into", path)(e.error))?;
    if durability == Durability::Synced {
        sync_dir(dir)?;
    }
    Ok(file)
}

/// Replaces `path` by `bytes`, on disk, by way of `path.tmp`: for a directory in which only one process writes, so that
/// what a killed one has left is overwritten by the next.
///
/// # Errors
/// The first operation that the system refused.
pub fn replace_alone(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    if path.is_dir() {
        return Err(Error::of("write", path)(ErrorKind::IsADirectory.into()));
    }
    let write = || {
        let mut file = File::create(aside).map_err(Error::of("create", path))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(Error::writing(path, bytes))?;
        rename(aside, path)
    };
    write().inspect_err(|_| {
        // The error to report is the one that we have.
        let _ = fs::remove_file(aside);
    })
}

/// Renames within one directory and makes the new name durable.
///
/// # Errors
/// When the system refuses.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::of("rename", from))?;
    sync_parent(to)
}

/// Makes the name of a file durable.
///
/// # Errors
/// When the system refuses.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent(path))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// When the system refuses.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(Error::of("sync", dir))
}

/// Reads a whole file of at most `limit` bytes; `None` when it is longer.
///
/// # Errors
/// When it cannot be opened or read.
pub fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = File::open(path).map_err(Error::of("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::of("read", path))?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// blake3 of a file's content, hex; read in pieces, so the file may be larger than memory.
///
/// # Errors
/// When it cannot be opened or read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::of("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(n) => hasher.update(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::of("read", path)(e)),
        };
    }
}

/// The directory that `path` is in.
fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        replace_alone(&path, b"one").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"two", Durability::Synced, Mode::Private).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode()), (b"two".to_vec(), 0o600));
        let mut file = replace(&path, b"three", Durability::Atomic, Mode::Shared).unwrap();
        file.write_all(b" four").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode()),
            (b"three four".to_vec(), 0o644)
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            read_capped(&path, 10).unwrap().as_deref(),
            Some(&b"three four"[..])
        );
        assert_eq!(read_capped(&path, 9).unwrap(), None);
        assert_eq!(
            hash_file(&path).unwrap(),
            blake3::hash(b"three four").to_hex().to_string()
        );
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = replace_alone(&path, b"one").unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::IsADirectory);
        let error = replace(&path, b"one", Durability::Atomic, Mode::Shared).unwrap_err();
        assert_eq!((error.action, &error.path), ("rename into", &path));
        assert!(error.to_string().starts_with("cannot rename into /"));
        let nowhere = dir.path().join("none/a");
        let error = replace(&nowhere, b"one", Durability::Atomic, Mode::Shared).unwrap_err();
        assert_eq!(
            (error.action, error.source.kind()),
            ("create a file beside", ErrorKind::NotFound)
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
