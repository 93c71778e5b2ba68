//! Training, validation and test, and which image goes where: iterative stratification.
//!
//! Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD 2011): it deals the rarest
//! class first, each image to the split that still wants most of that class. Here the sizes of the splits are
//! fixed beforehand, so afterwards pairs of images swap while that brings the classes closer to their shares.
//! The order of images is a hash of seed and id: without a random generator, a split is reproducible anywhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image is used for. All patches of an image are in one split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Its samples change the weights.
    Train,
    /// Early stopping and thresholds are chosen on it.
    Val,
    /// It is scored once, at the end.
    Test,
}

impl Split {
    /// All splits, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// The name in manifests and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|split| split.name() == text)
            .ok_or_else(|| format!("`{text}` is no split\n  help: use train, val or test"))
    }
}

/// The steps of a local search look at no more pairs than this in all; a bound for sets of many unlike images or groups.
pub(crate) const MOST_PAIRS: usize = 200_000_000;

/// Shares of train, val and test.
pub const SHARES: [f64; 3] = [0.70, 0.15, 0.15];

/// A split per image, from what is known of each: its id (distinct), and whether it has each class, the same classes for
/// all. Pure: the same ids, classes and seed give the same answer.
///
/// Sizes are 70/15/15 by largest remainder; with three images or more no split is empty.
///
/// # Panics
/// When `ids` and `images` differ in length.
pub fn stratify<S: AsRef<str>>(ids: &[S], images: &[Vec<bool>], seed: u64) -> Vec<Split> {
    stratify_by(ids, images, seed, SHARES)
}

/// As [`stratify`] with other shares, which add up to 1; a split with the share 0 stays empty.
pub(crate) fn stratify_by<S: AsRef<str>>(
    ids: &[S],
    images: &[Vec<bool>],
    seed: u64,
    shares: [f64; 3],
) -> Vec<Split> {
    assert_eq!(ids.len(), images.len(), "one set of classes per image");
    let order = shuffled(ids, seed);
    let mut room = sizes(ids.len(), shares);
    let mut wanted = wanted_per_class(images, shares);
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
        for (wanted, has) in wanted[best].iter_mut().zip(&images[image]) {
            *wanted -= f64::from(*has);
        }
        Split::ALL[best]
    };

    while let Some(class) = rarest(images, &splits) {
        for &image in &order {
            if splits[image].is_none() && images[image][class] {
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
    exchange(&order, images, &mut splits, shares);
    splits
}

/// Lets images of two splits change places, the best pair first, until no pair brings the classes closer to their
/// shares. Images of the same classes are alike, so pairs of their kinds are looked at, not of images.
fn exchange(order: &[usize], images: &[Vec<bool>], splits: &mut [Split], shares: [f64; 3]) {
    let wanted = wanted_per_class(images, shares);
    // In the order of numbers whose bit `c` is class `c`; of equal gains the first counts.
    let mut kinds: Vec<&Vec<bool>> = images.iter().collect();
    kinds.sort_by(|a, b| by_bits(a, b));
    kinds.dedup();
    let kind_of = |image: usize| {
        let found = kinds.binary_search_by(|kind| by_bits(kind, &images[image]));
        found.expect("every image is of one of the kinds")
    };
    let share = |kind: usize, class: usize| f64::from(kinds[kind][class]);
    // Images still to be found per split and kind, in order; and how much each class is above its share.
    let mut members: [Vec<Vec<usize>>; 3] = [(); 3].map(|()| vec![Vec::new(); kinds.len()]);
    let mut excess = wanted.map(|classes| classes.iter().map(|wanted| -wanted).collect::<Vec<_>>());
    for &image in order.iter().rev() {
        let (split, kind) = (splits[image] as usize, kind_of(image));
        members[split][kind].push(image);
        for (class, excess) in excess[split].iter_mut().enumerate() {
            *excess += share(kind, class);
        }
    }
    // What swapping `a` of split `i` for `b` of split `j` gains in squared excess; small splits count for more.
    let gain = |excess: &[Vec<f64>; 3], (i, a): (usize, usize), (j, b): (usize, usize)| -> f64 {
        let per_class = |class: usize| {
            let moved = share(b, class) - share(a, class);
            let change = |split: usize, moved: f64| {
                moved * (2.0 * excess[split][class] + moved) / shares[split]
            };
            -change(i, moved) - change(j, -moved)
        };
        (0..excess[i].len()).map(per_class).sum()
    };
    let mut looked_at = 0;
    // Every swap makes a bounded sum smaller by at least 1e-9; the count is a belt to those braces.
    for _ in 0..4 * images.len() {
        let mut best = (1e-9, None);
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            for a in (0..kinds.len()).filter(|a| !members[i][*a].is_empty()) {
                for b in (0..kinds.len()).filter(|b| !members[j][*b].is_empty()) {
                    looked_at += 1;
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
        for class in 0..excess[i].len() {
            let moved = share(b, class) - share(a, class);
            excess[i][class] += moved;
            excess[j][class] -= moved;
        }
        if looked_at > MOST_PAIRS {
            return;
        }
    }
}

/// Compares sets of classes as numbers whose bit `c` is class `c`.
fn by_bits(a: &[bool], b: &[bool]) -> std::cmp::Ordering {
    a.iter().rev().cmp(b.iter().rev())
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
fn wanted_per_class(images: &[Vec<bool>], shares: [f64; 3]) -> [Vec<f64>; 3] {
    let mut total = vec![0.0; images.first().map_or(0, Vec::len)];
    for classes in images {
        for (total, has) in total.iter_mut().zip(classes) {
            *total += f64::from(*has);
        }
    }
    shares.map(|share| total.iter().map(|images| images * share).collect())
}

/// The class with the fewest images (at least one) not dealt yet.
fn rarest(images: &[Vec<bool>], splits: &[Option<Split>]) -> Option<usize> {
    let open = || {
        images
            .iter()
            .zip(splits)
            .filter(|(_, split)| split.is_none())
    };
    let left = |class: usize| open().filter(|(classes, _)| classes[class]).count();
    (0..images.first().map_or(0, Vec::len))
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
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("{i:04}_1")).collect()
    }

    /// What label bytes say of four classes.
    pub(crate) fn classes(labels: &[u8]) -> Vec<Vec<bool>> {
        let of = |label: &u8| (0..4).map(|class| label >> class & 1 == 1).collect();
        labels.iter().map(of).collect()
    }

    #[test]
    fn splits_have_one_spelling() {
        for split in Split::ALL {
            assert_eq!(split.name().parse(), Ok(split));
            assert_eq!(
                serde_json::to_string(&split).unwrap(),
                format!("\"{split}\"")
            );
        }
        assert!(
            "training"
                .parse::<Split>()
                .unwrap_err()
                .contains("help: use train, val or test")
        );
    }

    fn count(splits: &[Split], split: Split) -> usize {
        splits.iter().filter(|s| **s == split).count()
    }

    proptest! {
        #[test]
        fn every_image_has_a_split_of_the_right_size(labels in prop::collection::vec(0u8..16, 0..300), seed: u64) {
            let splits = stratify(&ids(labels.len()), &classes(&labels), seed);
            prop_assert_eq!(splits.len(), labels.len());
            for (split, share) in Split::ALL.into_iter().zip(SHARES) {
                let size = count(&splits, split) as f64;
                prop_assert!((size - share * labels.len() as f64).abs() <= 2.0, "{} has {}", split, size);
                prop_assert!(labels.len() < 3 || size >= 1.0);
            }
            prop_assert_eq!(&splits, &stratify(&ids(labels.len()), &classes(&labels), seed));
        }

        #[test]
        fn classes_are_spread_by_share(
            rates in prop::array::uniform4(0.05f64..0.95), noise in prop::collection::vec(prop::array::uniform4(0.0f64..1.0), 60..300), seed: u64,
        ) {
            let labels: Vec<u8> = noise
                .iter()
                .map(|draw| (0..4).fold(0, |label, class| label | u8::from(draw[class] < rates[class]) << class))
                .collect();
            let splits = stratify(&ids(labels.len()), &classes(&labels), seed);
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
        let labels = classes(&(0..40u32).map(|i| (i * 7 % 16) as u8).collect::<Vec<u8>>());
        let splits = stratify(&ids, &labels, 1);
        assert_ne!(splits, stratify(&ids, &labels, 2));
        let back = |v: &[Split]| v.iter().rev().copied().collect::<Vec<_>>();
        let reversed_ids: Vec<_> = ids.iter().rev().cloned().collect();
        let reversed_labels: Vec<_> = labels.iter().rev().cloned().collect();
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
