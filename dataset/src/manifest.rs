//! `manifest.json`: the contents of a prepared dataset. Written last, so it exists once the dataset is complete.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::shard::{self, ShardShape};
use crate::{ALL_CLASSES, CLASSES, Error, LabelTable, Result, Split};

/// The version of the prepared form that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

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
    /// Name of the raw layout ("fgadr", "folder", "idrid").
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitCounts {
    /// Images.
    pub images: u64,
    /// Cells of these images.
    pub patches: u64,
    /// Cells without a lesion; black ones are among them.
    pub healthy: u64,
    /// Black cells.
    pub black: u64,
    /// Cells per class.
    pub label_sums: [u64; 4],
    /// Images per class.
    pub image_label_sums: [u64; 4],
    /// Share of images per class; 0 for a split without images.
    pub positive_rates: [f64; 4],
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name in the dataset directory.
    pub file: String,
    /// Images in it.
    pub images: u32,
    /// Its length.
    pub bytes: u64,
    /// blake3 of its content, 64 hex digits.
    pub blake3: String,
}

/// One image. Its position in [`Manifest::images`] is its index everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// File name of the raw image without extension.
    pub id: String,
    /// What it is used for.
    pub split: Split,
    /// Index into [`Manifest::shards`].
    pub shard: u32,
    /// Row in that shard's tensors.
    pub row: u32,
    /// Label byte: OR of its cells.
    pub label: u8,
    /// Retinopathy grade 0-4 where the raw dataset has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<u8>,
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// Always [`FORMAT_VERSION`] once loaded.
    pub format_version: u32,
    /// Always [`CLASSES`] once loaded.
    pub classes: Vec<String>,
    /// The choices it was made with.
    #[serde(flatten)]
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
    /// Shard files.
    pub shards: Vec<ShardEntry>,
    /// Images in index order.
    pub images: Vec<ImageEntry>,
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
            (Some(FORMAT), Some(version)) if version == u64::from(FORMAT_VERSION) => {}
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
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
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

    /// The figures as a table.
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
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("a manifest holds only strings, numbers and lists");
        bytes.push(b'\n');
        bytes
    }

    pub(crate) fn shape(&self, images: u32) -> ShardShape {
        ShardShape {
            images: images as usize,
            size: self.recipe.size as usize,
            grid: self.grid as usize,
            mask: self.recipe.mask,
        }
    }

    /// Everything that can be known without opening a shard; the reason when something is wrong.
    fn check(&self) -> std::result::Result<(), String> {
        let Recipe { size, patch, .. } = self.recipe;
        if self.classes != CLASSES {
            return Err(format!(
                "classes are {:?}, this program knows {CLASSES:?}",
                self.classes
            ));
        }
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
        for shard in &self.shards {
            self.check_shard(shard)?;
        }
        self.check_images()
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
        let mut ids = HashSet::new();
        let mut places = HashSet::new();
        for ImageEntry {
            id,
            shard,
            row,
            label,
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
            if *label & !ALL_CLASSES != 0 {
                return Err(format!(
                    "image {id}: label {label} has bits beyond the four classes"
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
