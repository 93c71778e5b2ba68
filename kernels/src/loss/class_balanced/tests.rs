use fovea_task::Label;

use super::super::Loss;
use super::*;
use crate::golden::{values, values_f32};

const COUNTS: [u64; 4] = [11_993, 28_829, 47, 0];

#[test]
fn loss_and_gradient_are_those_of_the_paper_in_pytorch() {
    let logits = values_f32("focal.logits");
    let targets: Vec<u64> = values("focal.targets").iter().map(|&t| t as u64).collect();
    let labels: &[Label] = bytemuck::cast_slice(&targets);
    for (name, beta, gamma) in [
        ("bce", 0.9999, 0.0),
        ("focal", 0.9999, 2.0),
        ("beta0.99", 0.99, 1.5),
        ("beta0", 0.0, 0.0),
    ] {
        let settings = LossSettings {
            beta,
            gamma,
            positives: COUNTS.to_vec(),
            ..LossSettings::plain(4)
        };
        let loss = build(&settings).unwrap();
        let mut grad = vec![f32::NAN; logits.len()];
        let sum = loss.host(&logits, labels, 1.0, &mut grad).unwrap();
        let want = values(&format!("class_balanced.{name}.loss"))[0];
        // The weights are kept in f32.
        assert!((sum / want - 1.0).abs() < 2e-7, "{name}: {sum} {want}");
        let wanted = values(&format!("class_balanced.{name}.grad"));
        assert_eq!(grad.len(), wanted.len());
        for (i, (&got, want)) in grad.iter().zip(wanted).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= 3e-7 * want.abs() + 1e-12,
                "{name}[{i}]: {got} {want}"
            );
        }
    }
}

#[test]
fn weights_lie_between_equal_and_inverse_frequency() {
    assert_eq!(effective_number_weights(0.0, &[5, 1, 1000]), [1.0; 3]);
    let near_one = effective_number_weights(0.999_999_94, &[10, 20, 40]);
    for (weight, inverse) in near_one.iter().zip([4.0, 2.0, 1.0]) {
        assert!(
            (weight / (inverse * 3.0 / 7.0) - 1.0).abs() < 1e-4,
            "{near_one:?}"
        );
    }
    let weights = effective_number_weights(0.9999, &COUNTS);
    assert!((weights.iter().sum::<f32>() - 4.0).abs() < 1e-5);
    // Beyond 1 / (1 - beta) samples, further ones hardly count; an absent class weighs as the rarest present one.
    assert!(weights[0] > weights[1] && weights[0] / weights[1] < 1.5);
    assert_eq!(weights[3], weights[2]);
    assert_eq!(effective_number_weights(0.9999, &[0, 0]), [1.0; 2]);
}

#[test]
fn bad_settings_are_errors() {
    for (beta, limit) in [
        (1.0, "below 1"),
        (-0.1, "0 or more"),
        (f32::NAN, "0 or more"),
    ] {
        let settings = LossSettings {
            beta,
            ..LossSettings::plain(2)
        };
        let error = build(&settings).unwrap_err().to_string();
        assert!(
            error.starts_with("LossSettings::beta is ") && error.contains(limit),
            "{error}"
        );
    }
}
