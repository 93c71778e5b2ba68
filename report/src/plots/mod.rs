//! Which charts a run has, and what is on each.

mod confusion;
mod curves;
mod epochs;
mod steps;

pub(super) use confusion::{confusion, grouped};
pub(super) use curves::{precision_recall, roc};
pub(super) use epochs::over_epochs;
pub(super) use steps::{speed, training};

use fovea_run::config::MetricName;
use fovea_task::{Level, Target};

use super::chart::{Axis, Count};

/// The name that a reader knows a metric by.
pub(super) fn metric_title(metric: MetricName) -> &'static str {
    match metric {
        MetricName::F1Micro => "Micro F1",
        MetricName::F1Macro => "Macro F1",
        MetricName::MeanAuroc => "Mean AUROC",
        MetricName::MeanAp => "Mean average precision",
        MetricName::Hamming => "Hamming loss",
        MetricName::SubsetAcc => "Subset accuracy",
        MetricName::Iou => "IoU",
        MetricName::Dice => "Dice",
        MetricName::PearsonR => "Pearson r",
        MetricName::Loss => "Loss",
    }
}

/// `patches` or `images`, with the target's name unless it is that of its level.
pub(super) fn noun(target: &Target) -> String {
    let things = match target.level {
        Level::Patch => "patches",
        Level::Image => "images",
    };
    match target.name == target.level.name() {
        true => things.to_owned(),
        false => format!("{things} ({})", target.name),
    }
}

/// The target's name as a part of file names and of anchors on the page.
pub(super) fn slug(target: &Target) -> String {
    let plain = |c: char| {
        if c.is_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    target.name.chars().map(plain).collect()
}

fn unit_axis(label: &'static str) -> Axis {
    Axis {
        min: 0.0,
        max: 1.0,
        label,
        count: Count::Real,
    }
}

/// An axis over whole numbers; a single one gets room on both sides.
fn whole_axis(values: impl Iterator<Item = f64>, label: &'static str) -> Axis {
    let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| {
        (lo.min(v), hi.max(v))
    });
    let (min, max) = if !(min.is_finite() && max.is_finite()) {
        (0.0, 1.0)
    } else if min == max {
        (min - 0.5, max + 0.5)
    } else {
        (min, max)
    };
    Axis {
        min,
        max,
        label,
        count: Count::Whole,
    }
}
