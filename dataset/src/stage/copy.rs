//! One shard from one file system to another, several at a time.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::manifest::ShardEntry;
use crate::{Error, ProgressListener, Result};

use super::PART;

/// Read and written at a time.
const PIECE_BYTES: usize = 4 << 20;
/// How often a shard is copied before the disk is blamed.
const ATTEMPTS: u32 = 2;

/// One shard and its copy.
pub(super) struct CopyJob<'a> {
    pub entry: &'a ShardEntry,
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Does `work` for each job in some threads; results in order. After the first error no other job begins, and `stop`
/// tells those under way.
pub(super) fn each<T: Send>(
    jobs: &[CopyJob],
    threads: usize,
    work: impl Fn(&CopyJob, &AtomicBool) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(i) else { return };
                    match work(job, &stop) {
                        Ok(result) => locked(&done).push((i, result)),
                        Err(error) => {
                            locked(&failed).get_or_insert(error);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies a shard under a temporary name, verifies what reached the disk, and names it.
pub(super) fn copy(
    job: &CopyJob,
    stop: &AtomicBool,
    progress: &dyn ProgressListener,
) -> Result<()> {
    let mut part = job.to.clone().into_os_string();
    part.push(PART);
    let part = PathBuf::from(part);
    for attempt in 1..=ATTEMPTS {
        let written = write(job, &part, stop, progress);
        match written.and_then(|()| read_back(&part)) {
            Ok(hash) if hash == job.entry.blake3 => {
                return Ok(fovea_files::rename(&part, &job.to)?);
            }
            Ok(hash) => {
                let path = part.display();
                tracing::warn!("{path}: written with {}, reads {hash}", job.entry.blake3);
            }
            Err(error) => {
                // The error to report is the one that we have.
                let _ = fs::remove_file(&part);
                return Err(error);
            }
        }
        if attempt < ATTEMPTS {
            tracing::warn!("copying {} again", job.from.display());
        }
    }
    let _ = fs::remove_file(&part);
    Err(Error::BadCopy {
        path: job.to.clone(),
        attempts: ATTEMPTS,
    })
}

/// Writes `part` and makes it durable. What is read is hashed on the way: a damaged original is the original's fault.
fn write(
    job: &CopyJob,
    part: &Path,
    stop: &AtomicBool,
    progress: &dyn ProgressListener,
) -> Result<()> {
    let reading = |e| Error::io("read", &job.from, e);
    let writing = |e| Error::writing(part, job.entry.bytes, e);
    let mut source = File::open(&job.from).map_err(|e| Error::io("open", &job.from, e))?;
    let before = source.metadata().map_err(reading)?;
    if before.len() != job.entry.bytes {
        return Err(Error::ShardSize {
            path: job.from.clone(),
            expected: job.entry.bytes,
            found: before.len(),
        });
    }
    let mut target = File::create(part).map_err(writing)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match source.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&piece[..n]);
                target.write_all(&piece[..n]).map_err(writing)?;
                progress.advance(n as u64);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(reading(e)),
        }
        if stop.load(Ordering::Relaxed) {
            // Another shard has failed; its error is the one that is reported.
            return Err(Error::io("read", &job.from, ErrorKind::Interrupted.into()));
        }
    }
    let found = hasher.finalize().to_hex().to_string();
    if found != job.entry.blake3 {
        return Err(Error::ShardHash {
            path: job.from.clone(),
            expected: job.entry.blake3.clone(),
            found,
        });
    }
    target
        .set_permissions(Permissions::from_mode(0o400))
        .and_then(|()| before.modified())
        .and_then(|time| target.set_times(FileTimes::new().set_modified(time)))
        .and_then(|()| target.sync_all())
        .map_err(writing)
}

/// The hash of what is on the disk, and not of what the page cache remembers of it.
fn read_back(part: &Path) -> Result<String> {
    let file = File::open(part).map_err(|e| Error::io("open", part, e))?;
    // Where the system does not want to forget, the hash is still that of the file.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(fovea_files::hash_file(part)?)
}
