//! Checkpoints: the trustworthy on-disk state from which a run continues.
//!
//! ```text
//! RUN/checkpoints/step-00001234/weights.safetensors     parameters and buffers, torchvision's names
//!                               optimizer.safetensors   moments and the like
//!                               state.json              everything else, and the blake3 of the two above
//!                               COMPLETE                the blake3 of state.json; written last
//!                 .tmp-...                              being written or being removed
//! ```
//!
//! The writer puts a checkpoint into a `.tmp-` directory, syncs and reads back each file, `COMPLETE` last,
//! then renames the directory: a `step-` directory is complete or absent. A reader
//! follows the chain of hashes from `COMPLETE`, so it notices a torn file, a flipped bit or a directory
//! copied half-way, and [`newest_complete`] falls back to the one before.
//!
//! [`Writer`] does the writing on its own thread. It reports a write that fails (a full disk) and
//! leaves existing checkpoints untouched.
//!
//! Every function takes `dir`, the `checkpoints` directory of a run, or `path`, one checkpoint in it.
//!
//! This module must not decide when to save, or know what the tensors mean. No file holds the world
//! size: any number of ranks can resume a checkpoint.

mod error;
mod load;
mod pytorch;
mod retention;
mod state;
mod store;
mod tensors;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{Error, Result};
pub use load::{
    Loaded, ResumePoint, Skipped, StepDirectory, decode_weights, is_complete, list, load,
    load_weights, newest_complete, newest_complete_up_to, refuse_pipe, verify,
};
pub use retention::{Action, plan};
pub use state::{FORMAT_VERSION, FileEntry, Snapshot, State};
pub use store::set_aside_newer;
pub use tensors::{NamedTensor, TensorData, weights_blake3};
pub use writer::{Retention, Saved, Writer};

use std::path::{Path, PathBuf};

/// Parameters and buffers of the model, by name.
pub const WEIGHTS: &str = "weights.safetensors";
/// Moments of the optimizer, by parameter.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Everything that is not a tensor.
pub const STATE: &str = "state.json";
/// Says that the others are whole.
pub const COMPLETE: &str = "COMPLETE";

const STEP_PREFIX: &str = "step-";
const TMP_PREFIX: &str = ".tmp-";

/// Where the checkpoint of a step is in `dir`, the run's `checkpoints` directory.
pub fn directory(dir: &Path, step: u64) -> PathBuf {
    dir.join(dir_name(step))
}

/// `step-00001234`: at least eight digits, so that names sort as numbers do.
fn dir_name(step: u64) -> String {
    format!("{STEP_PREFIX}{step:08}")
}

/// The step of a directory's name; only names that [`dir_name`] gives count.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(STEP_PREFIX)?.parse().ok()?;
    (dir_name(step) == name).then_some(step)
}
