//! One attempt and its commit on a GPU.

use std::cell::RefCell;
use std::ops::Range;

use fovea_kernels::cuda::{
    DeviceBuffer, Event, FocalLoss, FusedAdam, PinnedBuffer, SumSquares, ToBf16,
};
use fovea_kernels::flat::{AdamParams, AdamScalars};
use fovea_kernels::{DType, FocalParams};
use tch::{Kind, Tensor};

use super::Gpu;
use super::inputs::Block;
use super::views::Cutter;
use crate::buckets::Awaited;
use crate::config::{Config, ReduceDtype};
use crate::error::{Error, Result};
use crate::models::{Input, Tokens};
use crate::ops::{self, Engine, NormMode};
use crate::overlap::Exchange;
use crate::params::{Params, Part};
use crate::reduce::{Fill, TreeAccumulator, part};
use crate::replica::{Denominators, NORM_MOMENTUM, Network, Totals};
use crate::samples::{ShardBatch, Views};

/// Label classes.
const CLASSES: usize = 4;

/// The buffers of an attempt, and what it is computed with.
pub struct GpuStep {
    gpu: Gpu,
    cutter: Cutter,
    reduce_dtype: ReduceDtype,
    tree: TreeAccumulator<Tensor>,
    /// By virtual shard of this rank.
    blocks: Vec<Block>,
    /// For evaluation.
    spare: RefCell<Block>,
    answer: Answer,
    /// The optimizer's scalars on the host and on the device.
    adam: (PinnedBuffer, DeviceBuffer),
}

/// What the host waits for.
struct Answer {
    /// Two losses f32, then, 8 bytes on, one f64.
    host: PinnedBuffer,
    sum_squares: DeviceBuffer,
    scratch: DeviceBuffer,
    /// The passes are through.
    computed: Event,
    /// All of it is there.
    done: Event,
}

/// Where the sum of squares is in the answer, in bytes.
const SQUARES_AT: usize = 8;

impl GpuStep {
    /// Takes the GPU, with its images.
    pub fn new(gpu: Gpu, net: &Network, config: &Config) -> Result<Self> {
        let kernels = &gpu.kernels;
        let scratch = SumSquares::scratch_bytes(net.surface.grads.len());
        Ok(Self {
            cutter: Cutter::new(&gpu, net, config)?,
            reduce_dtype: config.train.reduce_dtype,
            tree: TreeAccumulator::on(gpu.device, net.surface.scalars.end),
            blocks: Vec::new(),
            spare: RefCell::new(Block::new(kernels, gpu.device)?),
            answer: Answer {
                host: PinnedBuffer::new(kernels, SQUARES_AT + 8)?,
                sum_squares: DeviceBuffer::uninit(kernels, 8)?,
                scratch: DeviceBuffer::uninit(kernels, scratch)?,
                computed: Event::new(kernels)?,
                done: Event::new(kernels)?,
            },
            adam: (
                PinnedBuffer::new(kernels, size_of::<AdamScalars>())?,
                DeviceBuffer::uninit(kernels, size_of::<AdamScalars>())?,
            ),
            gpu,
        })
    }

    /// What it computes on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What libtorch computes normalisation with.
    pub fn engine(&self) -> Engine {
        self.gpu.engine
    }

    /// A batch's pixels, for evaluation.
    pub fn views(&self, batch: &ShardBatch) -> Result<Views> {
        let mut block = self.spare.borrow_mut();
        // The evaluation before has waited for its logits: nothing reads the block any more.
        block.begin(&self.gpu.kernels, batch)?;
        self.cutter.views(&self.gpu, &mut block, batch)
    }

    /// As [`crate::replica::Replica::attempt`]. The sums are still in GPU memory; what the verdict needs has come.
    pub fn attempt(
        &mut self,
        net: &Network,
        shards: &[Option<ShardBatch>],
        when: (u32, Denominators),
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<(Tensor, Totals)> {
        let sums = self.sums(net, shards, when, exchange);
        let done = sums.and_then(|sums| {
            let totals = self.answer(net, &sums, exchange, computed)?;
            Ok((sums, totals))
        });
        if done.is_err() {
            // What was summed so far is of no use, and nothing may still read the blocks when they are filled again.
            drop(self.tree.take());
            // SAFETY: the stream lives as long as the process.
            let settled = unsafe { self.gpu.kernels.synchronize(self.gpu.stream) };
            if let Err(e) = settled {
                tracing::warn!("after an attempt that failed: {e}");
            }
        }
        done
    }

    /// Puts passes and reduction on their streams.
    fn sums(
        &mut self,
        net: &Network,
        shards: &[Option<ShardBatch>],
        (epoch, total): (u32, Denominators),
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        let Self {
            gpu,
            cutter,
            tree,
            blocks,
            reduce_dtype,
            answer: Answer { computed, .. },
            ..
        } = self;
        while blocks.len() < shards.len() {
            blocks.push(Block::new(&gpu.kernels, gpu.device)?);
        }
        let mut sender = Sender {
            gpu,
            exchange,
            reduce_dtype: *reduce_dtype,
            grads: net.surface.grads.clone(),
            narrow: Vec::new(),
        };
        for (leaf, (shard, block)) in shards.iter().zip(blocks).enumerate() {
            let mut adder = Adder {
                net,
                tree,
                leaf,
                leaves: (leaf + 1 == shards.len()).then_some(shards.len()),
                awaited: net.buckets.await_from(usize::from(shard.is_some())),
                sender: &mut sender,
            };
            let Some(batch) = shard else {
                adder.zeros()?;
                continue;
            };
            block.begin(&gpu.kernels, batch)?;
            block.put_targets(batch, &net.objective, net.scales(total), (net.seed, epoch))?;
            let views = cutter.views(gpu, block, batch)?;
            pass(net, gpu, batch, &views, block, adder)?;
        }
        // SAFETY: the stream lives as long as the process.
        unsafe { computed.record(gpu.stream) }?;
        let narrow = sender.join()?;
        let sums = tree.take()?;
        for (range, values) in narrow {
            part(&sums, &range)?.f_copy_(&values)?;
        }
        Ok(sums)
    }

    /// Losses and the gradient's squares, on the host.
    fn answer(
        &mut self,
        net: &Network,
        sums: &Tensor,
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<Totals> {
        let Answer {
            host,
            sum_squares,
            scratch,
            done,
            ..
        } = &self.answer;
        let (gpu, stream) = (&self.gpu, self.gpu.stream);
        let squares = SumSquares {
            x: address(sums),
            n: net.surface.grads.len(),
            total: sum_squares.address(),
            scratch: scratch.address(),
        };
        let losses = address(sums) + 4 * net.surface.scalars.start as u64;
        // SAFETY: the gradients begin the sums, which live as long as the work; the buffers are self's and of the
        // right lengths; the host's memory is read behind `done`.
        unsafe {
            gpu.run(&squares)?;
            gpu.kernels
                .copy_to_host_async(stream, host.as_ptr(), losses, SQUARES_AT)?;
            let squares = host.as_ptr().add(SQUARES_AT);
            gpu.kernels
                .copy_to_host_async(stream, squares, sum_squares.address(), 8)?;
            done.record(stream)?;
        }
        self.answer.computed.synchronize()?;
        computed();
        exchange.wait(done)?;
        let losses = host.as_slice::<f32>();
        Ok(Totals {
            losses: [losses[0], losses[1]],
            sum_squares: host.as_slice::<f64>()[1],
        })
    }

    /// Puts the optimizer's move and that of the running statistics on the stream. Takes the sums back.
    pub fn commit(&mut self, net: &mut Network, sums: Tensor, adam: &AdamParams) -> Result<()> {
        let (gpu, (host, scalars)) = (&self.gpu, &mut self.adam);
        // The step before has been waited for, and with it the copy out of this memory.
        host.as_mut_slice::<u8>()
            .copy_from_slice(bytemuck::bytes_of(&AdamScalars::new(adam)?));
        let params = &net.params;
        let moves = moves(params, &sums, scalars.address());
        // SAFETY: all buffers are of the lengths that the layout says, and live as long as self, the parameters, or
        // the stream's order keeps the sums.
        unsafe {
            let bytes = scalars.bytes();
            gpu.kernels.copy_to_device_async(
                gpu.stream,
                scalars.address(),
                host.as_ptr(),
                bytes,
            )?;
            for update in &moves {
                gpu.run(update)?;
            }
        }
        let _guard = tch::no_grad_guard();
        let shards = part(
            &sums,
            &(net.surface.scalars.end - 1..net.surface.scalars.end),
        )?;
        let new = part(&sums, &net.surface.stats)?.f_div(&shards)?;
        let mut running = params.tensor(Part::Running).shallow_clone();
        let new = new.f_mul_scalar(f64::from(NORM_MOMENTUM))?;
        let mut kept = running.f_mul_scalar_(f64::from(1.0 - NORM_MOMENTUM))?;
        let _ = kept.f_add_(&new)?;
        self.tree.recycle(sums);
        Ok(())
    }
}

/// Adam over the convolutions, which may have a working copy, and over the rest.
fn moves(params: &Params, sums: &Tensor, scalars: u64) -> [FusedAdam; 2] {
    let split = params.layout.working_len;
    let over = |range: Range<usize>, working: Option<&Tensor>| {
        let at = |tensor: &Tensor| address(tensor) + 4 * range.start as u64;
        FusedAdam {
            params: at(params.tensor(Part::Master)),
            grads: at(sums),
            m: at(params.tensor(Part::FirstMoment)),
            v: at(params.tensor(Part::SecondMoment)),
            working: working.map_or(0, address),
            n: range.len(),
            scalars,
            gate: 0,
        }
    };
    [
        over(0..split, params.working()),
        over(split..params.layout.len, None),
    ]
}

/// Forward and backward of one virtual shard; the adder gets each gradient when it is complete.
fn pass(
    net: &Network,
    gpu: &Gpu,
    batch: &ShardBatch,
    views: &Views,
    block: &Block,
    adder: Adder<'_, '_>,
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
            tokens: &Tokens::new(&batch.counts, gpu.device)?,
            dropout: Some((&image_mask, &patch_mask)),
        };
        let mode = NormMode::Train {
            batch_stats: &batch_stats,
        };
        let out = net.model.forward(&net.pass(mode, gpu.engine), &input)?;
        let head = |logits: &Tensor, which: usize, params: &FocalParams, labels, weights| {
            let at = Focal {
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
struct Focal {
    targets: u64,
    weights: u64,
    scale: u64,
    loss: u64,
}

/// Writes the summed loss, and gives the scaled dlogits `[n, 4]`.
fn focal(gpu: &Gpu, logits: &Tensor, gamma: f32, at: Focal) -> Result<Tensor> {
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

/// Adds what one virtual shard gives to the sums, and sends what is complete.
struct Adder<'a, 'b> {
    net: &'a Network,
    tree: &'a mut TreeAccumulator<Tensor>,
    leaf: usize,
    /// All leaves of this rank, if this is the last.
    leaves: Option<usize>,
    awaited: Awaited<'a>,
    sender: &'a mut Sender<'b>,
}

impl Adder<'_, '_> {
    /// A virtual shard without samples: the tree has the same shape for every batch and world size.
    fn zeros(&mut self) -> Result<()> {
        let all = 0..self.net.surface.scalars.end;
        self.tree.leaf(self.leaf, all, |target, fill| {
            let _ = match fill {
                Fill::Assign => target.f_zero_()?,
                // It makes a negative zero a positive one, as any addition would.
                Fill::Add => target.f_add_scalar_(0.0)?,
            };
            Ok(())
        })?;
        self.awaited.end_of_pass();
        self.send()
    }

    fn gradient(&mut self, param: usize, gradient: &Tensor) -> Result<()> {
        let params = &self.net.params;
        let gradient = if params.blueprint.params[param].working {
            gradient.f_permute([0, 2, 3, 1])? // as `[o, h, w, i]`
        } else {
            gradient.shallow_clone()
        };
        self.add(params.layout.ranges[param].clone(), &gradient)?;
        self.awaited.gradient(param);
        self.send()
    }

    /// Batch statistics and scalars, one after the other: the end of the pass.
    fn rest(&mut self, values: &Tensor) -> Result<()> {
        let surface = &self.net.surface;
        self.add(surface.stats.start..surface.scalars.end, values)?;
        self.awaited.end_of_pass();
        self.send()
    }

    fn add(&mut self, range: Range<usize>, values: &Tensor) -> Result<()> {
        self.tree.leaf(self.leaf, range.clone(), |target, fill| {
            let mut target = part(target, &range)?.f_view(values.size().as_slice())?;
            match fill {
                Fill::Assign => target.f_copy_(values)?,
                Fill::Add => _ = target.f_add_(values)?,
            }
            Ok(())
        })
    }

    fn send(&mut self) -> Result<()> {
        while let Some(bucket) = self.awaited.take_ready() {
            if let Some(leaves) = self.leaves {
                let range = &self.net.buckets.all()[bucket].range;
                let sums = self.tree.finish(leaves, range.clone())?;
                self.sender.send(range, &part(sums, range)?)?;
            }
        }
        Ok(())
    }
}

/// Gets buckets to the other ranks.
struct Sender<'a> {
    gpu: &'a Gpu,
    exchange: &'a mut dyn Exchange,
    reduce_dtype: ReduceDtype,
    grads: Range<usize>,
    /// Buckets that travel in bf16, and where their sums belong.
    narrow: Vec<(Range<usize>, Tensor)>,
}

impl Sender<'_> {
    fn send(&mut self, range: &Range<usize>, sums: &Tensor) -> Result<()> {
        if self.exchange.is_alone() {
            return Ok(());
        }
        let (stream, len) = (self.gpu.stream, range.len());
        let Some(device) = self.exchange.device() else {
            // An engine that knows host memory only.
            let mut values = Vec::<f32>::try_from(sums)?;
            self.exchange.all_reduce(&mut values)?;
            sums.shallow_clone().f_copy_(&Tensor::from_slice(&values))?;
            return Ok(());
        };
        // Losses and statistics are in the last bucket, which does not lie among the gradients alone.
        if self.reduce_dtype == ReduceDtype::F32 || range.end > self.grads.end {
            // SAFETY: a part of the sums, which live until the stream has been joined and waited for.
            unsafe { device.all_reduce_start(address(sums), len, DType::F32, stream) }?;
            return Ok(());
        }
        let values = Tensor::f_empty([len as i64], (Kind::BFloat16, self.gpu.device))?;
        let cast = ToBf16 {
            src: address(sums),
            dst: address(&values),
            n: len,
        };
        // SAFETY: both of this length; `narrow` keeps the copy until the stream has been joined.
        unsafe {
            self.gpu.run(&cast)?;
            device.all_reduce_start(address(&values), len, DType::Bf16, stream)?;
        }
        self.narrow.push((range.clone(), values));
        Ok(())
    }

    /// Has the stream wait for what is on its way. Returns the buckets that came in bf16.
    fn join(self) -> Result<Vec<(Range<usize>, Tensor)>> {
        if let Some(device) = self.exchange.device() {
            // SAFETY: the stream lives as long as the process.
            unsafe { device.join(self.gpu.stream) }?;
        }
        Ok(self.narrow)
    }
}

/// Where a tensor's elements begin.
pub(super) fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}
