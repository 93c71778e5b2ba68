//! Dropout masks from the counter-based hash: a sample has the same mask on any rank and for any world size.

use fovea_kernels::philox::philox4x32;

use crate::blueprint::DropoutSpec;
use crate::samples::ShardBatch;

/// The mask of one site for a batch, `[rows, width]`, row-major, one row per image or patch: 0 with the site's
/// probability, else `1 / (1 - p)` (inverted dropout).
pub fn mask(seed: u64, epoch: u32, site: &DropoutSpec, batch: &ShardBatch) -> Vec<f32> {
    values(seed, epoch, site, batch.ids(site.level))
}

fn values(seed: u64, epoch: u32, site: &DropoutSpec, ids: &[u64]) -> Vec<f32> {
    let keep = 1.0 / (1.0 - site.p);
    let limit = (f64::from(site.p) * 4_294_967_296.0) as u64;
    let key = [seed as u32, (seed >> 32) as u32 ^ site.stream];
    let mut values = Vec::with_capacity(ids.len() * site.width);
    for &id in ids {
        for block in 0..site.width / 4 {
            let words = philox4x32([id as u32, (id >> 32) as u32, epoch, block as u32], key);
            values.extend(words.map(|w| if u64::from(w) < limit { 0.0 } else { keep }));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use fovea_task::Level;

    use super::*;

    #[test]
    fn a_mask_follows_the_sample_and_has_the_right_rate() {
        let site = DropoutSpec {
            level: Level::Patch,
            width: 128,
            p: 0.3,
            stream: 0x0050_4154,
        };
        let ids: Vec<u64> = (0..400).collect();
        let all = values(3, 1, &site, &ids);
        let one = values(3, 1, &site, &ids[17..18]);
        assert_eq!(all[17 * site.width..18 * site.width], one);
        assert_ne!(one, values(3, 2, &site, &ids[17..18]));
        let other = DropoutSpec { stream: 1, ..site };
        assert_ne!(one, values(3, 1, &other, &ids[17..18]));
        let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
    }
}
