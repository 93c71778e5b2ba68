//! The sampler `balanced`: samples with lesions, and healthy ones at a ratio to them.
//!
//! A sample that has classes counts for the *rarest* of them in the training split. Each epoch lists, of every class, all
//! samples that count for it, or `class_cap` of them where there are more; and of the healthy samples as many as
//! `healthy_ratio` times the number of the others (rounded, at most all). Samples whose label is unknown are never
//! listed.
//!
//! Where not all samples of a kind are listed, they take turns: a permutation that depends on the seed alone is read in
//! a circle, and each epoch continues where the one before stopped. So no sample is listed twice in an epoch, each is
//! listed as often as any other of its kind, up to one, and `ceil(all / listed)` epochs in a row list every one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{OrderInput, SampleName, Sampler, hash64, names};

/// Domain of the key derivation. Changing it changes the lists of every run.
const KEY_CONTEXT: &str = "fovea-coordinator 2026 balanced sampler v1";
/// Bits of a set of classes.
const CLASSES: usize = 64;
/// Tag of the healthy samples' permutation; class c has tag c.
const TAG_HEALTHY: u8 = 255;

/// Lists samples with lesions and healthy ones at a ratio.
#[derive(Debug)]
pub struct Balanced;

/// The samples that are drawn from together.
#[derive(Default)]
struct Kinds {
    /// Samples that count for class c.
    of_class: Vec<Vec<SampleName>>,
    healthy: Vec<SampleName>,
}

impl Sampler for Balanced {
    fn name(&self) -> &'static str {
        "balanced"
    }

    fn reads_classes(&self) -> bool {
        true
    }

    fn epoch<'a>(&self, input: &'a OrderInput, epoch: u32) -> Cow<'a, [(u32, Vec<u16>)]> {
        let sampling = &input.sampling;
        let key = blake3::derive_key(KEY_CONTEXT, &input.seed.to_le_bytes());
        let kinds = kinds(input);
        let mut listed = Vec::new();
        for (tag, samples) in (0u8..).zip(kinds.of_class) {
            let count = match sampling.class_cap {
                0 => samples.len(),
                cap => samples.len().min(cap as usize),
            };
            listed.extend(in_turn(&key, tag, samples, count, epoch));
        }
        let asked = (f64::from(sampling.healthy_ratio) * listed.len() as f64).round();
        let count = (asked as usize).min(kinds.healthy.len());
        listed.extend(in_turn(&key, TAG_HEALTHY, kinds.healthy, count, epoch));
        let mut images: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
        for (image, cell) in listed {
            images.entry(image).or_default().extend(cell);
        }
        Cow::Owned(images.into_iter().collect())
    }
}

/// The samples by kind.
fn kinds(input: &OrderInput) -> Kinds {
    let classes = &input.sampling.classes;
    let known: Vec<(SampleName, u64)> = names(&input.images, input.grain)
        .filter_map(|name| Some((name, *classes.get(&name)?)))
        .collect();
    let mut counts = [0u64; CLASSES];
    for (_, bits) in &known {
        for (class, count) in counts.iter_mut().enumerate() {
            *count += bits >> class & 1;
        }
    }
    let mut kinds = Kinds {
        of_class: vec![Vec::new(); CLASSES],
        healthy: Vec::new(),
    };
    for (name, bits) in known {
        let has = |class: &usize| bits >> class & 1 == 1;
        match (0..CLASSES).filter(has).min_by_key(|class| counts[*class]) {
            Some(rarest) => kinds.of_class[rarest].push(name),
            None => kinds.healthy.push(name),
        }
    }
    kinds
}

/// `count` of the samples, at most all: those whose turn it is in `epoch`.
fn in_turn(
    key: &[u8; 32],
    tag: u8,
    samples: Vec<SampleName>,
    count: usize,
    epoch: u32,
) -> Vec<SampleName> {
    if count == samples.len() {
        return samples;
    }
    let rank = |(image, cell): &SampleName| {
        // An image and its cell 0 are never samples of one run.
        hash64(key, tag, *image, cell.map_or(0, u32::from))
    };
    let mut ranked: Vec<(u64, SampleName)> = samples.iter().map(|s| (rank(s), *s)).collect();
    ranked.sort_unstable();
    let begin = (u64::from(epoch) * count as u64 % ranked.len() as u64) as usize;
    let circle = ranked.iter().cycle().skip(begin).take(count);
    circle.map(|(_, sample)| *sample).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::{EpochOrder, Grain, Sampling, Unit, rank_shards};
    use super::*;

    /// Images whose cells have these classes; `u64::MAX` stands for an unknown label.
    fn input(images: &[Vec<u64>], grain: Grain, ratio: f32, cap: u32, seed: u64) -> OrderInput {
        let mut classes = BTreeMap::new();
        let mut listed = Vec::new();
        for (image, cells) in (0u32..).map(|i| 3 * i).zip(images) {
            let names: Vec<u16> = (0..cells.len() as u16).map(|c| 2 * c).collect();
            match grain {
                Grain::Cell => classes.extend(
                    names
                        .iter()
                        .zip(cells)
                        .map(|(c, bits)| ((image, Some(*c)), *bits)),
                ),
                Grain::Image => {
                    classes.insert((image, None), cells.iter().fold(0, |all, bits| all | bits));
                }
            }
            listed.push((image, names));
        }
        classes.retain(|_, bits| *bits != u64::MAX);
        OrderInput {
            images: listed,
            grain,
            sampler: &Balanced,
            sampling: Sampling {
                classes,
                healthy_ratio: ratio,
                class_cap: cap,
            },
            seed,
            patches_per_image: 3,
        }
    }

    fn cells() -> impl Strategy<Value = Vec<Vec<u64>>> {
        let bits = prop_oneof![5 => Just(0u64), 3 => 1u64..16, 1 => Just(u64::MAX)];
        prop::collection::vec(prop::collection::vec(bits, 0..12), 1..12)
    }

    fn grains() -> impl Strategy<Value = Grain> {
        prop_oneof![Just(Grain::Cell), Just(Grain::Image)]
    }

    fn has_class(input: &OrderInput, name: &SampleName) -> bool {
        input.sampling.classes[name] != 0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Every epoch lists as many samples as any other, each once, never one without a label, at the asked ratio;
        /// without a cap all that have a class. The order uses exactly the list.
        #[test]
        fn lists_have_the_asked_ratio(
            images in cells(), grain in grains(), ratio in 0f32..3.0, cap in 0u32..5, seed: u64, epoch in 0u32..50,
        ) {
            let input = input(&images, grain, ratio, cap, seed);
            let listed = input.listed(epoch);
            prop_assert_eq!(listed.len(), input.listed(epoch + 1).len());
            let classes = &input.sampling.classes;
            prop_assert!(listed.iter().all(|name| classes.contains_key(name)));
            let (ill, healthy): (Vec<&SampleName>, Vec<&SampleName>) =
                listed.iter().partition(|name| has_class(&input, name));
            let there = classes.values().filter(|bits| **bits == 0).count();
            let asked = (f64::from(ratio) * ill.len() as f64).round() as usize;
            prop_assert_eq!(healthy.len(), asked.min(there));
            let all_ill = classes.values().filter(|bits| **bits != 0).count();
            prop_assert!(ill.len() <= all_ill);
            if cap == 0 {
                prop_assert_eq!(ill.len(), all_ill);
            } else {
                prop_assert!(ill.len() <= 4 * cap as usize);
            }
            let order = EpochOrder::new(&input, epoch).unwrap();
            let used: Vec<SampleName> = order.units().iter().flat_map(Unit::samples).collect();
            prop_assert_eq!(used.len(), listed.len());
            prop_assert_eq!(used.into_iter().collect::<BTreeSet<_>>(), listed);
        }

        /// Any number of ranks uses the epoch's list in the same order, also from the cursor of a committed step on.
        #[test]
        fn ranks_and_resumes_share_the_list(
            images in cells(), grain in grains(), seed: u64, epoch in 0u32..20, step in 1usize..6, skip in 0u32..4,
        ) {
            let order = EpochOrder::new(&input(&images, grain, 0.7, 3, seed), epoch).unwrap();
            let mut cursor = 0;
            for _ in 0..skip {
                cursor = order.batch(cursor, step).unwrap().map_or(cursor, |batch| batch.cursor_after());
            }
            let rest = |world: usize| {
                let (mut used, mut cursor) = (Vec::new(), cursor);
                while let Some(batch) = order.batch(cursor, step).unwrap() {
                    let shards = (0..world).flat_map(|rank| rank_shards(rank, world, 4).unwrap());
                    let units = shards.flat_map(|v| &order.units()[batch.shard(v, 4)]);
                    used.extend(units.flat_map(Unit::samples));
                    cursor = batch.cursor_after();
                }
                used
            };
            let all: Vec<SampleName> = order.units().iter().flat_map(Unit::samples).collect();
            for world in [1, 2, 4] {
                let used = rest(world);
                prop_assert_eq!(&all[cursor as usize..], &used[..]);
            }
        }

        /// The samples of a kind take turns: over the epochs of one round each is listed, and none twice more often
        /// than another.
        #[test]
        fn every_sample_has_its_turn(images in cells(), grain in grains(), ratio in 0.1f32..2.0, cap in 0u32..4, seed: u64) {
            let input = input(&images, grain, ratio, cap, seed);
            let classes = &input.sampling.classes;
            let per_epoch = input.listed(0).iter().filter(|name| !has_class(&input, name)).count();
            if per_epoch > 0 && cap == 0 {
                let there = classes.values().filter(|bits| **bits == 0).count();
                let rounds = there.div_ceil(per_epoch) as u32;
                for first in [0, 7] {
                    let mut times: BTreeMap<SampleName, u32> = BTreeMap::new();
                    for epoch in first..first + rounds {
                        for name in input.listed(epoch).into_iter().filter(|n| !has_class(&input, n)) {
                            *times.entry(name).or_default() += 1;
                        }
                    }
                    prop_assert_eq!(times.len(), there);
                    prop_assert!(times.values().all(|n| *n <= 2));
                }
            }
        }

        /// The list does not depend on the order in which images and cells are given.
        #[test]
        fn listing_order_does_not_matter(images in cells(), grain in grains(), seed: u64, rotate in 0usize..8, epoch in 0u32..9) {
            let first = input(&images, grain, 0.5, 2, seed);
            let mut second = first.clone();
            let by = rotate % second.images.len();
            second.images.rotate_left(by);
            second.images.iter_mut().for_each(|(_, cells)| cells.reverse());
            prop_assert_eq!(first.listed(epoch), second.listed(epoch));
            let units = |input: &OrderInput| EpochOrder::new(input, epoch).unwrap().units().to_vec();
            prop_assert_eq!(units(&first), units(&second));
        }
    }

    #[test]
    fn epochs_and_seeds_list_other_healthy_samples() {
        let images: Vec<Vec<u64>> = (0..6)
            .map(|i| vec![0, 0, u64::from(i == 2), 0, 0])
            .collect();
        let listed = |seed, epoch| input(&images, Grain::Cell, 3.0, 0, seed).listed(epoch);
        assert_eq!(listed(1, 0).len(), 4);
        assert_ne!(listed(1, 0), listed(1, 1));
        assert_ne!(listed(1, 0), listed(2, 0));
        assert_eq!(listed(1, 4), listed(1, 4));
    }

    /// A sample counts for its rarest class, so a cap on a frequent class never costs a rare one.
    #[test]
    fn a_cap_leaves_the_rare_class_whole() {
        // Class 0 is on all, class 3 on two.
        let images = vec![vec![1, 1, 1, 1, 9], vec![1, 1, 9, 1]];
        let input = input(&images, Grain::Cell, 1.0, 2, 5);
        for epoch in 0..5 {
            let listed = input.listed(epoch);
            let rare = listed
                .iter()
                .filter(|n| input.sampling.classes[*n] == 9)
                .count();
            assert_eq!((listed.len(), rare), (4, 2), "epoch {epoch}");
        }
    }

    /// A run that is resumed with a newer program must list the same samples.
    #[test]
    fn golden_list() {
        let images: Vec<Vec<u64>> = (0..4).map(|i| vec![0, i % 2, 0, 0]).collect();
        let text = |epoch| {
            let images = Balanced
                .epoch(&input(&images, Grain::Cell, 1.0, 0, 42), epoch)
                .into_owned();
            let text: Vec<String> = images.iter().map(|(i, c)| format!("{i}:{c:?}")).collect();
            text.join(" ")
        };
        assert_eq!([text(0), text(1)], GOLDEN);
    }

    const GOLDEN: [&str; 2] = ["0:[6] 3:[2, 4] 9:[2]", "3:[2, 6] 6:[0] 9:[2]"];
}
