//! The kernels on an NVIDIA GPU: the same contracts as the CPU twins, on raw device pointers.
//!
//! An operation is a plain struct ([`PatchCrop`], [`FusedAdam`], ...) that holds device addresses and sizes.
//! [`Op::launches`] checks it and returns its launches, without a GPU; [`Kernels::run`] launches them on a stream of
//! the caller. `run` neither allocates nor synchronises, and the kernels read from device memory what changes from step
//! to step (epoch, learning rate, samples, loss scale), so `run` also accepts a stream that is being captured into a
//! CUDA graph.
//!
//! The binary contains the sources: those of `kernels/cuda/`, and one for each [loss](crate::loss), in its folder.
//! [`Kernels::load`] compiles them with NVRTC for the device found, with a cache on disk. Building needs neither CUDA
//! nor a GPU.
//!
//! An address is `u64`, like `CUdeviceptr`; 0 is null. Memory belongs to the caller (libtorch): both use
//! the device's primary context.

mod arch;
pub mod cache;
mod device;
mod error;
mod graph;
mod kernels;
pub(crate) mod launch;
mod memory;
pub mod nvrtc;
pub(crate) mod ops;
pub mod source;
mod stream;

pub use arch::{Arch, CompileTarget};
pub use device::Device;
pub use error::{Error, Result};
pub use graph::Graph;
pub use kernels::{Current, Kernels};
pub use launch::{Launch, Op};
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use ops::adam::FusedAdam;
pub use ops::confusion::ConfusionCounts;
pub use ops::crop::{ImageRecord, PatchCrop, SpecRecord, StepRecord, spec_records};
pub use ops::flat::{AccumulateBf16, SumSquares, ToBf16};
pub use ops::resize::{Resize, resize_table};
pub use ops::view::GlobalView;
pub use stream::{Event, Stream, wait_event};
