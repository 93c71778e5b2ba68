//! Why the labels of a set leave a metric undefined, in words. Pure.

use fovea_task::{Label, Level, Target};

use super::{MetricName, Metrics};

/// How often each class is there among the labelled samples of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelCounts {
    /// Samples that carry the class, in class order.
    pub positives: Vec<u64>,
    /// Samples that have a label.
    pub samples: u64,
}

impl LabelCounts {
    /// Counts labels of `target`.
    pub fn of(target: &Target, labels: impl IntoIterator<Item = Label>) -> Self {
        let mut counts = Self {
            positives: vec![0; target.classes.len()],
            samples: 0,
        };
        for label in labels.into_iter().filter(|label| label.is_known()) {
            counts.samples += 1;
            for (class, n) in counts.positives.iter_mut().enumerate() {
                *n += u64::from(target.has(label, class));
            }
        }
        counts
    }

    /// Those of the samples that were scored.
    #[must_use]
    pub fn scored(metrics: &Metrics) -> Self {
        let classes = metrics.per_class.iter();
        Self {
            positives: classes.map(|class| class.positives).collect(),
            samples: metrics.samples,
        }
    }

    fn classes<'a>(&self, target: &'a Target, which: impl Fn(u64) -> bool) -> Vec<&'a str> {
        let classes = target.classes.iter().zip(&self.positives);
        let chosen = classes.filter(|(_, positives)| which(**positives));
        chosen.map(|(class, _)| class.name.as_str()).collect()
    }
}

/// Why `metric` is undefined on a validation split of these labels whatever a model answers; nothing when it can be
/// defined.
#[must_use]
pub fn never_defined(metric: MetricName, target: &Target, labels: &LabelCounts) -> Option<String> {
    let (samples, all) = (labels.samples, labels.samples * target.classes.len() as u64);
    let things = things(target);
    let there: u64 = labels.positives.iter().sum();
    let none = || format!("none of the {samples} {things} has {}", something(target));
    match metric {
        _ if samples == 0 => Some(format!("there are no {things}")),
        MetricName::MeanAuroc if labels.classes(target, |n| n > 0 && n < samples).is_empty() => {
            Some(format!(
                "an AUROC needs {things} with the class and without it, and {}",
                match there {
                    0 => none(),
                    _ => one_kind(labels, target),
                }
            ))
        }
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

fn one_kind(labels: &LabelCounts, target: &Target) -> String {
    let (samples, things) = (labels.samples, things(target));
    let part = |classes: Vec<&str>, how: &str| match classes.len() {
        0 => None,
        _ => Some(format!("{} in {how}", classes.join(", "))),
    };
    let parts = [
        part(labels.classes(target, |positives| positives == 0), "none"),
        part(
            labels.classes(target, |positives| positives == samples),
            "all",
        ),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!(
        "of the {samples} {things}, there are {}",
        parts.join(" and ")
    )
}

/// Why `metric` has no value in `metrics`; nothing when it has one.
#[must_use]
pub fn undefined(metric: MetricName, target: &Target, metrics: &Metrics) -> Option<String> {
    match metrics.get(metric) {
        Some(value) if value.is_finite() => None,
        Some(value) => Some(format!("it is {value}")),
        None => Some(
            never_defined(metric, target, &LabelCounts::scored(metrics)).unwrap_or_else(|| {
                format!(
                    "the model gives one and the same probability to all {} {} and classes",
                    metrics.samples,
                    things(target)
                )
            }),
        ),
    }
}

/// What is worth knowing of a metric that has a value: classes that its mean leaves out, or that it is the same whatever
/// a model answers.
#[must_use]
pub fn poor(metric: MetricName, target: &Target, labels: &LabelCounts) -> Option<String> {
    let (samples, things, level) = (labels.samples, things(target), target.level);
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
            &labels.classes(target, |positives| positives == 0 || positives == samples),
            "in none, or in all,",
        ),
        MetricName::MeanAp => left_out(
            &labels.classes(target, |positives| positives == 0),
            "in none",
        ),
        MetricName::F1Micro | MetricName::F1Macro if labels.positives.iter().all(|&n| n == 0) => {
            Some(format!(
                "{metric} at {level} level is 0 whatever the model answers, so the first epoch counts as the best: none of the {samples} {things} has {}",
                something(target)
            ))
        }
        _ => None,
    }
}

/// What a sample has that has a class: cells are labelled by the lesions in them.
fn something(target: &Target) -> &'static str {
    match target.level == Level::Patch || target.union_of_cells {
        true => "a lesion of any class",
        false => "any class",
    }
}

fn things(target: &Target) -> &'static str {
    match target.level {
        Level::Patch => "val patches",
        Level::Image => "val images",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::fixture::{grade, lesions};
    use crate::metrics::{Table, compute};
    use fovea_task::Task;

    proptest! {
        /// What the labels alone forbid is never computed, and what they allow is computed for probabilities that differ.
        #[test]
        fn labels_decide_as_the_metrics_do(
            labels in prop::collection::vec(prop::sample::select(vec![0u64, 1, 5, 15]), 1..6),
            constant in any::<bool>(),
        ) {
            for target in [lesions(), grade(16)] {
            let mut table = Table::default();
            for (id, &label) in labels.iter().enumerate() {
                let scores = (0..target.classes.len()).map(|c| match constant {
                    true => 0.5,
                    false => (4 * id + c) as f32 / 64.0,
                });
                table.push(id as u64, Label(label), &scores.collect::<Vec<_>>());
            }
            let thresholds = vec![0.5; target.classes.len()];
            let metrics = compute(&target, &table, &thresholds, 0.1).unwrap();
            let counts = LabelCounts::of(&target, table.labels.iter().copied());
            prop_assert_eq!(&LabelCounts::scored(&metrics), &counts);
            for &metric in MetricName::ALL {
                let never = never_defined(metric, &target, &counts);
                let why = undefined(metric, &target, &metrics);
                prop_assert_eq!(metrics.get(metric).is_none(), why.is_some(), "{}", metric);
                let by_the_model = metric == MetricName::PearsonR && constant;
                prop_assert!(never.is_some() == why.is_some() || by_the_model, "{metric}: {never:?} {why:?}");
                prop_assert!(never.is_none() || why == never);
            }
            }
        }
    }

    #[test]
    fn the_reason_names_classes_and_numbers() {
        let task = Task::lesions();
        let (image, cells) = (&task.targets()[0], task.cells().unwrap());
        let counts = LabelCounts::of(image, [Label(0b0001), Label(0b0001), Label::UNKNOWN]);
        assert_eq!(
            never_defined(MetricName::MeanAuroc, image, &counts).unwrap(),
            "an AUROC needs val images with the class and without it, and of the 2 val images, there are HE, EX, SE in none and MA in all"
        );
        assert_eq!(never_defined(MetricName::MeanAp, image, &counts), None);
        assert_eq!(
            poor(MetricName::MeanAp, image, &counts).unwrap(),
            "mean_ap at image level leaves out HE, EX, SE: in none of the 2 val images"
        );
        let empty = LabelCounts::default();
        for &metric in MetricName::ALL {
            let why = never_defined(metric, cells, &empty);
            assert_eq!(why.unwrap(), "there are no val patches");
        }
        let healthy = LabelCounts::of(cells, [Label(0); 7]);
        let why = never_defined(MetricName::MeanAuroc, cells, &healthy).unwrap();
        assert!(
            why.contains("none of the 7 val patches has a lesion"),
            "{why}"
        );
        assert!(poor(MetricName::F1Micro, cells, &healthy).is_some());
        assert!(poor(MetricName::Iou, cells, &healthy).is_none());
    }
}
