//! From one generation to the next: the rendezvous, and the consequences of an error for it.

use std::time::{Duration, Instant};

use fovea_collectives::{AbortHandle, Meeting};
use fovea_coordinator::Error as CoordinatorError;
use fovea_coordinator::client::AbortNotice;
use fovea_coordinator::protocol::{Abort, Cause, MemberState, Ready, StartPoint, TrainerEvent};
use fovea_run::metrics::log::MetricsLog;
use fovea_run::run_dir::{self, StepRow};

use super::board::CoordinatorBoard;
use super::link::SearchOutcome;
use super::session::JOIN;
use super::{GenerationSeat, Outcome, Trainer, step_rows};
use crate::error::{Error, Result};

/// Connections in a row that may be lost without a seat between them.
const LOSSES: u32 = 3;

impl Trainer {
    /// The newest committed step whose state this rank holds and could share; none without one.
    fn have(&self) -> Option<StartPoint> {
        self.state.holds.then(|| self.state.progress.point())
    }

    /// Waits for a seat in the next generation, and connects to its ranks. Returns an outcome when the run is over.
    pub(super) fn take_seat(&mut self, mut gave_up: Option<String>) -> Result<Option<Outcome>> {
        self.state.replica.leave_generation();
        let mut losses = 0;
        let assignment = loop {
            let ready = Ready {
                terms: self.link.terms.clone(),
                have: self.have(),
                gave_up: gave_up.take(),
            };
            self.link.client.state(MemberState::Waiting);
            match self.link.client.ready(&ready, Instant::now() + JOIN) {
                Ok(assignment) => break assignment,
                Err(CoordinatorError::Aborted(Abort {
                    cause: Cause::Finished,
                    ..
                })) => return Ok(Some(Outcome::Finished)),
                Err(CoordinatorError::Aborted(Abort {
                    cause: Cause::Drained,
                    ..
                })) => return Ok(Some(Outcome::Drained)),
                Err(error) if self.link.terms.elastic && is_lost(&error) => {
                    losses += 1;
                    if losses > LOSSES {
                        return Err(error.into());
                    }
                    tracing::warn!("connecting again: {error}");
                    let patience = self.config.elastic.coordinator_timeout_s;
                    let patience = Duration::from_secs(patience.into());
                    if self.link.reconnect(patience)? == SearchOutcome::Leave {
                        return Ok(Some(Outcome::Drained));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        let abort = AbortHandle::new();
        let raised = abort.clone();
        self.link
            .client
            .abort_signal()
            .on_abort(move |notice| raised.abort(&notice.abort.reason));
        let deadline = self.deadline();
        // The last generation's collective may hold GPU memory, so it must end before the next begins.
        self.seat = GenerationSeat::alone(assignment, &abort);
        let seat = &self.seat.assignment;
        let meeting = Meeting {
            generation: seat.generation,
            rank: seat.rank,
            world: seat.world,
            machines: seat.machines.clone(),
        };
        let mut board = CoordinatorBoard {
            run: &self.records.run,
            client: &mut self.link.client,
            generation: seat.generation,
        };
        let met = self.backend.meet(&meeting, &mut board, &abort, deadline);
        match met.map_err(Error::from) {
            Ok(collective) => {
                self.seat.collective = collective;
                Ok(None)
            }
            // One of the ranks was lost meanwhile, so another rendezvous follows.
            Err(error) => {
                let gave_up = self.leave_generation(error)?;
                self.take_seat(gave_up)
            }
        }
    }

    /// The report of this rank at the next rendezvous, after an error that a new generation mends: none when the
    /// coordinator knows the reason, else why the rank gives up. Returns other errors.
    pub(super) fn leave_generation(&self, error: Error) -> Result<Option<String>> {
        // After some errors this process can no longer use its GPU, and another process must replace it.
        if !self.link.terms.elastic || !self.state.replica.works() {
            return Err(error);
        }
        match (self.link.client.abort_signal().notice(), &error) {
            (Some(notice), _) if ends_the_generation_only(&notice) => {
                tracing::info!(
                    "leaving generation {}: {}",
                    notice.abort.generation,
                    notice.abort.reason
                );
                Ok(None)
            }
            (Some(_), _) => Err(error),
            (None, Error::Collective(_) | Error::Coordinator(CoordinatorError::Timeout { .. })) => {
                let text = error.to_string();
                Ok(text.lines().next().map(str::to_owned))
            }
            (None, _) => Err(error),
        }
    }

    /// Takes the starting state: the one that this rank holds, the one that rank `source` shares, or the checkpoint
    /// that rank 0 reads.
    pub(super) fn enter(&mut self) -> Result<()> {
        let seat = self.seat.assignment.clone();
        let start = seat.start;
        self.link.client.state(MemberState::Starting);
        let rewound = self.state.progress.step > start.step;
        if seat.source.is_none() && self.is_first() {
            self.begin(start)?;
        }
        // Before the state, because a rank that holds a step must know its rows too, in case all the others die.
        let known = self.known_rows(start.step)?;
        if seat.share {
            self.share_state(seat.source.unwrap_or(0))?;
        }
        let point = self.state.progress.point();
        if point != start {
            return Err(Error::Internal(format!(
                "generation {} starts at {start:?}, this rank's state is of {point:?}",
                seat.generation
            )));
        }
        self.enter_stage()?;
        self.state.holds = true;
        if seat.share && seat.world > 1 {
            self.link.client.event(TrainerEvent::Shared {
                step: start.step,
                state_blake3: self.state_blake3()?,
            })?;
        }
        self.keep_the_records(start, rewound, known)?;
        self.link
            .client
            .heartbeat_state(MemberState::Training, start.step, 0.0);
        self.barrier()
    }

    /// The rows up to `step` that are not yet in the file. All ranks keep them: each rank that took part in a step
    /// knows them, and any rank may die before they are written.
    fn known_rows(&mut self, step: u64) -> Result<Vec<StepRow>> {
        let known = self.records.rows.up_to(step);
        if self.seat.assignment.source.is_none() {
            return Ok(known);
        }
        let all = self.all_gather(&step_rows::to_bytes(&known)?)?;
        let known = step_rows::from_bytes(&all)?;
        self.records.rows.adopt(known.clone());
        Ok(known)
    }

    /// Takes over the files of the run directory if this rank is rank 0 now, because they belong to rank 0.
    fn keep_the_records(
        &mut self,
        start: StartPoint,
        rewound: bool,
        known: Vec<StepRow>,
    ) -> Result<()> {
        if !self.is_first() {
            self.records.writer = None;
            return Ok(());
        }
        let file = self.records.run.throughput();
        match run_dir::merge_steps(&file, start.step, known) {
            Ok(()) => self.records.rows.written(start.step),
            Err(e) => tracing::warn!("{e}"),
        }
        let kept = MetricsLog::open(&self.records.run.metrics(), self.data.source.data().task())
            .and_then(|mut log| log.truncate_after(start.epoch + 1));
        if let Err(e) = kept {
            tracing::warn!("{e}");
        }
        if rewound {
            self.records.writer = None;
        }
        if self.records.writer.is_none() {
            self.start_writer(start.step)?;
            // The rank 0 of the last generation may have died while it saved this very step.
            let between_epochs =
                start.step > 0 && (start.cursor == 0 || self.state.progress.stopped);
            if self.seat.assignment.source.is_some() && between_epochs {
                self.save_unless_saved()?;
            }
        }
        Ok(())
    }
}

/// Whether the connection is lost although the coordinator has not dismissed this rank.
fn is_lost(error: &CoordinatorError) -> bool {
    matches!(
        error,
        CoordinatorError::Lost { .. } | CoordinatorError::Dropped { .. }
    )
}

fn ends_the_generation_only(notice: &AbortNotice) -> bool {
    notice.lost || notice.abort.cause == Cause::Regroup
}
