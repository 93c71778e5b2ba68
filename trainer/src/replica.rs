//! One rank's copy of the model: the forward and backward pass of an attempt, and its commit.

use std::ops::Range;

use fovea_kernels::flat::{self, AdamParams};
use fovea_kernels::{FocalParams, focal_loss};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::config::{Config, OptimizerKind};
use crate::dropout;
use crate::error::{Error, Result};
use crate::host;
use crate::lanes::{Lanes, ReadOnly};
use crate::models::{self, IMAGE_DROPOUT, Input, Model, PATCH_DROPOUT, Pass};
use crate::ops::NormMode;
use crate::params::Params;
use crate::precision::Precision;
use crate::reduce::{Fill, TreeAccumulator};
use crate::samples::ShardBatch;

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
struct Surface {
    grads: Range<usize>,
    stats: Range<usize>,
    scalars: Range<usize>,
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

/// What one virtual shard gives to the sums of an attempt.
struct ShardSums {
    /// By parameter.
    grads: Vec<Tensor>,
    batch_stats: Tensor,
    image_loss: f32,
    patch_loss: f32,
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
        Ok(Self {
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

    /// Elements of the buffer that [`Replica::attempt`] returns.
    pub fn surface_len(&self) -> usize {
        self.surface.scalars.end
    }

    /// Forward and backward over this rank's virtual shards; nothing of the model's state changes.
    /// Returns the rank's sums, to be reduced over ranks and given to [`Replica::verdict`].
    pub fn attempt(
        &mut self,
        shards: &[Option<ShardBatch>],
        epoch: u32,
        total: Denominators,
    ) -> Result<Vec<f32>> {
        self.tree.reset();
        for together in shards.chunks(self.lanes.count()) {
            // SAFETY: forward and backward pass write to tensors of their own only.
            let (replica, batches) = unsafe { (ReadOnly::new(&*self), ReadOnly::new(together)) };
            let results = self.lanes.run(together.len(), |i| {
                let batch = batches.get()[i].as_ref();
                let result = batch.map(|batch| replica.get().forward_backward(batch, epoch, total));
                result.transpose()
            })?;
            for result in results {
                self.add_leaf(result.as_ref())?;
            }
        }
        self.tree.finish()
    }

    /// The next leaf of the reduction tree: what a virtual shard gave, or zeros for one without samples
    /// (the tree has the same shape for every batch and world size).
    fn add_leaf(&mut self, result: Option<&ShardSums>) -> Result<()> {
        let Self {
            tree,
            params,
            surface,
            ..
        } = self;
        tree.leaf(|target, fill| {
            let Some(sums) = result else {
                target
                    .iter_mut()
                    .for_each(|x| *x = if fill == Fill::Assign { 0.0 } else { *x + 0.0 });
                return Ok(());
            };
            for (index, grad) in sums.grads.iter().enumerate() {
                let range = params.layout.ranges[index].clone();
                add_gradient(
                    grad,
                    params.blueprint.params[index].working,
                    &mut target[range],
                    fill,
                )?;
            }
            add_values(
                host::slice(&sums.batch_stats)?,
                &mut target[surface.stats.clone()],
                fill,
            )?;
            add_values(
                &[sums.image_loss, sums.patch_loss, 1.0],
                &mut target[surface.scalars.clone()],
                fill,
            )
        })
    }

    /// Forward and backward of one virtual shard.
    fn forward_backward(
        &self,
        batch: &ShardBatch,
        epoch: u32,
        total: Denominators,
    ) -> Result<ShardSums> {
        let batch_stats = Tensor::f_zeros([self.stats_len as i64], (Kind::Float, Device::Cpu))?;
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
            mode: NormMode::Train {
                batch_stats: &batch_stats,
            },
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
        // A scalar whose gradient with respect to the logits is dlogits: where backward starts.
        let root = (out.image.f_mul(&image_dlogits)?.f_sum(Kind::Float)?)
            .f_add(&out.patch.f_mul(&patch_dlogits)?.f_sum(Kind::Float)?)?;
        let grads = Tensor::f_run_backward(&[root], self.params.leaves(), false, false)?;
        Ok(ShardSums {
            grads,
            batch_stats,
            image_loss,
            patch_loss,
        })
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
        let clip = f64::from(o.clip_norm);
        let scale = if clip > 0.0 {
            (clip / (verdict.grad_norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
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

/// A gradient into its place in the flat buffer; convolution weights as `[o, h, w, i]`.
fn add_gradient(grad: &Tensor, channels_last: bool, target: &mut [f32], fill: Fill) -> Result<()> {
    if !grad.defined() {
        return Err(Error::Internal(
            "a parameter took no part in the loss".to_owned(),
        ));
    }
    let grad = if channels_last {
        grad.f_permute([0, 2, 3, 1])?
    } else {
        grad.shallow_clone()
    };
    let grad = grad.f_contiguous()?;
    match grad.kind() {
        Kind::BFloat16 => {
            flat::accumulate_bf16(host::slice::<bf16>(&grad)?, target, fill == Fill::Assign)?;
            Ok(())
        }
        _ => add_values(host::slice(&grad)?, target, fill),
    }
}

fn add_values(source: &[f32], target: &mut [f32], fill: Fill) -> Result<()> {
    match fill {
        Fill::Assign => target.copy_from_slice(source),
        Fill::Add => flat::add_assign(target, source)?,
    }
    Ok(())
}
