//! One file per subcommand.

mod audit;
mod bench;
mod coordinator;
mod data;
pub mod doctor;
mod eval;
mod job;
mod predict;
mod prepare;
mod report;
mod scheduled;
mod source;
mod stage;
mod status;
mod submit;
mod synth;
mod train;
mod trainer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use fovea_trainer::exit_code::LEFT;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::cli::Command;
use crate::exit::Ending;

/// Runs what was typed.
pub fn dispatch(command: Command) -> anyhow::Result<Ending> {
    match command {
        Command::Synth(args) => synth::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Submit(args) => submit::run(&args),
        Command::Coordinator(args) => coordinator::run(&args),
        Command::Trainer(args) => trainer::run(args),
        Command::Job(args) => job::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Stage(args) => stage::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GpuCheck(args) => bench::gpu::check(&args),
    }
}

/// What a second signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Somebody is in a hurry.
    LeaveAtOnce,
    /// A scheduler repeats itself, to each process and by more than one way.
    Nothing,
}

/// Signals within so many milliseconds are one wish: `timeout` and some schedulers send two at once.
const ONE_WISH_MS: u64 = 1_000;

/// Signals that mean "stop soon": the first one only sets the flag; the second one may leave at once
/// (the newest complete checkpoint stays as it is).
fn drain_flag(again: Again) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let first_ms = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        let (flag, first_ms) = (Arc::clone(&flag), Arc::clone(&first_ms));
        let noted = move || {
            let now_ms = 1 + u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            flag.store(true, Ordering::Relaxed);
            let first = first_ms.compare_exchange(0, now_ms, Ordering::Relaxed, Ordering::Relaxed);
            if let Err(first) = first
                && again == Again::LeaveAtOnce
                && now_ms.saturating_sub(first) > ONE_WISH_MS
            {
                signal_hook::low_level::exit(LEFT);
            }
        };
        // SAFETY: the handler only reads the monotonic clock, uses atomics and may call _exit, all of which are
        // async-signal-safe; it allocates nothing and cannot panic.
        unsafe { signal_hook::low_level::register(signal, noted) }
            .context("installing signal handlers")?;
    }
    // The launcher or the terminal is gone. That may be said more than once: see `end_with_parent`.
    signal_hook::flag::register(SIGHUP, Arc::clone(&flag)).context("installing signal handlers")?;
    Ok(flag)
}

/// Has the kernel send SIGHUP when the process that started this one ends, so that no trainer outlives a
/// launcher that was killed. (Linux may send it once for each of the launcher's threads.) `parent` is the pid of the launcher, 0 when it is not known.
fn end_with_parent(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::HUP))
        .context("asking for a signal when the parent process ends")?;
    // It may have ended before this process could ask, while libtorch was being loaded.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    anyhow::ensure!(
        parent == 0 || now == parent,
        "the launcher (pid {parent}) has ended already"
    );
    Ok(())
}

/// An absolute form of a path that may not exist yet, for files that other processes read.
fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: no absolute path", path.display()))
}
