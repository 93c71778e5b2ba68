//! Reading checkpoints: whole, checked along the chain COMPLETE -> state.json -> files.
//!
//! A checkpoint may be removed during a read. So the reader first opens all its files through one
//! directory handle; open files stay readable.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;

use super::pytorch;
use super::store::hash_reader;
use super::tensors::{DecodeError, decode};
use super::{
    COMPLETE, Error, FORMAT_VERSION, FileEntry, NamedTensor, OPTIMIZER, Result, STATE, State,
    WEIGHTS, step_of,
};

/// COMPLETE is two short lines; whatever is longer is something else.
const COMPLETE_MAX_BYTES: u64 = 1024;
/// state.json holds a config and some numbers per epoch.
const STATE_MAX_BYTES: u64 = 256 << 20;

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Content of `state.json`.
    pub state: State,
    /// Parameters and buffers, in byte order of their names.
    pub weights: Vec<NamedTensor>,
    /// The optimizer's tensors, in byte order of their names.
    pub optimizer: Vec<NamedTensor>,
}

/// The checkpoint to go on from.
#[derive(Debug)]
pub struct ResumePoint {
    /// Directory of the checkpoint.
    pub path: PathBuf,
    /// Its state; all files were checked against it.
    pub state: State,
    /// The newer ones that are of no use, newest first.
    pub skipped: Vec<Skipped>,
}

/// A checkpoint that was passed over.
#[derive(Debug)]
pub struct Skipped {
    /// Directory of the checkpoint.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: Error,
}

/// A directory whose name begins with `step-`.
#[derive(Debug)]
pub struct StepDirectory {
    /// The step in its name.
    pub step: u64,
    /// Directory of the checkpoint.
    pub path: PathBuf,
    /// Its state, or what is wrong with it. Sizes are checked, hashes of tensor files are not.
    pub state: Result<State>,
}

/// All checkpoints of a run, oldest first; none if `dir` does not exist yet.
pub fn list(dir: &Path) -> Result<Vec<StepDirectory>> {
    let entries = step_dirs(dir)?.into_iter();
    let entries = entries.map(|(step, path)| {
        let state = OpenedCheckpoint::new(&path).map(|opened| opened.state);
        StepDirectory { step, path, state }
    });
    // One that was removed between listing and opening is not there.
    let there = |entry: &StepDirectory| !entry.state.as_ref().is_err_and(is_gone);
    Ok(entries.filter(there).collect())
}

/// The checkpoint of the highest step that is whole, every byte checked. Those that are not are passed
/// over with a warning. Another format version is an error: going on from an older checkpoint would
/// silently undo what another fovea has done. So is it when there are checkpoints and none is whole:
/// beginning anew would throw away what the run has done.
pub fn newest_complete(dir: &Path) -> Result<Option<ResumePoint>> {
    newest_complete_up_to(dir, u64::MAX)
}

/// As [`newest_complete`], of those up to `last`: what is beyond, the records of the run do not know.
pub fn newest_complete_up_to(dir: &Path, last: u64) -> Result<Option<ResumePoint>> {
    /// A writer removes checkpoints while we look, but never the newest.
    const SCANS: usize = 20;
    let mut scan = 0;
    'scan: loop {
        scan += 1;
        let mut skipped = Vec::new();
        for (step, path) in step_dirs(dir)?.into_iter().rev() {
            if step > last {
                tracing::warn!(
                    "passing over {}: the ledger ends at step {last}",
                    path.display()
                );
                continue;
            }
            match verify(&path) {
                Ok(state) => {
                    return Ok(Some(ResumePoint {
                        path,
                        state,
                        skipped,
                    }));
                }
                Err(error) if is_gone(&error) && scan < SCANS => continue 'scan,
                Err(error @ (Error::Incomplete { .. } | Error::Damaged { .. })) => {
                    tracing::warn!("passing over a checkpoint: {}", error.headline());
                    skipped.push(Skipped { path, error });
                }
                Err(error) => return Err(error),
            }
        }
        return match skipped.first() {
            None => Ok(None),
            Some(Skipped { error, .. }) => Err(Error::NoneUsable {
                dir: dir.to_path_buf(),
                count: skipped.len(),
                newest: error.headline(),
            }),
        };
    }
}

/// Checks every byte of a checkpoint.
pub fn verify(path: &Path) -> Result<State> {
    let mut opened = OpenedCheckpoint::new(path)?;
    for (name, entry) in &opened.state.files {
        let Some(file) = opened.files.get_mut(&name[..]) else {
            continue; // `OpenedCheckpoint::new` has refused missing files that this version knows
        };
        let at = path.join(name);
        let (hash, _) = hash_reader(file).map_err(read_error(&at))?;
        check_hash(&at, hash, entry)?;
    }
    Ok(opened.state)
}

/// Whether a checkpoint is there as a whole. Sizes are checked and state.json is hashed; the tensor
/// files are not, that is [`verify`].
pub fn is_complete(path: &Path) -> bool {
    OpenedCheckpoint::new(path).is_ok()
}

/// Reads a checkpoint, checking every byte.
pub fn load(path: &Path) -> Result<Loaded> {
    let mut opened = OpenedCheckpoint::new(path)?;
    let weights = opened.tensors(WEIGHTS)?;
    let optimizer = opened.tensors(OPTIMIZER)?;
    Ok(Loaded {
        state: opened.state,
        weights,
        optimizer,
    })
}

/// The weights of a checkpoint directory (checked), of a bare safetensors file, or of a state dict that PyTorch saved,
/// in byte order of their names.
pub fn load_weights(path: &Path) -> Result<Vec<NamedTensor>> {
    if fs::metadata(path)
        .map_err(Error::io("read", path))?
        .is_dir()
    {
        return OpenedCheckpoint::new(path)?.tensors(WEIGHTS);
    }
    refuse_pipe(path)?;
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    decode_weights(path, &bytes)
}

/// Refuses what is there and is no file: reading it might never end.
pub fn refuse_pipe(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(Error::Foreign {
            path: path.to_path_buf(),
            what: "this is a device or a pipe, not a file".to_owned(),
            help: GIVE,
        }),
        // What is not there is told by whoever reads it.
        _ => Ok(()),
    }
}

const GIVE: &str = "give a .safetensors file, a state dict of PyTorch (.pth, .pt), a checkpoint or a run directory; copy the file again if it was cut off";

/// What a file that is no safetensors file is, by its first bytes, and what to do.
fn foreign(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if bytes.is_empty() {
        return Some(("it is empty", GIVE));
    }
    let known: [(&[u8], &str, &str); 4] = [
        (b"\x89HDF", "it is an HDF5 file (Keras)", GIVE),
        (b"\x93NUMPY", "it is a NumPy array", GIVE),
        (
            b"version https://git-lfs",
            "it is a Git LFS pointer and not the file itself",
            "run `git lfs pull` where it was cloned",
        ),
        (
            b"<",
            "it is a web page or another text",
            "download it again",
        ),
    ];
    known
        .into_iter()
        .find(|(start, ..)| bytes.starts_with(start))
        .map(|(_, what, help)| (what, help))
}

/// The tensors of a safetensors file, or of a state dict of PyTorch ([`pytorch`]), that was read from `path`, in byte
/// order of their names.
pub fn decode_weights(path: &Path, bytes: &[u8]) -> Result<Vec<NamedTensor>> {
    let failed = match decode(bytes) {
        Ok(tensors) => return Ok(tensors),
        // A safetensors file begins with a length, whose bytes may be those of a pickle: it was tried first.
        Err(DecodeError::Format(_)) if pytorch::is_one(bytes) => {
            return pytorch::decode(bytes).map_err(|error| Error::Foreign {
                path: path.to_path_buf(),
                what: error.what,
                help: error.help,
            });
        }
        Err(error) => error,
    };
    Err(match failed {
        DecodeError::Tensor(error) => Error::Foreign {
            path: path.to_path_buf(),
            what: error.headline(),
            help: "weights are read as F32, F16 or BF16, counts as I64: save them so",
        },
        DecodeError::Format(reason) => {
            let (what, help) = foreign(bytes).map_or_else(
                || (format!("it is no safetensors file: {reason}"), GIVE),
                |(what, help)| (what.to_owned(), help),
            );
            Error::Foreign {
                path: path.to_path_buf(),
                what,
                help,
            }
        }
    })
}

/// A checkpoint whose COMPLETE and state.json are in order and whose files have the right sizes.
struct OpenedCheckpoint {
    path: PathBuf,
    state: State,
    files: BTreeMap<&'static str, File>,
}

impl OpenedCheckpoint {
    fn new(path: &Path) -> Result<Self> {
        let incomplete = |reason: String| Error::Incomplete {
            path: path.to_path_buf(),
            reason,
        };
        let mut files = open_all(path)?;
        let complete = take(path, &mut files, COMPLETE, COMPLETE_MAX_BYTES)?.ok_or_else(|| {
            let run = path.join("checkpoints").is_dir();
            let hint = if run { " (it is a run directory)" } else { "" };
            incomplete(format!("it has no file {COMPLETE}{hint}"))
        })?;
        let expected = state_hash(path, &complete)?;
        let state = take(path, &mut files, STATE, STATE_MAX_BYTES)?
            .ok_or_else(|| incomplete(format!("it has no file {STATE}")))?;
        let at = path.join(STATE);
        let actual = blake3::hash(&state);
        if actual.to_hex().as_str() != expected {
            return Err(Error::Damaged {
                path: at,
                reason: format!("its blake3 is {actual}, but {COMPLETE} says {expected}"),
            });
        }
        let state = parse_state(&at, &state)?;
        for name in [WEIGHTS, OPTIMIZER] {
            let at = path.join(name);
            let (Some(file), Some(entry)) = (files.get(name), state.files.get(name)) else {
                return Err(incomplete(format!("it has no file {name}")));
            };
            let bytes = file.metadata().map_err(read_error(&at))?.len();
            if bytes != entry.bytes {
                let reason = format!("it has {bytes} bytes, but {STATE} says {}", entry.bytes);
                return Err(Error::Damaged { path: at, reason });
            }
        }
        let path = path.to_path_buf();
        Ok(Self { path, state, files })
    }

    fn tensors(&mut self, name: &'static str) -> Result<Vec<NamedTensor>> {
        let at = self.path.join(name);
        let (Some(file), Some(entry)) = (self.files.get_mut(name), self.state.files.get(name))
        else {
            let reason = format!("it has no file {name}");
            return Err(Error::Incomplete { path: at, reason });
        };
        let mut bytes = Vec::with_capacity(entry.bytes.try_into().unwrap_or(0));
        file.rewind().map_err(read_error(&at))?;
        file.read_to_end(&mut bytes).map_err(read_error(&at))?;
        check_hash(&at, blake3::hash(&bytes), entry)?;
        decode_weights(&at, &bytes)
    }
}

/// Opens those files of a checkpoint that are there.
///
/// A writer that removes or replaces a checkpoint first renames its directory and then deletes the
/// files. So if the name still leads to the same directory afterwards, no file was deleted before it
/// was opened; else this looks again.
fn open_all(path: &Path) -> Result<BTreeMap<&'static str, File>> {
    const TRIES: usize = 20;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let open_error = |e: Errno| Error::io("open", path)(e.into());
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let mut tries = 1;
    loop {
        let dir = rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty());
        let dir = dir.map_err(open_error)?;
        let mut files = BTreeMap::new();
        for name in [COMPLETE, STATE, WEIGHTS, OPTIMIZER] {
            match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                Ok(fd) => _ = files.insert(name, File::from(fd)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(read_error(&path.join(name))(e.into())),
            }
        }
        let opened = rustix::fs::fstat(&dir).map_err(open_error)?;
        let named = rustix::fs::stat(path).map_err(open_error)?;
        if identity(opened) == identity(named) || tries == TRIES {
            return Ok(files);
        }
        tries += 1;
    }
}

/// Whether the checkpoint was removed before it could be opened.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// The bytes of a small file, None if it is not there.
fn take(
    path: &Path,
    files: &mut BTreeMap<&'static str, File>,
    name: &'static str,
    max_bytes: u64,
) -> Result<Option<Vec<u8>>> {
    let Some(file) = files.remove(name) else {
        return Ok(None);
    };
    let at = path.join(name);
    let mut bytes = Vec::new();
    let read = file.take(max_bytes + 1).read_to_end(&mut bytes);
    read.map_err(read_error(&at))?;
    if bytes.len() as u64 > max_bytes {
        let reason = format!("it is longer than {max_bytes} bytes");
        return Err(Error::Damaged { path: at, reason });
    }
    Ok(Some(bytes))
}

/// The blake3 of state.json according to COMPLETE.
fn state_hash(path: &Path, complete: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(complete);
    // Version and hash are only believed as whole lines: a torn "12" must not pass for a 1.
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|l| l.strip_suffix('\n'));
    let version = lines
        .next()
        .and_then(|l| l.strip_prefix("fovea checkpoint "));
    let version = version.and_then(|v| v.parse().ok());
    if let Some(found) = version.filter(|v| *v != u64::from(FORMAT_VERSION)) {
        let path = path.join(COMPLETE);
        return Err(Error::Version { path, found });
    }
    let mut words = lines.next().unwrap_or_default().split(' ');
    match (version, words.next(), words.next(), words.next()) {
        (Some(_), Some("blake3"), Some(hash), Some(STATE)) => Ok(hash.to_string()),
        _ => Err(Error::Incomplete {
            path: path.to_path_buf(),
            reason: format!("its {COMPLETE} is cut off or not one of fovea's"),
        }),
    }
}

fn parse_state(path: &Path, json: &[u8]) -> Result<State> {
    #[derive(Deserialize)]
    struct VersionHeader {
        format_version: u64,
    }
    let damaged = |e: serde_json::Error| Error::Damaged {
        path: path.to_path_buf(),
        reason: format!("it cannot be parsed: {e}"),
    };
    // The version first: another format may differ in anything else.
    let VersionHeader { format_version } = serde_json::from_slice(json).map_err(damaged)?;
    if format_version != u64::from(FORMAT_VERSION) {
        return Err(Error::Version {
            path: path.to_path_buf(),
            found: format_version,
        });
    }
    serde_json::from_slice(json).map_err(damaged)
}

fn check_hash(path: &Path, hash: blake3::Hash, entry: &FileEntry) -> Result<()> {
    if hash.to_hex().as_str() == entry.blake3 {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_path_buf(),
        reason: format!("its blake3 is {hash}, but {STATE} says {}", entry.blake3),
    })
}

/// A read that the disk itself fails makes a file damaged; other failures are not the file's.
fn read_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |e| match Errno::from_io_error(&e) {
        Some(Errno::IO) => Error::Damaged {
            path,
            reason: format!("it cannot be read: {e}"),
        },
        _ => Error::io("read", &path)(e),
    }
}

/// The `step-` directories, by step.
fn step_dirs(dir: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut dirs = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        if let Some(step) = step_of(&entry.file_name().to_string_lossy()) {
            dirs.insert(step, entry.path());
        }
    }
    Ok(dirs)
}
