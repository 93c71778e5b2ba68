//! Where the bytes of a shard come from: the file it was opened from, or a copy of it on this node.
//!
//! A [`ShardSource`] begins with the original and switches to the copy, once, when the copy exists. Nobody waits for
//! that: a reader takes whichever exists, and slices of the original stay valid because its mapping stays.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::manifest::ShardEntry;
use crate::shard::{Shard, ShardShape};
use crate::{Error, Result, stage};

/// How often a reader looks whether the copy of a shard has come.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Directories that may hold a copy, some time later.
#[derive(Debug)]
pub(crate) struct Copies {
    dirs: Vec<CopyDir>,
    begun: Instant,
}

#[derive(Debug)]
struct CopyDir {
    path: PathBuf,
    /// Held from the first shard that is read here: keeps [`stage::unstage`] from removing the copy.
    in_use: OnceLock<Option<File>>,
}

impl Copies {
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        let dirs = dirs
            .into_iter()
            .map(|path| CopyDir {
                path,
                in_use: OnceLock::new(),
            })
            .collect();
        Self {
            dirs,
            begun: Instant::now(),
        }
    }
}

/// One shard of an open dataset.
#[derive(Debug)]
pub(crate) struct ShardSource {
    original: Shard,
    file: String,
    bytes: u64,
    shape: ShardShape,
    /// Of the original, when it was opened: a copy is given the same.
    modified: Option<SystemTime>,
    copy: OnceLock<Shard>,
    /// No reader looks for the copy before, in milliseconds from [`Copies::begun`].
    next_look_ms: AtomicU64,
}

impl ShardSource {
    pub fn open(dir: &Path, entry: &ShardEntry, shape: ShardShape) -> Result<Self> {
        let path = dir.join(&entry.file);
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let modified = file.metadata().and_then(|meta| meta.modified()).ok();
        Ok(Self {
            original: Shard::map(&file, &path, shape)?,
            file: entry.file.clone(),
            bytes: entry.bytes,
            shape,
            modified,
            copy: OnceLock::new(),
            next_look_ms: AtomicU64::new(0),
        })
    }

    /// The copy when it has come, else the original. At most one reader in [`LOOK_EVERY`] looks for the copy; the
    /// others do not wait for it.
    pub fn shard(&self, copies: Option<&Copies>) -> &Shard {
        if let Some(copy) = self.copy.get() {
            return copy;
        }
        let Some(copies) = copies else {
            return &self.original;
        };
        let now = copies.begun.elapsed().as_millis() as u64;
        let due = self.next_look_ms.load(Ordering::Relaxed);
        let next = now + LOOK_EVERY.as_millis() as u64;
        let mine = due <= now
            && self
                .next_look_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            self.look(copies);
        }
        self.copy.get().unwrap_or(&self.original)
    }

    /// Changes over when there is a whole copy. Whether the copy is read from now on.
    pub fn look(&self, copies: &Copies) -> bool {
        if self.copy.get().is_some() {
            return true;
        }
        for dir in &copies.dirs {
            let path = dir.path.join(&self.file);
            match self.open_copy(&path) {
                Ok(Some(shard)) => {
                    dir.in_use.get_or_init(|| stage::hold(&dir.path));
                    // Another thread may have been first; both maps show the same bytes.
                    let _ = self.copy.set(shard);
                    return true;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!("not reading the staged copy: {error}"),
            }
        }
        false
    }

    /// The copy is named when its hash has been verified, and is given the original's time of modification then:
    /// length and time tell whether anybody has written to it since.
    fn open_copy(&self, path: &Path) -> Result<Option<Shard>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", path, e)),
        };
        let meta = file.metadata().map_err(|e| Error::io("open", path, e))?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        let same_time = match (self.modified, meta.modified()) {
            (Some(original), Ok(copy)) => stage::same_time(original, copy),
            _ => false,
        };
        if !own || meta.len() != self.bytes || !same_time {
            return Ok(None);
        }
        Shard::map(&file, path, self.shape).map(Some)
    }
}
