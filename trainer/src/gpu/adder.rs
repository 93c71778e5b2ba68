//! Adds gradients to the sums, and sends complete buckets to the other ranks.
//!
//! The additions are those of the CPU's step, in the fixed tree; the stream keeps their order.

use std::ops::Range;

use fovea_kernels::DType;
use fovea_kernels::cuda::ToBf16;
use fovea_run::config::ReduceDtype;
use tch::{Kind, Tensor};

use super::{Gpu, address};
use crate::buckets::Awaited;
use crate::error::Result;
use crate::overlap::Exchange;
use crate::reduce::{Fill, TreeAccumulator, part};
use crate::replica::Network;

/// Adds the contribution of one virtual shard to the sums, and sends the buckets that are complete.
pub struct ShardAdder<'a, 'b> {
    pub net: &'a Network,
    pub tree: &'a mut TreeAccumulator<Tensor>,
    /// Number of the virtual shard.
    pub leaf: usize,
    /// Number of this rank's leaves if this is the last of them, else none.
    pub leaves: Option<usize>,
    pub awaited: Awaited<'a>,
    pub sender: &'a mut Sender<'b>,
}

impl ShardAdder<'_, '_> {
    /// Adds a virtual shard without samples, because the tree has the same shape for every batch and world size.
    pub fn zeros(&mut self) -> Result<()> {
        let all = 0..self.net.surface.scalars.end;
        self.tree.leaf(self.leaf, all, |target, fill| {
            let _ = match fill {
                Fill::Assign => target.f_zero_()?,
                // As any addition does, this turns a negative zero into a positive one.
                Fill::Add => target.f_add_scalar_(0.0)?,
            };
            Ok(())
        })?;
        self.awaited.end_of_pass();
        self.send()
    }

    /// Adds the complete gradient of a parameter.
    pub fn gradient(&mut self, param: usize, gradient: &Tensor) -> Result<()> {
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

    /// Adds batch statistics and scalars, one after the other, at the end of the pass.
    pub fn rest(&mut self, values: &Tensor) -> Result<()> {
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

/// Sends buckets to the other ranks.
pub struct Sender<'a> {
    pub gpu: &'a Gpu,
    pub exchange: &'a mut dyn Exchange,
    pub reduce_dtype: ReduceDtype,
    /// Where the gradients lie in the sums.
    pub grads: Range<usize>,
    /// Buckets that travel in bf16, and the places in the sums that they return to.
    pub narrow: Vec<(Range<usize>, Tensor)>,
}

impl Sender<'_> {
    fn send(&mut self, range: &Range<usize>, sums: &Tensor) -> Result<()> {
        if self.exchange.is_alone() {
            return Ok(());
        }
        let (stream, len) = (self.gpu.stream, range.len());
        let Some(device) = self.exchange.device() else {
            // This engine knows host memory only.
            let mut values = Vec::<f32>::try_from(sums)?;
            self.exchange.all_reduce(&mut values)?;
            sums.shallow_clone().f_copy_(&Tensor::from_slice(&values))?;
            return Ok(());
        };
        // The last bucket holds losses and statistics too, so it does not lie among the gradients alone.
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

    /// Makes the stream wait for the buckets on their way. Returns the buckets that came in bf16.
    pub fn join(self) -> Result<Vec<(Range<usize>, Tensor)>> {
        if let Some(device) = self.exchange.device() {
            // SAFETY: the stream lives as long as the process.
            unsafe { device.join(self.gpu.stream) }?;
        }
        Ok(self.narrow)
    }
}
