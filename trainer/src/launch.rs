//! One machine's launcher: starts the coordinator and the trainers as processes of their own,
//! watches them, passes a stop request on, and says how it ended.
//!
//! It decides nothing about training; it only sees processes and the coordinator's [`Status`].

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fovea_coordinator::client::{Endpoint, Observer};
use fovea_coordinator::rundir::CoordinatorInfo;
use fovea_coordinator::status::{RunState, Status};
use rustix::process::{Pid, Signal};

use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// How often processes and status are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long the coordinator may take to open its socket.
const START: Duration = Duration::from_secs(60);
/// How long the others may take to leave after the coordinator has ended.
const GRACE: Duration = Duration::from_secs(20);
/// Lines of a failed process's log that the error shows.
const LOG_LINES: usize = 12;

/// How ranks are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spawner {
    /// One process each, by this launcher.
    Direct,
    /// All by one `mpirun`.
    MpiRun,
}

/// What to start.
pub struct LaunchOptions {
    /// The `fovea` program.
    pub program: PathBuf,
    /// Run directory with its config.toml.
    pub run: RunDir,
    /// Number of trainers.
    pub ranks: usize,
    /// How to start them.
    pub spawner: Spawner,
    /// Set by a signal handler: drain.
    pub drain_wanted: Arc<AtomicBool>,
}

/// How a launched run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The last status.
    pub status: Status,
    /// Drained (resume later) rather than finished.
    pub drained: bool,
}

/// A child process; killed and reaped when dropped, so that none outlives an error.
struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    fn start(command: &mut Command, name: &str, run: &RunDir) -> Result<Self> {
        let log = run.log(name);
        let failed = |path: &Path, e: &std::io::Error| {
            Error::file(path, e, "check the program and the run directory")
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
        })
    }

    /// The exit status once the process has ended.
    fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// The first signal to a trainer lets it end in order.
    fn ask_to_leave(&mut self) {
        if self.poll().is_none() {
            let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }

    /// "rank-1 ended with exit status 1; the end of run/logs/rank-1.log: ..."
    fn obituary(&self) -> String {
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

/// Runs everything to its end; `show` sees every new status.
pub fn launch(options: &LaunchOptions, mut show: impl FnMut(&Status)) -> Result<Ended> {
    let mut command = Command::new(&options.program);
    command
        .arg("coordinator")
        .arg(options.run.path())
        .args(["--with-parent", &std::process::id().to_string()]);
    let mut coordinator = Process::start(&mut command, "coordinator", &options.run)?;
    let mut observer = connect(&options.run, &mut coordinator, Instant::now() + START)?;
    let mut trainers = start_trainers(options)?;

    let mut drain_sent = false;
    let mut failure = None;
    let mut last = None;
    while coordinator.poll().is_none() {
        if options.drain_wanted.load(Ordering::Relaxed) && !drain_sent {
            drain_sent = observer.drain("the launcher got a signal").is_ok();
        }
        // A trainer that dies before it has joined is unknown to the coordinator: tell it.
        for trainer in trainers.iter_mut() {
            if trainer
                .poll()
                .is_some_and(|s| !s.success() && s.code() != Some(85))
                && failure.is_none()
            {
                failure = Some(trainer.obituary());
                let _ = observer.fail(&format!("{} ended before the run did", trainer.name));
            }
        }
        match observer.status() {
            Ok(status) => {
                show(&status);
                last = Some(status);
            }
            // It is about to end, which the loop sees, or was too busy to answer in time.
            Err(_) => {
                if let Ok(again) = connect(&options.run, &mut coordinator, Instant::now()) {
                    observer = again;
                }
            }
        }
        std::thread::sleep(TICK);
    }
    if options.spawner == Spawner::Direct {
        // One that has not joined yet would wait for a coordinator that does not come back.
        trainers.iter_mut().for_each(Process::ask_to_leave);
    }
    wait_for(&mut trainers, Instant::now() + GRACE);
    let status = Status::load(options.run.path()).ok().or(last);
    conclude(status, &coordinator, &mut trainers, failure)
}

/// Connects to the coordinator that this launcher has started, and to no other: an address file may be
/// left from one that was killed, or belong to a run that somebody else is starting here.
fn connect(run: &RunDir, coordinator: &mut Process, deadline: Instant) -> Result<Observer> {
    let endpoint = Endpoint::RunDir(run.path().to_owned());
    loop {
        if coordinator.poll().is_some() {
            return Err(Error::Child(coordinator.obituary()));
        }
        let ours =
            CoordinatorInfo::load(run.path()).is_ok_and(|info| info.pid == coordinator.child.id());
        if ours && let Ok(observer) = Observer::connect_launcher(&endpoint, Instant::now() + TICK) {
            return Ok(observer);
        }
        if Instant::now() >= deadline {
            return Err(Error::Child(format!(
                "the coordinator (pid {}) does not answer",
                coordinator.child.id()
            )));
        }
        std::thread::sleep(TICK / 10);
    }
}

fn start_trainers(options: &LaunchOptions) -> Result<Vec<Process>> {
    let trainer = |command: &mut Command| {
        command
            .arg("trainer")
            .arg(options.run.path())
            .arg("--with-parent");
    };
    match options.spawner {
        Spawner::Direct => (0..options.ranks)
            .map(|rank| {
                let mut command = Command::new(&options.program);
                trainer(&mut command);
                command.args([&std::process::id().to_string(), "--rank", &rank.to_string()]);
                Process::start(&mut command, &format!("rank-{rank}"), &options.run)
            })
            .collect(),
        Spawner::MpiRun => {
            let mut command = Command::new("mpirun");
            command.args([
                "-n",
                &options.ranks.to_string(),
                "--oversubscribe",
                "--bind-to",
                "none",
            ]);
            command.env("OMPI_MCA_mpi_yield_when_idle", "1");
            if rustix::process::geteuid().is_root() {
                // Containers run as root; Open MPI wants to be told that this is meant.
                command
                    .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                    .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            }
            command.arg(&options.program);
            trainer(&mut command);
            Ok(vec![Process::start(&mut command, "mpirun", &options.run)?])
        }
    }
}

/// Waits for processes that should be leaving by themselves.
fn wait_for(processes: &mut [Process], deadline: Instant) {
    while processes.iter_mut().any(|p| p.poll().is_none()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn conclude(
    status: Option<Status>,
    coordinator: &Process,
    trainers: &mut [Process],
    failure: Option<String>,
) -> Result<Ended> {
    let Some(status) = status else {
        return Err(Error::Child(
            failure.unwrap_or_else(|| coordinator.obituary()),
        ));
    };
    match status.state {
        state if !state.is_over() => Err(Error::Child(coordinator.obituary())),
        RunState::Finished => Ok(Ended {
            status,
            drained: false,
        }),
        RunState::Stopped => Ok(Ended {
            status,
            drained: true,
        }),
        _ => {
            let first_words = failure.or_else(|| {
                trainers
                    .iter_mut()
                    .find_map(|t| t.poll().is_some_and(|s| !s.success()).then(|| t.obituary()))
            });
            let mut what = status.reason.clone();
            if let Some(words) = first_words {
                what = format!("{what}\n  {words}");
            }
            Err(Error::Child(what))
        }
    }
}
