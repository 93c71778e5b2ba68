//! Forward and backward of one virtual shard.

use std::cell::RefCell;

use fovea_kernels::FocalParams;
use fovea_kernels::cuda::FocalLoss;
use tch::{Kind, Tensor};

use super::adder::ShardAdder;
use super::inputs::Block;
use super::{Gpu, address};
use crate::error::{Error, Result};
use crate::models::{Input, Tokens};
use crate::ops::{self, NormMode};
use crate::replica::Network;
use crate::samples::Views;

/// Label classes.
const CLASSES: usize = 4;

/// Forward and backward of one virtual shard; the adder gets each gradient when it is complete.
pub fn pass(
    net: &Network,
    gpu: &Gpu,
    tokens: &Tokens,
    views: &Views,
    block: &Block,
    adder: ShardAdder<'_, '_>,
) -> Result<()> {
    let float = (Kind::Float, gpu.device);
    let batch_stats = Tensor::f_zeros([net.stats_len as i64], float)?;
    let losses = Tensor::f_zeros([2], (Kind::Double, gpu.device))?;
    let layout = block.layout();
    let forward = || -> Result<Tensor> {
        let (image_mask, patch_mask) = (
            block.mask(&layout.image_mask)?,
            block.mask(&layout.patch_mask)?,
        );
        let input = Input {
            globals: &views.globals,
            patches: &views.patches,
            tokens,
            dropout: Some((&image_mask, &patch_mask)),
        };
        let mode = NormMode::Train {
            batch_stats: &batch_stats,
        };
        let out = net.model.forward(&net.pass(mode, gpu.engine), &input)?;
        let head = |logits: &Tensor, which: usize, params: &FocalParams, labels, weights| {
            let at = FocalAddresses {
                targets: block.address(labels),
                weights: block.address(weights),
                scale: block.address(&layout.scales) + 4 * which as u64,
                loss: address(&losses) + 8 * which as u64,
            };
            let dlogits = focal(gpu, logits, params.gamma, at)?;
            Ok::<_, Error>(logits.f_mul(&dlogits)?.f_sum(Kind::Float)?)
        };
        let objective = &net.objective;
        let (labels, weights) = (&layout.image_labels, &layout.image_weights);
        let image = head(&out.image, 0, &objective.image, labels, weights)?;
        let (labels, weights) = (&layout.patch_labels, &layout.patch_weights);
        let patch = head(&out.patch, 1, &objective.patch, labels, weights)?;
        Ok(image.f_add(&patch)?)
    };
    let root = net.trace.time(|| "forward".to_owned(), forward)?;
    let adder = RefCell::new((adder, Ok(0usize)));
    let take = |param: usize, gradient: Tensor| {
        let (adder, state) = &mut *adder.borrow_mut();
        if let Ok(taken) = state {
            *state = adder.gradient(param, &gradient).map(|()| *taken + 1);
        }
    };
    let leaves = net.params.leaves();
    net.trace.time(
        || "backward".to_owned(),
        || ops::backward(&root, leaves, &take),
    )?;
    let (mut adder, taken) = adder.into_inner();
    let missing = leaves.len() - taken?;
    if missing > 0 {
        return Err(Error::Internal(format!(
            "{missing} of {} parameters took no part in the loss",
            leaves.len()
        )));
    }
    let one = Tensor::f_ones([1], float)?;
    let scalars = Tensor::f_cat(&[&losses.f_to_kind(Kind::Float)?, &one], 0)?;
    adder.rest(&Tensor::f_cat(&[&batch_stats, &scalars], 0)?)
}

/// Addresses of one head's loss.
#[derive(Clone, Copy)]
struct FocalAddresses {
    targets: u64,
    weights: u64,
    scale: u64,
    loss: u64,
}

/// Writes the summed loss, and gives the scaled dlogits `[n, 4]`.
fn focal(gpu: &Gpu, logits: &Tensor, gamma: f32, at: FocalAddresses) -> Result<Tensor> {
    let values = logits.f_detach()?.f_contiguous()?;
    let n = values.size()[0] as usize;
    let dlogits = Tensor::f_empty(values.size(), (Kind::Float, gpu.device))?;
    let scratch = Tensor::f_empty(
        [FocalLoss::scratch_bytes(n, CLASSES) as i64],
        (Kind::Uint8, gpu.device),
    )?;
    let op = FocalLoss {
        logits: address(&values),
        targets: at.targets,
        n,
        classes: CLASSES,
        gamma,
        weights: at.weights,
        scale: at.scale,
        dlogits: address(&dlogits),
        loss: at.loss,
        scratch: address(&scratch),
    };
    // SAFETY: contiguous tensors of these lengths. libtorch reuses their memory in the stream's order only.
    unsafe { gpu.run(&op) }?;
    Ok(dlogits)
}
