//! Errors of this crate. Every message gives the problem, the place and the numbers; its last line says what to do.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of training, evaluation or prediction.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file, key or preset is wrong.
    #[error(transparent)]
    Config(#[from] fovea_run::config::Error),
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] fovea_dataset::Error),
    /// The coordinator refused, vanished or ended the run.
    #[error(transparent)]
    Coordinator(#[from] fovea_coordinator::Error),
    /// A collective failed or was aborted.
    #[error(transparent)]
    Collective(fovea_collectives::Error),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] fovea_run::checkpoint::Error),
    /// The newest checkpoint that the run recorded is not on disk.
    #[error("checkpoint of step {step}: {source}")]
    Unsaved {
        /// Number of committed steps of that checkpoint.
        step: u64,
        /// Why it is not on disk, and what to do.
        source: fovea_run::checkpoint::Error,
    },
    /// A file of the run directory is unusable.
    #[error(transparent)]
    Run(#[from] fovea_run::Error),
    /// Metrics cannot be computed or stored.
    #[error(transparent)]
    Metrics(#[from] fovea_run::metrics::Error),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] fovea_kernels::Error),
    /// The GPU, its driver or its compiler failed.
    #[error(transparent)]
    Cuda(#[from] fovea_kernels::cuda::Error),
    /// libtorch raised an exception.
    #[error("libtorch: {}\n  help: {}", without_backtrace(.0), torch_help(.0))]
    Torch(#[from] tch::TchError),
    /// An invariant of this program is broken.
    #[error("internal error: {0}\n  help: please report this with the command that led to it")]
    Internal(String),
    /// Loss or gradients are NaN or infinite.
    #[error(
        "step {step} (epoch {epoch}): loss {loss}, gradient norm {norm}: not finite, so the optimizer did not move\n  help: begin a new run (another --out) from this one's newest checkpoint with --init, with a lower optimizer.lr, with optimizer.clip_norm set, or with train.precision = \"f32\""
    )]
    NotFinite {
        /// The step of the failed attempt.
        step: u64,
        /// Epoch of that step.
        epoch: u32,
        /// The objective over the global batch, see [`crate::replica::StepVerdict::loss`].
        loss: f64,
        /// Norm of the global gradient, before clipping.
        norm: f64,
    },
    /// A checkpoint or weights file does not fit the model or the run.
    #[error("{path}: {what}\n  help: {help}", path = path.display())]
    Mismatch {
        /// Path of the checkpoint or weights file.
        path: PathBuf,
        /// How the file differs from the model or the run.
        what: String,
        /// What the user can do.
        help: String,
    },
    /// A request that cannot be carried out as given.
    #[error("{what}\n  help: {help}")]
    Usage {
        /// The request, and why it cannot be carried out.
        what: String,
        /// What the user can do.
        help: String,
    },
}

impl Error {
    /// Whether the user's input (configuration, arguments, dataset layout) is at fault, in which case no retry helps.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Usage { .. } | Self::Mismatch { .. } => true,
            Self::Collective(error) => error.is_usage(),
            Self::Dataset(error) => error.is_usage(),
            Self::Coordinator(error) => error.is_usage(),
            Self::Checkpoint(error) => error.is_usage(),
            Self::Metrics(error) => error.is_usage(),
            _ => false,
        }
    }
}

/// Only errors of the collective itself become [`Error::Collective`]; each other one becomes the error that the same
/// failure has elsewhere in a rank.
impl From<fovea_collectives::Error> for Error {
    fn from(error: fovea_collectives::Error) -> Self {
        use fovea_collectives::Error as Collectives;
        match error {
            Collectives::Coordinator(error) => Self::Coordinator(error),
            Collectives::Usage { what, help } => Self::Usage { what, help },
            Collectives::Internal(what) => Self::Internal(what),
            error => Self::Collective(error),
        }
    }
}

fn torch_help(error: &tch::TchError) -> &'static str {
    if error.to_string().contains("out of memory") {
        "fewer samples at a time need less: raise train.virtual_shards or lower train.images_per_step or \
         data.patches_per_image (this changes the result), use more GPUs, or end what else is on this one (nvidia-smi shows it)"
    } else {
        "this is an error in Fovea or a mismatch of libtorch versions; `make setup` restores the right one"
    }
}

/// libtorch's own message, without the addresses that it appends.
fn without_backtrace(error: &tch::TchError) -> String {
    let text = error.to_string();
    text.split("\nException raised from")
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}
