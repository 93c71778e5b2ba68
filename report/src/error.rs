//! Why a report could not be written.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a report could not be written, or a file of a run not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory does not hold a run.
    #[error(
        "{path}: {reason}\n  help: give the directory that `fovea train --out` wrote, it holds config.toml"
    )]
    NotARun {
        /// The path that was given.
        path: PathBuf,
        /// What is missing there, as a clause.
        reason: &'static str,
    },
    /// `metrics.csv` is damaged, or scores could not be computed from the predictions.
    #[error(transparent)]
    Metrics(#[from] fovea_run::metrics::Error),
    /// The record of the run's task cannot be read.
    #[error(transparent)]
    Run(#[from] fovea_run::Error),
    /// A whole line of a CSV file does not hold what it should.
    #[error(
        "{path}: line {line}: {reason}\n  help: the file was edited or damaged; repair or delete that line, or delete the file to have a report without it"
    )]
    Row {
        /// The file that the error is about.
        path: PathBuf,
        /// Number of the line, the header being 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(
        "{path}: cannot {action}: {source}\n  help: check that the run directory is readable and writable and that the disk is not full"
    )]
    Io {
        /// The file that the error is about.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The reason that the operating system gave.
        source: io::Error,
    },
    /// A picture could not be drawn or encoded.
    #[error(
        "cannot draw a picture of the report: {0}\n  help: this is a defect; please report it with the run's CSV files"
    )]
    Draw(String),
}

impl Error {
    /// Whether what was given is to blame, and not the machine: no retry helps.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::NotARun { .. } | Self::Row { .. } | Self::Run(_) => true,
            Self::Metrics(error) => error.is_usage(),
            Self::Io { .. } | Self::Draw(_) => false,
        }
    }
}

/// For `map_err`: names the file and what was tried.
pub(super) fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        action,
        source,
    }
}
