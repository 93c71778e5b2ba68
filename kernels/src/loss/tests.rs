use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn settings(classes: usize) -> LossSettings {
    LossSettings {
        gamma: 2.0,
        ..LossSettings::plain(classes)
    }
}

#[test]
fn losses_are_found_by_their_names() {
    let names: HashSet<&str> = LOSSES.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), LOSSES.len(), "two losses of one name");
    for entry in LOSSES {
        let loss = build(entry.name, &settings(5)).unwrap();
        assert_eq!((loss.name(), loss.kind()), (entry.name, entry.kind));
        assert_eq!(loss.classes(), 5);
        assert!(!entry.reads.is_empty(), "{}", entry.name);
    }
    let error = build("hinge", &settings(5)).unwrap_err().to_string();
    assert!(error.starts_with("the name of a loss is hinge"), "{error}");
}

/// The promises that the trait makes for every loss.
#[test]
fn unlabelled_rows_count_for_nothing() {
    for entry in LOSSES {
        for classes in [1, 4, fovea_task::MAX_CLASSES] {
            let loss = build(entry.name, &settings(classes)).unwrap();
            let known: Vec<f32> = (0..2 * classes).map(|k| k as f32 / 9.0 - 1.0).collect();
            let mut alone = vec![f32::NAN; 2 * classes];
            let labels = [Label(0), Label(1 % classes as u64)];
            let want = loss.host(&known, &labels, 0.5, &mut alone).unwrap();

            let (first, second) = known.split_at(classes);
            for strange in [3.5, f32::NAN, f32::INFINITY] {
                let row = vec![strange; classes];
                let logits = [&row[..], first, &row, second, &row].concat();
                let unknown = Label::UNKNOWN;
                let mixed = [unknown, labels[0], unknown, labels[1], unknown];
                let mut dlogits = vec![f32::NAN; logits.len()];
                let sum = loss.host(&logits, &mixed, 0.5, &mut dlogits).unwrap();
                assert_eq!(sum.to_bits(), want.to_bits());
                let zero = vec![0.0; classes];
                let (first, second) = alone.split_at(classes);
                assert_eq!(dlogits, [&zero[..], first, &zero, second, &zero].concat());
            }
        }
    }
}

proptest! {
    #[test]
    fn probabilities_are_those_of_the_kind(
        classes in 1usize..=fovea_task::MAX_CLASSES,
        values in prop::collection::vec(-100f32..100.0, 0..300),
    ) {
        let logits = &values[..values.len() / classes * classes];
        let mut out = vec![f32::NAN; logits.len()];
        probabilities(Kind::AnyOf, classes, logits, &mut out).unwrap();
        for (p, &z) in out.iter().zip(logits) {
            prop_assert_eq!(p.to_bits(), ((1.0 / (1.0 + (-f64::from(z)).exp())) as f32).to_bits());
        }
        probabilities(Kind::OneOf, classes, logits, &mut out).unwrap();
        for (p, z) in out.chunks(classes).zip(logits.chunks(classes)) {
            prop_assert!((p.iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs() < 1e-5);
            for (i, j) in (0..classes).zip(1..classes) {
                // The difference of two logits is the logarithm of the odds, as far as f32 can hold both.
                if p[i] > 1e-30 && p[j] > 1e-30 {
                    let odds = (f64::from(p[i]) / f64::from(p[j])).ln();
                    prop_assert!((odds - (f64::from(z[i]) - f64::from(z[j]))).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_softmax_survives_the_ends_of_f32() {
    let mut out = [0.0; 3];
    probabilities(Kind::OneOf, 3, &[f32::MAX, 0.0, f32::MIN], &mut out).unwrap();
    assert_eq!(out, [1.0, 0.0, 0.0]);
    probabilities(Kind::OneOf, 3, &[0.0, f32::NAN, 0.0], &mut out).unwrap();
    assert!(out.iter().all(|p| p.is_nan()));
}

#[test]
fn probabilities_refuse_other_shapes() {
    let refused = |classes, logits: &[f32], out: usize| {
        probabilities(Kind::AnyOf, classes, logits, &mut vec![0.0; out])
            .unwrap_err()
            .to_string()
    };
    assert!(refused(4, &[0.0; 7], 7).starts_with("logits has 7 elements, its shape needs 4"));
    assert!(refused(0, &[0.0; 2], 2).starts_with("logits has 2 elements, its shape needs 0"));
    assert!(refused(4, &[0.0; 8], 7).starts_with("out has 7 elements"));
}
