//! Errors of starting and keeping processes.

use std::path::PathBuf;

/// Result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why processes of a run could not be started, or how they failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordinator refused, vanished or ended the run.
    #[error(transparent)]
    Coordinator(#[from] fovea_coordinator::Error),
    /// A file of the run directory cannot be used.
    #[error("{path}: {what}\n  help: {help}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, with the operating system's words.
        what: String,
        /// What to do.
        help: String,
    },
    /// A process that was started failed.
    #[error(
        "{0}\n  help: mend the cause, then go on from the newest checkpoint with `fovea train --out RUN --resume`"
    )]
    Child(String),
    /// The request makes no sense as given.
    #[error("{what}\n  help: {help}")]
    Usage {
        /// What was asked for and why it cannot be done.
        what: String,
        /// What to do.
        help: String,
    },
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

    /// Whether the user's input is to blame: no retry helps.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage { .. } => true,
            Self::Coordinator(error) => error.is_usage(),
            Self::File { .. } | Self::Child(_) => false,
        }
    }
}
