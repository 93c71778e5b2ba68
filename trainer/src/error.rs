//! Errors of this crate. Every message says what, where and the numbers; its last line says what to do.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong while training, evaluating or predicting.
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
    /// The run's last checkpoint is not on disk.
    #[error("checkpoint of step {step}: {source}")]
    Unsaved {
        /// Committed steps.
        step: u64,
        /// Why, with what to do.
        source: fovea_run::checkpoint::Error,
    },
    /// A file of the run directory cannot be used.
    #[error(transparent)]
    Run(#[from] fovea_run::Error),
    /// Metrics cannot be computed or stored.
    #[error(transparent)]
    Metrics(#[from] fovea_run::metrics::Error),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] fovea_kernels::Error),
    /// The GPU, its driver or its compiler.
    #[error(transparent)]
    Cuda(#[from] fovea_kernels::cuda::Error),
    /// libtorch raised an exception.
    #[error("libtorch: {}\n  help: {}", without_backtrace(.0), torch_help(.0))]
    Torch(#[from] tch::TchError),
    /// An invariant of this program does not hold.
    #[error("internal error: {0}\n  help: please report this with the command that led to it")]
    Internal(String),
    /// Loss or gradients are NaN or infinite.
    #[error(
        "step {step} (epoch {epoch}): loss {loss}, gradient norm {norm}: not finite, so the optimizer did not move\n  help: begin a new run (another --out) from this one's newest checkpoint with --init, with a lower optimizer.lr, with optimizer.clip_norm set, or with train.precision = \"f32\""
    )]
    NotFinite {
        /// Step that was tried.
        step: u64,
        /// Epoch of that step.
        epoch: u32,
        /// Global mean loss.
        loss: f64,
        /// Global gradient norm.
        norm: f64,
    },
    /// A checkpoint or weights file does not fit the model or the run.
    #[error("{path}: {what}\n  help: {help}", path = path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Expected and found.
        what: String,
        /// What to do.
        help: String,
    },
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
    /// Whether the user's input (configuration, arguments, dataset layout) is to blame: no retry helps.
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

/// Only what ended a collective is its error; the rest is what the same failure is anywhere else in a rank.
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

/// libtorch's own words, without the addresses it appends.
fn without_backtrace(error: &tch::TchError) -> String {
    let text = error.to_string();
    text.split("\nException raised from")
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}
