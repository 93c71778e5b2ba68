use fovea_task::{Label, MAX_CLASSES};

use super::super::Loss;
use super::*;
use crate::golden::{values, values_f32};

fn run(settings: &LossSettings, logits: &[f32], labels: &[u64]) -> (f64, Vec<f32>) {
    let mut dlogits = vec![f32::NAN; logits.len()];
    let bce = build(settings).unwrap();
    let labels: &[Label] = bytemuck::cast_slice(labels);
    let loss = bce.host(logits, labels, 1.0, &mut dlogits).unwrap();
    (loss, dlogits)
}

#[test]
fn loss_and_gradient_are_those_of_pytorch() {
    let logits = values_f32("focal.logits");
    let targets: Vec<u64> = values("focal.targets").iter().map(|&t| t as u64).collect();
    let plain = LossSettings::plain(4);
    let (weight, pos_weight) = (vec![0.5, 2.0, 1.0, 0.25], vec![3.0, 0.5, 1.0, 8.0]);
    let cases = [
        ("plain", plain.clone()),
        (
            "pos_weight",
            LossSettings {
                pos_weight: pos_weight.clone(),
                ..plain.clone()
            },
        ),
        (
            "both",
            LossSettings {
                pos_weight,
                alpha: weight,
                ..plain
            },
        ),
    ];
    for (name, settings) in cases {
        let (loss, grad) = run(&settings, &logits, &targets);
        let want = values(&format!("bce.{name}.loss"))[0];
        assert!((loss / want - 1.0).abs() < 1e-12, "{name}: {loss} {want}");
        let wanted = values(&format!("bce.{name}.grad"));
        assert_eq!(grad.len(), wanted.len());
        for (i, (&got, want)) in grad.iter().zip(wanted).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= 1e-7 * want.abs() + 1e-13,
                "{name}[{i}]: {got} {want}"
            );
        }
    }
}

/// The settings of other losses change nothing; its own do.
#[test]
fn it_reads_what_it_says_it_reads() {
    let (logits, labels) = ([0.3, -1.0, 2.0, 0.0], [2, 1]);
    let plain = LossSettings::plain(2);
    let want = run(&plain, &logits, &labels);
    let others = LossSettings {
        gamma: 2.0,
        positive_weight: 0.1,
        negative_weight: 5.0,
        label_smoothing: 0.5,
        beta: 0.9,
        positives: vec![7, 1],
        ..plain.clone()
    };
    assert_eq!(run(&others, &logits, &labels), want);
    let weighted = LossSettings {
        pos_weight: vec![1.0, 2.0],
        ..plain.clone()
    };
    let (loss, grad) = run(&weighted, &logits, &labels);
    // Only row 0 has class 1, so only that term doubles.
    assert!(loss > want.0);
    let doubled = [want.1[0], 2.0 * want.1[1], want.1[2], want.1[3]];
    assert_eq!(grad, doubled);
    let weighted = LossSettings {
        alpha: vec![1.0, 0.0],
        ..plain
    };
    assert_eq!(run(&weighted, &logits, &labels).1[1], 0.0);
}

#[test]
fn certain_and_wrong_is_infinite_with_a_gradient() {
    let (loss, grad) = run(&LossSettings::plain(1), &[f32::INFINITY], &[0]);
    assert_eq!((loss, grad[0]), (f64::INFINITY, 1.0));
    assert_eq!(run(&LossSettings::plain(1), &[], &[]).0, 0.0);
}

#[test]
fn bad_settings_are_errors() {
    let refused = |settings: &LossSettings| build(settings).unwrap_err().to_string();
    let plain = LossSettings::plain(3);
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let settings = LossSettings {
            pos_weight: vec![1.0, bad, 1.0],
            ..plain.clone()
        };
        assert!(refused(&settings).starts_with("LossSettings::pos_weight is "));
    }
    let short = LossSettings {
        pos_weight: vec![1.0; 2],
        ..plain.clone()
    };
    assert!(refused(&short).starts_with("LossSettings::pos_weight has 2 elements"));
    let short = LossSettings {
        positives: vec![1; 4],
        ..plain
    };
    assert!(refused(&short).starts_with("LossSettings::positives has 4 elements"));
    assert!(refused(&LossSettings::plain(MAX_CLASSES + 1)).contains("is 64"));
}
