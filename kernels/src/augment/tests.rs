use super::*;
use crate::golden::values;
use proptest::prelude::*;

pub(crate) const GOLDEN_SEED: u64 = 0x0123_4567_89AB_CDEF;
pub(crate) const GOLDEN_EPOCH: u32 = 3;
pub(crate) const GOLDEN: Augment = Augment {
    flip: true,
    quarter_turns: true,
    offset: 5,
    brightness: 0.5,
    contrast: 0.4,
    saturation: 0.75,
    rotation: 0.0,
    scale: 0.0,
    erasing: 0.0,
};

#[test]
fn draws_are_those_of_the_python_twin() {
    for (i, id) in values("draw.sample_ids").into_iter().enumerate() {
        let turning = Augment {
            rotation: 50.0,
            scale: 0.3,
            ..GOLDEN
        };
        let got = draw(GOLDEN_SEED, GOLDEN_EPOCH, id as u64, &turning);
        let want = |field: &str| values(&format!("draw.{field}"))[i];
        assert_eq!(f64::from(u8::from(got.flip)), want("flip"));
        assert_eq!(f64::from(got.turns), want("turns"));
        assert_eq!(f64::from(got.dx), want("dx"));
        assert_eq!(f64::from(got.dy), want("dy"));
        assert!((f64::from(got.brightness) - want("brightness")).abs() < 2e-7);
        assert!((f64::from(got.contrast) - want("contrast")).abs() < 2e-7);
        assert!((f64::from(got.saturation) - want("saturation")).abs() < 2e-7);
        assert!((f64::from(got.rotation) - want("rotation")).abs() < 1e-5);
        assert!((f64::from(got.scale) - want("scale")).abs() < 2e-7);
    }
}

#[test]
fn everything_off_is_the_identity() {
    for id in 0..100 {
        assert_eq!(draw(1, 2, id, &Augment::default()), Draw::IDENTITY);
    }
}

/// Each choice has its own word: switching one off leaves the others unchanged.
#[test]
fn choices_are_independent_of_what_else_is_on() {
    let quiet = Augment {
        flip: false,
        offset: 0,
        contrast: 0.0,
        ..GOLDEN
    };
    for id in 0..100 {
        let (a, b) = (draw(7, 0, id, &GOLDEN), draw(7, 0, id, &quiet));
        assert_eq!(a.turns, b.turns);
        assert_eq!(a.brightness, b.brightness);
        assert_eq!(a.saturation, b.saturation);
        assert_eq!((b.flip, b.dx, b.dy, b.contrast), (false, 0, 0, 1.0));
    }
}

#[test]
fn every_argument_matters_and_choices_are_even() {
    let base = draw(1, 1, 1, &GOLDEN);
    for other in [
        draw(2, 1, 1, &GOLDEN),
        draw(1 + (1 << 32), 1, 1, &GOLDEN),
        draw(1, 2, 1, &GOLDEN),
        draw(1, 1, 2, &GOLDEN),
        draw(1, 1, 1 + (1 << 32), &GOLDEN),
    ] {
        assert_ne!(base, other);
    }
    let n = 80_000;
    let mut poses = [0u32; 8];
    let mut shifts = [0u32; 11];
    for id in 0..n {
        let d = draw(42, 0, id, &GOLDEN);
        poses[usize::from(d.turns) + 4 * usize::from(d.flip)] += 1;
        shifts[(d.dx + 5) as usize] += 1;
    }
    // Five standard deviations of a binomial count are below 500.
    assert!(
        poses.iter().all(|&count| count.abs_diff(10_000) < 500),
        "{poses:?}"
    );
    assert!(
        shifts.iter().all(|&count| count.abs_diff(7_273) < 450),
        "{shifts:?}"
    );
}

proptest! {
    #[test]
    fn draws_stay_in_their_ranges(seed: u64, epoch: u32, id: u64, offset in 0u32..70_000, strength in 0f32..3.0) {
        let aug = Augment { flip: true, quarter_turns: true, offset, brightness: strength, contrast: strength, saturation: strength, rotation: 60.0 * strength, scale: strength.min(0.9), erasing: 0.5 };
        let d = draw(seed, epoch, id, &aug);
        let limit = offset.min(MAX_OFFSET) as i32;
        prop_assert!(d.turns < 4 && d.dx.abs() <= limit && d.dy.abs() <= limit);
        for factor in [d.brightness, d.contrast, d.saturation] {
            prop_assert!(factor >= (1.0 - strength).max(0.0) && factor <= 1.0 + strength);
        }
        prop_assert!(d.rotation.abs() <= aug.rotation && (d.scale - 1.0).abs() <= aug.scale + 1e-6);
    }
}

#[test]
fn strengths_without_meaning_are_refused() {
    for strength in [-0.1, f32::NAN, f32::INFINITY] {
        let aug = Augment {
            contrast: strength,
            ..Augment::default()
        };
        let message = aug.check().unwrap_err().to_string();
        assert!(
            message.contains("Augment::contrast") && message.contains("\n  help: "),
            "{message}"
        );
    }
    let aug = Augment {
        offset: MAX_OFFSET + 1,
        ..Augment::default()
    };
    assert!(aug.check().is_err());
    for (aug, name) in [
        (
            Augment {
                rotation: 180.5,
                ..Augment::default()
            },
            "Augment::rotation is 180.5",
        ),
        (
            Augment {
                scale: 1.0,
                ..Augment::default()
            },
            "Augment::scale is 1",
        ),
        (
            Augment {
                erasing: f32::NAN,
                ..Augment::default()
            },
            "Augment::erasing is NaN",
        ),
    ] {
        let message = aug.check().unwrap_err().to_string();
        assert!(
            message.starts_with(name) && message.contains("\n  help: "),
            "{message}"
        );
    }
    assert_eq!(GOLDEN.check(), Ok(()));
}
