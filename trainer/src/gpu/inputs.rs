//! Everything that a virtual shard's pass reads in addition to images and parameters, packed into one block: one upload
//! per pass, to fixed addresses.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use fovea_kernels::cuda::{Kernels, PinnedBuffer, StepRecord};
use fovea_task::Level;
use tch::{Device, Kind, Tensor};

use crate::dropout;
use crate::error::{Error, Result};
use crate::replica::Network;
use crate::samples::ShardBatch;

/// Alignment of every part, bytes: the widest access needs it.
const ALIGN: usize = 16;

/// The parts that a network needs in a block in addition to those of every batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockShape {
    /// For each head: whether images or patches have its labels, and bytes of its loss's record.
    heads: Vec<(Level, usize)>,
    /// For each dropout site: whether images or patches have a row of its mask, and elements of a row.
    masks: Vec<(Level, usize)>,
    /// Columns that the model reads of each image.
    columns: usize,
}

impl BlockShape {
    /// The parts that `net`'s heads and dropout sites read.
    pub fn of(net: &Network) -> Self {
        let heads = net.objective.iter();
        let sites = net.params.blueprint.dropouts.iter();
        Self {
            heads: heads.map(|h| (h.level, h.loss.record().len())).collect(),
            masks: sites.map(|site| (site.level, site.width)).collect(),
            columns: net.model.columns(),
        }
    }
}

/// Where the parts of a block lie, in bytes from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// One [`StepRecord`]: the seed and the epoch.
    pub step: Range<usize>,
    /// `[heads]` f32: factor on the dlogits of each head.
    pub scales: Range<usize>,
    /// For each head: the record of its loss, see [`Loss::record`](fovea_kernels::loss::Loss::record).
    pub records: Vec<Range<usize>>,
    /// `[b]` u64: the id that each image's draws are hashed from.
    pub image_ids: Range<usize>,
    /// `[b]` u32: index of each image's record.
    pub images: Range<usize>,
    /// `[b]` u32: 0, 1, ..., the index of each resized image.
    pub order: Range<usize>,
    /// `[n]` [`fovea_kernels::cuda::SpecRecord`]: where each patch lies in its image.
    pub specs: Range<usize>,
    /// For each head: its labels, `[b]` or `[n]` u64.
    pub labels: Vec<Range<usize>>,
    /// For each dropout site: its mask, `[b, width]` or `[n, width]` f32.
    pub masks: Vec<Range<usize>>,
    /// `[b, k]` f32: the columns that the model reads.
    pub columns: Range<usize>,
    /// Length of the block, bytes.
    pub bytes: usize,
}

/// Bytes of a [`fovea_kernels::cuda::SpecRecord`].
const SPEC_BYTES: usize = size_of::<fovea_kernels::cuda::SpecRecord>();

impl BlockLayout {
    /// The layout for `b` images and `n` patches.
    pub fn new(shape: &BlockShape, b: usize, n: usize) -> Self {
        let rows = |level| match level {
            Level::Image => b,
            Level::Patch => n,
        };
        let mut end = 0usize;
        let mut part = |bytes: usize| {
            let start = end.next_multiple_of(ALIGN);
            end = start + bytes;
            start..end
        };
        let mut layout = Self {
            step: part(size_of::<StepRecord>()),
            scales: part(4 * shape.heads.len()),
            records: shape.heads.iter().map(|head| part(head.1)).collect(),
            image_ids: part(8 * b),
            images: part(4 * b),
            order: part(4 * b),
            specs: part(SPEC_BYTES * n),
            labels: shape.heads.iter().map(|h| part(8 * rows(h.0))).collect(),
            masks: shape
                .masks
                .iter()
                .map(|m| part(4 * m.1 * rows(m.0)))
                .collect(),
            columns: part(4 * b * shape.columns),
            bytes: 0,
        };
        layout.bytes = end.next_multiple_of(ALIGN);
        layout
    }
}

/// A block on the host and on the device, reused from step to step.
pub struct Block {
    host: PinnedBuffer,
    device: Tensor,
    shape: BlockShape,
    /// The layout of its present content.
    layout: BlockLayout,
}

impl Block {
    /// An empty block, which has no memory yet.
    pub fn new(kernels: &Arc<Kernels>, device: Device, shape: &BlockShape) -> Result<Self> {
        Ok(Self {
            host: PinnedBuffer::new(kernels, 0)?,
            device: Tensor::f_zeros([0], (Kind::Uint8, device))?,
            layout: BlockLayout::new(shape, 0, 0),
            shape: shape.clone(),
        })
    }

    /// Makes room for a batch, and drops the old content: no work that was started may still use it. Returns whether
    /// addresses have changed.
    pub fn begin(&mut self, kernels: &Arc<Kernels>, batch: &ShardBatch) -> Result<bool> {
        let layout = BlockLayout::new(&self.shape, batch.counts.len(), batch.patch_ids.len());
        let grows = layout.bytes > self.host.bytes();
        if grows {
            self.host = PinnedBuffer::new(kernels, layout.bytes)?;
            let shape = [layout.bytes as i64];
            self.device = Tensor::f_zeros(shape, (Kind::Uint8, self.device.device()))?;
        }
        self.layout = layout;
        Ok(grows)
    }

    /// Writes columns, labels, loss weights and, in training, dropout masks.
    pub fn put_targets(
        &mut self,
        net: &Network,
        batch: &ShardBatch,
        scales: &[f32],
        epoch: u32,
    ) -> Result<()> {
        let layout = self.layout.clone();
        self.put(layout.scales, scales)?;
        for (part, head) in layout.records.into_iter().zip(&net.objective) {
            self.put(part, head.loss.record())?;
        }
        for (part, labels) in layout.labels.into_iter().zip(&batch.labels) {
            self.put(part, labels)?;
        }
        for (part, site) in layout.masks.into_iter().zip(&net.params.blueprint.dropouts) {
            self.put(part, &dropout::mask(net.seed, epoch, site, batch))?;
        }
        self.put(layout.columns, net.column_values(batch)?)
    }

    /// Writes one part on the host; [`Block::upload`] copies it to the device.
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

    /// Puts the copy of the block to the device on `stream`.
    ///
    /// # Safety
    ///
    /// Nobody may write or drop the block before the stream has finished the copy.
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

    /// The mask of each dropout site, `[rows, width]` f32, as views of the block on the device.
    pub fn masks(&self) -> Result<Vec<Tensor>> {
        let parts = self.layout.masks.iter().zip(&self.shape.masks);
        let mask = |(part, (_, width)): (&Range<usize>, &(Level, usize))| {
            let (start, bytes) = (part.start as i64, part.len() as i64);
            let values = self
                .device
                .f_narrow(0, start, bytes)?
                .f_view_dtype(Kind::Float)?;
            Ok(values.f_view([-1, *width as i64])?)
        };
        parts.map(mask).collect()
    }

    /// The columns that the model reads, `[b, k]` f32, as a view of the block on the device.
    pub fn columns(&self) -> Result<Tensor> {
        let Range { start, end } = self.layout.columns;
        if start == end {
            let shape = [self.layout.images.len() as i64 / 4, 0];
            return Ok(Tensor::f_zeros(shape, (Kind::Float, self.device.device()))?);
        }
        let bytes = self
            .device
            .f_narrow(0, start as i64, (end - start) as i64)?;
        Ok(bytes
            .f_view_dtype(Kind::Float)?
            .f_view([-1, self.shape.columns as i64])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_do_not_overlap_and_are_aligned(b in 0usize..70, n in 0usize..700) {
            let shape = BlockShape {
                heads: vec![(Level::Image, 24), (Level::Patch, 64)],
                masks: vec![(Level::Patch, 128)],
                columns: 7,
            };
            let layout = BlockLayout::new(&shape, b, n);
            let parts = [&layout.step, &layout.scales].into_iter().chain(&layout.records).chain([
                &layout.image_ids, &layout.images, &layout.order, &layout.specs,
            ]);
            let mut end = 0;
            for part in parts.chain(&layout.labels).chain(&layout.masks).chain([&layout.columns]) {
                prop_assert!(part.start >= end && part.start.is_multiple_of(ALIGN));
                end = part.end;
            }
            prop_assert!(layout.bytes >= end && layout.bytes < end + ALIGN);
            prop_assert_eq!(layout.specs.len(), SPEC_BYTES * n);
            prop_assert_eq!((layout.labels[0].len(), layout.labels[1].len()), (8 * b, 8 * n));
            prop_assert_eq!(layout.masks[0].len(), 4 * 128 * n);
            prop_assert_eq!(layout.columns.len(), 4 * 7 * b);
        }
    }
}
