//! Training, evaluation and prediction: models, the loop, collectives, checkpoints, metrics, report.
//!
//! One process is one rank. [`train::join`] loads data and model and takes a seat at the
//! coordinator; [`train::Trainer::run`] is the loop. [`launch`] starts the processes of one machine.
//! Only this crate needs libtorch.

pub mod checkpoint;
pub mod collectives;
pub mod config;
mod dropout;
mod error;
pub mod evaluate;
mod host;
mod lanes;
pub mod launch;
pub mod metrics;
pub mod models;
mod ops;
mod params;
mod precision;
pub mod predict;
mod reduce;
mod replica;
pub mod report;
pub mod run_dir;
mod samples;
pub mod train;

pub use error::{Error, Result};
