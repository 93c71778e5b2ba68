//! Forward and backward of one virtual shard.

use std::cell::RefCell;

use fovea_kernels::loss::{Loss, LossAt};
use tch::{Kind, Tensor};

use super::adder::ShardAdder;
use super::inputs::Block;
use super::{Gpu, address};
use crate::error::{Error, Result};
use crate::models::{Input, Tokens};
use crate::ops::{self, NormMode};
use crate::replica::Network;
use crate::samples::Views;

/// Runs forward and backward of one virtual shard; the adder gets each gradient as soon as it is complete.
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
    let losses = Tensor::f_zeros([net.objective.len() as i64], (Kind::Double, gpu.device))?;
    let layout = block.layout();
    let forward = || -> Result<Tensor> {
        let masks = block.masks()?;
        let input = Input {
            globals: &views.globals,
            patches: &views.patches,
            tokens,
            columns: &block.columns()?,
        };
        let mode = NormMode::Train {
            batch_stats: &batch_stats,
        };
        let out = net
            .model
            .forward(&net.pass(mode, gpu.engine, Some(&masks)), &input)?;
        let mut dlogits = Vec::with_capacity(out.len());
        for (which, (logits, head)) in out.iter().zip(&net.objective).enumerate() {
            let at = HeadAddresses {
                labels: block.address(&layout.labels[which]),
                record: block.address(&layout.records[which]),
                scale: block.address(&layout.scales) + 4 * which as u64,
                loss: address(&losses) + 8 * which as u64,
            };
            dlogits.push(head_loss(gpu, head.loss.as_ref(), logits, at)?);
        }
        ops::root(&out, &dlogits)
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

/// Addresses that one head's loss reads and writes, in addition to the logits and dlogits.
#[derive(Clone, Copy)]
struct HeadAddresses {
    labels: u64,
    record: u64,
    scale: u64,
    loss: u64,
}

/// Writes the summed loss, and returns the scaled dlogits, `[rows, classes]`.
fn head_loss(gpu: &Gpu, loss: &dyn Loss, logits: &Tensor, at: HeadAddresses) -> Result<Tensor> {
    let values = logits.f_detach()?.f_contiguous()?;
    let n = values.size()[0] as usize;
    let dlogits = Tensor::f_empty(values.size(), (Kind::Float, gpu.device))?;
    let scratch = Tensor::f_empty([loss.scratch_bytes(n) as i64], (Kind::Uint8, gpu.device))?;
    let op = loss.op(LossAt {
        logits: address(&values),
        labels: at.labels,
        n,
        record: at.record,
        scale: at.scale,
        dlogits: address(&dlogits),
        loss: at.loss,
        scratch: address(&scratch),
    });
    // SAFETY: contiguous tensors of these lengths. libtorch reuses their memory in the stream's order only.
    unsafe { gpu.run(op.as_ref()) }?;
    Ok(dlogits)
}
