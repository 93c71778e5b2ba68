//! Which image carries which lesions, decided for the whole dataset before anything is drawn.
//!
//! Rates are FGADR's (1,841 images, 184,100 patches). Quotas and stratified draws meet them, not
//! independent coin flips, so that even 24 images look like the whole; who gets what is random.

use super::rng::{Purpose, RandomStream};

/// Share of images with at least one lesion of MA, HE, EX, SE.
pub(super) const IMAGE_RATES: [f64; 4] = [0.82, 0.84, 0.73, 0.36];

/// Mean number of positive cells (of 100) per image, over all images: 11,993 / 28,829 / 17,647 /
/// 3,448 positive patches in 1,841 images.
pub(super) const CELLS_PER_IMAGE: [f64; 4] = [6.51, 15.66, 9.59, 1.87];

/// Most cells one class may fill in one image; about 87 of the 100 show retina.
const MOST_CELLS: [f64; 4] = [36.0, 58.0, 46.0, 16.0];

/// Share of images of grade 1 (microaneurysms only).
const GRADE_1: f64 = 0.105;

/// Among images beyond grade 1: the share of grade 2, and of grades 2 and 3 together.
const GRADE_2_AND_3: [f64; 2] = [0.39, 0.81];

/// What one image will show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    /// Diabetic retinopathy grade 0-4 (none, mild, moderate, severe, proliferative).
    pub(super) grade: u8,
    /// Grid cells to be touched by MA, HE, EX, SE.
    pub(super) cells: [u32; 4],
}

/// The cases of a dataset of `images` images. Grade 0 has no lesion, grade 1 microaneurysms only,
/// grades 2 and up always haemorrhages; each class is in at least one image.
pub(super) fn plan(images: usize, seed: u64) -> Vec<Case> {
    let mut draw = RandomStream::new(seed, u64::MAX, Purpose::Plan);
    let quota = |rate: f64| ((rate * images as f64).round() as usize).clamp(1, images);
    let advanced = quota(IMAGE_RATES[1]);
    let mild = ((GRADE_1 * images as f64).round() as usize).min(images - advanced);
    let healthy = images - advanced - mild;

    let grade = |rank: usize| {
        if rank < healthy {
            return 0;
        }
        if rank < healthy + mild {
            return 1;
        }
        let place = (rank - healthy - mild) as f64 + 0.5;
        2 + GRADE_2_AND_3
            .iter()
            .filter(|&&share| place > share * advanced as f64)
            .count() as u8
    };
    // Rank = severity: rank 0 is the healthiest image.
    let mut cases: Vec<Case> = (0..images)
        .map(|rank| Case {
            grade: grade(rank),
            cells: [0; 4],
        })
        .collect();
    let all_mild: Vec<usize> = (healthy..healthy + mild).collect();
    let all_advanced: Vec<usize> = (healthy + mild..images).collect();
    for (class, &rate) in IMAGE_RATES.iter().enumerate() {
        let ranks = if class == 0 {
            let more = quota(rate).saturating_sub(mild);
            let mut ranks = all_mild.clone();
            ranks.extend(
                by_severity(&all_advanced, 0.2, &mut draw)
                    .into_iter()
                    .rev()
                    .take(more),
            );
            ranks
        } else {
            let chosen = by_severity(&all_advanced, 0.7, &mut draw);
            chosen.into_iter().rev().take(quota(rate)).collect()
        };
        deal_cells(class, images, &ranks, &mut cases, &mut draw);
    }
    draw.permutation(images)
        .into_iter()
        .map(|rank| cases[rank])
        .collect()
}

/// `ranks` from mild to severe, shuffled as far as `weight` (0: at random, large: strictly) allows.
fn by_severity(ranks: &[usize], weight: f32, draw: &mut RandomStream) -> Vec<usize> {
    let span = ranks.len().max(1) as f32;
    let mut scored: Vec<(f32, usize)> = ranks
        .iter()
        .enumerate()
        .map(|(place, &rank)| (weight * place as f32 / span + draw.unit(), rank))
        .collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, rank)| rank).collect()
}

/// Gives each image of `ranks` its number of cells: quantiles of a long-tailed distribution, more
/// for the severe ones, with the sum that [`CELLS_PER_IMAGE`] asks for.
fn deal_cells(
    class: usize,
    images: usize,
    ranks: &[usize],
    cases: &mut [Case],
    draw: &mut RandomStream,
) {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let order = by_severity(&sorted, 1.5, draw);
    let count = order.len() as f64;
    let shape: Vec<f64> = (0..order.len())
        .map(|i| -(1.0 - (i as f64 + 0.5) / count).ln())
        .collect();
    let wanted = CELLS_PER_IMAGE[class] * images as f64;
    let cells = |gain: f64| {
        shape
            .iter()
            .map(move |s| (1.0 + gain * s).min(MOST_CELLS[class]))
    };
    // The cap makes the sum a concave function of the gain: bisect.
    let (mut low, mut high) = (0.0, 1e4);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if cells(middle).sum::<f64>() < wanted {
            low = middle
        } else {
            high = middle
        }
    }
    let mut carry = 0.0;
    for (&rank, value) in order.iter().zip(cells(low)) {
        let rounded = (value + carry).round().max(1.0);
        carry += value - rounded;
        cases[rank].cells[class] = rounded as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_meet_the_rates_even_for_few_images() {
        for images in [24, 60, 200, 1841] {
            let cases = plan(images, 3);
            for class in 0..4 {
                let positive = cases.iter().filter(|c| c.cells[class] > 0).count() as f64;
                let wanted = IMAGE_RATES[class] * images as f64;
                assert!(
                    (positive - wanted).abs() <= 0.51,
                    "{images} images, class {class}: {positive}"
                );
                let cells: u32 = cases.iter().map(|c| c.cells[class]).sum();
                let wanted = CELLS_PER_IMAGE[class] * images as f64;
                assert!(
                    (f64::from(cells) / wanted - 1.0).abs() < 0.05,
                    "class {class}: {cells} of {wanted}"
                );
            }
        }
    }

    #[test]
    fn grades_agree_with_lesions() {
        for images in 1..40 {
            for seed in 0..5 {
                let cases = plan(images, seed);
                assert_eq!(cases.len(), images);
                for case in &cases {
                    let [ma, he, ex, se] = case.cells.map(|n| n > 0);
                    match case.grade {
                        0 => assert!(!(ma || he || ex || se)),
                        1 => assert!(ma && !(he || ex || se)),
                        2..=4 => assert!(he),
                        other => panic!("grade {other}"),
                    }
                }
                for class in 0..4 {
                    assert!(
                        cases.iter().any(|c| c.cells[class] > 0),
                        "{images} images lack class {class}"
                    );
                }
            }
        }
    }

    #[test]
    fn severe_images_come_in_any_place_and_seeds_differ() {
        let first = plan(50, 1);
        assert_ne!(first, plan(50, 2));
        assert_eq!(first, plan(50, 1));
        assert!(
            first[..25].iter().any(|c| c.grade >= 3) && first[25..].iter().any(|c| c.grade <= 2)
        );
    }
}
