//! The handle that ends the waits of a collective from another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Called once with the reason when the handle is raised.
type Waker = Box<dyn Fn(&str) + Send + Sync>;

/// Ends the waits of one collective (one generation) on every rank.
///
/// Made before the collective, so that joining can be aborted as well. Cheap to clone; the heartbeat
/// thread keeps a clone and raises it when the generation moves on. Once raised it stays raised: a new
/// generation gets a new handle. Not for signal handlers (it takes a lock): there, set a flag.
#[derive(Clone, Default)]
pub struct AbortHandle {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    raised: AtomicBool,
    reason: OnceLock<String>,
    wakers: Mutex<Vec<Waker>>,
}

impl AbortHandle {
    /// A handle that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the waits of every rank return [`super::Error::Aborted`] with this reason. Only the first
    /// call counts.
    pub fn abort(&self, reason: &str) {
        if self.inner.reason.set(reason.to_string()).is_err() {
            return;
        }
        self.inner.raised.store(true, Ordering::Release);
        for waker in self.wakers().iter() {
            waker(reason);
        }
    }

    /// Whether [`AbortHandle::abort`] was called on this handle or a clone of it. An abort by another
    /// rank does not show here; it shows as the error of the operation it ended.
    pub fn is_aborted(&self) -> bool {
        self.inner.raised.load(Ordering::Acquire)
    }

    /// The reason given to the first [`AbortHandle::abort`].
    pub fn reason(&self) -> Option<&str> {
        self.is_aborted()
            .then(|| self.inner.reason.get().map(String::as_str))
            .flatten()
    }

    /// Has `waker` called when the handle is raised, at once if it is already.
    pub fn on_abort(&self, waker: Waker) {
        // The lock is taken before the flag is read: an abort in between waits for the lock and then
        // finds the new waker in the list.
        let mut wakers = self.wakers();
        if let Some(reason) = self.reason() {
            waker(reason);
        } else {
            wakers.push(waker);
        }
    }

    fn wakers(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        // The list is only pushed to, so it is whole even if a waker panicked.
        self.inner
            .wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("reason", &self.reason())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::AbortHandle;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_first_reason_counts_and_each_waker_hears_it_once() {
        let handle = AbortHandle::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = |handle: &AbortHandle| {
            let calls = Arc::clone(&calls);
            handle.on_abort(Box::new(move |reason| {
                assert_eq!(reason, "generation 4");
                calls.fetch_add(1, Ordering::Relaxed);
            }));
        };
        count(&handle);
        assert_eq!(handle.reason(), None);
        handle.clone().abort("generation 4");
        handle.abort("later");
        assert!(handle.is_aborted());
        assert_eq!(handle.reason(), Some("generation 4"));
        count(&handle);
        assert_eq!(
            calls.load(Ordering::Relaxed),
            2,
            "one early waker, one late"
        );
    }
}
