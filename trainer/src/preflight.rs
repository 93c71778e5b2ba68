//! Checks before a run's first step whether configuration and data can make a run at all.
//!
//! Without these refusals every rank would fail after an epoch. The decision is pure: it takes [`RunFacts`] and returns
//! an error or warnings.

use fovea_coordinator::order::{EpochOrder, Grain};
use fovea_dataset::{Dataset, Split};
use fovea_run::config::{CellPlaces, Config};
use fovea_run::metrics::{LabelCounts, never_defined, poor, watched};
use fovea_task::{Level, Target, Task};

use crate::error::{Error, Result};
use crate::models;
use crate::objective;
use crate::samples::{labels_of, order_input, whole_image};
use crate::trainable::Trainable;
use crate::windows::has_masks;

/// When a run is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the first step, when every setting can still be changed.
    Beginning,
    /// When a run continues as it began: only what makes that impossible is refused.
    GoingOn,
}

/// Refuses a run that cannot train or cannot be validated; returns other oddities as warnings, one sentence each.
///
/// # Errors
/// [`Error::Usage`]: the training or the validation split is empty or all black, the sampler lists nothing, or windows lie
/// around lesions and there are no masks; before the first step also a training
/// split that is smaller than one step, more virtual shards than it can fill, and a watched metric that the labels of
/// the validation split leave undefined. [`Error::Config`]: class weights that are not as many as the classes.
pub fn preflight(config: &Config, data: &Dataset, moment: Moment) -> Result<Vec<String>> {
    config.fits(data.task())?;
    let loss = objective::check(&config.loss, data.task())?;
    let model = models::find(&config.model.name)?;
    let (_, blueprint) = model.build(data.task(), &config.model)?;
    if model.grain == Grain::Cell && data.grid() == 0 {
        return Err(Error::Usage {
            what: format!(
                "model {} reads patches, and {} has no grid of them",
                config.model.name,
                data.dir().display()
            ),
            help: "choose a model of whole images with model.name, or make a grid with `fovea prepare --size 1280 --patch 128`".to_owned(),
        });
    }
    for stage in config.plan() {
        Trainable::of(&stage, &blueprint, config.optimizer.decay)?;
    }
    let input = order_input(data, model.grain, config);
    let order = EpochOrder::new(&input, 0)?;
    let units = order.units().len();
    let facts = RunFacts {
        task: data.task().clone(),
        data: data.dir().display().to_string(),
        train: SplitFacts::of(config, data, model.grain, Split::Train),
        val: SplitFacts::of(config, data, model.grain, Split::Val),
        units,
        listed: order.total_samples(),
        has_masks: has_masks(data),
        has_windows: model.grain == Grain::Cell,
    };
    let mut warnings = decide(config, &facts, moment)?;
    warnings.extend(objective::unread(&config.loss, loss));
    Ok(warnings)
}

/// The facts that the decision depends on.
#[derive(Clone, Debug)]
struct RunFacts {
    task: Task,
    /// Directory of the dataset, for messages.
    data: String,
    train: SplitFacts,
    val: SplitFacts,
    /// Units of one epoch: an image with up to `data.patches_per_image` of its patches, or, by the model's grain, the
    /// image alone.
    units: usize,
    /// Samples of one epoch, which the sampler chooses from those of the training split.
    listed: u64,
    /// Whether there are masks to place windows and count labels by.
    has_masks: bool,
    /// Whether the model reads patches, so that windows of them lie anywhere.
    has_windows: bool,
}

/// A split as training and evaluation see it.
#[derive(Clone, Debug, Default)]
struct SplitFacts {
    /// Number of images, with and without labels.
    images: usize,
    /// Number of samples, with and without labels: patches that are not black, or images.
    samples: usize,
    /// Label counts of the samples, per target of the task.
    labels: Vec<LabelCounts>,
}

impl SplitFacts {
    fn of(config: &Config, data: &Dataset, grain: Grain, split: Split) -> Self {
        let targets = data.task().targets();
        let mut facts = Self::default();
        let mut labels = vec![Vec::new(); targets.len()];
        for image in data.indices(split) {
            let cells = data.patch_labels(image, config.data.min_lesion_pixels);
            let unit = whole_image(data, grain, image);
            facts.images += 1;
            facts.samples += match grain {
                Grain::Cell => unit.cells.len(),
                Grain::Image => 1,
            };
            for (index, labels) in labels.iter_mut().enumerate() {
                labels.extend(labels_of(data, &cells, index, &unit));
            }
        }
        let labels = targets.iter().zip(labels);
        facts.labels = labels
            .map(|(t, labels)| LabelCounts::of(t, labels))
            .collect();
        facts
    }
}

fn decide(config: &Config, facts: &RunFacts, moment: Moment) -> Result<Vec<String>> {
    let data = &facts.data;
    for (split, name) in [(&facts.train, "training"), (&facts.val, "validation")] {
        let why = if split.images == 0 {
            "has no images"
        } else if split.samples == 0 {
            "has no patch that is not black"
        } else {
            continue;
        };
        return Err(Error::Usage {
            what: format!(
                "{data}: the {name} split {why} ({} images in training, {} in validation)",
                facts.train.images, facts.val.images
            ),
            help:
                "`fovea data` shows the splits; prepare more images, so that each split gets some"
                    .to_owned(),
        });
    }
    nothing_listed(config, facts)?;
    let unmasked = without_masks(config, facts)?;
    let watch = &config.early_stopping;
    let (target, labels) = watched_labels(watch.level, facts)?;
    let mut odd: Vec<Error> = too_small(config, facts);
    if let Some(why) = never_defined(watch.metric, target, labels) {
        odd.push(Error::Usage {
            what: format!(
                "early_stopping.metric = \"{}\" at early_stopping.level = \"{}\" can never be defined on the validation split of {data}: {why}",
                watch.metric, watch.level
            ),
            help: "watch another metric (f1_micro and loss are always defined) or the other level, or prepare a dataset whose validation split has positive labels".to_owned(),
        });
    }
    let poor = poor(watch.metric, target, labels);
    let mut warnings: Vec<String> = poor.into_iter().chain(unmasked).collect();
    for error in odd {
        if moment == Moment::Beginning {
            return Err(error);
        }
        let text = error.to_string();
        warnings.extend(text.lines().next().map(str::to_owned));
    }
    Ok(warnings)
}

/// Refuses a sampler that lists nothing: without a sample that has a class there is nothing to balance against.
fn nothing_listed(config: &Config, facts: &RunFacts) -> Result<()> {
    if facts.listed > 0 {
        return Ok(());
    }
    Err(Error::Usage {
        what: format!(
            "data.sampler = \"{}\" lists none of the {} training samples of {}: none has a class by data.min_lesion_pixels = {}",
            config.data.sampler.name(),
            facts.train.samples,
            facts.data,
            config.data.min_lesion_pixels
        ),
        help: "set data.sampler = \"all\", lower data.min_lesion_pixels, or prepare images with lesions"
            .to_owned(),
    })
}

/// Refuses windows around lesions where nothing says where these are; returns a warning of keys that have no effect: without
/// patches, or without masks to count labels in.
fn without_masks(config: &Config, facts: &RunFacts) -> Result<Option<String>> {
    let (cells, data) = (config.data.cells, &facts.data);
    if !facts.has_windows {
        let asked = cells != CellPlaces::Grid || config.data.window_labels;
        return Ok(asked.then(|| {
            format!(
                "data.cells = \"{cells}\" and data.window_labels = {} have no effect: model {} reads no patches",
                config.data.window_labels, config.model.name
            )
        }));
    }
    if facts.has_masks {
        return Ok(None);
    }
    if cells != CellPlaces::Grid {
        return Err(Error::Usage {
            what: format!(
                "data.cells = \"{cells}\" places windows by lesion masks, and {data} has none"
            ),
            help: "set data.cells = \"grid\", or prepare a dataset with lesion masks (`fovea prepare` keeps them)"
                .to_owned(),
        });
    }
    Ok(config.data.window_labels.then(|| {
        format!(
            "data.window_labels = true has no effect: {data} has no lesion masks, so each patch has the label of its cell"
        )
    }))
}

/// The watched target, and its labels in the validation split.
fn watched_labels(level: Level, facts: &RunFacts) -> Result<(&Target, &LabelCounts)> {
    let found = watched(&facts.task, level);
    let found = found.and_then(|(index, target)| Some((target, facts.val.labels.get(index)?)));
    found.ok_or_else(|| Error::Usage {
        what: format!(
            "early_stopping.level = \"{level}\", and {} has no labels of {level} level",
            facts.data
        ),
        help: "set early_stopping.level to the other level, or prepare a dataset with such labels"
            .to_owned(),
    })
}

/// Errors of a training split that is smaller than one step, or than the virtual shards of a step.
fn too_small(config: &Config, facts: &RunFacts) -> Vec<Error> {
    let RunFacts { data, units, .. } = facts;
    let (images, most) = (facts.train.images, config.data.patches_per_image);
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
    use fovea_task::Label;

    use super::*;
    use fovea_run::config::MetricName;

    fn facts() -> RunFacts {
        let task = Task::lesions();
        let count = |target: usize, labels: &[u64]| {
            let labels = labels.iter().map(|&label| Label(label));
            LabelCounts::of(&task.targets()[target], labels)
        };
        let split = |images: &[u64], patches: &[u64]| SplitFacts {
            images: images.len(),
            samples: patches.len(),
            labels: vec![count(0, images), count(1, patches)],
        };
        RunFacts {
            data: "DATA".to_owned(),
            train: split(&[1, 0], &[1, 0, 0, 0]),
            val: split(&[3], &[0, 1, 2]),
            units: 8,
            listed: 4,
            has_masks: true,
            has_windows: true,
            task,
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
            black.train.samples = 0;
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
    fn a_sampler_without_samples_is_refused() {
        let mut config = Config::default();
        config.set("data.sampler=balanced").expect("a sampler");
        let none = RunFacts {
            listed: 0,
            ..facts()
        };
        let text = refused(&config, &none);
        assert!(
            text.contains("data.sampler = \"balanced\" lists none of the 4 training samples"),
            "{text}"
        );
    }

    #[test]
    fn windows_around_lesions_need_masks() {
        let bare = RunFacts {
            has_masks: false,
            ..facts()
        };
        let mut config = Config::default();
        config.data.cells = CellPlaces::Mixed;
        assert_eq!(
            decide(&config, &facts(), Moment::Beginning).ok(),
            Some(vec![])
        );
        let text = refused(&config, &bare);
        assert!(
            text.contains("data.cells = \"mixed\"") && text.contains("DATA has none"),
            "{text}"
        );
        let whole = RunFacts {
            has_windows: false,
            ..bare.clone()
        };
        let warnings = decide(&config, &whole, Moment::Beginning).expect("a warning");
        assert!(
            warnings[0].contains("model hybrid reads no patches"),
            "{warnings:?}"
        );
        config.data.cells = CellPlaces::Grid;
        config.data.window_labels = true;
        let warnings = decide(&config, &bare, Moment::Beginning).expect("a warning");
        assert!(
            warnings[0].contains("data.window_labels = true has no effect"),
            "{warnings:?}"
        );
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
        // The run began with such a split.
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
        // MA and HE have both kinds of patches; EX and SE have one kind only.
        let warnings = decide(&config, &facts(), Moment::Beginning).expect("defined");
        assert!(warnings[0].contains("leaves out EX, SE"), "{warnings:?}");
        // The split has one image, so one kind.
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

        let mut patches = facts();
        patches.task = Task::new(vec![patches.task.targets()[1].clone()]).expect("valid");
        let text = refused(&config, &patches);
        assert!(text.contains("has no labels of image level"), "{text}");
    }
}
