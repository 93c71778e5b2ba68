//! A raw file: its name, and where its content is.

use std::path::PathBuf;

/// A raw file by its name; the content is read when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path below the store with `/` between parts.
    pub name: String,
    /// Length in bytes; in an archive, once unpacked.
    pub bytes: u64,
    /// Changes when the content does: modification time in a directory, CRC-32 in an archive.
    pub stamp: u64,
    pub(super) place: ContentPlace,
}

impl Entry {
    /// A file of which nothing but the name counts.
    pub(super) fn named(name: String) -> Self {
        Self {
            name,
            bytes: 0,
            stamp: 0,
            place: ContentPlace::Name,
        }
    }
}

/// Where the content of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContentPlace {
    /// In a directory, at its name.
    Name,
    /// In a directory, at these bytes, which are no UTF-8.
    Path(PathBuf),
    /// In an archive, at this position.
    Packed(usize),
    /// In an archive, as nothing that can be unpacked.
    Locked(UnpackObstacle),
}

/// Why an entry of an archive cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UnpackObstacle {
    Encrypted,
    /// Number of a method of compression.
    Method(u16),
}
