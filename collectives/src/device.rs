//! Sums in GPU memory.

use std::time::Instant;

use fovea_kernels::DType;
use fovea_kernels::cuda::Event;

use super::Result;

/// Sums over all ranks of what lies on their GPUs, beside the computation: start each bucket when it is
/// complete, `join` the stream that uses the sums, and `wait` before the host relies on them.
///
/// All ranks start the same sums in the same order. That is not checked here, as it would cost a message per
/// bucket: ranks that differ wait for each other until the deadline. Errors end the engine, as those
/// of [`super::Collective`] do; memory that was being summed may be written to until the engine is dropped.
pub trait DeviceCollective {
    /// Enqueues the sum over all ranks of `[len]` elements at `address`, in place, on the engine's own stream,
    /// after what `stream` holds so far. Returns at once, but for the first sums of a generation, which
    /// make connections.
    ///
    /// # Errors
    ///
    /// The engine is over, or the library or the driver refuses.
    ///
    /// # Safety
    ///
    /// `address` must be device memory of the engine's GPU, of that many elements, `stream` a live stream of it.
    /// Until a stream that was given to [`Self::join`] is through, or the engine is dropped, the memory must stay and
    /// nobody else may touch it.
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
    /// The driver refuses.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of the engine's GPU.
    unsafe fn join(&mut self, stream: usize) -> Result<()>;

    /// Waits on the host until `done` is reached, which the caller recorded after [`Self::join`].
    ///
    /// # Errors
    ///
    /// The deadline, an abort, or what the library noticed meanwhile.
    fn wait(&mut self, done: &Event, deadline: Instant) -> Result<()>;
}
