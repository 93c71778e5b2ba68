//! One task of a job step: keeps one trainer alive.
//!
//! `srun` starts each task once. To replace a killed trainer, the task is a small
//! process that starts the trainer as a child, and restarts it when it is lost.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fovea_coordinator::status::Status;
use fovea_run::run_dir::RunDir;

use crate::child::{Process, Restarts};
use crate::error::{Error, Result};
use crate::exit_code;

/// How often the keeper looks at the trainer.
const TICK: Duration = Duration::from_millis(200);
/// How often the run's status is read, which may be on a network file system: ticks.
const STATUS_EVERY: u32 = 10;

/// The trainer to keep alive, and how.
pub struct KeepOptions {
    /// Path of the `fovea` program, which the trainer runs as well.
    pub program: PathBuf,
    /// Run directory with its config.toml.
    pub run: RunDir,
    /// Rank to ask for.
    pub rank: Option<u32>,
    /// Further arguments of `fovea trainer`.
    pub arguments: Vec<String>,
    /// How often in a row, without a new step, the trainer is started again.
    pub max_restarts: u32,
    /// Set by a signal handler: drain.
    pub drain_wanted: Arc<AtomicBool>,
}

/// Runs the trainer to its end: finished ([`exit_code::FINISHED`]) or left ([`exit_code::LEFT`]).
///
/// # Errors
/// When it says that its input is wrong, or was lost too often.
pub fn keep(options: &KeepOptions) -> Result<i32> {
    let mut restarts = Restarts::of(options.max_restarts);
    let mut trainer = start(options)?;
    let mut asked = false;
    let mut ticks = 0;
    loop {
        std::thread::sleep(TICK);
        if options.drain_wanted.load(Ordering::Relaxed) && !asked {
            asked = true;
            trainer.ask_to_leave();
        }
        ticks += 1;
        if ticks % STATUS_EVERY == 0
            && let Ok(status) = Status::load(options.run.path())
            && !status.state.is_over()
        {
            trainer.end_if_given_up(&status);
        }
        let Some(ended) = trainer.poll() else {
            continue;
        };
        match ended.code() {
            Some(code @ (exit_code::FINISHED | exit_code::LEFT)) => return Ok(code),
            Some(exit_code::WRONG_INPUT) => {
                return Err(Error::Usage {
                    what: trainer.obituary(),
                    help: "mend what the log says, then submit again".to_owned(),
                });
            }
            _ => {}
        }
        let status = Status::load(options.run.path()).ok();
        let over = status.as_ref().is_some_and(|status| status.state.is_over());
        let step = status.map_or(0, |status| status.step);
        if over || asked || !restarts.allow(step) {
            return Err(Error::Child(trainer.obituary()));
        }
        tracing::warn!("starting it again: {}", trainer.obituary());
        trainer = start(options)?;
    }
}

fn start(options: &KeepOptions) -> Result<Process> {
    let mut command = Command::new(&options.program);
    command
        .arg("trainer")
        .arg(options.run.path())
        .args(["--kept", "--with-parent", &std::process::id().to_string()])
        .args(&options.arguments);
    let mut name = "rank".to_owned();
    if let Some(rank) = options.rank {
        command.args(["--rank", &rank.to_string()]);
        name = format!("rank-{rank}");
    }
    Process::start(&mut command, &name, &options.run)
}
