//! The step on the CPU: passes on lanes, sums in host memory.

use std::cell::Cell;
use std::sync::mpsc::{self, Sender};

use fovea_kernels::flat::AdamParams;
use fovea_kernels::loss::Loss;
use fovea_task::Label;
use tch::{Device, Kind, Tensor};

use super::{NORM_MOMENTUM, Network, no_pixels};
use crate::dropout;
use crate::error::{Error, Result};
use crate::host;
use crate::lanes::{ReadOnly, ThreadLanes};
use crate::models::{Input, Tokens};
use crate::objective::Denominators;
use crate::ops::{self, NormEngine, NormMode};
use crate::overlap::{Adder, Contribution, Exchange, PassSums, Together};
use crate::params::StateBuffer;
use crate::reduce::TreeAccumulator;
use crate::samples::{Pixels, ShardBatch};

/// The buffers of an attempt on the CPU.
pub(super) struct CpuStep {
    tree: TreeAccumulator,
}

impl CpuStep {
    /// For sums of `len` elements, laid out as [`Surface`](crate::reduce::Surface) says.
    pub fn new(len: usize) -> Self {
        Self {
            tree: TreeAccumulator::new(len),
        }
    }

    /// Computes the passes of this rank's virtual shards, and returns the sums over all ranks.
    pub fn attempt(
        &mut self,
        net: &Network,
        lanes: &ThreadLanes,
        shards: &[Option<ShardBatch>],
        when: (u32, Denominators),
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<Vec<f32>> {
        let width = lanes.count();
        for (group, together) in shards.chunks(width).enumerate() {
            let first_leaf = group * width;
            let is_last = first_leaf + together.len() == shards.len();
            let passes = Together {
                first_leaf,
                present: together.iter().map(Option::is_some).collect(),
                leaves: is_last.then_some(shards.len()),
            };
            let through: &mut dyn FnMut() = if is_last { computed } else { &mut || () };
            let passed = Passes {
                net,
                lanes,
                when,
                tree: &mut self.tree,
                exchange,
            }
            .run(together, &passes, through);
            if passed.is_err() {
                // The sums so far are useless.
                drop(self.tree.take());
                passed?;
            }
        }
        self.tree.take()
    }

    /// Updates parameters and running statistics. Takes the buffer back for reuse.
    pub fn commit(&mut self, net: &mut Network, sums: Vec<f32>, adam: &AdamParams) -> Result<()> {
        net.params.adam(&sums[net.surface.grads.clone()], adam)?;
        let shards = sums[net.surface.scalars.end - 1];
        let stats = &sums[net.surface.stats.clone()];
        net.params.edit(StateBuffer::Running, |running| {
            for (running, sum) in running.iter_mut().zip(stats) {
                *running = (1.0 - NORM_MOMENTUM) * *running + NORM_MOMENTUM * (sum / shards);
            }
            Ok(())
        })?;
        self.tree.recycle(sums);
        Ok(())
    }
}

/// Passes that run at the same time, one on each lane, while another thread adds their results.
struct Passes<'a> {
    net: &'a Network,
    lanes: &'a ThreadLanes,
    /// The epoch, and the rows of the global batch.
    when: (u32, Denominators),
    tree: &'a mut TreeAccumulator,
    exchange: &'a mut dyn Exchange,
}

impl Passes<'_> {
    fn run(
        self,
        together: &[Option<ShardBatch>],
        passes: &Together,
        through: &mut dyn FnMut(),
    ) -> Result<()> {
        let Self {
            net,
            lanes,
            when,
            tree,
            exchange,
        } = self;
        let (give, given) = mpsc::channel();
        // SAFETY: the forward and backward passes write only to tensors of their own; the adder reads gradients that it
        // was given.
        let (net, batches) = unsafe { (&ReadOnly::new(net), ReadOnly::new(together)) };
        std::thread::scope(|scope| {
            let adder = std::thread::Builder::new().name("reduce".to_owned());
            let adder = adder.spawn_scoped(scope, move || {
                let net = net.get();
                Adder {
                    tree,
                    params: &net.params,
                    surface: &net.surface,
                    buckets: &net.buckets,
                    trace: &net.trace,
                }
                .run(passes, &given, exchange)
            });
            let adder = adder.map_err(|e| Error::Internal(format!("thread `reduce`: {e}")))?;
            let passed = lanes.run(passes.present.len(), |lane| {
                let Some(batch) = &batches.get()[lane] else {
                    return Ok(());
                };
                let give = give.clone();
                net.get().forward_backward(batch, when, lane, &give)
            });
            // Hangs up, because the adder must not wait for a pass that failed.
            drop(give);
            through();
            let added = adder
                .join()
                .map_err(|_| Error::Internal("thread `reduce` panicked".to_owned()))?;
            passed?;
            added
        })
    }
}

impl Network {
    /// Forward and backward of one virtual shard.
    fn forward_backward(
        &self,
        batch: &ShardBatch,
        when: (u32, Denominators),
        lane: usize,
        give: &Sender<Contribution>,
    ) -> Result<()> {
        let batch_stats = Tensor::f_zeros([self.stats_len as i64], (Kind::Float, Device::Cpu))?;
        let (root, losses) = self.trace.time(
            || "forward".to_owned(),
            || self.loss(batch, when, &batch_stats),
        )?;
        let leaves = self.params.leaves();
        let left = Cell::new(leaves.len());
        // The adder has hung up because all-reduce failed: its error is the one to report.
        let hand_in = |param: usize, gradient: Tensor| {
            left.set(left.get() - 1);
            let _ = give.send(Contribution::Gradient {
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
            losses,
        };
        let _ = give.send(Contribution::Rest { lane, sums });
        Ok(())
    }

    /// Forward pass. Returns a scalar, whose gradient with respect to the logits is dlogits and where backward starts,
    /// and the summed loss of each head.
    fn loss(
        &self,
        batch: &ShardBatch,
        (epoch, total): (u32, Denominators),
        batch_stats: &Tensor,
    ) -> Result<(Tensor, Vec<f32>)> {
        let Pixels::Views(views) = &batch.pixels else {
            return Err(no_pixels());
        };
        let sites = self.params.blueprint.dropouts.iter();
        let mask = |site| {
            let values = dropout::mask(self.seed, epoch, site, batch);
            Ok(Tensor::from_slice(&values).f_view([-1, site.width as i64])?)
        };
        let masks: Vec<Tensor> = sites.map(mask).collect::<Result<_>>()?;
        let input = Input {
            globals: &views.globals,
            patches: &views.patches,
            tokens: &Tokens::new(&batch.counts, Device::Cpu)?,
            columns: &self.columns(batch)?,
        };
        let pass = self.pass(
            NormMode::Train { batch_stats },
            NormEngine::Fused,
            Some(&masks),
        );
        let out = self.model.forward(&pass, &input)?;
        let (mut dlogits, mut losses) = (Vec::new(), Vec::new());
        let scales = self.scales(total);
        for (((logits, labels), head), scale) in out
            .iter()
            .zip(&batch.labels)
            .zip(&self.objective)
            .zip(scales)
        {
            let (loss, gradient) = head_loss(head.loss.as_ref(), logits, labels, scale)?;
            dlogits.push(gradient);
            losses.push(loss);
        }
        Ok((ops::root(&out, &dlogits)?, losses))
    }
}

/// Summed loss and scaled dlogits of one head.
fn head_loss(
    loss: &dyn Loss,
    logits: &Tensor,
    labels: &[Label],
    scale: f32,
) -> Result<(f32, Tensor)> {
    let values = logits.f_detach()?.f_contiguous()?;
    let mut dlogits = Tensor::f_empty(logits.size(), (Kind::Float, Device::Cpu))?;
    let (logits, target) = (host::slice(&values)?, host::slice_mut(&mut dlogits)?);
    let sum = loss.host(logits, labels, scale, target)?;
    Ok((sum as f32, dlogits))
}
