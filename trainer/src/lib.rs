//! Training, evaluation and prediction: models, the step, the loop.
//!
//! One process is one rank. [`train::join`] loads data and model and connects to the coordinator;
//! [`train::Trainer::run`] is the loop. Only this crate needs libtorch.

mod average;
mod blueprint;
mod buckets;
mod dropout;
pub mod ensemble;
mod error;
pub mod evaluate;
pub mod gpu;
pub mod gradcam;
mod host;
pub mod initial;
pub mod lanes;
mod listing;
pub mod models;
pub mod objective;
pub mod ops;
mod overlap;
mod params;
pub mod precision;
pub mod predict;
pub mod preflight;
mod reduce;
pub mod replica;
pub mod samples;
pub mod scores;
mod trace;
pub mod train;
pub mod trainable;
pub mod tta;
pub mod weights;
pub mod windows;

pub use error::{Error, Result};
