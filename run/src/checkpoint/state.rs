//! What a checkpoint holds.

use std::collections::BTreeMap;

use fovea_dataset::Framing;
use fovea_task::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::NamedTensor;

/// The format written, and the only one read. Raised when what is in a checkpoint changes.
/// 2: hash and sizes of the dataset.
pub const FORMAT_VERSION: u32 = 2;

/// What [`super::Writer::save`] writes: a copy of the run at a step boundary. Tensors come in any
/// order, their names are distinct.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Steps committed since the start of the run.
    pub step: u64,
    /// The pass over the data that the next step belongs to, from 0.
    pub epoch: u32,
    /// Samples committed in this epoch.
    pub cursor: u64,
    /// The seed that order, crops and initial weights come from.
    pub seed: u64,
    /// The resolved configuration, TOML.
    pub config: String,
    /// The configuration's own hash, over the keys that decide what is trained.
    pub config_blake3: String,
    /// The prepared dataset's manifest, whose hash covers all its shards.
    pub dataset_blake3: String,
    /// Working size of the images trained on: pixels along an edge.
    pub image_size: u32,
    /// Side of their grid cells in pixels; 0 without a grid.
    pub patch: u32,
    /// What of a photograph was kept, and how it was brought to the working size.
    pub framing: Framing,
    /// The task of the dataset; `None` for lesions.
    pub task: Option<Task>,
    /// What schedule, early stopping and metrics remember. Floats come back with the same bits, but JSON
    /// has no NaN and no infinity (they come back as null): use `Option` for what can be either.
    pub progress: Value,
    /// The step whose checkpoint is the best so far, if any is.
    pub best_step: Option<u64>,
    /// Parameters and buffers of the model, by name.
    pub weights: Vec<NamedTensor>,
    /// Moments of the optimizer, by parameter.
    pub optimizer: Vec<NamedTensor>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its length in bytes.
    pub bytes: u64,
    /// blake3 of its content, in hex.
    pub blake3: String,
}

/// `state.json`: everything of a [`Snapshot`] but the tensors, and what the tensor files are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT_VERSION`] of the fovea that wrote it.
    pub format_version: u32,
    /// See [`Snapshot::step`].
    pub step: u64,
    /// See [`Snapshot::epoch`].
    pub epoch: u32,
    /// See [`Snapshot::cursor`].
    pub cursor: u64,
    /// See [`Snapshot::seed`].
    pub seed: u64,
    /// See [`Snapshot::progress`].
    pub progress: Value,
    /// See [`Snapshot::best_step`].
    pub best_step: Option<u64>,
    /// See [`Snapshot::config`].
    pub config: String,
    /// See [`Snapshot::config_blake3`].
    pub config_blake3: String,
    /// See [`Snapshot::dataset_blake3`].
    pub dataset_blake3: String,
    /// See [`Snapshot::image_size`].
    pub image_size: u32,
    /// See [`Snapshot::patch`].
    pub patch: u32,
    /// See [`Snapshot::framing`].
    #[serde(default, skip_serializing_if = "Framing::is_usual")]
    pub framing: Framing,
    /// See [`Snapshot::task`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// [`super::weights_blake3`] of the weights.
    pub weights_blake3: String,
    /// The tensor files, by name.
    pub files: BTreeMap<String, FileEntry>,
}
