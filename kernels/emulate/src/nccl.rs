//! A stand-in for NCCL, for ranks that are threads of this process, on the stand-in for the driver.
//!
//! Tests tell it how to misbehave ([`set`]), and it reports their calls that NCCL forbids ([`check`]). There is one
//! per process: tests that use it take turns.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// How the stand-in behaves from now on. Operations are counted from 0 in each communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// The number that `ncclGetVersion` returns, e.g. 22705 for 2.27.5.
    Version(i32),
    /// Communicators never get ready.
    InitHangs,
    /// The operation of this number never ends.
    HangAt(i32),
    /// The call of operation `at` on rank `rank` returns `code`.
    Fail {
        /// The rank whose call fails.
        rank: i32,
        /// Number of the operation.
        at: i32,
        /// The `ncclResult_t` that the call returns.
        code: i32,
    },
    /// From operation `at` on, operations never end, and the communicator of `rank` reports `code` as its asynchronous
    /// error.
    AsyncError {
        /// The rank whose communicator reports the error.
        rank: i32,
        /// Number of the first operation that does not end.
        at: i32,
        /// The `ncclResult_t` that the communicator reports.
        code: i32,
    },
    /// An abort takes this many milliseconds.
    AbortMs(i32),
    /// The first operation gets on its stream only after this many milliseconds, as while NCCL makes connections.
    ConnectMs(i32),
    /// An operation ends this many microseconds after all ranks have come.
    DelayUs(i32),
}

/// Path of the library, for `FOVEA_NCCL`.
#[must_use]
pub fn path() -> &'static Path {
    Path::new(env!("FOVEA_STANDIN_NCCL"))
}

/// Resets all settings and forgets all findings.
pub fn reset() {
    // SAFETY: it may be called at any time.
    unsafe { (standin().reset)() }
}

/// Changes one setting, for operations that begin after it.
pub fn set(set: Set) {
    let (name, [a, b, c]) = match set {
        Set::Version(number) => (c"version", [number, 0, 0]),
        Set::InitHangs => (c"init_hangs", [1, 0, 0]),
        Set::HangAt(at) => (c"hang_at", [at, 0, 0]),
        Set::Fail { rank, at, code } => (c"fail", [rank, at, code]),
        Set::AsyncError { rank, at, code } => (c"async_error", [rank, at, code]),
        Set::AbortMs(ms) => (c"abort_ms", [ms, 0, 0]),
        Set::ConnectMs(ms) => (c"connect_ms", [ms, 0, 0]),
        Set::DelayUs(us) => (c"delay_us", [us, 0, 0]),
    };
    let name: CString = name.into();
    // SAFETY: a name that ends in NUL; any numbers are allowed.
    unsafe { (standin().set)(name.as_ptr(), a, b, c) }
}

/// Number of communicators that are neither destroyed nor aborted.
#[must_use]
pub fn live() -> usize {
    // SAFETY: it may be called at any time.
    unsafe { (standin().live)() }.unsigned_abs() as usize
}

/// Returns an error if a test did anything forbidden since the last call.
///
/// # Errors
///
/// The findings, one per line.
pub fn check() -> Result<(), String> {
    let mut text = [0u8; 8192];
    // SAFETY: it writes at most as many bytes as it is told.
    match unsafe { (standin().findings)(text.as_mut_ptr().cast(), text.len()) } {
        0 => Ok(()),
        _ => match CStr::from_bytes_until_nul(&text) {
            Ok(text) => Err(text.to_string_lossy().into_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

struct Standin {
    reset: unsafe extern "C" fn(),
    set: unsafe extern "C" fn(*const c_char, c_int, c_int, c_int),
    live: unsafe extern "C" fn() -> c_int,
    findings: unsafe extern "C" fn(*mut c_char, usize) -> usize,
}

fn standin() -> &'static Standin {
    static STANDIN: OnceLock<Standin> = OnceLock::new();
    STANDIN.get_or_init(|| open().unwrap_or_else(|error| panic!("{}: {error}", path().display())))
}

fn open() -> Result<Standin, libloading::Error> {
    // SAFETY: our own library, whose initialisers touch nothing outside of it.
    let library = unsafe { Library::open(Some(path()), RTLD_NOW | RTLD_LOCAL) }?;
    // SAFETY: the types are those of cpp/nccl/nccl.cpp, and the library stays.
    let standin = unsafe {
        Standin {
            reset: *library.get(b"fovea_nccl_reset\0")?,
            set: *library.get(b"fovea_nccl_set\0")?,
            live: *library.get(b"fovea_nccl_live\0")?,
            findings: *library.get(b"fovea_nccl_findings\0")?,
        }
    };
    std::mem::forget(library);
    Ok(standin)
}
