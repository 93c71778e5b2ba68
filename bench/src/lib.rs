//! The measurements of `fovea bench` and `fovea gpu-check`: training steps and epochs, kernels, sums between ranks, and
//! whether a GPU matches the CPU. The Python files next to this crate do the same work with PyTorch.

pub mod allreduce;
mod check;
mod composed;
#[cfg(test)]
mod emulated;
mod facts;
mod kernels;
pub mod scaling;
pub mod seat;
mod synthetic;
mod times;
mod training;

pub use check::{Check, CheckReport, check_gpu};
pub use facts::GpuFacts;
pub use kernels::{KernelFigure, KernelFigures, measure_kernels};
pub use synthetic::Work;
pub use times::Spread;
pub use training::{EpochFigures, StepFigures, measure_epoch, measure_steps};
