//! The coordinator's part of the run directory: the lock, and the address file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fovea_files::{Durability, Mode};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::{Error, Result};
use crate::files;
use crate::host::hostname;
use crate::protocol::Reply;

/// File that a coordinator holds locked for its whole life.
pub const LOCK_FILE: &str = "lock";
/// File that says where the coordinator listens; removed when it ends in order.
pub const INFO_FILE: &str = "coordinator.json";
/// How long a coordinator that an address file names may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The content of `coordinator.json`: how clients find the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorInfo {
    /// `host:port` to connect to.
    pub addr: String,
    /// Process id of the coordinator.
    pub pid: u32,
    /// Host that the coordinator runs on.
    pub host: String,
    /// When it started, in milliseconds since 1970 (UTC).
    pub started_unix_ms: u64,
    /// The coordinator's [`crate::protocol::PROTOCOL_VERSION`].
    pub protocol: u8,
    /// [`directory_id`] of its run directory: the file may have been copied along with another. 0 when not known.
    #[serde(default)]
    pub directory: u64,
}

impl CoordinatorInfo {
    /// Reads it from a run directory. That of another directory counts as not there.
    pub fn load(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(INFO_FILE);
        let bytes = files::read_small(&path)?;
        let info: Self = serde_json::from_slice(&bytes).map_err(|error| Error::Json {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        if info.directory != 0 && info.directory != directory_id(run_dir) {
            let copied = "it names the coordinator of a directory that this one is a copy of";
            let error = io::Error::new(io::ErrorKind::NotFound, copied);
            return Err(Error::file("use", &path)(error));
        }
        Ok(info)
    }

    pub(crate) fn store(&self, run_dir: &Path) -> Result<()> {
        let path = run_dir.join(INFO_FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Json {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        fovea_files::replace(&path, &bytes, Durability::Synced, Mode::Shared)?;
        Ok(())
    }

    /// Whether a coordinator greets at this address.
    fn answers(&self) -> bool {
        let Some(addr) = self.addr.to_socket_addrs().ok().and_then(|mut a| a.next()) else {
            return false;
        };
        let Ok(mut stream) = TcpStream::connect_timeout(&addr, PROBE_TIMEOUT) else {
            return false;
        };
        if stream.set_read_timeout(Some(PROBE_TIMEOUT)).is_err() {
            return false;
        }
        match codec::read_body(&mut stream, codec::MAX_HELLO) {
            Ok(Some(body)) => matches!(
                codec::decode_reply(&body),
                Ok(Reply::Challenge { .. } | Reply::Drop { .. }) | Err(Error::Version { .. })
            ),
            _ => false,
        }
    }
}

/// The exclusive right to a run directory, held until it is dropped or the process ends. Take it
/// before anything in the directory is written.
#[derive(Debug)]
pub struct RunLock {
    run_dir: PathBuf,
    _file: File,
}

impl RunLock {
    /// Creates the directory if need be and takes the lock, without waiting for it.
    pub fn acquire(run_dir: &Path) -> Result<Self> {
        fs::create_dir_all(run_dir).map_err(Error::file("create the directory", run_dir))?;
        let path = run_dir.join(LOCK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(run_dir)),
            Err(error) => return Err(Error::file("lock", &path)(error.into())),
        }
        // Some network file systems lock on one machine only; a coordinator elsewhere still answers.
        if let Ok(info) = CoordinatorInfo::load(run_dir)
            && info.answers()
        {
            return Err(in_use(run_dir));
        }
        Ok(Self {
            run_dir: run_dir.to_path_buf(),
            _file: file,
        })
    }

    /// The directory that is locked.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

fn in_use(run_dir: &Path) -> Error {
    let info = CoordinatorInfo::load(run_dir).ok();
    let unknown = || "unknown (it is just starting)".to_owned();
    Error::RunInUse {
        run_dir: run_dir.to_path_buf(),
        pid: info.as_ref().map_or_else(unknown, |i| i.pid.to_string()),
        host: info.map_or_else(hostname, |i| i.host),
    }
}

/// Tells a run directory from a copy of it, the same on all machines that see it: its inode. 0 when it cannot be read.
pub fn directory_id(run_dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;

    fs::metadata(run_dir).map_or(0, |meta| meta.ino())
}

/// Milliseconds since 1970 (UTC), for people only: nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(dir.path()).unwrap();
        let info = CoordinatorInfo {
            addr: "127.0.0.1:1".to_owned(),
            pid: 4242,
            host: "node7".to_owned(),
            started_unix_ms: 0,
            protocol: 1,
            directory: 0,
        };
        info.store(dir.path()).unwrap();
        let error = RunLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("in use by pid 4242 on host node7"),
            "{error}"
        );
        drop(lock);
        // The address file is stale now: nobody listens on port 1.
        RunLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_copied_address_file_is_not_this_directorys() {
        let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let info = CoordinatorInfo {
            addr: "127.0.0.1:1".to_owned(),
            pid: 1,
            host: "node7".to_owned(),
            started_unix_ms: 0,
            protocol: 1,
            directory: directory_id(original.path()),
        };
        info.store(original.path()).unwrap();
        assert_eq!(CoordinatorInfo::load(original.path()).unwrap(), info);
        let file = |dir: &tempfile::TempDir| dir.path().join(INFO_FILE);
        fs::copy(file(&original), file(&copy)).unwrap();
        let error = CoordinatorInfo::load(copy.path()).unwrap_err().to_string();
        assert!(error.contains("a copy of"), "{error}");
    }

    #[test]
    fn a_coordinator_that_answers_holds_the_directory_also_without_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let info = CoordinatorInfo {
            addr: listener.local_addr().unwrap().to_string(),
            pid: 77,
            host: "elsewhere".to_owned(),
            started_unix_ms: 0,
            protocol: 1,
            directory: 0,
        };
        info.store(dir.path()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            codec::write_frame(&mut stream, &Reply::Challenge { nonce: [0; 32] }).unwrap();
        });
        let error = RunLock::acquire(dir.path()).unwrap_err();
        server.join().unwrap();
        assert!(matches!(error, Error::RunInUse { ref pid, .. } if pid == "77"));
    }
}
