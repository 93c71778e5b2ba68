//! Backend `nccl` on the stand-ins for NCCL and the CUDA driver: ranks are threads, device memory is host memory.
//!
//! A separate test binary, because the stand-ins replace the libraries in the whole process. Anything the
//! stand-ins find forbidden, at any time, fails the test ([`Turn`]).
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod device;
mod faults;
mod host;
mod libraries;
mod run;
#[path = "../../src/testing.rs"]
#[allow(dead_code, reason = "the tests of the other backends use more of it")]
mod testing;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fovea_collectives::nccl::{Library, NcclCollective, NcclOptions, NcclSearch, UniqueId};
use fovea_collectives::{AbortHandle, Collective, Result, tree_sum};
use fovea_emulate::{driver, nccl as standin};
use fovea_kernels::cuda::{self, Kernels};

/// What a wait that an abort has to end may take, with other tests' builds beside it.
pub const AT_ONCE: Duration = Duration::from_secs(2);

/// The stand-ins, for one test at a time.
pub struct Turn {
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits for the turn. `lazy`: the device does everything as late as it may.
    pub fn take(lazy: bool) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        driver::load().unwrap();
        standin::reset();
        driver::set_lazy(lazy);
        Self { _turn: turn }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(standin::check(), Ok(()), "what NCCL forbids");
            assert_eq!(standin::live(), 0, "communicators that nobody ended");
            assert_eq!(driver::check(), Ok(()), "what the driver forbids");
        }
    }
}

/// The one GPU of all ranks.
pub fn kernels() -> Arc<Kernels> {
    static KERNELS: OnceLock<Arc<Kernels>> = OnceLock::new();
    // Compiled once per build of these tests, whatever number of processes they run in.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let load = || Kernels::load(0, &cuda::nvrtc::Search::from_env(), Some(&cache)).unwrap();
    Arc::clone(KERNELS.get_or_init(load))
}

/// The stand-in for NCCL.
pub fn library() -> Arc<Library> {
    let search = NcclSearch {
        chosen: Some(standin::path().to_owned()),
        libtorch: None,
    };
    Arc::new(Library::open(&search).unwrap())
}

/// Takes a seat.
pub fn join(
    id: UniqueId,
    (rank, world): (usize, usize),
    abort: &AbortHandle,
    deadline: Instant,
) -> Result<NcclCollective> {
    let options = NcclOptions {
        id,
        rank,
        world,
        patience: Duration::from_secs(20),
    };
    NcclCollective::join(&library(), &kernels(), &options, abort, deadline)
}

/// Runs `body` on every rank of a fresh world, each with its own abort handle; the results in rank order.
pub fn on_ranks<T: Send>(
    world: usize,
    body: impl Fn(usize, UniqueId, AbortHandle) -> T + Sync,
) -> Vec<T> {
    let id = library().unique_id().unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let start = |rank| scope.spawn(move || body(rank, id, AbortHandle::new()));
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// As [`on_ranks`], joined.
pub fn joined<T: Send>(world: usize, body: impl Fn(NcclCollective) -> T + Sync) -> Vec<T> {
    on_ranks(world, |rank, id, abort| {
        body(join(id, (rank, world), &abort, testing::soon()).unwrap())
    })
}
