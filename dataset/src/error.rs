//! What can go wrong with a dataset, worded so that users can fix it.
//!
//! Every message has two parts: what is wrong, where, with the numbers; then a line `  help: ` with what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One raw file that could not be used, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFile {
    /// The file; `archive.zip!entry` inside a zip.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl BadFile {
    /// The file at `path`, and of its error what is wrong, without the advice.
    pub fn of(path: &Path, error: &Error) -> Self {
        let path = path.display().to_string();
        let text = error.to_string();
        let headline = text.split("\n  help: ").next().unwrap_or_default();
        let reason = headline
            .strip_prefix(&format!("{path}: "))
            .unwrap_or(headline);
        Self {
            reason: reason.to_owned(),
            path,
        }
    }
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", printable(&self.path), self.reason)
    }
}

/// Everything that this crate reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}\n  help: {}", path.display(), io_help(source))]
    Io {
        /// The operation as a verb ("read", "create").
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system answered.
        source: io::Error,
    },

    /// The disk has no room for what must be written.
    #[error(
        "no space left for {}: {} to write{}\n  help: free some space, or choose another place, and run the same command again; finished shards are kept",
        path.display(), megabytes(*needed_bytes), available_bytes.map(|b| format!(", {} available", megabytes(b))).unwrap_or_default()
    )]
    DiskFull {
        /// The file or directory that was to be written.
        path: PathBuf,
        /// Bytes that had to be written.
        needed_bytes: u64,
        /// Bytes available to this user, where the system tells.
        available_bytes: Option<u64>,
    },

    /// An option has a value that cannot work.
    #[error("{option} is {value}, but {limit}\n  help: {help}")]
    Option {
        /// The option as typed on the command line ("--size").
        option: &'static str,
        /// The value that was given, as it is shown.
        value: String,
        /// The rule it breaks, with its numbers.
        limit: String,
        /// An instruction for the user, without `help: `.
        help: String,
    },

    /// A path that must exist does not.
    #[error("{what} {} does not exist\n  help: check the path; {help}", path.display())]
    Missing {
        /// What the path should be ("dataset directory").
        what: &'static str,
        /// The path as it was given.
        path: PathBuf,
        /// An instruction for the user, without `help: `.
        help: String,
    },

    /// A directory or archive with nothing usable inside.
    #[error("{} holds no {looked_for}\n  help: {help}", path.display())]
    Empty {
        /// The directory or archive.
        path: PathBuf,
        /// What was looked for.
        looked_for: String,
        /// An instruction for the user, without `help: `.
        help: String,
    },

    /// A raw dataset does not have the shape its layout asks for.
    #[error("{}: {problem}\n  help: {help}", path.display())]
    Layout {
        /// The raw dataset: a directory or an archive.
        path: PathBuf,
        /// What does not fit.
        problem: String,
        /// An instruction for the user, without `help: `.
        help: String,
    },

    /// A zip archive that cannot be read.
    #[error("{} is not a readable zip archive: {reason}\n  help: download or copy it again; `unzip -t` on it lists what is damaged", path.display())]
    Zip {
        /// The archive as it was given.
        path: PathBuf,
        /// What the reader of archives found.
        reason: String,
    },

    /// A line of a label table that cannot be read.
    #[error(
        "{path}, line {line}: {reason}\n  help: each line is `name.png,grade` with a grade from 0 to 4; the first may hold headings"
    )]
    Csv {
        /// The table; `archive.zip!entry` inside a zip.
        path: String,
        /// Line number, from 1.
        line: u64,
        /// What is wrong with it, as a clause that follows its name.
        reason: String,
    },

    /// A single picture that cannot be decoded.
    #[error(
        "{path}: {reason}\n  help: open it in a viewer: save it anew from there, or copy it again from its source"
    )]
    Picture {
        /// The file that holds it; `archive.zip!entry` inside a zip.
        path: String,
        /// What is wrong with it, as a clause that follows its name.
        reason: String,
    },

    /// Raw files that could not be used; nothing was finished.
    #[error(
        "{images} of the {total} images in {} cannot be used{}:{}\n  help: replace these files or remove them (an image together with its masks), then run the same command again; finished shards are kept",
        path.display(), if *more { " (stopped looking there)" } else { "" }, list(files)
    )]
    BadFiles {
        /// The raw dataset: a directory or an archive.
        path: PathBuf,
        /// All images of the raw dataset.
        total: usize,
        /// Those among them with a bad file: their own or a mask's.
        images: usize,
        /// The bad files, in dataset order; at most [`crate::MAX_BAD_FILES`].
        files: Vec<BadFile>,
        /// True when there may be more that were not looked at.
        more: bool,
    },

    /// Photographs that could not be used; the others were.
    #[error(
        "{} of the {total} photographs cannot be used:{}\n  help: replace these files or remove them, and run the same command again; {}",
        files.len(), list(files), if files.len() < *total { "the others are in what was written" } else { "nothing was written" }
    )]
    BadPhotos {
        /// All photographs that were looked at.
        total: usize,
        /// The bad ones, in the order given.
        files: Vec<BadFile>,
    },

    /// The output directory holds something else.
    #[error(
        "{} is not empty and holds no prepared dataset (found {found})\n  help: choose a new directory, or empty this one yourself",
        path.display()
    )]
    Occupied {
        /// The directory that was to hold the dataset.
        path: PathBuf,
        /// One thing that is in it.
        found: String,
    },

    /// The output directory holds a dataset made with other options.
    #[error(
        "{} already holds {} made otherwise: {differences}\n  help: choose another directory, use the options it was made with, or delete it",
        path.display(), if *complete { "a prepared dataset" } else { "an unfinished dataset" }
    )]
    Otherwise {
        /// The directory that was to hold the dataset.
        path: PathBuf,
        /// Each difference as "size 1280 there, 640 asked for".
        differences: String,
        /// Whether the dataset there is complete.
        complete: bool,
    },

    /// Another process is writing the output directory.
    #[error("another process is preparing into {}\n  help: wait for it, or choose another directory", path.display())]
    Busy {
        /// The directory that was to hold the dataset.
        path: PathBuf,
    },

    /// A manifest that cannot be right.
    #[error("{}: {reason}\n  help: the manifest is damaged or was edited: run `fovea prepare` into a new directory", path.display())]
    Manifest {
        /// The manifest, or the record of an unfinished run.
        path: PathBuf,
        /// What is wrong with it, as a clause that follows its name.
        reason: String,
    },

    /// A manifest written by another version of the format.
    #[error(
        "{} has format version {found}; this program reads versions 1 to {supported}\n  help: {}",
        path.display(),
        if *found > u64::from(*supported) { "use a newer fovea, or run `fovea prepare` again with this one" } else { "run `fovea prepare` again with this fovea" }
    )]
    ManifestVersion {
        /// The manifest, or the record of an unfinished run.
        path: PathBuf,
        /// The version it states.
        found: u64,
        /// The newest version that this program reads.
        supported: u32,
    },

    /// A directory that was never finished.
    #[error("{} is an unfinished dataset: it has no manifest.json yet\n  help: run the `fovea prepare` command that began it again; it goes on where it stopped", path.display())]
    Unfinished {
        /// The directory of the unfinished dataset.
        path: PathBuf,
    },

    /// A shard file with the wrong length.
    #[error("shard {} has {found} bytes, its manifest says {expected}\n  help: {SHARD_HELP}", path.display())]
    ShardSize {
        /// The shard's file, staged or not.
        path: PathBuf,
        /// Bytes by the manifest.
        expected: u64,
        /// Its length on the disk.
        found: u64,
    },

    /// A shard file whose content changed.
    #[error("shard {} is damaged: its blake3 is {found}, its manifest says {expected}\n  help: {SHARD_HELP}", path.display())]
    ShardHash {
        /// The shard's file, staged or not.
        path: PathBuf,
        /// blake3 by the manifest, hex.
        expected: String,
        /// blake3 of the file, hex.
        found: String,
    },

    /// A copy that does not hold what was written to it.
    #[error("the copy {} came out damaged {attempts} times: the disk below it does not keep what is written\n  help: stage to another directory or not at all, and tell the administrator of this node", path.display())]
    BadCopy {
        /// The copy of a shard that was given up.
        path: PathBuf,
        /// How often it was written.
        attempts: u32,
    },

    /// A directory for a staged copy that somebody else made.
    #[error("{} belongs to user {owner}, not to you (user {user}): a copy in it would not be safe\n  help: stage to a directory that only you can write", path.display())]
    Foreign {
        /// The directory that would hold the copy.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// The id of the user who runs this process.
        user: u32,
    },

    /// A shard file whose inside is not what its manifest describes.
    #[error("shard {}: {reason}\n  help: {SHARD_HELP}", path.display())]
    ShardFormat {
        /// The shard's file, staged or not.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

const SHARD_HELP: &str = "run the `fovea prepare` command that made this dataset again; it remakes damaged shards and keeps the others";

impl Error {
    /// Whether what was given (options, raw files, a prepared dataset) is to blame, and not the machine: no retry
    /// helps. Photographs of which some could be used are a failure in part.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::AlreadyExists
            ),
            Self::DiskFull { .. } | Self::BadCopy { .. } | Self::Foreign { .. } => false,
            Self::BadPhotos { total, files } => files.len() == *total,
            _ => true,
        }
    }

    /// Wraps what the system said; a full disk keeps its own kind of message.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// Wraps a failed write of `bytes` bytes: a full disk or quota becomes [`Error::DiskFull`].
    pub fn writing(path: impl AsRef<Path>, bytes: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: path.as_ref().to_owned(),
                needed_bytes: bytes,
                available_bytes: None,
            },
            _ => Self::io("write", path, source),
        }
    }
}

impl From<fovea_files::Error> for Error {
    fn from(error: fovea_files::Error) -> Self {
        match error.bytes {
            0 => Self::io(error.action, error.path, error.source),
            bytes => Self::writing(error.path, bytes, error.source),
        }
    }
}

/// So many files with one reason are listed one by one.
const ALIKE: usize = 5;

fn io_help(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check who owns it and its mode",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space or choose another place, and run the same command again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "choose a place that can be written",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "there is a file where a directory is needed: choose another path"
        }
        io::ErrorKind::IsADirectory => {
            "there is a directory where a file is needed: name a file in it"
        }
        _ => "check the disk and the mount; the system's log may say more",
    }
}

/// A name without characters that would act on a terminal.
fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// A line per file; one line for all of more than [`ALIKE`] files with the same reason.
fn list(files: &[BadFile]) -> String {
    let mut lines = String::new();
    let mut told: Vec<&str> = Vec::new();
    for file in files {
        let alike: Vec<&BadFile> = files.iter().filter(|f| f.reason == file.reason).collect();
        if alike.len() <= ALIKE {
            lines += &format!("\n    {file}");
        } else if !told.contains(&file.reason.as_str()) {
            told.push(&file.reason);
            let names: Vec<&str> = alike.iter().take(ALIKE).map(|f| f.path.as_str()).collect();
            lines += &format!(
                "\n    {} files, {}, ...: {}",
                alike.len(),
                names.join(", "),
                file.reason
            );
        }
    }
    lines
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_act_on_the_terminal() {
        let bad = BadFile {
            path: "a\n\u{1b}[31mü.png".to_owned(),
            reason: "is cut".to_owned(),
        };
        assert_eq!(bad.to_string(), "a\\n\\u{1b}[31mü.png: is cut");
    }

    #[test]
    fn a_reason_that_many_files_share_is_told_once() {
        let bad = |n: usize, reason: &str| BadFile {
            path: format!("{n}.tif"),
            reason: reason.to_owned(),
        };
        let files = [
            bad(0, "holds 2 pictures"),
            bad(1, "is cut"),
            bad(2, "is cut"),
        ];
        assert_eq!(
            list(&files),
            "\n    0.tif: holds 2 pictures\n    1.tif: is cut\n    2.tif: is cut"
        );
        let files: Vec<BadFile> = (0..20)
            .map(|n| bad(n, if n == 7 { "is cut" } else { "holds 2 pictures" }))
            .collect();
        assert_eq!(
            list(&files),
            "\n    19 files, 0.tif, 1.tif, 2.tif, 3.tif, 4.tif, ...: holds 2 pictures\n    7.tif: is cut"
        );
    }
}
