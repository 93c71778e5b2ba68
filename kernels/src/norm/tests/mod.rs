//! Tests of the passes against plain f64 code, on every instruction set and kind of worker.

mod batch_norm;
mod entry_points;
mod lanes;
mod pooling;

use super::Element;
use super::lanes::Isa;
use super::workers::{Exec, LoopTask, Workers};
use half::bf16;
use std::ffi::c_void;
use std::fmt::Debug;

/// Test data from a fixed sequence of numbers.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, mean 0, variance 1.
    pub(super) fn value(&mut self) -> f32 {
        let sum: f64 = (0..12)
            .map(|_| (self.next() >> 11) as f64 / 9_007_199_254_740_992.0)
            .sum();
        (sum - 6.0) as f32
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Element types under test.
pub(super) trait Sample: Element + PartialEq + Debug + Default {
    /// Relative step of the type.
    const STEP: f64;
    fn of(value: f32) -> Self;
    fn wide(self) -> f64;
    fn bits(self) -> u32;
    fn many(numbers: &mut Numbers, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::of(numbers.value())).collect()
    }
}

impl Sample for f32 {
    const STEP: f64 = 1.2e-7;
    fn of(value: f32) -> Self {
        value
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Sample for bf16 {
    const STEP: f64 = 1.0 / 256.0;
    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

pub(super) fn bits<T: Sample>(values: &[T]) -> Vec<u32> {
    values.iter().map(|v| v.bits()).collect()
}

pub(super) fn wide<T: Sample>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.wide()).collect()
}

/// Each `actual` is `expected` within `absolute + relative * |expected|`.
#[track_caller]
pub(super) fn assert_close(
    what: &str,
    actual: &[f64],
    expected: &[f64],
    absolute: f64,
    relative: f64,
) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let limit = absolute + relative * e.abs();
        assert!(
            (a - e).abs() <= limit,
            "{what}[{i}] is {a}, expected {e} +- {limit}"
        );
    }
}

/// A parallel loop with three threads that take the tasks backwards and in turn.
///
/// # Safety
/// As the contract of `ParallelFor` demands.
pub(super) unsafe extern "C" fn three_threads(tasks: i64, task: LoopTask, state: *mut c_void) {
    struct Shared(*mut c_void);
    // SAFETY: a task may be called from any thread.
    unsafe impl Sync for Shared {}
    let state = &Shared(state);
    std::thread::scope(|scope| {
        for first in 0..3 {
            scope.spawn(move || {
                let state = state;
                for index in (first..tasks)
                    .step_by(3)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                {
                    // SAFETY: each index once, during this call.
                    unsafe { task(state.0, index) };
                }
            });
        }
    });
}

/// The variant that defines the bits: portable code on one thread.
pub(super) const PLAIN: Exec = Exec {
    workers: Workers::Inline,
    isa: Isa::Portable,
};

/// Runs `pass` in every way this processor can; all must give the bits of [`PLAIN`].
pub(super) fn everywhere<R: PartialEq + Debug + Send>(pass: impl Fn(Exec) -> R + Sync) -> R {
    let expected = pass(PLAIN);
    for isa in Isa::available() {
        for workers in [Workers::Inline, Workers::Foreign(three_threads)] {
            let exec = Exec { workers, isa };
            assert!(pass(exec) == expected, "{exec:?} gives other bits");
        }
        for threads in [2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("threads can be started in a test");
            let workers = Workers::Rayon;
            let actual = pool.install(|| pass(Exec { workers, isa }));
            assert!(
                actual == expected,
                "{isa:?}, {threads} threads give other bits"
            );
        }
    }
    expected
}
