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

/// One committed step.
pub(super) struct MeasuredStep {
    /// From the commit before to this one.
    pub ms: f64,
    /// Patches of all ranks.
    pub patches: u64,
    /// Global mean loss.
    pub loss: f64,
}

/// A rank that trains on what does not exist.
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
    /// The newest step's first and last work on a GPU, until its time is known.
    on_gpu: Option<(Event, Event)>,
    /// From the one to the other, by step.
    gpu_ms: Vec<f64>,
}

impl Training {
    /// This process alone.
    pub fn alone(work: &Work) -> Result<Self> {
        let seat = MeetingSeat {
            meeting: String::new(),
            rank: 0,
            world: 1,
        };
        Self::with(work, &seat, BackendChoice::Auto)
    }

    /// One of several ranks. Each has all images, as in training.
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

    /// On this GPU, or the CPU, with these ranks.
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

    /// The GPU's name, or that it is the CPU and by how many threads.
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

    /// Operations of a full step.
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

    /// The backend by which the ranks meet.
    pub fn backend(&self) -> &'static str {
        self.collective.name()
    }

    /// By step, what the slowest rank has.
    pub fn slowest(&mut self, mine: &[f64]) -> Result<Vec<f64>> {
        slowest(self.collective.as_mut(), mine)
    }

    /// Steps of an epoch, until it is over or `take` has seen enough of them.
    pub fn epoch(&mut self, epoch: u32, take: &mut dyn FnMut(&MeasuredStep) -> bool) -> Result<()> {
        let order = Arc::new(EpochOrder::new(&self.order_input, epoch)?);
        let samples = Arc::clone(&self.samples);
        let load = move |units: &[Unit], epoch| samples.load(units, epoch);
        let mut loader = Loader::spawn(load, order, 0, self.part.clone())?;
        let mut last = Instant::now();
        while let Some(batch) = loader.next_batch()? {
            let total = Denominators {
                images: batch.images,
                patches: batch.patches,
            };
            let begun = self.stamp()?;
            let mut peers = Peers {
                collective: self.collective.as_mut(),
                patience: PATIENCE,
            };
            let sums = self
                .replica
                .attempt(&batch.shards, epoch, total, &mut peers, &mut || ())?;
            self.note_gpu_time()?;
            let verdict = self.replica.verdict(&sums, total);
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
                patches: total.patches,
                loss: verdict.loss,
            };
            last = now;
            if !take(&step) {
                break;
            }
        }
        self.settle()
    }

    /// Waits for the newest commit.
    fn settle(&mut self) -> Result<()> {
        if let Some((_, end)) = &self.on_gpu {
            end.synchronize()?;
        }
        self.note_gpu_time()
    }

    fn stamp(&self) -> Result<Option<Event>> {
        self.replica.gpu().map(Gpu::stamp).transpose()
    }

    /// The step before is through when the host has waited for an attempt.
    fn note_gpu_time(&mut self) -> Result<()> {
        if let Some((begun, end)) = self.on_gpu.take() {
            self.gpu_ms.push(f64::from(end.ms_since(&begun)?));
        }
        Ok(())
    }

    /// Bytes that were in use at most: of the GPU's memory by anybody (libtorch gives back nothing, so now is the peak),
    /// else of host memory by this process.
    fn peak_bytes(&self) -> Result<u64> {
        match self.replica.gpu() {
            Some(gpu) => Ok(gpu.used_bytes()? as u64),
            None => Ok(peak_of_process(
                &std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
            )),
        }
    }
}

/// `VmHWM` of /proc/PID/status in bytes; 0 where it is not told.
fn peak_of_process(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

/// What `fovea bench step` found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepFigures {
    /// What computed.
    pub device: String,
    /// Of convolutions.
    pub precision: &'static str,
    /// Images of a step.
    pub images: u32,
    /// Patches of each of them.
    pub patches_per_image: u32,
    /// Side of a patch, pixels.
    pub patch: u32,
    /// Side of a whole image's view, pixels.
    pub global_size: u32,
    /// Leaves of the reduction tree.
    pub virtual_shards: u32,
    /// Whether steps were to be run as CUDA graphs.
    pub cuda_graphs: bool,
    /// Steps that were measured.
    pub steps: u32,
    /// From commit to commit.
    pub step_ms: Spread,
    /// Patches of a step by the median.
    pub patches_per_s: f64,
    /// 10^9 operations of a step's convolutions, linear layers and attention, forward and backward.
    pub gflop: f64,
    /// 10^12 of them in a second, by the median.
    pub tflop_per_s: f64,
    /// On a GPU, the part of the time in which a step's work is on the stream, between the first and the last of it; the
    /// rest is the host's between steps. Gaps between two kernels of a step count as work.
    pub gpu_share: Option<f64>,
    /// Global mean loss of the last step.
    pub loss: f64,
}

/// Measures `steps` steps after `warm_up` others.
///
/// # Errors
/// What does not fit together in `work`; no GPU where one is asked for; what goes wrong in a step.
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

/// `steps` steps after `warm_up` others, over as many epochs as it takes.
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

/// What `fovea bench epoch` found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochFigures {
    /// What computed.
    pub device: String,
    /// Of convolutions.
    pub precision: &'static str,
    /// Images of the set.
    pub images: u32,
    /// Their side, pixels.
    pub size: u32,
    /// Patches that were trained on, each once.
    pub patches: u64,
    /// Steps.
    pub steps: u32,
    /// Before the first step: images, kernels, parameters.
    pub set_up_s: f64,
    /// From the first batch to the last commit.
    pub seconds: f64,
    /// Patches in a second.
    pub patches_per_s: f64,
    /// From commit to commit.
    pub step_ms: Spread,
    /// Most memory in use, bytes: of the GPU by all that run on it, else of this process.
    pub peak_bytes: u64,
    /// Global mean loss of the first and of the last step.
    pub loss: [f64; 2],
}

/// Trains one epoch on all images.
///
/// # Errors
/// As [`measure_steps`]; images that do not fit into memory.
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

    /// The whole loop with images that are made in the memory of an emulated GPU.
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
