//! Small files of a run directory.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// Cap for the JSON and token files of a run directory, in bytes.
const SMALL_FILE_MAX: u64 = 16 << 20;

/// Reads a file of at most 16 MiB.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    fovea_files::read_capped(path, SMALL_FILE_MAX)?.ok_or_else(|| {
        let reason = format!("it is larger than {SMALL_FILE_MAX} bytes");
        Error::file("read", path)(io::Error::new(io::ErrorKind::InvalidData, reason))
    })
}
