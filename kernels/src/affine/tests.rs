use super::*;
use crate::augment::draw;
use crate::augment::tests::{GOLDEN, GOLDEN_EPOCH, GOLDEN_SEED};
use crate::golden::{assert_close, picture, values};
use crate::{BatchMut, CropSpec, ImageU8, crop_areas, global_view, patch_crop, resize_antialias};
use half::bf16;
use proptest::prelude::*;

/// The strengths of the golden file.
const TURNING: Augment = Augment {
    contrast: 0.0,
    rotation: 50.0,
    scale: 0.3,
    ..GOLDEN
};

fn crop(
    data: &[u8],
    sides: (usize, usize),
    spec: CropSpec,
    size: usize,
    aug: &Augment,
) -> Vec<f32> {
    let image = ImageU8 {
        data,
        height: sides.0,
        width: sides.1,
    };
    let mut out = vec![f32::NAN; size * size * 3];
    let batch = BatchMut::F32(&mut out);
    patch_crop(
        &[image],
        &[spec],
        size,
        GOLDEN_SEED,
        GOLDEN_EPOCH,
        Some(aug),
        batch,
    )
    .unwrap();
    out
}

fn spec(y: u32, x: u32, sample_id: u64) -> CropSpec {
    CropSpec {
        image: 0,
        y,
        x,
        sample_id,
    }
}

#[test]
fn turned_and_scaled_samples_are_those_of_torchvision() {
    let data = picture(40, 48);
    for id in values("draw.sample_ids") {
        let out = crop(&data, (40, 48), spec(20, 30, id as u64), 17, &TURNING);
        let name = format!("affine.{id}");
        // torchvision's grid is in f32 from -1 to 1: its points are off by up to 1e-5 pixels of 255 grey values each.
        assert_close(&name, &out, &values(&name), 1e-3);
    }
    let image = ImageU8 {
        data: &data,
        height: 40,
        width: 48,
    };
    let whole = resize_antialias(&image, 17, 17).unwrap();
    for id in [1, 6] {
        let mut out = vec![0.0; 17 * 17 * 3];
        let batch = BatchMut::F32(&mut out);
        global_view(
            &whole,
            17,
            GOLDEN_SEED,
            GOLDEN_EPOCH,
            id,
            Some(&TURNING),
            batch,
        )
        .unwrap();
        let name = format!("affine_global.{id}");
        assert_close(&name, &out, &values(&name), 1e-3);
    }
}

#[test]
fn polynomials_are_the_functions() {
    for step in -1800..=1800 {
        let degrees = step as f32 / 10.0;
        let (sin, cos) = sin_cos(degrees);
        let radians = f64::from(degrees).to_radians();
        assert!((sin - radians.sin()).abs() < 1e-13, "{degrees}");
        assert!((cos - radians.cos()).abs() < 1e-13, "{degrees}");
    }
    for step in -130..=130 {
        let x = f64::from(step) / 100.0;
        assert!((exp(x) - x.exp()).abs() < 1e-14, "{x}");
    }
    assert!(
        (LOG_RATIO[0] - 0.3f64.ln()).abs() < 1e-15 && (LOG_RATIO[1] - 3.3f64.ln()).abs() < 1e-15
    );
}

/// Quarter turns of both kinds are the same: a rotation by 90 degrees is `turns = 1`.
#[test]
fn rotation_is_counter_clockwise_as_the_quarter_turns() {
    let data = picture(9, 9);
    let pixels = data.as_chunks::<3>().0;
    let surface = SourceImage {
        pixels,
        height: 9,
        width: 9,
    };
    for (turns, degrees) in [(1, 90.0), (2, 180.0), (3, -90.0)] {
        let draw = Draw {
            rotation: degrees,
            ..Draw::IDENTITY
        };
        let mut rotated = vec![[0.0; 3]; 81];
        surface.show(&PointMap::new(&draw, (0, 0), 9), &draw, 9, 0, &mut rotated);
        let quarter = Draw {
            turns,
            ..Draw::IDENTITY
        };
        for (k, shown) in rotated.iter().enumerate() {
            let (y, x) = upright(&quarter, 9, k / 9, k % 9);
            for c in 0..3 {
                let want = f32::from(pixels[y * 9 + x][c]);
                assert!((shown[c] - want).abs() < 1e-2, "{degrees}: {k}");
            }
        }
    }
}

#[test]
fn a_larger_scale_shows_less_of_the_image_larger() {
    // One column of light; twice as large it is two pixels wide.
    let mut pixels = vec![[0u8; 3]; 64];
    pixels
        .iter_mut()
        .skip(3)
        .step_by(8)
        .for_each(|p| *p = [200; 3]);
    let surface = SourceImage {
        pixels: &pixels,
        height: 8,
        width: 8,
    };
    let light = |scale: f32| -> f32 {
        let draw = Draw {
            scale,
            ..Draw::IDENTITY
        };
        let mut row = vec![[0.0; 3]; 64];
        surface.show(&PointMap::new(&draw, (0, 0), 8), &draw, 8, 0, &mut row);
        row[4 * 8..5 * 8].iter().map(|p| p[0]).sum()
    };
    assert_eq!(light(1.0), 200.0);
    assert!((light(2.0) - 400.0).abs() < 1.0, "{}", light(2.0));
}

#[test]
fn outside_of_the_image_is_black() {
    let data = vec![255u8; 20 * 20 * 3];
    let aug = Augment {
        rotation: 45.0,
        ..Augment::default()
    };
    // The corner of the image: what turns in from outside is black, (0 - mean) / std.
    let black = (0.0 - crate::IMAGENET_MEAN[0]) / crate::IMAGENET_STD[0];
    let turned = (0..40u64).find(|id| draw(GOLDEN_SEED, GOLDEN_EPOCH, *id, &aug).rotation > 30.0);
    let out = crop(&data, (20, 20), spec(0, 0, turned.unwrap()), 16, &aug);
    assert!((out[0] - black).abs() < 1e-5, "{}", out[0]);
    let middle = out[3 * (8 * 16 + 8)];
    assert!(middle > 2.0, "{middle}");
}

fn erasing(probability: f32) -> Augment {
    Augment {
        erasing: probability,
        ..Augment::default()
    }
}

/// With nothing drawn but a rectangle, every other pixel has the bits of the plain crop.
#[test]
fn erasing_leaves_the_other_pixels_as_they_are() {
    let data = picture(40, 48);
    let plain = Augment {
        contrast: 0.3,
        ..TURNING
    };
    let plain = Augment {
        rotation: 0.0,
        scale: 0.0,
        ..plain
    };
    let erased_too = Augment {
        erasing: 1.0,
        ..plain
    };
    let size = 17;
    for id in 0..60u64 {
        let rectangle = erased(GOLDEN_SEED, GOLDEN_EPOCH, id, &erased_too, size);
        let a = crop(&data, (40, 48), spec(11, 9, id), size, &plain);
        let b = crop(&data, (40, 48), spec(11, 9, id), size, &erased_too);
        for k in 0..size * size {
            let gone = rectangle.is_some_and(|r| r.columns(k / size).contains(&(k % size)));
            let (a, b) = (&a[3 * k..3 * k + 3], &b[3 * k..3 * k + 3]);
            assert_eq!(
                b,
                if gone { &[0.0; 3] } else { a },
                "sample {id}, pixel {k}"
            );
        }
    }
}

/// torchvision's ranges: 2 to 33 % of the area, an aspect ratio of 0.3 to 3.3, anywhere in the square.
#[test]
fn rectangles_have_the_ranges_of_torchvision() {
    let (size, n) = (128usize, 20_000u64);
    let all: Vec<Rectangle> = (0..n)
        .filter_map(|id| erased(3, 1, id, &erasing(0.25), size))
        .collect();
    // Five standard deviations of a binomial count are below 310.
    assert!(all.len().abs_diff(5000) < 310, "{}", all.len());
    let area = |r: &Rectangle| f64::from(r.height * r.width) / (size * size) as f64;
    let ratio = |r: &Rectangle| f64::from(r.height) / f64::from(r.width);
    let side = size as u32;
    for r in &all {
        assert!((0.018..0.335).contains(&area(r)), "{r:?}");
        assert!((0.27..3.7).contains(&ratio(r)), "{r:?}");
        assert!(
            r.top + r.height <= side && r.left + r.width <= side,
            "{r:?}"
        );
    }
    let mean = all.iter().map(area).sum::<f64>() / all.len() as f64;
    assert!((mean - 0.175).abs() < 0.01, "{mean}");
    assert!(all.iter().any(|r| r.top == 0) && all.iter().any(|r| r.top + r.height == side));
    let tall = all.iter().filter(|r| r.height > r.width).count();
    assert!(
        tall.abs_diff(all.len() / 2) < 200,
        "{tall} of {}",
        all.len()
    );
    assert!((0..2000).all(|id| erased(3, 1, id, &erasing(0.0), size).is_none()));
    // torchvision's attempts give an empty rectangle, too, where the area is so small.
    let tiny = erased(3, 1, 7, &erasing(1.0), 1);
    assert!(tiny.is_none_or(|r| r.height * r.width == 0), "{tiny:?}");
}

fn strengths() -> impl Strategy<Value = Augment> {
    (
        any::<bool>(),
        any::<bool>(),
        0u32..9,
        0f32..180.0,
        0f32..0.9,
        0f32..1.0,
    )
        .prop_map(
            |(flip, quarter_turns, offset, rotation, scale, erasing)| Augment {
                flip,
                quarter_turns,
                offset,
                brightness: 0.2,
                contrast: 0.3,
                saturation: 0.4,
                rotation,
                scale,
                erasing,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// bf16 is the rounded f32, and the number of threads changes no bit.
    #[test]
    fn bits_depend_on_nothing_else(
        size in 1usize..40, more in 0usize..20, seed: u64, ids in prop::collection::vec(any::<u64>(), 1..5), aug in strengths(),
    ) {
        let side = size + more;
        let data = picture(side, side);
        let image = ImageU8 { data: &data, height: side, width: side };
        let specs: Vec<CropSpec> = ids.iter().map(|id| spec((id % (more as u64 + 1)) as u32, 0, *id)).collect();
        let run = |threads| crate::golden::with_threads(threads, || {
            let mut out = vec![0.0f32; specs.len() * size * size * 3];
            patch_crop(&[image], &specs, size, seed, 4, Some(&aug), BatchMut::F32(&mut out)).unwrap();
            out
        });
        let one = run(1);
        prop_assert!(one.iter().all(|x| x.is_finite()));
        prop_assert_eq!(&one, &run(3));
        let mut rounded = vec![bf16::NAN; one.len()];
        patch_crop(&[image], &specs, size, seed, 4, Some(&aug), BatchMut::Bf16(&mut rounded)).unwrap();
        prop_assert!(one.iter().zip(&rounded).all(|(a, b)| bf16::from_f32(*a).to_bits() == b.to_bits()));
    }

    /// The classes under a crop are those of the pixels that the crop shows: a mask drawn as a picture is cropped alike.
    #[test]
    fn areas_are_those_of_what_is_seen(
        size in 1usize..24, more in 0usize..16, seed: u64, id: u64, aug in strengths(), upright: bool, lesions in prop::collection::vec(any::<u8>(), 1600),
    ) {
        let side = size + more;
        let aug = match upright {
            true => Augment { rotation: 0.0, scale: 0.0, ..aug },
            false => aug,
        };
        let mask = &lesions[..side * side];
        let spec = spec((id % (more as u64 + 1)) as u32, (id / 7 % (more as u64 + 1)) as u32, id);
        let draw = draw(seed, 0, id, &aug);
        let areas = crop_areas(mask, (side, side), &spec, size, &draw).unwrap();
        // One pixel after the other, in f64.
        let clamp = |start: u32, shift: i32| (i64::from(start) + i64::from(shift)).clamp(0, more as i64) as f64;
        let (top, left) = (clamp(spec.y, draw.dy), clamp(spec.x, draw.dx));
        let middle = (size as f64 - 1.0) / 2.0;
        let (sin, cos) = f64::from(draw.rotation).to_radians().sin_cos();
        let (mut want, mut close) = ([0u32; 8], 0);
        for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y as f64, x as f64))) {
            let (dy, dx) = ((y - middle) / f64::from(draw.scale), (x - middle) / f64::from(draw.scale));
            let at = [top + middle + sin * dx + cos * dy, left + middle + cos * dx - sin * dy].map(|v| v + 0.5);
            // Where f32 may round to the other pixel.
            close += u32::from(at.iter().any(|v| (v - v.round()).abs() < 1e-3));
            let [y, x] = at.map(|v| v.floor() as i64);
            if (0..side as i64).contains(&y) && (0..side as i64).contains(&x) {
                for (class, count) in want.iter_mut().enumerate() {
                    *count += u32::from(mask[y as usize * side + x as usize] >> class & 1);
                }
            }
        }
        for (got, want) in areas.iter().zip(want) {
            let off = got.abs_diff(want);
            prop_assert!(if upright { off == 0 } else { off <= close }, "{areas:?} instead of {want:?}");
        }
    }
}

#[test]
fn areas_of_what_does_not_fit_are_refused() {
    let mask = [0u8; 12];
    assert!(crop_areas(&mask, (3, 4), &spec(0, 0, 1), 3, &Draw::IDENTITY).is_ok());
    for (sides, y, size) in [((4, 4), 0, 3), ((3, 4), 1, 3), ((3, 4), 0, 4)] {
        assert!(crop_areas(&mask, sides, &spec(y, 0, 1), size, &Draw::IDENTITY).is_err());
    }
}
