//! One rank's copy of the model: the forward and backward pass of an attempt, and its commit.

use std::cell::Cell;
use std::ops::Range;
use std::sync::mpsc::{self, Sender};

use fovea_kernels::flat::{self, AdamParams};
use fovea_kernels::{FocalParams, focal_loss};
use tch::{Device, Kind, Tensor};

use crate::buckets::Buckets;
use crate::config::{Config, OptimizerKind};
use crate::dropout;
use crate::error::{Error, Result};
use crate::host;
use crate::lanes::{Lanes, ReadOnly};
use crate::models::{self, IMAGE_DROPOUT, Input, Model, PATCH_DROPOUT, Pass};
use crate::ops::{self, NormMode};
use crate::overlap::{Adder, AllReduce, Given, PassSums, Together};
use crate::params::Params;
use crate::precision::Precision;
use crate::reduce::TreeAccumulator;
use crate::samples::ShardBatch;
use crate::trace::Trace;

/// Weight of the newest batch in the running statistics (torchvision's default).
const NORM_MOMENTUM: f32 = 0.1;
/// Sums that travel with the gradients: image loss, patch loss, virtual shards with samples.
const SCALARS: usize = 3;

/// What is minimised: `focal(image) + patch_weight * focal(patch)`, each a mean over samples of the
/// sum over classes.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Focal loss over image labels.
    pub image: FocalParams,
    /// Focal loss over patch labels.
    pub patch: FocalParams,
    /// Weight of the patch part.
    pub patch_weight: f32,
}

/// How often the samples of a step count: sums are divided by the *global* numbers, so that uneven
/// tails are exact.
#[derive(Clone, Copy, Debug)]
pub struct Denominators {
    /// Images of the global batch.
    pub images: usize,
    /// Patches of the global batch.
    pub patches: u64,
}

/// The flat buffer that ranks reduce: gradients, batch statistics, scalars.
#[derive(Clone, Debug)]
pub(crate) struct Surface {
    /// As the parameters lie in their buffers.
    pub grads: Range<usize>,
    /// As the running statistics lie in theirs.
    pub stats: Range<usize>,
    /// Image loss, patch loss, virtual shards with samples.
    pub scalars: Range<usize>,
}

/// What a reduced attempt says about itself, the same on every rank.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Global mean loss (image part + weighted patch part).
    pub loss: f64,
    /// Norm of the global gradient.
    pub grad_norm: f64,
}

impl Verdict {
    /// Whether the optimizer may move.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// Logits of one virtual shard or image.
pub struct Scores {
    /// Image-level logits `[b, 4]`, row-major.
    pub image: Vec<f32>,
    /// Patch-level logits `[n, 4]`, row-major.
    pub patch: Vec<f32>,
}

/// Model, parameters and the buffers of an attempt.
pub struct Replica {
    model: Box<dyn Model>,
    /// Parameters and optimizer moments.
    pub params: Params,
    objective: Objective,
    stats_len: usize,
    lanes: Lanes,
    tree: TreeAccumulator,
    surface: Surface,
    buckets: Buckets,
    trace: Trace,
    seed: u64,
}

impl Replica {
    /// Builds the configured model with its initial parameters.
    pub fn new(
        config: &Config,
        precision: Precision,
        objective: Objective,
        lanes: Lanes,
    ) -> Result<Self> {
        let (model, blueprint) = models::build(config.model.name);
        let stats_len = blueprint.stats_len();
        let params = Params::new(blueprint, precision, config.train.seed)?;
        let grads = 0..params.layout.len;
        let stats = grads.end..grads.end + stats_len;
        let scalars = stats.end..stats.end + SCALARS;
        let bucket_bytes = (config.train.bucket_mb as usize) << 20;
        Ok(Self {
            buckets: Buckets::new(&params.layout, scalars.end, bucket_bytes),
            trace: Trace::new(config.train.trace_steps > 0),
            model,
            params,
            objective,
            stats_len,
            lanes,
            tree: TreeAccumulator::new(scalars.end),
            surface: Surface {
                grads,
                stats,
                scalars,
            },
            seed: config.train.seed,
        })
    }

    /// Back to the initial parameters.
    pub fn start_again(&mut self, precision: Precision) -> Result<()> {
        self.params = Params::new(self.params.blueprint.clone(), precision, self.seed)?;
        Ok(())
    }

    /// Forward and backward over this rank's virtual shards; nothing of the model's state changes. Returns the sums over
    /// all ranks, to be given to [`Replica::verdict`].
    ///
    /// `all_reduce` gets buckets of the sums while backward still goes on; `computed` is called when the passes are
    /// through and only other ranks are waited for.
    pub fn attempt(
        &mut self,
        shards: &[Option<ShardBatch>],
        epoch: u32,
        total: Denominators,
        all_reduce: &mut AllReduce<'_>,
        computed: &mut dyn FnMut(),
    ) -> Result<Vec<f32>> {
        let mut tree = std::mem::take(&mut self.tree);
        let lanes = self.lanes.count();
        let mut done = Ok(());
        for (group, together) in shards.chunks(lanes).enumerate() {
            let first_leaf = group * lanes;
            let is_last = first_leaf + together.len() == shards.len();
            let passes = Together {
                first_leaf,
                present: together.iter().map(Option::is_some).collect(),
                leaves: is_last.then_some(shards.len()),
            };
            let through: &mut dyn FnMut() = if is_last { computed } else { &mut || () };
            done = self.passes(
                together,
                &passes,
                (epoch, total),
                &mut tree,
                all_reduce,
                through,
            );
            if done.is_err() {
                break;
            }
        }
        let sums = tree.take();
        self.tree = tree;
        done.map(|()| sums)
    }

    /// Passes that run together, one on each lane, while another thread adds up what they give.
    fn passes(
        &self,
        together: &[Option<ShardBatch>],
        passes: &Together,
        (epoch, total): (u32, Denominators),
        tree: &mut TreeAccumulator,
        all_reduce: &mut AllReduce<'_>,
        through: &mut dyn FnMut(),
    ) -> Result<()> {
        let (give, given) = mpsc::channel();
        // SAFETY: forward and backward pass write to tensors of their own only; the adder reads gradients that it was
        // given.
        let (replica, batches) = unsafe { (&ReadOnly::new(self), ReadOnly::new(together)) };
        std::thread::scope(|scope| {
            let adder = std::thread::Builder::new().name("reduce".to_owned());
            let adder = adder.spawn_scoped(scope, move || {
                let replica = replica.get();
                Adder {
                    tree,
                    params: &replica.params,
                    surface: &replica.surface,
                    buckets: &replica.buckets,
                    trace: &replica.trace,
                }
                .run(passes, &given, all_reduce)
            });
            let adder = adder.map_err(|e| Error::Internal(format!("thread `reduce`: {e}")))?;
            let passed = self.lanes.run(passes.present.len(), |lane| {
                let Some(batch) = &batches.get()[lane] else {
                    return Ok(());
                };
                let give = give.clone();
                replica
                    .get()
                    .forward_backward(batch, epoch, total, lane, &give)
            });
            // So that the adder does not wait for a pass that failed.
            drop(give);
            through();
            let added = adder
                .join()
                .map_err(|_| Error::Internal("thread `reduce` panicked".to_owned()))?;
            passed?;
            added
        })
    }

    /// Forward and backward of one virtual shard.
    fn forward_backward(
        &self,
        batch: &ShardBatch,
        epoch: u32,
        total: Denominators,
        lane: usize,
        give: &Sender<Given>,
    ) -> Result<()> {
        let batch_stats = Tensor::f_zeros([self.stats_len as i64], (Kind::Float, Device::Cpu))?;
        let (root, image_loss, patch_loss) = self.trace.time(
            || "forward".to_owned(),
            || self.loss(batch, epoch, total, &batch_stats),
        )?;
        let leaves = self.params.leaves();
        let left = Cell::new(leaves.len());
        // The adder has hung up when all-reduce failed: its error is the one to tell.
        let hand_in = |param: usize, gradient: Tensor| {
            left.set(left.get() - 1);
            let _ = give.send(Given::Gradient {
                lane,
                param,
                gradient,
            });
        };
        self.trace.time(
            || "backward".to_owned(),
            || ops::backward(&root, leaves, &hand_in),
        )?;
        if left.get() > 0 {
            return Err(Error::Internal(format!(
                "{} of {} parameters took no part in the loss",
                left.get(),
                leaves.len()
            )));
        }
        let sums = PassSums {
            batch_stats,
            image_loss,
            patch_loss,
        };
        let _ = give.send(Given::Rest { lane, sums });
        Ok(())
    }

    /// Forward: a scalar whose gradient with respect to the logits is dlogits, where backward starts; the losses of
    /// images and patches, summed.
    fn loss(
        &self,
        batch: &ShardBatch,
        epoch: u32,
        total: Denominators,
        batch_stats: &Tensor,
    ) -> Result<(Tensor, f32, f32)> {
        let image_mask = dropout::mask(
            self.seed,
            epoch,
            dropout::Layer::Image,
            &batch.image_ids,
            128,
            IMAGE_DROPOUT,
        )?;
        let patch_mask = dropout::mask(
            self.seed,
            epoch,
            dropout::Layer::Patch,
            &batch.patch_ids,
            128,
            PATCH_DROPOUT,
        )?;
        let pass = Pass {
            params: self.params.leaves(),
            norms: &self.params.blueprint.norms,
            mode: NormMode::Train { batch_stats },
        };
        let input = Input {
            globals: &batch.globals,
            patches: &batch.patches,
            counts: &batch.counts,
            dropout: Some((&image_mask, &patch_mask)),
        };
        let out = self.model.forward(&pass, &input)?;
        let image_scale = 1.0 / total.images as f32;
        let patch_scale = self.objective.patch_weight / total.patches as f32;
        let (image_loss, image_dlogits) = focal(
            &out.image,
            &batch.image_labels,
            &self.objective.image,
            image_scale,
        )?;
        let (patch_loss, patch_dlogits) = focal(
            &out.patch,
            &batch.patch_labels,
            &self.objective.patch,
            patch_scale,
        )?;
        let root = (out.image.f_mul(&image_dlogits)?.f_sum(Kind::Float)?)
            .f_add(&out.patch.f_mul(&patch_dlogits)?.f_sum(Kind::Float)?)?;
        Ok((root, image_loss, patch_loss))
    }

    /// Reads the loss and the gradient norm out of the reduced buffer.
    pub fn verdict(&self, reduced: &[f32], total: Denominators) -> Verdict {
        let [image, patch, _] = self.scalars(reduced);
        Verdict {
            loss: f64::from(image) / total.images as f64
                + f64::from(self.objective.patch_weight) * f64::from(patch) / total.patches as f64,
            grad_norm: flat::sum_squares(&reduced[self.surface.grads.clone()]).sqrt(),
        }
    }

    fn scalars(&self, reduced: &[f32]) -> [f32; SCALARS] {
        let s = &reduced[self.surface.scalars.clone()];
        [s[0], s[1], s[2]]
    }

    /// Moves parameters and running statistics. Takes the buffer back.
    ///
    /// `step` counts from 1; `clip_norm` 0 means no clipping (else as `clip_grad_norm_`).
    pub fn commit(
        &mut self,
        reduced: Vec<f32>,
        config: &Config,
        lr: f32,
        step: u64,
        verdict: Verdict,
    ) -> Result<()> {
        let o = &config.optimizer;
        let scale = flat::clip_scale(verdict.grad_norm, f64::from(o.clip_norm));
        let adam = AdamParams {
            lr: f64::from(lr),
            beta1: f64::from(o.beta1),
            beta2: f64::from(o.beta2),
            eps: f64::from(o.eps),
            weight_decay: f64::from(o.weight_decay),
            decoupled: o.kind == OptimizerKind::AdamW,
            step,
            grad_scale: scale,
        };
        self.params
            .adam(&reduced[self.surface.grads.clone()], &adam)?;
        let [_, _, shards] = self.scalars(&reduced);
        let running = self.params.running_mut()?;
        for (running, sum) in running.iter_mut().zip(&reduced[self.surface.stats.clone()]) {
            *running = (1.0 - NORM_MOMENTUM) * *running + NORM_MOMENTUM * (sum / shards);
        }
        self.tree.recycle(reduced);
        Ok(())
    }

    /// Logits with running statistics and without dropout.
    pub fn evaluate(&self, batch: &ShardBatch) -> Result<Scores> {
        let _guard = tch::no_grad_guard();
        let pass = Pass {
            params: self.params.leaves(),
            norms: &self.params.blueprint.norms,
            mode: NormMode::Eval {
                running: self.params.running(),
            },
        };
        let input = Input {
            globals: &batch.globals,
            patches: &batch.patches,
            counts: &batch.counts,
            dropout: None,
        };
        let out = self.model.forward(&pass, &input)?;
        Ok(Scores {
            image: host::slice(&out.image.f_contiguous()?)?.to_vec(),
            patch: host::slice(&out.patch.f_contiguous()?)?.to_vec(),
        })
    }

    /// What the first steps are noted in.
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// How the threads of this process are shared out.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// What the model was trained to minimise.
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// Replaces the loss, for reporting it on other data.
    pub fn set_objective(&mut self, objective: Objective) {
        self.objective = objective;
    }
}

/// Loss sum and scaled dlogits of one head.
fn focal(
    logits: &Tensor,
    targets: &[u8],
    params: &FocalParams,
    scale: f32,
) -> Result<(f32, Tensor)> {
    let values = logits.f_detach()?.f_contiguous()?;
    let mut dlogits = Tensor::f_empty(logits.size(), (Kind::Float, Device::Cpu))?;
    let loss = focal_loss(
        host::slice(&values)?,
        targets,
        params,
        scale,
        host::slice_mut(&mut dlogits)?,
    )?;
    Ok((loss as f32, dlogits))
}
