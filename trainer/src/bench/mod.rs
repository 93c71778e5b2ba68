//! What `fovea bench` measures of this crate.

pub mod allreduce;
mod synthetic;
mod times;
mod training;

pub use synthetic::Work;
pub use times::Spread;
pub use training::{EpochFigures, StepFigures, measure_epoch, measure_steps};
