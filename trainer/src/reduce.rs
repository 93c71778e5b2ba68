//! Sums over virtual shards in a fixed binary tree.
//!
//! A rank runs its virtual shards one after the other; what each contributes (gradients, batch
//! statistics, loss sums) is a leaf. Leaves are added pairwise, `((0+1)+(2+3))+..`, as soon as both
//! halves are there, like carries of a binary counter: the number of buffers is logarithmic. The
//! ranks' sums are then added by [`crate::collectives::Collective::all_reduce`] in the upper part of
//! the same tree, so the bits do not depend on how many ranks share the leaves.

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
pub struct TreeAccumulator {
    len: usize,
    /// (number of leaves in it, sum), sizes strictly decreasing powers of two.
    stack: Vec<(usize, Vec<f32>)>,
    spare: Vec<Vec<f32>>,
}

impl TreeAccumulator {
    /// For leaves of `len` elements.
    pub fn new(len: usize) -> Self {
        Self {
            len,
            stack: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Adds the next leaf. `write` gets the target and whether to assign or to add.
    ///
    /// Elements that `write` does not touch must be ones it never touches: they stay zero.
    pub fn leaf(&mut self, write: impl FnOnce(&mut [f32], Fill) -> Result<()>) -> Result<()> {
        match self.stack.last_mut() {
            Some((leaves, target)) if *leaves == 1 => {
                write(target, Fill::Add)?;
                *leaves = 2;
                self.carry()
            }
            _ => {
                let mut target = self.spare.pop().unwrap_or_else(|| vec![0.0; self.len]);
                write(&mut target, Fill::Assign)?;
                self.stack.push((1, target));
                Ok(())
            }
        }
    }

    fn carry(&mut self) -> Result<()> {
        while let [.., (left, _), (right, _)] = self.stack.as_slice() {
            if left != right {
                break;
            }
            self.merge_top()?;
        }
        Ok(())
    }

    fn merge_top(&mut self) -> Result<()> {
        if let (Some((right, addend)), Some((left, target))) =
            (self.stack.pop(), self.stack.last_mut())
        {
            flat::add_assign(target, &addend)?;
            *left += right;
            self.spare.push(addend);
        }
        Ok(())
    }

    /// The sum over all leaves so far (zeros without leaves), ready for the next round.
    /// Give the buffer back with [`TreeAccumulator::recycle`].
    pub fn finish(&mut self) -> Result<Vec<f32>> {
        while self.stack.len() > 1 {
            self.merge_top()?;
        }
        Ok(self
            .stack
            .pop()
            .map_or_else(|| vec![0.0; self.len], |(_, sum)| sum))
    }

    /// Drops half-done sums, after an attempt that failed.
    pub fn reset(&mut self) {
        self.spare
            .extend(self.stack.drain(..).map(|(_, buffer)| buffer));
    }

    /// Takes back a buffer from [`TreeAccumulator::finish`], to be reused.
    pub fn recycle(&mut self, buffer: Vec<f32>) {
        if buffer.len() == self.len {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::tree_sum;
    use proptest::prelude::*;

    fn sum(leaves: &[Vec<f32>]) -> Vec<f32> {
        let mut tree = TreeAccumulator::new(leaves[0].len());
        for leaf in leaves {
            tree.leaf(|target, fill| {
                for (t, l) in target.iter_mut().zip(leaf) {
                    *t = if fill == Fill::Assign { *l } else { *t + *l };
                }
                Ok(())
            })
            .expect("leaf");
        }
        tree.finish().expect("sum")
    }

    proptest! {
        /// However a power of two of ranks shares the leaves, the bits are those of one rank.
        #[test]
        fn bits_do_not_depend_on_the_ranks(
            log_shards in 0usize..5,
            seed in prop::collection::vec(-1e3f32..1e3, 64),
        ) {
            let shards = 1 << log_shards;
            let leaves: Vec<Vec<f32>> = (0..shards)
                .map(|s| seed.iter().map(|x| (x * (s as f32 + 0.37)).sin() * x).collect())
                .collect();
            let whole = sum(&leaves);
            for log_ranks in 0..=log_shards {
                let ranks = 1 << log_ranks;
                let mut parts: Vec<Vec<f32>> = leaves.chunks(shards / ranks).map(sum).collect();
                let mut parts: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                tree_sum(&mut parts);
                let bits: Vec<u32> = parts[0].iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(bits, whole.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
        }

        /// Any number of leaves is summed in the tree that `tree_sum` defines.
        #[test]
        fn any_number_of_leaves(count in 1usize..20) {
            let leaves: Vec<Vec<f32>> = (0..count).map(|s| vec![(s as f32 + 0.1).exp().sin() * 1e4; 3]).collect();
            let mut copy = leaves.clone();
            let mut parts: Vec<&mut [f32]> = copy.iter_mut().map(Vec::as_mut_slice).collect();
            tree_sum(&mut parts);
            prop_assert_eq!(sum(&leaves), parts[0].to_vec());
        }
    }
}
