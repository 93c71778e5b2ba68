//! The threads that run the blocks of a pass, and how each gets disjoint pieces of a buffer.

use super::lanes::Isa;
use rayon::prelude::*;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

/// One task of a caller's parallel loop: `state` as the loop was given it, `index` in `0..tasks`.
pub type LoopTask = unsafe extern "C" fn(state: *mut c_void, index: i64);

/// A caller's parallel loop: calls `task(state, i)` exactly once for each `i` in `0..tasks`, from any
/// threads, and returns when all have returned.
pub type ParallelFor = unsafe extern "C" fn(tasks: i64, task: LoopTask, state: *mut c_void);

/// Threads that run the blocks of a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Workers {
    /// The calling thread alone.
    Inline,
    /// The rayon pool that is current when the pass starts.
    Rayon,
    /// A loop of the caller's. The code that makes this value vouches that the loop keeps the contract of
    /// [`ParallelFor`].
    Foreign(ParallelFor),
}

/// The threads and instructions that a pass runs on. They change no bit of the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exec {
    pub(crate) workers: Workers,
    pub(crate) isa: Isa,
}

/// Passes over fewer elements than this stay on the calling thread, because waking another costs more.
const PARALLEL_ELEMENTS: usize = 32 * 1024;

impl Exec {
    /// The current rayon pool and the processor's best instructions.
    pub(crate) fn current() -> Self {
        let workers = if rayon::current_num_threads() == 1 {
            Workers::Inline
        } else {
            Workers::Rayon
        };
        Self {
            workers,
            isa: Isa::detect(),
        }
    }

    /// Runs `task` once for every index below `tasks`; `elements` is the size of the whole pass.
    pub(crate) fn for_each(self, tasks: usize, elements: usize, task: impl Fn(usize) + Sync) {
        match self.workers {
            _ if tasks <= 1 || elements < PARALLEL_ELEMENTS => (0..tasks).for_each(task),
            Workers::Inline => (0..tasks).for_each(task),
            Workers::Rayon => (0..tasks).into_par_iter().for_each(&task),
            Workers::Foreign(run) => run_foreign(run, tasks, &task),
        }
    }

    /// [`Exec::for_each`] for a pass over data that the pass before has read. One thread goes backwards, because the
    /// end is still in its cache. Several keep the order: each may then meet its own part.
    pub(crate) fn for_each_again(self, tasks: usize, elements: usize, task: impl Fn(usize) + Sync) {
        if matches!(self.workers, Workers::Inline) {
            (0..tasks).rev().for_each(task);
        } else {
            self.for_each(tasks, elements, task);
        }
    }
}

struct LoopJob<'a, F> {
    task: &'a F,
    panicked: AtomicBool,
}

fn run_foreign<F: Fn(usize) + Sync>(run: ParallelFor, tasks: usize, task: &F) {
    /// # Safety
    /// `state` points to the `LoopJob` below, which outlives the loop.
    unsafe extern "C" fn enter<F: Fn(usize) + Sync>(state: *mut c_void, index: i64) {
        // SAFETY: as stated; shared access only.
        let job = unsafe { &*state.cast::<LoopJob<'_, F>>() };
        // A panic must not cross the caller's frames; it is raised again below.
        if catch_unwind(AssertUnwindSafe(|| (job.task)(index as usize))).is_err() {
            job.panicked.store(true, Ordering::Relaxed);
        }
    }
    let job = LoopJob {
        task,
        panicked: AtomicBool::new(false),
    };
    // SAFETY: `run` keeps the contract of `ParallelFor`, so `job` is used only during this call; it
    // is `Sync` because `F` is.
    unsafe { run(tasks as i64, enter::<F>, (&raw const job).cast_mut().cast()) };
    assert!(
        !job.panicked.load(Ordering::Relaxed),
        "a task of a parallel loop panicked"
    );
}

/// A buffer cut into equal pieces (the last may be shorter) that tasks write in parallel.
pub(crate) struct Pieces<'a, T> {
    start: *mut T,
    len: usize,
    piece: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`; `piece` hands out disjoint parts.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    /// Cuts `buffer` into pieces of `piece` elements.
    pub(crate) fn new(buffer: &'a mut [T], piece: usize) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
            piece,
            buffer: PhantomData,
        }
    }

    /// Piece number `index`; empty past the end.
    ///
    /// # Safety
    /// While the returned slice lives, no other call with this `index` is made.
    #[expect(clippy::mut_from_ref, reason = "pieces are disjoint")]
    pub(crate) unsafe fn get(&self, index: usize) -> &mut [T] {
        let begin = (index * self.piece).min(self.len);
        let end = (begin + self.piece).min(self.len);
        // SAFETY: disjoint for other indices.
        unsafe { self.range(begin..end) }
    }

    /// The elements of `range`, for writing.
    ///
    /// # Safety
    /// While the returned slice lives, no overlapping piece or range is asked for.
    #[expect(clippy::mut_from_ref, reason = "ranges are disjoint")]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the buffer that is borrowed mutably for 'a; disjoint by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
