//! The emulated GPU, for tests.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fovea_emulate::driver;
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{Kernels, Stream};
use fovea_trainer::gpu::Gpu;
use fovea_trainer::ops::NormEngine;

/// A GPU of the emulated driver. Its tensors lie on the CPU.
pub fn gpu(engine: NormEngine) -> Gpu {
    static KERNELS: OnceLock<(Arc<Kernels>, Stream)> = OnceLock::new();
    let (kernels, stream) = KERNELS.get_or_init(|| {
        driver::load().unwrap();
        // The kernels are compiled once per build, for all processes that run these tests: the cache lies next to
        // target/*/deps.
        let test = std::env::current_exe().unwrap();
        let cache = test.ancestors().nth(3).unwrap().join("tmp/kernels");
        let kernels = Kernels::load(0, &Search::from_env(), Some(&cache)).unwrap();
        let stream = Stream::new(&kernels).unwrap();
        (kernels, stream)
    });
    Gpu::on_host(Arc::clone(kernels), stream.handle(), engine)
}

/// Locks the emulated driver: there is one per process, and it runs kernels one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
