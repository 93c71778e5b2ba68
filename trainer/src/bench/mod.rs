//! What `fovea bench` measures of this crate.

pub mod allreduce;
