//! The objective of a run: a loss per head, its weight, and the number of rows that each is a mean over.

use std::sync::Arc;

use fovea_coordinator::order::Unit;
use fovea_dataset::Split;
use fovea_kernels::loss::{LOSSES, Loss, LossEntry, LossSettings};
use fovea_run::config::{Alpha, LossConfig, PosWeight};
use fovea_run::metrics::LabelCounts;
use fovea_task::{Level, Target, Task};

use crate::error::{Error, Result};
use crate::samples::SampleSource;

/// The weighted sum over the heads of their rows' mean loss. One entry per target of the task, in its order.
pub type Objective = Vec<HeadLoss>;

/// The loss of one head.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// Whether each image or each patch has one row of its logits.
    pub level: Level,
    /// The loss of its rows.
    pub loss: Arc<dyn Loss>,
    /// Its weight in the objective.
    pub weight: f32,
}

/// Labelled rows of a step over all ranks, for each head. Sums are divided by these *global* numbers, which keeps uneven
/// tails exact. Rows without a label are in no sum and so in no number.
#[derive(Clone, Debug)]
pub struct Denominators {
    rows: Vec<u64>,
}

impl Denominators {
    /// The number of labelled rows of the global batch for each target, in the task's order.
    pub fn new(rows: Vec<u64>) -> Self {
        Self { rows }
    }

    /// Those of a global batch of these units.
    pub fn of(source: &SampleSource, units: &[Unit]) -> Self {
        let known = |target| {
            let labels = units.iter().flat_map(|unit| source.labels(target, unit));
            labels.filter(|label| label.is_known()).count() as u64
        };
        Self::new((0..source.task().targets().len()).map(known).collect())
    }

    /// Those of a batch of so many images and patches that all have labels.
    pub fn all_labelled(task: &Task, images: usize, patches: u64) -> Self {
        let rows = |target: &Target| match target.level {
            Level::Image => images as u64,
            Level::Patch => patches,
        };
        Self::new(task.targets().iter().map(rows).collect())
    }

    /// Labelled rows of the global batch for target `head`; 1 where there are none, whose sums are 0.
    pub fn rows(&self, head: usize) -> u64 {
        self.rows.get(head).copied().unwrap_or(0).max(1)
    }
}

/// The row of the configured loss. Refuses a loss that does not exist, or that does not fit the task's kinds of target.
///
/// # Errors
/// [`Error::Usage`] with the losses that would do.
pub fn check(config: &LossConfig, task: &Task) -> Result<&'static LossEntry> {
    let usage = |what: String, help: String| Err(Error::Usage { what, help });
    let Some(entry) = LOSSES.iter().find(|entry| entry.name == config.kind) else {
        let known: Vec<&str> = LOSSES.iter().map(|entry| entry.name).collect();
        return usage(
            format!("loss.kind = {:?}: there is no such loss", config.kind),
            format!("known are: {}", known.join(", ")),
        );
    };
    for target in task.targets() {
        let Target { name, kind, .. } = target;
        if *kind != entry.kind {
            let fitting = LOSSES.iter().filter(|entry| entry.kind == *kind);
            let fitting: Vec<&str> = fitting.map(|entry| entry.name).collect();
            return usage(
                format!(
                    "loss.kind = {:?} is for {:?} labels, target `{name}` of the dataset has {kind:?} labels",
                    config.kind, entry.kind
                ),
                match fitting.is_empty() {
                    true => {
                        "there is no loss for such labels yet: prepare a dataset of another task"
                            .to_owned()
                    }
                    false => format!("losses for it are: {}", fitting.join(", ")),
                },
            );
        }
    }
    Ok(entry)
}

/// Sentences about keys that the configuration sets and the chosen loss does not read.
pub fn unread(config: &LossConfig, entry: &LossEntry) -> Vec<String> {
    let default = LossConfig::default();
    let set = [
        ("gamma", config.gamma != default.gamma),
        ("alpha", config.alpha != default.alpha),
        ("balance", config.balance != default.balance),
        (
            "positive_weight",
            config.positive_weight != default.positive_weight,
        ),
        (
            "negative_weight",
            config.negative_weight != default.negative_weight,
        ),
        ("pos_weight", config.pos_weight != default.pos_weight),
        ("beta", config.beta != default.beta),
        (
            "label_smoothing",
            config.label_smoothing != default.label_smoothing,
        ),
    ];
    let unread = set
        .iter()
        .filter(|(key, is_set)| *is_set && !entry.reads.contains(key));
    unread
        .map(|(key, _)| {
            format!(
                "loss.{key} is set and changes nothing: loss {:?} reads {} alone",
                entry.name,
                entry.reads.join(", ")
            )
        })
        .collect()
}

/// The configured loss of each target, with class weights from the training split's label counts.
///
/// # Errors
/// As [`check`]; settings that the loss refuses.
pub fn objective(config: &LossConfig, source: &SampleSource) -> Result<Objective> {
    let train = source.data().indices(Split::Train);
    let units: Vec<_> = train.into_iter().map(|i| source.whole_image(i)).collect();
    with_counts(config, source.task(), |index, target| {
        let labels = units.iter().flat_map(|unit| source.labels(index, unit));
        LabelCounts::of(target, labels)
    })
}

/// The configured loss of each target, as if all classes were equally frequent.
///
/// # Errors
/// As [`objective`].
pub fn unweighted(config: &LossConfig, task: &Task) -> Result<Objective> {
    let plain = LossConfig {
        alpha: Alpha::None,
        balance: false,
        pos_weight: PosWeight::None,
        ..config.clone()
    };
    with_counts(&plain, task, |_, target| LabelCounts {
        positives: vec![1; target.classes.len()],
        samples: 1,
    })
}

fn with_counts(
    config: &LossConfig,
    task: &Task,
    counts: impl Fn(usize, &Target) -> LabelCounts,
) -> Result<Objective> {
    let entry = check(config, task)?;
    let balance = |weight: f32| if config.balance { weight } else { 1.0 };
    let head = |(index, target): (usize, &Target)| {
        let (counts, classes) = (counts(index, target), target.classes.len());
        let settings = LossSettings {
            gamma: config.gamma,
            alpha: match &config.alpha {
                Alpha::InverseFrequency => inverse_frequency(&counts.positives),
                Alpha::None => vec![1.0; classes],
                Alpha::Weights(weights) => weights.to_vec(),
            },
            positive_weight: balance(config.positive_weight),
            negative_weight: balance(config.negative_weight),
            pos_weight: match &config.pos_weight {
                PosWeight::None => vec![1.0; classes],
                PosWeight::Balanced => balanced(&counts),
                PosWeight::Factors(factors) => factors.to_vec(),
            },
            label_smoothing: config.label_smoothing,
            beta: config.beta,
            positives: counts.positives,
        };
        Ok(HeadLoss {
            level: target.level,
            loss: (entry.build)(&settings)?,
            weight: match target.level {
                Level::Image => 1.0,
                Level::Patch => config.patch_weight,
            },
        })
    };
    task.targets().iter().enumerate().map(head).collect()
}

/// `alpha_c` proportional to `1 / count_c`, with mean 1. A class that never occurs weighs as much as the rarest one
/// that does.
fn inverse_frequency(counts: &[u64]) -> Vec<f32> {
    let rarest = counts.iter().copied().filter(|&n| n > 0).min().unwrap_or(1);
    let inverse = counts
        .iter()
        .map(|&n| 1.0 / if n == 0 { rarest } else { n } as f64);
    let mean = inverse.clone().sum::<f64>() / counts.len() as f64;
    inverse.map(|a| (a / mean) as f32).collect()
}

/// Samples without the class per sample with it. 1 for a class that never occurs, whose factor multiplies nothing.
fn balanced(counts: &LabelCounts) -> Vec<f32> {
    let factor = |&n: &u64| match n {
        0 => 1.0,
        n => (counts.samples.saturating_sub(n) as f64 / n as f64) as f32,
    };
    counts.positives.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use fovea_task::{Kind, Label};

    use super::*;

    #[test]
    fn rare_classes_weigh_more_and_the_mean_is_one() {
        let alpha = inverse_frequency(&[11_993, 28_829, 17_647, 3_448]);
        assert!((alpha.iter().sum::<f32>() - 4.0).abs() < 1e-5);
        assert!(alpha[3] > alpha[0] && alpha[0] > alpha[2] && alpha[2] > alpha[1]);
        assert!((alpha[0] / alpha[1] - 28_829.0 / 11_993.0).abs() < 1e-4);
        let absent = inverse_frequency(&[10, 20, 40, 0]);
        assert_eq!(absent[3], absent[0]);
    }

    #[test]
    fn a_loss_that_does_not_fit_the_task_is_refused_with_what_does() {
        let lesions = Task::lesions();
        let focal = LossConfig::default();
        assert!(check(&focal, &lesions).is_ok());
        let refused = |config: &LossConfig, task: &Task, words: &[&str]| {
            let text = check(config, task)
                .expect_err("it does not fit")
                .to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        let unknown = LossConfig {
            kind: "focus".to_owned(),
            ..focal.clone()
        };
        refused(&unknown, &lesions, &["\"focus\"", "known are: ", "focal"]);

        let grades = grades();
        refused(
            &focal,
            &grades,
            &["AnyOf", "target `image`", "OneOf", "cross_entropy"],
        );
        let softmax = named("cross_entropy");
        assert!(check(&softmax, &grades).is_ok());
        refused(&softmax, &lesions, &["focal, bce, class_balanced"]);
    }

    fn named(kind: &str) -> LossConfig {
        LossConfig {
            kind: kind.to_owned(),
            ..LossConfig::default()
        }
    }

    fn grades() -> Task {
        let mut grade = Task::lesions().targets()[0].clone();
        (grade.kind, grade.union_of_cells) = (Kind::OneOf, false);
        Task::new(vec![grade]).expect("a task")
    }

    #[test]
    fn keys_that_a_loss_does_not_read_are_named() {
        let entry = |name: &str| {
            let found = LOSSES.iter().find(|entry| entry.name == name);
            *found.expect("a loss")
        };
        for entry in LOSSES {
            assert_eq!(unread(&named(entry.name), entry), Vec::<String>::new());
            for key in entry.reads {
                let is_key = fovea_run::config::keys::find("loss", key).is_some();
                assert!(is_key, "{} reads loss.{key}", entry.name);
            }
        }
        let smooth = LossConfig {
            label_smoothing: 0.1,
            gamma: 1.0,
            ..named("bce")
        };
        assert_eq!(
            unread(&smooth, entry("bce")),
            [
                "loss.gamma is set and changes nothing: loss \"bce\" reads alpha, pos_weight alone",
                "loss.label_smoothing is set and changes nothing: loss \"bce\" reads alpha, pos_weight alone",
            ]
        );
        assert_eq!(unread(&smooth, entry("cross_entropy")).len(), 1);
        assert_eq!(unread(&smooth, entry("class_balanced")).len(), 1);
    }

    /// Each setting reaches the loss that reads it: the gradient of one row changes as its formula says.
    #[test]
    fn weights_follow_from_the_labels_of_the_training_split() {
        let gradient = |config: &LossConfig, task: &Task, label: u64| {
            let counts = |_: usize, target: &Target| LabelCounts {
                positives: [80, 20, 10, 0][..target.classes.len()].to_vec(),
                samples: 100,
            };
            let objective = with_counts(config, task, counts).expect("an objective");
            let mut dlogits = vec![0.0; 4];
            let loss = objective[0]
                .loss
                .host(&[0.0; 4], &[Label(label)], 1.0, &mut dlogits);
            loss.expect("a loss");
            dlogits
        };
        let lesions = Task::lesions();
        let plain = LossConfig {
            alpha: Alpha::None,
            ..named("bce")
        };
        assert_eq!(gradient(&plain, &lesions, 0b1011), [-0.5, -0.5, 0.5, -0.5]);
        let balanced = LossConfig {
            pos_weight: PosWeight::Balanced,
            ..plain.clone()
        };
        // 20 / 80 and 80 / 20 of a half; a class that never occurs counts once.
        let want = [-0.125, -2.0, 0.5, -0.5];
        assert_eq!(gradient(&balanced, &lesions, 0b1011), want);
        let factors = LossConfig {
            pos_weight: PosWeight::Factors(vec![3.0, 1.0, 1.0, 2.0]),
            ..plain.clone()
        };
        assert_eq!(
            gradient(&factors, &lesions, 0b1011),
            [-1.5, -0.5, 0.5, -1.0]
        );
        let effective = LossConfig {
            gamma: 0.0,
            ..named("class_balanced")
        };
        let got = gradient(&effective, &lesions, 0);
        assert!(
            (got.iter().sum::<f32>() - 2.0).abs() < 1e-6,
            "mean weight 1"
        );
        assert!(
            got[0] < got[1] && got[1] < got[2] && got[2] == got[3],
            "{got:?}"
        );
        let smooth = LossConfig {
            label_smoothing: 0.2,
            alpha: Alpha::None,
            ..named("cross_entropy")
        };
        let got = gradient(&smooth, &grades(), 2);
        for (got, want) in got.iter().zip([0.2, 0.2, -0.6, 0.2]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn rows_without_a_label_are_in_no_denominator() {
        let rows = Denominators::new(vec![3, 0]);
        assert_eq!([rows.rows(0), rows.rows(1)], [3, 1]);
        let all = Denominators::all_labelled(&Task::lesions(), 4, 60);
        assert_eq!([all.rows(0), all.rows(1)], [4, 60]);
    }
}
