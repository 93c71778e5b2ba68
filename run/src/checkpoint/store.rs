//! Writing, publishing and removing checkpoint directories.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, CWD, FallocateFlags, RenameFlags};
use rustix::io::Errno;

use super::error::means_no_space;
use super::tensors::{Encoded, encode};
use super::{
    COMPLETE, Error, FORMAT_VERSION, FileEntry, OPTIMIZER, Result, STATE, Snapshot, State,
    TMP_PREFIX, WEIGHTS, dir_name, step_of, weights_blake3,
};

/// Bytes hashed and written (or read and hashed) at a time, so that they are still in the cache.
const PIECE: usize = 1 << 20;

/// A run's `checkpoints` directory, open for writing by this process alone.
pub(super) struct CheckpointStore {
    dir: PathBuf,
    /// Bytes that may still be written before the "disk" is full.
    #[cfg(test)]
    pub(super) room: std::cell::Cell<Option<u64>>,
}

/// A checkpoint that was written and verified.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) weights_blake3: String,
}

impl CheckpointStore {
    /// Makes the directory if need be and removes what a killed writer has left.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        if let Some(run_dir) = dir.parent().filter(|parent| *parent != Path::new("")) {
            sync_dir(run_dir)?;
        }
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let entry = entry.map_err(Error::io("list", dir))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // The first rank of the generation before may still be at it.
            if name.starts_with(TMP_PREFIX) && !belongs_to_another(&name) {
                let path = entry.path();
                tracing::info!(path = %path.display(), "removing an unfinished checkpoint");
                if let Err(error) = fs::remove_dir_all(&path) {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
            }
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            #[cfg(test)]
            room: std::cell::Cell::new(None),
        })
    }

    /// Writes one checkpoint. Nothing is left of it after an error, and an older checkpoint of the
    /// same step is replaced only by a whole one.
    pub(super) fn write(&self, snapshot: &Snapshot) -> Result<Written> {
        let weights = encode(&snapshot.weights)?;
        let optimizer = encode(&snapshot.optimizer)?;
        let needed_bytes = weights.bytes() + optimizer.bytes();
        let name = dir_name(snapshot.step);
        // The process id: a stopped writer of an earlier generation may wake up next to this one.
        let tmp = self.tmp_path(&name);
        let result = self.fill(&tmp, snapshot, &weights, &optimizer);
        let result = result.and_then(|written| {
            let path = self.dir.join(&name);
            self.publish(&tmp, &path)?;
            Ok(Written { path, ..written })
        });
        result.map_err(|error| {
            // First of all give the space back; the error to report is the one that we have.
            let _ = fs::remove_dir_all(&tmp);
            self.explain_no_space(error, needed_bytes)
        })
    }

    fn tmp_path(&self, name: &str) -> PathBuf {
        let pid = std::process::id();
        self.dir.join(format!("{TMP_PREFIX}{name}-{pid}"))
    }

    fn fill(
        &self,
        tmp: &Path,
        snapshot: &Snapshot,
        weights: &Encoded<'_>,
        optimizer: &Encoded<'_>,
    ) -> Result<Written> {
        fs::create_dir(tmp).map_err(Error::io("create", tmp))?;
        let mut files = BTreeMap::new();
        for (name, encoded) in [(WEIGHTS, weights), (OPTIMIZER, optimizer)] {
            let data = encoded.tensors.iter().map(|t| t.data.bytes());
            let parts = std::iter::once(&encoded.header[..]).chain(data);
            let entry = self.write_file(&tmp.join(name), encoded.bytes(), parts)?;
            files.insert(name.to_string(), entry);
        }
        let weights_blake3 = weights_blake3(&snapshot.weights);
        let state = State {
            format_version: FORMAT_VERSION,
            step: snapshot.step,
            epoch: snapshot.epoch,
            cursor: snapshot.cursor,
            seed: snapshot.seed,
            progress: snapshot.progress.clone(),
            best_step: snapshot.best_step,
            config: snapshot.config.clone(),
            config_blake3: snapshot.config_blake3.clone(),
            dataset_blake3: snapshot.dataset_blake3.clone(),
            image_size: snapshot.image_size,
            task: snapshot.task.clone(),
            patch: snapshot.patch,
            framing: snapshot.framing,
            weights_blake3: weights_blake3.clone(),
            files,
        };
        let path = tmp.join(STATE);
        let json = serde_json::to_vec_pretty(&state)
            .map_err(|e| Error::io("write", &path)(io::Error::other(e)))?;
        let state_entry = self.write_file(&path, json.len() as u64, [&json[..]])?;
        let tensors: u64 = state.files.values().map(|entry| entry.bytes).sum();
        for (name, entry) in state
            .files
            .iter()
            .chain([(&STATE.to_string(), &state_entry)])
        {
            read_back(&tmp.join(name), entry)?;
        }
        let complete = complete_text(&state_entry.blake3);
        self.write_file(
            &tmp.join(COMPLETE),
            complete.len() as u64,
            [complete.as_bytes()],
        )?;
        sync_dir(tmp)?;
        Ok(Written {
            path: tmp.to_path_buf(),
            bytes: tensors + state_entry.bytes + complete.len() as u64,
            weights_blake3,
        })
    }

    /// Writes and syncs one file, hashing it on the way.
    fn write_file<'a>(
        &self,
        path: &Path,
        bytes: u64,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<FileEntry> {
        let write = Error::io("write", path);
        let run = || -> io::Result<blake3::Hash> {
            let mut file = File::create_new(path)?;
            // Learns at once, not after most of the work, that the space is not there. Where a file
            // system cannot do this, nothing is lost.
            let reserved = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes.max(1));
            if let Err(e @ (Errno::NOSPC | Errno::DQUOT)) = reserved {
                return Err(e.into());
            }
            let mut hasher = blake3::Hasher::new();
            for piece in parts.into_iter().flat_map(|part| part.chunks(PIECE)) {
                hasher.update(piece);
                #[cfg(test)]
                self.use_room(piece.len())?;
                file.write_all(piece)?;
            }
            file.sync_all()?;
            Ok(hasher.finalize())
        };
        let hash = run().map_err(write)?;
        Ok(FileEntry {
            bytes,
            blake3: hash.to_hex().to_string(),
        })
    }

    #[cfg(test)]
    fn use_room(&self, bytes: usize) -> io::Result<()> {
        let Some(room) = self.room.get() else {
            return Ok(());
        };
        let left = room.checked_sub(bytes as u64);
        self.room.set(Some(left.unwrap_or(0)));
        left.map(|_| ()).ok_or(Errno::NOSPC.into())
    }

    /// Gives a finished directory its name.
    fn publish(&self, tmp: &Path, path: &Path) -> Result<()> {
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::io("rename", from));
        if path.exists() {
            // After a fall-back, the same step comes again. Swapped in one go where that is possible, so
            // that there is a checkpoint of this step at every moment.
            let swapped = rustix::fs::renameat_with(CWD, tmp, CWD, path, RenameFlags::EXCHANGE);
            if swapped.is_err() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let old = self.tmp_path(&format!("replaced-{name}"));
                rename(path, &old)?;
                rename(tmp, path)?;
                let _ = fs::remove_dir_all(&old); // else the next start removes it
            } else {
                let _ = fs::remove_dir_all(tmp);
            }
        } else {
            rename(tmp, path)?;
        }
        sync_dir(&self.dir)
    }

    fn explain_no_space(&self, error: Error, needed_bytes: u64) -> Error {
        match error {
            Error::Io { path, source, .. } if means_no_space(&source) => Error::NoSpace {
                path,
                needed_bytes,
                free_bytes: rustix::fs::statvfs(&self.dir)
                    .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
                    .unwrap_or(0),
                source,
            },
            other => other,
        }
    }

    /// Removes a checkpoint; readers see all of it or nothing.
    pub(super) fn remove(&self, step: u64) -> Result<()> {
        let name = dir_name(step);
        let path = self.dir.join(&name);
        let doomed = self.tmp_path(&format!("removed-{name}"));
        fs::rename(&path, &doomed).map_err(Error::io("remove", &path))?;
        fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))
    }
}

/// Whether a temporary directory's name ends with the id of another process that is alive.
fn belongs_to_another(name: &str) -> bool {
    let pid = name.rsplit('-').next().and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| {
        pid != rustix::process::getpid() && rustix::process::test_kill_process(pid).is_ok()
    })
}

/// Content of `COMPLETE`: the hash that makes a checkpoint whole.
pub(super) fn complete_text(state_blake3: &str) -> String {
    format!("fovea checkpoint {FORMAT_VERSION}\nblake3 {state_blake3} {STATE}\n")
}

/// blake3 of what is left to read, in pieces, and its length.
pub(super) fn hash_reader(mut reader: impl Read) -> io::Result<(blake3::Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok((hasher.finalize(), hasher.count())),
            Ok(len) => hasher.update(&piece[..len]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
    }
}

/// Whether the disk has what was written to it, as far as the kernel lets us see: its cached pages are
/// dropped first.
fn read_back(path: &Path, entry: &FileEntry) -> Result<()> {
    let file = File::open(path).map_err(Error::io("read back", path))?;
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed); // an aid only
    let (hash, bytes) = hash_reader(file).map_err(Error::io("read back", path))?;
    if hash.to_hex().as_str() == entry.blake3 && bytes == entry.bytes {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_path_buf(),
        reason: format!(
            "read back just after writing, it has {bytes} bytes with blake3 {hash}, where {} with {} \
             were written",
            entry.bytes, entry.blake3
        ),
    })
}

fn sync_dir(dir: &Path) -> Result<()> {
    fovea_files::sync_dir(dir).map_err(|e| Error::io(e.action, dir)(e.source))
}

/// Renames every checkpoint of a step after `step` to `abandoned-step-...`, and says which. For a run
/// that goes on from an older checkpoint: those of the course it has left would otherwise be taken
/// for its newest. To be called before the [`super::Writer`] is spawned.
pub fn set_aside_newer(dir: &Path, step: u64) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut moved = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        let name = name.to_string_lossy();
        if step_of(&name).is_none_or(|found| found <= step) {
            continue;
        }
        let free = |n: u32| dir.join(format!("abandoned-{name}-{n}"));
        let to = (1..).map(free).find(|path| !path.exists());
        let to = to.unwrap_or_else(|| free(0)); // renaming onto a full directory fails, loudly
        fs::rename(dir.join(&*name), &to).map_err(Error::io("rename", &dir.join(&*name)))?;
        moved.push(to);
    }
    sync_dir(dir)?;
    moved.sort();
    Ok(moved)
}
