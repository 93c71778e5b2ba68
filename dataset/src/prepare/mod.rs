//! Raw images to a prepared dataset: parallel, streaming, restartable.
//!
//! Images are numbered by id; image `i` goes to row `i % shard_images` of shard `i / shard_images`. Threads take images
//! one by one and write each into its row of a shard under `OUT/.prepare/`. A complete shard is hashed, synced and
//! renamed into `OUT`, and a record of it stays with the unfinished ones. A run that finds such records verifies
//! the shards and does the rest. It computes labels and splits at the end from the shards alone, so the bytes of the
//! result depend on the raw images and the options, not on threads or on how often the run was killed.

mod image;
mod output;
mod run;
mod splits;

use std::collections::BTreeMap;
use std::path::Path;

use fovea_task::{Label, Level, Task};

use crate::cells::{BLACK_FRACTION, BLACK_LEVEL, Cells, check_grid, refuse};
use crate::labels::{self, image_classes};
use crate::manifest::{ImageEntry, Manifest, Recipe, ShardEntry, SplitCounts};
use crate::raw::{LayoutChoice, Raw, RawImage, TableOptions};
use crate::shard::{Shard, ShardShape};
use crate::table::ImageLabels;
use crate::{Crop, Dataset, Fit, Framing, ProgressListener, Result, Split, oddities, pairs};
use output::OutputDirectory;
use splits::Splitter;

/// `prepare` stops looking for more after this many unusable raw files.
pub const MAX_BAD_FILES: usize = 20;

/// More threads than this only cost memory: the disk is the limit long before.
const MAX_WORKERS: usize = 64;

/// The choices of a [`prepare`], with the defaults of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Layout of the raw dataset.
    pub layout: LayoutChoice,
    /// What the user says of the tables in it.
    pub tables: TableOptions,
    /// Working size: pixels along an edge of a prepared image.
    pub size: u32,
    /// Pixels along an edge of a cell; divides `size`. 0 for no grid, which a task with a target at patch level needs.
    pub patch: u32,
    /// The working size for a task without a target at patch level, which then has no grid; `None`: `size` and `patch` hold
    /// for such a task too.
    pub whole_size: Option<u32>,
    /// What of a photograph is kept; `None`: what the layout's are kept of.
    pub crop: Option<Crop>,
    /// How that is brought to a square; `None`: as [`Fit::usual`] says.
    pub fit: Option<Fit>,
    /// A cell has a class when at least this many of its pixels have it; at least 1.
    pub min_lesion_pixels: u32,
    /// Seed of the split.
    pub seed: u64,
    /// A regular expression over image ids: what its first group captures (else the whole match) names a group, and
    /// all images of a group come into one split.
    pub group_by: Option<String>,
    /// Threads; 0 for one per processor.
    pub workers: usize,
    /// Whether to store class bits per pixel: a quarter of the disk space, needed for lesion-centred crops and outlines.
    /// A task without a target at patch level has none.
    pub mask: bool,
    /// Images per shard, 1 to 4096; the last may have fewer.
    pub shard_images: u32,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            layout: LayoutChoice::Auto,
            tables: TableOptions::default(),
            size: 1280,
            patch: 128,
            whole_size: None,
            crop: None,
            fit: None,
            min_lesion_pixels: 1,
            seed: 0,
            group_by: None,
            workers: 0,
            mask: true,
            shard_images: 32,
        }
    }
}

impl PrepareOptions {
    /// Working size and patch for a dataset of `task`.
    fn sizes(&self, task: &Task) -> (u32, u32) {
        match (task.cells(), self.whole_size) {
            (None, Some(size)) => (size, 0),
            _ => (self.size, self.patch),
        }
    }

    /// What can be known before the raw dataset is: nothing of sizes that depend on its task.
    fn check(&self) -> Result<()> {
        let Self {
            shard_images,
            size,
            patch,
            ..
        } = *self;
        if !(1..=4096).contains(&shard_images) {
            return refuse(
                "shard_images",
                shard_images,
                "must be 1 to 4096".to_owned(),
                "32 is the usual value",
            );
        }
        match self.whole_size {
            None => self.check_sizes(size, patch),
            Some(_) => Ok(()),
        }
    }

    /// Checks the sizes for a dataset of `task`.
    fn check_for(&self, task: &Task) -> Result<()> {
        let (size, patch) = self.sizes(task);
        if patch == 0 && task.cells().is_some() {
            return refuse(
                "--patch",
                patch,
                "the raw dataset has masks, whose labels belong to the cells of a grid".to_owned(),
                "128 is the usual patch",
            );
        }
        self.check_sizes(size, patch)
    }

    fn check_sizes(&self, size: u32, patch: u32) -> Result<()> {
        let min_lesion_pixels = self.min_lesion_pixels;
        check_grid(size, patch)?;
        if patch > 0 && !(1..=patch * patch).contains(&min_lesion_pixels) {
            let limit = format!("must be 1 to {} (a whole patch)", patch * patch);
            return refuse(
                "--min-lesion-pixels",
                min_lesion_pixels,
                limit,
                "1 is the published rule",
            );
        }
        Ok(())
    }

    fn recipe(&self, raw: &Raw) -> Recipe {
        let (size, patch) = self.sizes(&raw.task);
        let crop = self.crop.unwrap_or_else(|| raw.layout.crop());
        Recipe {
            layout: raw.layout.name().to_owned(),
            size,
            patch,
            framing: Framing {
                crop,
                fit: self.fit.unwrap_or(Fit::usual(crop)),
            },
            min_lesion_pixels: self.min_lesion_pixels,
            seed: self.seed,
            group_by: self.group_by.clone(),
            mask: self.mask && raw.task.cells().is_some(),
            shard_images: self.shard_images,
        }
    }

    fn workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_WORKERS),
            n => n.min(MAX_WORKERS),
        }
    }
}

/// What `prepare` will make, all of it known before it reads the first image.
pub(super) struct PreparePlan {
    pub raw: Raw,
    pub recipe: Recipe,
    pub cells: Cells,
}

impl PreparePlan {
    pub fn shards(&self) -> usize {
        self.raw
            .images
            .len()
            .div_ceil(self.recipe.shard_images as usize)
    }

    /// The images of a shard, as a range of image numbers.
    pub fn images_of(&self, shard: usize) -> std::ops::Range<usize> {
        let per_shard = self.recipe.shard_images as usize;
        shard * per_shard..((shard + 1) * per_shard).min(self.raw.images.len())
    }

    pub fn shape(&self, shard: usize) -> ShardShape {
        ShardShape {
            images: self.images_of(shard).len(),
            size: self.cells.size,
            grid: self.cells.grid(),
            classes: self.raw.task.cell_classes().len(),
            mask: self.recipe.mask,
        }
    }
}

/// Turns the raw dataset `src` (a directory or a zip) into a prepared dataset in the directory `out`.
///
/// Goes on where an earlier, interrupted run with the same options stopped. When `out` is complete already, its shards
/// are verified, damaged ones are remade, and nothing else happens. `out` with other options, or with anything else in
/// it, is refused.
pub fn prepare(
    src: &Path,
    out: &Path,
    options: &PrepareOptions,
    progress: &dyn ProgressListener,
) -> Result<Manifest> {
    options.check()?;
    let raw = Raw::open(src, options.layout, &options.tables)?;
    options.check_for(&raw.task)?;
    let recipe = options.recipe(&raw);
    let cells = Cells {
        size: recipe.size as usize,
        patch: recipe.patch as usize,
    };
    let splitter = Splitter::new(&raw, options)?;
    for word in raw.words.iter().chain(&splitter.words) {
        tracing::warn!("{word}");
    }
    let plan = PreparePlan { raw, recipe, cells };
    let output = OutputDirectory::open(out, &plan)?;

    progress.start(plan.raw.images.len() as u64);
    let shards = output
        .verified(&plan)
        .and_then(|done| run::make_shards(&plan, &output, done, options.workers(), progress));
    progress.finish();

    let manifest = describe(&plan, &splitter, out, shards?)?;
    output.finish(&manifest)?;
    let of_splits = || {
        let pairs = manifest.images.iter().zip(&plan.raw.images);
        pairs.filter_map(|(image, raw)| Some((image, image.split?, raw)))
    };
    let images: Vec<(&str, Split)> = of_splits()
        .map(|(image, split, _)| (image.id.as_str(), split))
        .collect();
    let oddities = oddities(&Dataset::open_unverified(out)?);
    let published: Vec<bool> = of_splits().map(|(_, _, raw)| raw.split.is_some()).collect();
    let apart = pairs::patients_apart(&images, &published);
    for word in apart.iter().chain(&oddities) {
        tracing::warn!("{word}");
    }
    Ok(manifest)
}

/// The manifest, from the shards and what the raw dataset says of its images.
fn describe(
    plan: &PreparePlan,
    splitter: &Splitter,
    out: &Path,
    shards: Vec<ShardEntry>,
) -> Result<Manifest> {
    let Raw { task, images, .. } = &plan.raw;
    let mut known: Vec<ImageLabels> = Vec::new();
    for (number, entry) in shards.iter().enumerate() {
        let shard = Shard::open(&out.join(&entry.file), plan.shape(number))?;
        for row in 0..entry.images as usize {
            let min = plan.recipe.min_lesion_pixels;
            let cells = match task.cells() {
                Some(target) => labels::of_cells(target, &shard.areas(row), min),
                None => Vec::new(),
            };
            known.push(ImageLabels {
                image: image_labels(plan, known.len(), &cells),
                cells,
                black: shard.black(row).to_vec(),
            });
        }
    }
    let ids: Vec<&str> = images.iter().map(|raw| raw.id.as_str()).collect();
    let classes: Vec<Vec<bool>> = known
        .iter()
        .map(|labels| image_classes(task, &labels.image, &labels.cells))
        .collect();
    let splits = splitter.splits(&ids, &classes, plan.recipe.seed);

    let counts = |split: Split| {
        let of_split = (0..ids.len()).filter(|&i| splits[i] == Some(split));
        (split, SplitCounts::of(task, of_split.map(|i| &known[i])))
    };
    let counts: BTreeMap<_, _> = Split::ALL.into_iter().map(counts).collect();
    let per_shard = plan.recipe.shard_images as usize;
    let entry = |(i, (raw, labels)): (usize, (&RawImage, ImageLabels))| ImageEntry {
        id: raw.id.clone(),
        split: splits[i],
        shard: (i / per_shard) as u32,
        row: (i % per_shard) as u32,
        labels: labels.image,
        grade: raw.grade,
        group: raw.group.clone(),
        columns: raw.columns.clone(),
    };
    Ok(Manifest {
        task: task.clone(),
        recipe: plan.recipe.clone(),
        grid: plan.cells.grid() as u32,
        black_level: BLACK_LEVEL,
        black_fraction: BLACK_FRACTION,
        source: plan.raw.fingerprint(images, false),
        splits: counts,
        shards,
        images: images.iter().zip(known).enumerate().map(entry).collect(),
    })
}

/// Labels of an image for the targets at image level: the union of its cells, or what the raw dataset says.
fn image_labels(plan: &PreparePlan, image: usize, cells: &[Label]) -> Vec<Label> {
    let given = &plan.raw.images[image].labels;
    let targets = plan.raw.task.targets().iter().enumerate();
    targets
        .filter(|(_, target)| target.level == Level::Image)
        .map(|(number, target)| match target.union_of_cells {
            true => labels::union(cells),
            false => given
                .iter()
                .find(|(of, _)| *of == number)
                .map_or(Label::UNKNOWN, |(_, label)| *label),
        })
        .collect()
}
