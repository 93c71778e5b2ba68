//! `manifest.json`: the contents of a prepared dataset. Written last, so it exists once the dataset is complete.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use fovea_task::{Label, Level, Target, Task};
use serde::{Deserialize, Serialize};

use crate::cells::MAX_PATCH_CLASSES;
use crate::shard::{self, ShardShape};
use crate::{Error, LabelTable, Result, Split};

/// The newest version of the prepared form. Version 1 holds the labels of [`Task::lesions`] and names no task, version 2
/// holds any other task; this program reads both.
pub const FORMAT_VERSION: u32 = 2;

/// What `format` says in every manifest.
pub const FORMAT: &str = "fovea-dataset";

/// The manifest's file name in a dataset directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The directory of an unfinished run inside the output directory.
pub(crate) const WORK_DIR: &str = ".prepare";

/// No manifest is larger; about two million images.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// The choices that a prepared dataset depends on, besides its raw images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the raw layout, one of [`LAYOUTS`](crate::LAYOUTS) unless another program gave its own.
    pub layout: String,
    /// Edge of an image in pixels.
    pub size: u32,
    /// Edge of a cell in pixels.
    pub patch: u32,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// File name of the raw image without extension.
    pub id: String,
    /// Whether it trains, validates or tests.
    pub split: Split,
    /// Index into [`Manifest::shards`].
    pub shard: u32,
    /// Row in that shard's tensors.
    pub row: u32,
    /// One label per target at image level, in task order. That of a target with `union_of_cells` is the union under the
    /// recipe's `min_lesion_pixels`.
    pub labels: Vec<Label>,
    /// Retinopathy grade 0-4 where the raw dataset has one.
    pub grade: Option<u8>,
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The questions that its labels answer.
    pub task: Task,
    /// The choices it was made with.
    pub recipe: Recipe,
    /// Cells along an edge: size / patch.
    pub grid: u32,
    /// A pixel is dark when max(R, G, B) is below this.
    pub black_level: u8,
    /// A cell is black when at least this share of its pixels is dark.
    pub black_fraction: f64,
    /// blake3 over names and lengths of the raw files, to tell another source from this one.
    pub source: String,
    /// Figures per split.
    pub splits: BTreeMap<Split, SplitCounts>,
    /// Shard files in the order of their numbers.
    pub shards: Vec<ShardEntry>,
    /// Images in index order.
    pub images: Vec<ImageEntry>,
}

/// A manifest as JSON. Version 1 has `classes`, and one `label` per image; version 2 has `task`, and `labels`.
#[derive(Serialize, Deserialize)]
struct ManifestFile {
    format: String,
    format_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<Task>,
    #[serde(flatten)]
    recipe: Recipe,
    grid: u32,
    black_level: u8,
    black_fraction: f64,
    source: String,
    splits: BTreeMap<Split, SplitCounts>,
    shards: Vec<ShardEntry>,
    images: Vec<ImageRow>,
}

/// An image in a [`ManifestFile`].
#[derive(Serialize, Deserialize)]
struct ImageRow {
    id: String,
    split: Split,
    shard: u32,
    row: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<u8>,
    /// `null` where there is no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<Option<u64>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grade: Option<u8>,
}

impl ManifestFile {
    fn of(manifest: &Manifest) -> Self {
        let version = manifest.format_version();
        let is_first = version == 1;
        let row = |image: &ImageEntry| ImageRow {
            id: image.id.clone(),
            split: image.split,
            shard: image.shard,
            row: image.row,
            label: is_first.then(|| image.labels[0].0 as u8),
            labels: (!is_first).then(|| {
                let known = |label: &Label| label.is_known().then_some(label.0);
                image.labels.iter().map(known).collect()
            }),
            grade: image.grade,
        };
        Self {
            format: FORMAT.to_owned(),
            format_version: version,
            classes: is_first.then(|| class_names(manifest.task.cells())),
            task: (!is_first).then(|| manifest.task.clone()),
            recipe: manifest.recipe.clone(),
            grid: manifest.grid,
            black_level: manifest.black_level,
            black_fraction: manifest.black_fraction,
            source: manifest.source.clone(),
            splits: manifest.splits.clone(),
            shards: manifest.shards.clone(),
            images: manifest.images.iter().map(row).collect(),
        }
    }

    /// The manifest; the reason when its parts are not those of its version.
    fn read(self) -> std::result::Result<Manifest, String> {
        let is_first = self.format_version == 1;
        let task = match (is_first, self.task) {
            (true, _) => {
                let lesions = Task::lesions();
                let (found, known) = (
                    self.classes.unwrap_or_default(),
                    class_names(lesions.cells()),
                );
                if found != known {
                    return Err(format!(
                        "classes are {found:?}, those of version 1 are {known:?}"
                    ));
                }
                lesions
            }
            (false, Some(task)) => task,
            (false, None) => return Err("has no task".to_owned()),
        };
        let labels = |row: &ImageRow| match is_first {
            true => row.label.map(|label| vec![Label(u64::from(label))]),
            false => row.labels.as_ref().map(|labels| {
                let label = |label: &Option<u64>| label.map_or(Label::UNKNOWN, Label);
                labels.iter().map(label).collect()
            }),
        };
        let image = |row: ImageRow| match labels(&row) {
            Some(labels) => Ok(ImageEntry {
                id: row.id,
                split: row.split,
                shard: row.shard,
                row: row.row,
                labels,
                grade: row.grade,
            }),
            None => Err(format!("image {}: has no label", row.id)),
        };
        Ok(Manifest {
            task,
            recipe: self.recipe,
            grid: self.grid,
            black_level: self.black_level,
            black_fraction: self.black_fraction,
            source: self.source,
            splits: self.splits,
            shards: self.shards,
            images: self
                .images
                .into_iter()
                .map(image)
                .collect::<std::result::Result<_, _>>()?,
        })
    }
}

fn class_names(target: Option<&Target>) -> Vec<String> {
    let classes = target.iter().flat_map(|target| &target.classes);
    classes.map(|class| class.name.clone()).collect()
}

/// Read before the rest, so that a newer version is told as such and not as a strange field.
#[derive(Deserialize)]
struct Probe {
    format: Option<String>,
    format_version: Option<u64>,
}

impl Manifest {
    /// Reads and checks the manifest of the dataset in `dir`; shard files are not touched.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        if !path.exists() {
            return Err(why_missing(dir));
        }
        let invalid = |reason: String| Error::Manifest {
            path: path.clone(),
            reason,
        };
        let bytes = fovea_files::read_capped(&path, MAX_MANIFEST_BYTES)?
            .ok_or_else(|| invalid(format!("is larger than {MAX_MANIFEST_BYTES} bytes")))?;
        let probe: Probe = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        match (probe.format.as_deref(), probe.format_version) {
            (Some(FORMAT), Some(version)) if (1..=u64::from(FORMAT_VERSION)).contains(&version) => {
            }
            (Some(FORMAT), Some(found)) => {
                return Err(Error::ManifestVersion {
                    path,
                    found,
                    supported: FORMAT_VERSION,
                });
            }
            (format, _) => {
                return Err(invalid(format!(
                    "is no {FORMAT} manifest (format {format:?})"
                )));
            }
        }
        let file: ManifestFile =
            serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        let manifest = file.read().map_err(&invalid)?;
        manifest.check().map_err(invalid)?;
        Ok(manifest)
    }

    /// Writes `dir/manifest.json` atomically and durably.
    pub fn save(&self, dir: &Path) -> Result<()> {
        Ok(fovea_files::replace_alone(
            &dir.join(MANIFEST_FILE),
            &self.to_bytes(),
        )?)
    }

    /// blake3 of the manifest as it is written, hex. It covers the shards through their hashes: two datasets with the
    /// same value hold the same bytes.
    pub fn blake3(&self) -> String {
        blake3::hash(&self.to_bytes()).to_hex().to_string()
    }

    /// The version that it is written as: 1 for [`Task::lesions`], so that older programs read such a dataset, else
    /// [`FORMAT_VERSION`].
    #[must_use]
    pub fn format_version(&self) -> u32 {
        match self.task == Task::lesions() {
            true => 1,
            false => FORMAT_VERSION,
        }
    }

    /// The figures of each split and of all together, to print.
    pub fn label_table(&self) -> LabelTable {
        LabelTable::new(self)
    }

    /// Indices of the images of `split`, ascending.
    pub fn indices(&self, split: Split) -> Vec<usize> {
        (0..self.images.len())
            .filter(|&i| self.images[i].split == split)
            .collect()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&ManifestFile::of(self))
            .expect("a manifest holds only strings, numbers and lists");
        bytes.push(b'\n');
        bytes
    }

    pub(crate) fn shape(&self, images: u32) -> ShardShape {
        ShardShape {
            images: images as usize,
            size: self.recipe.size as usize,
            grid: self.grid as usize,
            classes: self.task.cells().map_or(0, |cells| cells.classes.len()),
            mask: self.recipe.mask,
        }
    }

    /// Everything that can be known without opening a shard; the reason when something is wrong.
    fn check(&self) -> std::result::Result<(), String> {
        let Recipe { size, patch, .. } = self.recipe;
        if !(1..=crate::MAX_SIZE).contains(&size) || !(1..=crate::MAX_PATCH).contains(&patch) {
            return Err(format!("size {size} or patch {patch} is out of range"));
        }
        if self.grid == 0 || u64::from(self.grid) * u64::from(patch) != u64::from(size) {
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
        if in_splits != self.images.len() as u64 || in_shards != self.images.len() as u64 {
            return Err(format!(
                "lists {} images, {in_splits} in splits, {in_shards} in shards",
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
        let cells = self.task.cells().map_or(0, |target| target.classes.len());
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
            ..
        } in &self.images
        {
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

fn why_missing(dir: &Path) -> Error {
    if !dir.exists() {
        return Error::Missing {
            what: "dataset directory",
            path: dir.to_owned(),
            help: "`fovea prepare` makes a dataset from raw images, `fovea synth` makes raw images"
                .to_owned(),
        };
    }
    if dir.join(WORK_DIR).exists() {
        return Error::Unfinished {
            path: dir.to_owned(),
        };
    }
    Error::Empty {
        path: dir.to_owned(),
        looked_for: MANIFEST_FILE.to_owned(),
        help: "name a directory made by `fovea prepare`; raw images must go through it first"
            .to_owned(),
    }
}
