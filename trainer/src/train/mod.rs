//! The training loop of one rank.
//!
//! Read [`Trainer::run`] top to bottom: generations, epochs, steps, and what lies between. A step
//! changes nothing before all ranks have voted for it; see `Trainer::step`. Whatever ends a generation, the
//! state stays that of the newest committed step, and the next generation continues there.

mod board;
mod epoch_end;
mod generation;
mod progress;
mod session;
mod snapshot;
mod step_rows;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fovea_collectives::{Backend, Collective, DeviceCollective};
use fovea_coordinator::client::{Client, Decision, Endpoint, Reporter};
use fovea_coordinator::order::{EpochOrder, OrderInput, Unit, rank_shards};
use fovea_coordinator::protocol::{
    Assignment, Cause, MemberState, Next, Terms, TrainerEvent, TrainerInfo, Vote,
};
use fovea_kernels::cuda::Event;
use fovea_run::checkpoint;
use fovea_run::config::{Config, learning_rate};
use fovea_run::run_dir::{RunDir, StepRow};

pub use crate::samples::order_input;
pub(crate) use epoch_end::predictions;
pub use progress::{Best, Progress};
pub use session::{TrainerOptions, gpu, join, lanes, objective};
pub use snapshot::{best_of, restore_weights, resume_from, resume_point};

use self::step_rows::StepRows;
use crate::error::{Error, Result};
use crate::overlap::Exchange;
use crate::precision::Precision;
use crate::replica::{Denominators, Replica, Sums};
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
    /// To the rendezvous: the step is committed, or its attempt is abandoned.
    Regroup,
    Drain,
}

/// One process of a run.
pub struct Trainer {
    config: Config,
    run: RunDir,
    endpoint: Endpoint,
    info: TrainerInfo,
    terms: Terms,
    client: Client,
    /// Of the newest connection, for the thread that writes checkpoints.
    reporter: Arc<Mutex<Reporter>>,
    backend: Box<dyn Backend>,
    assignment: Assignment,
    collective: Box<dyn Collective>,
    source: Arc<SampleSource>,
    order_input: OrderInput,
    precision: Precision,
    replica: Replica,
    progress: Progress,
    /// The replica holds the state of `progress`, whole.
    holds: bool,
    /// The replica was never written to since it was made.
    pristine: bool,
    /// Rank 0 only.
    writer: Option<checkpoint::Writer>,
    /// Why the newest save failed, if it did.
    unsaved: Arc<Mutex<Option<checkpoint::Error>>>,
    last_save: Instant,
    /// Set by a signal handler: ask the coordinator to drain.
    drain_wanted: Arc<AtomicBool>,
    drain_asked: bool,
    total_steps: u64,
    /// Steps in the trace.
    traced: u32,
    rows: StepRows,
    last_commit: Instant,
}

impl Trainer {
    /// Trains to the end, or until the run is drained.
    pub fn run(mut self) -> Result<Outcome> {
        let ended = self.generations();
        self.replica.leave_generation();
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

    /// A seat in a generation, training in it, and again.
    fn generations(&mut self) -> Result<Outcome> {
        let mut gave_up = None;
        loop {
            if let Some(outcome) = self.take_seat(gave_up.take())? {
                return Ok(outcome);
            }
            let ended = self.train();
            match ended {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(error) => gave_up = self.leave_generation(error)?,
            }
        }
    }

    /// What this generation does. `None`: the next one goes on.
    fn train(&mut self) -> Result<Option<Outcome>> {
        self.enter()?;
        if self.assignment.last {
            return self.leave().map(Some);
        }
        while self.progress.epoch < self.config.train.epochs && !self.progress.stopped {
            match self.epoch()? {
                Flow::Continue => self.end_epoch()?,
                Flow::Regroup => return Ok(None),
                Flow::Drain => return self.leave().map(Some),
            }
        }
        self.finish().map(Some)
    }

    /// Steps from the cursor to the end of the epoch.
    fn epoch(&mut self) -> Result<Flow> {
        self.source.data().look_for_copies();
        let order = Arc::new(EpochOrder::new(&self.order_input, self.progress.epoch)?);
        let virtual_shards = self.config.train.virtual_shards as usize;
        let part = Part {
            shards: rank_shards(self.assignment.rank, self.assignment.world, virtual_shards)?,
            virtual_shards,
            images_per_step: self.config.train.images_per_step as usize,
        };
        let source = Arc::clone(&self.source);
        let load = move |units: &[Unit], epoch| source.load(units, Some(epoch));
        let mut loader = Loader::spawn(load, order, self.progress.cursor, part)?;
        self.last_commit = Instant::now();
        loop {
            let waiting = Instant::now();
            let Some(batch) = loader.next_batch()? else {
                return Ok(Flow::Continue);
            };
            self.rows.waited(waiting.elapsed());
            match self.step(&batch)? {
                Flow::Continue => {}
                other => return Ok(other),
            }
        }
    }

    /// One attempt: compute, reduce, look, vote; then all ranks move, or none does.
    fn step(&mut self, batch: &RankBatch) -> Result<Flow> {
        let total = Denominators {
            images: batch.images,
            patches: batch.global.samples,
        };
        let step = self.progress.step + 1;
        let sums = self.attempt(batch, total)?;
        self.ask_to_drain_if_wanted()?;

        let waiting = Instant::now();
        let shares = self.exchange_shares(batch.samples())?;
        let verdict = self.replica.verdict(&sums, total);
        let vote = Vote {
            generation: self.assignment.generation,
            epoch: self.progress.epoch,
            step,
            cursor_after: batch.global.cursor_after(),
            loss: verdict.loss,
            finite: verdict.is_finite(),
            samples: batch.samples(),
            step_ms: millis(self.last_commit.elapsed()),
        };
        let deadline = self.deadline();
        self.client.state(MemberState::Waiting);
        let decision = self.client.vote(&vote, deadline)?;
        self.client.state(MemberState::Training);
        self.rows.waited(waiting.elapsed());
        let next = match decision {
            Decision::Commit { next, .. } => next,
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
                cause: Cause::Regroup,
                ..
            } => return Ok(Flow::Regroup),
            Decision::Abort {
                generation,
                cause,
                reason,
            } => return Err(aborted(generation, cause, reason)),
        };

        let committing = Instant::now();
        let lr = self.learning_rate();
        self.pristine = false;
        self.replica.commit(sums, &self.config, lr, step, verdict)?;
        self.trace_step();
        self.rows.computed(committing.elapsed());
        self.progress.commit(step, batch.global.cursor_after());
        let step_time = self.last_commit.elapsed();
        self.last_commit = Instant::now();
        self.client.heartbeat_state(
            MemberState::Training,
            step,
            batch.samples() as f32 / step_time.as_secs_f32().max(1e-6),
        );
        let epoch = self.progress.epoch + 1;
        let row = |(rank, share): (usize, &step_rows::Share)| StepRow {
            epoch,
            step,
            rank,
            samples: share.samples,
            step_ms: millis(step_time),
            compute_ms: share.compute_ms,
            wait_ms: share.wait_ms,
            loss: verdict.loss,
            lr,
            generation: vote.generation,
        };
        self.rows.commit(shares.iter().enumerate().map(row));
        match next {
            Next::Step => {
                self.save_if_due()?;
                Ok(Flow::Continue)
            }
            Next::Regroup => Ok(Flow::Regroup),
            Next::Leave => Ok(Flow::Drain),
        }
    }

    /// Forward, backward, and the sums over all ranks, which are on their way while backward goes on.
    fn attempt(&mut self, batch: &RankBatch, total: Denominators) -> Result<Sums> {
        let begun = Instant::now();
        let mut computed = begun;
        let mut peers = Peers {
            patience: self.patience(),
            collective: self.collective.as_mut(),
        };
        let client = &self.client;
        let summed = self.replica.attempt(
            &batch.shards,
            self.progress.epoch,
            total,
            &mut peers,
            &mut || {
                computed = Instant::now();
                client.state(MemberState::Waiting);
            },
        );
        self.client.state(MemberState::Training);
        self.rows.computed(computed - begun);
        self.rows.waited(computed.elapsed());
        self.or_the_coordinators_reason(summed)
    }

    /// Writes the trace when the steps that it is wanted of are through.
    fn trace_step(&mut self) {
        let trace = self.replica.trace();
        if !trace.is_on() {
            return;
        }
        self.traced += 1;
        if self.traced == self.config.train.trace_steps {
            let rank = self.assignment.rank;
            let path = self.run.trace(rank);
            match trace.end(&path, rank) {
                Ok(()) => tracing::info!("{}: {} steps", path.display(), self.traced),
                Err(e) => tracing::warn!("{e}"),
            }
        }
    }

    /// Last words of a drained run: the agreed step on disk, then everybody goes.
    fn leave(&mut self) -> Result<Outcome> {
        self.write_step_rows();
        self.save_unless_saved()?;
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

    /// How long this rank waits in one collective.
    fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.config.train.step_timeout_s))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    fn barrier(&mut self) -> Result<()> {
        self.together(|collective, deadline| collective.barrier(deadline))
    }

    fn all_reduce(&mut self, buf: &mut [f32]) -> Result<()> {
        self.together(|collective, deadline| collective.all_reduce(buf, deadline))
    }

    /// Gathers every rank's bytes.
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.together(|collective, deadline| collective.all_gather(mine, deadline))
    }

    /// A collective operation: who is in one waits for others, and is not the one that hangs.
    fn together<T>(
        &mut self,
        operate: impl FnOnce(&mut dyn Collective, Instant) -> fovea_collectives::Result<T>,
    ) -> Result<T> {
        let deadline = self.deadline();
        self.client.state(MemberState::Waiting);
        let done = operate(self.collective.as_mut(), deadline);
        self.client.state(MemberState::Training);
        self.or_the_coordinators_reason(done.map_err(Error::from))
    }

    /// Every rank's samples of this attempt, and its times since the one before.
    fn exchange_shares(&mut self, samples: u64) -> Result<Vec<step_rows::Share>> {
        let world = self.assignment.world;
        let mut buf = self.rows.take_share(samples, self.assignment.rank, world);
        self.all_reduce(&mut buf)?;
        Ok(step_rows::shares(&buf))
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

    /// Rank 0 appends the rows of the steps since the last time to `throughput.csv`.
    fn write_step_rows(&mut self) {
        if self.is_first() {
            // A log that cannot be written is no reason to stop training.
            if let Err(e) = self.rows.append_to(&self.run.throughput()) {
                tracing::warn!("{e}");
            }
        }
    }
}

/// The ranks of this generation, to the step.
pub struct Peers<'a> {
    /// What they meet by.
    pub collective: &'a mut dyn Collective,
    /// How long one waits for the others.
    pub patience: Duration,
}

impl Exchange for Peers<'_> {
    fn is_alone(&self) -> bool {
        self.collective.world() == 1
    }

    fn all_reduce(&mut self, bucket: &mut [f32]) -> Result<()> {
        Ok(self
            .collective
            .all_reduce(bucket, Instant::now() + self.patience)?)
    }

    fn device(&mut self) -> Option<&mut dyn DeviceCollective> {
        self.collective.device()
    }

    fn wait(&mut self, done: &Event) -> Result<()> {
        match self.collective.device() {
            Some(device) => Ok(device.wait(done, Instant::now() + self.patience)?),
            None => Ok(done.synchronize()?),
        }
    }
}

/// An error when the generation is over, for work in which ranks do not meet.
fn check_generation(client: &Client) -> Result<()> {
    match client.abort_signal().notice() {
        Some(notice) => Err(aborted(notice.generation, notice.cause, notice.reason)),
        None => Ok(()),
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
