//! Cuts a batch's pixels from the images on the GPU.

use fovea_kernels::cuda::{
    DeviceBuffer, GlobalView, PatchCrop, Resize, StepRecord, resize_table, spec_records,
};
use fovea_kernels::{Augment, DType};
use fovea_run::config::Config;
use tch::{Kind, Tensor};

use super::images::Placed;
use super::inputs::Block;
use super::{Gpu, address};
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::replica::Network;
use crate::samples::{Crops, Pixels, ShardBatch, Views, augment};

/// The settings that make pixels: sizes, dtype, augmentation.
pub struct Cutter {
    precision: Precision,
    augment: Augment,
    /// Side of a whole image's view, pixels.
    global_size: usize,
    /// Side of a patch, pixels.
    patch: usize,
    /// Taps of the resize, the same along both axes because images are square; none without images.
    taps: Option<DeviceBuffer>,
    seed: u64,
}

/// A batch whose block is being uploaded to the device.
pub enum ReadyBatch<'a> {
    /// The pixels exist already.
    Views(Views),
    /// The pixels must be cut from the images at these places.
    Crops(&'a Crops, Placed),
}

fn no_images() -> Error {
    Error::Internal("a GPU without images".to_owned())
}

impl Cutter {
    /// The settings for the GPU's images.
    pub fn new(gpu: &Gpu, net: &Network, config: &Config) -> Result<Self> {
        let global_size = config.data.global_size as usize;
        let images = gpu.images.borrow();
        let taps = match images.as_ref() {
            None => None,
            Some(images) => {
                let table = resize_table(images.size(), global_size)?;
                Some(DeviceBuffer::new(&gpu.kernels, &table)?)
            }
        };
        Ok(Self {
            precision: match net.params.working() {
                Some(_) => Precision::Bf16,
                None => Precision::F32,
            },
            augment: augment(config),
            global_size,
            patch: images.as_ref().map_or(0, super::images::Images::patch),
            taps,
            seed: net.seed,
        })
    }

    /// Completes a block with the places of the pixels, and uploads it.
    pub fn upload<'a>(
        &self,
        gpu: &Gpu,
        block: &mut Block,
        batch: &'a ShardBatch,
    ) -> Result<ReadyBatch<'a>> {
        let ready = match &batch.pixels {
            Pixels::Views(views) => ReadyBatch::Views(Views {
                globals: views.globals.f_to_device(gpu.device)?,
                patches: views.patches.f_to_device(gpu.device)?,
            }),
            Pixels::Crops(crops) => {
                let mut images = gpu.images.borrow_mut();
                let images = images.as_mut().ok_or_else(no_images)?;
                let placed = images.place(&crops.images, gpu.stream)?;
                self.put_crops(block, batch, crops, &placed, images.size())?;
                ReadyBatch::Crops(crops, placed)
            }
        };
        // SAFETY: the code that fills the block again has waited for the stream.
        unsafe { block.upload(&gpu.kernels, gpu.stream) }?;
        Ok(ready)
    }

    /// Puts the cutting on the stream, before the next batch is uploaded.
    pub fn views(&self, gpu: &Gpu, block: &Block, ready: ReadyBatch<'_>) -> Result<Views> {
        let (crops, placed) = match ready {
            ReadyBatch::Views(views) => return Ok(views),
            ReadyBatch::Crops(crops, placed) => (crops, placed),
        };
        let mut images = gpu.images.borrow_mut();
        let images = images.as_mut().ok_or_else(no_images)?;
        let taps = self.taps.as_ref().ok_or_else(no_images)?;
        let views = self.cut(gpu, block, crops, &placed, (images.size(), taps))?;
        images.cut(gpu.stream)?;
        Ok(views)
    }

    fn put_crops(
        &self,
        block: &mut Block,
        batch: &ShardBatch,
        crops: &Crops,
        placed: &Placed,
        size: usize,
    ) -> Result<()> {
        let layout = block.layout().clone();
        // A spec names an image of the dataset; the kernel needs the index of its unit's record.
        let mut specs = crops.specs.clone();
        let owners = (0..batch.counts.len())
            .flat_map(|unit| std::iter::repeat_n(placed.index[unit], batch.counts[unit]));
        for (spec, record) in specs.iter_mut().zip(owners) {
            spec.image = record as usize;
        }
        let sizes = vec![(size, size); placed.count];
        let records = spec_records(&sizes, &specs, self.patch)?;
        let step = StepRecord::new(self.seed, crops.epoch.unwrap_or(0));
        let order: Vec<u32> = (0..crops.images.len() as u32).collect();
        block.put(layout.step, &[step])?;
        block.put(layout.image_ids, &batch.image_ids)?;
        block.put(layout.images, &placed.index)?;
        block.put(layout.order, &order)?;
        block.put(layout.specs, &records)
    }

    fn cut(
        &self,
        gpu: &Gpu,
        block: &Block,
        crops: &Crops,
        placed: &Placed,
        (size, taps): (usize, &DeviceBuffer),
    ) -> Result<Views> {
        let layout = block.layout();
        let n = crops.specs.len();
        // The kernels do nothing for 0 images.
        let (b, side) = match crops.whole {
            true => (crops.images.len(), self.global_size),
            false => (0, 0),
        };
        let augment = crops.epoch.map(|_| &self.augment);
        let dtype = match self.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        };
        let empty = |count: usize, side: usize, kind: Kind| {
            let shape = [count as i64, side as i64, side as i64, 3];
            Tensor::f_empty(shape, (kind, gpu.device))
        };
        let resized = empty(b, side, Kind::Float)?;
        let globals = empty(b, side, self.precision.kind())?;
        let patches = empty(n, self.patch, self.precision.kind())?;
        let scratch = Tensor::f_empty(
            [GlobalView::scratch_bytes(b, side, augment) as i64],
            (Kind::Uint8, gpu.device),
        )?;
        let crop = PatchCrop {
            images: placed.records,
            image_count: placed.count,
            specs: block.address(&layout.specs),
            n,
            step: block.address(&layout.step),
            size: self.patch,
            augment,
            dtype,
            out: address(&patches),
        };
        if crops.whole {
            let resize = Resize {
                images: placed.records,
                image_count: placed.count,
                selection: block.address(&layout.images),
                n: b,
                input: (size, size),
                output: (side, side),
                rows: taps.address(),
                columns: taps.address(),
                out: address(&resized),
            };
            let view = GlobalView {
                resized: address(&resized),
                count: b,
                selection: block.address(&layout.order),
                sample_ids: block.address(&layout.image_ids),
                n: b,
                step: block.address(&layout.step),
                size: side,
                augment,
                scratch: address(&scratch),
                dtype,
                out: address(&globals),
            };
            // SAFETY: as below.
            unsafe {
                gpu.run(&resize)?;
                gpu.run(&view)?;
            }
        }
        if n > 0 {
            // SAFETY: the records are those of `Images`, the block is laid out for these numbers, the tensors are
            // contiguous and of these shapes, and libtorch reuses their memory in the stream's order only.
            unsafe { gpu.run(&crop) }?;
        }
        // In memory [n, h, w, 3]; for libtorch a channels-last [n, 3, h, w].
        Ok(Views {
            globals: globals.f_permute([0, 3, 1, 2])?,
            patches: patches.f_permute([0, 3, 1, 2])?,
        })
    }
}
