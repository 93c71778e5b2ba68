//! Helpers for the tests of the whole program: a small prepared dataset, processes with deadlines, runs that leave
//! nothing behind, and the figures of a run directory.
//!
//! The tests use only the `fovea` binary, as a user would.

#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fovea_coordinator::client::{Endpoint, Observer};
use fovea_coordinator::status::Status;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

pub use rustix::process::Signal;

/// Longest time that one process may take, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(400);
/// Longest time that the processes of a run may outlive the one that started them.
pub const LEAVING: Duration = Duration::from_secs(60);
/// Pause between two looks while a test waits.
const LOOK: Duration = Duration::from_millis(3);
/// How long shared test data is kept for the analysis of a failed test.
const KEPT: Duration = Duration::from_secs(6 * 3600);

/// Exit code of a command that succeeded; `src/exit.rs` documents all of these codes.
pub const FINISHED: i32 = 0;
/// Exit code of a command that failed for a reason the user cannot fix.
pub const FAILED: i32 = 1;
/// Exit code for a wrong command line, configuration or input.
pub const USAGE: i32 = 2;
/// Exit code of a run that stopped early and can be resumed.
pub const RESUME: i32 = 85;

/// Lets only one test of a binary train at a time, because a run has up to four ranks. Where each test is a process of
/// its own, `.config/nextest.toml` does the same.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory on disk that is removed at the end of the test.
pub fn scratch() -> TempDir {
    TempDir::with_prefix_in("run-", env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Small pseudo-random numbers; `FOVEA_TEST_SEED` repeats those of a failed test.
pub struct Dice(u64);

impl Dice {
    /// Prints the seed, which a failed test then shows.
    pub fn new(test: &str) -> Self {
        let given = std::env::var("FOVEA_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |t| t.as_nanos() as u64 % 1_000_000)
        };
        let seed = given.unwrap_or_else(now);
        println!("{test}: FOVEA_TEST_SEED={seed}");
        Self(seed)
    }

    /// A source that gives the same numbers every time.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from `low` to `high`, both included (splitmix64).
    pub fn roll(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + (z ^ (z >> 31)) % (high - low + 1)
    }
}

/// How a process ended, and what it printed.
pub struct Done {
    command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "$ {command}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

impl Done {
    /// Asserts that the process ended with this exit code.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Asserts that the error explains what is wrong (all `words`) and what to do.
    #[track_caller]
    pub fn explains(self, words: &[&str]) -> Self {
        for word in words.iter().chain(&["error", "\n  help: "]) {
            assert!(self.stderr.contains(word), "{word:?} is not said\n{self}");
        }
        assert!(!self.stderr.contains("panicked"), "{self}");
        self
    }

    /// Asserts that standard output contains all `words`.
    #[track_caller]
    pub fn prints(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stdout.contains(word),
                "{word:?} is not printed\n{self}"
            );
        }
        self
    }
}

/// A process that ends with the test, together with everything that it started for its run.
pub struct Process {
    command: String,
    child: Child,
    ended: Option<ExitStatus>,
    output: [File; 2],
    run: Option<PathBuf>,
}

impl Process {
    /// Starts `fovea` with `args`. Processes that name `run` on their command line belong to it.
    pub fn start<A: AsRef<OsStr>>(args: &[A], run: Option<&Path>) -> Self {
        Self::start_with(args, &[], run)
    }

    /// [`Process::start`] with more variables in the environment.
    pub fn start_with<A: AsRef<OsStr>>(
        args: &[A],
        environment: &[(&str, &Path)],
        run: Option<&Path>,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fovea"));
        command.args(args).stdin(Stdio::null()).process_group(0);
        command.env_remove("FOVEA_LOG");
        command.envs(environment.iter().copied());
        let output = [(); 2].map(|()| tempfile::tempfile().unwrap());
        command
            .stdout(output[0].try_clone().unwrap())
            .stderr(output[1].try_clone().unwrap());
        // A script starts its background jobs with SIGINT ignored, and a run of such a test would keep that.
        // SAFETY: between fork and exec only `signal` is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let words: Vec<_> = args
            .iter()
            .map(|a| a.as_ref().to_string_lossy().into_owned())
            .collect();
        Self {
            command: format!("fovea {}", words.join(" ")),
            child: command.spawn().unwrap(),
            ended: None,
            output,
            run: run.map(Path::to_owned),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_some()
    }

    /// Waits for the end; panics when that takes longer than [`LIMIT`].
    #[track_caller]
    pub fn wait(mut self) -> Done {
        let deadline = Instant::now() + LIMIT;
        while !self.has_ended() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let status = self.child.wait().unwrap();
                self.ended = Some(status);
                let done = self.done(status);
                panic!("still running after {LIMIT:?}\n{done}\n{}", self.logs());
            }
            std::thread::sleep(LOOK);
        }
        let status = self.ended.unwrap();
        self.done(status)
    }

    fn done(&mut self, status: ExitStatus) -> Done {
        let mut texts = self.output.iter_mut().map(|file| {
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Done {
            command: self.command.clone(),
            status,
            stdout: texts.next().unwrap(),
            stderr: texts.next().unwrap(),
        }
    }

    /// The logs of the run's processes, for a message.
    fn logs(&self) -> String {
        let Some(run) = &self.run else {
            return String::new();
        };
        let Ok(entries) = fs::read_dir(run.join("logs")) else {
            return String::new();
        };
        let logs = entries.flatten().map(|e| e.path());
        logs.map(|p| {
            format!(
                "--- {}\n{}\n",
                p.display(),
                fs::read_to_string(&p).unwrap_or_default()
            )
        })
        .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else if !std::thread::panicking() {
            return; // whether anybody is left is for the test to look at
        }
        for (pid, _) in self.run.iter().flat_map(|run| processes_of(run)) {
            send(pid, Signal::KILL);
        }
    }
}

/// Runs `fovea` with `args` to its end.
#[track_caller]
pub fn fovea<A: AsRef<OsStr>>(args: &[A]) -> Done {
    Process::start(args, None).wait()
}

/// Sends a signal; a process that has already exited is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Processes with `directory` on their command line: pid and the command line.
pub fn processes_of(directory: &Path) -> Vec<(u32, String)> {
    let needle = directory.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let line = |pid: u32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        line.contains(&needle).then_some((pid, line))
    };
    pids.filter_map(line).collect()
}

/// The process of a run whose command line has `words`.
#[track_caller]
pub fn process_of(run: &Path, words: &str) -> u32 {
    let all = processes_of(run);
    let found = all.iter().find(|(_, line)| line.contains(words));
    found
        .unwrap_or_else(|| panic!("no process {words:?} among {all:?}"))
        .0
}

/// Asserts that all processes of a run exit soon.
#[track_caller]
pub fn assert_nobody_left(run: &Path) {
    let deadline = Instant::now() + LEAVING;
    loop {
        let left = processes_of(run);
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            left.iter().for_each(|(pid, _)| send(*pid, Signal::KILL));
            panic!("still there after {LEAVING:?}: {left:?}");
        }
        std::thread::sleep(LOOK);
    }
}

/// The raw and the prepared dataset of a test binary: 10 images (7 train, 2 val, 1 test) of 3 x 3
/// cells of 64 pixels.
pub struct Data {
    pub raw: PathBuf,
    pub prepared: PathBuf,
}

/// The dataset is made once and must not be changed; it takes a few hundred kilobytes in the target directory.
pub fn data() -> &'static Data {
    static DATA: OnceLock<Data> = OnceLock::new();
    DATA.get_or_init(|| {
        let directory = shared().join("data");
        let data = Data {
            raw: directory.join("raw"),
            prepared: directory.join("prepared"),
        };
        once("data", || {
            let raw = data.raw.to_str().unwrap();
            fovea(&["synth", raw, "--images", "10", "--size", "256"]).with_code(FINISHED);
            let prepared = data.prepared.to_str().unwrap();
            fovea(&["prepare", raw, prepared, "--size", "192", "--patch", "64"])
                .with_code(FINISHED);
        });
        data
    })
}

/// The result that an uninterrupted run must have: the hash of its final weights, its metrics, and the facts of each
/// step.
pub type Outcome = (
    String,
    Vec<String>,
    Vec<(u64, (String, String, String), u64)>,
);

/// The outcome of a finished run.
pub fn outcome(run: &Run) -> Outcome {
    (run.final_hash(), run.metrics(), facts(&run.steps()))
}

/// A folder for data that tests make once and share. nextest gives each test a process of its own, and all tests of one
/// call the same id; without nextest, the folder belongs to this process.
fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let own = || format!("{}-{}", std::process::id(), now.as_nanos());
        let id = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| own());
        let directory = all.join(format!("shared-{id}"));
        if !directory.exists() {
            fs::create_dir_all(&directory).unwrap();
            let is_old = |path: &Path| {
                let made = path.metadata().and_then(|m| m.modified()).ok();
                made.and_then(|at| at.elapsed().ok())
                    .is_some_and(|age| age > KEPT)
            };
            for entry in fs::read_dir(all).unwrap().flatten() {
                let is_shared = entry.file_name().to_string_lossy().starts_with("shared-");
                if is_shared && is_old(&entry.path()) {
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
        directory
    })
}

/// Makes something once for all tests that share it, and keeps its value as JSON next to it. The other tests wait.
/// After a maker failed, the next one removes the leftovers and makes it again.
pub fn once<T: Serialize + DeserializeOwned>(name: &str, make: impl FnOnce() -> T) -> T {
    let lock = File::create(shared().join(format!("{name}.lock"))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let kept = shared().join(format!("{name}.json"));
    if let Ok(text) = fs::read_to_string(&kept) {
        return serde_json::from_str(&text).unwrap();
    }
    let _ = fs::remove_dir_all(shared().join(name));
    let value = make();
    fs::write(&kept, serde_json::to_string(&value).unwrap()).unwrap();
    value
}

/// Copies a directory of files and directories.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Changes one byte of a file.
pub fn flip_byte(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x20;
    fs::write(path, bytes).unwrap();
}

/// One run directory, in a directory of its own.
pub struct Run {
    directory: TempDir,
    pub path: PathBuf,
    settings: Vec<String>,
}

/// Settings of all runs in these tests: 21 units of 3 patches, which makes 7 steps of 3 units per epoch.
const SETTINGS: [&str; 10] = [
    "data.global_size=64",
    "data.patches_per_image=3",
    "train.images_per_step=3",
    "train.epochs=2",
    "train.precision=f32",
    "train.threads_per_rank=1",
    "train.virtual_shards=4",
    "train.backend=local",
    "schedule.warmup_steps=2",
    "checkpoint.keep_last=1",
];

impl Run {
    /// A run that has not started yet; `settings` override [`SETTINGS`].
    pub fn new(settings: &[&str]) -> Self {
        let directory = scratch();
        let path = directory.path().join("run");
        let settings = SETTINGS
            .iter()
            .chain(settings)
            .map(|&s| s.to_owned())
            .collect();
        Self {
            directory,
            path,
            settings,
        }
    }

    pub fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The words of the first `fovea train` of this run.
    pub fn first(&self, ranks: u32) -> Vec<String> {
        let data = data().prepared.to_str().unwrap();
        let ranks = ranks.to_string();
        let words = [
            "train",
            "--preset",
            "demo",
            "--data",
            data,
            "--out",
            self.text(),
            "--ranks",
            &ranks,
        ];
        let mut words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
        for setting in &self.settings {
            words.extend(["--set".to_owned(), setting.clone()]);
        }
        words
    }

    /// Starts `fovea train` for this run with this number of ranks.
    pub fn start(&self, ranks: u32) -> Process {
        Process::start(&self.first(ranks), Some(&self.path))
    }

    /// Continues the run; the command names only the run directory and the number of ranks.
    pub fn resume(&self, ranks: u32) -> Process {
        let ranks = ranks.to_string();
        Process::start(
            &["train", "--out", self.text(), "--resume", "--ranks", &ranks],
            Some(&self.path),
        )
    }

    /// Waits until a live coordinator of `process` has committed `step`.
    #[track_caller]
    pub fn wait_for_step(&self, process: &mut Process, step: u64) -> Status {
        self.wait_until(process, &format!("step {step}"), |status| {
            status.step >= step
        })
    }

    /// Waits until the status of a live coordinator is as wanted.
    #[track_caller]
    pub fn wait_until(
        &self,
        process: &mut Process,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let deadline = Instant::now() + LIMIT;
        let endpoint = Endpoint::RunDir(self.path.clone());
        let mut observer = None;
        loop {
            if observer.is_none() {
                observer = Observer::connect(&endpoint, Instant::now()).ok();
            }
            match observer.as_mut().map(Observer::status) {
                Some(Ok(status)) if wanted(&status) => return status,
                Some(Err(_)) => observer = None,
                _ => {}
            }
            if process.has_ended() {
                let status = process.ended.unwrap();
                panic!(
                    "ended before {what}\n{}\n{}",
                    process.done(status),
                    process.logs()
                );
            }
            assert!(
                Instant::now() < deadline,
                "no {what} after {LIMIT:?}\n{}",
                process.logs()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// The output of `fovea status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let done = fovea(&["status", self.text(), "--json"]).with_code(FINISHED);
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"))
    }

    /// The hash of the final weights of a finished run.
    #[track_caller]
    pub fn final_hash(&self) -> String {
        let status = self.status();
        assert_eq!(status["state"], "finished", "{status:#}");
        assert_eq!(
            status["checkpoint"]["step"], status["step"],
            "the last step is not saved: {status:#}"
        );
        let hash = status["checkpoint"]["weights_blake3"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
            "{hash:?}"
        );
        hash
    }

    /// `metrics.csv` without its first column, the time.
    #[track_caller]
    pub fn metrics(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("metrics.csv")).unwrap();
        let timeless = |line: &str| {
            line.split_once(',')
                .unwrap_or_else(|| panic!("{text}"))
                .1
                .to_owned()
        };
        text.lines().map(timeless).collect()
    }

    /// `throughput.csv` by step; every step must be there once for each of its ranks.
    #[track_caller]
    pub fn steps(&self) -> BTreeMap<u64, Step> {
        let text = fs::read_to_string(self.path.join("throughput.csv")).unwrap();
        let mut lines = text.lines();
        let header = "epoch,step,rank,samples,step_ms,compute_ms,wait_ms,loss,lr,generation";
        assert_eq!(lines.next(), Some(header), "{text}");
        let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let [epoch, step, rank, samples, _, _, _, loss, lr, _] = fields[..] else {
                panic!("{line:?} in\n{text}")
            };
            let share = (epoch.to_owned(), loss.to_owned(), lr.to_owned());
            let entry = steps.entry(step.parse().unwrap()).or_insert_with(|| Step {
                share: share.clone(),
                samples: 0,
                ranks: Vec::new(),
            });
            assert_eq!(entry.share, share, "ranks differ in step {step}\n{text}");
            entry.samples += samples.parse::<u64>().unwrap();
            entry.ranks.push(rank.parse().unwrap());
        }
        for (i, (step, row)) in steps.iter_mut().enumerate() {
            assert_eq!(*step, i as u64 + 1, "a step is missing\n{text}");
            row.ranks.sort_unstable();
            assert!(
                row.ranks.iter().copied().eq(0..row.ranks.len()),
                "ranks of step {step}: {:?}\n{text}",
                row.ranks
            );
        }
        steps
    }
}

impl Drop for Run {
    /// A failed test leaves no processes behind either; it keeps the run directory for analysis.
    fn drop(&mut self) {
        for (pid, _) in processes_of(&self.path) {
            send(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            println!("the run is kept: {}", self.text());
        }
    }
}

/// A step in `throughput.csv`, over all rows of its ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Epoch, loss and learning rate, as written.
    pub share: (String, String, String),
    /// Samples of the step over all ranks.
    pub samples: u64,
    pub ranks: Vec<usize>,
}

/// The facts of a run that must not depend on its interruptions and ranks: epoch, loss, learning rate and samples per
/// step.
pub fn facts(steps: &BTreeMap<u64, Step>) -> Vec<(u64, (String, String, String), u64)> {
    steps
        .iter()
        .map(|(step, row)| (*step, row.share.clone(), row.samples))
        .collect()
}
