//! The training loop of one rank.
//!
//! Read [`Trainer::run`] top to bottom: epochs, steps, and what lies between them. A step changes
//! nothing before all ranks voted for it; see [`Trainer::step`].

mod epoch_end;
mod progress;
mod session;
mod snapshot;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fovea_coordinator::client::{Client, Decision};
use fovea_coordinator::order::{EpochOrder, OrderInput, rank_shards};
use fovea_coordinator::protocol::{Assignment, Cause, MemberState, TrainerEvent, Vote};

pub(crate) use epoch_end::predictions;
pub use progress::{Best, Progress};
pub use session::{TrainerOptions, join, objective};
pub use snapshot::{best_of, restore_weights, resume_point};

use crate::checkpoint;
use crate::collectives::Collective;
use crate::config::{Config, learning_rate};
use crate::error::{Error, Result};
use crate::replica::{Denominators, Replica};
use crate::run_dir::{self, RunDir, StepRow};
use crate::samples::{Loader, Part, RankBatch, SampleSource};

/// How a trainer left the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done (or early stopping ended them).
    Finished,
    /// Everybody stopped after an agreed step; `--resume` goes on from there.
    Drained,
}

/// Whether to go on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Drain,
}

/// One rank of a run.
pub struct Trainer {
    config: Config,
    run: RunDir,
    client: Client,
    assignment: Assignment,
    collective: Box<dyn Collective>,
    source: Arc<SampleSource>,
    order_input: OrderInput,
    replica: Replica,
    progress: Progress,
    /// Rank 0 only.
    writer: Option<checkpoint::Writer>,
    /// Why the newest save failed, if it did.
    unsaved: Arc<Mutex<Option<checkpoint::Error>>>,
    last_save: Instant,
    /// Set by a signal handler: ask the coordinator to drain.
    drain_wanted: Arc<AtomicBool>,
    drain_asked: bool,
    total_steps: u64,
    step_rows: Vec<StepRow>,
    last_commit: Instant,
}

impl Trainer {
    /// Trains to the end, or until the run is drained.
    pub fn run(mut self) -> Result<Outcome> {
        let ended = self.train();
        if let Err(error) = &ended
            && !self.was_told()
        {
            // So that the others and the user hear the reason, not only that this rank is gone.
            let _ = self.client.event(TrainerEvent::Failed {
                reason: error.to_string(),
            });
        }
        ended
    }

    fn train(&mut self) -> Result<Outcome> {
        self.enter()?;
        while self.progress.epoch < self.config.train.epochs && !self.progress.stopped {
            if self.epoch()? == Flow::Drain {
                return self.leave();
            }
            self.end_epoch()?;
        }
        self.finish()
    }

    /// Steps from the cursor to the end of the epoch.
    fn epoch(&mut self) -> Result<Flow> {
        let order = Arc::new(EpochOrder::new(&self.order_input, self.progress.epoch)?);
        let virtual_shards = self.config.train.virtual_shards as usize;
        let part = Part {
            shards: rank_shards(self.assignment.rank, self.assignment.world, virtual_shards)?,
            virtual_shards,
            images_per_step: self.config.train.images_per_step as usize,
        };
        let mut loader =
            Loader::spawn(Arc::clone(&self.source), order, self.progress.cursor, part)?;
        self.last_commit = Instant::now();
        loop {
            let waiting = Instant::now();
            let Some(batch) = loader.next()? else {
                return Ok(Flow::Continue);
            };
            if self.step(&batch, waiting.elapsed())? == Flow::Drain {
                return Ok(Flow::Drain);
            }
        }
    }

    /// One attempt: compute, reduce, look, vote; then all ranks move, or none does.
    fn step(&mut self, batch: &RankBatch, loading: Duration) -> Result<Flow> {
        let deadline = self.deadline();
        let total = Denominators {
            images: batch.images,
            patches: batch.global.samples,
        };
        let step = self.progress.step + 1;
        let started = Instant::now();

        let mut sums = self
            .replica
            .attempt(&batch.shards, self.progress.epoch, total)?;
        let mut compute = started.elapsed();
        let waiting = Instant::now();
        let reduced = self.collective.all_reduce(&mut sums, deadline);
        self.or_the_coordinators_reason(reduced.map_err(Error::from))?;
        let verdict = self.replica.verdict(&sums, total);
        self.ask_to_drain_if_wanted()?;
        let decision = self.client.vote(
            &Vote {
                generation: self.assignment.generation,
                epoch: self.progress.epoch,
                step,
                cursor_after: batch.global.cursor_after(),
                loss: verdict.loss,
                finite: verdict.is_finite(),
                samples: batch.samples(),
                step_ms: millis(self.last_commit.elapsed()),
            },
            deadline,
        )?;
        let wait = loading + waiting.elapsed();
        let drain = match decision {
            Decision::Commit { drain, .. } => drain,
            Decision::Abort { .. } if !verdict.is_finite() => {
                let (loss, norm) = (verdict.loss, verdict.grad_norm);
                return Err(Error::NotFinite {
                    step,
                    epoch: self.progress.epoch + 1,
                    loss,
                    norm,
                });
            }
            Decision::Abort {
                generation,
                cause,
                reason,
            } => return Err(aborted(generation, cause, reason)),
        };

        let committing = Instant::now();
        let lr = self.learning_rate();
        self.replica.commit(sums, &self.config, lr, step, verdict)?;
        compute += committing.elapsed();
        self.progress.commit(step, batch.global.cursor_after());
        let step_time = self.last_commit.elapsed();
        self.last_commit = Instant::now();
        let samples = batch.samples();
        self.client.heartbeat_state(
            MemberState::Training,
            step,
            samples as f32 / step_time.as_secs_f32().max(1e-6),
        );
        self.step_rows.push(StepRow {
            epoch: self.progress.epoch + 1,
            step,
            rank: self.assignment.rank,
            samples,
            step_ms: millis(step_time),
            compute_ms: millis(compute),
            wait_ms: millis(wait),
            loss: verdict.loss,
            lr,
        });
        if drain {
            return Ok(Flow::Drain);
        }
        self.save_if_due()?;
        Ok(Flow::Continue)
    }

    /// Last words of a drained run: the agreed step on disk, then everybody goes.
    fn leave(&mut self) -> Result<Outcome> {
        self.write_step_rows()?;
        self.save()?;
        self.wait_for_checkpoints()?;
        self.barrier()?; // nobody leaves before the checkpoint is complete
        self.client.event(TrainerEvent::Left {
            step: self.progress.step,
        })?;
        Ok(Outcome::Drained)
    }

    fn finish(&mut self) -> Result<Outcome> {
        self.wait_for_checkpoints()?;
        self.barrier()?;
        let weights_blake3 = Some(self.replica.weights_blake3(self.progress.step)?);
        self.client.event(TrainerEvent::Finished {
            step: self.progress.step,
            weights_blake3,
        })?;
        Ok(Outcome::Finished)
    }

    fn learning_rate(&self) -> f32 {
        // The step that is being committed is counted from 0 here.
        learning_rate(
            &self.config.schedule,
            self.config.optimizer.lr,
            self.progress.step,
            self.total_steps,
            &self.progress.plateau,
        )
    }

    fn is_first(&self) -> bool {
        self.assignment.rank == 0
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(u64::from(self.config.train.step_timeout_s))
    }

    fn barrier(&mut self) -> Result<()> {
        let deadline = self.deadline();
        let done = self.collective.barrier(deadline);
        self.or_the_coordinators_reason(done.map_err(Error::from))
    }

    /// Gathers every rank's bytes.
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let deadline = self.deadline();
        let all = self.collective.all_gather(mine, deadline);
        self.or_the_coordinators_reason(all.map_err(Error::from))
    }

    /// Whether the coordinator ended the generation, or is gone.
    fn was_told(&self) -> bool {
        self.client.abort_signal().notice().is_some()
    }

    /// A collective that was aborted knows less about the cause than the coordinator does.
    fn or_the_coordinators_reason<T>(&self, result: Result<T>) -> Result<T> {
        match (result, self.client.abort_signal().notice()) {
            (Err(_), Some(notice)) => Err(aborted(notice.generation, notice.cause, notice.reason)),
            (result, _) => result,
        }
    }

    fn ask_to_drain_if_wanted(&mut self) -> Result<()> {
        if self.drain_wanted.load(Ordering::Relaxed) && !self.drain_asked {
            self.drain_asked = true;
            self.client
                .drain(&format!("rank {} got a signal", self.assignment.rank))?;
        }
        Ok(())
    }

    /// Collects all ranks' step rows; rank 0 appends them to `throughput.csv`.
    fn write_step_rows(&mut self) -> Result<()> {
        let mine = serde_json::to_vec(&std::mem::take(&mut self.step_rows))
            .map_err(|e| Error::Internal(format!("step rows: {e}")))?;
        let all = self.all_gather(&mine)?;
        if self.is_first() {
            let mut rows: Vec<StepRow> = Vec::new();
            for part in all {
                let part: Vec<StepRow> = serde_json::from_slice(&part)
                    .map_err(|e| Error::Internal(format!("step rows: {e}")))?;
                rows.extend(part);
            }
            rows.sort_by_key(|r| (r.step, r.rank));
            if let Err(e) = run_dir::append_steps(&self.run.throughput(), &rows) {
                // A log that cannot be written is no reason to stop training.
                tracing::warn!("{e}");
            }
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}

fn aborted(generation: u64, cause: Cause, reason: String) -> Error {
    fovea_coordinator::Error::Aborted {
        generation,
        cause,
        reason,
    }
    .into()
}
