//! Submission: hands the batch script to Slurm, and records the jobs in `RUN/slurm/submitted.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fovea_files::{Durability, Mode};
use serde::{Deserialize, Serialize};

use crate::client::{self, JobState};
use crate::history::{FOLDER, History};

/// The configuration as submitted; a file in [`FOLDER`].
pub const CONFIG_FILE: &str = "config.toml";
/// The batch script that `sbatch` gets; a file in [`FOLDER`].
pub const SCRIPT_FILE: &str = "job.sh";
/// Ids of the jobs behind the first of a chain, one per line; the script cancels them when the run has failed for good.
pub const CHAIN_FILE: &str = "chain";
/// The newest [`Submitted`] as JSON; a file in [`FOLDER`].
pub const SUBMITTED_FILE: &str = "submitted.json";
/// Version of the format of that file.
const VERSION: u32 = 1;
/// Most bytes of that file that are read; fovea never writes a longer one.
const MAX_BYTES: u64 = 1 << 20;

/// Why a submission, or a look at an earlier one, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command of Slurm failed.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A file of the run directory cannot be used.
    #[error("cannot {action} {}: {what}\n  help: {help}", path.display())]
    File {
        /// The operation that failed: `read` or `write`.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The cause, such as the operating system's error.
        what: String,
        /// What the user should do, as an instruction.
        help: &'static str,
    },
}

impl Error {
    /// Whether Slurm refused the request itself: asking again is of no use.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_usage())
    }
}

/// Content of `submitted.json`: the newest submission of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Version of the file's format; this program reads only its own.
    pub version: u32,
    /// Ids of the jobs: one, or all of a chain in order.
    pub jobs: Vec<u64>,
    /// The value of `--array`; `None` for a single job.
    pub array: Option<String>,
    /// Run directory. For an array: a path with `%a` in it, or the parent directory of the elements' runs.
    pub run: String,
    /// Time of the submission, in milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// The words of the `fovea submit` command, the program first.
    pub command: Vec<String>,
    /// Path of the submitted script.
    pub script: PathBuf,
}

impl Submitted {
    /// Reads the file of a run directory; `None` when nothing was submitted.
    pub fn load(run: &Path) -> Result<Option<Self>, Error> {
        use std::io::Read as _;

        let path = run.join(FOLDER).join(SUBMITTED_FILE);
        let failed = |what: String| Error::File {
            action: "read",
            path: path.clone(),
            what,
            help: "see with `squeue --me` that no job of this run is left, then remove the file",
        };
        let file = match fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| failed(e.to_string()))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| failed(e.to_string()))?;
        let read: Self = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
        match read.version {
            VERSION => Ok(Some(read)),
            other => Err(failed(format!(
                "it is of version {other}, this program knows version {VERSION}"
            ))),
        }
    }

    /// Writes this file and the list of the chain's other jobs.
    fn store(&self, run: &Path) -> Result<(), Error> {
        let folder = run.join(FOLDER);
        let links: String = self
            .jobs
            .iter()
            .skip(1)
            .map(|id| format!("{id}\n"))
            .collect();
        replace(&folder.join(CHAIN_FILE), links.as_bytes())?;
        let path = folder.join(SUBMITTED_FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::File {
            action: "write",
            path: path.clone(),
            what: e.to_string(),
            help: "please report this",
        })?;
        replace(&path, &bytes)
    }
}

/// Ids of the jobs of a run: those that `fovea submit` made, and the newest one that has started the run since, such as
/// a job submitted by hand.
pub fn jobs_of(submitted: Option<&Submitted>, history: &History) -> Vec<String> {
    let known = submitted.map_or(&[][..], |submitted| &submitted.jobs);
    let since = submitted.map_or(0, |submitted| submitted.unix_ms);
    let mut ids: Vec<String> = known.iter().map(u64::to_string).collect();
    if let Some((job, begun)) = history.newest_job() {
        let array = job.split('_').next().unwrap_or(job);
        if begun >= since && !ids.iter().any(|id| id == job || id == array) {
            ids.push(job.to_owned());
        }
    }
    ids
}

/// The states of those jobs that still wait or run.
pub fn alive(jobs: &[String]) -> Result<Vec<JobState>, Error> {
    let mut states = client::job_states(jobs)?;
    states.retain(|job| !job.is_over());
    Ok(states)
}

/// The parameters of [`submit`].
#[derive(Clone, Debug)]
pub struct Submission {
    /// Directory whose [`FOLDER`] already holds the script and the configuration.
    pub base: PathBuf,
    /// Jobs in a chain; 1 for a job that requeues itself.
    pub links: u32,
    /// The value of `--array`, see [`Submitted::array`].
    pub array: Option<String>,
    /// Run directory, see [`Submitted::run`].
    pub run: String,
    /// The words of the command, see [`Submitted::command`].
    pub command: Vec<String>,
}

/// Submits a script that [`client::test_only`] has accepted, and records the jobs.
///
/// When Slurm refuses a job of a chain, this cancels the jobs before it.
pub fn submit(request: &Submission) -> Result<Submitted, Error> {
    let script = request.base.join(FOLDER).join(SCRIPT_FILE);
    let mut jobs: Vec<u64> = Vec::new();
    for _ in 0..request.links.max(1) {
        let behind = jobs
            .last()
            .map(|before| format!("--dependency=afternotok:{before}"));
        let options: Vec<&str> = match &behind {
            Some(behind) => vec![behind.as_str(), "--kill-on-invalid-dep=yes"],
            None => Vec::new(),
        };
        match client::submit(&script, &options) {
            Ok(id) => jobs.push(id),
            Err(error) => {
                take_back(&jobs);
                return Err(error.into());
            }
        }
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let submitted = Submitted {
        version: VERSION,
        jobs,
        array: request.array.clone(),
        run: request.run.clone(),
        unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        command: request.command.clone(),
        script,
    };
    if let Err(error) = submitted.store(&request.base) {
        // Without the record nobody would find these jobs again.
        take_back(&submitted.jobs);
        return Err(error);
    }
    Ok(submitted)
}

fn take_back(jobs: &[u64]) {
    for id in jobs.iter().rev() {
        // The caller reports the first error, so this one is dropped.
        let _ = client::cancel(&id.to_string(), None);
    }
}

/// Replaces a file atomically, by renaming a synced temporary one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fovea_files::replace(path, bytes, Durability::Synced, Mode::Shared).map_err(|e| {
        Error::File {
            action: "write",
            path: path.to_owned(),
            what: e.source.to_string(),
            help: "check free space and permissions of the run directory",
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::HistoryEvent;

    fn submitted(run: &Path) -> Submitted {
        Submitted {
            version: VERSION,
            jobs: vec![17, 18, 19],
            array: None,
            run: run.display().to_string(),
            unix_ms: 1,
            command: vec!["fovea".to_owned(), "submit".to_owned()],
            script: run.join(FOLDER).join(SCRIPT_FILE),
        }
    }

    #[test]
    fn what_was_submitted_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Submitted::load(dir.path()).expect("nothing yet"), None);
        fs::create_dir(dir.path().join(FOLDER)).expect("a folder");
        let written = submitted(dir.path());
        written.store(dir.path()).expect("written");
        assert_eq!(Submitted::load(dir.path()).expect("a file"), Some(written));
        let chain = fs::read_to_string(dir.path().join("slurm/chain")).expect("a chain");
        assert_eq!(chain, "18\n19\n");
        let left: Vec<_> = fs::read_dir(dir.path().join(FOLDER))
            .expect("a folder")
            .flatten()
            .collect();
        assert_eq!(left.len(), 2, "no temporary file stays");
    }

    #[test]
    fn a_job_that_was_submitted_by_hand_is_one_of_the_runs() {
        let start = |job: &str, unix_ms| HistoryEvent::Start {
            unix_ms,
            job: job.to_owned(),
            requeues: 0,
            nodes: vec!["n1".to_owned()],
            world: 1,
            backend: "local".to_owned(),
            step: 0,
        };
        let jobs = |submitted: Option<&Submitted>, starts: &[HistoryEvent]| {
            jobs_of(submitted, &History(starts.to_vec()))
        };
        let by_fovea = submitted(Path::new("/run"));
        assert_eq!(jobs(Some(&by_fovea), &[]), ["17", "18", "19"]);
        assert_eq!(jobs(Some(&by_fovea), &[start("18", 5)]), ["17", "18", "19"]);
        let later = [start("17", 5), start("42", 9)];
        assert_eq!(jobs(Some(&by_fovea), &later), ["17", "18", "19", "42"]);
        // A job that started the run before this submission.
        assert_eq!(jobs(Some(&by_fovea), &[start("3", 0)]), ["17", "18", "19"]);
        // An element's directory has no record of the submission; the array's directory has no start.
        assert_eq!(jobs(None, &[start("17_3", 5)]), ["17_3"]);
        assert_eq!(jobs(None, &[]), [""; 0]);
    }

    #[test]
    fn a_file_that_cannot_be_read_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join(FOLDER);
        fs::create_dir(&folder).expect("a folder");
        let newer = Submitted {
            version: 9,
            ..submitted(dir.path())
        };
        newer.store(dir.path()).expect("written");
        let error = Submitted::load(dir.path())
            .expect_err("another version")
            .to_string();
        assert!(
            error.contains("version 9") && error.contains("\n  help: "),
            "{error}"
        );
        fs::write(folder.join(SUBMITTED_FILE), "{").expect("a file");
        assert!(Submitted::load(dir.path()).is_err());
    }
}
