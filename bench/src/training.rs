//! Steps on synthetic images, without a coordinator: `fovea bench step` and `fovea bench epoch`.
//!
//! The loop is that of [`fovea_trainer::train`] without votes: the loader's thread, attempt, verdict, commit.

use std::sync::Arc;
use std::time::Instant;

use fovea_collectives::{AbortHandle, BackendChoice, Collective, Solo};
use fovea_coordinator::order::{EpochOrder, OrderInput, Unit, rank_shards};
use fovea_kernels::cuda::Event;
use fovea_run::config::Config;
use fovea_task::Task;
use fovea_trainer::gpu::Gpu;
use fovea_trainer::lanes::ThreadLanes;
use fovea_trainer::models::Sizes;
use fovea_trainer::objective::{Denominators, unweighted};
use fovea_trainer::precision::{Precision, native_bf16};
use fovea_trainer::replica::Replica;
use fovea_trainer::samples::{Loader, Part};
use fovea_trainer::train::{Peers, gpu, lanes};
use fovea_trainer::{Error, Result};
use serde::Serialize;

use super::seat::{MeetingSeat, PATIENCE, join, join_by, slowest};
use super::synthetic::{SyntheticSamples, Work};
use super::times::Spread;

/// The times and the loss of one committed step.
pub(super) struct MeasuredStep {
    /// Milliseconds from the commit before to this one.
    pub ms: f64,
    /// Patches of the step, over all ranks.
    pub patches: u64,
    /// Mean loss of the step over all ranks.
    pub loss: f64,
}

/// A rank that trains on synthetic images.
pub(super) struct Training {
    pub work: Work,
    pub config: Config,
    pub precision: Precision,
    replica: Replica,
    samples: Arc<SyntheticSamples>,
    order_input: OrderInput,
    collective: Box<dyn Collective>,
    part: Part,
    step: u64,
    /// Events before the first and after the last GPU work of the newest step, until its time is known.
    on_gpu: Option<(Event, Event)>,
    /// Milliseconds between these events, by step; empty on a CPU.
    gpu_ms: Vec<f64>,
}

impl Training {
    /// A world of this process alone.
    pub fn alone(work: &Work) -> Result<Self> {
        let seat = MeetingSeat {
            meeting: String::new(),
            rank: 0,
            world: 1,
        };
        Self::with(work, &seat, BackendChoice::Auto)
    }

    /// One of several ranks. Every rank has all images, as in training.
    pub fn with(work: &Work, seat: &MeetingSeat, choice: BackendChoice) -> Result<Self> {
        let MeetingSeat { rank, world, .. } = *seat;
        let config = work.config(world as u32)?;
        let gpu = gpu(&config.train, rank as u32)?;
        let collective: Box<dyn Collective> = match world {
            1 => Box::new(Solo::new(&AbortHandle::new())),
            _ => join_by(choice, join(seat)?, gpu.as_ref().map(Gpu::kernels))?,
        };
        let lanes = lanes(&config.train, gpu.is_some())?;
        Self::on(work, config, lanes, gpu, collective)
    }

    /// A rank on this GPU, or on the CPU, joined to the other ranks by `collective`.
    fn on(
        work: &Work,
        config: Config,
        lanes: ThreadLanes,
        mut gpu: Option<Gpu>,
        collective: Box<dyn Collective>,
    ) -> Result<Self> {
        let native = gpu.as_ref().map_or_else(native_bf16, Gpu::native_bf16);
        let precision = Precision::resolve(config.train.precision, native);
        let samples = SyntheticSamples::new(work, &config, precision, gpu.is_some())?;
        if let Some(gpu) = &mut gpu {
            gpu.make_images(work.shape())?;
        }
        let virtual_shards = config.train.virtual_shards as usize;
        let part = Part {
            shards: rank_shards(collective.rank(), collective.world(), virtual_shards)?,
            virtual_shards,
            images_per_step: config.train.images_per_step as usize,
        };
        let task = Task::lesions();
        let objective = unweighted(&config.loss, &task)?;
        Ok(Self {
            work: work.clone(),
            precision,
            replica: Replica::configured(&config, &task, precision, objective, lanes, gpu)?,
            samples: Arc::new(samples),
            order_input: work.order_input(config.train.seed),
            collective,
            part,
            config,
            step: 0,
            on_gpu: None,
            gpu_ms: Vec::new(),
        })
    }

    /// The GPU's name; on a CPU, the number of threads and lanes.
    pub fn device(&self) -> String {
        match self.replica.gpu() {
            Some(gpu) => gpu.describe(),
            None => {
                let lanes = self.replica.lanes().count();
                let threads = lanes * tch::get_num_threads() as usize;
                format!("cpu (threads: {threads}, lanes: {lanes})")
            }
        }
    }

    /// Floating-point operations of a full step, forward and backward.
    pub fn flops(&self) -> u64 {
        let net = &self.replica.net;
        let sizes = Sizes {
            images: self.config.train.images_per_step.into(),
            global: self.config.data.global_size.into(),
            patches: self.config.data.patches_per_image.into(),
            patch: self.work.patch.into(),
        };
        net.model.macs(&net.params.blueprint, &sizes).flops()
    }

    /// Name of the backend that exchanges the gradients.
    pub fn backend(&self) -> &'static str {
        self.collective.name()
    }

    /// For each step, the largest value of all ranks. All ranks call it, with as many values.
    pub fn slowest(&mut self, mine: &[f64]) -> Result<Vec<f64>> {
        slowest(self.collective.as_mut(), mine)
    }

    /// Takes the steps of an epoch until it is over or `take` returns false.
    pub fn epoch(&mut self, epoch: u32, take: &mut dyn FnMut(&MeasuredStep) -> bool) -> Result<()> {
        let order = Arc::new(EpochOrder::new(&self.order_input, epoch)?);
        let samples = Arc::clone(&self.samples);
        let load = move |units: &[Unit], epoch| samples.load(units, epoch);
        let mut loader = Loader::spawn(load, order, 0, self.part.clone())?;
        let mut last = Instant::now();
        while let Some(batch) = loader.next_batch()? {
            // Every synthetic sample has its labels.
            let (images, patches) = (batch.images, batch.patches);
            let total = Denominators::all_labelled(&Task::lesions(), images, patches);
            let begun = self.stamp()?;
            let mut peers = Peers {
                collective: self.collective.as_mut(),
                patience: PATIENCE,
            };
            let sums =
                self.replica
                    .attempt(&batch.shards, epoch, &total, &mut peers, &mut || ())?;
            self.note_gpu_time()?;
            let verdict = self.replica.verdict(&sums, &total);
            self.step += 1;
            if !verdict.is_finite() {
                return Err(Error::NotFinite {
                    step: self.step,
                    epoch: epoch + 1,
                    loss: verdict.loss,
                    norm: verdict.grad_norm,
                });
            }
            let lr = self.config.optimizer.lr;
            self.replica
                .commit(sums, &self.config, lr, self.step, verdict)?;
            self.on_gpu = begun.zip(self.stamp()?);
            let now = Instant::now();
            let step = MeasuredStep {
                ms: (now - last).as_secs_f64() * 1e3,
                patches: batch.patches,
                loss: verdict.loss,
            };
            last = now;
            if !take(&step) {
                break;
            }
        }
        self.settle()
    }

    /// Waits until the GPU has finished the newest commit.
    fn settle(&mut self) -> Result<()> {
        if let Some((_, end)) = &self.on_gpu {
            end.synchronize()?;
        }
        self.note_gpu_time()
    }

    fn stamp(&self) -> Result<Option<Event>> {
        self.replica.gpu().map(Gpu::stamp).transpose()
    }

    /// Records the GPU time of the step before, which is over once the host has waited for an attempt or for its end.
    fn note_gpu_time(&mut self) -> Result<()> {
        if let Some((begun, end)) = self.on_gpu.take() {
            self.gpu_ms.push(f64::from(end.ms_since(&begun)?));
        }
        Ok(())
    }

    /// Peak memory in bytes. On a GPU: the memory that all processes use there now, which is the peak, because libtorch
    /// returns nothing. On a CPU: the host memory of this process.
    fn peak_bytes(&self) -> Result<u64> {
        match self.replica.gpu() {
            Some(gpu) => Ok(gpu.used_bytes()? as u64),
            None => Ok(peak_of_process(
                &std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
            )),
        }
    }
}

/// `VmHWM` of /proc/PID/status in bytes; 0 where it is missing.
fn peak_of_process(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

/// The result of `fovea bench step`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepFigures {
    /// The GPU's name, or the CPU with its threads and lanes.
    pub device: String,
    /// Precision of the convolutions: `f32` or `bf16`, as resolved for this device.
    pub precision: &'static str,
    /// Images of a step, over all ranks.
    pub images: u32,
    /// Patches of each image of a step.
    pub patches_per_image: u32,
    /// Side of a patch in pixels.
    pub patch: u32,
    /// Side of the global view in pixels.
    pub global_size: u32,
    /// Virtual shards: the leaves of the reduction tree.
    pub virtual_shards: u32,
    /// Whether the configuration asked for CUDA graphs.
    pub cuda_graphs: bool,
    /// Number of measured steps, without the warm-up.
    pub steps: u32,
    /// Milliseconds from commit to commit.
    pub step_ms: Spread,
    /// Patches per second, by the median step.
    pub patches_per_s: f64,
    /// Operations in 10^9 of a step's convolutions, linear layers and attention, forward and backward.
    pub gflop: f64,
    /// These operations in 10^12 per second, by the median step.
    pub tflop_per_s: f64,
    /// On a GPU, the fraction of the measured time in which a step is on the stream, from its first to its last
    /// operation; the rest is the host's time between steps. Gaps between two kernels of a step count as work. None on
    /// a CPU.
    pub gpu_share: Option<f64>,
    /// Mean loss of the last step; NaN without steps.
    pub loss: f64,
}

/// Measures `steps` steps after `warm_up` others.
///
/// # Errors
/// Parts of `work` do not fit together; there is no GPU where one is asked for; a step fails.
pub fn measure_steps(work: &Work, warm_up: u32, steps: u32) -> Result<StepFigures> {
    figures_of(&mut Training::alone(work)?, warm_up, steps)
}

fn figures_of(training: &mut Training, warm_up: u32, steps: u32) -> Result<StepFigures> {
    let taken = take_steps(training, warm_up, steps)?;
    let work = &training.work;
    let times: Vec<f64> = taken.iter().map(|step| step.ms).collect();
    let step_ms = Spread::of(&times);
    let patches = work.images_per_step * work.patches_per_image;
    let gflop = training.flops() as f64 / 1e9;
    let on_gpu: f64 = training.gpu_ms.iter().skip(warm_up as usize).sum();
    let measured: f64 = times.iter().sum();
    Ok(StepFigures {
        device: training.device(),
        precision: training.precision.name(),
        images: work.images_per_step,
        patches_per_image: work.patches_per_image,
        patch: work.patch,
        global_size: work.global_size,
        virtual_shards: work.virtual_shards,
        cuda_graphs: work.cuda_graphs,
        steps,
        patches_per_s: f64::from(patches) / step_ms.median * 1e3,
        gflop,
        tflop_per_s: gflop / step_ms.median,
        gpu_share: (!training.gpu_ms.is_empty()).then(|| (on_gpu / measured).min(1.0)),
        loss: taken.last().map_or(f64::NAN, |step| step.loss),
        step_ms,
    })
}

/// Takes `steps` steps after `warm_up` others, over as many epochs as they need.
pub(super) fn take_steps(
    training: &mut Training,
    warm_up: u32,
    steps: u32,
) -> Result<Vec<MeasuredStep>> {
    let mut taken = Vec::new();
    let mut seen = 0;
    let mut epoch = 0;
    while seen < warm_up + steps {
        training.epoch(epoch, &mut |step| {
            seen += 1;
            if seen > warm_up {
                taken.push(MeasuredStep { ..*step });
            }
            seen < warm_up + steps
        })?;
        epoch += 1;
    }
    Ok(taken)
}

/// The result of `fovea bench epoch`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochFigures {
    /// The GPU's name, or the CPU with its threads and lanes.
    pub device: String,
    /// Precision of the convolutions: `f32` or `bf16`, as resolved for this device.
    pub precision: &'static str,
    /// Number of images in the set.
    pub images: u32,
    /// Side of an image in pixels.
    pub size: u32,
    /// Patches trained on, each once.
    pub patches: u64,
    /// Number of steps in the epoch, all measured.
    pub steps: u32,
    /// Seconds before the first step: images, kernels, parameters.
    pub set_up_s: f64,
    /// Seconds from the first batch to the last commit.
    pub seconds: f64,
    /// Patches per second over the whole epoch.
    pub patches_per_s: f64,
    /// Milliseconds from commit to commit.
    pub step_ms: Spread,
    /// Peak memory in bytes: on a GPU that of all processes on it, otherwise that of this process.
    pub peak_bytes: u64,
    /// Mean loss of the first and of the last step.
    pub loss: [f64; 2],
}

/// Trains one epoch on all images and measures it.
///
/// # Errors
/// As [`measure_steps`]; the images do not fit into memory.
pub fn measure_epoch(work: &Work) -> Result<EpochFigures> {
    let begun = Instant::now();
    let mut training = Training::alone(work)?;
    let set_up_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let (mut times, mut losses, mut patches) = (Vec::new(), Vec::new(), 0);
    training.epoch(0, &mut |step| {
        times.push(step.ms);
        losses.push(step.loss);
        patches += step.patches;
        true
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let loss = |step: Option<&f64>| step.copied().unwrap_or(f64::NAN);
    Ok(EpochFigures {
        device: training.device(),
        precision: training.precision.name(),
        images: work.images,
        size: work.size,
        patches,
        steps: times.len() as u32,
        set_up_s,
        seconds,
        patches_per_s: patches as f64 / seconds,
        step_ms: Spread::of(&times),
        peak_bytes: training.peak_bytes()?,
        loss: [loss(losses.first()), loss(losses.last())],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_emulate::driver;
    use fovea_run::config::{Device, Precision};
    use fovea_trainer::ops::NormEngine;

    #[test]
    fn the_peak_is_read_from_proc() {
        let status = "Name:\tfovea\nVmPeak:\t  200 kB\nVmHWM:\t     123 kB\nThreads:\t4\n";
        assert_eq!(peak_of_process(status), 123 * 1024);
        assert_eq!(peak_of_process("Name:\tfovea\n"), 0);
        let own = std::fs::read_to_string("/proc/self/status").expect("of this process");
        assert!(peak_of_process(&own) > 1 << 20);
    }

    /// Runs the whole loop, with images in the memory of an emulated GPU.
    #[test]
    fn steps_on_the_emulated_gpu() {
        let _alone = crate::emulated::alone();
        let work = Work {
            device: Device::Cuda,
            images: 4,
            size: 64,
            patch: 32,
            global_size: 64,
            images_per_step: 2,
            patches_per_image: 2,
            virtual_shards: 1,
            precision: Precision::F32,
            threads: 1,
            cuda_graphs: false,
            even: true,
        };
        let config = work.config(1).expect("a configuration");
        let gpu = crate::emulated::gpu(NormEngine::Composed);
        let alone = Box::new(Solo::new(&AbortHandle::new()));
        let mut training =
            Training::on(&work, config, ThreadLanes::one(), Some(gpu), alone).expect("images");
        let gpu = training.replica.gpu().expect("a GPU");
        assert_eq!(gpu.resident(), Some((4, 4)));
        let figures = figures_of(&mut training, 1, 2).expect("steps");
        driver::check().expect("nothing forbidden");
        assert_eq!(training.gpu_ms.len(), 3);
        assert!(training.gpu_ms.iter().all(|ms| *ms > 0.0));
        let share = figures.gpu_share.expect("measured");
        assert!(share > 0.0 && share <= 1.0, "{figures:?}");
        assert!(figures.loss.is_finite() && figures.loss > 0.0);
        assert_eq!((figures.steps, figures.precision), (2, "f32"));
    }
}
