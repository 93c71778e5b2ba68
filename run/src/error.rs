//! Why a file of a run directory is unusable. Configuration, metrics and checkpoints have their own errors.

use std::path::PathBuf;

/// Result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A file of the run directory that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{path}: {what}\n  help: {help}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, with the operating system's words.
        what: String,
        /// What to do about it, as an instruction.
        help: String,
    },
    /// An invariant of this program does not hold.
    #[error("internal error: {0}\n  help: please report this with the command that led to it")]
    Internal(String),
}

impl Error {
    /// Shorthand for [`Error::File`] from an IO error.
    pub fn file(path: impl Into<PathBuf>, error: &std::io::Error, help: &str) -> Self {
        Self::File {
            path: path.into(),
            what: error.to_string(),
            help: help.to_owned(),
        }
    }
}
