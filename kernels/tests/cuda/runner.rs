//! Where a kernel runs: on the emulator or on a GPU.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{DeviceBuffer, Kernels, Op};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// Memory that kernels can use, and a way to run kernels.
pub trait Runner {
    /// A piece of memory, 256-byte aligned.
    type Block;
    /// Permission for kernels to access a part of a block, until it is dropped.
    type Permit;
    fn block(&self, bytes: &[u8]) -> Self::Block;
    fn address(block: &Self::Block) -> u64;
    fn permit(&self, address: u64, bytes: usize) -> Self::Permit;
    fn read(&self, block: &Self::Block) -> Vec<u8>;
    fn run(&self, op: &dyn Op);
}

/// The kernels as C++, on host memory; each launch has another order of blocks and threads.
#[derive(Default)]
pub struct Emulator {
    seed: Cell<u64>,
}

pub struct HostBlock {
    start: *mut u8,
    layout: Layout,
}

impl Runner for Emulator {
    type Block = HostBlock;
    type Permit = fovea_emulate::Buffer;

    fn block(&self, bytes: &[u8]) -> HostBlock {
        let layout = Layout::from_size_align(bytes.len().max(1), 256).unwrap();
        // SAFETY: the layout has a size; freed in drop with the same layout.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: a new allocation of at least this many bytes.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        HostBlock { start, layout }
    }

    fn address(block: &HostBlock) -> u64 {
        block.start as u64
    }

    fn permit(&self, address: u64, bytes: usize) -> Self::Permit {
        fovea_emulate::Buffer::new(address, bytes)
    }

    fn read(&self, block: &HostBlock) -> Vec<u8> {
        // SAFETY: all of it was initialised; no kernel runs now.
        unsafe { std::slice::from_raw_parts(block.start, block.layout.size()) }.to_vec()
    }

    fn run(&self, op: &dyn Op) {
        for launch in op.launches().unwrap() {
            self.seed.set(self.seed.get() + 1);
            // SAFETY: the tests pass addresses of blocks that are large enough, with guard zones.
            let result = unsafe {
                fovea_emulate::run(
                    launch.kernel(),
                    launch.grid(),
                    launch.threads(),
                    launch.values(),
                    launch.sizes(),
                    self.seed.get(),
                )
            };
            result.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `block` with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// GPU 0. The tests fail if there is none.
pub struct Device(pub Arc<Kernels>);

impl Device {
    pub fn open() -> Self {
        static KERNELS: OnceLock<Arc<Kernels>> = OnceLock::new();
        let load = || Kernels::load(0, &Search::from_env(), None).unwrap_or_else(|e| panic!("{e}"));
        Self(Arc::clone(KERNELS.get_or_init(load)))
    }
}

impl Runner for Device {
    type Block = DeviceBuffer;
    type Permit = ();

    fn block(&self, bytes: &[u8]) -> Self::Block {
        DeviceBuffer::new(&self.0, bytes).unwrap()
    }

    fn address(block: &Self::Block) -> u64 {
        block.address()
    }

    /// Does nothing: a GPU has no such check, and compute-sanitizer looks at whole allocations.
    fn permit(&self, _address: u64, _bytes: usize) {}

    fn read(&self, block: &Self::Block) -> Vec<u8> {
        let mut bytes = vec![0u8; block.bytes()];
        block.download(&mut bytes).unwrap();
        bytes
    }

    fn run(&self, op: &dyn Op) {
        // SAFETY: the default stream; the tests pass addresses of blocks that are large enough.
        unsafe {
            self.0.run(0, op).unwrap();
            self.0.synchronize(0).unwrap();
        }
    }
}

/// Runs `test` on `cases` random values.
pub fn for_all<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(cases)
    };
    let result = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
