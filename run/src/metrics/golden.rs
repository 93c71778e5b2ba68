//! Compares with scikit-learn's numbers, stored by `tests/golden/metrics.py`.

use serde::Deserialize;

use fovea_task::Label;

use super::fixture::{grade, lesions};
use super::{
    Averages, Classification, Metrics, Table, best_constant, classification_report, compute,
};
use fovea_task::Target;

#[derive(Deserialize)]
struct GoldenCase {
    name: String,
    thresholds: [f32; 4],
    labels: Vec<u8>,
    probs: Vec<[f32; 4]>,
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    f1_micro: f64,
    f1_macro: f64,
    hamming: f64,
    subset_acc: f64,
    iou: f64,
    dice: f64,
    pearson_r: Option<f64>,
    precision: [f64; 4],
    recall: [f64; 4],
    f1: [f64; 4],
    auroc: [Option<f64>; 4],
    ap: [Option<f64>; 4],
    confusion: [[u64; 4]; 4],
    constant_f1_micro: f64,
    #[serde(flatten)]
    more: More,
}

/// What both kinds of target have beyond `metrics.csv`.
#[derive(Deserialize)]
struct More {
    kappa_per_class: Vec<Option<f64>>,
    specificity: Vec<f64>,
    f1_absent_and_present: Vec<f64>,
    /// Precision, recall, F1.
    micro_average: [f64; 3],
    macro_average: [f64; 3],
    weighted_average: [f64; 3],
    /// Micro, macro, weighted.
    auroc_averages: [Option<f64>; 3],
    report: String,
}

impl More {
    fn check(&self, name: &str, target: &Target, table: &Table, metrics: &Metrics) {
        let got = Classification::of(target, table, metrics);
        for (c, class) in got.classes.iter().enumerate() {
            close_option(name, "kappa", class.kappa, self.kappa_per_class[c]);
            close(name, "specificity", class.specificity, self.specificity[c]);
            let both = (class.f1_absent_and_present, self.f1_absent_and_present[c]);
            close(name, "F1 absent and present", both.0, both.1);
        }
        let averages = |what: &str, got: Averages, want: [f64; 3]| {
            for (got, want) in [got.precision, got.recall, got.f1].into_iter().zip(want) {
                close(name, what, got, want);
            }
        };
        averages("micro average", got.micro, self.micro_average);
        averages("macro average", got.macro_, self.macro_average);
        averages("weighted average", got.weighted, self.weighted_average);
        let areas = [got.auroc.micro, got.auroc.macro_, got.auroc.weighted];
        for (got, want) in areas.into_iter().zip(self.auroc_averages) {
            close_option(name, "average AUROC", got, want);
        }
        assert_eq!(
            classification_report(target, metrics),
            self.report,
            "{name}"
        );
    }
}

fn close(case: &str, what: &str, got: f64, want: f64) {
    assert!(
        (got - want).abs() <= 1e-12,
        "{case}: {what} is {got}, scikit-learn says {want}"
    );
}

fn close_option(case: &str, what: &str, got: Option<f64>, want: Option<f64>) {
    assert_eq!(
        got.is_some(),
        want.is_some(),
        "{case}: {what} is {got:?}, scikit-learn says {want:?}"
    );
    close(case, what, got.unwrap_or(0.0), want.unwrap_or(0.0));
}

#[test]
fn scikit_learn_agrees() {
    let cases: Vec<GoldenCase> =
        serde_json::from_str(include_str!("../../../tests/golden/metrics.json"))
            .expect("the stored numbers parse");
    assert!(cases.len() >= 5);
    for GoldenCase {
        name,
        thresholds,
        labels,
        probs,
        expected: want,
    } in cases
    {
        let rows = labels.iter().zip(&probs).enumerate();
        let rows: Vec<_> = rows
            .map(|(i, (&label, &probs))| (i as u64, label, probs))
            .collect();
        let (target, table) = (lesions(), Table::of(&rows));
        let got = compute(&target, &table, &thresholds, 0.0).unwrap();
        close(&name, "f1_micro", got.f1_micro, want.f1_micro);
        close(&name, "f1_macro", got.f1_macro, want.f1_macro);
        close(&name, "hamming", got.hamming, want.hamming);
        close(&name, "subset_acc", got.subset_acc, want.subset_acc);
        close(&name, "iou", got.iou, want.iou);
        close(&name, "dice", got.dice, want.dice);
        close_option(&name, "pearson_r", got.pearson_r, want.pearson_r);
        for (c, class) in got.per_class.iter().enumerate() {
            close(&name, "precision", class.precision, want.precision[c]);
            close(&name, "recall", class.recall, want.recall[c]);
            close(&name, "f1", class.f1, want.f1[c]);
            close_option(&name, "auroc", class.auroc, want.auroc[c]);
            close_option(&name, "ap", class.ap, want.ap[c]);
            assert_eq!(
                [class.tp, class.fp, class.fn_, class.tn],
                want.confusion[c],
                "{name}"
            );
        }
        want.more.check(&name, &target, &table, &got);
        close(
            &name,
            "constant",
            best_constant(&target, &table).unwrap().f1_micro,
            want.constant_f1_micro,
        );
    }
}

#[derive(Deserialize)]
struct OneOfCase {
    name: String,
    labels: Vec<u64>,
    probs: Vec<Vec<f32>>,
    expected: OneOfExpected,
}

#[derive(Deserialize)]
struct OneOfExpected {
    accuracy: f64,
    kappa: Option<f64>,
    confusion: Vec<Vec<u64>>,
    f1_micro: f64,
    f1_macro: f64,
    hamming: f64,
    pearson_r: Option<f64>,
    precision: Vec<f64>,
    recall: Vec<f64>,
    f1: Vec<f64>,
    auroc: Vec<Option<f64>>,
    ap: Vec<Option<f64>>,
    constant_f1_micro: f64,
    #[serde(flatten)]
    more: More,
}

#[test]
fn scikit_learn_agrees_on_one_class_per_sample() {
    let cases: Vec<OneOfCase> =
        serde_json::from_str(include_str!("../../../tests/golden/metrics_one_of.json"))
            .expect("the stored numbers parse");
    assert!(cases.len() >= 5);
    for case in cases {
        let (name, want) = (&case.name, &case.expected);
        let target = grade(case.probs[0].len());
        let mut table = Table::default();
        for (id, (&label, probs)) in case.labels.iter().zip(&case.probs).enumerate() {
            table.push(id as u64, Label(label), probs);
        }
        let got = compute(&target, &table, &[], 0.0).unwrap();
        let agreement = got.agreement.as_ref().unwrap();
        close(name, "accuracy", agreement.accuracy, want.accuracy);
        close_option(name, "kappa", agreement.kappa, want.kappa);
        assert_eq!(agreement.confusion, want.confusion, "{name}");
        close(name, "f1_micro", got.f1_micro, want.f1_micro);
        close(name, "f1_macro", got.f1_macro, want.f1_macro);
        close(name, "hamming", got.hamming, want.hamming);
        close_option(name, "pearson_r", got.pearson_r, want.pearson_r);
        for (c, class) in got.per_class.iter().enumerate() {
            close(name, "precision", class.precision, want.precision[c]);
            close(name, "recall", class.recall, want.recall[c]);
            close(name, "f1", class.f1, want.f1[c]);
            close_option(name, "auroc", class.auroc, want.auroc[c]);
            close_option(name, "ap", class.ap, want.ap[c]);
        }
        want.more.check(name, &target, &table, &got);
        let constant = best_constant(&target, &table).unwrap();
        close(name, "constant", constant.f1_micro, want.constant_f1_micro);
    }
}
