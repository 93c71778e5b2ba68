//! The step on a GPU: one stream runs a whole attempt and its commit, in the order of the CPU's step, and the host
//! waits once, for the loss and the norm that the ranks vote on.
//!
//! The images are in device memory ([`images`]). One block per virtual shard uploads everything that changes from step
//! to step ([`inputs`]). The kernels of `fovea-kernels` cut patches, compute losses and run the optimizer; libtorch
//! computes convolutions ([`views`], [`pass`], [`step`]). Tensors may also lie on the CPU: the tests run all of this
//! there, with an emulated driver.

mod adder;
mod graph;
mod images;
mod inputs;
mod libtorch;
mod measure;
mod pass;
mod step;
#[cfg(test)]
pub(crate) mod tests;
mod views;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fovea_dataset::Dataset;
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{Arch, Kernels, Op};
use fovea_run::config::Device as Choice;
use tch::{Device, Tensor};

pub use self::images::SetShape;
pub use self::step::GpuStep;

use self::images::Images;
use crate::error::{Error, Result};
use crate::ops::{self, NormEngine};

/// The oldest architecture that multiplies bf16 natively.
const NATIVE_BF16: Arch = Arch(80);

/// The GPUs of this machine that this process may use, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisibleGpus {
    count: u32,
    /// The driver's message when it gives no number.
    problem: Option<String>,
}

impl VisibleGpus {
    /// Number of GPUs; 0 if the driver reports a problem.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Asks the driver, if this machine has one.
    pub fn here() -> Self {
        match fovea_kernels::cuda::Device::count() {
            Ok(count) => Self {
                count,
                problem: None,
            },
            Err(error) => Self {
                count: 0,
                problem: Some(error.to_string()),
            },
        }
    }
}

/// The GPU that process `local_rank` of this machine computes on; none for the CPU. If there are more processes than
/// GPUs, they share them.
pub fn choose(choice: Choice, found: &VisibleGpus, local_rank: u32) -> Result<Option<u32>> {
    match (choice, found.count) {
        (Choice::Cpu, _) | (Choice::Auto, 0) => Ok(None),
        (Choice::Auto | Choice::Cuda, count @ 1..) => Ok(Some(local_rank % count)),
        (Choice::Cuda, 0) => Err(Error::Usage {
            what: match &found.problem {
                Some(problem) => headline(problem).to_owned(),
                None => "the driver knows no GPU that this process may use".to_owned(),
            },
            help: "nvidia-smi -L lists the GPUs, CUDA_VISIBLE_DEVICES may hide some; in a batch job ask for them \
                   (--gpus); or train with --device cpu"
                .to_owned(),
        }),
    }
}

fn headline(text: &str) -> &str {
    text.split("\n  help: ").next().unwrap_or_default()
}

/// The folder for compiled kernels: `fovea/kernels` in the user's cache folder, if there is one.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| {
        let value = PathBuf::from(std::env::var_os(name)?);
        value.is_absolute().then_some(value)
    };
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("fovea/kernels"))
}

/// A GPU that this process computes on, from one thread.
pub struct Gpu {
    kernels: Arc<Kernels>,
    /// The device that holds libtorch's tensors.
    device: Device,
    /// The stream of all work; it lives as long as the process.
    stream: usize,
    /// How libtorch's passes compute normalisation.
    engine: NormEngine,
    images: RefCell<Option<Images>>,
}

impl Gpu {
    /// A GPU with an emulated driver, whose tensors lie in host memory.
    pub fn on_host(kernels: Arc<Kernels>, stream: usize, engine: NormEngine) -> Self {
        Self {
            kernels,
            device: Device::Cpu,
            stream,
            engine,
            images: RefCell::new(None),
        }
    }

    /// Takes GPU `ordinal` (counted after `CUDA_VISIBLE_DEVICES`) for the calling thread; `cache` is the folder for
    /// compiled kernels.
    pub fn open(ordinal: u32, cache: Option<&Path>) -> Result<Self> {
        let kernels = Kernels::load(ordinal, &Search::from_env(), cache)?;
        libtorch::load_cuda()?;
        ops::no_tf32();
        Ok(Self {
            kernels,
            device: Device::Cuda(ordinal as usize),
            stream: ops::own_stream(ordinal)?,
            engine: NormEngine::Composed,
            images: RefCell::new(None),
        })
    }

    /// Brings the images of a dataset into device memory. Without room for all, prepares to bring those of each batch.
    pub fn load_images(&mut self, data: Arc<Dataset>) -> Result<()> {
        *self.images.get_mut() = Some(Images::new(&self.kernels, data)?);
        Ok(())
    }

    /// The kernels loaded on this GPU; its streams and buffers are made with them.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// The device that holds libtorch's tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether the GPU multiplies bf16 natively (Ampere and later).
    pub fn native_bf16(&self) -> bool {
        self.kernels.device().arch >= NATIVE_BF16
    }

    /// The GPU's name, memory and driver.
    pub fn describe(&self) -> String {
        let device = self.kernels.device();
        format!(
            "GPU {} ({}, {} GiB, driver for CUDA {})",
            device.ordinal,
            device.name,
            device.total_bytes >> 30,
            device.driver_version()
        )
    }

    /// The number of images in device memory, and of all images; none before [`Gpu::load_images`].
    pub fn resident(&self) -> Option<(usize, usize)> {
        self.images.borrow().as_ref().map(Images::resident)
    }

    /// Whether all images are in device memory, where they never move.
    fn all_resident(&self) -> bool {
        self.resident().is_some_and(|(there, all)| there == all)
    }

    /// Puts an operation on the stream.
    ///
    /// # Safety
    ///
    /// The addresses in `op` must be of device memory of the lengths that it documents, valid until the work on the
    /// stream is done.
    pub unsafe fn run(&self, op: &(impl Op + ?Sized)) -> Result<()> {
        // SAFETY: the stream lives as long as the process; the rest is the caller's promise.
        Ok(unsafe { self.kernels.run(self.stream, op) }?)
    }
}

/// Address of a tensor's first element.
fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}
