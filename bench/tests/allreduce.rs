//! `fovea bench allreduce --backend nccl` on the stand-ins for NCCL and the CUDA driver: ranks are threads, device
//! memory is host memory. A separate binary, because the stand-ins replace the libraries in the whole process.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_bench::allreduce::{Figure, measure_on_gpus};
use fovea_collectives::nccl::{Library, NcclCollective, NcclOptions, NcclSearch};
use fovea_collectives::{AbortHandle, Solo};
use fovea_emulate::{driver, nccl as standin};
use fovea_kernels::cuda::{Kernels, nvrtc};

const PATIENCE: Duration = Duration::from_secs(60);

fn kernels() -> Arc<Kernels> {
    driver::load().unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    Kernels::load(0, &nvrtc::Search::from_env(), Some(&cache)).unwrap()
}

/// The figures of each of three ranks; the measurement itself checks every sum.
fn measured(kernels: &Arc<Kernels>, sizes: &[u64]) -> Vec<Vec<Figure>> {
    let search = NcclSearch {
        chosen: Some(standin::path().to_owned()),
        libtorch: None,
    };
    let library = &Arc::new(Library::open(&search).unwrap());
    let id = library.unique_id().unwrap();
    let rank = |rank| {
        let options = NcclOptions {
            id,
            rank,
            world: 3,
            patience: PATIENCE,
        };
        let (abort, until) = (AbortHandle::new(), Instant::now() + PATIENCE);
        let mut nccl = NcclCollective::join(library, kernels, &options, &abort, until).unwrap();
        measure_on_gpus(&mut nccl, kernels, sizes, 3).unwrap()
    };
    let rank = &rank;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..3).map(|r| scope.spawn(move || rank(r))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn sums_are_measured_in_gpu_memory_only() {
    let kernels = kernels();
    for lazy in [false, true] {
        driver::set_lazy(lazy);
        standin::reset();
        let figures = measured(&kernels, &[4, 1000, 100_000]);
        assert!(figures[0] == figures[1] && figures[1] == figures[2]);
        let sizes: Vec<u64> = figures[0].iter().map(|f| f.bytes).collect();
        assert_eq!(sizes, [4, 1000, 100_000]);
        assert!(figures[0].iter().all(|f| f.ms > 0.0 && f.min_ms <= f.ms));
        assert_eq!(standin::check(), Ok(()), "what NCCL forbids");
        assert_eq!(standin::live(), 0, "communicators that nobody ended");
        assert_eq!(driver::check(), Ok(()), "what the driver forbids");
    }
    let mut alone = Solo::new(&AbortHandle::new());
    let error = measure_on_gpus(&mut alone, &kernels, &[4], 1).unwrap_err();
    assert!(error.to_string().contains("--backend nccl"), "{error}");
}
