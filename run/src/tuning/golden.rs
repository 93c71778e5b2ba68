//! Compares with SciPy's and scikit-learn's numbers, stored by `tests/golden/tuning.py`.

use fovea_task::{Kind, Label, Target};
use serde::Deserialize;

use super::{Rule, temperature, threshold};
use crate::metrics::fixture::grade;

#[derive(Deserialize)]
struct GoldenCase {
    name: String,
    kind: Kind,
    classes: usize,
    labels: Vec<u64>,
    logits: Vec<f32>,
    temperatures: Vec<f64>,
    nll_before: f64,
    /// Per class, for any number of classes: the best F1 of all thresholds, and of multiples of 0.05.
    best_f1: Vec<f64>,
    grid_f1: Vec<f64>,
    /// Per class: the highest threshold of scikit-learn's curve with a recall of 0.9, and the precision there.
    precision_at_sensitivity: Vec<f64>,
}

/// F1 and precision of a class at a threshold.
fn at(scored: &[(f32, bool)], threshold: f32) -> (f64, f64) {
    let count = |has: bool| {
        let reached = scored.iter().filter(|s| s.1 == has && s.0 >= threshold);
        reached.count() as f64
    };
    let positives = scored.iter().filter(|s| s.1).count() as f64;
    let (tp, fp) = (count(true), count(false));
    (2.0 * tp / (tp + fp + positives), tp / (tp + fp))
}

#[test]
fn scipy_and_scikit_learn_agree() {
    let text = include_str!("../../../tests/golden/tuning.json");
    let cases: Vec<GoldenCase> = serde_json::from_str(text).expect("the stored numbers parse");
    assert!(cases.len() >= 4);
    for case in cases {
        let name = &case.name;
        let target = Target {
            kind: case.kind,
            ..grade(case.classes)
        };
        let labels: Vec<Label> = case.labels.iter().copied().map(Label).collect();
        let nll = temperature::mean_nll(&target, &labels, &case.logits);
        assert!((nll - case.nll_before).abs() < 1e-9, "{name}: {nll}");
        let fitted = temperature::fit(&target, &labels, &case.logits);
        assert_eq!(fitted.len(), case.temperatures.len(), "{name}");
        for (ours, theirs) in fitted.iter().zip(&case.temperatures) {
            let ours = ours.unwrap();
            assert!(
                (ours - theirs).abs() < 1e-5 * theirs,
                "{name}: {ours} and {theirs}"
            );
        }
        for (class, best) in case.best_f1.iter().enumerate() {
            let logits = case.logits.iter().skip(class).step_by(case.classes);
            let scored: Vec<(f32, bool)> = logits
                .zip(&labels)
                .map(|(z, &label)| (1.0 / (1.0 + (-z).exp()), target.has(label, class)))
                .collect();
            let of = |rule| at(&scored, threshold::choose(&scored, rule).unwrap());
            let near = |ours: f64, theirs: f64, what: &str| {
                assert!(
                    (ours - theirs).abs() < 1e-12,
                    "{name} {class} {what}: {ours} and {theirs}"
                );
            };
            near(of(Rule::F1).0, *best, "F1");
            near(
                of(Rule::Grid(0.05)).0,
                case.grid_f1[class],
                "F1 on the grid",
            );
            let precision = case.precision_at_sensitivity[class];
            near(of(Rule::Sensitivity(0.9)).1, precision, "precision");
        }
    }
}
