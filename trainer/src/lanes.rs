//! Several independent pieces of work at once, each on its own share of this process's threads.
//!
//! The virtual shards of a step are independent until the reduction tree adds their sums, and a small shard on one
//! thread uses a core better than two threads on the same shard. Lanes also make results independent of the number of
//! threads: oneDNN's sums depend on the number of threads of a piece of work, and that number is fixed when the process
//! starts.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::host;

/// How the threads of this process are divided.
#[derive(Debug)]
pub struct ThreadLanes {
    /// `None`: one lane, the calling thread.
    pool: Option<ThreadPool>,
}

impl ThreadLanes {
    /// One lane with all of libtorch's threads.
    pub fn one() -> Self {
        Self { pool: None }
    }

    /// Divides `threads` among at most `parts` lanes, and configures libtorch, rayon and the allocator. Call it once per
    /// process, before libtorch has computed anything.
    pub fn over(threads: usize, parts: usize) -> Result<Self> {
        host::keep_freed_memory();
        let lanes = threads.min(parts).max(1);
        tch::set_num_threads((threads / lanes).max(1) as i32);
        let failed = |e: rayon::ThreadPoolBuildError| Error::Internal(format!("thread pool: {e}"));
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .or_else(|e| match rayon::current_num_threads() == threads {
                true => Ok(()),
                false => Err(failed(e)),
            })?;
        if lanes == 1 {
            return Ok(Self::one());
        }
        // These threads stay, because libtorch and oneDNN keep scratch memory per thread.
        let pool = ThreadPoolBuilder::new()
            .num_threads(lanes)
            .thread_name(|lane| format!("lane-{lane}"))
            .build()
            .map_err(failed)?;
        Ok(Self { pool: Some(pool) })
    }

    /// Number of pieces of work that run at the same time.
    pub fn count(&self) -> usize {
        self.pool
            .as_ref()
            .map_or(1, ThreadPool::current_num_threads)
    }

    /// Runs `work(0)` to `work(n - 1)`; returns the results in this order. Beyond [`ThreadLanes::count`], pieces take
    /// turns.
    pub fn run<T: Send>(
        &self,
        n: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let Some(pool) = self.pool.as_ref().filter(|_| n > 1) else {
            return (0..n).map(work).collect();
        };
        // A broadcast gives each thread one job that no other thread can take. (Rayon could start a job that it may
        // move inside another job that waits, with libtorch's thread-local state of that one.)
        let by_lane: Vec<Vec<Result<T>>> = pool.broadcast(|lane| {
            (lane.index()..n)
                .step_by(lane.num_threads())
                .map(&work)
                .collect()
        });
        let mut by_lane: Vec<_> = by_lane.into_iter().map(Vec::into_iter).collect();
        let lanes = by_lane.len();
        (0..n).filter_map(|i| by_lane[i % lanes].next()).collect()
    }
}

/// A value with tensors in it that several lanes read.
#[derive(Clone, Copy)]
pub(crate) struct ReadOnly<'a, T: ?Sized>(&'a T);

impl<'a, T: ?Sized> ReadOnly<'a, T> {
    /// # Safety
    /// While lanes use it, nobody calls an operation that writes to a tensor behind `value`. (Tensors are not `Sync`
    /// because such operations take `&self`. libtorch itself allows any number of threads to read a tensor and to run
    /// autograd through it: reference counts are atomic, and gradients are returned here, never accumulated into a
    /// leaf.)
    pub unsafe fn new(value: &'a T) -> Self {
        Self(value)
    }

    pub fn get(&self) -> &'a T {
        self.0
    }
}

// SAFETY: the caller of `new` has promised it.
unsafe impl<T: ?Sized> Sync for ReadOnly<'_, T> {}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_the_first_error_wins() {
        let lanes = ThreadLanes {
            pool: Some(ThreadPoolBuilder::new().num_threads(3).build().unwrap()),
        };
        assert_eq!(lanes.count(), 3);
        for n in 0..9 {
            let squares = lanes.run(n, |i| Ok(i * i)).unwrap();
            assert_eq!(squares, (0..n).map(|i| i * i).collect::<Vec<_>>());
        }
        let failed = lanes.run(7, |i| match i {
            2 | 5 => Err(Error::Internal(format!("piece {i}"))),
            _ => Ok(i),
        });
        assert!(failed.unwrap_err().to_string().contains("piece 2"));
        assert_eq!(ThreadLanes::one().run(2, Ok).unwrap(), [0, 1]);
    }

    /// This also holds with rayon inside, whose waiting threads look for other work.
    #[test]
    fn no_piece_starts_inside_another() {
        use rayon::prelude::*;
        use std::cell::Cell;
        thread_local!(static BUSY: Cell<bool> = const { Cell::new(false) });
        let lanes = ThreadLanes {
            pool: Some(ThreadPoolBuilder::new().num_threads(2).build().unwrap()),
        };
        for _ in 0..50 {
            lanes
                .run(8, |_| {
                    assert!(!BUSY.replace(true), "a piece inside another");
                    let sum: u64 = (0..10_000u64).into_par_iter().map(|x| x ^ 1).sum();
                    BUSY.set(false);
                    Ok(sum)
                })
                .unwrap();
        }
    }
}
