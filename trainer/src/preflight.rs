//! Checks a run before its first step: whether configuration and data can make one at all.
//!
//! Without these refusals every rank would fail after an epoch. Deciding is pure: [`RunFacts`] of the
//! splits in, an error or warnings out.

use fovea_coordinator::order::EpochOrder;
use fovea_dataset::{Dataset, Split};
use fovea_run::config::{Config, Level};
use fovea_run::metrics::{LabelCounts, never_defined, poor};

use crate::error::{Error, Result};
use crate::models;
use crate::objective;
use crate::samples::{non_black_cells, order_input};

/// When it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the first step: everything can still be chosen otherwise.
    Beginning,
    /// A run goes on as it was begun: only what makes that impossible is refused.
    GoingOn,
}

/// Refuses a run that cannot train or cannot be validated, and says what else is odd, a sentence each.
///
/// # Errors
/// [`Error::Usage`]: the training or the validation split is empty or all black; before the first step also a training
/// split that is smaller than one step, more virtual shards than it can fill, and a watched metric that the labels of
/// the validation split leave undefined.
pub fn preflight(config: &Config, data: &Dataset, moment: Moment) -> Result<Vec<String>> {
    objective::check(&config.loss, data.task())?;
    let model = models::find(&config.model.name)?;
    model.build(data.task())?;
    let input = order_input(data, model.grain, config);
    let units = EpochOrder::new(&input, 0)?.units().len();
    let facts = RunFacts {
        data: data.dir().display().to_string(),
        train: SplitFacts::of(config, data, Split::Train),
        val: SplitFacts::of(config, data, Split::Val),
        units,
    };
    decide(config, &facts, moment)
}

/// What is decided by.
#[derive(Clone, Debug)]
struct RunFacts {
    /// The dataset, for messages.
    data: String,
    train: SplitFacts,
    val: SplitFacts,
    /// Units of one epoch: an image with up to P of its patches each.
    units: usize,
}

/// A split as training and evaluation see it.
#[derive(Clone, Copy, Debug, Default)]
struct SplitFacts {
    /// Labels of its images.
    images: LabelCounts,
    /// Labels of its patches that are not black.
    patches: LabelCounts,
}

impl SplitFacts {
    fn of(config: &Config, data: &Dataset, split: Split) -> Self {
        let (mut images, mut patches) = (Vec::new(), Vec::new());
        for image in data.indices(split) {
            let labels = data.cell_labels(image, config.data.min_lesion_pixels);
            images.push(labels.iter().fold(0, |all, cell| all | cell));
            let cells = non_black_cells(data, image);
            patches.extend(cells.into_iter().map(|cell| labels[usize::from(cell)]));
        }
        Self {
            images: LabelCounts::of(images),
            patches: LabelCounts::of(patches),
        }
    }

    fn level(&self, level: Level) -> &LabelCounts {
        match level {
            Level::Patch => &self.patches,
            Level::Image => &self.images,
        }
    }
}

fn decide(config: &Config, facts: &RunFacts, moment: Moment) -> Result<Vec<String>> {
    let data = &facts.data;
    for (split, name) in [(&facts.train, "training"), (&facts.val, "validation")] {
        let why = if split.images.samples == 0 {
            "has no images"
        } else if split.patches.samples == 0 {
            "has no patch that is not black"
        } else {
            continue;
        };
        return Err(Error::Usage {
            what: format!(
                "{data}: the {name} split {why} ({} images in training, {} in validation)",
                facts.train.images.samples, facts.val.images.samples
            ),
            help:
                "`fovea data` shows the splits; prepare more images, so that each split gets some"
                    .to_owned(),
        });
    }
    let watched = &config.early_stopping;
    let labels = facts.val.level(watched.level);
    let mut odd: Vec<Error> = too_small(config, facts);
    if let Some(why) = never_defined(watched.metric, watched.level, labels) {
        odd.push(Error::Usage {
            what: format!(
                "early_stopping.metric = \"{}\" at early_stopping.level = \"{}\" can never be defined on the validation split of {data}: {why}",
                watched.metric, watched.level
            ),
            help: "watch another metric (f1_micro and loss are always defined) or the other level, or prepare a dataset whose validation split has lesions".to_owned(),
        });
    }
    let mut warnings: Vec<String> = poor(watched.metric, watched.level, labels)
        .into_iter()
        .collect();
    for error in odd {
        if moment == Moment::Beginning {
            return Err(error);
        }
        let text = error.to_string();
        warnings.extend(text.lines().next().map(str::to_owned));
    }
    Ok(warnings)
}

/// A training split that one step, or the virtual shards of a step, would exceed.
fn too_small(config: &Config, facts: &RunFacts) -> Vec<Error> {
    let RunFacts { data, units, .. } = facts;
    let (images, most) = (facts.train.images.samples, config.data.patches_per_image);
    let split = format!(
        "the training split of {data} has {units} units ({images} images, each in units of up to data.patches_per_image = {most} of its patches)"
    );
    let advice = "lower data.patches_per_image for more units, or prepare more images (each of these changes the result)";
    let (step, shards) = (config.train.images_per_step, config.train.virtual_shards);
    let mut errors = Vec::new();
    if step as usize > *units {
        errors.push(Error::Usage {
            what: format!("one step takes train.images_per_step = {step} units, and {split}"),
            help: format!("set train.images_per_step to at most {units}, {advice}"),
        });
    }
    if shards as usize > *units {
        errors.push(Error::Usage {
            what: format!(
                "a step is cut into train.virtual_shards = {shards} shards of at least one unit, and {split}"
            ),
            help: format!("set train.virtual_shards to at most {units}, {advice}"),
        });
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_run::config::MetricName;

    fn facts() -> RunFacts {
        let split = |images: &[u8], patches: &[u8]| SplitFacts {
            images: LabelCounts::of(images.iter().copied()),
            patches: LabelCounts::of(patches.iter().copied()),
        };
        RunFacts {
            data: "DATA".to_owned(),
            train: split(&[1, 0], &[1, 0, 0, 0]),
            val: split(&[3], &[0, 1, 2]),
            units: 8,
        }
    }

    fn refused(config: &Config, facts: &RunFacts) -> String {
        let error = decide(config, facts, Moment::Beginning).expect_err("refused");
        assert!(error.is_usage());
        error.to_string()
    }

    #[test]
    fn what_trains_passes() {
        let config = Config::default();
        assert_eq!(
            decide(&config, &facts(), Moment::Beginning).ok(),
            Some(vec![])
        );
    }

    #[test]
    fn an_empty_split_is_refused_also_of_a_run_that_goes_on() {
        let config = Config::default();
        for moment in [Moment::Beginning, Moment::GoingOn] {
            let mut empty = facts();
            empty.val = SplitFacts::default();
            let text = decide(&config, &empty, moment)
                .expect_err("refused")
                .to_string();
            assert!(
                text.contains("the validation split has no images (2 images in training, 0"),
                "{text}"
            );
            assert!(text.contains("\n  help: "), "{text}");
            let mut black = facts();
            black.train.patches = LabelCounts::default();
            let text = decide(&config, &black, moment)
                .expect_err("refused")
                .to_string();
            assert!(
                text.contains("training split has no patch that is not black"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_split_smaller_than_a_step_is_refused() {
        let mut config = Config::default();
        config.train.images_per_step = 8;
        assert!(decide(&config, &facts(), Moment::Beginning).is_ok());
        config.train.images_per_step = 9;
        let text = refused(&config, &facts());
        assert!(
            text.contains("train.images_per_step = 9") && text.contains("at most 8"),
            "{text}"
        );
        // It was begun so.
        let warnings = decide(&config, &facts(), Moment::GoingOn).expect("goes on");
        assert_eq!(warnings.len(), 1);
        config.train.images_per_step = 3;
        config.train.virtual_shards = 16;
        assert!(refused(&config, &facts()).contains("train.virtual_shards = 16"));
    }

    #[test]
    fn a_metric_that_can_never_be_defined_is_refused() {
        let mut config = Config::default();
        config.early_stopping.metric = MetricName::MeanAuroc;
        // MA and HE have both kinds of patches, EX and SE none.
        let warnings = decide(&config, &facts(), Moment::Beginning).expect("defined");
        assert!(warnings[0].contains("leaves out EX, SE"), "{warnings:?}");
        // One image: it is of one kind.
        config.early_stopping.level = Level::Image;
        let text = refused(&config, &facts());
        for words in [
            "\"mean_auroc\"",
            "\"image\"",
            "EX, SE in none and MA, HE in all",
            "\n  help: ",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let warnings = decide(&config, &facts(), Moment::GoingOn).expect("goes on");
        assert!(
            warnings.iter().any(|w| w.contains("can never be defined")),
            "{warnings:?}"
        );
        config.early_stopping.metric = MetricName::MeanAp;
        assert!(decide(&config, &facts(), Moment::Beginning).is_ok());
    }
}
