//! Trials of the kernels that produce pixels.

use fovea_kernels::cuda::{
    DeviceBuffer, GlobalView, ImageRecord, PatchCrop, Resize as ResizeOp, StepRecord, resize_table,
    spec_records,
};
use fovea_kernels::{
    Augment, BatchMut, CropSpec, DType, ImageU8, global_view, patch_crop, resize_antialias,
};
use fovea_trainer::Result;
use fovea_trainer::gpu::Gpu;
use half::bf16;
use rand::{Rng, RngCore};
use tch::Tensor;

use super::{Shapes, Trial, address, kind, numbers, on};
use crate::composed;

/// Seed and epoch of the randomness; the sample ids are hashed in as well.
const SEED: u64 = 7;
const EPOCH: u32 = 3;

/// Random images on the host and on the device.
struct RandomImages {
    host: Vec<u8>,
    size: usize,
    count: usize,
    /// `[count, size, size, 3]` u8.
    device: Tensor,
    records: DeviceBuffer,
}

impl RandomImages {
    fn new(gpu: &Gpu, count: usize, size: usize, rng: &mut dyn RngCore) -> Result<Self> {
        let bytes = size * size * 3;
        let mut host = vec![0; count * bytes];
        rng.fill_bytes(&mut host);
        let device = on(gpu, &host)?.f_view([count as i64, size as i64, size as i64, 3])?;
        let records: Vec<ImageRecord> = (0..count)
            .map(|image| ImageRecord {
                data: address(&device) + (image * bytes) as u64,
                height: size as u32,
                width: size as u32,
            })
            .collect();
        Ok(Self {
            records: DeviceBuffer::new(gpu.kernels(), &records)?,
            host,
            size,
            count,
            device,
        })
    }

    fn views(&self) -> Vec<ImageU8<'_>> {
        let each = self.host.chunks(self.size * self.size * 3);
        each.map(|data| ImageU8 {
            data,
            height: self.size,
            width: self.size,
        })
        .collect()
    }
}

/// A tensor of zeros `[n, side, side, 3]`, for a kernel's output.
fn batch(gpu: &Gpu, n: usize, side: usize, dtype: DType) -> Result<Tensor> {
    let shape = [n as i64, side as i64, side as i64, 3];
    Ok(Tensor::f_zeros(shape, (kind(dtype), gpu.device()))?)
}

/// The output of a twin in either dtype, as f64.
fn written(
    len: usize,
    dtype: DType,
    write: impl FnOnce(BatchMut<'_>) -> fovea_kernels::Result<()>,
) -> Result<Vec<f64>> {
    match dtype {
        DType::F32 => {
            let mut out = vec![0.0f32; len];
            write(BatchMut::F32(&mut out))?;
            Ok(out.into_iter().map(f64::from).collect())
        }
        DType::Bf16 => {
            let mut out = vec![bf16::ZERO; len];
            write(BatchMut::Bf16(&mut out))?;
            Ok(out.into_iter().map(f64::from).collect())
        }
    }
}

/// Crops of patches. The composition leaves out turns and colour jitter.
pub struct Crop {
    images: RandomImages,
    specs: Vec<CropSpec>,
    patch: usize,
    dtype: DType,
    augment: Option<Augment>,
    spec_records: DeviceBuffer,
    step: DeviceBuffer,
    out: Tensor,
    /// Inputs of the composition: image `[n]`, rows and columns `[n, patch]`, all i64.
    at: [Tensor; 3],
}

impl Crop {
    pub fn new(gpu: &Gpu, s: &Shapes, dtype: DType, rng: &mut dyn RngCore) -> Result<Self> {
        let images = RandomImages::new(gpu, s.images, s.size, rng)?;
        let last = (s.size - s.patch) as u32;
        let specs: Vec<CropSpec> = (0..s.patches)
            .map(|_| CropSpec {
                image: rng.random_range(0..s.images),
                y: rng.random_range(0..=last),
                x: rng.random_range(0..=last),
                sample_id: rng.next_u64(),
            })
            .collect();
        let sides = vec![(s.size, s.size); s.images];
        let records = spec_records(&sides, &specs, s.patch)?;
        let side = s.patch as i64;
        let lines = |start: &dyn Fn(&CropSpec) -> u32| -> Result<Tensor> {
            let all = specs.iter().flat_map(|spec| {
                let start = i64::from(start(spec));
                start..start + side
            });
            Ok(on(gpu, &all.collect::<Vec<i64>>())?.f_view([-1, side])?)
        };
        let which: Vec<i64> = specs.iter().map(|spec| spec.image as i64).collect();
        Ok(Self {
            at: [
                on(gpu, &which)?,
                lines(&|spec| spec.y)?,
                lines(&|spec| spec.x)?.f_flip([1])?,
            ],
            images,
            patch: s.patch,
            dtype,
            augment: s.augment,
            spec_records: DeviceBuffer::new(gpu.kernels(), &records)?,
            step: DeviceBuffer::new(gpu.kernels(), &[StepRecord::new(SEED, EPOCH)])?,
            out: batch(gpu, specs.len(), s.patch, dtype)?,
            specs,
        })
    }
}

impl Trial for Crop {
    fn shape(&self) -> String {
        format!("{} patches of {} px", self.specs.len(), self.patch)
    }

    /// Per pixel of a patch, 3 bytes in and 3 elements out; per patch, a spec of 24 bytes.
    fn bytes(&self) -> usize {
        let pixels = self.specs.len() * self.patch * self.patch;
        pixels * 3 * (1 + kind(self.dtype).elt_size_in_bytes()) + self.spec_records.bytes()
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let op = PatchCrop {
            images: self.images.records.address(),
            image_count: self.images.count,
            specs: self.spec_records.address(),
            n: self.specs.len(),
            step: self.step.address(),
            size: self.patch,
            augment: self.augment.as_ref(),
            dtype: self.dtype,
            out: address(&self.out),
        };
        // SAFETY: these are self's buffers, made for these sizes; the caller waits for the work before it drops self.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        let [which, rows, columns] = &self.at;
        composed::crop(&self.images.device, which, rows, columns, kind(self.dtype)).map(drop)
    }

    fn got(&self) -> Result<Vec<f64>> {
        numbers(&self.out)
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let (views, augment) = (self.images.views(), self.augment.as_ref());
        written(self.out.numel(), self.dtype, |out| {
            patch_crop(&views, &self.specs, self.patch, SEED, EPOCH, augment, out)
        })
    }
}

/// The antialiased resize of every image.
pub struct ResizeTrial {
    images: RandomImages,
    side: usize,
    selection: DeviceBuffer,
    taps: DeviceBuffer,
    out: Tensor,
}

impl ResizeTrial {
    pub fn new(gpu: &Gpu, s: &Shapes, rng: &mut dyn RngCore) -> Result<Self> {
        let selection: Vec<u32> = (0..s.images as u32).collect();
        Ok(Self {
            images: RandomImages::new(gpu, s.images, s.size, rng)?,
            side: s.view,
            selection: DeviceBuffer::new(gpu.kernels(), &selection)?,
            taps: DeviceBuffer::new(gpu.kernels(), &resize_table(s.size, s.view)?)?,
            out: batch(gpu, s.images, s.view, DType::F32)?,
        })
    }
}

impl Trial for ResizeTrial {
    fn shape(&self) -> String {
        format!(
            "{} of {} px to {}",
            self.images.count, self.images.size, self.side
        )
    }

    /// Per image, its pixels in and the f32 pixels of its view out; in addition the taps once.
    fn bytes(&self) -> usize {
        self.images.host.len() + 4 * self.out.numel() + self.taps.bytes()
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let (size, side) = (self.images.size, self.side);
        let op = ResizeOp {
            images: self.images.records.address(),
            image_count: self.images.count,
            selection: self.selection.address(),
            n: self.images.count,
            input: (size, size),
            output: (side, side),
            rows: self.taps.address(),
            columns: self.taps.address(),
            out: address(&self.out),
        };
        // SAFETY: as for `Crop`.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        composed::resize(&self.images.device, self.side as i64).map(drop)
    }

    fn got(&self) -> Result<Vec<f64>> {
        numbers(&self.out)
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.out.numel());
        for view in self.images.views() {
            let resized = resize_antialias(&view, self.side, self.side)?;
            all.extend(resized.into_iter().map(f64::from));
        }
        Ok(all)
    }
}

/// Global views of resized images. The composition leaves out turns and colour jitter.
pub struct View {
    host: Vec<f32>,
    ids: Vec<u64>,
    side: usize,
    dtype: DType,
    augment: Option<Augment>,
    resized: Tensor,
    selection: DeviceBuffer,
    sample_ids: DeviceBuffer,
    step: DeviceBuffer,
    scratch: DeviceBuffer,
    out: Tensor,
    /// Which views the composition mirrors: bool `[n, 1, 1, 1]`.
    flip: Tensor,
}

impl View {
    pub fn new(gpu: &Gpu, s: &Shapes, dtype: DType, rng: &mut dyn RngCore) -> Result<Self> {
        let (n, side) = (s.images, s.view);
        let host: Vec<f32> = (0..n * side * side * 3)
            .map(|_| rng.random_range(0.0..255.0))
            .collect();
        let ids: Vec<u64> = (0..n).map(|_| rng.next_u64()).collect();
        let selection: Vec<u32> = (0..n as u32).collect();
        let flip: Vec<bool> = ids.iter().map(|id| id & 1 == 1).collect();
        let scratch = GlobalView::scratch_bytes(n, side, s.augment.as_ref());
        let shape = [n as i64, side as i64, side as i64, 3];
        Ok(Self {
            resized: on(gpu, &host)?.f_view(shape)?,
            selection: DeviceBuffer::new(gpu.kernels(), &selection)?,
            sample_ids: DeviceBuffer::new(gpu.kernels(), &ids)?,
            step: DeviceBuffer::new(gpu.kernels(), &[StepRecord::new(SEED, EPOCH)])?,
            scratch: DeviceBuffer::uninit(gpu.kernels(), scratch)?,
            out: batch(gpu, n, side, dtype)?,
            flip: on(gpu, &flip)?.f_view([-1, 1, 1, 1])?,
            host,
            ids,
            side,
            dtype,
            augment: s.augment,
        })
    }
}

impl Trial for View {
    fn shape(&self) -> String {
        format!("{} views of {} px", self.ids.len(), self.side)
    }

    /// Per pixel, 3 f32 in and 3 elements out.
    fn bytes(&self) -> usize {
        self.host.len() * (4 + kind(self.dtype).elt_size_in_bytes())
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let op = GlobalView {
            resized: address(&self.resized),
            count: self.ids.len(),
            selection: self.selection.address(),
            sample_ids: self.sample_ids.address(),
            n: self.ids.len(),
            step: self.step.address(),
            size: self.side,
            augment: self.augment.as_ref(),
            scratch: self.scratch.address(),
            dtype: self.dtype,
            out: address(&self.out),
        };
        // SAFETY: as for `Crop`.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        composed::view(&self.resized, &self.flip, kind(self.dtype)).map(drop)
    }

    fn got(&self) -> Result<Vec<f64>> {
        numbers(&self.out)
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.host.len());
        let each = self.side * self.side * 3;
        for (image, id) in self.host.chunks(each).zip(&self.ids) {
            all.extend(written(each, self.dtype, |out| {
                global_view(
                    image,
                    self.side,
                    SEED,
                    EPOCH,
                    *id,
                    self.augment.as_ref(),
                    out,
                )
            })?);
        }
        Ok(all)
    }
}
