//! Small files: bounded reads, atomic writes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Cap for the JSON and token files of a run directory, in bytes.
const SMALL_FILE_MAX: u64 = 16 << 20;

/// Reads a file of at most 16 MiB.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_MAX)
        .read_to_end(&mut bytes)
        .map_err(Error::file("read", path))?;
    Ok(bytes)
}

/// How far a write has to have gone when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Whole or not at all for every reader, but perhaps lost with the machine.
    Atomic,
    /// Also on disk, name included.
    Synced,
}

/// Writes a file beside its place and renames it, so that no reader sees half of it. Its mode is
/// `0600` when `private`, else `0644`.
pub(crate) fn write_atomic(
    path: &Path,
    bytes: &[u8],
    durability: Durability,
    private: bool,
) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let dir = path.parent().unwrap_or(Path::new("."));
    // A temporary file is created with mode 0600, so a secret is never readable by others.
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(dir)
        .map_err(Error::file("create a file beside", path))?;
    file.write_all(bytes).map_err(Error::file("write", path))?;
    if !private {
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))
            .map_err(Error::file("set the mode of", path))?;
    }
    if durability == Durability::Synced {
        file.as_file()
            .sync_all()
            .map_err(Error::file("sync", path))?;
    }
    file.persist(path)
        .map_err(|error| Error::file("rename into", path)(error.error))?;
    if durability == Durability::Synced {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::file("sync the directory", dir))
}
