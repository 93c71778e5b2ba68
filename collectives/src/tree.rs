//! The order in which ranks are added: the one definition that tests hold every CPU backend to.
//!
//! Neighbours are added in pairs, then the pair sums in pairs, and so on; an odd one at the end of a
//! level moves up unchanged: `((0+1)+(2+3))`, `((0+1)+2)`, `(((0+1)+(2+3))+4)`. The ranks' sums
//! are subtrees of the virtual shards' tree, so the same virtual shards give the same bits
//! at any world size that divides them into power-of-two blocks.

/// Floats summed at a time: 4 KiB, so that partial sums stay in the first-level cache.
const BLOCK: usize = 1024;

/// Adds `parts` element by element in the fixed binary tree; the sum is left in `parts[0]`, the others
/// hold partial sums afterwards. (Bits are fixed for everything but the payload of a NaN.)
///
/// # Panics
/// If the parts differ in length.
pub fn tree_sum(parts: &mut [&mut [f32]]) {
    let count = parts.len();
    let mut stride = 1;
    while stride < count {
        for left in (0..count - stride).step_by(2 * stride) {
            let (head, tail) = parts.split_at_mut(left + stride);
            add(head[left], tail[0]);
        }
        stride *= 2;
    }
}

/// [`tree_sum`] into `out`, leaving `parts` (one per rank, at least one) alone.
pub(super) fn tree_sum_into(out: &mut [f32], parts: &[&[f32]]) {
    for start in (0..out.len()).step_by(BLOCK) {
        let end = (start + BLOCK).min(out.len());
        sum_block(&mut out[start..end], parts, start);
    }
}

/// `out[i] = tree over parts of part[offset + i]`, at most [`BLOCK`] long. Splitting at the largest
/// power of two below the count is the same tree as pairing neighbours and carrying the odd one up.
fn sum_block(out: &mut [f32], parts: &[&[f32]], offset: usize) {
    let range = offset..offset + out.len();
    match parts {
        [] => out.fill(0.0),
        [only] => out.copy_from_slice(&only[range]),
        [left, right] => {
            let pairs = left[range.clone()].iter().zip(&right[range]);
            for (sum, (a, b)) in out.iter_mut().zip(pairs) {
                *sum = a + b;
            }
        }
        _ => {
            let (left, right) = parts.split_at(parts.len().div_ceil(2).next_power_of_two());
            sum_block(out, left, offset);
            let mut scratch = [0.0; BLOCK];
            let scratch = &mut scratch[..out.len()];
            sum_block(scratch, right, offset);
            add(out, scratch);
        }
    }
}

fn add(into: &mut [f32], from: &[f32]) {
    assert_eq!(into.len(), from.len(), "parts of a sum have one length");
    for (sum, value) in into.iter_mut().zip(from) {
        *sum += value;
    }
}

/// The part of `len` floats that `rank` sums, `start..end`; whole cache lines, so that ranks do not share one.
pub(super) fn stripe(len: usize, rank: usize, world: usize) -> (usize, usize) {
    const LINE: usize = 16;
    let lines = len.div_ceil(LINE);
    let edge = |rank: usize| (rank * lines / world * LINE).min(len);
    (edge(rank), edge(rank + 1))
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, stripe, tree_sum, tree_sum_into};
    use proptest::prelude::*;

    fn sum_of(values: &[f32]) -> f32 {
        let mut parts: Vec<[f32; 1]> = values.iter().map(|value| [*value]).collect();
        let mut parts: Vec<&mut [f32]> = parts.iter_mut().map(|part| &mut part[..]).collect();
        tree_sum(&mut parts);
        parts[0][0]
    }

    #[test]
    fn pairs_of_neighbours_with_the_odd_one_carried_up() {
        // Values whose sum depends on the order, so that another tree would show.
        let v = [1.0e8_f32, 3.0, -1.0e8, 5.0, 0.1, 7.0e7, -2.5];
        assert_eq!(sum_of(&v[..1]), v[0]);
        assert_eq!(sum_of(&v[..2]), v[0] + v[1]);
        assert_eq!(sum_of(&v[..3]), (v[0] + v[1]) + v[2]);
        assert_eq!(sum_of(&v[..4]), (v[0] + v[1]) + (v[2] + v[3]));
        assert_eq!(sum_of(&v[..5]), ((v[0] + v[1]) + (v[2] + v[3])) + v[4]);
        let five_on = (v[4] + v[5]) + v[6];
        assert_eq!(sum_of(&v), ((v[0] + v[1]) + (v[2] + v[3])) + five_on);
    }

    #[test]
    fn no_parts_and_no_elements_are_fine() {
        tree_sum(&mut []);
        tree_sum(&mut [&mut [], &mut []]);
        tree_sum_into(&mut [], &[&[], &[]]);
    }

    #[test]
    fn stripes_cover_a_chunk_once() {
        for (len, world) in [(0, 3), (1, 4), (16, 2), (100, 7), (4096, 4), (5000, 3)] {
            let mut at = 0;
            for rank in 0..world {
                let (start, end) = stripe(len, rank, world);
                assert!(
                    start == at && end >= start,
                    "rank {rank} of {world}, {len} floats"
                );
                at = end;
            }
            assert_eq!(at, len);
        }
    }

    proptest! {
        #[test]
        fn both_forms_give_the_same_bits(world in 1_usize..12, len in 0_usize..3 * BLOCK, seed: u32) {
            let value = |rank: usize, i: usize| {
                let hash = (rank * 7919 + i) as u32 ^ seed;
                let hash = hash.wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
                // Magnitudes from 2^-20 to 2^20: rounding differs with the order.
                (hash as i32 as f32) * 2_f32.powi((hash % 40) as i32 - 51)
            };
            let parts: Vec<Vec<f32>> =
                (0..world).map(|rank| (0..len).map(|i| value(rank, i)).collect()).collect();
            let mut out = vec![f32::NAN; len];
            let views: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
            tree_sum_into(&mut out, &views);
            let mut parts = parts;
            let mut views: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
            tree_sum(&mut views);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&out), bits(views[0]));
        }

        /// Contiguous power-of-two blocks summed first, then the blocks: the same bits as all at once.
        #[test]
        fn blocks_of_virtual_shards_are_subtrees(values in prop::collection::vec(-1e6_f32..1e6, 8)) {
            for block in [1_usize, 2, 4, 8] {
                let ranks: Vec<f32> = values.chunks(block).map(sum_of).collect();
                prop_assert_eq!(sum_of(&ranks).to_bits(), sum_of(&values).to_bits());
            }
        }
    }
}
