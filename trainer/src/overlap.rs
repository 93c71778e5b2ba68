//! Sends gradients while backward continues: adds the lanes' contributions bucket by bucket, and reduces a complete
//! bucket over the ranks at once.
//!
//! The additions are those of the fixed tree, in its order, so overlapping changes no bit of the result.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use fovea_collectives::DeviceCollective;
use fovea_kernels::cuda::Event;
use fovea_kernels::flat;
use half::bf16;
use tch::{Kind, Tensor};

use crate::buckets::Buckets;
use crate::error::Result;
use crate::host;
use crate::params::Params;
use crate::reduce::{Fill, Surface, TreeAccumulator};
use crate::trace::Trace;

/// How sums get to the other ranks. A thread other than the passes' calls it bucket by bucket, with the same lengths in
/// the same order on every rank.
pub trait Exchange: Send {
    /// Whether this rank is the only one.
    fn is_alone(&self) -> bool {
        false
    }

    /// Sums a slice over all ranks, in place.
    fn all_reduce(&mut self, bucket: &mut [f32]) -> Result<()>;

    /// The collective that sums in GPU memory; none if the ranks have no such collective.
    fn device(&mut self) -> Option<&mut dyn DeviceCollective> {
        None
    }

    /// Waits until the work before `done` is finished; other ranks may have to take part in it.
    fn wait(&mut self, done: &Event) -> Result<()> {
        Ok(done.synchronize()?)
    }
}

impl<F: FnMut(&mut [f32]) -> Result<()> + Send> Exchange for F {
    fn all_reduce(&mut self, bucket: &mut [f32]) -> Result<()> {
        self(bucket)
    }
}

/// Sums that one pass over a virtual shard contributes in addition to gradients.
pub(crate) struct PassSums {
    /// Mean and unbiased variance of each normalisation layer, `[stats_len]` f32.
    pub batch_stats: Tensor,
    /// Summed loss of each head, in the task's order, then the confusion counts of each head if training is scored.
    pub scalars: Vec<f32>,
}

/// One message from a lane to the adder.
pub(crate) enum Contribution {
    /// The complete gradient of one parameter.
    Gradient {
        /// Number of the lane among the passes that run together.
        lane: usize,
        param: usize,
        gradient: Tensor,
    },
    /// The end of the pass.
    Rest { lane: usize, sums: PassSums },
}

/// Passes that run at the same time.
pub(crate) struct Together {
    /// Number of the first pass's leaf.
    pub first_leaf: usize,
    /// Which passes have samples; the others add zeros.
    pub present: Vec<bool>,
    /// Number of all leaves of this rank when these are the last, else none.
    pub leaves: Option<usize>,
}

/// Adds the passes' contributions until all have come, and reduces complete buckets over the ranks.
pub(crate) struct Adder<'a> {
    pub tree: &'a mut TreeAccumulator,
    pub params: &'a Params,
    pub surface: &'a Surface,
    pub buckets: &'a Buckets,
    pub trace: &'a Trace,
}

/// Gradients that have come but are not added yet, by parameter and lane.
type Waiting = BTreeMap<(usize, usize), Tensor>;

impl Adder<'_> {
    /// Adds and reduces until all is done. Ends early, without an error, when a pass fails: its lane hangs up.
    pub fn run(
        &mut self,
        passes: &Together,
        given: &Receiver<Contribution>,
        exchange: &mut dyn Exchange,
    ) -> Result<()> {
        let shards = passes.present.iter().filter(|present| **present).count();
        let mut awaited = self.buckets.await_from(shards);
        let mut gradients = Waiting::new();
        let mut rest = BTreeMap::new();
        loop {
            while let Some(bucket) = awaited.take_ready() {
                self.trace.time(
                    || format!("add bucket {bucket}"),
                    || self.add(bucket, passes, &mut gradients, &rest),
                )?;
                if let Some(leaves) = passes.leaves {
                    let range = self.buckets.all()[bucket].range.clone();
                    let sum = self.tree.finish(leaves, range.clone())?;
                    self.trace.time(
                        || format!("all-reduce bucket {bucket}"),
                        || exchange.all_reduce(&mut sum[range]),
                    )?;
                }
            }
            if awaited.is_through() {
                return Ok(());
            }
            match given.recv() {
                Ok(Contribution::Gradient {
                    lane,
                    param,
                    gradient,
                }) => {
                    awaited.gradient(param);
                    gradients.insert((param, lane), gradient);
                }
                Ok(Contribution::Rest { lane, sums }) => {
                    awaited.end_of_pass();
                    rest.insert(lane, sums);
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// Adds the elements of a bucket from every pass, in the order of the leaves.
    fn add(
        &mut self,
        bucket: usize,
        passes: &Together,
        gradients: &mut Waiting,
        rest: &BTreeMap<usize, PassSums>,
    ) -> Result<()> {
        let Self {
            tree,
            params,
            surface,
            buckets,
            ..
        } = self;
        let is_last = bucket + 1 == buckets.all().len();
        for (lane, present) in passes.present.iter().enumerate() {
            let leaf = passes.first_leaf + lane;
            for &param in &buckets.all()[bucket].params {
                let range = params.layout.ranges[param].clone();
                let gradient = gradients.remove(&(param, lane));
                let channels_last = params.blueprint.params[param].working;
                tree.leaf(leaf, range.clone(), |target, fill| {
                    let target = &mut target[range];
                    match &gradient {
                        Some(gradient) => add_gradient(gradient, channels_last, target, fill),
                        None => add_zeros(target, fill),
                    }
                })?;
            }
            if !is_last {
                continue;
            }
            let sums = rest.get(&lane).filter(|_| *present);
            let ranges = (surface.stats.clone(), surface.scalars.clone());
            let both = ranges.0.start..ranges.1.end;
            tree.leaf(leaf, both.clone(), |target, fill| {
                let Some(sums) = sums else {
                    return add_zeros(&mut target[both], fill);
                };
                add_values(host::slice(&sums.batch_stats)?, &mut target[ranges.0], fill)?;
                let scalars = [&sums.scalars[..], &[1.0]].concat();
                add_values(&scalars, &mut target[ranges.1], fill)
            })?;
        }
        Ok(())
    }
}

/// Writes or adds a gradient at its place in the flat buffer; convolution weights as `[o, h, w, i]`.
fn add_gradient(grad: &Tensor, channels_last: bool, target: &mut [f32], fill: Fill) -> Result<()> {
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

/// A virtual shard without samples adds zeros, because the tree has the same shape for every batch and world size.
fn add_zeros(target: &mut [f32], fill: Fill) -> Result<()> {
    match fill {
        Fill::Assign => target.fill(0.0),
        // As any addition does, this turns a negative zero into a positive one.
        Fill::Add => target.iter_mut().for_each(|x| *x += 0.0),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
