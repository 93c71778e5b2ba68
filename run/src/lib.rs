//! A run directory's contents: configuration, metrics, checkpoints, steps and predictions. Each record is written
//! and read here, in one place.
//!
//! This room knows files and numbers, no tensors: it builds and tests without libtorch.

pub mod checkpoint;
pub mod config;
mod error;
pub mod metrics;
pub mod predictions;
pub mod run_dir;
pub mod submission;
pub mod tuning;

pub use error::{Error, Result};
