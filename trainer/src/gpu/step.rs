//! One attempt and its commit on a GPU.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use fovea_kernels::cuda::{DeviceBuffer, Event, FusedAdam, PinnedBuffer, SumSquares};
use fovea_kernels::flat::{AdamParams, AdamScalars};
use fovea_run::config::{Config, MOST_GROUPS, ReduceDtype};
use tch::{Device, Tensor};

use super::adder::{Sender, ShardAdder};
use super::graph::{Graphs, PatchCounts, Recorded};
use super::inputs::{Block, BlockShape};
use super::pass::pass;
use super::views::{Cutter, ReadyBatch};
use super::{Gpu, address};
use crate::error::{Error, Result};
use crate::models::Tokens;
use crate::objective::Denominators;
use crate::ops::{self, NormEngine};
use crate::overlap::Exchange;
use crate::params::{Params, StateBuffer};
use crate::reduce::{TreeAccumulator, part};
use crate::replica::{NORM_MOMENTUM, Network, Totals};
use crate::samples::{ShardBatch, Views};
use crate::trainable::UpdateRange;

/// How long the stream may take to end its work after an error.
const SETTLE: Duration = Duration::from_secs(30);
/// Most layouts of tokens that are kept.
const MOST_TOKENS: usize = 256;
/// Most batch sizes for which cuDNN measures its algorithms.
const MOST_MEASURED: usize = 8;
/// Most classes of parameters: each rate of a stage, with decay and without.
const MOST_CLASSES: usize = 2 * (1 + MOST_GROUPS);
/// The buffers of an attempt, and the GPU and its tools that compute it.
pub struct GpuStep {
    gpu: Gpu,
    cutter: Cutter,
    reduce_dtype: ReduceDtype,
    tree: TreeAccumulator<Tensor>,
    shape: BlockShape,
    /// One block per virtual shard of this rank, in order.
    blocks: Vec<Block>,
    /// The block of evaluations.
    spare: RefCell<Block>,
    answer: StepReadback,
    /// The optimizer's scalars on the host and on the device, for each class of parameters.
    adam: (PinnedBuffer, DeviceBuffer),
    tokens: Layouts,
    measured: MeasuredSizes,
    graphs: Graphs,
    works: bool,
}

/// How an attempt's work was put on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plainly,
    ByGraph,
}

/// Token layouts, by the number of patches of each image; kept because making one waits for the stream.
#[derive(Default)]
struct Layouts(HashMap<Vec<usize>, Tokens>);

impl Layouts {
    /// Makes those of a step's virtual shards, so all are there at the same time.
    fn prepare<'a>(
        &mut self,
        counts: impl Iterator<Item = &'a Vec<usize>>,
        device: Device,
    ) -> Result<()> {
        if self.0.len() >= MOST_TOKENS {
            self.0.clear();
        }
        for counts in counts {
            if !self.0.contains_key(counts) {
                self.0.insert(counts.clone(), Tokens::new(counts, device)?);
            }
        }
        Ok(())
    }
}

/// The batch sizes for which cuDNN measures which algorithm is fastest: those that recur, and only a few, because
/// measuring takes seconds.
#[derive(Default)]
struct MeasuredSizes {
    /// How often a batch had this number of images and of patches.
    seen: HashMap<(usize, usize), u32>,
    chosen: HashSet<(usize, usize)>,
}

impl MeasuredSizes {
    fn is_worth_it(&mut self, size: (usize, usize)) -> bool {
        let seen = self.seen.entry(size).or_insert(0);
        *seen += 1;
        if *seen >= 2 && self.chosen.len() < MOST_MEASURED {
            self.chosen.insert(size);
        }
        self.chosen.contains(&size)
    }
}

/// The results of an attempt that the host waits for.
struct StepReadback {
    /// The loss of each head as f32, its confusion counts if training is scored, then, at a multiple of 8 bytes, the gradient's sum of squares as one f64.
    host: PinnedBuffer,
    /// Number of losses and counts.
    scalars: usize,
    sum_squares: DeviceBuffer,
    scratch: DeviceBuffer,
    /// Reached when the passes are done.
    computed: Event,
    /// Reached when all results are in `host`.
    done: Event,
}

impl GpuStep {
    /// Takes over the GPU and its images.
    pub fn new(gpu: Gpu, net: &Network, config: &Config) -> Result<Self> {
        let kernels = &gpu.kernels;
        let scratch = SumSquares::scratch_bytes(net.surface.grads.len());
        let shape = BlockShape::of(net);
        // The number of virtual shards with samples stays on the device.
        let scalars = net.surface.scalars.len() - 1;
        Ok(Self {
            cutter: Cutter::new(&gpu, net, config)?,
            reduce_dtype: config.train.reduce_dtype,
            tree: TreeAccumulator::on(gpu.device, net.surface.scalars.end),
            blocks: Vec::new(),
            spare: RefCell::new(Block::new(kernels, gpu.device, &shape)?),
            shape,
            answer: StepReadback {
                host: PinnedBuffer::new(kernels, StepReadback::squares_at(scalars) + 8)?,
                scalars,
                sum_squares: DeviceBuffer::uninit(kernels, 8)?,
                scratch: DeviceBuffer::uninit(kernels, scratch)?,
                computed: Event::new(kernels)?,
                done: Event::new(kernels)?,
            },
            adam: (
                PinnedBuffer::new(kernels, MOST_CLASSES * size_of::<AdamScalars>())?,
                DeviceBuffer::uninit(kernels, MOST_CLASSES * size_of::<AdamScalars>())?,
            ),
            tokens: Layouts::default(),
            measured: MeasuredSizes::default(),
            works: true,
            graphs: Graphs::new(config.train.cuda_graphs),
            gpu,
        })
    }

    /// The GPU that it computes on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// How libtorch's passes compute normalisation.
    pub fn engine(&self) -> NormEngine {
        self.gpu.engine
    }

    /// Makes the pixels of a batch, for evaluation.
    pub fn views(&self, batch: &ShardBatch) -> Result<Views> {
        let mut block = self.spare.borrow_mut();
        // Nearly every image has another number of patches, so no size is worth measuring.
        ops::measure_convolutions(false);
        // The evaluation before has waited for its logits, so no work reads the block any more.
        block.begin(&self.gpu.kernels, batch)?;
        let ready = self.cutter.upload(&self.gpu, &mut block, batch)?;
        self.cutter.views(&self.gpu, &block, ready)
    }

    /// As [`crate::replica::Replica::attempt`]. The sums stay in GPU memory; the numbers for the verdict are on the
    /// host.
    pub fn attempt(
        &mut self,
        net: &Network,
        shards: &[Option<ShardBatch>],
        when: (u32, &Denominators),
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<(Tensor, Totals)> {
        let started = self.start(net, shards, when, exchange);
        let done = started.and_then(|(sums, how)| {
            let totals = self.answer(how, exchange, computed)?;
            Ok((sums, totals))
        });
        if done.is_err() {
            // The sums so far are useless, and no work may still read the blocks when they are filled again.
            self.works = self.settle();
            drop(self.tree.take());
        }
        done
    }

    /// After an error: whether the stream ends its work, without another error and within a bound. It may be waiting
    /// for sums that are being aborted.
    fn settle(&self) -> bool {
        let done = &self.answer.done;
        // SAFETY: the stream lives as long as the process.
        let recorded = unsafe { done.record(self.gpu.stream) };
        let until = Instant::now() + SETTLE;
        let settled = recorded.and_then(|()| {
            while !done.is_done()? {
                if Instant::now() > until {
                    return Ok(false);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(true)
        });
        match settled {
            Ok(true) => true,
            Ok(false) => {
                tracing::error!(
                    "the GPU is still busy {} s after an attempt that failed",
                    SETTLE.as_secs()
                );
                false
            }
            Err(e) => {
                tracing::error!("after an attempt that failed: {e}");
                false
            }
        }
    }

    /// Number of recorded graphs.
    pub fn graphs(&self) -> usize {
        self.graphs.count()
    }

    /// Whether the GPU can continue. After some errors it cannot do so in this process.
    pub fn works(&self) -> bool {
        self.works && self.gpu.kernels.free_bytes().is_ok()
    }

    /// Drops the state that belongs to the ranks of this generation.
    pub fn leave_generation(&mut self) {
        self.graphs.forget();
    }

    /// Forgets what was recorded and summed, because other parameters move from now on: sums have `len` elements, those
    /// of frozen parameters zero.
    pub fn enter_stage(&mut self, len: usize) -> Result<()> {
        // SAFETY: the stream lives as long as the process.
        unsafe { self.gpu.kernels.synchronize(self.gpu.stream) }?;
        self.graphs.forget();
        self.tree = TreeAccumulator::on(self.gpu.device, len);
        Ok(())
    }

    /// Puts the whole attempt on its streams, as a graph if there have been steps of this shape.
    fn start(
        &mut self,
        net: &Network,
        shards: &[Option<ShardBatch>],
        (epoch, total): (u32, &Denominators),
        exchange: &mut dyn Exchange,
    ) -> Result<(Tensor, How)> {
        let gpu = &self.gpu;
        while self.blocks.len() < shards.len() {
            let block = Block::new(&gpu.kernels, gpu.device, &self.shape)?;
            self.blocks.push(block);
        }
        for (batch, block) in shards.iter().zip(&mut self.blocks) {
            let Some(batch) = batch else { continue };
            if block.begin(&gpu.kernels, batch)? {
                self.graphs.forget();
            }
            block.put_targets(net, batch, &net.scales(total), epoch)?;
        }
        let counts = shards.iter().flatten().map(|batch| &batch.counts);
        self.tokens.prepare(counts, gpu.device)?;
        let shape: PatchCounts = shards
            .iter()
            .map(|batch| batch.as_ref().map(|batch| batch.counts.clone()))
            .collect();
        // NCCL demands that all ranks record, or none; the ranks do not agree on that here.
        let may_be_recorded = exchange.is_alone()
            && gpu.all_resident()
            && shards.iter().flatten().all(ShardBatch::is_cut_on_gpu);
        if !(may_be_recorded && self.graphs.is_due(&shape)) {
            let sums = self.enqueue(net, shards, exchange, None)?;
            return Ok((sums, How::Plainly));
        }
        // The host's data are uploaded first, because a graph does the same work every time.
        let mut ready = Vec::with_capacity(shards.len());
        for (batch, block) in shards.iter().zip(&mut self.blocks) {
            let upload = |batch| self.cutter.upload(&self.gpu, block, batch);
            ready.push(batch.as_ref().map(upload).transpose()?);
        }
        if let Some(recorded) = self.graphs.get(&shape) {
            return Ok((recorded.replay()?, How::ByGraph));
        }
        match Recorded::capture(|| self.enqueue(net, shards, exchange, Some(ready))) {
            Ok(recorded) => {
                let mut kept = self.tree.buffers();
                kept.extend(self.tokens.0.values().flat_map(Tokens::tensors));
                let recorded = recorded.keeping(kept);
                Ok((self.graphs.keep(shape, recorded).replay()?, How::ByGraph))
            }
            Err(error) => {
                tracing::warn!("going on without CUDA graphs: {error}");
                self.graphs.give_up();
                drop(self.tree.take());
                let sums = self.enqueue(net, shards, exchange, None)?;
                Ok((sums, How::Plainly))
            }
        }
    }

    /// Puts pixels, passes, reduction and the verdict's numbers on the stream. With `ready`, the blocks are uploaded
    /// already and this work is being recorded.
    fn enqueue(
        &mut self,
        net: &Network,
        shards: &[Option<ShardBatch>],
        exchange: &mut dyn Exchange,
        ready: Option<Vec<Option<ReadyBatch<'_>>>>,
    ) -> Result<Tensor> {
        let Self {
            gpu,
            cutter,
            tree,
            blocks,
            tokens,
            measured,
            ..
        } = self;
        let is_recorded = ready.is_some();
        let mut ready = ready.map(Vec::into_iter);
        let mut sender = Sender {
            gpu,
            exchange,
            reduce_dtype: self.reduce_dtype,
            grads: net.surface.grads.clone(),
            narrow: Vec::new(),
        };
        for (leaf, (shard, block)) in shards.iter().zip(blocks).enumerate() {
            let ready = ready.as_mut().and_then(Iterator::next).flatten();
            let mut adder = ShardAdder {
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
            let ready = match ready {
                Some(ready) => ready,
                None => cutter.upload(gpu, block, batch)?,
            };
            let views = cutter.views(gpu, block, ready)?;
            let patches = batch.patch_ids.len();
            ops::measure_convolutions(measured.is_worth_it((batch.counts.len(), patches)));
            let tokens = tokens.0.get(&batch.counts).ok_or_else(|| {
                Error::Internal(format!("no tokens for {} images", batch.counts.len()))
            })?;
            pass(net, gpu, tokens, &views, block, adder)?;
        }
        if !is_recorded {
            // SAFETY: the stream lives as long as the process.
            unsafe { self.answer.computed.record(gpu.stream) }?;
        }
        let narrow = sender.join()?;
        let sums = tree.take()?;
        for (range, values) in narrow {
            part(&sums, &range)?.f_copy_(&values)?;
        }
        self.answer.put(&self.gpu, net, &sums)?;
        Ok(sums)
    }

    /// Waits for the losses and the gradient's sum of squares on the host.
    fn answer(
        &mut self,
        how: How,
        exchange: &mut dyn Exchange,
        computed: &mut dyn FnMut(),
    ) -> Result<Totals> {
        let answer = &self.answer;
        // SAFETY: the stream lives as long as the process.
        unsafe { answer.done.record(self.gpu.stream) }?;
        match how {
            // A rank that uses a graph is alone, so there are no other ranks to wait for.
            How::ByGraph => {
                exchange.wait(&answer.done)?;
                computed();
            }
            How::Plainly => {
                answer.computed.synchronize()?;
                computed();
            }
        }
        exchange.wait(&answer.done)?;
        let squares_at = StepReadback::squares_at(answer.scalars) / 8;
        Ok(Totals {
            scalars: answer.host.as_slice::<f32>()[..answer.scalars].to_vec(),
            sum_squares: answer.host.as_slice::<f64>()[squares_at],
        })
    }

    /// Puts the optimizer's update and that of the running statistics on the stream. Takes the sums back for reuse.
    pub fn commit(&mut self, net: &mut Network, sums: Tensor, adam: &[AdamParams]) -> Result<()> {
        let (gpu, (host, scalars)) = (&self.gpu, &mut self.adam);
        // The host has waited for the step before, and so for the copy out of this memory.
        let classes = adam.iter().map(AdamScalars::new);
        let classes = classes.collect::<fovea_kernels::Result<Vec<_>>>()?;
        let bytes: &[u8] = bytemuck::cast_slice(&classes);
        let room = host.as_mut_slice::<u8>();
        let Some(room) = room.get_mut(..bytes.len()) else {
            return Err(Error::Internal(format!(
                "{} classes of parameters, and room for {MOST_CLASSES}",
                adam.len()
            )));
        };
        room.copy_from_slice(bytes);
        let params = &net.params;
        let moves = moves(params, &sums, scalars.address());
        // SAFETY: all buffers have the lengths of the layout. They live as long as self or the parameters, and the
        // stream's order keeps the sums.
        unsafe {
            gpu.kernels.copy_to_device_async(
                gpu.stream,
                scalars.address(),
                host.as_ptr(),
                bytes.len(),
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
        let stats = part(&sums, &net.surface.stats)?;
        for range in params.trainable().moving_stats(&params.blueprint) {
            let new = part(&stats, &range)?.f_div(&shards)?;
            let mut running = part(params.tensor(StateBuffer::Running), &range)?;
            let new = new.f_mul_scalar(f64::from(NORM_MOMENTUM))?;
            let mut kept = running.f_mul_scalar_(f64::from(1.0 - NORM_MOMENTUM))?;
            let _ = kept.f_add_(&new)?;
        }
        self.tree.recycle(sums);
        Ok(())
    }
}

impl StepReadback {
    /// Offset of the sum of squares in `host`, bytes.
    fn squares_at(scalars: usize) -> usize {
        (4 * scalars).next_multiple_of(8)
    }

    /// Puts the copies to the host on the stream.
    fn put(&self, gpu: &Gpu, net: &Network, sums: &Tensor) -> Result<()> {
        let squares = SumSquares {
            x: address(sums),
            n: net.surface.grads.len(),
            total: self.sum_squares.address(),
            scratch: self.scratch.address(),
        };
        let scalars = address(sums) + 4 * net.surface.scalars.start as u64;
        let host = self.host.as_ptr();
        // SAFETY: the gradients begin the sums, which live as long as the work; the buffers are self's and have the
        // right lengths; the host reads its memory behind `done`.
        unsafe {
            gpu.run(&squares)?;
            gpu.kernels
                .copy_to_host_async(gpu.stream, host, scalars, 4 * self.scalars)?;
            let squares_host = host.add(Self::squares_at(self.scalars));
            let device = self.sum_squares.address();
            gpu.kernels
                .copy_to_host_async(gpu.stream, squares_host, device, 8)?;
        }
        Ok(())
    }
}

/// Adam over everything that moves; convolutions may have a working copy. `scalars`: address of those of each class.
fn moves(params: &Params, sums: &Tensor, scalars: u64) -> Vec<FusedAdam> {
    let split = params.layout.working_len;
    let over = |update: &UpdateRange| {
        let range: &Range<usize> = &update.elements;
        let at = |tensor: &Tensor| address(tensor) + 4 * range.start as u64;
        let working = params.working().filter(|_| range.end <= split);
        FusedAdam {
            params: at(params.tensor(StateBuffer::Master)),
            grads: at(sums),
            m: at(params.tensor(StateBuffer::FirstMoment)),
            v: at(params.tensor(StateBuffer::SecondMoment)),
            working: working.map_or(0, |tensor| address(tensor) + 2 * range.start as u64),
            n: range.len(),
            scalars: scalars + (update.class * size_of::<AdamScalars>()) as u64,
        }
    };
    params.updates().iter().map(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Making room for one layout must not remove that of another virtual shard of the same step.
    #[test]
    fn all_layouts_of_a_step_are_there_together() {
        let mut layouts = Layouts::default();
        for n in 0..2 * MOST_TOKENS {
            let step = [vec![1], vec![n + 2]];
            layouts
                .prepare(step.iter(), Device::Cpu)
                .expect("tensors on the CPU");
            assert!(step.iter().all(|counts| layouts.0.contains_key(counts)));
            assert!(layouts.0.len() <= MOST_TOKENS + step.len());
        }
    }
}
