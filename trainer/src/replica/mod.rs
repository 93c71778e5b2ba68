//! One rank's copy of the model: the forward and backward pass of an attempt, and its commit.
//!
//! All devices have a [`Network`]; [`cpu`] and [`crate::gpu`] compute its steps.

mod cpu;

use fovea_kernels::flat::{self, AdamParams};
use fovea_run::config::{Config, OptimizerKind};
use fovea_task::Task;
use tch::{Device, Tensor};

use self::cpu::CpuStep;
use crate::buckets::Buckets;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, GpuStep};
use crate::host;
use crate::lanes::ThreadLanes;
use crate::models::{self, Blueprint, Input, Model, Pass, Tokens};
use crate::objective::{Denominators, HeadLoss, Objective};
use crate::ops::{NormEngine, NormMode};
use crate::overlap::Exchange;
use crate::params::Params;
use crate::precision::Precision;
use crate::reduce::Surface;
use crate::samples::{Pixels, ShardBatch, Views};
use crate::trace::Trace;

/// Weight of the newest batch in the running statistics (torchvision's default).
pub(crate) const NORM_MOMENTUM: f32 = 0.1;

/// The result of a reduced attempt in two numbers, the same on every rank.
#[derive(Clone, Copy, Debug)]
pub struct StepVerdict {
    /// The objective over the global batch: the weighted sum of the heads' mean losses.
    pub loss: f64,
    /// Norm of the global gradient, before clipping.
    pub grad_norm: f64,
}

impl StepVerdict {
    /// Whether both numbers are finite; only then may the optimizer move.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// The sums of an attempt over all ranks. [`Replica::commit`] takes them back.
#[derive(Debug)]
pub enum Sums {
    /// Sums in host memory, laid out as [`Surface`] says.
    Host(Vec<f32>),
    /// Sums in GPU memory, in the same layout, and their totals on the host.
    Gpu(Tensor, Totals),
}

impl Sums {
    /// A copy of the sums on the host.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        match self {
            Self::Host(sums) => Ok(sums.clone()),
            Self::Gpu(sums, _) => Ok(Vec::<f32>::try_from(sums)?),
        }
    }
}

/// The numbers from which the verdict over an attempt is computed.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Summed loss of each head, in the task's order.
    pub losses: Vec<f32>,
    /// Sum of the squares of the global gradient.
    pub sum_squares: f64,
}

/// Logits of one virtual shard or of one image.
pub struct Scores {
    /// For each target of the task, `[rows, classes]` row-major: a row per image or per patch.
    pub heads: Vec<Vec<f32>>,
}

/// Model, parameters and objective, and how their sums travel.
pub struct Network {
    /// The model, which holds no numbers.
    pub model: Box<dyn Model>,
    /// Parameters, optimizer moments and running statistics.
    pub params: Params,
    /// The objective, one loss per head.
    pub objective: Objective,
    /// Length of the flat batch statistics, elements.
    pub(crate) stats_len: usize,
    pub(crate) surface: Surface,
    pub(crate) buckets: Buckets,
    pub(crate) trace: Trace,
    pub(crate) seed: u64,
}

impl Network {
    fn new(
        config: &Config,
        (model, blueprint): (Box<dyn Model>, Blueprint),
        precision: Precision,
        objective: Objective,
        device: Device,
    ) -> Result<Self> {
        let stats_len = blueprint.stats_len();
        let params = Params::new(blueprint, precision, config.train.seed, device)?;
        let grads = 0..params.layout.len;
        let stats = grads.end..grads.end + stats_len;
        // The summed loss of each head, and the number of virtual shards with samples.
        let scalars = stats.end..stats.end + objective.len() + 1;
        let bucket_bytes = (config.train.bucket_mb as usize) << 20;
        Ok(Self {
            buckets: Buckets::new(&params.layout, scalars.end, bucket_bytes),
            trace: Trace::new(config.train.trace_steps > 0),
            model,
            params,
            objective,
            stats_len,
            surface: Surface {
                grads,
                stats,
                scalars,
            },
            seed: config.train.seed,
        })
    }

    /// A pass of the model with these parameters; `dropout` as [`Pass::dropout`].
    pub(crate) fn pass<'a>(
        &'a self,
        mode: NormMode<'a>,
        engine: NormEngine,
        dropout: Option<&'a [Tensor]>,
    ) -> Pass<'a> {
        Pass {
            params: self.params.leaves(),
            norms: &self.params.blueprint.norms,
            mode,
            engine,
            dropout,
        }
    }

    /// Factor on the dlogits of each head: its weight over its rows of the global batch.
    pub(crate) fn scales(&self, total: Denominators) -> Vec<f32> {
        let heads = self.objective.iter();
        heads
            .map(|head| head.weight / total.rows(head.level) as f32)
            .collect()
    }

    /// The columns that the model reads, `[b, k]` on its device; k is 0 for most models.
    ///
    /// # Errors
    /// [`Error::Usage`] when the images have no such numbers.
    pub(crate) fn columns(&self, batch: &ShardBatch) -> Result<Tensor> {
        let values = self.column_values(batch)?;
        let shape = [batch.counts.len() as i64, self.model.columns() as i64];
        let columns = Tensor::from_slice(values).f_view(shape)?;
        Ok(columns.f_to_device(self.params.device())?)
    }

    /// The columns that the model reads, `[b, k]` row-major.
    ///
    /// # Errors
    /// As [`Network::columns`].
    pub(crate) fn column_values<'a>(&self, batch: &'a ShardBatch) -> Result<&'a [f32]> {
        let (images, columns) = (batch.counts.len(), self.model.columns());
        if columns == 0 {
            return Ok(&[]);
        }
        if batch.columns.len() == images * columns {
            return Ok(&batch.columns);
        }
        Err(Error::Usage {
            what: format!(
                "the model reads {columns} numbers of each image beside its pixels (columns of the dataset), here are {} for {images} images",
                batch.columns.len()
            ),
            help: "give a dataset that `fovea prepare` made of the layout of the training data; photographs alone have no columns".to_owned(),
        })
    }

    /// Logits of a batch, on its device, with running statistics and without dropout.
    fn evaluate(&self, views: &Views, batch: &ShardBatch, engine: NormEngine) -> Result<Scores> {
        let _guard = tch::no_grad_guard();
        let mode = NormMode::Eval {
            running: self.params.running(),
        };
        let input = Input {
            globals: &views.globals,
            patches: &views.patches,
            tokens: &Tokens::new(&batch.counts, self.params.device())?,
            columns: &self.columns(batch)?,
        };
        let out = self.model.forward(&self.pass(mode, engine, None), &input)?;
        let logits = |scores: &Tensor| -> Result<Vec<f32>> {
            let scores = scores.f_to_device(Device::Cpu)?.f_contiguous()?;
            Ok(host::slice(&scores)?.to_vec())
        };
        Ok(Scores {
            heads: out.iter().map(logits).collect::<Result<_>>()?,
        })
    }
}

/// The device that computes the steps, with its buffers.
enum Step {
    Cpu(CpuStep),
    Gpu(Box<GpuStep>),
}

/// A network and the device that computes it.
pub struct Replica {
    /// The network, with all state that training changes.
    pub net: Network,
    lanes: ThreadLanes,
    step: Step,
}

impl Replica {
    /// Builds the configured model for a task; see [`Replica::new`].
    ///
    /// # Errors
    /// There is no such model, or it cannot answer the task's questions.
    pub fn configured(
        config: &Config,
        task: &Task,
        precision: Precision,
        objective: Objective,
        lanes: ThreadLanes,
        gpu: Option<Gpu>,
    ) -> Result<Self> {
        let model = models::find(&config.model.name)?.build(task, &config.model)?;
        Self::new(config, model, precision, objective, lanes, gpu)
    }

    /// A model with its initial parameters, on `gpu` if given. `objective` has one entry per head.
    pub fn new(
        config: &Config,
        model: (Box<dyn Model>, Blueprint),
        precision: Precision,
        objective: Objective,
        lanes: ThreadLanes,
        gpu: Option<Gpu>,
    ) -> Result<Self> {
        let device = gpu.as_ref().map_or(Device::Cpu, Gpu::device);
        let net = Network::new(config, model, precision, objective, device)?;
        let len = net.surface.scalars.end;
        let step = match gpu {
            None => Step::Cpu(CpuStep::new(len)),
            Some(gpu) => Step::Gpu(Box::new(GpuStep::new(gpu, &net, config)?)),
        };
        Ok(Self { net, lanes, step })
    }

    /// Draws the initial parameters again.
    pub fn start_again(&mut self, precision: Precision) -> Result<()> {
        let Params { blueprint, .. } = &self.net.params;
        let device = self.net.params.device();
        self.net.params = Params::new(blueprint.clone(), precision, self.net.seed, device)?;
        Ok(())
    }

    /// Runs forward and backward over this rank's virtual shards, without changing the model's state. Returns the sums
    /// over all ranks, for [`Replica::verdict`].
    ///
    /// `exchange` gets buckets of the sums while backward still runs; `computed` is called when the passes are done and
    /// only other ranks are waited for.
    pub fn attempt(
        &mut self,
        shards: &[Option<ShardBatch>],
        epoch: u32,
        total: Denominators,
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<Sums> {
        match &mut self.step {
            Step::Cpu(step) => {
                let lanes = &self.lanes;
                step.attempt(&self.net, lanes, shards, (epoch, total), exchange, computed)
                    .map(Sums::Host)
            }
            Step::Gpu(step) => {
                let (sums, totals) =
                    step.attempt(&self.net, shards, (epoch, total), exchange, computed)?;
                Ok(Sums::Gpu(sums, totals))
            }
        }
    }

    /// Number of recorded CUDA graphs; 0 on the CPU.
    pub fn graphs(&self) -> usize {
        match &self.step {
            Step::Cpu(_) => 0,
            Step::Gpu(step) => step.graphs(),
        }
    }

    /// Whether the device can continue after an error.
    pub fn works(&self) -> bool {
        match &self.step {
            Step::Cpu(_) => true,
            Step::Gpu(step) => step.works(),
        }
    }

    /// Drops the state that belongs to the ranks of this generation, before their collective ends.
    pub fn leave_generation(&mut self) {
        if let Step::Gpu(step) = &mut self.step {
            step.leave_generation();
        }
    }

    /// Reads the loss and the gradient norm out of the reduced sums.
    pub fn verdict(&self, sums: &Sums, total: Denominators) -> StepVerdict {
        let (losses, sum_squares) = match sums {
            Sums::Host(sums) => (
                &sums[self.net.surface.scalars.clone()],
                flat::sum_squares(&sums[self.net.surface.grads.clone()]),
            ),
            Sums::Gpu(_, totals) => (&totals.losses[..], totals.sum_squares),
        };
        let mean = |(head, &loss): (&HeadLoss, &f32)| {
            f64::from(head.weight) * f64::from(loss) / total.rows(head.level) as f64
        };
        StepVerdict {
            loss: self.net.objective.iter().zip(losses).map(mean).sum(),
            grad_norm: sum_squares.sqrt(),
        }
    }

    /// Updates parameters and running statistics. Takes the sums back for reuse.
    ///
    /// `step` counts from 1; `clip_norm` 0 means no clipping (else as `clip_grad_norm_`).
    pub fn commit(
        &mut self,
        sums: Sums,
        config: &Config,
        lr: f32,
        step: u64,
        verdict: StepVerdict,
    ) -> Result<()> {
        let o = &config.optimizer;
        let adam = AdamParams {
            lr: f64::from(lr),
            beta1: f64::from(o.beta1),
            beta2: f64::from(o.beta2),
            eps: f64::from(o.eps),
            weight_decay: f64::from(o.weight_decay),
            decoupled: o.kind == OptimizerKind::AdamW,
            step,
            grad_scale: flat::clip_scale(verdict.grad_norm, f64::from(o.clip_norm)),
        };
        match (&mut self.step, sums) {
            (Step::Cpu(step), Sums::Host(sums)) => step.commit(&mut self.net, sums, &adam),
            (Step::Gpu(step), Sums::Gpu(sums, _)) => step.commit(&mut self.net, sums, &adam),
            _ => Err(Error::Internal("sums of another replica".to_owned())),
        }
    }

    /// Logits with running statistics and without dropout.
    pub fn evaluate(&self, batch: &ShardBatch) -> Result<Scores> {
        match (&self.step, &batch.pixels) {
            (Step::Cpu(_), Pixels::Views(views)) => {
                self.net.evaluate(views, batch, NormEngine::Fused)
            }
            (Step::Gpu(step), _) => {
                let views = step.views(batch)?;
                self.net.evaluate(&views, batch, step.engine())
            }
            (Step::Cpu(_), Pixels::Crops(_)) => Err(no_pixels()),
        }
    }

    /// The GPU that computes the steps; none on the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.step {
            Step::Cpu(_) => None,
            Step::Gpu(step) => Some(step.gpu()),
        }
    }

    /// The trace that records the first steps.
    pub(crate) fn trace(&self) -> &Trace {
        &self.net.trace
    }

    /// How the threads of this process are divided.
    pub fn lanes(&self) -> &ThreadLanes {
        &self.lanes
    }

    /// The objective that training minimises.
    pub fn objective(&self) -> &Objective {
        &self.net.objective
    }

    /// Replaces the objective, for reporting the loss on other data.
    pub fn set_objective(&mut self, objective: Objective) {
        self.net.objective = objective;
    }
}

/// The error for a batch without pixels, made for a GPU, that reached the CPU.
pub(crate) fn no_pixels() -> Error {
    Error::Internal("a batch without pixels on the CPU".to_owned())
}
