//! Training, evaluation and prediction: models, the loop, collectives, checkpoints, metrics, report.
//!
//! One process is one rank. [`train::join`] loads data and model and takes a seat at the
//! coordinator; [`train::Trainer::run`] is the loop. [`launch`] starts the processes of one machine,
//! [`keep`] the trainer of one task of a job.
//! Only this crate needs libtorch.

pub mod bench;
mod buckets;
pub mod checkpoint;
mod child;
pub mod collectives;
pub mod config;
mod dropout;
mod error;
pub mod evaluate;
pub mod exit_code;
pub mod gpu;
mod host;
pub mod keep;
mod lanes;
pub mod launch;
pub mod metrics;
pub mod models;
mod ops;
mod overlap;
mod params;
mod precision;
pub mod predict;
pub mod preflight;
mod reduce;
mod replica;
pub mod report;
pub mod run_dir;
mod samples;
mod trace;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
