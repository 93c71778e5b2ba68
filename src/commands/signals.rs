//! The requests to stop that reach a process: signals, and the end of the process that started it.
//!
//! A signal that was ignored when the program started stays ignored, as users of `nohup` and of background jobs in
//! scripts expect. The end of the parent therefore must not arrive as a signal here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use fovea_launch::exit_code::LEFT;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::inherited::is_ignored;

/// What a second signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The process leaves at once: a user is in a hurry.
    LeaveAtOnce,
    /// The signal changes nothing: a scheduler repeats its signals, to each process and in more than one way.
    Nothing,
}

/// Signals within this many milliseconds count as one request: `timeout` and some schedulers send two at once.
const ONE_WISH_MS: u64 = 1_000;

/// Pause between two looks at whether the parent process still exists.
const LOOK: Duration = Duration::from_millis(100);

/// Handles the signals that mean "stop soon": the first one only sets the flag, and a second one may leave at once (the
/// newest complete checkpoint stays as it is). Ignored signals stay ignored.
pub(super) fn drain_flag(again: Again) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let first_ms = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        if is_ignored(signal) {
            continue;
        }
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
    // SIGHUP means that the terminal closed. The shell and the kernel may both send it, so a second one changes
    // nothing.
    if !is_ignored(SIGHUP) {
        signal_hook::flag::register(SIGHUP, Arc::clone(&flag))
            .context("installing signal handlers")?;
    }
    Ok(flag)
}

/// The process that started this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent(u32);

impl Parent {
    /// The parent of this process; `pid` is the launcher's process id, 0 when it is not known.
    ///
    /// # Errors
    /// The launcher ended while this process was loading libtorch.
    pub(super) fn of_this_process(pid: u32) -> anyhow::Result<Self> {
        let now = parent_now();
        anyhow::ensure!(
            pid == 0 || now == pid,
            "the launcher (pid {pid}) has ended already"
        );
        Ok(Self(now))
    }

    /// Sets `flag` when the parent ends, so no process outlives a killed launcher, and each still leaves in order. A
    /// thread polls, because the kernel's own notice is a signal, which may be ignored.
    pub(super) fn watch(self, flag: Arc<AtomicBool>) -> anyhow::Result<()> {
        let look = move || {
            while parent_now() == self.0 {
                std::thread::sleep(LOOK);
            }
            flag.store(true, Ordering::Relaxed);
        };
        std::thread::Builder::new()
            .name("parent".to_owned())
            .spawn(look)
            .context("starting the thread that watches the parent process")?;
        Ok(())
    }
}

fn parent_now() -> u32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
}

/// Has the kernel kill this process when its parent ends; for processes that have nothing to save.
pub(super) fn die_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking for a signal when the parent process ends")
}
