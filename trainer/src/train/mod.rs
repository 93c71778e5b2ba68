//! The training loop of one rank.
//!
//! Read [`Trainer::run`] from top to bottom: generations, epochs, steps, and the work between them. A step changes no
//! state before all ranks have voted for it; see `Trainer::step`. Whatever ends a generation, the state stays that of
//! the newest committed step, and the next generation continues from it.

mod board;
mod epoch_end;
mod generation;
mod link;
mod progress;
mod session;
mod snapshot;
mod step_rows;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fovea_collectives::{AbortHandle, Backend, Collective, DeviceCollective, Solo};
use fovea_coordinator::client::Decision;
use fovea_coordinator::order::{EpochOrder, OrderInput, Unit, rank_shards};
use fovea_coordinator::protocol::{
    Abort, Assignment, Cause, MemberState, Next, TrainerEvent, Vote,
};
use fovea_kernels::cuda::Event;
use fovea_run::checkpoint;
use fovea_run::config::Config;
use fovea_run::run_dir::{RunDir, StepRow};

pub use crate::samples::order_input;
pub(crate) use epoch_end::predictions;
pub use progress::{Best, Progress};
pub use session::{TrainerOptions, gpu, join, lanes};
pub use snapshot::{best_of, restore_weights, resume_from, resume_point};

use self::link::{CoordinatorLink, aborted};
use self::step_rows::StepRows;
use crate::error::{Error, Result};
use crate::objective::Denominators;
use crate::overlap::Exchange;
use crate::precision::Precision;
use crate::replica::{Replica, Sums};
use crate::samples::{Loader, Part, RankBatch, SampleSource};
use crate::trainable::Trainable;

/// The way in which a trainer left the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are trained, or early stopping ended the run.
    Finished,
    /// All ranks stopped after an agreed step; `--resume` continues from there.
    Drained,
}

/// What the loop does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    /// Goes to the rendezvous: the step is committed, or its attempt is abandoned.
    Regroup,
    Drain,
}

/// One rank of a run, from joining it to its end.
pub struct Trainer {
    config: Config,
    link: CoordinatorLink,
    backend: Box<dyn Backend>,
    seat: GenerationSeat,
    data: TrainingData,
    state: ModelState,
    records: RunRecords,
}

/// This rank's place in one generation, and its collective with the other ranks. Each generation has a new one.
struct GenerationSeat {
    assignment: Assignment,
    collective: Box<dyn Collective>,
}

impl GenerationSeat {
    /// The assigned place before its ranks have connected: operations leave the data unchanged.
    fn alone(assignment: Assignment, abort: &AbortHandle) -> Self {
        Self {
            assignment,
            collective: Box::new(Solo::new(abort)),
        }
    }
}

/// The data that the run trains on, and their order.
struct TrainingData {
    source: Arc<SampleSource>,
    order_input: OrderInput,
    /// Number of steps of an epoch.
    steps_per_epoch: u64,
}

/// The state that training changes, and whether this rank holds all of it.
struct ModelState {
    replica: Replica,
    precision: Precision,
    progress: Progress,
    /// Whether the replica holds the complete state of `progress`.
    holds: bool,
    /// Whether the replica has not been written to since it was made.
    pristine: bool,
}

/// The files of the run directory, and the data that are not in them yet.
struct RunRecords {
    run: RunDir,
    /// Writes checkpoints on its own thread; present on rank 0 only, from its first generation on.
    writer: Option<checkpoint::Writer>,
    /// Why the newest save failed; none if it did not fail.
    unsaved: Arc<Mutex<Option<checkpoint::Error>>>,
    last_save: Instant,
    /// Number of steps in the trace.
    traced: u32,
    rows: StepRows,
    last_commit: Instant,
}

impl RunRecords {
    fn new(run: RunDir) -> Self {
        Self {
            run,
            writer: None,
            unsaved: Arc::new(Mutex::new(None)),
            last_save: Instant::now(),
            traced: 0,
            rows: StepRows::default(),
            last_commit: Instant::now(),
        }
    }
}

impl Trainer {
    /// Trains to the end, or until the run is drained.
    pub fn run(mut self) -> Result<Outcome> {
        let ended = self.generations();
        self.state.replica.leave_generation();
        if let Err(error) = &ended
            && !self.link.was_told()
        {
            // The reason must reach the other ranks and the user, not only the news that this rank is gone.
            let _ = self.link.client.event(TrainerEvent::Failed {
                reason: error.to_string(),
            });
        }
        ended
    }

    /// Takes a seat in one generation after another and trains there, until the run is over.
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

    /// Trains in this generation. Returns `None` if the next generation must continue.
    fn train(&mut self) -> Result<Option<Outcome>> {
        self.enter()?;
        if self.seat.assignment.last {
            return self.leave().map(Some);
        }
        while self.state.progress.epoch < self.config.train.epochs && !self.state.progress.stopped {
            match self.epoch()? {
                Flow::Continue => self.end_epoch()?,
                Flow::Regroup => return Ok(None),
                Flow::Drain => return self.leave().map(Some),
            }
        }
        self.finish().map(Some)
    }

    /// Runs the steps from the cursor to the end of the epoch.
    fn epoch(&mut self) -> Result<Flow> {
        self.data.source.data().look_for_copies();
        let order = Arc::new(EpochOrder::new(
            &self.data.order_input,
            self.state.progress.epoch,
        )?);
        let virtual_shards = self.config.train.virtual_shards as usize;
        let part = Part {
            shards: rank_shards(
                self.seat.assignment.rank,
                self.seat.assignment.world,
                virtual_shards,
            )?,
            virtual_shards,
            images_per_step: self.config.train.images_per_step as usize,
        };
        let source = Arc::clone(&self.data.source);
        let load = move |units: &[Unit], epoch| source.load(units, Some(epoch));
        let mut loader = Loader::spawn(load, Arc::clone(&order), self.state.progress.cursor, part)?;
        self.records.last_commit = Instant::now();
        loop {
            let waiting = Instant::now();
            let Some(batch) = loader.next_batch()? else {
                return Ok(Flow::Continue);
            };
            self.records.rows.waited(waiting.elapsed());
            match self.step(&batch, &order.units()[batch.global.units.clone()])? {
                Flow::Continue => {}
                other => return Ok(other),
            }
        }
    }

    /// Makes one attempt: compute, reduce, check, vote; then all ranks update, or none does.
    /// `units` are those of the global batch.
    fn step(&mut self, batch: &RankBatch, units: &[Unit]) -> Result<Flow> {
        let total = Denominators::of(&self.data.source, units);
        let step = self.state.progress.step + 1;
        let sums = self.attempt(batch, &total)?;
        self.link.drain_if_wanted(self.seat.assignment.rank)?;

        let waiting = Instant::now();
        let shares = self.exchange_shares(batch.samples)?;
        let verdict = self.state.replica.verdict(&sums, &total);
        let vote = Vote {
            generation: self.seat.assignment.generation,
            epoch: self.state.progress.epoch,
            step,
            cursor_after: batch.global.cursor_after(),
            loss: verdict.loss,
            finite: verdict.is_finite(),
            samples: batch.samples,
            step_ms: millis(self.records.last_commit.elapsed()),
        };
        let deadline = self.deadline();
        self.link.client.state(MemberState::Waiting);
        let decision = self.link.client.vote(&vote, deadline)?;
        self.link.client.state(MemberState::Training);
        self.records.rows.waited(waiting.elapsed());
        let next = match decision {
            Decision::Commit { next, .. } => next,
            Decision::Abort(_) if !verdict.is_finite() => {
                let (loss, norm) = (verdict.loss, verdict.grad_norm);
                return Err(Error::NotFinite {
                    step,
                    epoch: self.state.progress.epoch + 1,
                    loss,
                    norm,
                });
            }
            Decision::Abort(Abort {
                cause: Cause::Regroup,
                ..
            }) => return Ok(Flow::Regroup),
            Decision::Abort(abort) => return Err(aborted(abort)),
        };

        let committing = Instant::now();
        let rates = self.learning_rates();
        let lr = rates[0];
        let optimizer_step = step.saturating_sub(self.state.progress.stage_step);
        let scores = self.state.replica.scores(&sums);
        self.state.pristine = false;
        self.state
            .replica
            .commit(sums, &self.config, rates, optimizer_step, verdict)?;
        self.trace_step();
        self.records.rows.computed(committing.elapsed());
        self.state
            .progress
            .commit(step, batch.global.cursor_after(), scores);
        let step_time = self.records.last_commit.elapsed();
        self.records.last_commit = Instant::now();
        self.link.client.heartbeat_state(
            MemberState::Training,
            step,
            batch.samples as f32 / step_time.as_secs_f32().max(1e-6),
        );
        let epoch = self.state.progress.epoch + 1;
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
        self.records.rows.commit(shares.iter().enumerate().map(row));
        match next {
            Next::Step => {
                self.save_if_due()?;
                Ok(Flow::Continue)
            }
            Next::Regroup => Ok(Flow::Regroup),
            Next::Leave => Ok(Flow::Drain),
        }
    }

    /// Runs forward and backward, and returns the sums over all ranks, which travel while backward still runs.
    fn attempt(&mut self, batch: &RankBatch, total: &Denominators) -> Result<Sums> {
        let begun = Instant::now();
        let mut computed = begun;
        let mut peers = Peers {
            patience: self.patience(),
            collective: self.seat.collective.as_mut(),
        };
        let client = &self.link.client;
        let summed = self.state.replica.attempt(
            &batch.shards,
            self.state.progress.epoch,
            total,
            &mut peers,
            &mut || {
                computed = Instant::now();
                client.state(MemberState::Waiting);
            },
        );
        self.link.client.state(MemberState::Training);
        self.records.rows.computed(computed - begun);
        self.records.rows.waited(computed.elapsed());
        self.link.or_its_reason(summed)
    }

    /// Counts a step in the trace, and writes the trace after the last step that `train.trace_steps` asks for.
    fn trace_step(&mut self) {
        let trace = self.state.replica.trace();
        if !trace.is_on() {
            return;
        }
        self.records.traced += 1;
        if self.records.traced == self.config.train.trace_steps {
            let rank = self.seat.assignment.rank;
            let path = self.records.run.trace(rank);
            match trace.end(&path, rank) {
                Ok(()) => tracing::info!("{}: {} steps", path.display(), self.records.traced),
                Err(e) => tracing::warn!("{e}"),
            }
        }
    }

    /// Leaves a drained run: the agreed step is on disk before any rank leaves.
    fn leave(&mut self) -> Result<Outcome> {
        self.write_step_rows();
        self.save_unless_saved()?;
        self.wait_for_checkpoints()?;
        self.barrier()?; // no rank leaves before the checkpoint is complete
        self.link.client.event(TrainerEvent::Left {
            step: self.state.progress.step,
        })?;
        Ok(Outcome::Drained)
    }

    fn finish(&mut self) -> Result<Outcome> {
        self.wait_for_checkpoints()?;
        self.barrier()?;
        let weights_blake3 = Some(
            self.state
                .replica
                .weights_blake3(self.state.progress.step)?,
        );
        self.link.client.event(TrainerEvent::Finished {
            step: self.state.progress.step,
            weights_blake3,
        })?;
        Ok(Outcome::Finished)
    }

    /// The rates of the step that is being committed: that of the stage, then those of its groups.
    fn learning_rates(&self) -> Vec<f32> {
        let progress = &self.state.progress;
        let stage = self.config.stage_of(progress.epoch);
        // The step counts from 0 here.
        let step = progress.step.saturating_sub(progress.stage_step);
        stage.rates(step, self.data.steps_per_epoch, &progress.plateau)
    }

    /// Lets move what moves in the stage of the present epoch.
    fn enter_stage(&mut self) -> Result<()> {
        let stage = self.config.stage_of(self.state.progress.epoch);
        let replica = &mut self.state.replica;
        let blueprint = &replica.net.params.blueprint;
        let trainable = Trainable::of(&stage, blueprint, self.config.optimizer.decay)?;
        if stage.of > 1 {
            tracing::info!(
                "stage {} of {}: {} of {} parameter tensors train",
                stage.number,
                stage.of,
                trainable.count(),
                blueprint.params.len()
            );
        }
        replica.enter_stage(trainable)
    }

    fn is_first(&self) -> bool {
        self.seat.assignment.rank == 0
    }

    /// How long this rank waits in one collective operation.
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

    /// Runs a collective operation; meanwhile the rank counts as waiting, so the watchdog does not blame it.
    fn together<T>(
        &mut self,
        operate: impl FnOnce(&mut dyn Collective, Instant) -> fovea_collectives::Result<T>,
    ) -> Result<T> {
        let deadline = self.deadline();
        self.link.client.state(MemberState::Waiting);
        let done = operate(self.seat.collective.as_mut(), deadline);
        self.link.client.state(MemberState::Training);
        self.link.or_its_reason(done.map_err(Error::from))
    }

    /// Exchanges every rank's number of samples of this attempt, and its times since the one before.
    fn exchange_shares(&mut self, samples: u64) -> Result<Vec<step_rows::Share>> {
        let world = self.seat.assignment.world;
        let mut buf = self
            .records
            .rows
            .take_share(samples, self.seat.assignment.rank, world);
        self.all_reduce(&mut buf)?;
        Ok(step_rows::shares(&buf))
    }

    /// On rank 0, appends the rows of the steps since the last call to `throughput.csv`.
    fn write_step_rows(&mut self) {
        if self.is_first() {
            // A log that cannot be written is no reason to stop training.
            if let Err(e) = self.records.rows.append_to(&self.records.run.throughput()) {
                tracing::warn!("{e}");
            }
        }
    }
}

/// The other ranks of the generation, as the exchange of a step.
pub struct Peers<'a> {
    /// The collective, which adds the ranks' sums.
    pub collective: &'a mut dyn Collective,
    /// How long this rank waits for the others in one operation.
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

fn millis(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}
