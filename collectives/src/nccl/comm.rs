//! One communicator: who may call the library with it when, and how it ends.
//!
//! The library allows one thread at a time to use a communicator, and none from the moment it is
//! aborted or destroyed. So every call goes through [`SharedCommunicator::call`]: under the lock, and only while
//! the state is `Open`. None of these calls waits (the communicator is non-blocking), so the lock is held
//! for microseconds. An abort may wait, for the GPU or for NCCL's own threads: it gets its own thread,
//! which first takes the handle out of the state, so nobody can reach it any more.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fovea_kernels::cuda::Kernels;

use super::super::{AbortHandle, Error, Result};
use super::library::{CommunicatorHandle, IN_PROGRESS, Library, SUCCESS, UniqueId};

/// How long the ranks may take to leave in order before a rank aborts: the others may be gone.
const LEAVE: Duration = Duration::from_secs(2);
/// How long the end of a communicator is waited for.
const END: Duration = Duration::from_secs(10);
/// A wait looks this often without sleeping, then at these intervals.
const LOOKS: u32 = 50;
const NAP: Duration = Duration::from_micros(50);
const LONG_NAP: Duration = Duration::from_micros(200);
/// From here on a wait counts as a long one.
const LONG: Duration = Duration::from_millis(20);

/// One rank's communicator, in one generation.
pub(super) struct Communicator {
    shared: Arc<SharedCommunicator>,
    abort: AbortHandle,
    pub(super) rank: usize,
    pub(super) world: usize,
}

struct SharedCommunicator {
    library: Arc<Library>,
    kernels: Arc<Kernels>,
    rank: usize,
    /// An abort was begun; its thread may not have got to it yet.
    doomed: AtomicBool,
    state: Mutex<CommunicatorState>,
    gone: Condvar,
}

enum CommunicatorState {
    Open(CommunicatorHandle),
    /// A thread destroys or aborts it.
    Ending,
    Gone,
}

// SAFETY: a handle may be used from any thread, by one at a time: all uses are under the lock, or by the one
// thread that took it out of the state.
unsafe impl Send for CommunicatorState {}

impl Communicator {
    /// Joins the ranks that have the same id. Returns when all have, with an error after the deadline or an
    /// abort.
    pub(super) fn join(
        library: &Arc<Library>,
        kernels: &Arc<Kernels>,
        id: UniqueId,
        (rank, world): (usize, usize),
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Self> {
        let current = kernels.enter()?;
        let (handle, code) = library.init(id, rank as c_int, world as c_int);
        drop(current);
        if handle.is_null() {
            // SAFETY: null is allowed.
            return Err(unsafe { library.error("ncclCommInitRankConfig", rank, code, handle) });
        }
        let shared = Arc::new(SharedCommunicator {
            library: Arc::clone(library),
            kernels: Arc::clone(kernels),
            rank,
            doomed: AtomicBool::new(false),
            state: Mutex::new(CommunicatorState::Open(handle)),
            gone: Condvar::new(),
        });
        let communicator = Self {
            shared,
            abort: abort.clone(),
            rank,
            world,
        };
        let weak = Arc::downgrade(&communicator.shared);
        abort.on_abort(Box::new(move |_| {
            if let Some(shared) = weak.upgrade() {
                shared.abort();
            }
        }));
        communicator.settle("join", "ncclCommInitRankConfig", code, deadline)?;
        Ok(communicator)
    }

    /// Calls the library, and waits until what the call began is under way (connections may have to be made
    /// first). Only then is its work on the stream.
    pub(super) fn call(
        &self,
        op: &'static str,
        name: &'static str,
        deadline: Instant,
        call: impl FnOnce(&Library, CommunicatorHandle) -> c_int,
    ) -> Result<()> {
        let code = self
            .shared
            .call(call)
            .unwrap_or_else(|| Err(self.aborted(op)))?;
        self.settle(op, name, code, deadline)
    }

    fn settle(
        &self,
        op: &'static str,
        name: &'static str,
        code: c_int,
        deadline: Instant,
    ) -> Result<()> {
        match code {
            SUCCESS => Ok(()),
            // The state says when, and how it went.
            IN_PROGRESS => self.wait(op, name, deadline, || Ok(true)),
            code => Err(self.error(name, code).unwrap_or_else(|| self.aborted(op))),
        }
    }

    /// Waits until the library has nothing under way and `done` says so, while it has not failed, nobody
    /// aborts and the deadline has not passed.
    pub(super) fn wait(
        &self,
        op: &'static str,
        name: &'static str,
        deadline: Instant,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let started = Instant::now();
        let mut looks = 0;
        loop {
            if self.abort.is_aborted() {
                return Err(self.aborted(op));
            }
            // The library's error comes first: what it stands for shows in `done` as something else.
            // SAFETY: `call` gives a communicator as `state` wants it.
            let state = self
                .shared
                .call(|library, handle| unsafe { library.state(handle) });
            match state.unwrap_or_else(|| Err(self.aborted(op)))? {
                // An abort makes it look done as well.
                SUCCESS if done()? => {
                    return match self.shared.doomed.load(Ordering::Acquire) {
                        true => Err(self.aborted(op)),
                        false => Ok(()),
                    };
                }
                SUCCESS | IN_PROGRESS => {}
                code => return Err(self.error(name, code).unwrap_or_else(|| self.aborted(op))),
            }
            let now = Instant::now();
            if now >= deadline {
                let seat = (self.rank, self.world);
                return Err(Error::deadline(op, seat, now - started, Vec::new()));
            }
            looks += 1;
            match looks {
                0..LOOKS => std::thread::yield_now(),
                _ if now - started < LONG => std::thread::sleep(NAP),
                _ => std::thread::sleep(LONG_NAP),
            }
        }
    }

    /// Why there is no communicator any more.
    fn aborted(&self, op: &'static str) -> Error {
        let reason = self
            .abort
            .reason()
            .unwrap_or("the communicator was aborted");
        Error::aborted(op, self.rank, Some(self.rank), reason)
    }

    fn error(&self, name: &'static str, code: c_int) -> Option<Error> {
        let rank = self.rank;
        // SAFETY: `with` gives a communicator as `error` wants it.
        self.shared
            .with(|library, handle| unsafe { library.error(name, rank, code, handle) })
    }

    /// Begins the abort. Returns at once.
    pub(super) fn abort(&self) {
        self.shared.abort();
    }

    /// Ends the communicator: in order if it is in order, else by an abort. Waits for it, but not for long. False:
    /// it is still ending, so its last operations may still be on the device.
    pub(super) fn end(&self) -> bool {
        let deadline = Instant::now() + END;
        if !self.shared.doomed.load(Ordering::Acquire) {
            // SAFETY: `call` gives a communicator as `finalize` wants it.
            let finalized = self.call(
                "leave",
                "ncclCommFinalize",
                Instant::now() + LEAVE,
                |library, handle| unsafe { library.finalize(handle) },
            );
            match finalized {
                Ok(()) => self.shared.end_by("fovea-nccl-end", |library, handle| {
                    // SAFETY: `end_by` gives the handle away, to this call alone.
                    unsafe { library.destroy(handle) };
                }),
                Err(error) => {
                    tracing::debug!("ending the communicator by an abort: {error}");
                    self.shared.abort();
                }
            }
        }
        self.shared.wait_until_gone(deadline)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // `end` was called, unless joining failed. Nobody waits for this one.
        if matches!(*self.shared.lock(), CommunicatorState::Open(_)) {
            self.shared.abort();
        }
    }
}

impl SharedCommunicator {
    /// A poisoned lock means that a thread panicked between two calls; the state is whole.
    fn lock(&self) -> MutexGuard<'_, CommunicatorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `body` with the communicator, if there still is one.
    fn with<T>(&self, body: impl FnOnce(&Library, CommunicatorHandle) -> T) -> Option<T> {
        match *self.lock() {
            CommunicatorState::Open(handle) => Some(body(&self.library, handle)),
            CommunicatorState::Ending | CommunicatorState::Gone => None,
        }
    }

    /// As [`Self::with`], with the device's context current, which NCCL goes by.
    fn call(
        &self,
        call: impl FnOnce(&Library, CommunicatorHandle) -> c_int,
    ) -> Option<Result<c_int>> {
        self.with(|library, handle| {
            let _current = self.kernels.enter()?;
            Ok(call(library, handle))
        })
    }

    fn abort(self: &Arc<Self>) {
        if self.doomed.swap(true, Ordering::AcqRel) {
            return;
        }
        let rank = self.rank;
        self.end_by("fovea-nccl-abort", move |library, handle| {
            // SAFETY: `end_by` gives the handle away, to this call alone.
            let code = unsafe { library.abort(handle) };
            if code != SUCCESS && code != IN_PROGRESS {
                // SAFETY: null is allowed.
                let error =
                    unsafe { library.error("ncclCommAbort", rank, code, std::ptr::null_mut()) };
                tracing::warn!("{error}");
            }
        });
    }

    /// Takes the communicator out of everybody's reach and ends it, on a thread of its own that nobody joins.
    fn end_by(
        self: &Arc<Self>,
        name: &str,
        end: impl FnOnce(&Library, CommunicatorHandle) + Send + 'static,
    ) {
        let shared = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let mut state = shared.lock();
                let CommunicatorState::Open(handle) = *state else {
                    return; // another thread was faster
                };
                *state = CommunicatorState::Ending;
                drop(state);
                let current = shared.kernels.enter();
                end(&shared.library, handle);
                drop(current);
                *shared.lock() = CommunicatorState::Gone;
                shared.gone.notify_all();
            });
        if let Err(error) = spawned {
            tracing::warn!(
                "{name}: the communicator stays, for there is no thread to end it: {error}"
            );
        }
    }

    fn wait_until_gone(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let still_there = |state: &mut CommunicatorState| !matches!(state, CommunicatorState::Gone);
        let waited = self.gone.wait_timeout_while(self.lock(), left, still_there);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        matches!(*state, CommunicatorState::Gone)
    }
}
