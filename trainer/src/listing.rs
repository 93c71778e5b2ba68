//! From the prepared dataset to the input of the sample order: which samples there are, and which classes they have.

use std::collections::BTreeMap;

use fovea_coordinator::order::{Grain, OrderInput, SampleName, Sampling};
use fovea_dataset::{Dataset, Split};
use fovea_run::config::Config;
use fovea_task::{Label, Level, Task};

use crate::samples::{labels_of, whole_image};

/// The images and settings from which the order of every epoch of the training split follows.
pub fn order_input(data: &Dataset, grain: Grain, config: &Config) -> OrderInput {
    let images = data.indices(Split::Train);
    let sampler = config.data.sampler.sampler();
    let classes = match sampler.reads_classes() {
        true => classes(data, grain, config, &images),
        false => BTreeMap::new(),
    };
    OrderInput {
        images: images
            .into_iter()
            .map(|i| (i as u32, whole_image(data, grain, i).cells))
            .collect(),
        grain,
        sampler,
        sampling: Sampling {
            classes,
            healthy_ratio: config.data.healthy_ratio,
            class_cap: config.data.class_cap,
        },
        seed: config.train.seed,
        patches_per_image: config.data.patches_per_image as usize,
    }
}

/// The target that a sampler balances: at [`Grain::Cell`] the one at patch level, else the first one at image level.
fn balanced_target(task: &Task, grain: Grain) -> Option<usize> {
    let level = match grain {
        Grain::Cell => Level::Patch,
        Grain::Image => Level::Image,
    };
    task.targets().iter().position(|t| t.level == level)
}

/// The classes of each sample of `images` with a known label for the balanced target, bit c for class c, by the configured
/// rule. Where a sample has exactly one class, that class is its bit, so none is healthy.
fn classes(
    data: &Dataset,
    grain: Grain,
    config: &Config,
    images: &[usize],
) -> BTreeMap<SampleName, u64> {
    let Some(index) = balanced_target(data.task(), grain) else {
        return BTreeMap::new();
    };
    let target = &data.task().targets()[index];
    let bits = |label: Label| {
        let has = (0..target.classes.len()).filter(|class| target.has(label, *class));
        has.fold(0u64, |all, class| all | 1 << class)
    };
    let of_image = |&image: &usize| {
        let cells = data.patch_labels(image, config.data.min_lesion_pixels);
        let unit = whole_image(data, grain, image);
        let labels = labels_of(data, &cells, index, &unit);
        let known = unit.samples().into_iter().zip(labels);
        let known = known.filter(|(_, label)| label.is_known());
        known.map(move |(name, label)| (name, bits(label)))
    };
    images.iter().flat_map(of_image).collect()
}
