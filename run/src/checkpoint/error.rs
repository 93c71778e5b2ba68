//! What can be wrong with a checkpoint, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::FORMAT_VERSION;

/// The result of a checkpoint operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system is full, or the quota is used up.
    #[error(
        "no space left for {path}: the checkpoint needs {needed_bytes} bytes and the file system has \
         {free_bytes} free ({source})\n  help: free some space or lower checkpoint.keep_last; checkpoints \
         written before this one are still valid"
    )]
    NoSpace {
        /// The file being written.
        path: PathBuf,
        /// Size of the whole checkpoint, in bytes.
        needed_bytes: u64,
        /// Free for this user after the unfinished files were removed, in bytes.
        free_bytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },

    /// Any other failure of the file system.
    #[error("could not {what} {path}: {source}\n  help: check that the run directory exists, belongs to you \
             and is on a healthy file system", path = path.display())]
    Io {
        /// What was tried: "read", "write", ...
        what: &'static str,
        /// The file or directory that could not be used.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },

    /// The directory is no checkpoint, or one that was never finished.
    #[error("{path} is not a complete checkpoint: {reason}\n  help: give a directory step-* of RUN/checkpoints \
             that has a file COMPLETE; an unfinished one can be deleted", path = path.display())]
    Incomplete {
        /// Directory of the checkpoint.
        path: PathBuf,
        /// Which of its files is missing or does not fit.
        reason: String,
    },

    /// A file does not hold what was written.
    #[error("{path} is damaged: {reason}\n  help: use the checkpoint before it, and look after the disk",
            path = path.display())]
    Damaged {
        /// The file that the error is about.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A file that holds no weights in a form that is read.
    #[error("{path}: {what}\n  help: {help}", path = path.display())]
    Foreign {
        /// The file that the error is about.
        path: PathBuf,
        /// What it is, or what is wrong with it.
        what: String,
        /// What to do about it, as an instruction.
        help: &'static str,
    },

    /// Written by a version of Fovea that this one does not know.
    #[error("{path} was made by another version of fovea: it has format version {found}, this one reads \
             version {known}\n  help: {help}", path = path.display(), known = FORMAT_VERSION, help = version_help(*found))]
    Version {
        /// The file that the error is about.
        path: PathBuf,
        /// Format version that the file names.
        found: u64,
    },

    /// There are checkpoints, and none of them can be used.
    #[error("{dir}: {none} because {newest}\n  help: bring a checkpoint \
             back from a backup, or start a new run with another --out; nothing was changed here",
            dir = dir.display(), none = none_of(*count))]
    NoneUsable {
        /// The directory of checkpoints.
        dir: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest one.
        newest: String,
    },

    /// A tensor whose shape and data do not belong together, or of a type Fovea has no use for.
    #[error(
        "tensor {name}: {reason}\n  help: fovea reads f32, f16, bf16 and i64; convert the weights to f32"
    )]
    Tensor {
        /// Name of the tensor in the file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The thread that writes checkpoints has ended before it was told to.
    #[error(
        "the thread that writes checkpoints is gone\n  help: this is a bug; the newest complete checkpoint \
             is still valid: resume from it"
    )]
    WriterGone,
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    /// Whether the disk (or the quota) is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// Whether what was given is to blame, and not the machine: no retry helps.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Incomplete { .. }
            | Self::Damaged { .. }
            | Self::Foreign { .. }
            | Self::Version { .. }
            | Self::NoneUsable { .. }
            | Self::Tensor { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NoSpace { .. } | Self::WriterGone => false,
        }
    }

    /// What is wrong, without the advice: fit for being quoted in another message.
    pub fn headline(&self) -> String {
        let text = self.to_string();
        text.split("\n  help: ")
            .next()
            .unwrap_or_default()
            .to_string()
    }
}

/// Whether the disk is full or a quota used up (ENOSPC, EDQUOT).
pub(super) fn means_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn version_help(found: u64) -> &'static str {
    if found > u64::from(FORMAT_VERSION) {
        "use the version of fovea that wrote it, or a newer one"
    } else {
        "use the version of fovea that wrote it, or start a new run with another --out; eval and predict \
         take its weights.safetensors"
    }
}

fn none_of(checkpoints: usize) -> String {
    match checkpoints {
        1 => "the only checkpoint cannot be used".to_owned(),
        n => format!("none of the {n} checkpoints can be used, the newest"),
    }
}
