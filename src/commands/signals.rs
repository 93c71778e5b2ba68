//! What asks a process to stop: signals, and the end of the process that started it.
//!
//! A signal that was ignored when the program started stays ignored: a user of `nohup`, or of a
//! background job in a script, wants that. So the end of the parent does not arrive as a signal here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use fovea_launch::exit_code::LEFT;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::inherited::is_ignored;

/// What a second signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Somebody is in a hurry.
    LeaveAtOnce,
    /// A scheduler repeats itself, to each process and by more than one way.
    Nothing,
}

/// Signals within so many milliseconds are one wish: `timeout` and some schedulers send two at once.
const ONE_WISH_MS: u64 = 1_000;

/// How often a process looks whether its parent is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Signals that mean "stop soon": the first one only sets the flag; the second one may leave at once
/// (the newest complete checkpoint stays as it is). Those that are ignored stay so.
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
    // The terminal is gone. That may be said more than once: by the shell, and by the kernel.
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
    /// `pid` is that of the launcher, 0 when it is not known.
    ///
    /// # Errors
    /// It has ended already, while libtorch was being loaded.
    pub(super) fn of_this_process(pid: u32) -> anyhow::Result<Self> {
        let now = parent_now();
        anyhow::ensure!(
            pid == 0 || now == pid,
            "the launcher (pid {pid}) has ended already"
        );
        Ok(Self(now))
    }

    /// Sets `flag` when the parent ends, so that no process outlives a launcher that was killed, and yet leaves in
    /// order. A thread looks for it: the kernel's own word for it is a signal, which may be ignored.
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

/// Has the kernel kill this process when the one that started it ends: for processes that have nothing to save.
pub(super) fn die_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking for a signal when the parent process ends")
}
