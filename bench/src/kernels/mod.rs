//! Measures the CUDA kernels at full size, and the same operations composed of libtorch's: `fovea bench kernels`.

mod flat;
mod pixels;

use fovea_kernels::cuda::Event;
use fovea_kernels::loss::LOSSES;
use fovea_kernels::{Augment, DType};
use fovea_run::config::Config;
use fovea_trainer::Result;
use fovea_trainer::gpu::{self, Gpu};
use fovea_trainer::samples::augment;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::Tensor;

use self::flat::{Adam, Cast, LossTrial, Squares};
use self::pixels::{Crop, ResizeTrial, View};

use super::facts::GpuFacts;
use super::times::Spread;

/// Calls before the measured ones.
const WARM_UP: usize = 5;
/// Most bytes that a copy moves.
const COPY_BYTES: usize = 2 << 30;
/// Each side of a copy may take at most the free memory divided by this.
const COPY_SHARE: usize = 8;

/// The sizes of a trial's inputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shapes {
    /// Number of images in device memory.
    pub images: usize,
    /// Side of an image in pixels.
    pub size: usize,
    /// Number of patches, cropped from random places of the images.
    pub patches: usize,
    /// Side of a patch in pixels; at most `size`.
    pub patch: usize,
    /// Side of the global view in pixels; there is one view of each image.
    pub view: usize,
    /// Strengths of the augmentation of patches and views; none for no augmentation.
    pub augment: Option<Augment>,
    /// Rows of logits, of 4 classes each.
    pub rows: usize,
    /// Number of parameters of the model.
    pub parameters: usize,
}

impl Shapes {
    /// A large batch of the main dataset, with the default augmentation.
    pub fn full() -> Self {
        Self {
            images: 64,
            size: 1280,
            patches: 4096,
            patch: 128,
            view: 224,
            augment: Some(augment(&Config::default())),
            rows: 409_600,
            parameters: 22_900_000,
        }
    }
}

/// A kernel's operation on buffers that are ready, and the same operation by libtorch and on the host.
pub(super) trait Trial {
    /// The input's size in words, for the table.
    fn shape(&self) -> String;
    /// Least bytes that must move: every input read once, every output written once.
    fn bytes(&self) -> usize;
    /// Puts the kernel on the GPU's stream. The caller must keep `self` until that work is over.
    fn kernel(&self, gpu: &Gpu) -> Result<()>;
    /// Has libtorch do the same, or the part of it that the trial's documentation names.
    fn composed(&self) -> Result<()>;
    /// What the kernel wrote, read back to the host.
    fn got(&self) -> Result<Vec<f64>>;
    /// What the kernel must write when it runs once, by its twin.
    fn twin(&self) -> Result<Vec<f64>>;
}

/// Makes a trial of these sizes.
type Make = dyn Fn(&Gpu, &Shapes, &mut dyn RngCore) -> Result<Box<dyn Trial>>;

/// A kernel to measure and to check.
pub(super) struct KernelEntry {
    /// The kernel's name in `fovea-kernels`, with the element type where it has several.
    pub name: String,
    /// Whether the kernel rounds its output to bf16.
    pub bf16: bool,
    /// Makes a trial with random inputs of the given sizes.
    pub make: Box<Make>,
}

/// All kernels of a training step, with the kernel of every loss.
pub(super) fn all() -> Vec<KernelEntry> {
    let before = [
        entry("patch_crop f32", false, |gpu, s, rng| {
            Ok(Box::new(Crop::new(gpu, s, DType::F32, rng)?))
        }),
        entry("patch_crop bf16", true, |gpu, s, rng| {
            Ok(Box::new(Crop::new(gpu, s, DType::Bf16, rng)?))
        }),
        entry("resize", false, |gpu, s, rng| {
            Ok(Box::new(ResizeTrial::new(gpu, s, rng)?))
        }),
        entry("global_view f32", false, |gpu, s, rng| {
            Ok(Box::new(View::new(gpu, s, DType::F32, rng)?))
        }),
        entry("global_view bf16", true, |gpu, s, rng| {
            Ok(Box::new(View::new(gpu, s, DType::Bf16, rng)?))
        }),
    ];
    let losses = LOSSES.iter().map(|&loss| {
        let make: Box<Make> =
            Box::new(move |gpu, s, rng| Ok(Box::new(LossTrial::new(gpu, s, loss, rng)?)));
        KernelEntry {
            name: format!("{}_loss", loss.name),
            bf16: false,
            make,
        }
    });
    let after = [
        entry("fused_adam", false, |gpu, s, rng| {
            Ok(Box::new(Adam::new(gpu, s, false, rng)?))
        }),
        entry("fused_adam + bf16 copy", true, |gpu, s, rng| {
            Ok(Box::new(Adam::new(gpu, s, true, rng)?))
        }),
        entry("to_bf16", true, |gpu, s, rng| {
            Ok(Box::new(Cast::new(gpu, s, rng)?))
        }),
        entry("sum_squares", false, |gpu, s, rng| {
            Ok(Box::new(Squares::new(gpu, s, rng)?))
        }),
    ];
    before.into_iter().chain(losses).chain(after).collect()
}

fn entry(
    name: &str,
    bf16: bool,
    make: impl Fn(&Gpu, &Shapes, &mut dyn RngCore) -> Result<Box<dyn Trial>> + 'static,
) -> KernelEntry {
    KernelEntry {
        name: name.to_owned(),
        bf16,
        make: Box::new(make),
    }
}

/// Address of a tensor's first element.
fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// libtorch's name of a dtype.
fn kind(dtype: DType) -> tch::Kind {
    match dtype {
        DType::F32 => tch::Kind::Float,
        DType::Bf16 => tch::Kind::BFloat16,
    }
}

/// Copies `values` to the GPU, as `[n]`.
fn on<T: tch::kind::Element>(gpu: &Gpu, values: &[T]) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(values)?.f_to_device(gpu.device())?)
}

/// A tensor's elements on the host, row-major.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let values = tensor
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(tch::Kind::Double)?;
    Ok(Vec::<f64>::try_from(&values.f_contiguous()?.f_view([-1])?)?)
}

/// The measurement of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelFigure {
    /// The kernel's name in `fovea-kernels`, with the element type where it has several.
    pub name: String,
    /// The input's size in words, such as `4096 patches of 128 px`.
    pub shape: String,
    /// Median time on the device, in milliseconds.
    pub ms: f64,
    /// Least bytes that must move: every input read once, every output written once.
    pub bytes: u64,
    /// `bytes / ms`, in 10^9 bytes per second.
    pub gb_s: f64,
    /// `gb_s` divided by the rate of the copy in the same run.
    pub of_copy: f64,
    /// Median time of the operation composed of libtorch's, in milliseconds.
    pub composed_ms: f64,
    /// Speed-up over the composition: `composed_ms / ms`.
    pub ratio: f64,
}

/// The result of `fovea bench kernels`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelFigures {
    /// The GPU that was measured, with its driver.
    pub gpu: GpuFacts,
    /// Bytes read and written by a copy within device memory, in 10^9 per second.
    pub copy_gb_s: f64,
    /// Number of measured calls of each kernel.
    pub repeats: usize,
    /// One entry per kernel, in the order of a step.
    pub kernels: Vec<KernelFigure>,
}

/// Measures all kernels on GPU `ordinal`.
///
/// # Errors
/// There is no such GPU, it has too little memory, or a kernel fails.
pub fn measure_kernels(ordinal: u32, repeats: usize) -> Result<KernelFigures> {
    let gpu = Gpu::open(ordinal, gpu::cache_folder().as_deref())?;
    measure_on(&gpu, &Shapes::full(), COPY_BYTES, repeats)
}

fn measure_on(gpu: &Gpu, shapes: &Shapes, copy: usize, repeats: usize) -> Result<KernelFigures> {
    let clock = Clock::new(gpu, copy, repeats.max(1))?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let copy_ms = clock.median(&mut || clock.copy())?;
    let copy_gb_s = 2.0 * clock.bytes() as f64 / copy_ms / 1e6;
    let mut kernels = Vec::new();
    for KernelEntry { name, make, .. } in all() {
        let trial = make(gpu, shapes, &mut rng)?;
        let ms = clock.median(&mut || trial.kernel(gpu))?;
        let composed_ms = clock.median(&mut || trial.composed())?;
        let bytes = trial.bytes() as u64;
        let gb_s = bytes as f64 / ms / 1e6;
        kernels.push(KernelFigure {
            name,
            shape: trial.shape(),
            ms,
            bytes,
            gb_s,
            of_copy: gb_s / copy_gb_s,
            composed_ms,
            ratio: composed_ms / ms,
        });
    }
    Ok(KernelFigures {
        gpu: GpuFacts::of(gpu)?,
        copy_gb_s,
        repeats,
        kernels,
    })
}

/// Measures the time of work on a GPU's stream.
struct Clock<'a> {
    gpu: &'a Gpu,
    repeats: usize,
    from: Tensor,
    to: Tensor,
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a Gpu, bytes: usize, repeats: usize) -> Result<Self> {
        let bytes = bytes.min(gpu.kernels().free_bytes()? / COPY_SHARE);
        let side = || Tensor::f_zeros([bytes as i64], (tch::Kind::Uint8, gpu.device()));
        Ok(Self {
            gpu,
            repeats,
            from: side()?,
            to: side()?,
        })
    }

    fn bytes(&self) -> usize {
        self.from.numel()
    }

    fn copy(&self) -> Result<()> {
        let (to, from) = (self.to.data_ptr() as u64, self.from.data_ptr() as u64);
        // SAFETY: two tensors of this length, which outlive the work: `median` waits for it.
        let started = unsafe {
            self.gpu
                .kernels()
                .copy_on_device_async(self.gpu.stream(), to, from, self.bytes())
        };
        Ok(started?)
    }

    /// Median time in milliseconds on the device of the work that `work` puts on the stream. A copy precedes each call.
    /// While it runs, the host submits all that follows, so the host's own time does not count; the copy also clears
    /// the device's caches.
    fn median(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        for _ in 0..WARM_UP {
            work()?;
        }
        let mut stamps: Vec<(Event, Event)> = Vec::with_capacity(self.repeats);
        for _ in 0..self.repeats {
            self.copy()?;
            let begun = self.gpu.stamp()?;
            work()?;
            stamps.push((begun, self.gpu.stamp()?));
        }
        self.gpu.synchronize()?;
        let times = stamps
            .iter()
            .map(|(begun, ended)| Ok(f64::from(ended.ms_since(begun)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Spread::of(&times).median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_emulate::driver;
    use fovea_trainer::ops::NormEngine;

    fn small() -> Shapes {
        Shapes {
            images: 2,
            size: 40,
            patches: 3,
            patch: 16,
            view: 24,
            augment: Some(augment(&Config::default())),
            rows: 70,
            parameters: 999,
        }
    }

    /// The expected numbers are worked out by hand from the documentation of each trial.
    #[test]
    fn bytes_are_counted() {
        let _alone = crate::emulated::alone();
        let gpu = crate::emulated::gpu(NormEngine::Fused);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let bytes: Vec<usize> = all()
            .iter()
            .map(|entry| {
                (entry.make)(&gpu, &small(), &mut rng)
                    .expect("buffers")
                    .bytes()
            })
            .collect();
        let loss = 70 * 4 * 8 + 70 * 8;
        let (patches, views) = (3 * 16 * 16 * 3, 2 * 24 * 24 * 3);
        let taps = fovea_kernels::cuda::resize_table(40, 24)
            .expect("taps")
            .len()
            * 4;
        let want = [
            patches * 5 + 3 * 24,
            patches * 3 + 3 * 24,
            2 * 40 * 40 * 3 + views * 4 + taps,
            views * 8,
            views * 6,
            loss,
            loss,
            loss,
            loss,
            999 * 28,
            999 * 30,
            999 * 6,
            999 * 4,
        ];
        assert_eq!(bytes, want);
    }

    /// Runs the whole measurement on the emulated driver, whose events have times too.
    #[test]
    fn everything_is_measured() {
        let _alone = crate::emulated::alone();
        let gpu = crate::emulated::gpu(NormEngine::Fused);
        let figures = measure_on(&gpu, &small(), 1 << 16, 3).expect("figures");
        driver::check().expect("nothing forbidden");
        assert_eq!(figures.kernels.len(), all().len());
        assert!(figures.copy_gb_s > 0.0);
        for f in &figures.kernels {
            assert!(f.ms > 0.0 && f.composed_ms > 0.0, "{f:?}");
            assert!((f.gb_s / (f.bytes as f64 / f.ms / 1e6) - 1.0).abs() < 1e-9);
            assert!((f.of_copy * figures.copy_gb_s / f.gb_s - 1.0).abs() < 1e-9);
            assert!((f.ratio * f.ms / f.composed_ms - 1.0).abs() < 1e-9);
        }
    }
}
