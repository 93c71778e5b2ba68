//! Dropout masks from the counter-based hash: the same for a sample on any rank and world size.

use fovea_kernels::philox::philox4x32;
use tch::Tensor;

use crate::error::Result;

/// Which layer a mask is for; part of the hash key.
#[derive(Clone, Copy, Debug)]
pub enum Layer {
    /// Hidden layer of the image head.
    Image = 0x0049_4d47,
    /// Hidden layer of the patch head.
    Patch = 0x0050_4154,
}

/// `[ids, width]` f32: 0 with probability `p`, else `1 / (1 - p)` (inverted dropout).
pub fn mask(
    seed: u64,
    epoch: u32,
    layer: Layer,
    ids: &[u64],
    width: usize,
    p: f32,
) -> Result<Tensor> {
    let keep = 1.0 / (1.0 - p);
    let limit = (f64::from(p) * 4_294_967_296.0) as u64;
    let key = [seed as u32, (seed >> 32) as u32 ^ layer as u32];
    let mut values = Vec::with_capacity(ids.len() * width);
    for &id in ids {
        for block in 0..width.div_ceil(4) {
            let words = philox4x32([id as u32, (id >> 32) as u32, epoch, block as u32], key);
            let wanted = (width - block * 4).min(4);
            values.extend(
                words[..wanted]
                    .iter()
                    .map(|&w| if u64::from(w) < limit { 0.0 } else { keep }),
            );
        }
    }
    Ok(Tensor::from_slice(&values).f_view([ids.len() as i64, width as i64])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_follows_the_sample_and_has_the_right_rate() {
        let ids: Vec<u64> = (0..400).collect();
        let all = mask(3, 1, Layer::Patch, &ids, 128, 0.3).expect("mask");
        let one = mask(3, 1, Layer::Patch, &ids[17..18], 128, 0.3).expect("mask");
        assert!(all.get(17).equal(&one.get(0)));
        assert!(
            !all.get(17).equal(
                &mask(3, 2, Layer::Patch, &ids[17..18], 128, 0.3)
                    .expect("mask")
                    .get(0)
            )
        );
        let mean = all.mean(tch::Kind::Float).double_value(&[]);
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
    }
}
