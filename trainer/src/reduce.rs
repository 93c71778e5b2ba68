//! Sums over virtual shards in a fixed binary tree.
//!
//! What each virtual shard contributes (gradients, batch statistics, loss sums) is a leaf. Leaves are added
//! pairwise, `((0+1)+(2+3))+..`, like carries of a binary counter: the number of buffers is logarithmic. The
//! ranks' sums are then added by [`crate::collectives::Collective::all_reduce`] in the upper part of the same
//! tree, so the bits do not depend on how many ranks share the leaves.
//!
//! Every element is summed for itself, so parts of the buffer may be at different leaves: what is complete early
//! is on its way to the other ranks while the rest is still being computed (see [`crate::buckets`]).

use std::ops::Range;

use fovea_kernels::flat;

use crate::error::Result;

/// Whether a leaf overwrites its target or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The target holds something old.
    Assign,
    /// The target holds the left sibling.
    Add,
}

/// Binary-counter summation of equally long f32 buffers.
#[derive(Debug, Default)]
pub struct TreeAccumulator {
    len: usize,
    /// By depth: after `n` leaves those of `n`'s binary ones hold sums, the largest first.
    buffers: Vec<Vec<f32>>,
}

impl TreeAccumulator {
    /// For leaves of `len` elements.
    pub fn new(len: usize) -> Self {
        Self {
            len,
            buffers: Vec::new(),
        }
    }

    /// Adds the elements `range` of leaf `leaf`, which counts from 0; leaves come in order. `write` gets the target
    /// and whether to assign or to add.
    ///
    /// Elements that `write` does not touch must be ones it never touches: they stay zero.
    pub fn leaf(
        &mut self,
        leaf: usize,
        range: Range<usize>,
        write: impl FnOnce(&mut [f32], Fill) -> Result<()>,
    ) -> Result<()> {
        let ones = leaf.count_ones() as usize;
        if leaf.is_multiple_of(2) {
            return write(&mut self.buffer(ones)[range], Fill::Assign);
        }
        // Its left sibling is on top.
        let mut top = ones - 1;
        write(&mut self.buffer(top)[range.clone()], Fill::Add)?;
        for _ in 1..leaf.trailing_ones() {
            self.merge(top, range.clone())?;
            top -= 1;
        }
        Ok(())
    }

    /// The sum over all `leaves` of a round, complete for these elements.
    pub fn finish(&mut self, leaves: usize, range: Range<usize>) -> Result<&mut [f32]> {
        for top in (1..leaves.count_ones() as usize).rev() {
            self.merge(top, range.clone())?;
        }
        Ok(&mut self.buffer(0)[range])
    }

    /// The whole sum, every element of which was finished. Give it back with [`TreeAccumulator::recycle`].
    pub fn take(&mut self) -> Vec<f32> {
        std::mem::take(self.buffer(0))
    }

    /// Takes back a buffer from [`TreeAccumulator::take`], to be reused.
    pub fn recycle(&mut self, buffer: Vec<f32>) {
        if buffer.len() == self.len
            && let Some(first) = self.buffers.first_mut()
        {
            *first = buffer;
        }
    }

    /// Adds a sum to the one before it.
    fn merge(&mut self, top: usize, range: Range<usize>) -> Result<()> {
        self.buffer(top);
        let (left, right) = self.buffers.split_at_mut(top);
        let target = &mut left[top - 1][range.clone()];
        Ok(flat::add_assign(target, &right[0][range])?)
    }

    fn buffer(&mut self, depth: usize) -> &mut Vec<f32> {
        while self.buffers.len() <= depth {
            self.buffers.push(vec![0.0; self.len]);
        }
        let buffer = &mut self.buffers[depth];
        // One that was taken, and dropped with an attempt that failed.
        if buffer.len() != self.len {
            *buffer = vec![0.0; self.len];
        }
        buffer
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::collectives::tree_sum;
    use proptest::prelude::*;

    fn add(tree: &mut TreeAccumulator, number: usize, leaf: &[f32], range: Range<usize>) {
        tree.leaf(number, range.clone(), |target, fill| {
            for (t, l) in target.iter_mut().zip(&leaf[range]) {
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
        tree.take()
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

        /// In whatever order parts of the buffer get on, the bits are the same; also in a tree that was used before,
        /// by an attempt that was given up.
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
            drop(tree.take());
            let mut at = vec![0; bounds.len() - 1];
            let mut turns = turns.iter();
            while at.iter().any(|done| *done < count) {
                let open: Vec<usize> = (0..at.len()).filter(|part| at[*part] < count).collect();
                let part = turns.next().map_or(open[0], |turn| *turn.get(&open));
                add(&mut tree, at[part], &leaves[at[part]], bounds[part]..bounds[part + 1]);
                at[part] += 1;
                if at[part] == count {
                    let sum = tree.finish(count, bounds[part]..bounds[part + 1]).unwrap();
                    prop_assert_eq!(bits(sum), bits(&whole[bounds[part]..bounds[part + 1]]));
                }
            }
            let sum = tree.take();
            prop_assert_eq!(bits(&sum), bits(&whole));
        }
    }
}
