//! `manifest.json`, in all of its versions. Written last, so it exists once the dataset is complete.

use std::collections::BTreeMap;
use std::path::Path;

use fovea_task::{Label, Task};
use serde::{Deserialize, Serialize};

use super::{
    FORMAT, FORMAT_VERSION, ImageEntry, MANIFEST_FILE, Manifest, Recipe, ShardEntry, SplitCounts,
    WORK_DIR,
};
use crate::{Error, Result, Split};

/// No manifest is larger; about two million images.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

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

    /// The version that it is written as, the oldest that can hold it, so that older programs read it: 1 for
    /// [`Task::lesions`], 2 for other tasks, [`FORMAT_VERSION`] with what neither knows.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        let is_older = self.grid > 0
            && self.recipe.framing.is_usual()
            && self.task.columns().is_empty()
            && self.unlabelled() == 0;
        match (is_older, self.task == Task::lesions()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, _) => FORMAT_VERSION,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&ManifestFile::of(self))
            .expect("a manifest holds only strings, numbers and lists");
        bytes.push(b'\n');
        bytes
    }
}

/// A manifest as JSON. Version 1 has `classes`, and one `label` per image; later ones have `task`, and `labels`.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
    shard: u32,
    row: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<u8>,
    /// `null` where there is no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<Option<u64>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grade: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<f32>,
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
            group: image.group.clone(),
            columns: image.columns.clone(),
        };
        Self {
            format: FORMAT.to_owned(),
            format_version: version,
            classes: is_first.then(|| class_names(&manifest.task)),
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
                let (found, known) = (self.classes.unwrap_or_default(), class_names(&lesions));
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
        let has_splits = self.format_version < 3;
        let image = |row: ImageRow| match labels(&row) {
            Some(_) if has_splits && row.split.is_none() => {
                Err(format!("image {}: has no split", row.id))
            }
            Some(labels) => Ok(ImageEntry {
                id: row.id,
                split: row.split,
                shard: row.shard,
                row: row.row,
                labels,
                grade: row.grade,
                group: row.group,
                columns: row.columns,
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

fn class_names(task: &Task) -> Vec<String> {
    let classes = task.cell_classes().iter();
    classes.map(|class| class.name.clone()).collect()
}

/// Read before the rest, so that a newer version is reported as one and not as an unknown field.
#[derive(Deserialize)]
struct Probe {
    format: Option<String>,
    format_version: Option<u64>,
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
