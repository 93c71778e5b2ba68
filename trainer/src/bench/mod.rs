//! What `fovea bench` measures of this crate.

pub mod allreduce;
mod check;
mod composed;
mod facts;
mod kernels;
pub mod scaling;
pub mod seat;
mod synthetic;
mod times;
mod training;

pub use check::{Check, CheckReport, check_gpu};
pub use facts::Facts;
pub use kernels::{KernelFigure, KernelFigures, measure_kernels};
pub use synthetic::Work;
pub use times::Spread;
pub use training::{EpochFigures, StepFigures, measure_epoch, measure_steps};
