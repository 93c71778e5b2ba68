use super::super::build;
use super::*;
use crate::golden::{values, values_f32, with_threads};
use proptest::prelude::*;

fn params(gamma: f32, alpha: &[f32], pos_weight: f32, neg_weight: f32) -> LossSettings {
    LossSettings {
        gamma,
        alpha: alpha.to_vec(),
        positive_weight: pos_weight,
        negative_weight: neg_weight,
        ..LossSettings::plain(alpha.len())
    }
}

fn run(logits: &[f32], labels: &[u64], params: &LossSettings, scale: f32) -> (f64, Vec<f32>) {
    let mut dlogits = vec![f32::NAN; logits.len()];
    let labels: &[Label] = bytemuck::cast_slice(labels);
    let focal = build("focal", params).unwrap();
    let loss = focal.host(logits, labels, scale, &mut dlogits).unwrap();
    (loss, dlogits)
}

/// The definition as the paper prints it, in f64.
fn textbook(z: f64, positive: bool, gamma: f64, weight: f64) -> f64 {
    let z = if positive { z } else { -z };
    // 1 - p_t and -ln p_t in forms that lose no digits.
    weight * (1.0 / (1.0 + z.exp())).powf(gamma) * (-z).exp().ln_1p()
}

#[test]
fn loss_and_gradient_are_those_of_torchvision() {
    let logits = values_f32("focal.logits");
    let targets: Vec<u64> = values("focal.targets").iter().map(|&t| t as u64).collect();
    let cases = [
        ("lin", params(2.0, &[1.0; 4], 0.25, 0.75)),
        ("gamma1.5", params(1.5, &[1.0; 4], 0.25, 0.75)),
        ("plain", params(2.0, &[1.0; 4], 1.0, 1.0)),
        ("bce", params(0.0, &[1.0; 4], 1.0, 1.0)),
    ];
    for (name, params) in cases {
        let (loss, grad) = run(&logits, &targets, &params, 1.0);
        let want = values(&format!("focal.{name}.loss"))[0];
        assert!((loss / want - 1.0).abs() < 1e-12, "{name}: {loss} {want}");
        for (i, want) in values(&format!("focal.{name}.grad"))
            .into_iter()
            .enumerate()
        {
            // torchvision forms 1 - p_t in f64, which loses digits near 0: hence the absolute part.
            let error = (f64::from(grad[i]) - want).abs();
            assert!(
                error <= 1e-7 * want.abs() + 1e-13,
                "{name}[{i}]: {} {want}",
                grad[i]
            );
        }
    }
}

#[test]
fn gradient_is_the_slope_of_the_loss() {
    let step = 1e-5;
    for gamma in [0.0, 0.5, 1.0, 2.0, 3.5] {
        let params = params(gamma, &[0.7, 1.3], 0.25, 0.75);
        for i in -60..=60 {
            let z = f64::from(i) / 4.0;
            for label in 0..4u64 {
                let (_, grad) = run(&[z as f32; 2], &[label], &params, 2.0);
                for c in 0..2 {
                    let positive = label >> c & 1 == 1;
                    let weight = [0.7f32, 1.3][c] * if positive { 0.25 } else { 0.75 };
                    let loss = |z| textbook(z, positive, f64::from(gamma), f64::from(weight));
                    let slope = 2.0 * (loss(z + step) - loss(z - step)) / (2.0 * step);
                    let error = (f64::from(grad[c]) - slope).abs();
                    assert!(
                        error < 1e-6 * slope.abs() + 2e-8,
                        "{gamma} {z} {label}: {grad:?} {slope}"
                    );
                }
            }
        }
    }
}

type Kernel = fn(SimdLevel, &[f32], &[Label], &Weights<'_>, &mut [f32]) -> f64;

fn batches() -> impl Strategy<Value = (usize, Vec<u64>, Vec<f32>, f32)> {
    let classes = prop_oneof![3 => 1usize..=8, 1 => 9..=MAX_CLASSES];
    (classes, 0usize..1200).prop_flat_map(|(classes, rows)| {
        (
            Just(classes),
            prop::collection::vec(0..1u64 << classes, rows),
            prop::collection::vec(-20f32..20.0, rows * classes),
            prop_oneof![Just(2.0f32), 0f32..4.0],
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn loss_is_the_textbook_sum((classes, targets, logits, gamma) in batches()) {
        let alpha: Vec<f32> = (0..classes).map(|c| 0.5 + c as f32).collect();
        let params = params(gamma, &alpha, 0.25, 0.75);
        let (loss, _) = run(&logits, &targets, &params, 1.0);
        let mut want = 0.0;
        for (row, &label) in targets.iter().enumerate() {
            for c in 0..classes {
                let positive = label >> c & 1 == 1;
                let weight = f64::from(alpha[c]) * if positive { 0.25 } else { 0.75 };
                let z = f64::from(logits[row * classes + c]);
                want += textbook(z, positive, f64::from(gamma), weight);
            }
        }
        prop_assert!((loss - want).abs() <= 1e-9 * want, "{} {}", loss, want);
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_processor((classes, targets, logits, gamma) in batches()) {
        let params = params(gamma, &vec![0.9; classes], 0.25, 0.75);
        let bits = |(loss, grad): (f64, Vec<f32>)| (loss.to_bits(), grad.iter().map(|g| g.to_bits()).collect::<Vec<_>>());
        let one = bits(with_threads(1, || run(&logits, &targets, &params, 0.5)));
        for threads in [2, 3] {
            prop_assert_eq!(&one, &bits(with_threads(threads, || run(&logits, &targets, &params, 0.5))));
        }
        let rows = targets.len().min(BLOCK_ROWS);
        let weights = Weights {
            gamma: f64::from(gamma),
            by_label: &vec![[0.75, 0.25]; classes],
            scale: 1.0,
        };
        let block = |level: SimdLevel, kernel: Kernel| {
            let mut grad = vec![0.0; rows * classes];
            let loss = kernel(level, &logits[..rows * classes], bytemuck::cast_slice(&targets[..rows]), &weights, &mut grad);
            bits((loss, grad))
        };
        for level in SimdLevel::available() {
            prop_assert_eq!(block(level, squared_block), block(SimdLevel::detect(), squared_block));
            prop_assert_eq!(block(level, power_block), block(SimdLevel::detect(), power_block));
            prop_assert_eq!(block(level, plain_block), block(SimdLevel::detect(), plain_block));
        }
    }
}

#[test]
fn nan_and_infinity_are_not_hidden() {
    for gamma in [0.0, 1.5, 2.0] {
        let params = params(gamma, &[1.0; 4], 1.0, 1.0);
        for at in [0, 5, 4 * 300 + 3] {
            let mut logits = vec![0.5; 4 * 400];
            logits[at] = f32::NAN;
            let (loss, grad) = run(&logits, &[3; 400], &params, 1.0);
            assert!(loss.is_nan(), "gamma {gamma}, element {at}");
            assert!(grad[at].is_nan() && !grad[at + 1].is_nan());
        }
        let (loss, _) = run(&[f32::INFINITY, 0.0, 0.0, 0.0], &[0], &params, 1.0);
        assert_eq!(loss, f64::INFINITY);
        // A certain, right answer costs nothing; a certain, wrong one stays finite up to the f32 range.
        let (loss, grad) = run(
            &[f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN],
            &[5],
            &params,
            1.0,
        );
        assert!(
            loss.abs() < 1e-200 && grad.iter().all(|&g| g.abs() < 1e-30),
            "{loss} {grad:?}"
        );
        let (loss, grad) = run(&[f32::MIN, f32::MAX, -500.0, 500.0], &[5], &params, 1.0);
        assert!(
            loss.is_finite() && grad == [-1.0, 1.0, -1.0, 1.0],
            "{loss} {grad:?}"
        );
    }
}

#[test]
fn scale_multiplies_the_gradient_alone() {
    let params = params(2.0, &[1.0; 4], 0.25, 0.75);
    let logits = values_f32("focal.logits");
    let targets = [6; 24];
    let (loss, grad) = run(&logits, &targets, &params, 1.0);
    let (scaled_loss, scaled) = run(&logits, &targets, &params, -0.125);
    assert_eq!(loss, scaled_loss);
    assert!(grad.iter().zip(&scaled).all(|(g, s)| g * -0.125 == *s));
}

#[test]
fn no_rows_give_zero() {
    assert_eq!(run(&[], &[], &params(2.0, &[1.0; 4], 1.0, 1.0), 1.0).0, 0.0);
}

#[test]
fn bad_arguments_are_errors() {
    let fail = |logits: usize, labels: &[u64], params: &LossSettings, dlogits: usize| {
        let labels: &[Label] = bytemuck::cast_slice(labels);
        let mut dlogits = vec![0.0; dlogits];
        build("focal", params)
            .and_then(|focal| focal.host(&vec![0.0; logits], labels, 1.0, &mut dlogits))
            .unwrap_err()
            .to_string()
    };
    let good = params(2.0, &[1.0; 4], 1.0, 1.0);
    assert!(fail(7, &[0, 0], &good, 8).starts_with("logits has 7 elements, its shape needs 8"));
    assert!(fail(8, &[0, 0], &good, 9).starts_with("dlogits has 9 elements"));
    assert!(fail(0, &[0], &params(2.0, &[], 1.0, 1.0), 0).contains("is 0, the limit is 1 to 63"));
    assert!(fail(64, &[0], &params(2.0, &[1.0; 64], 1.0, 1.0), 64).contains("is 64"));
    assert!(fail(8, &[0, 16], &good, 8).contains("0b00010000 in row 1 with 4 classes"));
    let widest = params(2.0, &[1.0; MAX_CLASSES], 1.0, 1.0);
    assert!(fail(63, &[1 << 63], &widest, 63).contains("in row 0 with 63 classes"));
    for bad in [f32::NAN, -1.0, f32::INFINITY] {
        assert!(fail(4, &[0], &params(bad, &[1.0; 4], 1.0, 1.0), 4).contains("gamma"));
        assert!(fail(4, &[0], &params(2.0, &[1.0, bad, 1.0, 1.0], 1.0, 1.0), 4).contains("alpha"));
        assert!(fail(4, &[0], &params(2.0, &[1.0; 4], bad, 1.0), 4).contains("positive_weight"));
        assert!(fail(4, &[0], &params(2.0, &[1.0; 4], 1.0, bad), 4).contains("negative_weight"));
    }
}

/// The number of classes changes no bit: classes of weight 0 add 0 to the sums.
#[test]
fn classes_without_weight_change_no_bit() {
    let rows = 600;
    let labels: Vec<u64> = (0..rows).map(|row| row % 16).collect();
    let logit = |row: u64, c: u64| ((row * 37 + c * 11) % 101) as f32 / 10.0 - 5.0;
    let logits = |classes: u64| -> Vec<f32> {
        let row = |row| (0..classes).map(move |c| logit(row, c));
        (0..rows).flat_map(row).collect()
    };
    for gamma in [2.0, 1.5] {
        let narrow = params(gamma, &[0.5, 1.0, 0.75, 2.0], 0.25, 0.75);
        let (loss, grad) = run(&logits(4), &labels, &narrow, 0.5);
        for classes in [5, 8, 9, 17, 63] {
            let mut alpha = narrow.alpha.clone();
            alpha.resize(classes, 0.0);
            let wide = params(gamma, &alpha, 0.25, 0.75);
            let (sum, wide) = run(&logits(classes as u64), &labels, &wide, 0.5);
            assert_eq!(sum.to_bits(), loss.to_bits(), "{classes} classes");
            for (row, grad) in wide.chunks(classes).zip(grad.chunks(4)) {
                assert!(row[..4] == *grad && row[4..].iter().all(|&g| g == 0.0));
            }
        }
    }
}

/// A factor of 1 instead of a power: the bits stay those of the power function.
#[test]
fn an_exponent_of_zero_gives_the_bits_of_the_power() {
    for i in -4000..=4000 {
        let x = f64::from(i) / 50.0;
        let plain = element::<NONE>(x, 0.0);
        let power = element::<ANY>(x, 0.0);
        assert_eq!(plain.0.to_bits(), power.0.to_bits(), "loss at {x}");
        assert_eq!(plain.1.to_bits(), power.1.to_bits(), "slope at {x}");
    }
    // The power function's 0 times infinity would be NaN.
    assert_eq!(element::<NONE>(f64::INFINITY, 0.0), (f64::INFINITY, 1.0));
}
