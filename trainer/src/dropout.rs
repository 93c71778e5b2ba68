//! Dropout masks from the counter-based hash: the same for a sample on any rank and world size.

use fovea_kernels::philox::philox4x32;

use crate::models::{IMAGE_DROPOUT, PATCH_DROPOUT};
use crate::samples::ShardBatch;

/// Width of the hidden layers that are masked.
pub const HEAD_WIDTH: usize = 128;

/// Which layer a mask is for; part of the hash key.
#[derive(Clone, Copy, Debug)]
pub enum Layer {
    /// Hidden layer of the image head.
    Image = 0x0049_4d47,
    /// Hidden layer of the patch head.
    Patch = 0x0050_4154,
}

/// The masks of a batch, `[b, HEAD_WIDTH]` and `[n, HEAD_WIDTH]`, row-major.
pub fn masks(seed: u64, epoch: u32, batch: &ShardBatch) -> (Vec<f32>, Vec<f32>) {
    (
        mask(seed, epoch, Layer::Image, &batch.image_ids, IMAGE_DROPOUT),
        mask(seed, epoch, Layer::Patch, &batch.patch_ids, PATCH_DROPOUT),
    )
}

/// `[ids, HEAD_WIDTH]`, row-major: 0 with probability `p`, else `1 / (1 - p)` (inverted dropout).
fn mask(seed: u64, epoch: u32, layer: Layer, ids: &[u64], p: f32) -> Vec<f32> {
    let keep = 1.0 / (1.0 - p);
    let limit = (f64::from(p) * 4_294_967_296.0) as u64;
    let key = [seed as u32, (seed >> 32) as u32 ^ layer as u32];
    let mut values = Vec::with_capacity(ids.len() * HEAD_WIDTH);
    for &id in ids {
        for block in 0..HEAD_WIDTH / 4 {
            let words = philox4x32([id as u32, (id >> 32) as u32, epoch, block as u32], key);
            values.extend(words.map(|w| if u64::from(w) < limit { 0.0 } else { keep }));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_follows_the_sample_and_has_the_right_rate() {
        let ids: Vec<u64> = (0..400).collect();
        let all = mask(3, 1, Layer::Patch, &ids, 0.3);
        let row = |values: &[f32], i: usize| values[i * HEAD_WIDTH..(i + 1) * HEAD_WIDTH].to_vec();
        let one = mask(3, 1, Layer::Patch, &ids[17..18], 0.3);
        assert_eq!(row(&all, 17), one);
        assert_ne!(row(&all, 17), mask(3, 2, Layer::Patch, &ids[17..18], 0.3));
        let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
    }
}
