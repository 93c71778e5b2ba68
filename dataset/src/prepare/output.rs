//! The output directory: its present content, finished and unfinished.
//!
//! While a run is unfinished there is `OUT/.prepare/` with `recipe.json` (the options), `shard-00000.part` (in
//! progress) and `shard-00000.json` (a finished shard: its future manifest entry, and a fingerprint of its
//! raw files). The directory is removed once the manifest is written.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::PreparePlan;
use crate::manifest::{MANIFEST_FILE, Manifest, Recipe, ShardEntry, WORK_DIR};
use crate::{Error, Result, shard};

const RECIPE_FILE: &str = "recipe.json";

/// How long another run is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// No record is larger.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// What is kept of a finished shard until the manifest is written.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    entry: ShardEntry,
    /// Fingerprint of the raw files: a shard of other files is made anew.
    raw: String,
}

/// The output directory, locked against other runs.
pub(super) struct OutputDirectory {
    dir: PathBuf,
    work: PathBuf,
    /// The manifest of a complete dataset.
    complete: Option<Manifest>,
    /// Holds the lock on the directory until the run ends.
    _lock: File,
}

impl OutputDirectory {
    /// Creates `dir`, or takes it over when what is in it was made with the same options.
    pub fn open(dir: &Path, plan: &PreparePlan) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let lock = lock(dir, PATIENCE)?;
        let work = dir.join(WORK_DIR);
        let complete = if dir.join(MANIFEST_FILE).exists() {
            Some(Manifest::load(dir)?)
        } else {
            None
        };
        let output = Self {
            dir: dir.to_owned(),
            work,
            complete,
            _lock: lock,
        };
        output.check_same(plan)?;
        fs::create_dir_all(&output.work).map_err(|e| Error::io("create", &output.work, e))?;
        let recipe = serde_json::to_vec_pretty(&plan.recipe)
            .expect("a recipe holds only strings and numbers");
        fovea_files::replace_alone(&output.work.join(RECIPE_FILE), &recipe)?;
        Ok(output)
    }

    fn check_same(&self, plan: &PreparePlan) -> Result<()> {
        if let Some(manifest) = &self.complete {
            let mut differences = differences(&manifest.recipe, &plan.recipe);
            let source = plan.raw.fingerprint(&plan.raw.images, false);
            if source != manifest.source {
                differences.push(format!(
                    "other raw images ({} there, {} here; names, lengths or grades differ)",
                    manifest.images.len(),
                    plan.raw.images.len()
                ));
            }
            if manifest.task != plan.raw.task {
                differences.push("labels of another task".to_owned());
            }
            return self.refuse_if(&differences, true);
        }
        let recipe = self.work.join(RECIPE_FILE);
        if recipe.exists() {
            // Written atomically: one that cannot be read was not written by us.
            let bytes = fovea_files::read_capped(&recipe, MAX_RECORD_BYTES)?.unwrap_or_default();
            let there: Recipe = serde_json::from_slice(&bytes).map_err(|e| Error::Manifest {
                path: recipe.clone(),
                reason: e.to_string(),
            })?;
            return self.refuse_if(&differences(&there, &plan.recipe), false);
        }
        let mut names = fs::read_dir(&self.dir)
            .map_err(|e| Error::io("list", &self.dir, e))?
            .flatten();
        match names.find(|item| item.file_name() != WORK_DIR) {
            Some(item) => Err(Error::Occupied {
                path: self.dir.clone(),
                found: item.file_name().to_string_lossy().into_owned(),
            }),
            None => Ok(()),
        }
    }

    fn refuse_if(&self, differences: &[String], complete: bool) -> Result<()> {
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Otherwise {
            path: self.dir.clone(),
            differences: differences.join(", "),
            complete,
        })
    }

    /// The shards that are there and whole, by number; the others are `None`. Reads every byte of them.
    pub fn verified(&self, plan: &PreparePlan) -> Result<Vec<Option<ShardEntry>>> {
        let verify = |number: usize| {
            let entry = self.recorded(plan, number)?;
            let path = self.dir.join(&entry.file);
            match shard::verify(&path, entry.bytes, Some(&entry.blake3)) {
                Ok(()) => Some(entry),
                Err(error) => {
                    tracing::warn!("{error}");
                    None
                }
            }
        };
        Ok((0..plan.shards()).into_par_iter().map(verify).collect())
    }

    /// What is known of a shard: from its record, or from the manifest of a complete dataset.
    fn recorded(&self, plan: &PreparePlan, number: usize) -> Option<ShardEntry> {
        let expected = |entry: &ShardEntry| {
            let shape = plan.shape(number);
            entry.file == shard::file_name(number)
                && entry.images as usize == shape.images
                && entry.bytes == shape.file_bytes()
        };
        let from_record = || {
            let bytes = fovea_files::read_capped(&self.record(number), MAX_RECORD_BYTES).ok()??;
            let record: Record = serde_json::from_slice(&bytes).ok()?;
            (record.raw == raw_of(plan, number)).then_some(record.entry)
        };
        let from_manifest = || self.complete.as_ref()?.shards.get(number).cloned();
        from_record().or_else(from_manifest).filter(expected)
    }

    fn record(&self, number: usize) -> PathBuf {
        self.work.join(format!("shard-{number:05}.json"))
    }

    /// Where a shard is written until it is complete.
    pub fn part(&self, number: usize) -> PathBuf {
        self.work.join(format!("shard-{number:05}.part"))
    }

    /// Where the finished dataset will lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a written part durable, names it, and keeps a record of it.
    pub fn keep(&self, plan: &PreparePlan, number: usize, file: &File) -> Result<ShardEntry> {
        let (part, shape) = (self.part(number), plan.shape(number));
        file.sync_all()
            .map_err(|e| Error::writing(&part, shape.file_bytes(), e))?;
        let entry = ShardEntry {
            file: shard::file_name(number),
            images: shape.images as u32,
            bytes: shape.file_bytes(),
            blake3: fovea_files::hash_file(&part)?,
        };
        fovea_files::rename(&part, &self.dir.join(&entry.file))?;
        let record = Record {
            entry,
            raw: raw_of(plan, number),
        };
        let bytes = serde_json::to_vec(&record).expect("a record holds only strings and numbers");
        fovea_files::replace_alone(&self.record(number), &bytes)?;
        Ok(record.entry)
    }

    /// Writes the manifest and clears away what an unfinished run keeps.
    pub fn finish(&self, manifest: &Manifest) -> Result<()> {
        for item in fs::read_dir(&self.dir)
            .map_err(|e| Error::io("list", &self.dir, e))?
            .flatten()
        {
            // Left by an earlier run over more images.
            let name = item.file_name().to_string_lossy().into_owned();
            if shard::is_shard_name(&name)
                && !manifest.shards.iter().any(|shard| shard.file == name)
            {
                fs::remove_file(item.path()).map_err(|e| Error::io("remove", item.path(), e))?;
            }
        }
        if self.complete.as_ref() != Some(manifest) {
            manifest.save(&self.dir)?;
        }
        fs::remove_dir_all(&self.work).map_err(|e| Error::io("remove", &self.work, e))?;
        Ok(fovea_files::sync_dir(&self.dir)?)
    }
}

fn raw_of(plan: &PreparePlan, shard: usize) -> String {
    plan.raw
        .fingerprint(&plan.raw.images[plan.images_of(shard)], true)
}

/// Locks the directory itself, so that no lock file is left in it. Waits a little: a process that was killed holds its
/// lock until its last write has reached the disk.
fn lock(dir: &Path, patience: Duration) -> Result<File> {
    let file = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy {
                    path: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => {
                // Some network file systems lock no directories; two runs at a time are the user's own care there.
                tracing::warn!("cannot lock {}: {error}", dir.display());
                return Ok(file);
            }
        }
    }
}

fn differences(there: &Recipe, asked: &Recipe) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |name: &str, there: &dyn ToString, asked: &dyn ToString| {
        let (there, asked) = (there.to_string(), asked.to_string());
        if there != asked {
            differences.push(format!("{name} {there} there, {asked} asked for"));
        }
    };
    compare("layout", &there.layout, &asked.layout);
    compare("size", &there.size, &asked.size);
    compare("patch", &there.patch, &asked.patch);
    compare("crop", &there.framing.crop, &asked.framing.crop);
    compare("fit", &there.framing.fit, &asked.framing.fit);
    compare(
        "min-lesion-pixels",
        &there.min_lesion_pixels,
        &asked.min_lesion_pixels,
    );
    compare("seed", &there.seed, &asked.seed);
    let grouped = |recipe: &Recipe| match &recipe.group_by {
        Some(pattern) => format!("`{pattern}`"),
        None => "none".to_owned(),
    };
    compare("group-by", &grouped(there), &grouped(asked));
    compare("mask", &there.mask, &asked.mask);
    compare("images per shard", &there.shard_images, &asked.shard_images);
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_at_a_time_are_one_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), Duration::ZERO).unwrap();
        let text = lock(dir.path(), Duration::from_millis(60))
            .unwrap_err()
            .to_string();
        assert!(text.contains("another process is preparing into"), "{text}");
        // One that goes away meanwhile is waited for.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(dir.path(), Duration::from_secs(60)));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
