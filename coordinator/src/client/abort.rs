//! The signal that a generation is over, for code that waits elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::protocol::Abort;

/// Why a wait in this generation is pointless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortNotice {
    /// The coordinator's words, or, when `lost`, this side's: the cause is then [`Cause::Failed`](crate::protocol::Cause::Failed).
    pub abort: Abort,
    /// The connection to the coordinator is gone, so nobody announced it.
    pub lost: bool,
}

/// Set once, by the first of: the coordinator's abort, its refusal, the loss of the connection.
#[derive(Clone, Default)]
pub struct AbortSignal(Arc<SharedAbort>);

#[derive(Default)]
struct SharedAbort {
    flag: AtomicBool,
    state: Mutex<AbortState>,
}

type Callback = Box<dyn FnOnce(&AbortNotice) + Send>;

#[derive(Default)]
struct AbortState {
    notice: Option<AbortNotice>,
    callbacks: Vec<Callback>,
}

impl AbortSignal {
    /// Whether it is set: one relaxed load.
    pub fn is_set(&self) -> bool {
        self.0.flag.load(Ordering::Relaxed)
    }

    /// The notice, once it is set.
    pub fn notice(&self) -> Option<AbortNotice> {
        lock(&self.0.state).notice.clone()
    }

    /// Calls `callback` once when the signal is set, from the reading thread; at once, from this
    /// thread, if it is set already. It should only set a flag: the next message waits for it.
    pub fn on_abort(&self, callback: impl FnOnce(&AbortNotice) + Send + 'static) {
        let notice = {
            let mut state = lock(&self.0.state);
            match &state.notice {
                Some(notice) => notice.clone(),
                None => {
                    state.callbacks.push(Box::new(callback));
                    return;
                }
            }
        };
        callback(&notice);
    }

    /// The first call wins.
    pub(super) fn set(&self, notice: &AbortNotice) {
        let callbacks = {
            let mut state = lock(&self.0.state);
            if state.notice.is_some() {
                return;
            }
            state.notice = Some(notice.clone());
            self.0.flag.store(true, Ordering::Relaxed);
            std::mem::take(&mut state.callbacks)
        };
        for callback in callbacks {
            callback(notice);
        }
    }
}

impl fmt::Debug for AbortSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbortSignal").field(&self.notice()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Cause;

    fn notice(reason: &str) -> AbortNotice {
        AbortNotice {
            abort: Abort {
                generation: 3,
                cause: Cause::Failed,
                reason: reason.to_owned(),
            },
            lost: false,
        }
    }

    #[test]
    fn first_notice_wins_and_every_callback_runs_once() {
        let signal = AbortSignal::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |tag: &'static str| {
            let seen = Arc::clone(&seen);
            move |notice: &AbortNotice| lock(&seen).push((tag, notice.abort.reason.clone()))
        };
        signal.on_abort(note("before"));
        assert!(!signal.is_set());
        signal.set(&notice("first"));
        signal.set(&notice("second"));
        signal.on_abort(note("after"));
        assert!(signal.is_set());
        assert_eq!(signal.notice(), Some(notice("first")));
        let first = "first".to_owned();
        assert_eq!(*lock(&seen), [("before", first.clone()), ("after", first)]);
    }
}
