//! The manifest of a prepared dataset: what it holds, how it was made, and whether the parts fit each other.

mod file;

use std::collections::{BTreeMap, HashSet};

use fovea_task::{Label, Level, Target, Task};
use serde::{Deserialize, Serialize};

use crate::cells::MAX_PATCH_CLASSES;
use crate::shard::{self, ShardShape};
use crate::{Framing, LabelTable, Split};

/// The newest version of the prepared form. Version 1 holds the labels of [`Task::lesions`] and names no task, version 2
/// holds any other task; version 3 may have no grid, images of no split, numbers of images, and photographs that are not
/// cropped to the field of view. This program reads all.
pub const FORMAT_VERSION: u32 = 3;

/// What `format` says in every manifest.
pub const FORMAT: &str = "fovea-dataset";

/// The manifest's file name in a dataset directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The directory of an unfinished run inside the output directory.
pub(crate) const WORK_DIR: &str = ".prepare";

/// The choices that a prepared dataset depends on, besides its raw images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the raw layout, one of [`LAYOUTS`](crate::LAYOUTS) unless another program gave its own.
    pub layout: String,
    /// Edge of an image in pixels.
    pub size: u32,
    /// Edge of a cell in pixels; 0 without a grid.
    pub patch: u32,
    /// What of a photograph is kept, and how it is brought to the working size.
    #[serde(flatten)]
    pub framing: Framing,
    /// A cell has a class when at least this many of its pixels have it.
    pub min_lesion_pixels: u32,
    /// Seed of the split.
    pub seed: u64,
    /// Regular expression by which images were grouped, when they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<String>,
    /// Whether shards hold a `mask`.
    pub mask: bool,
    /// Images per shard (the last may have fewer).
    pub shard_images: u32,
}

/// Figures of one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitCounts {
    /// How many images it has.
    pub images: u64,
    /// Cells of these images.
    pub patches: u64,
    /// Cells that have no class of the target at patch level; black ones are among them.
    pub healthy: u64,
    /// How many of the cells are black.
    pub black: u64,
    /// Cells per class of the target at patch level; empty without one.
    pub label_sums: Vec<u64>,
    /// Images per class of the targets at image level, one target after the other in task order.
    pub image_label_sums: Vec<u64>,
    /// The same as a share of all images; 0 for a split without images.
    pub positive_rates: Vec<f64>,
}

/// One shard file, as the manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name in the dataset directory.
    pub file: String,
    /// How many images it holds.
    pub images: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// blake3 of its content, 64 hex digits.
    pub blake3: String,
}

/// One image. Its position in [`Manifest::images`] is its index everywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageEntry {
    /// File name of the raw image without extension.
    pub id: String,
    /// Whether it trains, validates or tests; `None`: none of these, because it has no label.
    pub split: Option<Split>,
    /// Position of its shard in [`Manifest::shards`].
    pub shard: u32,
    /// Row in that shard's tensors.
    pub row: u32,
    /// One label per target at image level, in task order. That of a target with `union_of_cells` is the union under the
    /// recipe's `min_lesion_pixels`.
    pub labels: Vec<Label>,
    /// Retinopathy grade 0-4 where the raw dataset has one.
    pub grade: Option<u8>,
    /// What it shares with the images of its group (a patient), where the raw dataset says that.
    pub group: Option<String>,
    /// The numbers that the task's columns name, in their order.
    pub columns: Vec<f32>,
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The questions that its labels answer.
    pub task: Task,
    /// The choices it was made with.
    pub recipe: Recipe,
    /// Cells along an edge: size / patch; 0 without a grid.
    pub grid: u32,
    /// A pixel is dark when max(R, G, B) is below this.
    pub black_level: u8,
    /// A cell is black when at least this share of its pixels is dark.
    pub black_fraction: f64,
    /// blake3 over names and lengths of the raw files, to tell another source from this one.
    pub source: String,
    /// Counts of images, cells and labels per split.
    pub splits: BTreeMap<Split, SplitCounts>,
    /// Shard files in the order of their numbers.
    pub shards: Vec<ShardEntry>,
    /// Images in index order.
    pub images: Vec<ImageEntry>,
}

impl Manifest {
    /// The figures of each split and of all together, to print.
    pub fn label_table(&self) -> LabelTable {
        LabelTable::new(self)
    }

    /// Indices of the images of `split`, ascending.
    pub fn indices(&self, split: Split) -> Vec<usize> {
        (0..self.images.len())
            .filter(|&i| self.images[i].split == Some(split))
            .collect()
    }

    /// How many images have no label, and so belong to no split.
    pub fn unlabelled(&self) -> usize {
        let of_none = self.images.iter().filter(|image| image.split.is_none());
        of_none.count()
    }

    pub(crate) fn shape(&self, images: u32) -> ShardShape {
        ShardShape {
            images: images as usize,
            size: self.recipe.size as usize,
            grid: self.grid as usize,
            classes: self.task.cell_classes().len(),
            mask: self.recipe.mask,
        }
    }

    /// Everything that can be known without opening a shard; the reason when something is wrong.
    fn check(&self) -> std::result::Result<(), String> {
        let Recipe { size, patch, .. } = self.recipe;
        if !(1..=crate::MAX_SIZE).contains(&size) || patch > crate::MAX_PATCH {
            return Err(format!("size {size} or patch {patch} is out of range"));
        }
        let is_without = patch == 0 && self.grid == 0;
        if is_without && self.task.cells().is_some() {
            return Err("its task asks for cells, and it has no grid".to_owned());
        }
        if !is_without
            && (self.grid == 0 || u64::from(self.grid) * u64::from(patch) != u64::from(size))
        {
            return Err(format!(
                "grid {} x patch {patch} is not size {size}",
                self.grid
            ));
        }
        let in_splits: u64 = self.splits.values().map(|counts| counts.images).sum();
        let in_shards: u64 = self
            .shards
            .iter()
            .map(|shard| u64::from(shard.images))
            .sum();
        let of_splits = (self.images.len() - self.unlabelled()) as u64;
        if in_splits != of_splits || in_shards != self.images.len() as u64 {
            return Err(format!(
                "lists {} images ({of_splits} of a split), {in_splits} in splits, {in_shards} in shards",
                self.images.len()
            ));
        }
        self.check_task()?;
        for shard in &self.shards {
            self.check_shard(shard)?;
        }
        self.check_images()
    }

    /// Whether the task can be stored, and the figures have its classes.
    fn check_task(&self) -> std::result::Result<(), String> {
        if let Some(reason) = too_wide(&self.task) {
            return Err(reason);
        }
        let cells = self.task.cell_classes().len();
        let image = self
            .task
            .at(Level::Image)
            .map(|target| target.classes.len())
            .sum();
        for (split, counts) in &self.splits {
            for (name, length, expected) in [
                ("label_sums", counts.label_sums.len(), cells),
                ("image_label_sums", counts.image_label_sums.len(), image),
                ("positive_rates", counts.positive_rates.len(), image),
            ] {
                if length != expected {
                    return Err(format!(
                        "split {split}: {name} has {length} numbers, the task {expected} classes"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_shard(&self, entry: &ShardEntry) -> std::result::Result<(), String> {
        let ShardEntry {
            file,
            images,
            bytes,
            blake3,
        } = entry;
        if !shard::is_shard_name(file) {
            return Err(format!("`{file}` is no shard file name"));
        }
        if blake3.len() != 64 || !blake3.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("the hash of {file} is no blake3"));
        }
        // 24 bits of images times 28 bits of pixels: no overflow in 64.
        if *images == 0 || *images > 1 << 24 {
            return Err(format!("{file} has {images} images"));
        }
        let expected = self.shape(*images).file_bytes();
        if *bytes != expected {
            return Err(format!(
                "{file} has {bytes} bytes, {images} images of this size make {expected}"
            ));
        }
        Ok(())
    }

    fn check_images(&self) -> std::result::Result<(), String> {
        let targets: Vec<&Target> = self.task.at(Level::Image).collect();
        let mut ids = HashSet::new();
        let mut places = HashSet::new();
        for ImageEntry {
            id,
            shard,
            row,
            labels,
            columns,
            ..
        } in &self.images
        {
            let expected = self.task.columns().len();
            if columns.len() != expected || columns.iter().any(|number| !number.is_finite()) {
                return Err(format!(
                    "image {id}: has {} numbers, the task {expected} columns (all finite)",
                    columns.len()
                ));
            }
            let rows = self
                .shards
                .get(*shard as usize)
                .map_or(0, |shard| shard.images);
            if *row >= rows {
                return Err(format!("image {id}: shard {shard} has no row {row}"));
            }
            if labels.len() != targets.len() {
                return Err(format!(
                    "image {id}: has {} labels, the task {} targets at image level",
                    labels.len(),
                    targets.len()
                ));
            }
            let mut pairs = targets.iter().zip(labels);
            if let Some((target, label)) = pairs.find(|(target, label)| !target.allows(**label)) {
                return Err(format!(
                    "image {id}: label {} is beyond the {} classes of target `{}`",
                    label.0,
                    target.classes.len(),
                    target.name
                ));
            }
            if !ids.insert(id) || !places.insert((shard, row)) {
                return Err(format!(
                    "image {id} (shard {shard}, row {row}) is listed twice"
                ));
            }
        }
        Ok(())
    }
}

/// Why the masks of a task cannot be stored; `None`: they can.
pub(crate) fn too_wide(task: &Task) -> Option<String> {
    let target = task.cells()?;
    (target.classes.len() > MAX_PATCH_CLASSES).then(|| {
        format!(
            "target `{}` has {} classes, a mask holds at most {MAX_PATCH_CLASSES}",
            target.name,
            target.classes.len()
        )
    })
}
