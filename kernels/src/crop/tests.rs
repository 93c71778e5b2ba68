use super::*;
use crate::augment::tests::{GOLDEN, GOLDEN_EPOCH, GOLDEN_SEED};
use crate::golden::{assert_close, picture, values, with_threads};
use crate::{IMAGENET_MEAN, IMAGENET_STD};
use half::bf16;
use proptest::prelude::*;

fn spec(y: u32, x: u32, sample_id: u64) -> CropSpec {
    CropSpec {
        image: 0,
        y,
        x,
        sample_id,
    }
}

/// Shift, mirror, turn, shade and normalise, one pixel after the other.
fn naive(image: &ImageU8<'_>, spec: &CropSpec, size: usize, d: &Draw) -> Vec<f64> {
    let clamp = |start: u32, shift: i32, length: usize| {
        (i64::from(start) + i64::from(shift)).clamp(0, (length - size) as i64) as usize
    };
    let top = clamp(spec.y, d.dy, image.height);
    let left = clamp(spec.x, d.dx, image.width);
    let last = size - 1;
    let mut pixels = Vec::new();
    for i in 0..size {
        for j in 0..size {
            let (y, x) = match d.turns {
                0 => (i, j),
                1 => (j, last - i),
                2 => (last - i, last - j),
                _ => (last - j, i),
            };
            let x = if d.flip { last - x } else { x };
            let at = ((top + y) * image.width + left + x) * 3;
            let unit = [0, 1, 2].map(|c| f64::from(image.data[at + c]) / 255.0);
            pixels.push(unit.map(|v| (v * f64::from(d.brightness)).min(1.0)));
        }
    }
    let grey = |p: &[f64; 3]| 0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2];
    let blend = |v: f64, other: f64, weight: f32| {
        (v * f64::from(weight) + (1.0 - f64::from(weight)) * other).clamp(0.0, 1.0)
    };
    let mean = pixels.iter().map(grey).sum::<f64>() / pixels.len() as f64;
    pixels
        .iter()
        .map(|p| p.map(|v| blend(v, mean, d.contrast)))
        .flat_map(|p| {
            let own = grey(&p);
            [0, 1, 2].map(|c| {
                let v = blend(p[c], own, d.saturation);
                (v - f64::from(IMAGENET_MEAN[c])) / f64::from(IMAGENET_STD[c])
            })
        })
        .collect()
}

#[test]
fn crops_are_those_of_torchvision() {
    let data = picture(40, 48);
    let image = ImageU8 {
        data: &data,
        height: 40,
        width: 48,
    };
    for id in values("draw.sample_ids") {
        let mut out = vec![0.0; 17 * 17 * 3];
        patch_crop(
            &[image],
            &[spec(20, 30, id as u64)],
            17,
            GOLDEN_SEED,
            GOLDEN_EPOCH,
            Some(&GOLDEN),
            BatchMut::F32(&mut out),
        )
        .unwrap();
        let name = format!("crop.{id}");
        // Stored with five decimals; f32 rounding in another order is below 5e-6.
        assert_close(&name, &out, &values(&name), 2e-5);
    }
}

#[test]
fn extremes_saturate_as_defined() {
    let data = picture(20, 20);
    let image = ImageU8 {
        data: &data,
        height: 20,
        width: 20,
    };
    let spec = spec(1, 2, 0);
    for brightness in [0.0, 0.3, 1.0, 2.5, 300.0] {
        for (contrast, saturation) in [(0.0, 1.0), (1.0, 0.0), (4.0, 3.0), (1.0, 1.0)] {
            let draw = Draw {
                brightness,
                contrast,
                saturation,
                ..Draw::IDENTITY
            };
            let mut out = vec![0.0; 17 * 17 * 3];
            let samples = [(window(&image, &spec, 17, &draw), draw)];
            shade_all(SimdLevel::detect(), &samples, 17, &mut out);
            let name = format!("{brightness} {contrast} {saturation}");
            assert_close(&name, &out, &naive(&image, &spec, 17, &draw), 2e-5);
        }
    }
}

fn augments() -> impl Strategy<Value = Augment> {
    let strength = || prop_oneof![Just(0.0f32), 0.01f32..1.5];
    (
        any::<(bool, bool)>(),
        0u32..30,
        strength(),
        strength(),
        strength(),
    )
        .prop_map(
            |((flip, quarter_turns), offset, brightness, contrast, saturation)| Augment {
                flip,
                quarter_turns,
                offset,
                brightness,
                contrast,
                saturation,
                ..Augment::default()
            },
        )
}

/// A random image, with specs that lie inside it.
#[derive(Debug, Clone)]
struct Case {
    height: usize,
    width: usize,
    data: Vec<u8>,
    size: usize,
    specs: Vec<CropSpec>,
    seed: u64,
    aug: Augment,
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..40, 0usize..20, 0usize..20, any::<u64>(), augments()).prop_flat_map(
        |(size, more_rows, more_columns, seed, aug)| {
            let (height, width) = (size + more_rows, size + more_columns);
            let place = (0..=more_rows as u32, 0..=more_columns as u32, any::<u64>());
            (
                prop::collection::vec(any::<u8>(), height * width * 3),
                prop::collection::vec(place, 0..6),
            )
                .prop_map(move |(data, places)| Case {
                    height,
                    width,
                    data,
                    size,
                    specs: places
                        .into_iter()
                        .map(|(y, x, id)| spec(y, x, id))
                        .collect(),
                    seed,
                    aug,
                })
        },
    )
}

impl Case {
    fn run(&self, out: BatchMut<'_>) -> Result<()> {
        let image = ImageU8 {
            data: &self.data,
            height: self.height,
            width: self.width,
        };
        patch_crop(
            &[image],
            &self.specs,
            self.size,
            self.seed,
            9,
            Some(&self.aug),
            out,
        )
    }
}

proptest! {
    /// This also shows that offsets never read outside of the image: the naive crop clamps, then indexes.
    #[test]
    fn any_crop_equals_the_naive_one(case in cases()) {
        let each = case.size * case.size * 3;
        let mut out = vec![f32::NAN; case.specs.len() * each];
        case.run(BatchMut::F32(&mut out)).unwrap();
        let image = ImageU8 { data: &case.data, height: case.height, width: case.width };
        for (spec, out) in case.specs.iter().zip(out.chunks(each)) {
            let want = naive(&image, spec, case.size, &draw(case.seed, 9, spec.sample_id, &case.aug));
            assert_close("crop", out, &want, 3e-5);
        }
        let mut rounded = vec![bf16::NAN; out.len()];
        case.run(BatchMut::Bf16(&mut rounded)).unwrap();
        let want: Vec<u16> = out.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
        let got: Vec<u16> = rounded.iter().map(|v| v.to_bits()).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_processor(case in cases()) {
        let each = case.size * case.size * 3;
        let run = |threads: usize| with_threads(threads, || {
            let mut out = vec![0.0f32; case.specs.len() * each];
            case.run(BatchMut::F32(&mut out)).unwrap();
            out
        });
        let one = run(1);
        prop_assert_eq!(&one, &run(2));
        prop_assert_eq!(&one, &run(3));
        let image = ImageU8 { data: &case.data, height: case.height, width: case.width };
        let samples: Vec<_> = case.specs.iter().map(|spec| {
            let draw = draw(case.seed, 9, spec.sample_id, &case.aug);
            (window(&image, spec, case.size, &draw), draw)
        }).collect();
        for level in SimdLevel::available() {
            let mut out = vec![0.0f32; one.len()];
            shade_all(level, &samples, case.size, &mut out);
            prop_assert_eq!(&one, &out, "{:?}", level);
        }
    }
}

/// A sample comes out the same whatever else is in the batch.
#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let data = picture(64, 64);
    let image = ImageU8 {
        data: &data,
        height: 64,
        width: 64,
    };
    let specs: Vec<CropSpec> = (0..9).map(|i| spec(i * 4, 30 - i, u64::from(i))).collect();
    let each = 32 * 32 * 3;
    let mut together = vec![0.0; 9 * each];
    let out = BatchMut::F32(&mut together);
    patch_crop(&[image], &specs, 32, 5, 1, Some(&GOLDEN), out).unwrap();
    for (spec, want) in specs.iter().zip(together.chunks(each)) {
        let mut alone = vec![0.0; each];
        let out = BatchMut::F32(&mut alone);
        patch_crop(&[image], &[*spec], 32, 5, 1, Some(&GOLDEN), out).unwrap();
        assert_eq!(alone, want);
    }
}

/// White windows whose 16-bit partial sums must be flushed: between rows, and within one.
#[test]
fn white_windows_do_not_overflow_the_sums() {
    for (size, rows) in [(32, 32), (128, 128), (9000, 1)] {
        let pixels = vec![[255u8; 3]; size * rows];
        let window = Window {
            pixels: &pixels,
            // One long row stands for a window of that side.
            stride: if rows == 1 { 0 } else { size },
            size,
        };
        let all = (size * size) as u64;
        let levels = if rows == 1 {
            vec![SimdLevel::detect()]
        } else {
            SimdLevel::available()
        };
        for level in levels {
            let white = channel_sums(level, &window, 255);
            assert_eq!((white.below, white.above), ([255 * all; 3], [0; 3]));
            let over = channel_sums(level, &window, 254);
            assert_eq!((over.below, over.above), ([0; 3], [all; 3]));
        }
    }
}

#[test]
fn bad_arguments_are_errors() {
    let data = picture(20, 30);
    let image = ImageU8 {
        data: &data,
        height: 20,
        width: 30,
    };
    let run = |image: ImageU8<'_>, spec: CropSpec, size: usize, out: usize| {
        let mut out = vec![0.0; out];
        patch_crop(&[image], &[spec], size, 0, 0, None, BatchMut::F32(&mut out)).unwrap_err()
    };
    let ok = 8 * 8 * 3;
    assert!(matches!(
        run(image, spec(0, 0, 0), 8, ok - 1),
        Error::Length {
            what: "out",
            expected: 192,
            actual: 191,
            ..
        }
    ));
    assert!(matches!(
        run(image, spec(0, 0, 0), 0, 0),
        Error::Argument { what: "size", .. }
    ));
    for (y, x) in [(13, 0), (0, 23), (u32::MAX, 0), (0, u32::MAX)] {
        assert!(matches!(
            run(image, spec(y, x, 4), 8, ok),
            Error::CropOutside { sample_id: 4, .. }
        ));
    }
    assert!(matches!(
        run(image, spec(0, 0, 0), 21, 21 * 21 * 3),
        Error::CropOutside { .. }
    ));
    let elsewhere = CropSpec {
        image: 1,
        ..spec(0, 0, 0)
    };
    assert!(matches!(
        run(image, elsewhere, 8, ok),
        Error::ImageIndex {
            image: 1,
            images: 1,
            ..
        }
    ));
    let torn = ImageU8 {
        data: &data[1..],
        ..image
    };
    assert!(matches!(
        run(torn, spec(0, 0, 0), 8, ok),
        Error::Length {
            what: "ImageU8::data",
            ..
        }
    ));
    let huge = ImageU8 {
        height: usize::MAX,
        ..image
    };
    assert!(matches!(
        run(huge, spec(0, 0, 0), 8, ok),
        Error::Overflow { .. }
    ));
    assert!(matches!(
        run(image, spec(0, 0, 0), usize::MAX, 0),
        Error::Overflow { .. }
    ));
    let mut out = vec![0.0; ok];
    let aug = Augment {
        brightness: -1.0,
        ..Augment::default()
    };
    let out = BatchMut::F32(&mut out);
    assert!(patch_crop(&[image], &[spec(0, 0, 0)], 8, 0, 0, Some(&aug), out).is_err());
}

#[test]
fn messages_say_what_and_what_to_do() {
    let error = Error::CropOutside {
        sample_id: 7,
        image: 2,
        y: 1200,
        x: 0,
        size: 128,
        height: 1280,
        width: 1280,
    };
    let text = error.to_string();
    let (first, second) = text.split_once('\n').unwrap();
    assert_eq!(
        first,
        "crop of sample 7 covers rows 1200..1200+128 and columns 0..0+128, but image 2 has 1280 rows \
         and 1280 columns"
    );
    assert!(second.starts_with("  help: "), "{second}");
}
