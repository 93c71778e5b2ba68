//! Which image trains, validates or tests: iterative stratification.
//!
//! Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD 2011): it deals the rarest
//! class first, each image to the split that still wants most of that class. Here the sizes of the splits are
//! fixed beforehand, so afterwards pairs of images swap while that brings the classes closer to their shares.
//! The order of images is a hash of seed and id: without a random generator, a split is reproducible anywhere.

use crate::{CLASSES, Split};

/// Shares of train, val and test.
pub const SHARES: [f64; 3] = [0.70, 0.15, 0.15];

/// A split per image. Pure: the same ids (distinct), label bytes and seed give the same answer.
///
/// Sizes are 70/15/15 by largest remainder; with three images or more no split is empty.
///
/// # Panics
/// When `ids` and `labels` differ in length.
pub fn stratify<S: AsRef<str>>(ids: &[S], labels: &[u8], seed: u64) -> Vec<Split> {
    stratify_by(ids, labels, seed, SHARES)
}

/// As [`stratify`] with other shares, which add up to 1; a split with the share 0 stays empty.
pub(crate) fn stratify_by<S: AsRef<str>>(
    ids: &[S],
    labels: &[u8],
    seed: u64,
    shares: [f64; 3],
) -> Vec<Split> {
    assert_eq!(ids.len(), labels.len(), "one label per image");
    let order = shuffled(ids, seed);
    let mut room = sizes(ids.len(), shares);
    let mut wanted = wanted_per_class(labels, shares);
    let mut splits: Vec<Option<Split>> = vec![None; ids.len()];

    let mut deal = |image: usize, class: Option<usize>, room: &mut [usize; 3]| {
        let best = (0..Split::ALL.len())
            .filter(|&split| room[split] > 0)
            .max_by(|&a, &b| {
                let by_class = class.map_or(std::cmp::Ordering::Equal, |c| {
                    wanted[a][c].total_cmp(&wanted[b][c])
                });
                // On a tie the emptier split, and then the earlier one (max_by keeps the last).
                by_class
                    .then(emptiness(room, a, shares).total_cmp(&emptiness(room, b, shares)))
                    .then(b.cmp(&a))
            })
            .expect("the rooms add up to the number of images");
        room[best] -= 1;
        for (class, wanted) in wanted[best].iter_mut().enumerate() {
            *wanted -= f64::from(labels[image] >> class & 1);
        }
        Split::ALL[best]
    };

    while let Some(class) = rarest(labels, &splits) {
        for &image in &order {
            if splits[image].is_none() && labels[image] >> class & 1 == 1 {
                splits[image] = Some(deal(image, Some(class), &mut room));
            }
        }
    }
    for &image in &order {
        if splits[image].is_none() {
            splits[image] = Some(deal(image, None, &mut room));
        }
    }
    let mut splits: Vec<Split> = splits.into_iter().flatten().collect();
    exchange(&order, labels, &mut splits, shares);
    splits
}

/// Lets images of two splits change places, the best pair first, until no pair brings the classes closer to their
/// shares. Images with one label byte are alike, so there are 16 x 16 pairs to look at, however many images there are.
fn exchange(order: &[usize], labels: &[u8], splits: &mut [Split], shares: [f64; 3]) {
    let wanted = wanted_per_class(labels, shares);
    let share = |label: usize, class: usize| f64::from(label as u8 >> class & 1);
    // Images still to be found per split and label byte, in order; and how much each class is above its share.
    let mut members: [[Vec<usize>; 16]; 3] = Default::default();
    let mut excess = wanted.map(|classes| classes.map(|wanted| -wanted));
    for &image in order.iter().rev() {
        let (split, label) = (splits[image] as usize, usize::from(labels[image]) % 16);
        members[split][label].push(image);
        for (class, excess) in excess[split].iter_mut().enumerate() {
            *excess += share(label, class);
        }
    }
    // What swapping `a` of split `i` for `b` of split `j` gains in squared excess; small splits count for more.
    let gain = |excess: &[[f64; 4]; 3], (i, a): (usize, usize), (j, b): (usize, usize)| -> f64 {
        let per_class = |class: usize| {
            let moved = share(b, class) - share(a, class);
            let change = |split: usize, moved: f64| {
                moved * (2.0 * excess[split][class] + moved) / shares[split]
            };
            -change(i, moved) - change(j, -moved)
        };
        (0..CLASSES.len()).map(per_class).sum()
    };
    // Every swap makes a bounded sum smaller by at least 1e-9; the count is a belt to those braces.
    for _ in 0..4 * labels.len() {
        let mut best = (1e-9, None);
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            for (a, b) in (0..256).map(|pair| (pair / 16, pair % 16)) {
                if !members[i][a].is_empty() && !members[j][b].is_empty() {
                    let gain = gain(&excess, (i, a), (j, b));
                    if gain > best.0 {
                        best = (gain, Some(((i, a), (j, b))));
                    }
                }
            }
        }
        let Some(((i, a), (j, b))) = best.1 else {
            return;
        };
        let (Some(from_i), Some(from_j)) = (members[i][a].pop(), members[j][b].pop()) else {
            return;
        };
        (splits[from_i], splits[from_j]) = (Split::ALL[j], Split::ALL[i]);
        members[i][b].push(from_j);
        members[j][a].push(from_i);
        let moved: [f64; 4] = std::array::from_fn(|class| share(b, class) - share(a, class));
        for (excess, moved) in excess[i].iter_mut().zip(moved) {
            *excess += moved;
        }
        for (excess, moved) in excess[j].iter_mut().zip(moved) {
            *excess -= moved;
        }
    }
}

/// Image indices ordered by blake3(seed, id): stable when images are added or removed.
pub(crate) fn shuffled<S: AsRef<str>>(ids: &[S], seed: u64) -> Vec<usize> {
    let key = |id: &str| {
        let mut hasher = blake3::Hasher::new_derive_key("fovea dataset split v1");
        hasher.update(&seed.to_le_bytes()).update(id.as_bytes());
        *hasher.finalize().as_bytes()
    };
    let mut order: Vec<(_, usize)> = ids.iter().map(|id| key(id.as_ref())).zip(0..).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, image)| image).collect()
}

/// Sizes of the splits for `count` images.
pub(crate) fn sizes(count: usize, shares: [f64; 3]) -> [usize; 3] {
    let exact = shares.map(|share| share * count as f64);
    let mut sizes = exact.map(|size| (size + 1e-9).floor() as usize);
    let mut by_remainder = [0, 1, 2];
    by_remainder
        .sort_by(|&a, &b| (exact[b] - sizes[b] as f64).total_cmp(&(exact[a] - sizes[a] as f64)));
    let missing = count - sizes.iter().sum::<usize>();
    for &split in by_remainder.iter().cycle().take(missing) {
        sizes[split] += 1;
    }
    // A validation or test split without images is useless: train gives.
    for split in [1, 2] {
        if count >= 3 && sizes[split] == 0 && shares[split] > 0.0 {
            sizes[split] += 1;
            sizes[0] -= 1;
        }
    }
    sizes
}

/// Images of each class that each split should get, `[split][class]`.
fn wanted_per_class(labels: &[u8], shares: [f64; 3]) -> [[f64; 4]; 3] {
    let mut total = [0.0; CLASSES.len()];
    for label in labels {
        for (class, total) in total.iter_mut().enumerate() {
            *total += f64::from(label >> class & 1);
        }
    }
    shares.map(|share| total.map(|images| images * share))
}

/// The class with the fewest images (at least one) not dealt yet.
fn rarest(labels: &[u8], splits: &[Option<Split>]) -> Option<usize> {
    let left = |class: usize| {
        let open = labels
            .iter()
            .zip(splits)
            .filter(|(_, split)| split.is_none());
        open.filter(|(label, _)| **label >> class & 1 == 1).count()
    };
    (0..CLASSES.len())
        .map(|class| (left(class), class))
        .filter(|(images, _)| *images > 0)
        .min()
        .map(|(_, class)| class)
}

/// Room left in relation to the split's share, so that small splits fill as evenly as large ones.
fn emptiness(room: &[usize; 3], split: usize, shares: [f64; 3]) -> f64 {
    room[split] as f64 / shares[split]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("{i:04}_1")).collect()
    }

    fn count(splits: &[Split], split: Split) -> usize {
        splits.iter().filter(|s| **s == split).count()
    }

    proptest! {
        #[test]
        fn every_image_has_a_split_of_the_right_size(labels in prop::collection::vec(0u8..16, 0..300), seed: u64) {
            let splits = stratify(&ids(labels.len()), &labels, seed);
            prop_assert_eq!(splits.len(), labels.len());
            for (split, share) in Split::ALL.into_iter().zip(SHARES) {
                let size = count(&splits, split) as f64;
                prop_assert!((size - share * labels.len() as f64).abs() <= 2.0, "{} has {}", split, size);
                prop_assert!(labels.len() < 3 || size >= 1.0);
            }
            prop_assert_eq!(&splits, &stratify(&ids(labels.len()), &labels, seed));
        }

        #[test]
        fn classes_are_spread_by_share(
            rates in prop::array::uniform4(0.05f64..0.95), noise in prop::collection::vec(prop::array::uniform4(0.0f64..1.0), 60..300), seed: u64,
        ) {
            let labels: Vec<u8> = noise
                .iter()
                .map(|draw| (0..4).fold(0, |label, class| label | u8::from(draw[class] < rates[class]) << class))
                .collect();
            let splits = stratify(&ids(labels.len()), &labels, seed);
            for (split, share) in Split::ALL.into_iter().zip(SHARES) {
                for class in 0..4 {
                    let of_class = |label: &u8| label >> class & 1 == 1;
                    let all = labels.iter().filter(|label| of_class(label)).count() as f64;
                    let here = labels.iter().zip(&splits).filter(|(label, s)| of_class(label) && **s == split).count() as f64;
                    prop_assert!((here - share * all).abs() <= 1.5, "class {} in {}: {} of {}", class, split, here, all);
                }
            }
        }
    }

    #[test]
    fn the_seed_matters_and_the_order_of_ids_does_not() {
        let ids = ids(40);
        let labels: Vec<u8> = (0..40).map(|i| (i * 7 % 16) as u8).collect();
        let splits = stratify(&ids, &labels, 1);
        assert_ne!(splits, stratify(&ids, &labels, 2));
        let back = |v: &[Split]| v.iter().rev().copied().collect::<Vec<_>>();
        let reversed_ids: Vec<_> = ids.iter().rev().cloned().collect();
        let reversed_labels: Vec<_> = labels.iter().rev().copied().collect();
        assert_eq!(back(&stratify(&reversed_ids, &reversed_labels, 1)), splits);
    }

    #[test]
    fn sizes_of_small_and_published_sets() {
        assert_eq!(sizes(0, SHARES), [0, 0, 0]);
        assert_eq!(sizes(1, SHARES), [1, 0, 0]);
        assert_eq!(sizes(3, SHARES), [1, 1, 1]);
        assert_eq!(sizes(24, SHARES), [17, 4, 3]);
        assert_eq!(sizes(1841, SHARES), [1289, 276, 276]);
    }
}
