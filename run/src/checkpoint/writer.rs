//! The thread that writes checkpoints while training goes on.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::load::list;
use super::retention::{Action, plan};
use super::store::CheckpointStore;
use super::{Error, Result, Snapshot};

/// Which checkpoints the writer leaves on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest; 0 counts as 1.
    pub keep_last: usize,
    /// And the one that a snapshot's `best_step` names.
    pub keep_best: bool,
}

/// A checkpoint that is on disk and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Step that the snapshot was taken after.
    pub step: u64,
    /// Directory of the checkpoint.
    pub path: PathBuf,
    /// [`super::weights_blake3`] of its weights.
    pub weights_blake3: String,
    /// Size of its files, in bytes.
    pub bytes: u64,
    /// How long it took to write and verify.
    pub took: Duration,
    /// The steps whose checkpoints were removed after it.
    pub removed: Vec<u64>,
}

type SaveCallback = Box<dyn FnOnce(Result<Saved>) + Send>;

enum WriterJob {
    Save(Box<Snapshot>, SaveCallback),
    /// Taken up when all saves before it are done.
    Wait,
}

/// Writes snapshots one after the other on a thread of its own. One per run.
#[derive(Debug)]
pub struct Writer {
    /// None only while dropping.
    jobs: Option<SyncSender<WriterJob>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. Makes `dir` and removes what an earlier writer left unfinished there.
    pub fn spawn(dir: &Path, retention: Retention) -> Result<Self> {
        Self::start(dir, CheckpointStore::open(dir)?, retention)
    }

    pub(super) fn start(dir: &Path, store: CheckpointStore, retention: Retention) -> Result<Self> {
        // A channel without room: handing a job over waits until the thread is free.
        let (jobs, inbox) = sync_channel(0);
        let at = dir.to_path_buf();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_string())
            .spawn(move || work(&at, &store, retention, &inbox))
            .map_err(Error::io("start the thread that writes to", dir))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Hands a snapshot over. Returns at once, unless the save before is still going: then it waits for
    /// that one, so that there is never more than one snapshot in memory besides the one being taken.
    ///
    /// `done` is called from the writer's thread, and the save counts as going until it returns. After
    /// an error (a full disk) the older checkpoints are as they were, and training can go on.
    pub fn save(&mut self, snapshot: Snapshot, done: impl FnOnce(Result<Saved>) + Send + 'static) {
        let job = WriterJob::Save(Box::new(snapshot), Box::new(done));
        if let Err(WriterJob::Save(_, done)) = self.hand_over(job) {
            done(Err(Error::WriterGone));
        }
    }

    /// Waits until nothing is being saved.
    pub fn wait(&mut self) {
        // If the thread is gone, nothing is being saved either.
        let _ = self.hand_over(WriterJob::Wait);
    }

    /// Gives the job back if nobody takes it.
    fn hand_over(&self, job: WriterJob) -> std::result::Result<(), WriterJob> {
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|refused| refused.0),
            None => Err(job),
        }
    }
}

impl Drop for Writer {
    /// Finishes the save that is going.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been printed, and there is nobody to tell
        }
    }
}

fn work(dir: &Path, store: &CheckpointStore, retention: Retention, inbox: &Receiver<WriterJob>) {
    for job in inbox {
        let WriterJob::Save(snapshot, done) = job else {
            continue;
        };
        let started = Instant::now();
        let result = store.write(&snapshot).map(|written| Saved {
            step: snapshot.step,
            took: started.elapsed(),
            removed: remove_old(dir, store, retention, &snapshot),
            path: written.path,
            bytes: written.bytes,
            weights_blake3: written.weights_blake3,
        });
        drop(snapshot); // before anybody can hear that there is room for the next
        done(result);
    }
}

/// Carries the retention out, after `written` is safe. What cannot be removed is only in the way.
fn remove_old(
    dir: &Path,
    store: &CheckpointStore,
    retention: Retention,
    written: &Snapshot,
) -> Vec<u64> {
    let entries = match list(dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!("old checkpoints stay: {}", error.headline());
            return Vec::new();
        }
    };
    // Only what could be used to go on counts as kept; the rest is not ours to judge or remove.
    let usable = entries.iter().filter(|entry| entry.state.is_ok());
    let steps: Vec<u64> = usable.map(|entry| entry.step).collect();
    let best = written.best_step.filter(|_| retention.keep_best);
    let mut removed = Vec::new();
    for action in plan(&steps, written.step, best, retention.keep_last) {
        let Action::Delete { step } = action else {
            continue;
        };
        match store.remove(step) {
            Ok(()) => removed.push(step),
            Err(error) => tracing::warn!("an old checkpoint stays: {}", error.headline()),
        }
    }
    removed
}
