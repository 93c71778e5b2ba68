//! GPU calls for measurements and checks, besides training.

use fovea_kernels::cuda::Event;

use super::Gpu;
use super::images::{Images, SetShape};
use crate::error::Result;

impl Gpu {
    /// Takes images of random pixels, made in device memory, instead of those of a dataset.
    pub fn make_images(&mut self, shape: SetShape) -> Result<()> {
        *self.images.get_mut() = Some(Images::random(&self.kernels, shape, self.device)?);
        self.synchronize()
    }

    /// What all work goes to; it lives as long as the process.
    pub fn stream(&self) -> usize {
        self.stream
    }

    /// A timed event behind what the stream holds now.
    pub fn stamp(&self) -> Result<Event> {
        let event = Event::timed(&self.kernels)?;
        // SAFETY: the stream lives as long as the process.
        unsafe { event.record(self.stream) }?;
        Ok(event)
    }

    /// Waits until everything on the stream is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: as above.
        Ok(unsafe { self.kernels.synchronize(self.stream) }?)
    }

    /// Device memory that somebody, of any process, has taken, bytes.
    pub fn used_bytes(&self) -> Result<usize> {
        Ok(self.kernels.device().total_bytes - self.kernels.free_bytes()?)
    }
}
