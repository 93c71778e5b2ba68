use super::*;
use crate::golden::with_threads;
use proptest::prelude::*;

/// Values of every magnitude, made without a generator.
fn values(n: usize, salt: u32) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            let [word, exponent, ..] = crate::philox::philox4x32([i, salt, 0, 0], [1, 2]);
            let unit = word as f32 / u32::MAX as f32 - 0.5;
            unit * 2f32.powi((exponent % 40) as i32 - 20)
        })
        .collect()
}

/// Lengths on both sides of vector, lane and chunk borders.
const LENGTHS: [usize; 9] = [
    0,
    1,
    15,
    33,
    1000,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK + 17,
];

#[test]
fn rounding_is_that_of_half_for_every_upper_pattern() {
    for upper in 0..=u32::from(u16::MAX) {
        for lower in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
            let x = f32::from_bits(upper << 16 | lower);
            let (got, want) = (round_bf16(x), bf16::from_f32(x));
            assert_eq!(got.to_bits(), want.to_bits(), "{:#x}", x.to_bits());
            assert_eq!(got.is_nan(), x.is_nan());
        }
        let x = bf16::from_bits(upper as u16);
        assert!(widen_bf16(x) == x.to_f32() || x.is_nan() && widen_bf16(x).is_nan());
    }
}

#[test]
fn passes_compute_what_they_say() {
    for n in LENGTHS {
        let (a, b) = (values(n, 1), values(n, 2));
        let mut sum = a.clone();
        add_assign(&mut sum, &b).unwrap();
        assert!(
            sum.iter()
                .zip(a.iter().zip(&b))
                .all(|(s, (a, b))| *s == a + b)
        );

        let mut rounded = vec![bf16::NAN; n];
        to_bf16(&a, &mut rounded).unwrap();
        assert!(
            rounded
                .iter()
                .zip(&a)
                .all(|(r, &a)| *r == bf16::from_f32(a))
        );

        let mut total = vec![f32::NAN; n];
        accumulate_bf16(&rounded, &mut total, true).unwrap();
        assert!(total.iter().zip(&rounded).all(|(t, r)| *t == r.to_f32()));
        accumulate_bf16(&rounded, &mut total, false).unwrap();
        assert!(
            total
                .iter()
                .zip(&rounded)
                .all(|(t, r)| *t == 2.0 * r.to_f32())
        );

        let want: f64 = a.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((sum_squares(&a) - want).abs() <= 1e-12 * want);
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_processor() {
    for n in LENGTHS {
        let x = values(n, 3);
        let one = with_threads(1, || sum_squares(&x)).to_bits();
        for threads in [2, 3, 5] {
            assert_eq!(one, with_threads(threads, || sum_squares(&x)).to_bits());
        }
        for level in SimdLevel::available() {
            let chunks = x.chunks(CHUNK).map(|c| sum_squares_chunk(level, c));
            assert_eq!(one, chunks.sum::<f64>().to_bits(), "{level:?}");
            let (mut a, mut b) = (values(n, 4), values(n, 4));
            add_chunk(level, &mut a, &x);
            add_assign(&mut b, &x).unwrap();
            assert_eq!(a, b);
            let (mut rounded, mut want) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
            round_chunk(level, &mut rounded, &x);
            to_bf16(&x, &mut want).unwrap();
            assert_eq!(rounded, want);
            accumulate_chunk(level, &mut a, &rounded);
            accumulate_bf16(&rounded, &mut b, false).unwrap();
            assert_eq!(a, b);
            widen_chunk(level, &mut a, &rounded);
            accumulate_bf16(&rounded, &mut b, true).unwrap();
            assert_eq!(a, b);
        }
    }
}

proptest! {
    #[test]
    fn one_bad_element_poisons_the_sum(n in 1usize..3000, at: prop::sample::Index, bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)]) {
        let mut x = vec![1.0; n];
        prop_assert_eq!(sum_squares(&x), n as f64);
        x[at.index(n)] = bad;
        prop_assert!(!sum_squares(&x).is_finite());
        prop_assert_eq!(sum_squares(&x).is_nan(), bad.is_nan());
    }
}

/// In f32 this sum would overflow; in f64 it is finite as long as the elements are.
#[test]
fn squares_are_taken_in_f64() {
    assert!((sum_squares(&[f32::MAX; 100]) / 1.157_920_9e79 - 1.0).abs() < 1e-6);
}

#[test]
fn wrong_lengths_are_errors() {
    assert!(add_assign(&mut [0.0; 3], &[0.0; 4]).is_err());
    assert!(to_bf16(&[0.0; 3], &mut [bf16::ZERO; 4]).is_err());
    let error = accumulate_bf16(&[bf16::ZERO; 3], &mut [0.0; 4], true).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("src has 3 elements, its shape needs 4")
    );
}
