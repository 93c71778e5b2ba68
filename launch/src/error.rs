//! Errors of starting and keeping processes.

/// Result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why processes of a run could not be started, or how they failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordinator refused, vanished or ended the run.
    #[error(transparent)]
    Coordinator(#[from] fovea_coordinator::Error),
    /// A file of the run directory cannot be used.
    #[error(transparent)]
    Run(#[from] fovea_run::Error),
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
        /// What the user must do, as an instruction.
        help: String,
    },
}

impl Error {
    /// Whether the user's input is to blame: no retry helps.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage { .. } => true,
            Self::Coordinator(error) => error.is_usage(),
            Self::Run(_) | Self::Child(_) => false,
        }
    }
}
