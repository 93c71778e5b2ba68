//! Who copies, and who reads.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::IN_USE;
use crate::{Error, Result};

/// How long a copying process is waited for by one that wants to remove the copy: one that was killed holds its lock
/// until its last write has reached the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// The right to write the directory of a copy.
pub(super) struct Lock {
    _dir: File,
    /// Whether another process had it first.
    pub waited: bool,
}

/// Makes the directory if need be and locks it, however long that takes: the process that has it makes the same copy.
pub(super) fn take(dir: &Path) -> Result<Lock> {
    let mut waited = false;
    loop {
        make(dir)?;
        check_owner(dir)?;
        let file = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waited = true;
                file.lock().map_err(|e| Error::io("lock", dir, e))?;
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", dir, e)),
        }
        if is_at(&file, dir) {
            let path = dir.join(IN_USE);
            File::create(&path).map_err(|e| Error::writing(&path, 0, e))?;
            return Ok(Lock { _dir: file, waited });
        }
        // It was removed while this process waited.
    }
}

/// Only its user can put anything into it: /tmp is everybody's. What is above it is made as directories are.
fn make(dir: &Path) -> Result<()> {
    if let Some(scratch) = dir.parent() {
        fs::create_dir_all(scratch).map_err(|e| Error::writing(scratch, 0, e))?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(Error::writing(dir, 0, e)),
        _ => Ok(()),
    }
}

/// Locks the directory of a copy that nobody reads and nobody writes; else none.
pub(super) fn take_unused(dir: &Path) -> Result<Option<(Lock, Option<File>)>> {
    check_owner(dir)?;
    let file = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", dir, e)),
        }
    }
    let lock = Lock {
        _dir: file,
        waited: false,
    };
    let path = dir.join(IN_USE);
    let users = match File::open(&path) {
        Ok(users) => users,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Some((lock, None))),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    match users.try_lock() {
        Ok(()) => Ok(Some((lock, Some(users)))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
    }
}

/// Shows other processes that this one reads the copy, while the file is kept. `None` where it cannot: the copy may
/// then be removed, which costs a reader nothing that it has opened.
pub(crate) fn hold(dir: &Path) -> Option<File> {
    let file = File::open(dir.join(IN_USE)).ok()?;
    file.try_lock_shared().ok()?;
    Some(file)
}

/// Refuses a directory (or a link to one) that another user has put in this place.
fn check_owner(dir: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(dir).map_err(|e| Error::io("open", dir, e))?;
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        return Err(Error::Foreign {
            path: dir.to_owned(),
            owner: meta.uid(),
            user,
        });
    }
    if !meta.is_dir() {
        return Err(Error::io("use", dir, ErrorKind::NotADirectory.into()));
    }
    Ok(())
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
