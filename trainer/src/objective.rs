//! The objective of a run: a loss per head, its weight, and the number of rows that each is a mean over.

use std::sync::Arc;

use fovea_dataset::Split;
use fovea_kernels::loss::{LOSSES, Loss, LossEntry, LossSettings};
use fovea_run::config::{Alpha, LossConfig};
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

/// Rows of a step over all ranks. Sums are divided by these *global* numbers, which keeps uneven tails exact.
#[derive(Clone, Copy, Debug)]
pub struct Denominators {
    /// Images of the global batch.
    pub images: usize,
    /// Patches of the global batch.
    pub patches: u64,
}

impl Denominators {
    /// Rows of the global batch at `level`.
    pub fn rows(self, level: Level) -> u64 {
        match level {
            Level::Image => self.images as u64,
            Level::Patch => self.patches,
        }
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

/// The configured loss of each target, with class weights from the training split's label counts.
///
/// # Errors
/// As [`check`]; settings that the loss refuses.
pub fn objective(config: &LossConfig, source: &SampleSource) -> Result<Objective> {
    let train = source.data().indices(Split::Train);
    let units: Vec<_> = train.into_iter().map(|i| source.whole_image(i)).collect();
    with_counts(config, source.task(), |index, target| {
        let mut counts = vec![0u64; target.classes.len()];
        for label in units.iter().flat_map(|unit| source.labels(index, unit)) {
            for (class, count) in counts.iter_mut().enumerate() {
                *count += u64::from(target.has(label, class));
            }
        }
        counts
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
        ..config.clone()
    };
    with_counts(&plain, task, |_, _| Vec::new())
}

fn with_counts(
    config: &LossConfig,
    task: &Task,
    counts: impl Fn(usize, &Target) -> Vec<u64>,
) -> Result<Objective> {
    let entry = check(config, task)?;
    let balance = |weight: f32| if config.balance { weight } else { 1.0 };
    let head = |(index, target): (usize, &Target)| {
        let settings = LossSettings {
            gamma: config.gamma,
            alpha: match &config.alpha {
                Alpha::InverseFrequency => inverse_frequency(&counts(index, target)),
                Alpha::None => vec![1.0; target.classes.len()],
                Alpha::Weights(weights) => weights.to_vec(),
            },
            pos_weight: balance(config.positive_weight),
            neg_weight: balance(config.negative_weight),
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

#[cfg(test)]
mod tests {
    use fovea_task::Kind;

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

        let mut grade = lesions.targets()[0].clone();
        (grade.kind, grade.union_of_cells) = (Kind::OneOf, false);
        let grades = Task::new(vec![grade]).expect("a task");
        refused(&focal, &grades, &["AnyOf", "target `image`", "OneOf"]);
    }
}
