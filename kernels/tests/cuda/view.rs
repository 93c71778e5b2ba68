//! The whole-image branch's input.

use fovea_kernels::cuda::{GlobalView, StepRecord};
use fovea_kernels::{Augment, BatchMut, DType, global_view};
use half::bf16;
use proptest::prelude::*;

use crate::crop::augments;
use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

const COUNT: usize = 3;

/// Values around 0..255, also slightly outside, as a resize can give.
fn resized(size: usize) -> Vec<f32> {
    (0..(COUNT * size * size * 3) as u32)
        .map(|k| {
            let word = fovea_kernels::philox::philox4x32([k, 7, 0, 0], [3, 4])[0];
            word as f32 / u32::MAX as f32 * 255.002 - 0.001
        })
        .collect()
}

#[derive(Clone, Debug)]
struct Case {
    size: usize,
    /// (which image, sample id)
    samples: Vec<(u32, u64)>,
    seed: u64,
    epoch: u32,
    augment: Option<Augment>,
    shift: (usize, usize),
}

fn case_of(size: usize) -> impl Strategy<Value = Case> {
    (
        prop::collection::vec((0..COUNT as u32, any::<u64>()), 0..4),
        any::<(u64, u32)>(),
        augments(),
        (
            prop_oneof![Just(0usize), 0usize..4],
            prop_oneof![Just(0usize), 0usize..8],
        ),
    )
        .prop_map(move |(samples, (seed, epoch), augment, shift)| Case {
            size,
            samples,
            seed,
            epoch,
            augment,
            shift,
        })
}

fn compare<R: Runner>(r: &R, case: &Case) {
    let (n, size) = (case.samples.len(), case.size);
    let each = size * size * 3;
    let source = resized(size);
    let on_device = Guarded::input(r, &source, case.shift.0);
    let (selection, ids): (Vec<u32>, Vec<u64>) = case.samples.iter().copied().unzip();
    let selection = Guarded::input(r, &selection, 0);
    let ids = Guarded::input(r, &ids, 0);
    let step = Guarded::input(r, &[StepRecord::new(case.seed, case.epoch)], 0);
    let augment = case.augment.as_ref();
    let scratch = Guarded::<R, u8>::output(r, GlobalView::scratch_bytes(n, size, augment), 0);
    let op = |dtype, out| GlobalView {
        resized: on_device.address(),
        count: COUNT,
        selection: selection.address(),
        sample_ids: ids.address(),
        n,
        step: step.address(),
        size,
        augment,
        scratch: scratch.address(),
        dtype,
        out,
    };
    let twin = |k: usize, out: BatchMut<'_>| {
        let (index, id) = case.samples[k];
        let image = &source[index as usize * each..][..each];
        global_view(image, size, case.seed, case.epoch, id, augment, out).unwrap();
    };

    let out = Guarded::output(r, n * each, case.shift.1);
    r.run(&op(DType::F32, out.address()));
    let mut want = vec![0.0f32; n * each];
    for (k, want) in want.chunks_mut(each).enumerate() {
        twin(k, BatchMut::F32(want));
    }
    assert_bits("f32", &out.read(), &want);

    let out = Guarded::output(r, n * each, case.shift.1);
    r.run(&op(DType::Bf16, out.address()));
    let mut want = vec![bf16::ZERO; n * each];
    for (k, want) in want.chunks_mut(each).enumerate() {
        twin(k, BatchMut::Bf16(want));
    }
    assert_bits("bf16", &out.read(), &want);
}

pub fn any_view_has_the_bits_of_the_twin<R: Runner>(r: &R) {
    let sizes = prop_oneof![3 => 1usize..70, 1 => (1usize..9).prop_map(|n| 8 * n)];
    for_all(80, &sizes.prop_flat_map(case_of), |case| compare(r, &case));
}

/// More rows than a block sums at a time.
pub fn large_views_have_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(3, &case_of(264), |case| compare(r, &case));
}

pub fn indices_beyond_the_images_give_nan<R: Runner>(r: &R) {
    let size = 33;
    let each = size * size * 3;
    let source = Guarded::input(r, &resized(size), 0);
    let selection = Guarded::input(r, &[0u32, COUNT as u32, u32::MAX], 0);
    let ids = Guarded::input(r, &[1u64, 2, 3], 0);
    let step = Guarded::input(r, &[StepRecord::new(1, 2)], 0);
    let augment = Augment {
        contrast: 0.5,
        ..Augment::default()
    };
    let bytes = GlobalView::scratch_bytes(3, size, Some(&augment));
    let scratch = Guarded::<R, u8>::output(r, bytes, 0);
    let out = Guarded::<R, f32>::output(r, 3 * each, 0);
    r.run(&GlobalView {
        resized: source.address(),
        count: COUNT,
        selection: selection.address(),
        sample_ids: ids.address(),
        n: 3,
        step: step.address(),
        size,
        augment: Some(&augment),
        scratch: scratch.address(),
        dtype: DType::F32,
        out: out.address(),
    });
    for (k, image) in out.read().chunks(each).enumerate() {
        let nan = image.iter().filter(|x| x.to_bits() == 0x7FC0_0000).count();
        assert_eq!(nan, if k == 0 { 0 } else { each }, "image {k}");
    }
}
