use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn input(images: &[usize], seed: u64, patches_per_image: usize) -> OrderInput {
    let cells = |n: usize| (0..n as u16).map(|c| c * 3).collect();
    OrderInput {
        images: (0u32..)
            .zip(images)
            .map(|(i, n)| (i * 7, cells(*n)))
            .collect(),
        grain: Grain::Cell,
        sampler: &AllSamples,
        sampling: Sampling::default(),
        seed,
        patches_per_image,
    }
}

/// All (image, cell) of one epoch as the ranks get them, and the cursors between the steps.
fn walk(
    order: &EpochOrder,
    images_per_step: usize,
    world: usize,
    shards: usize,
) -> (Vec<(u32, u16)>, Vec<u64>) {
    let (mut samples, mut cursors) = (Vec::new(), vec![0]);
    let mut cursor = 0;
    while let Some(batch) = order.batch(cursor, images_per_step).unwrap() {
        let before = samples.len();
        for rank in 0..world {
            for v in rank_shards(rank, world, shards).unwrap() {
                for unit in &order.units()[batch.shard(v, shards)] {
                    samples.extend(unit.cells.iter().map(|cell| (unit.image, *cell)));
                }
            }
        }
        assert_eq!(batch.samples, (samples.len() - before) as u64);
        cursor = batch.cursor_after();
        cursors.push(cursor);
    }
    (samples, cursors)
}

fn world_and_shards() -> impl Strategy<Value = (usize, usize)> {
    (1usize..13).prop_flat_map(|shards| {
        (
            prop::sample::select(allowed_world_sizes(shards)),
            Just(shards),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// At the grain of images, every training image exactly once, those without a cell that is not black too; each
    /// step takes `images_per_step` of them.
    #[test]
    fn every_image_once(
        images in prop::collection::vec(0usize..3, 0..20),
        seed in any::<u64>(),
        images_per_step in 1usize..12,
        (world, shards) in world_and_shards(),
    ) {
        let input = OrderInput { grain: Grain::Image, ..input(&images, seed, 4) };
        let order = EpochOrder::new(&input, 3).unwrap();
        let (mut seen, mut cursor) = (Vec::new(), 0);
        while let Some(batch) = order.batch(cursor, images_per_step).unwrap() {
            prop_assert!(batch.samples == images_per_step as u64 || batch.cursor_after() == order.total_samples());
            for rank in 0..world {
                for v in rank_shards(rank, world, shards).unwrap() {
                    let units = &order.units()[batch.shard(v, shards)];
                    seen.extend(units.iter().flat_map(Unit::samples));
                }
            }
            cursor = batch.cursor_after();
        }
        prop_assert_eq!(cursor, images.len() as u64);
        seen.sort_unstable();
        let all: Vec<SampleName> = (0u32..).zip(&images).map(|(i, _)| (i * 7, None)).collect();
        prop_assert_eq!(seen, all);
    }

    /// Every non-black training patch exactly once per epoch, tails included, and the same
    /// global sequence for every number of ranks.
    #[test]
    fn every_patch_once(
        images in prop::collection::vec(0usize..40, 0..20),
        seed in any::<u64>(),
        epoch in any::<u32>(),
        patches in 1usize..50,
        images_per_step in 1usize..12,
        (world, shards) in world_and_shards(),
    ) {
        let input = input(&images, seed, patches);
        let order = EpochOrder::new(&input, epoch).unwrap();
        let (samples, cursors) = walk(&order, images_per_step, world, shards);
        let unique: BTreeSet<_> = samples.iter().copied().collect();
        let all: BTreeSet<_> = input.images.iter()
            .flat_map(|(image, cells)| cells.iter().map(|cell| (*image, *cell)))
            .collect();
        prop_assert_eq!(samples.len(), unique.len());
        prop_assert_eq!(&unique, &all);
        prop_assert_eq!(order.total_samples(), all.len() as u64);
        prop_assert_eq!(cursors.last().copied(), Some(order.total_samples()));
        prop_assert_eq!(cursors.len() - 1, order.steps(images_per_step));
        for unit in order.units() {
            prop_assert!((1..=patches).contains(&unit.cells.len()));
        }
        prop_assert_eq!(walk(&order, images_per_step, 1, 1).0, samples);
    }

    /// From any committed cursor, with any number of images per step before and after, the
    /// rest of the epoch is the same.
    #[test]
    fn resumes_anywhere(
        images in prop::collection::vec(1usize..20, 1..15),
        seed in any::<u64>(),
        (before, after) in (1usize..9, 1usize..9),
        at in any::<prop::sample::Index>(),
    ) {
        let order = EpochOrder::new(&input(&images, seed, 4), 3).unwrap();
        let (whole, cursors) = walk(&order, before, 1, 4);
        let mut cursor = cursors[at.index(cursors.len())];
        let mut rest = Vec::new();
        while let Some(batch) = order.batch(cursor, after).unwrap() {
            prop_assert_eq!(batch.cursor, cursor);
            for unit in &order.units()[batch.units.clone()] {
                rest.extend(unit.cells.iter().map(|cell| (unit.image, *cell)));
            }
            cursor = batch.cursor_after();
        }
        prop_assert_eq!(&whole[whole.len() - rest.len()..], &rest[..]);
        let resumed_at = cursors[at.index(cursors.len())] as usize;
        prop_assert_eq!(rest.len() + resumed_at, whole.len());
    }

    #[test]
    fn shards_are_contiguous_even_and_complete(units in 0usize..200, count in 1usize..40) {
        let mut next = 0;
        let mut last = usize::MAX;
        for v in 0..count {
            let range = virtual_shard(units, v, count);
            prop_assert_eq!(range.start, next);
            prop_assert!(range.len() <= last && units / count <= range.len());
            prop_assert!(range.len() <= units.div_ceil(count));
            (next, last) = (range.end, range.len());
        }
        prop_assert_eq!(next, units);
    }

    #[test]
    fn listing_order_does_not_matter(seed in any::<u64>(), rotate in 0usize..6) {
        let first = input(&[5, 9, 2, 0, 7, 3], seed, 4);
        let mut second = first.clone();
        second.images.rotate_left(rotate);
        for (_, cells) in &mut second.images {
            cells.reverse();
        }
        let (a, b) = (EpochOrder::new(&first, 1).unwrap(), EpochOrder::new(&second, 1).unwrap());
        prop_assert_eq!(a.units(), b.units());
    }
}

#[test]
fn seeds_and_epochs_differ() {
    let sizes = [20; 8];
    let order = |seed, epoch| EpochOrder::new(&input(&sizes, seed, 4), epoch).unwrap();
    assert_ne!(order(0, 0).units(), order(0, 1).units());
    assert_ne!(order(0, 0).units(), order(1, 0).units());
    assert_eq!(order(5, 2).units(), order(5, 2).units());
}

/// Resuming a run with a newer program has to give the same order.
#[test]
fn golden_order() {
    let order = EpochOrder::new(&input(&[5, 3, 4], 42, 2), 1).unwrap();
    let text: Vec<String> = order
        .units()
        .iter()
        .map(|u| format!("{}:{:?}", u.image, u.cells))
        .collect();
    assert_eq!(text.join(" "), GOLDEN);
}

const GOLDEN: &str = "0:[6] 7:[3] 0:[9, 0] 7:[6, 0] 14:[6, 3] 0:[12, 3] 14:[0, 9]";

#[test]
fn world_sizes() {
    assert_eq!(allowed_world_sizes(4), [1, 2, 4]);
    assert_eq!(allowed_world_sizes(12), [1, 3, 6, 12]);
    assert_eq!(allowed_world_sizes(5), [1, 5]);
    assert_eq!(allowed_world_sizes(0), [0usize; 0]);
    for shards in 0..3000 {
        let all: Vec<usize> = (1..=shards).filter(|n| is_allowed(*n, shards)).collect();
        assert_eq!(allowed_world_sizes(shards), all, "{shards}");
    }
    assert_eq!(rank_shards(1, 2, 4).unwrap(), 2..4);
    assert_eq!(rank_shards(0, 1, 6).unwrap(), 0..6);
    let error = rank_shards(0, 3, 4).unwrap_err().to_string();
    assert!(
        error.contains("3 ranks") && error.contains("[1, 2, 4]"),
        "{error}"
    );
    // 6 / 2 = 3 is no subtree of the reduction.
    assert!(rank_shards(0, 2, 6).is_err());
    assert!(rank_shards(4, 4, 4).is_err());
    assert!(rank_shards(0, 0, 4).is_err() && rank_shards(0, 1, 0).is_err());
}

#[test]
fn bad_input_is_told() {
    let order = EpochOrder::new(&input(&[6], 0, 4), 0).unwrap();
    assert!(order.batch(0, 0).is_err());
    assert!(order.batch(6, 1).unwrap().is_none());
    for cursor in [1, 3, 7, u64::MAX] {
        let error = order.batch(cursor, 1).unwrap_err().to_string();
        assert!(error.contains(&format!("cursor {cursor} ")), "{error}");
    }
    assert!(EpochOrder::new(&input(&[6], 0, 0), 0).is_err());
    let twice = OrderInput {
        images: vec![(1, vec![1]), (1, vec![2])],
        ..input(&[], 0, 1)
    };
    assert!(matches!(
        EpochOrder::new(&twice, 0),
        Err(Error::ImageTwice { image: 1 })
    ));
    let twice = OrderInput {
        images: vec![(1, vec![4, 3, 4])],
        ..input(&[], 0, 1)
    };
    assert!(matches!(
        EpochOrder::new(&twice, 0),
        Err(Error::CellTwice { cell: 4, .. })
    ));
}
