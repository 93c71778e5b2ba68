//! A copy of a prepared dataset on a node's own disk, for one job or several.
//!
//! The copy lies in `SCRATCH/fovea-USER-HASH/`, where HASH is the manifest's: another dataset, or the same one prepared
//! differently, has another directory, so nobody reads a stale copy. Inside are:
//!
//! | file | |
//! |---|---|
//! | `shard-00000.safetensors` | whole: verified by its hash, on disk, with the original's modification time |
//! | `shard-00000.safetensors.part` | being copied; worthless after a crash |
//! | `in-use` | empty; each reader holds a shared lock on it |
//! | `manifest.json` | written last: with it the directory is a dataset like any other |
//!
//! The copying process locks the directory itself.

mod copy;
mod lock;

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::manifest::{MANIFEST_FILE, Manifest, ShardEntry};
use crate::{Error, ProgressListener, Result, shard};

pub(crate) use lock::hold;

/// What a shard is called while it is copied.
const PART: &str = ".part";
/// The file that readers of the copy lock.
const IN_USE: &str = "in-use";

/// The choices of [`stage`]: how many shards at a time, and how much room it leaves.
#[derive(Clone, Copy, Debug)]
pub struct StageOptions {
    /// Shards copied at a time.
    pub threads: usize,
    /// Free bytes that must be left when everything is copied.
    pub margin_bytes: u64,
}

impl Default for StageOptions {
    /// Four at a time, which is enough to fill a link and does not hold up the file server; 1 GiB left over.
    fn default() -> Self {
        Self {
            threads: 4,
            margin_bytes: 1 << 30,
        }
    }
}

/// What [`stage`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageOutcome {
    /// The copy is complete.
    Staged {
        /// The directory of the copy, inside the one that was asked for.
        dir: PathBuf,
        /// Bytes of its shards.
        bytes: u64,
        /// Shards that were copied now.
        copied: usize,
        /// Shards that were there, and whole.
        kept: usize,
    },
    /// There is no room. Shards that were whole before are still there.
    Skipped {
        /// Bytes that are needed, the margin included.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

/// What [`unstage`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnstageOutcome {
    /// The copy existed and was removed.
    Removed,
    /// There was no copy to remove.
    Absent,
    /// Somebody reads it, or copies into it: it stays.
    InUse,
}

/// The directory below `scratch` for this user's copy of the dataset with this manifest.
pub fn staged_dir(scratch: &Path, manifest: &Manifest) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    scratch.join(format!("fovea-{user}-{}", &manifest.blake3()[..16]))
}

/// Copies the dataset in `from` below `scratch`; waits for another process that does the same. What is there already
/// and whole is kept, so it continues a copy that was interrupted. It reports progress in bytes.
pub fn stage(
    from: &Path,
    scratch: &Path,
    options: &StageOptions,
    progress: &dyn ProgressListener,
) -> Result<StageOutcome> {
    let manifest = Manifest::load(from)?;
    let dir = staged_dir(scratch, &manifest);
    match fill(from, &dir, &manifest, options, progress) {
        // The check comes before, but somebody else may have filled the disk meanwhile. A part of the dataset would
        // only make it worse for all.
        Err(Error::DiskFull { .. }) => {
            remove(&dir, &manifest)?;
            Ok(StageOutcome::Skipped {
                needed: bytes(&manifest.shards) + options.margin_bytes,
                free: free_bytes(scratch)?,
            })
        }
        outcome => outcome,
    }
}

fn fill(
    from: &Path,
    dir: &Path,
    manifest: &Manifest,
    options: &StageOptions,
    progress: &dyn ProgressListener,
) -> Result<StageOutcome> {
    let lock = lock::take(dir)?;
    remove_parts(dir)?;
    let jobs: Vec<copy::CopyJob> = manifest
        .shards
        .iter()
        .map(|entry| copy::CopyJob {
            entry,
            from: from.join(&entry.file),
            to: dir.join(&entry.file),
        })
        .collect();
    // Who has waited for another process need not read everything that this one has just verified.
    let whole = copy::each(&jobs, options.threads, |job, _| is_whole(job, lock.waited))?;
    let missing: Vec<copy::CopyJob> = jobs
        .into_iter()
        .zip(whole)
        .filter_map(|(job, whole)| (!whole).then_some(job))
        .collect();
    let missing_bytes = bytes(missing.iter().map(|job| job.entry));
    let (needed, free) = (missing_bytes + options.margin_bytes, free_bytes(dir)?);
    if !missing.is_empty() && needed > free {
        if missing.len() == manifest.shards.len() {
            remove(dir, manifest)?;
        }
        return Ok(StageOutcome::Skipped { needed, free });
    }
    progress.start(missing_bytes);
    copy::each(&missing, options.threads, |job, stop| {
        copy::copy(job, stop, progress)
    })?;
    progress.finish();
    finish(from, dir)?;
    Ok(StageOutcome::Staged {
        dir: dir.to_owned(),
        bytes: bytes(&manifest.shards),
        copied: missing.len(),
        kept: manifest.shards.len() - missing.len(),
    })
}

fn bytes<'a>(shards: impl IntoIterator<Item = &'a ShardEntry>) -> u64 {
    shards.into_iter().map(|entry| entry.bytes).sum()
}

/// Removes this user's copy of the dataset in `from` below `scratch`, unless it is in use; and of what lies there
/// nothing but what [`stage`] makes.
pub fn unstage(from: &Path, scratch: &Path) -> Result<UnstageOutcome> {
    let manifest = Manifest::load(from)?;
    let dir = staged_dir(scratch, &manifest);
    if !dir.exists() {
        return Ok(UnstageOutcome::Absent);
    }
    let Some(_lock) = lock::take_unused(&dir)? else {
        return Ok(UnstageOutcome::InUse);
    };
    remove(&dir, &manifest)?;
    Ok(UnstageOutcome::Removed)
}

/// Whether a copy has the time of modification that its original has. Some file systems keep whole seconds only.
pub(crate) fn same_time(original: SystemTime, copy: SystemTime) -> bool {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (original, copy) = (since(original), since(copy));
    original == copy || (copy.subsec_nanos() == 0 && original.as_secs() == copy.as_secs())
}

/// Whether the copy of a shard holds what it should; by its length and time only when `quick`.
fn is_whole(job: &copy::CopyJob, quick: bool) -> Result<bool> {
    let Ok(meta) = fs::metadata(&job.to) else {
        return Ok(false);
    };
    let modified = fs::metadata(&job.from)
        .and_then(|meta| meta.modified())
        .map_err(|e| Error::io("open", &job.from, e))?;
    let same = meta.modified().is_ok_and(|copy| same_time(modified, copy));
    if meta.len() != job.entry.bytes || (quick && !same) {
        return Ok(false);
    }
    if !quick && fovea_files::hash_file(&job.to)? != job.entry.blake3 {
        return Ok(false);
    }
    if !same {
        // Right bytes, another time: the dataset was prepared or copied anew. Readers go by the time.
        let file = File::open(&job.to).map_err(|e| Error::io("open", &job.to, e))?;
        file.set_times(FileTimes::new().set_modified(modified))
            .map_err(|e| Error::io("set the time of", &job.to, e))?;
    }
    Ok(true)
}

/// The manifest comes last.
fn finish(from: &Path, dir: &Path) -> Result<()> {
    let manifest = from.join(MANIFEST_FILE);
    let bytes = fs::read(&manifest).map_err(|e| Error::io("read", &manifest, e))?;
    fovea_files::sync_dir(dir)?;
    Ok(fovea_files::replace_alone(
        &dir.join(MANIFEST_FILE),
        &bytes,
    )?)
}

/// Bytes that this user may still write where `dir` is.
fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| Error::io("measure", dir, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What a process left that was killed.
fn remove_parts(dir: &Path) -> Result<()> {
    let items = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        items => items.map_err(|e| Error::io("list", dir, e))?,
    };
    for item in items {
        let item = item.map_err(|e| Error::io("list", dir, e))?;
        let name = item.file_name().to_string_lossy().into_owned();
        if name.strip_suffix(PART).is_some_and(shard::is_shard_name) {
            remove_file(&item.path())?;
        }
    }
    Ok(())
}

/// Removes what [`stage`] makes; the directory too, unless somebody has put other things into it.
fn remove(dir: &Path, manifest: &Manifest) -> Result<()> {
    // First, so that a removal that is interrupted does not leave what looks complete.
    remove_file(&dir.join(MANIFEST_FILE))?;
    remove_file(&dir.join(format!("{MANIFEST_FILE}.tmp")))?;
    remove_parts(dir)?;
    for ShardEntry { file, .. } in &manifest.shards {
        remove_file(&dir.join(file))?;
    }
    remove_file(&dir.join(IN_USE))?;
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!("{} stays: it holds other files", dir.display());
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", dir, e)),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
