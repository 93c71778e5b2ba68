//! One rank's link to the coordinator: connecting, reconnecting, and the reason why a generation has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fovea_coordinator::Error as CoordinatorError;
use fovea_coordinator::client::{Client, Endpoint, Reporter};
use fovea_coordinator::protocol::{Abort, Terms, TrainerInfo};

use crate::error::{Error, Result};

/// The connection to the coordinator, and the data needed to make another.
pub(super) struct CoordinatorLink {
    endpoint: Endpoint,
    info: TrainerInfo,
    drain_wanted: Arc<AtomicBool>,
    /// The terms that this rank reports at each rendezvous.
    pub terms: Terms,
    /// The newest connection; [`Self::reconnect`] replaces it.
    pub client: Client,
    /// Reports over the newest connection, for the thread that writes checkpoints.
    pub reporter: Arc<Mutex<Reporter>>,
    /// Whether the newest connection has carried the request to drain.
    drain_asked: bool,
}

/// The result of a search for the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SearchOutcome {
    Coordinator,
    /// A signal asked this process to leave instead.
    Leave,
}

impl CoordinatorLink {
    /// Connects within `patience`, or until a signal handler sets `drain_wanted`.
    pub fn new(
        endpoint: Endpoint,
        info: TrainerInfo,
        terms: Terms,
        drain_wanted: Arc<AtomicBool>,
        patience: Duration,
    ) -> Result<Self> {
        let client = connect(&endpoint, &info, &drain_wanted, Instant::now() + patience)?;
        Ok(Self {
            endpoint,
            info,
            drain_wanted,
            terms,
            reporter: Arc::new(Mutex::new(client.reporter())),
            client,
            drain_asked: false,
        })
    }

    /// Connects again. Reads address and token again, because the coordinator may have restarted.
    pub fn reconnect(&mut self, patience: Duration) -> Result<SearchOutcome> {
        let mut info = self.info.clone();
        info.member = Some(self.client.member());
        let deadline = Instant::now() + patience;
        match connect(&self.endpoint, &info, &self.drain_wanted, deadline) {
            Ok(client) => {
                *self.reporter.lock().unwrap_or_else(PoisonError::into_inner) = client.reporter();
                self.client = client;
                self.drain_asked = false;
                Ok(SearchOutcome::Coordinator)
            }
            // No coordinator is left to drain with; the run can only continue from the newest complete checkpoint.
            Err(_) if self.drain_wanted.load(Ordering::Relaxed) => Ok(SearchOutcome::Leave),
            Err(error) => Err(error),
        }
    }

    /// Asks the coordinator to drain the run, once, after a signal to this process.
    pub fn drain_if_wanted(&mut self, rank: usize) -> Result<()> {
        if self.drain_wanted.load(Ordering::Relaxed) && !self.drain_asked {
            self.drain_asked = true;
            self.client.drain(&format!("rank {rank} got a signal"))?;
        }
        Ok(())
    }

    /// Whether the coordinator has ended the generation, or is gone.
    pub fn was_told(&self) -> bool {
        self.client.abort_signal().notice().is_some()
    }

    /// Returns an error when the generation is over, for work in which ranks exchange nothing.
    pub fn check_generation(&self) -> Result<()> {
        match self.client.abort_signal().notice() {
            Some(notice) => Err(aborted(notice.abort)),
            None => Ok(()),
        }
    }

    /// Replaces the error of an aborted collective by the coordinator's reason, which says more about the cause.
    pub fn or_its_reason<T>(&self, result: Result<T>) -> Result<T> {
        result.or_else(|error| self.check_generation().and(Err(error)))
    }
}

/// Tries until the coordinator answers, or a signal asks this process to leave.
fn connect(
    endpoint: &Endpoint,
    info: &TrainerInfo,
    drain_wanted: &AtomicBool,
    deadline: Instant,
) -> Result<Client> {
    loop {
        let try_until = deadline.min(Instant::now() + Duration::from_secs(1));
        match Client::connect(endpoint, info.clone(), try_until) {
            Err(CoordinatorError::Timeout { .. })
                if Instant::now() < deadline && !drain_wanted.load(Ordering::Relaxed) => {}
            result => return Ok(result?),
        }
    }
}

/// The error for a generation that the coordinator has ended.
pub(super) fn aborted(abort: Abort) -> Error {
    CoordinatorError::Aborted(abort).into()
}
