use proptest::prelude::*;

use super::*;
use crate::golden::{values, values_f32, with_threads};

fn settings(alpha: &[f32], label_smoothing: f32) -> LossSettings {
    LossSettings {
        alpha: alpha.to_vec(),
        label_smoothing,
        ..LossSettings::plain(alpha.len())
    }
}

fn run(settings: &LossSettings, logits: &[f32], labels: &[u64], scale: f32) -> (f64, Vec<f32>) {
    let mut dlogits = vec![f32::NAN; logits.len()];
    let loss = CrossEntropy::new(settings).unwrap();
    let labels: &[Label] = bytemuck::cast_slice(labels);
    let sum = loss.host(logits, labels, scale, &mut dlogits).unwrap();
    (sum, dlogits)
}

/// The definition over probabilities, in f64.
fn textbook(z: &[f64], label: usize, alpha: &[f64], smoothing: f64) -> f64 {
    let highest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - highest).exp()).sum();
    let minus_log = |c: usize| sum.ln() + highest - z[c];
    let spread = (0..z.len()).map(|c| smoothing / z.len() as f64 * alpha[c] * minus_log(c));
    (1.0 - smoothing) * alpha[label] * minus_log(label) + spread.sum::<f64>()
}

#[test]
fn loss_and_gradient_are_those_of_pytorch() {
    let logits = values_f32("cross_entropy.logits");
    let labels: Vec<u64> = values("cross_entropy.labels")
        .iter()
        .map(|&y| y as u64)
        .collect();
    let weights = [0.5, 2.0, 1.0, 0.25, 3.0];
    for (name, alpha, smoothing) in [
        ("plain", [1.0; 5], 0.0),
        ("smooth", [1.0; 5], 0.1),
        ("weighted", weights, 0.0),
        ("both", weights, 0.25),
    ] {
        let (loss, grad) = run(&settings(&alpha, smoothing), &logits, &labels, 1.0);
        let want = values(&format!("cross_entropy.{name}.loss"))[0];
        // The smoothing is an f32.
        assert!((loss / want - 1.0).abs() < 1e-7, "{name}: {loss} {want}");
        let wanted = values(&format!("cross_entropy.{name}.grad"));
        assert_eq!(grad.len(), wanted.len());
        for (i, (&got, want)) in grad.iter().zip(wanted).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= 1e-7 * want.abs() + 1e-8,
                "{name}[{i}]: {got} {want}"
            );
        }
        // The mean over rows, and PyTorch's mean, which divides by the labels' weights.
        let of_labels: f64 = labels.iter().map(|&y| f64::from(alpha[y as usize])).sum();
        let mean = values(&format!("cross_entropy.{name}.mean"))[0];
        assert!(
            (loss / of_labels / mean - 1.0).abs() < 1e-7,
            "{name}: {mean}"
        );
    }
}

/// Where the label's class is nearly certain, the loss and its gradient keep their digits.
#[test]
fn small_terms_keep_their_digits() {
    for z in [5.0f32, 15.0, 30.0, 60.0] {
        let (loss, grad) = run(&settings(&[1.0; 3], 0.0), &[z, 0.0, 0.0], &[0], 1.0);
        let rest = 2.0 * (-f64::from(z)).exp();
        assert!((loss / rest.ln_1p() - 1.0).abs() < 1e-14, "{z}: {loss:e}");
        let others = rest / (1.0 + rest);
        assert!(
            (f64::from(grad[0]) / -others - 1.0).abs() < 1e-7,
            "{z}: {grad:?}"
        );
        assert!(
            (f64::from(grad[1]) / (others / 2.0) - 1.0).abs() < 1e-7,
            "{z}: {grad:?}"
        );
    }
}

fn rows() -> impl Strategy<Value = (Vec<f32>, Vec<u64>, Vec<f32>, f32)> {
    (1usize..8, 0usize..700).prop_flat_map(|(classes, rows)| {
        (
            prop::collection::vec(-20f32..20.0, rows * classes),
            prop::collection::vec(0..classes as u64, rows),
            prop::collection::vec(0f32..3.0, classes),
            prop_oneof![Just(0.0f32), 0f32..0.9],
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn loss_is_the_textbook_sum((logits, labels, alpha, smoothing) in rows()) {
        let classes = alpha.len();
        let (loss, _) = run(&settings(&alpha, smoothing), &logits, &labels, 1.0);
        let wide: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        let weights: Vec<f64> = alpha.iter().map(|&a| f64::from(a)).collect();
        let rows = wide.chunks(classes).zip(&labels);
        let want: f64 = rows.map(|(z, &y)| textbook(z, y as usize, &weights, f64::from(smoothing))).sum();
        prop_assert!((loss - want).abs() <= 1e-11 * want + 1e-12, "{loss} {want}");
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss((logits, labels, alpha, smoothing) in rows()) {
        let classes = alpha.len();
        let (_, grad) = run(&settings(&alpha, smoothing), &logits, &labels, 2.0);
        let weights: Vec<f64> = alpha.iter().map(|&a| f64::from(a)).collect();
        for (row, &y) in labels.iter().enumerate().take(20) {
            let z: Vec<f64> = logits[row * classes..][..classes].iter().map(|&z| f64::from(z)).collect();
            for c in 0..classes {
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[c] += by;
                    textbook(&z, y as usize, &weights, f64::from(smoothing))
                };
                let slope = 2.0 * (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let got = f64::from(grad[row * classes + c]);
                prop_assert!((got - slope).abs() < 1e-6 * slope.abs() + 1e-7, "{got} {slope}");
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads((logits, labels, alpha, smoothing) in rows()) {
        let settings = settings(&alpha, smoothing);
        let bits = |threads| {
            let (loss, grad) = with_threads(threads, || run(&settings, &logits, &labels, 0.5));
            (loss.to_bits(), grad.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
        };
        prop_assert_eq!(bits(1), bits(3));
    }
}

#[test]
fn nan_and_infinity_are_not_hidden() {
    let plain = settings(&[1.0; 3], 0.0);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in 0..3 {
            let mut logits = [0.5; 6];
            logits[at] = bad;
            let (loss, grad) = run(&plain, &logits, &[0, 1], 1.0);
            assert!(loss.is_nan(), "{bad} at {at}");
            assert!(
                grad[..3].iter().all(|g| g.is_nan()) && grad[3..].iter().all(|g| g.is_finite())
            );
        }
    }
    // A class that cannot be: a loss where it is the label, none where it is not.
    let impossible = [f32::NEG_INFINITY, 0.0, 0.0];
    assert_eq!(
        run(&plain, &impossible, &[0], 1.0),
        (f64::INFINITY, vec![-1.0, 0.5, 0.5])
    );
    let (loss, grad) = run(&plain, &impossible, &[1], 1.0);
    assert!((loss - 2f64.ln()).abs() < 1e-15 && grad[0].abs() < 1e-30);
    let (loss, grad) = run(&plain, &[f32::MAX, f32::MIN, 0.0], &[0], 1.0);
    assert!(loss.abs() < 1e-200 && grad.iter().all(|g| g.abs() < 1e-30));
}

#[test]
fn scale_multiplies_the_gradient_alone() {
    let smooth = settings(&[1.0, 2.0, 0.5], 0.1);
    let logits = [0.3, -2.0, 1.0, 4.0, 0.0, 0.25];
    let (loss, grad) = run(&smooth, &logits, &[2, 0], 1.0);
    let (scaled_loss, scaled) = run(&smooth, &logits, &[2, 0], -0.125);
    assert_eq!(loss, scaled_loss);
    assert!(grad.iter().zip(&scaled).all(|(g, s)| g * -0.125 == *s));
    assert_eq!(run(&smooth, &[], &[], 1.0).0, 0.0);
}

#[test]
fn bad_arguments_are_errors() {
    let loss = CrossEntropy::new(&settings(&[1.0; 3], 0.0)).unwrap();
    let fail = |logits: usize, label: u64, dlogits: usize| {
        let (logits, mut dlogits) = (vec![0.0; logits], vec![0.0; dlogits]);
        let error = loss.host(&logits, &[Label(0), Label(label)], 1.0, &mut dlogits);
        error.unwrap_err().to_string()
    };
    assert!(fail(5, 0, 6).starts_with("logits has 5 elements, its shape needs 6"));
    assert!(fail(6, 0, 7).starts_with("dlogits has 7 elements"));
    assert!(fail(6, 3, 6).contains("3 in row 1 with 3 classes"));
    let error = CrossEntropy::new(&settings(&[1.0], 1.0)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("LossSettings::label_smoothing is 1")
    );
}
