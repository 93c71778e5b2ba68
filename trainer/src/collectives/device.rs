//! Sums in GPU memory.

use std::time::Instant;

use fovea_kernels::DType;
use fovea_kernels::cuda::Event;

use super::Result;

/// What an engine does with buffers in GPU memory, besides the operations on host memory. Calls are in lockstep on all
/// ranks and are not checked: the step that makes them issues the same buckets everywhere.
pub trait DeviceCollective {
    /// Enqueues the sum over all ranks of `[len]` elements at `address`, in place, on the engine's own stream, after
    /// what `stream` holds so far. Returns at once.
    ///
    /// # Errors
    ///
    /// What the library says; the engine was aborted.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this rank's GPU and `address` its memory, of this length, which nobody else
    /// uses until a stream that was joined has got there.
    unsafe fn all_reduce_start(
        &mut self,
        address: u64,
        len: usize,
        dtype: DType,
        stream: usize,
    ) -> Result<()>;

    /// Makes `stream` wait for everything started so far. Returns at once.
    ///
    /// # Errors
    ///
    /// What the driver says.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this rank's GPU.
    unsafe fn join(&mut self, stream: usize) -> Result<()>;

    /// Waits on the host until `done` is reached, which the caller recorded after a join.
    ///
    /// # Errors
    ///
    /// The deadline, an abort, an asynchronous error of the library.
    fn wait(&mut self, done: &Event, deadline: Instant) -> Result<()>;
}
