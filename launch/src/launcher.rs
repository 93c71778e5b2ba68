//! One machine's launcher: starts the coordinator and the trainers as separate processes,
//! watches them, forwards a stop request, and reports the end.
//!
//! It decides nothing about training; it only sees processes and the coordinator's [`Status`].

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fovea_collectives::BackendEntry;
use fovea_coordinator::client::{Endpoint, Observer};
use fovea_coordinator::host::hostname;
use fovea_coordinator::rundir::CoordinatorInfo;
use fovea_coordinator::status::{RunState, Status};
use fovea_run::run_dir::RunDir;
use rustix::process::{Pid, Signal, kill_process};

use crate::child::{Process, Restarts};
use crate::error::{Error, Result};
use crate::exit_code;

/// How often processes and status are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long the coordinator may take to open its socket.
const START: Duration = Duration::from_secs(60);
/// How long a coordinator may leave its launcher without an answer.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the others may take to leave after the coordinator has ended.
const GRACE: Duration = Duration::from_secs(20);

/// A run to start on this machine, and how.
pub struct LaunchOptions {
    /// Path of the `fovea` program, which all processes of the run execute.
    pub program: PathBuf,
    /// Run directory with its config.toml.
    pub run: RunDir,
    /// Number of ranks, each of which is one trainer process.
    pub ranks: usize,
    /// How the ranks meet, which also decides who starts them.
    pub backend: &'static BackendEntry,
    /// GPUs of this machine, when the ranks meet on them.
    pub gpus: Option<usize>,
    /// How often in a row, without a new step, lost processes are started again.
    pub max_restarts: u32,
    /// When the run must have left.
    pub deadline: Option<Instant>,
    /// Set by a signal handler: drain.
    pub drain_wanted: Arc<AtomicBool>,
}

impl LaunchOptions {
    /// Whether this launcher starts each rank as a process of its own, and so can replace it.
    fn starts_each(&self) -> bool {
        self.backend.world_launcher.is_none()
    }
}

/// How a launched run ended.
#[derive(Clone, Debug)]
pub struct LaunchOutcome {
    /// The status that the coordinator wrote last.
    pub status: Status,
    /// Drained (resume later) rather than finished.
    pub drained: bool,
}

/// Runs everything to its end; `show` sees every new status. In an elastic run lost processes are
/// restarted one by one; a world that starts as a whole is restarted as a whole, from the newest checkpoint.
pub fn launch(options: &LaunchOptions, mut show: impl FnMut(&Status)) -> Result<LaunchOutcome> {
    let mut restarts = Restarts::of(options.max_restarts);
    loop {
        let mut launched = Launched::start(options)?;
        let ended = launched.watch(&mut restarts, &mut show);
        let step = launched.last.as_ref().map_or(0, |status| status.step);
        let (error, world) = match (ended, &options.backend.world_launcher) {
            (Err(error), Some(launcher)) => (error, launcher.world),
            (other, _) => return other,
        };
        let wanted = !launched.hopeless && !options.drain_wanted.load(Ordering::Relaxed);
        if !wanted || !restarts.allow(step) {
            return Err(error);
        }
        let ranks = launched.ranks_here();
        drop(launched);
        wait_for_ranks(world, &ranks, &options.run);
        tracing::warn!("starting the {world} again from the newest checkpoint: {error}");
    }
}

/// Waits until the ranks of a lost world have left, and ends those that do not. Their launcher ends them with itself,
/// unless it was killed: then they notice that it is gone, and save their last step. A new world that looked for the
/// newest checkpoint meanwhile would find one that they are about to replace.
fn wait_for_ranks(world: &str, pids: &[u32], run: &RunDir) {
    let run = run.path().display().to_string();
    let is_there = |pid: &&u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&run)
    };
    let deadline = Instant::now() + GRACE;
    while pids.iter().any(|pid| is_there(&pid)) {
        if Instant::now() > deadline {
            for pid in pids.iter().filter(is_there) {
                tracing::warn!("rank of the lost {world} (pid {pid}) does not leave: ending it");
                send(*pid, Signal::KILL);
            }
        }
        std::thread::sleep(TICK);
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that is gone already is all right.
        let _ = kill_process(pid, signal);
    }
}

/// The processes of a run.
struct Launched<'a> {
    options: &'a LaunchOptions,
    coordinator: Process,
    observer: Observer,
    trainers: Vec<Process>,
    last: Option<Status>,
    drain_sent: bool,
    /// Since when the coordinator lives and does not answer.
    silent_since: Option<Instant>,
    failure: Option<String>,
    /// A process says that its input is wrong: starting it again does not help.
    hopeless: bool,
}

impl<'a> Launched<'a> {
    fn start(options: &'a LaunchOptions) -> Result<Self> {
        let mut coordinator = start_coordinator(options)?;
        let observer = connect(&options.run, &mut coordinator, Instant::now() + START)?;
        let trainers = start_trainers(options)?;
        Ok(Self {
            options,
            coordinator,
            observer,
            trainers,
            last: None,
            drain_sent: false,
            silent_since: None,
            failure: None,
            hopeless: false,
        })
    }

    /// The processes of the ranks on this machine, as the coordinator last knew them.
    fn ranks_here(&self) -> Vec<u32> {
        let here = hostname();
        let ranks = self.last.iter().flat_map(|status| &status.ranks);
        ranks
            .filter(|rank| rank.host == here)
            .map(|rank| rank.pid)
            .collect()
    }

    fn watch(
        &mut self,
        restarts: &mut Restarts,
        show: &mut impl FnMut(&Status),
    ) -> Result<LaunchOutcome> {
        loop {
            if let Some(ended) = self.coordinator.poll() {
                let in_order = ended.code().is_some_and(exit_code::is_in_order);
                if in_order || !self.restart_coordinator(restarts)? {
                    break;
                }
            }
            if self.options.drain_wanted.load(Ordering::Relaxed) && !self.drain_sent {
                self.drain_sent = self.observer.drain("the launcher got a signal").is_ok();
            }
            self.look_after_trainers(restarts)?;
            match self.observer.status() {
                Ok(status) => {
                    self.silent_since = None;
                    show(&status);
                    self.end_the_hung(&status);
                    self.last = Some(status);
                }
                // It is about to end, which the loop sees, or was too busy to answer in time.
                Err(_) => {
                    let now = Instant::now();
                    self.end_a_silent_coordinator(now);
                    if let Ok(again) = connect(&self.options.run, &mut self.coordinator, now) {
                        self.observer = again;
                    }
                }
            }
            std::thread::sleep(TICK);
        }
        if self.options.starts_each() {
            // One that has not joined yet would wait for a coordinator that does not come back.
            self.trainers.iter_mut().for_each(Process::ask_to_leave);
        }
        wait_for(&mut self.trainers, Instant::now() + GRACE);
        let status = Status::load(self.options.run.path())
            .ok()
            .or(self.last.clone());
        self.hopeless |= has_wrong_input(&self.coordinator);
        let hopeless = self.hopeless;
        conclude(
            status,
            &self.coordinator,
            &mut self.trainers,
            self.failure.take(),
        )
        .map_err(|error| as_input(error, hopeless))
    }

    /// A coordinator that is stopped or hangs makes room for another.
    fn end_a_silent_coordinator(&mut self, now: Instant) {
        let since = *self.silent_since.get_or_insert(now);
        if now - since > SILENCE && self.coordinator.poll().is_none() {
            tracing::warn!(
                "the coordinator (pid {}) has not answered for {} s: ending it",
                self.coordinator.id(),
                (now - since).as_secs()
            );
            self.coordinator.kill();
            self.silent_since = None;
        }
    }

    /// The coordinator was killed. Its journal knows the run, and the trainers wait for a new one.
    fn restart_coordinator(&mut self, restarts: &mut Restarts) -> Result<bool> {
        let step = self.last.as_ref().map_or(0, |status| status.step);
        if !self.options.starts_each() || !restarts.allow(step) {
            return Ok(false);
        }
        tracing::warn!("starting it again: {}", self.coordinator.obituary());
        self.coordinator = start_coordinator(self.options)?;
        let until = Instant::now() + START;
        self.observer = connect(&self.options.run, &mut self.coordinator, until)?;
        self.drain_sent = false;
        Ok(true)
    }

    /// Those that were lost are started again; when that does not help, the run has failed.
    fn look_after_trainers(&mut self, restarts: &mut Restarts) -> Result<()> {
        let step = self.last.as_ref().map_or(0, |status| status.step);
        for index in 0..self.trainers.len() {
            let others_train = self.others_train(index);
            let trainer = &mut self.trainers[index];
            let Some(ended) = trainer.poll() else {
                continue;
            };
            if ended.code() == Some(exit_code::LEFT) && !self.drain_sent {
                // It left at once, after two signals, so one of them was meant for the run.
                let name = &trainer.name;
                let asked = self.observer.drain(&format!("{name} was told to leave"));
                self.drain_sent = asked.is_ok();
            }
            if ended.success()
                || ended.code() == Some(exit_code::LEFT)
                || trainer.given_up
                || self.failure.is_some()
            {
                continue;
            }
            self.hopeless |= ended.code() == Some(exit_code::WRONG_INPUT);
            let replace = self.options.starts_each() && !self.hopeless && restarts.allow(step);
            if replace {
                tracing::warn!("starting it again: {}", trainer.obituary());
                self.trainers[index] = start_trainer(self.options, index)?;
            } else if others_train {
                tracing::warn!("the others go on without it: {}", trainer.obituary());
                trainer.given_up = true;
            } else {
                // One that dies before it has joined is unknown to the coordinator.
                self.failure = Some(trainer.obituary());
                let name = &trainer.name;
                let _ = self
                    .observer
                    .fail(&format!("{name} ended before the run did"));
            }
        }
        Ok(())
    }

    /// Whether the run gets on without this trainer.
    fn others_train(&mut self, index: usize) -> bool {
        let pids: Vec<u32> = self
            .trainers
            .iter_mut()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .filter_map(|(_, trainer)| trainer.poll().is_none().then(|| trainer.id()))
            .collect();
        let Some(status) = &self.last else {
            return false;
        };
        let seated = |pid: &u32| {
            let mut ranks = status.ranks.iter();
            ranks.any(|rank| rank.rank.is_some() && rank.pid == *pid)
        };
        self.options.starts_each() && status.step > 0 && pids.iter().any(seated)
    }

    /// A trainer that the coordinator gave up (stopped, hung) and that does not come back by itself is
    /// in the way of its replacement.
    fn end_the_hung(&mut self, status: &Status) {
        if !self.options.starts_each() || status.state.is_over() {
            return;
        }
        for trainer in &mut self.trainers {
            trainer.end_if_given_up(status);
        }
    }
}

fn start_coordinator(options: &LaunchOptions) -> Result<Process> {
    let mut command = Command::new(&options.program);
    command
        .arg("coordinator")
        .arg(options.run.path())
        .args(["--with-parent", &std::process::id().to_string()]);
    if let Some(deadline) = options.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        command.args(["--time-left", &format!("{}ms", left.as_millis())]);
    }
    Process::start(&mut command, "coordinator", &options.run)
}

fn start_trainer(options: &LaunchOptions, rank: usize) -> Result<Process> {
    let mut command = Command::new(&options.program);
    command
        .arg("trainer")
        .arg(options.run.path())
        .args(["--with-parent", &std::process::id().to_string()])
        .args(["--rank", &rank.to_string()]);
    let gpus = options.gpus.unwrap_or(0);
    command.envs((options.backend.variable)(options.ranks, gpus, rank));
    Process::start(&mut command, &format!("rank-{rank}"), &options.run)
}

fn has_wrong_input(process: &Process) -> bool {
    process.code() == Some(exit_code::WRONG_INPUT)
}

/// The failure of a process that finds its input wrong has that exit code here, too, and no advice to try the same again.
fn as_input(error: Error, hopeless: bool) -> Error {
    match error {
        Error::Child(what) if hopeless => Error::Usage {
            what,
            help: "mend what is said there; the same again will not help".to_owned(),
        },
        error => error,
    }
}

/// Connects to the coordinator that this launcher has started, and to no other: an address file may be
/// left from one that was killed, or belong to a run that somebody else is starting here.
fn connect(run: &RunDir, coordinator: &mut Process, deadline: Instant) -> Result<Observer> {
    let endpoint = Endpoint::RunDir(run.path().to_owned());
    loop {
        if coordinator.poll().is_some() {
            let hopeless = has_wrong_input(coordinator);
            return Err(as_input(Error::Child(coordinator.obituary()), hopeless));
        }
        let ours = CoordinatorInfo::load(run.path()).is_ok_and(|info| info.pid == coordinator.id());
        if ours && let Ok(observer) = Observer::connect_launcher(&endpoint, Instant::now() + TICK) {
            return Ok(observer);
        }
        if Instant::now() >= deadline {
            return Err(Error::Child(format!(
                "the coordinator (pid {}) does not answer",
                coordinator.id()
            )));
        }
        std::thread::sleep(TICK / 10);
    }
}

fn start_trainers(options: &LaunchOptions) -> Result<Vec<Process>> {
    let Some(launcher) = &options.backend.world_launcher else {
        let each = 0..options.ranks;
        return each.map(|rank| start_trainer(options, rank)).collect();
    };
    let mut command = Command::new(launcher.program);
    (launcher.prepare)(&mut command, options.ranks);
    command
        .arg(&options.program)
        .arg("trainer")
        .arg(options.run.path())
        .arg("--with-parent");
    let started = Process::start(&mut command, launcher.program, &options.run)?;
    Ok(vec![started])
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
) -> Result<LaunchOutcome> {
    let Some(status) = status else {
        return Err(Error::Child(
            failure.unwrap_or_else(|| coordinator.obituary()),
        ));
    };
    match status.state {
        // It was told twice, and left at once.
        state if !state.is_over() && coordinator.code() == Some(exit_code::LEFT) => {
            Ok(LaunchOutcome {
                status,
                drained: true,
            })
        }
        state if !state.is_over() => Err(Error::Child(coordinator.obituary())),
        RunState::Finished => Ok(LaunchOutcome {
            status,
            drained: false,
        }),
        RunState::Stopped => Ok(LaunchOutcome {
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
