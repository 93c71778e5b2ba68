//! Sums over virtual shards in a fixed binary tree.
//!
//! Each virtual shard contributes a leaf (gradients, batch statistics, loss sums). Leaves are added pairwise,
//! `((0+1)+(2+3))+..`, like carries of a binary counter, so the number of buffers is logarithmic.
//! [`fovea_collectives::Collective::all_reduce`] then adds the ranks' sums in the upper part of the same tree, so the
//! bits do not depend on how many ranks share the leaves.
//!
//! Every element is summed on its own, so parts of the buffer may be at different leaves: early parts travel to the
//! other ranks while the rest is still being computed (see [`crate::buckets`]).

use std::ops::Range;

use fovea_kernels::flat;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Whether a leaf overwrites its target or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The target holds old values, which the leaf overwrites.
    Assign,
    /// The target holds the left sibling, which the leaf is added to.
    Add,
}

/// The ranges of the flat buffer that ranks reduce: gradients, batch statistics, scalars.
#[derive(Clone, Debug)]
pub(crate) struct Surface {
    /// The gradients, in the layout of the parameters.
    pub grads: Range<usize>,
    /// The batch statistics, in the layout of the running statistics.
    pub stats: Range<usize>,
    /// The summed loss of each head, the confusion counts of each head if training is scored, then the number of virtual
    /// shards with samples.
    pub scalars: Range<usize>,
}

/// A buffer of f32 that can be summed part by part.
pub trait SumBuffer {
    /// A buffer of `len` zeros, on `device` if its type can be on any.
    fn zeros(len: usize, device: Device) -> Result<Self>
    where
        Self: Sized;

    /// Length of the buffer, elements.
    fn len(&self) -> usize;

    /// Adds the elements `range` of `other` to the same elements of `self`.
    fn add(&mut self, other: &Self, range: Range<usize>) -> Result<()>;
}

impl SumBuffer for Vec<f32> {
    fn zeros(len: usize, _: Device) -> Result<Self> {
        Ok(vec![0.0; len])
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn add(&mut self, other: &Self, range: Range<usize>) -> Result<()> {
        let target = &mut self[range.clone()];
        Ok(flat::add_assign(target, &other[range])?)
    }
}

/// Additions run in the order of the current stream.
impl SumBuffer for Tensor {
    fn zeros(len: usize, device: Device) -> Result<Self> {
        Ok(Tensor::f_zeros([len as i64], (Kind::Float, device))?)
    }

    fn len(&self) -> usize {
        self.numel()
    }

    fn add(&mut self, other: &Self, range: Range<usize>) -> Result<()> {
        let mut target = part(self, &range)?;
        let _ = target.f_add_(&part(other, &range)?)?;
        Ok(())
    }
}

impl TreeAccumulator<Tensor> {
    /// The buffers that exist now.
    pub fn buffers(&self) -> Vec<Tensor> {
        let buffers = self.buffers.iter().flatten();
        buffers.map(Tensor::shallow_clone).collect()
    }
}

/// A view of the elements `range` of a flat tensor.
pub fn part(flat: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    Ok(flat.f_narrow(0, range.start as i64, range.len() as i64)?)
}

/// Binary-counter summation of equally long buffers.
#[derive(Debug)]
pub struct TreeAccumulator<B = Vec<f32>> {
    len: usize,
    device: Device,
    /// Sums by depth: after `n` leaves, one per 1 bit of `n`, the largest first. None for a buffer that was taken.
    buffers: Vec<Option<B>>,
}

impl<B> Default for TreeAccumulator<B> {
    fn default() -> Self {
        Self {
            len: 0,
            device: Device::Cpu,
            buffers: Vec::new(),
        }
    }
}

impl<B: SumBuffer> TreeAccumulator<B> {
    /// An accumulator for leaves of `len` elements, in host memory.
    pub fn new(len: usize) -> Self {
        Self::on(Device::Cpu, len)
    }

    /// An accumulator for leaves of `len` elements, with its buffers on `device`.
    pub fn on(device: Device, len: usize) -> Self {
        Self {
            len,
            device,
            buffers: Vec::new(),
        }
    }

    /// Adds the elements `range` of leaf `leaf`, which counts from 0; leaves come in order. `write` gets the buffer
    /// whose elements `range` are the target, and whether to assign or to add.
    ///
    /// Elements that `write` skips must be ones that it always skips: they stay zero.
    pub fn leaf(
        &mut self,
        leaf: usize,
        range: Range<usize>,
        write: impl FnOnce(&mut B, Fill) -> Result<()>,
    ) -> Result<()> {
        let ones = leaf.count_ones() as usize;
        if leaf.is_multiple_of(2) {
            return write(self.buffer(ones)?, Fill::Assign);
        }
        // The leaf's left sibling is on top.
        let mut top = ones - 1;
        write(self.buffer(top)?, Fill::Add)?;
        for _ in 1..leaf.trailing_ones() {
            self.merge(top, range.clone())?;
            top -= 1;
        }
        Ok(())
    }

    /// The buffer that holds the sum over all `leaves` of a round, complete for these elements.
    pub fn finish(&mut self, leaves: usize, range: Range<usize>) -> Result<&mut B> {
        for top in (1..leaves.count_ones() as usize).rev() {
            self.merge(top, range.clone())?;
        }
        self.buffer(0)
    }

    /// Takes the whole sum after every element was finished. Return it with [`TreeAccumulator::recycle`].
    pub fn take(&mut self) -> Result<B> {
        self.buffer(0)?;
        let taken = self.buffers.first_mut().and_then(Option::take);
        taken.map_or_else(|| B::zeros(self.len, self.device), Ok)
    }

    /// Takes back a buffer from [`TreeAccumulator::take`], for reuse.
    pub fn recycle(&mut self, buffer: B) {
        if buffer.len() == self.len
            && let Some(first) = self.buffers.first_mut()
        {
            *first = Some(buffer);
        }
    }

    /// Adds a sum to the one below it.
    fn merge(&mut self, top: usize, range: Range<usize>) -> Result<()> {
        self.buffer(top)?;
        self.buffer(top - 1)?;
        let (left, right) = self.buffers.split_at_mut(top);
        match (&mut left[top - 1], &right[0]) {
            (Some(target), Some(source)) => target.add(source, range),
            _ => Ok(()),
        }
    }

    fn buffer(&mut self, depth: usize) -> Result<&mut B> {
        if self.buffers.len() <= depth {
            self.buffers.resize_with(depth + 1, || None);
        }
        let slot = &mut self.buffers[depth];
        match slot {
            Some(buffer) => Ok(buffer),
            // The first use, or the buffer before was dropped with a failed attempt.
            None => Ok(slot.insert(B::zeros(self.len, self.device)?)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use fovea_collectives::tree_sum;
    use proptest::prelude::*;

    fn add(tree: &mut TreeAccumulator, number: usize, leaf: &[f32], range: Range<usize>) {
        tree.leaf(number, range.clone(), |target, fill| {
            for (t, l) in target[range.clone()].iter_mut().zip(&leaf[range]) {
                *t = if fill == Fill::Assign { *l } else { *t + *l };
            }
            Ok(())
        })
        .unwrap();
    }

    fn sum(leaves: &[Vec<f32>]) -> Vec<f32> {
        let len = leaves[0].len();
        let mut tree = TreeAccumulator::new(len);
        for (number, leaf) in leaves.iter().enumerate() {
            add(&mut tree, number, leaf, 0..len);
        }
        tree.finish(leaves.len(), 0..len).unwrap();
        tree.take().unwrap()
    }

    fn leaves(count: usize, seed: &[f32]) -> Vec<Vec<f32>> {
        (0..count)
            .map(|s| {
                let factor = s as f32 + 0.37;
                seed.iter().map(|x| (x * factor).sin() * x).collect()
            })
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        /// However a power of two of ranks shares the leaves, the bits are those of one rank.
        #[test]
        fn bits_do_not_depend_on_the_ranks(
            log_shards in 0usize..5,
            seed in prop::collection::vec(-1e3f32..1e3, 64),
        ) {
            let shards = 1 << log_shards;
            let leaves = leaves(shards, &seed);
            let whole = sum(&leaves);
            for log_ranks in 0..=log_shards {
                let ranks = 1 << log_ranks;
                let mut parts: Vec<Vec<f32>> = leaves.chunks(shards / ranks).map(sum).collect();
                let mut parts: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                tree_sum(&mut parts);
                prop_assert_eq!(bits(parts[0]), bits(&whole));
            }
        }

        /// Any number of leaves is summed in the tree that `tree_sum` defines.
        #[test]
        fn any_number_of_leaves(count in 1usize..40) {
            let leaves: Vec<Vec<f32>> = (0..count).map(|s| vec![(s as f32 + 0.1).exp().sin() * 1e4; 3]).collect();
            let mut copy = leaves.clone();
            let mut parts: Vec<&mut [f32]> = copy.iter_mut().map(Vec::as_mut_slice).collect();
            tree_sum(&mut parts);
            prop_assert_eq!(bits(&sum(&leaves)), bits(parts[0]));
        }

        /// Parts of the buffer may progress in any order: the bits are the same, also in a tree that an abandoned
        /// attempt has used before.
        #[test]
        fn parts_do_not_wait_for_each_other(
            count in 1usize..12,
            seed in prop::collection::vec(-1e3f32..1e3, 24),
            cuts in prop::collection::btree_set(1usize..24, 0..4),
            turns in prop::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let leaves = leaves(count, &seed);
            let whole = sum(&leaves);
            let mut bounds = vec![0];
            bounds.extend(&cuts);
            bounds.push(24);
            let mut tree = TreeAccumulator::new(24);
            add(&mut tree, 0, &[f32::NAN; 24], 0..24);
            drop(tree.take().unwrap());
            let mut at = vec![0; bounds.len() - 1];
            let mut turns = turns.iter();
            while at.iter().any(|done| *done < count) {
                let open: Vec<usize> = (0..at.len()).filter(|part| at[*part] < count).collect();
                let part = turns.next().map_or(open[0], |turn| *turn.get(&open));
                add(&mut tree, at[part], &leaves[at[part]], bounds[part]..bounds[part + 1]);
                at[part] += 1;
                if at[part] == count {
                    let sum = tree.finish(count, bounds[part]..bounds[part + 1]).unwrap();
                    let range = bounds[part]..bounds[part + 1];
                    prop_assert_eq!(bits(&sum[range.clone()]), bits(&whole[range]));
                }
            }
            let sum = tree.take().unwrap();
            prop_assert_eq!(bits(&sum), bits(&whole));
        }
    }
}
