//! Scores of a target's predictions: exact definitions, and how they are logged.
//!
//! [`compute`] takes one row per sample, gathered from all ranks, and gives the same bits for any
//! order of the rows: it sorts them by id first, counts are integers, and the few floating-point
//! sums run in id order. A sample that appears twice is an error, not a weight. A sample without a
//! label ([`Label::UNKNOWN`](fovea_task::Label::UNKNOWN)) counts in no score.
//!
//! Everything here is pure except [`log`], the thin shell that appends to `metrics.csv`.
//!
//! Conventions, equal to scikit-learn's where it has one (the tests compare with numbers stored by
//! `tests/golden/metrics.py`):
//! - [`Kind::AnyOf`](fovea_task::Kind::AnyOf): a class is predicted when its probability is `>=` the class's threshold;
//!   [`Kind::OneOf`](fovea_task::Kind::OneOf): the class of the highest probability is predicted, the first of equal ones;
//! - scores of sets (micro-F1, subset accuracy, IoU, Dice) read the one class of a `OneOf` target as a set of one, so all
//!   of them equal the accuracy; its Hamming loss is the share of wrong samples; macro-F1 is over all classes;
//! - precision, recall and F1 with a zero denominator are 0 (`zero_division=0`);
//! - IoU (Jaccard) and Dice are averaged over samples; a sample with no class in truth **and** none
//!   in the prediction counts as 1 (`zero_division=1`), since healthy-and-called-healthy is right;
//! - AUROC is the rank statistic with ties counted half (Mann-Whitney U / (P*N));
//! - average precision is the step-wise sum of `(R_n - R_(n-1)) * P_n` over distinct scores;
//! - what the labels leave undefined (AUROC of a class with one kind of label, average precision of
//!   a class with no positive, Pearson r of a constant) is `None`: skip it.

#![cfg_attr(
    test,
    expect(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

mod baseline;
mod classification;
mod columns;
mod compute;
mod counts;
pub mod curves;
mod error;
pub mod log;
mod ranking;
mod table;
mod trend;
mod undefined;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod golden;

pub use baseline::{Baseline, best_constant, best_constant_from_counts};
pub use classification::{
    AurocAverages, Averages, ClassDetail, Classification, classification_report,
};
pub use compute::{compute, predicted};
pub use counts::{Overlap, SetCounts};
pub use error::{Error, Result};
pub use ranking::Ranking;
pub use table::Table;
pub use trend::Quadratic;
pub use undefined::{LabelCounts, never_defined, poor, undefined};

use fovea_dataset::Split;
use fovea_task::{Target, Task};
use serde::{Deserialize, Serialize};

pub use crate::config::{Level, MetricName};

/// Scores of one class against the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// `tp / (tp + fp)`, 0 when nothing was predicted.
    pub precision: f64,
    /// `tp / (tp + fn)`, 0 when there is no positive.
    pub recall: f64,
    /// `2 tp / (2 tp + fp + fn)`, 0 when the denominator is.
    pub f1: f64,
    /// Area under the ROC curve; `None` without both positives and negatives.
    pub auroc: Option<f64>,
    /// Average precision; `None` without positives.
    pub ap: Option<f64>,
    /// Samples with the class that are predicted to have it.
    pub tp: u64,
    /// Samples without the class that are predicted to have it.
    pub fp: u64,
    /// Samples with the class that are predicted not to have it.
    #[serde(rename = "fn")]
    pub fn_: u64,
    /// Samples without the class that are predicted not to have it.
    pub tn: u64,
    /// Samples that carry the class: `tp + fn`.
    pub positives: u64,
}

impl ClassMetrics {
    /// The threshold scores that follow from the four counts; areas are left `None`.
    #[must_use]
    pub fn from_counts(tp: u64, fp: u64, fn_: u64, tn: u64) -> Self {
        Self {
            precision: ratio(tp, tp + fp),
            recall: ratio(tp, tp + fn_),
            f1: ratio(2 * tp, 2 * tp + fp + fn_),
            auroc: None,
            ap: None,
            tp,
            fp,
            fn_,
            tn,
            positives: tp + fn_,
        }
    }
}

/// Scores that only a target with exactly one class per sample has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Share of samples whose class is predicted.
    pub accuracy: f64,
    /// Cohen's kappa, unweighted: `(accuracy - chance) / (1 - chance)`; `None` when truth and prediction are one and the
    /// same class throughout.
    pub kappa: Option<f64>,
    /// Samples by true class (row) and predicted class (column), `[C][C]`.
    pub confusion: Vec<Vec<u64>>,
}

/// Scores of one target on one split after one epoch. All are fractions except `loss` and `samples`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// F1 of the counts pooled over classes.
    pub f1_micro: f64,
    /// Mean of the per-class F1.
    pub f1_macro: f64,
    /// Fraction of wrong class bits, or, with exactly one class per sample, of wrong samples (lower is better).
    pub hamming: f64,
    /// Fraction of samples with every class right.
    pub subset_acc: f64,
    /// Jaccard index averaged over samples; both sets empty counts as 1.
    pub iou: f64,
    /// Dice coefficient averaged over samples; both sets empty counts as 1.
    pub dice: f64,
    /// Correlation of probabilities and labels over all (sample, class) pairs; `None` when either
    /// side is constant.
    pub pearson_r: Option<f64>,
    /// Mean loss per sample, as the caller measured it.
    pub loss: f64,
    /// Per class, in class order.
    pub per_class: Vec<ClassMetrics>,
    /// Mean of the defined per-class AUROCs.
    pub mean_auroc: Option<f64>,
    /// Mean of the defined per-class average precisions.
    pub mean_ap: Option<f64>,
    /// Labelled samples that were scored.
    pub samples: u64,
    /// `None` where a sample has any number of classes.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

impl Metrics {
    /// The score that a configuration names; `None` when the labels leave it undefined.
    #[must_use]
    pub fn get(&self, name: MetricName) -> Option<f64> {
        match name {
            MetricName::F1Micro => Some(self.f1_micro),
            MetricName::F1Macro => Some(self.f1_macro),
            MetricName::MeanAuroc => self.mean_auroc,
            MetricName::MeanAp => self.mean_ap,
            MetricName::Hamming => Some(self.hamming),
            MetricName::SubsetAcc => Some(self.subset_acc),
            MetricName::Iou => Some(self.iou),
            MetricName::Dice => Some(self.dice),
            MetricName::PearsonR => self.pearson_r,
            MetricName::Loss => Some(self.loss),
        }
    }
}

/// One row of `metrics.csv`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsRow {
    /// RFC 3339, given by the caller: this module has no clock.
    pub timestamp: String,
    /// Epoch the scores were taken after, in the trainer's count.
    pub epoch: u32,
    /// Part of the dataset that was scored.
    pub split: Split,
    /// Name of the target that was scored; it stands in the column `level`.
    pub target: String,
    /// All scores of the target after that epoch.
    pub metrics: Metrics,
}

/// A task's targets in the order of tables, patches before images, each with its index in the task.
pub fn table_order(task: &Task) -> impl Iterator<Item = (usize, &Target)> {
    let of = |level: &'static Level| {
        let targets = task.targets().iter().enumerate();
        targets.filter(move |(_, target)| target.level == *level)
    };
    Level::ALL.iter().flat_map(of)
}

/// The target whose metric is watched where a configuration names `level`: the first one there, and its index in the task.
#[must_use]
pub fn watched(task: &Task, level: Level) -> Option<(usize, &Target)> {
    table_order(task).find(|(_, target)| target.level == level)
}

/// The names of all classes of a task, once each, in order of first appearance: the columns of tables over targets.
#[must_use]
pub fn class_names(task: &Task) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for class in table_order(task).flat_map(|(_, target)| &target.classes) {
        if !names.contains(&class.name.as_str()) {
            names.push(&class.name);
        }
    }
    names
}

/// `a / b`, and 0 for an empty denominator.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Mean of the defined values, `None` when there is none.
fn mean_defined(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let defined: Vec<f64> = values.flatten().collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}
