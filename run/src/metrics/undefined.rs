//! Why the labels of a set leave a metric undefined, in words. Pure.

use fovea_dataset::CLASSES;

use super::{CLASS_COUNT, Level, MetricName, Metrics};

/// How often each class is there among the samples of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelCounts {
    /// Samples that carry the class, in class order.
    pub positives: [u64; CLASS_COUNT],
    /// Samples.
    pub samples: u64,
}

impl LabelCounts {
    /// Counts label bytes.
    pub fn of(labels: impl IntoIterator<Item = u8>) -> Self {
        let mut counts = Self::default();
        for label in labels {
            counts.samples += 1;
            for (class, n) in counts.positives.iter_mut().enumerate() {
                *n += u64::from(label >> class & 1);
            }
        }
        counts
    }

    /// Those of the samples that were scored.
    #[must_use]
    pub fn scored(metrics: &Metrics) -> Self {
        Self {
            positives: metrics.per_class.map(|class| class.positives),
            samples: metrics.samples,
        }
    }

    fn classes(&self, which: impl Fn(u64) -> bool) -> Vec<&'static str> {
        let classes = CLASSES.iter().zip(self.positives);
        let chosen = classes.filter(|(_, positives)| which(*positives));
        chosen.map(|(class, _)| *class).collect()
    }
}

/// Why `metric` is undefined on a validation split of these labels whatever a model answers; nothing when it can be
/// defined.
#[must_use]
pub fn never_defined(metric: MetricName, level: Level, labels: &LabelCounts) -> Option<String> {
    let (samples, all) = (labels.samples, labels.samples * CLASS_COUNT as u64);
    let things = things(level);
    let there: u64 = labels.positives.iter().sum();
    let none = || format!("none of the {samples} {things} has a lesion of any class");
    match metric {
        _ if samples == 0 => Some(format!("there are no {things}")),
        MetricName::MeanAuroc if ranked(labels) == 0 => Some(format!(
            "an AUROC needs {things} with the class and without it, and {}",
            match there {
                0 => none(),
                _ => one_kind(labels, things),
            }
        )),
        MetricName::MeanAp if there == 0 => Some(format!(
            "an average precision needs {things} with the class, and {}",
            none()
        )),
        MetricName::PearsonR if there == 0 => Some(format!(
            "a correlation needs labels that differ, and {}",
            none()
        )),
        MetricName::PearsonR if there == all => Some(format!(
            "a correlation needs labels that differ, and all {samples} {things} have lesions of every class"
        )),
        _ => None,
    }
}

/// Classes that have an AUROC.
fn ranked(labels: &LabelCounts) -> usize {
    labels
        .classes(|positives| positives > 0 && positives < labels.samples)
        .len()
}

fn one_kind(labels: &LabelCounts, things: &str) -> String {
    let samples = labels.samples;
    let part = |classes: Vec<&str>, how: &str| match classes.len() {
        0 => None,
        _ => Some(format!("{} in {how}", classes.join(", "))),
    };
    let parts = [
        part(labels.classes(|positives| positives == 0), "none"),
        part(labels.classes(|positives| positives == samples), "all"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!(
        "of the {samples} {things}, there are {}",
        parts.join(" and ")
    )
}

/// Why `metric` has no value in `metrics`; nothing when it has one.
#[must_use]
pub fn undefined(metric: MetricName, level: Level, metrics: &Metrics) -> Option<String> {
    match metrics.get(metric) {
        Some(value) if value.is_finite() => None,
        Some(value) => Some(format!("it is {value}")),
        None => Some(
            never_defined(metric, level, &LabelCounts::scored(metrics)).unwrap_or_else(|| {
                format!(
                    "the model gives one and the same probability to all {} {} and classes",
                    metrics.samples,
                    things(level)
                )
            }),
        ),
    }
}

/// What is worth knowing of a metric that has a value: classes that its mean leaves out, or that it is the same whatever
/// a model answers.
#[must_use]
pub fn poor(metric: MetricName, level: Level, labels: &LabelCounts) -> Option<String> {
    let (samples, things) = (labels.samples, things(level));
    let left_out = |classes: &[&str], why: &str| {
        (!classes.is_empty()).then(|| {
            let classes = classes.join(", ");
            format!(
                "{metric} at {level} level leaves out {classes}: {why} of the {samples} {things}"
            )
        })
    };
    match metric {
        MetricName::MeanAuroc => left_out(
            &labels.classes(|positives| positives == 0 || positives == samples),
            "in none, or in all,",
        ),
        MetricName::MeanAp => left_out(&labels.classes(|positives| positives == 0), "in none"),
        MetricName::F1Micro | MetricName::F1Macro if labels.positives == [0; CLASS_COUNT] => {
            Some(format!(
                "{metric} at {level} level is 0 whatever the model answers, so the first epoch counts as the best: none of the {samples} {things} has a lesion of any class"
            ))
        }
        _ => None,
    }
}

fn things(level: Level) -> &'static str {
    match level {
        Level::Patch => "val patches",
        Level::Image => "val images",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{Scored, compute};

    proptest! {
        /// What the labels alone forbid is never computed, and what they allow is computed for probabilities that differ.
        #[test]
        fn labels_decide_as_the_metrics_do(
            labels in prop::collection::vec(prop::sample::select(vec![0u8, 1, 5, 15]), 1..6),
            constant in any::<bool>(),
        ) {
            let rows: Vec<Scored> = labels
                .iter()
                .enumerate()
                .map(|(id, &label)| Scored {
                    id: id as u64,
                    label,
                    probs: match constant {
                        true => [0.5; 4],
                        false => std::array::from_fn(|c| (4 * id + c) as f32 / 64.0),
                    },
                })
                .collect();
            let metrics = compute(&rows, [0.5; 4], 0.1).unwrap();
            let counts = LabelCounts::of(labels.iter().copied());
            prop_assert_eq!(LabelCounts::scored(&metrics), counts);
            for &metric in MetricName::ALL {
                let never = never_defined(metric, Level::Patch, &counts);
                let why = undefined(metric, Level::Patch, &metrics);
                prop_assert_eq!(metrics.get(metric).is_none(), why.is_some(), "{}", metric);
                let by_the_model = metric == MetricName::PearsonR && constant;
                prop_assert!(never.is_some() == why.is_some() || by_the_model, "{metric}: {never:?} {why:?}");
                prop_assert!(never.is_none() || why == never);
            }
        }
    }

    #[test]
    fn the_reason_names_classes_and_numbers() {
        let counts = LabelCounts::of([0b0001, 0b0001]);
        assert_eq!(
            never_defined(MetricName::MeanAuroc, Level::Image, &counts).unwrap(),
            "an AUROC needs val images with the class and without it, and of the 2 val images, there are HE, EX, SE in none and MA in all"
        );
        assert_eq!(
            never_defined(MetricName::MeanAp, Level::Image, &counts),
            None
        );
        assert_eq!(
            poor(MetricName::MeanAp, Level::Image, &counts).unwrap(),
            "mean_ap at image level leaves out HE, EX, SE: in none of the 2 val images"
        );
        let empty = LabelCounts::default();
        for &metric in MetricName::ALL {
            let why = never_defined(metric, Level::Patch, &empty);
            assert_eq!(why.unwrap(), "there are no val patches");
        }
        let healthy = LabelCounts::of([0; 7]);
        let why = never_defined(MetricName::MeanAuroc, Level::Patch, &healthy).unwrap();
        assert!(
            why.contains("none of the 7 val patches has a lesion"),
            "{why}"
        );
        assert!(poor(MetricName::F1Micro, Level::Patch, &healthy).is_some());
        assert!(poor(MetricName::Iou, Level::Patch, &healthy).is_none());
    }
}
