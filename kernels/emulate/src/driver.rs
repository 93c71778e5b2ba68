//! A stand-in for the CUDA driver in this process, on host memory.
//!
//! It has the functions that Fovea calls, runs kernels on the emulator, and finds errors that a GPU would not report:
//! writes around memory and after its life, copies beyond its ends, frees of unknown addresses ([`check`]). New memory
//! is NaN. In lazy mode work runs as late as CUDA allows, and a missing wait shows ([`set_lazy`]).
//!
//! A process has one stand-in, with one set of settings: tests that use it take turns.

use std::ffi::{CStr, c_char, c_int};
use std::path::Path;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Names of the driver, in the order in which they are loaded: the second refers to the first.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// `RTLD_NOLOAD` of the loader: returns a library that is loaded already, and loads none.
const RTLD_NOLOAD: c_int = 4;

/// The functions of the library, which is never unloaded.
struct Driver {
    check: unsafe extern "C" fn(*mut c_char, usize) -> c_int,
    alive: unsafe extern "C" fn() -> usize,
    set_lazy: unsafe extern "C" fn(c_int),
    set_devices: unsafe extern "C" fn(c_int),
    set_memory: unsafe extern "C" fn(usize),
    set_gone: unsafe extern "C" fn(c_int),
}

/// Loads the stand-in, once, under the driver's names: every later load of libcuda gets it. This also works on a
/// machine with a GPU, unless the process has opened the real driver before.
///
/// # Errors
///
/// The real driver is in the process already; the loader's error.
pub fn load() -> Result<(), String> {
    driver().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Returns an error if the program did anything forbidden since the last call. First runs all work on the streams;
/// afterwards, contexts in which something failed work again.
///
/// # Errors
///
/// The findings, one per line.
pub fn check() -> Result<(), String> {
    let mut report = [0u8; 8192];
    // SAFETY: it writes at most as many bytes as it is told.
    let bad = unsafe { (loaded().check)(report.as_mut_ptr().cast(), report.len()) };
    if bad == 0 {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&report).map_err(|e| e.to_string())?;
    Err(text.to_string_lossy().into_owned())
}

/// Buffers, streams, events, graphs and modules that the program made and did not destroy.
#[must_use]
pub fn alive() -> usize {
    // SAFETY: only counts.
    unsafe { (loaded().alive)() }
}

/// Whether work on streams waits until something waits for it. Off at first: then work runs at once, in the order of
/// the calls. Turning it off runs the waiting work.
pub fn set_lazy(lazy: bool) {
    // SAFETY: any value is allowed.
    unsafe { (loaded().set_lazy)(c_int::from(lazy)) }
}

/// Number of GPUs; 1 at first. With 0, the driver reports at its next start that there is none.
pub fn set_devices(devices: u32) {
    // SAFETY: any value is allowed.
    unsafe { (loaded().set_devices)(c_int::try_from(devices).unwrap_or(c_int::MAX)) }
}

/// Memory of each GPU, bytes; 8 GiB at first.
pub fn set_memory(bytes: usize) {
    // SAFETY: any value is allowed.
    unsafe { (loaded().set_memory)(bytes) }
}

/// Whether every call fails, as at the end of a process when the driver has shut down before the caller.
pub fn set_gone(gone: bool) {
    // SAFETY: any value is allowed.
    unsafe { (loaded().set_gone)(c_int::from(gone)) }
}

fn driver() -> &'static Result<Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(|| {
        for name in NAMES {
            // SAFETY: loads nothing.
            if unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.is_ok() {
                return Err(format!(
                    "the stand-in for the CUDA driver cannot be loaded: this process has opened {name} already\n  \
                     help: call fovea_emulate::driver::load before anything that uses CUDA"
                ));
            }
        }
        open().map_err(|e| format!("the stand-in for the CUDA driver cannot be loaded: {e}"))
    })
}

fn loaded() -> &'static Driver {
    driver().as_ref().unwrap_or_else(|error| panic!("{error}"))
}

fn open() -> Result<Driver, libloading::Error> {
    let folder = Path::new(env!("FOVEA_STANDIN"));
    // SAFETY: our own libraries, whose initialisers touch nothing outside of them.
    let library = |name| unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) };
    let standin = library(NAMES[0])?;
    std::mem::forget(library(NAMES[1])?);
    // SAFETY: the types are those of cpp/driver/driver.cpp, and the library stays.
    let driver = unsafe {
        Driver {
            check: *standin.get(b"fovea_driver_check\0")?,
            alive: *standin.get(b"fovea_driver_alive\0")?,
            set_lazy: *standin.get(b"fovea_driver_set_lazy\0")?,
            set_devices: *standin.get(b"fovea_driver_set_devices\0")?,
            set_memory: *standin.get(b"fovea_driver_set_memory\0")?,
            set_gone: *standin.get(b"fovea_driver_set_gone\0")?,
        }
    };
    std::mem::forget(standin);
    Ok(driver)
}
