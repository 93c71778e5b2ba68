//! Streams, memory, graphs and kernels through the driver's own functions, without a GPU: on the stand-in for the
//! driver. A process has one stand-in, so these tests have a binary of their own and take turns.

#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test; what a test cannot go on without"
)]

#[macro_use]
#[path = "../cuda/bodies.rs"]
mod bodies;
#[path = "../cuda/confusion.rs"]
mod confusion;
#[path = "../cuda/flat.rs"]
mod flat;
#[path = "../cuda/graph.rs"]
mod graph;
#[path = "../cuda/guarded.rs"]
mod guarded;
#[path = "../cuda/losses.rs"]
mod losses;
#[path = "../cuda/memory.rs"]
mod memory;
#[expect(
    dead_code,
    reason = "the other binary runs kernels without a driver as well"
)]
#[path = "../cuda/runner.rs"]
mod runner;
#[path = "../cuda/stream.rs"]
mod stream;

mod faults;
mod late;
mod machine;
mod twins;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fovea_emulate::driver;
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{Kernels, Result};

/// The stand-in, for one test at a time. It must have no findings when this is dropped.
struct Turn {
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    fn take() -> Self {
        static TURNS: Mutex<()> = Mutex::new(());
        let guard = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        driver::load().unwrap_or_else(|error| panic!("{error}"));
        // A failed test may have left lazy mode on.
        driver::set_lazy(false);
        let _ = driver::check();
        Self { _guard: guard }
    }

    /// The kernels of GPU 0, which are loaded once.
    fn kernels(&self) -> Arc<Kernels> {
        static KERNELS: OnceLock<Arc<Kernels>> = OnceLock::new();
        Arc::clone(KERNELS.get_or_init(|| load(0).unwrap_or_else(|e| panic!("{e}"))))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        driver::set_lazy(false);
        if !std::thread::panicking() {
            driver::check().unwrap_or_else(|found| panic!("{found}"));
        }
    }
}

/// The kernels of GPU `ordinal`, compiled once per build of these tests.
fn load(ordinal: u32) -> Result<Arc<Kernels>> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    Kernels::load(ordinal, &Search::from_env(), Some(&cache))
}

/// Makes each body two tests: one with work done at once, one with work done as late as allowed.
macro_rules! in_both_modes {
    ($($module:ident :: $body:ident),* $(,)?) => {
        mod at_once {
            $(
                #[test]
                fn $body() {
                    let turn = super::Turn::take();
                    super::$module::$body(&turn.kernels());
                }
            )*
        }
        mod lazy {
            $(
                #[test]
                fn $body() {
                    let turn = super::Turn::take();
                    let kernels = turn.kernels();
                    fovea_emulate::driver::set_lazy(true);
                    super::$module::$body(&kernels);
                }
            )*
        }
    };
}

device_bodies!(in_both_modes);
