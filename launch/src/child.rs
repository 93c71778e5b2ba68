//! Child processes of this one: their logs, their end, how often they may restart.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fovea_coordinator::host::hostname;
use fovea_coordinator::status::Status;
use fovea_run::run_dir::RunDir;
use rustix::process::{Pid, Signal};

use crate::error::Result;

/// How long a trainer that was given up may take to come back by itself.
const COME_BACK: Duration = Duration::from_secs(10);
/// Lines of a failed process's log that the error shows.
const LOG_LINES: usize = 12;

/// A child process; killed and reaped when dropped, so that none outlives an error.
pub(crate) struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    /// Whether the coordinator has listed it, and since when it no longer does.
    member: bool,
    missing_since: Option<Instant>,
    /// Whether it has ended and nobody restarts it.
    pub given_up: bool,
}

impl Process {
    pub fn start(command: &mut Command, name: &str, run: &RunDir) -> Result<Self> {
        let log = run.log(name);
        let failed = |path: &Path, e: &std::io::Error| {
            fovea_run::Error::file(path, e, "check the program and the run directory")
        };
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory).map_err(|e| failed(directory, &e))?;
        }
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| failed(&log, &e))?;
        let err = out.try_clone().map_err(|e| failed(&log, &e))?;
        // A group of its own: Ctrl-C reaches the launcher alone, which has everybody drain.
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        let program = PathBuf::from(command.get_program());
        let child = command.spawn().map_err(|e| failed(&program, &e))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
            member: false,
            missing_since: None,
            given_up: false,
        })
    }

    /// The exit status once the process has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Its exit code, once it has ended by itself.
    pub fn code(&self) -> Option<i32> {
        self.ended.and_then(|ended| ended.code())
    }

    /// Sends SIGKILL; the process is gone at the next [`Self::poll`] or soon after.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// The first signal to a trainer lets it end in order.
    pub fn ask_to_leave(&mut self) {
        if self.poll().is_none() {
            let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }

    /// The process id, which stays taken until [`Self::poll`] has seen the end.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends a trainer that the coordinator gave up (stopped, hung) and that does not come back by itself: it
    /// is in the way of its replacement.
    pub fn end_if_given_up(&mut self, status: &Status) {
        let pid = self.child.id();
        let here = hostname();
        if status
            .ranks
            .iter()
            .any(|rank| rank.pid == pid && rank.host == here)
        {
            self.member = true;
            self.missing_since = None;
        } else if self.member {
            let since = *self.missing_since.get_or_insert_with(Instant::now);
            if since.elapsed() > COME_BACK && self.poll().is_none() {
                tracing::warn!("{} (pid {pid}) was given up: ending it", self.name);
                self.kill();
            }
        }
    }

    /// "rank-1 ended with exit status 1; the end of run/logs/rank-1.log: ..."
    pub fn obituary(&self) -> String {
        let how = self
            .ended
            .map_or_else(|| "is gone".to_owned(), |s| format!("ended with {s}"));
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n    ");
        format!(
            "{} {how}; the end of {}:\n    {tail}",
            self.name,
            self.log.display()
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.poll().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Restarts so far without a step between them.
pub(crate) struct Restarts {
    allowed: u32,
    used: u32,
    /// Committed steps when the last one was used.
    step: u64,
}

impl Restarts {
    /// `allowed` restarts, none of them used yet.
    pub fn of(allowed: u32) -> Self {
        Self {
            allowed,
            used: 0,
            step: 0,
        }
    }

    /// Whether something may be started again after `step`.
    pub fn allow(&mut self, step: u64) -> bool {
        if step > self.step {
            self.used = 0;
        }
        self.step = step;
        self.used += 1;
        self.used <= self.allowed
    }
}
