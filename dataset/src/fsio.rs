//! Files that outlive the process: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::{Error, Result};

/// Replaces `path` by `bytes` so that a reader, also after a crash, sees the old content or the new and nothing else.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    if path.is_dir() {
        return Err(Error::io("write", path, ErrorKind::IsADirectory.into()));
    }
    let write = || {
        let mut file = File::create(aside).map_err(|e| Error::io("create", path, e))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::writing(path, bytes.len() as u64, e))?;
        rename(aside, path)
    };
    write().inspect_err(|_| {
        // The error to report is the one that we have.
        let _ = fs::remove_file(aside);
    })
}

/// Renames within one directory and makes the new name durable.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::io("sync", dir, e))
}

/// Reads a whole file of at most `limit` bytes; `None` when it is longer.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// blake3 of a file's content, hex; read in pieces, so the file may be larger than memory.
pub(crate) fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(n) => hasher.update(&piece[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io("read", path, e)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_and_leaves_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read_capped(&path, 3).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(read_capped(&path, 2).unwrap(), None);
        assert_eq!(
            hash_file(&path).unwrap(),
            blake3::hash(b"two").to_hex().to_string()
        );
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomic(&path, b"one").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(
                "taken: is a directory\n  help: there is a directory where a file is needed"
            ),
            "{text}"
        );
        assert!(error.is_usage());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        let error = std::fs::write("/dev/full", b"x").unwrap_err();
        let text = Error::writing("out/shard", 2_500_000, error).to_string();
        assert!(
            text.contains("no space left for out/shard: 2.5 MB to write"),
            "{text}"
        );
        assert!(text.contains("\n  help: free some space"), "{text}");
    }
}
