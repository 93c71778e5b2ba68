//! Patch crop.

use fovea_kernels::cuda::{ImageRecord, PatchCrop, SpecRecord, StepRecord, spec_records};
use fovea_kernels::{Augment, BatchMut, CropSpec, DType, ImageU8, patch_crop};
use half::bf16;
use proptest::prelude::*;

use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

/// Half of them none, so that both kinds of kernels are tried.
fn interpolations() -> impl Strategy<Value = Augment> {
    let zero_or = |most: f32| prop_oneof![Just(0.0f32), 0.0f32..most];
    let some = (zero_or(180.0), zero_or(0.9), zero_or(1.0));
    prop_oneof![
        Just(Augment::default()),
        some.prop_map(|(rotation, scale, erasing)| Augment {
            rotation,
            scale,
            erasing,
            ..Augment::default()
        })
    ]
}

pub fn augments() -> impl Strategy<Value = Option<Augment>> {
    let strength = || prop_oneof![Just(0.0f32), 0.01f32..1.5, 100.0f32..1000.0];
    let some = (
        any::<(bool, bool)>(),
        0u32..30,
        strength(),
        strength(),
        strength(),
        interpolations(),
    );
    prop::option::weighted(
        0.9,
        some.prop_map(
            |((flip, quarter_turns), offset, brightness, contrast, saturation, more)| Augment {
                flip,
                quarter_turns,
                offset,
                brightness,
                contrast,
                saturation,
                ..more
            },
        ),
    )
}

/// Images of several sizes, with the patch somewhere in each.
#[derive(Clone, Debug)]
struct Case {
    /// (height, width, pixels, alignment)
    images: Vec<(usize, usize, Vec<u8>, usize)>,
    size: usize,
    specs: Vec<CropSpec>,
    seed: u64,
    epoch: u32,
    augment: Option<Augment>,
    shift: usize,
}

fn case_of(size: usize) -> impl Strategy<Value = Case> {
    let image =
        (0usize..20, 0usize..20, 0usize..16).prop_flat_map(move |(rows, columns, shift)| {
            let (height, width) = (size + rows, size + columns);
            prop::collection::vec(any::<u8>(), height * width * 3)
                .prop_map(move |data| (height, width, data, shift))
        });
    let places = prop::collection::vec(any::<(prop::sample::Index, u32, u32, u64)>(), 0..5);
    (
        prop::collection::vec(image, 1..4),
        places,
        any::<(u64, u32)>(),
        augments(),
        prop_oneof![Just(0usize), 1usize..8],
    )
        .prop_map(
            move |(images, places, (seed, epoch), augment, shift)| Case {
                specs: places
                    .into_iter()
                    .map(|(index, y, x, sample_id)| {
                        let image = index.index(images.len());
                        let (height, width, ..) = images[image];
                        CropSpec {
                            image,
                            y: y % (height - size + 1) as u32,
                            x: x % (width - size + 1) as u32,
                            sample_id,
                        }
                    })
                    .collect(),
                images,
                size,
                seed,
                epoch,
                augment,
                shift,
            },
        )
}

fn cases() -> impl Strategy<Value = Case> {
    prop_oneof![
        3 => 1usize..70,
        1 => (1usize..9).prop_map(|n| 8 * n),
    ]
    .prop_flat_map(case_of)
}

/// Uploads images; returns the buffers and their records.
fn images<'a, R: Runner>(
    r: &'a R,
    images: &[(usize, usize, Vec<u8>, usize)],
) -> (Vec<Guarded<'a, R, u8>>, Vec<ImageRecord>) {
    images
        .iter()
        .map(|(height, width, data, shift)| {
            let buffer = Guarded::input(r, data, *shift);
            let record = ImageRecord {
                data: buffer.address(),
                height: *height as u32,
                width: *width as u32,
            };
            (buffer, record)
        })
        .unzip()
}

fn compare<R: Runner>(r: &R, case: &Case) {
    let sides: Vec<(usize, usize)> = case.images.iter().map(|i| (i.0, i.1)).collect();
    let (_pixels, records) = images(r, &case.images);
    let image_records = Guarded::input(r, &records, 0);
    let specs = spec_records(&sides, &case.specs, case.size).unwrap();
    let specs = Guarded::input(r, &specs, 0);
    let step = Guarded::input(r, &[StepRecord::new(case.seed, case.epoch)], 0);
    let elements = case.specs.len() * case.size * case.size * 3;
    let views: Vec<ImageU8<'_>> = case
        .images
        .iter()
        .map(|(height, width, data, _)| ImageU8 {
            data,
            height: *height,
            width: *width,
        })
        .collect();
    let twin = |out: BatchMut<'_>| {
        patch_crop(
            &views,
            &case.specs,
            case.size,
            case.seed,
            case.epoch,
            case.augment.as_ref(),
            out,
        )
        .unwrap();
    };
    let op = |dtype, out| PatchCrop {
        images: image_records.address(),
        image_count: records.len(),
        specs: specs.address(),
        n: case.specs.len(),
        step: step.address(),
        size: case.size,
        augment: case.augment.as_ref(),
        dtype,
        out,
    };

    let out = Guarded::output(r, elements, case.shift);
    r.run(&op(DType::F32, out.address()));
    let mut want = vec![0.0f32; elements];
    twin(BatchMut::F32(&mut want));
    assert_bits("f32", &out.read(), &want);

    let out = Guarded::output(r, elements, case.shift);
    r.run(&op(DType::Bf16, out.address()));
    let mut want = vec![bf16::ZERO; elements];
    twin(BatchMut::Bf16(&mut want));
    assert_bits("bf16", &out.read(), &want);
}

pub fn any_crop_has_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(100, &cases(), |case| compare(r, &case));
}

/// Several tiles per block, several chunks per row and thread.
pub fn large_crops_have_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(4, &case_of(128), |case| compare(r, &case));
    for_all(4, &case_of(135), |case| compare(r, &case));
}

pub fn specs_that_do_not_fit_give_nan_and_touch_nothing<R: Runner>(r: &R) {
    let size = 40;
    let (_pixels, records) = images(r, &[(50, 45, vec![7; 50 * 45 * 3], 3)]);
    let records = Guarded::input(r, &records, 0);
    let step = Guarded::input(r, &[StepRecord::new(1, 2)], 0);
    // sample id, then (image, y), then (x, 0).
    let spec = |image: u32, y: u32, x: u32| -> SpecRecord {
        bytemuck::cast([5, u64::from(y) << 32 | u64::from(image), u64::from(x)])
    };
    let wrong = [
        (1, 0, 0),
        (u32::MAX, 0, 0),
        (0, 11, 0),
        (0, 0, 6),
        (0, u32::MAX, u32::MAX),
    ];
    let mut specs = vec![spec(0, 10, 5)];
    specs.extend(wrong.map(|(image, y, x)| spec(image, y, x)));
    let specs_on_device = Guarded::input(r, &specs, 0);
    let each = size * size * 3;
    let out = Guarded::<R, f32>::output(r, specs.len() * each, 0);
    for rotation in [0.0, 30.0] {
        let augment = Augment {
            contrast: 0.5,
            rotation,
            ..Augment::default()
        };
        r.run(&PatchCrop {
            images: records.address(),
            image_count: 1,
            specs: specs_on_device.address(),
            n: specs.len(),
            step: step.address(),
            size,
            augment: Some(&augment),
            dtype: DType::F32,
            out: out.address(),
        });
        for (k, patch) in out.read().chunks(each).enumerate() {
            let nan = patch.iter().filter(|x| x.to_bits() == 0x7FC0_0000).count();
            assert_eq!(nan, if k == 0 { 0 } else { each }, "patch {k}");
        }
    }
}
