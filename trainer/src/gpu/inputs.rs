//! All that a virtual shard's pass reads besides images and parameters, packed into one block: one upload per pass,
//! to fixed addresses.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use fovea_kernels::cuda::{FocalWeights, Kernels, PinnedBuffer, StepRecord};
use tch::{Device, Kind, Tensor};

use crate::dropout::{self, HEAD_WIDTH};
use crate::error::{Error, Result};
use crate::replica::Objective;
use crate::samples::ShardBatch;

/// Every part starts on a multiple of this: what the widest access needs.
const ALIGN: usize = 16;

/// Where the parts of a block are, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// One [`StepRecord`].
    pub step: Range<usize>,
    /// Factors on the dlogits of images and patches, f32.
    pub scales: Range<usize>,
    /// [`FocalWeights`] of images.
    pub image_weights: Range<usize>,
    /// [`FocalWeights`] of patches.
    pub patch_weights: Range<usize>,
    /// `[b]` u64.
    pub image_ids: Range<usize>,
    /// `[b]` u32: record of each image.
    pub images: Range<usize>,
    /// `[b]` u32: 0, 1, ...
    pub order: Range<usize>,
    /// `[n]` spec records.
    pub specs: Range<usize>,
    /// `[b]` u8.
    pub image_labels: Range<usize>,
    /// `[n]` u8.
    pub patch_labels: Range<usize>,
    /// `[b, HEAD_WIDTH]` f32.
    pub image_mask: Range<usize>,
    /// `[n, HEAD_WIDTH]` f32.
    pub patch_mask: Range<usize>,
    /// Length of the block.
    pub bytes: usize,
}

/// Bytes of a [`fovea_kernels::cuda::SpecRecord`].
const SPEC_BYTES: usize = size_of::<fovea_kernels::cuda::SpecRecord>();

impl BlockLayout {
    /// For `b` images and `n` patches.
    pub fn new(b: usize, n: usize) -> Self {
        let mut end = 0usize;
        let mut part = |bytes: usize| {
            let start = end.next_multiple_of(ALIGN);
            end = start + bytes;
            start..end
        };
        let mut layout = Self {
            step: part(size_of::<StepRecord>()),
            scales: part(8),
            image_weights: part(size_of::<FocalWeights>()),
            patch_weights: part(size_of::<FocalWeights>()),
            image_ids: part(8 * b),
            images: part(4 * b),
            order: part(4 * b),
            specs: part(SPEC_BYTES * n),
            image_labels: part(b),
            patch_labels: part(n),
            image_mask: part(4 * HEAD_WIDTH * b),
            patch_mask: part(4 * HEAD_WIDTH * n),
            bytes: 0,
        };
        layout.bytes = end.next_multiple_of(ALIGN);
        layout
    }
}

/// A block on the host and on the device, kept from step to step.
pub struct Block {
    host: PinnedBuffer,
    device: Tensor,
    /// Of what is in it now.
    layout: BlockLayout,
}

impl Block {
    /// An empty one.
    pub fn new(kernels: &Arc<Kernels>, device: Device) -> Result<Self> {
        Ok(Self {
            host: PinnedBuffer::new(kernels, 0)?,
            device: Tensor::f_zeros([0], (Kind::Uint8, device))?,
            layout: BlockLayout::new(0, 0),
        })
    }

    /// Makes room for a batch, and forgets what was there: nothing that was started may still use it. Returns whether
    /// addresses have changed.
    pub fn begin(&mut self, kernels: &Arc<Kernels>, batch: &ShardBatch) -> Result<bool> {
        let layout = BlockLayout::new(batch.image_labels.len(), batch.patch_labels.len());
        let grows = layout.bytes > self.host.bytes();
        if grows {
            self.host = PinnedBuffer::new(kernels, layout.bytes)?;
            let shape = [layout.bytes as i64];
            self.device = Tensor::f_zeros(shape, (Kind::Uint8, self.device.device()))?;
        }
        self.layout = layout;
        Ok(grows)
    }

    /// Labels, loss weights and, in training, dropout masks.
    pub fn put_targets(
        &mut self,
        batch: &ShardBatch,
        objective: &Objective,
        scales: [f32; 2],
        (seed, epoch): (u64, u32),
    ) -> Result<()> {
        let layout = self.layout.clone();
        let (image_mask, patch_mask) = dropout::masks(seed, epoch, batch);
        let image_weights = FocalWeights::new(&objective.image)?;
        let patch_weights = FocalWeights::new(&objective.patch)?;
        self.put(layout.scales, &scales)?;
        self.put(layout.image_weights, &[image_weights])?;
        self.put(layout.patch_weights, &[patch_weights])?;
        self.put(layout.image_labels, &batch.image_labels)?;
        self.put(layout.patch_labels, &batch.patch_labels)?;
        self.put(layout.image_mask, &image_mask)?;
        self.put(layout.patch_mask, &patch_mask)
    }

    /// Writes one part on the host.
    pub fn put<T: Pod>(&mut self, part: Range<usize>, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.len() != part.len() {
            return Err(Error::Internal(format!(
                "{} bytes for a part of {}",
                bytes.len(),
                part.len()
            )));
        }
        self.host.as_mut_slice::<u8>()[part].copy_from_slice(bytes);
        Ok(())
    }

    /// Puts the copy to the device on `stream`.
    ///
    /// # Safety
    ///
    /// The block must not be written to, or dropped, until the stream has got there.
    pub unsafe fn upload(&self, kernels: &Kernels, stream: usize) -> Result<()> {
        let target = self.device.data_ptr() as u64;
        // SAFETY: both sides have at least this many bytes; the rest is the caller's promise.
        Ok(unsafe {
            kernels.copy_to_device_async(stream, target, self.host.as_ptr(), self.layout.bytes)
        }?)
    }

    /// Where the parts are.
    pub fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// Device address of a part.
    pub fn address(&self, part: &Range<usize>) -> u64 {
        self.device.data_ptr() as u64 + part.start as u64
    }

    /// A dropout mask as the heads want it, `[rows, HEAD_WIDTH]` f32.
    pub fn mask(&self, part: &Range<usize>) -> Result<Tensor> {
        let bytes = self
            .device
            .f_narrow(0, part.start as i64, part.len() as i64)?;
        let rows = (part.len() / (4 * HEAD_WIDTH)) as i64;
        Ok(bytes
            .f_view_dtype(Kind::Float)?
            .f_view([rows, HEAD_WIDTH as i64])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_do_not_overlap_and_are_aligned(b in 0usize..70, n in 0usize..700) {
            let layout = BlockLayout::new(b, n);
            let parts = [
                &layout.step, &layout.scales, &layout.image_weights, &layout.patch_weights, &layout.image_ids,
                &layout.images, &layout.order, &layout.specs, &layout.image_labels, &layout.patch_labels,
                &layout.image_mask, &layout.patch_mask,
            ];
            let mut end = 0;
            for part in parts {
                prop_assert!(part.start >= end && part.start.is_multiple_of(ALIGN));
                end = part.end;
            }
            prop_assert!(layout.bytes >= end && layout.bytes < end + ALIGN);
            prop_assert_eq!(layout.specs.len(), SPEC_BYTES * n);
            prop_assert_eq!(layout.patch_mask.len(), 4 * HEAD_WIDTH * n);
        }
    }
}
