//! Records which signals were ignored when this process started, whatever its libraries have done since.
//!
//! Libraries run code of their own before `main`. UCX, which comes with some builds of Open MPI, installs a handler for
//! SIGHUP that switches its trace on: `nohup fovea train` would then neither ignore SIGHUP nor end by it. This module
//! therefore records the dispositions before any library is initialised, and [`restore`] resets that of SIGHUP.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit per signal that was ignored, by the signal's number.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// Runs before the initialisers of all shared libraries (ELF gABI, "Initialization and Termination Functions").
#[used]
#[unsafe(link_section = ".preinit_array")]
static NOTE: extern "C" fn() = note;

extern "C" fn note() {
    let signals = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ];
    for signal in signals {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: without a new action the call changes nothing. It fills `now`, which is large enough, when it returns
        // 0, and `now` is read only then. It is a plain system call, which needs no library to be initialised.
        let ignored = unsafe {
            libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
                && now.assume_init().sa_sigaction == libc::SIG_IGN
        };
        if ignored {
            IGNORED.fetch_or(1 << signal, Ordering::Relaxed);
        }
    }
}

/// Whether this process was started with `signal` ignored: one of SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2.
pub fn is_ignored(signal: i32) -> bool {
    IGNORED.load(Ordering::Relaxed) >> signal & 1 == 1
}

/// Resets SIGHUP, whatever the libraries did to it: the process ignores it if it did so at the start, and otherwise
/// ends by it, as usual.
pub fn restore() {
    let action = match is_ignored(libc::SIGHUP) {
        true => libc::SIG_IGN,
        false => libc::SIG_DFL,
    };
    // SAFETY: both are dispositions that every signal may have.
    unsafe { libc::signal(libc::SIGHUP, action) };
}
