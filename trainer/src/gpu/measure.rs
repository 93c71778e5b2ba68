//! GPU calls that measurements and checks need, apart from training.

use fovea_kernels::cuda::Event;

use super::Gpu;
use super::images::{Images, SetShape};
use crate::error::Result;

impl Gpu {
    /// Uses images of random pixels, made in device memory, instead of those of a dataset.
    pub fn make_images(&mut self, shape: SetShape) -> Result<()> {
        *self.images.get_mut() = Some(Images::random(&self.kernels, shape, self.device)?);
        self.synchronize()
    }

    /// The stream of all work; it lives as long as the process.
    pub fn stream(&self) -> usize {
        self.stream
    }

    /// Records a timed event behind the work on the stream.
    pub fn stamp(&self) -> Result<Event> {
        let event = Event::timed(&self.kernels)?;
        // SAFETY: the stream lives as long as the process.
        unsafe { event.record(self.stream) }?;
        Ok(event)
    }

    /// Waits until all work on the stream is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: as above.
        Ok(unsafe { self.kernels.synchronize(self.stream) }?)
    }

    /// Device memory that is in use, by any process, bytes.
    pub fn used_bytes(&self) -> Result<usize> {
        Ok(self.kernels.device().total_bytes - self.kernels.free_bytes()?)
    }
}
