//! Votes, commits, and how ranks leave.

use super::phase::{Ballot, StateReports};
use super::{
    Done, Effect, Gathering, Member, Membership, Phase, Roster, RunOutcome, Running, Transition,
    clip,
};
use crate::journal::JournalEntry;
use crate::ledger::{CommittedStep, LedgerEntry};
use crate::protocol::{CheckpointInfo, MemberId, Next, Reply, StartPoint, TrainerEvent, Vote};
use crate::status::EpochSummary;

/// Time that a checkpoint is assumed to take until one was measured, in milliseconds.
const UNKNOWN_SAVE_MS: u64 = 5_000;
/// Time to leave after the checkpoint, in milliseconds.
const MARGIN_MS: u64 = 2_000;

/// Figures of an epoch that are kept, and the longest name of one in bytes: the status has to fit
/// into a frame.
const METRICS_MAX: usize = 512;
const METRIC_NAME_MAX: usize = 128;

impl Membership {
    pub(super) fn vote(&mut self, id: MemberId, vote: Vote, now_ms: u64) -> Transition {
        let cast = self.running().and_then(|r| r.ballot.votes.get(&id));
        let again = cast == Some(&vote);
        let Some(member) = self.seen(id, now_ms) else {
            return Transition::none();
        };
        if again {
            return Transition::none();
        }
        member.moved_ms = now_ms;
        let Some(running) = self.running() else {
            // It has been told that its generation is over; the vote only crossed the message.
            let crossed = self.formed_here() && vote.generation <= self.generation;
            return if self.is_gathering() && !crossed {
                self.fail(&format!("member {id} voted before all ranks were there"))
            } else {
                Transition::none()
            };
        };
        if let Some(objection) = self.objection(running, id, &vote) {
            return self.fail(&objection);
        }
        if let Some(member) = self.members.get_mut(id)
            && vote.step_ms.is_finite()
            && vote.step_ms > 0.0
        {
            member.samples_per_s = vote.samples as f32 * 1000.0 / vote.step_ms;
        }
        let Phase::Running(running) = &mut self.phase else {
            return Transition::none();
        };
        running.ballot.cast(id, vote);
        if running.ballot.votes.len() < self.world {
            return Transition::none();
        }
        let ballot = std::mem::take(&mut running.ballot);
        self.commit(&ballot, now_ms)
    }

    /// The objection to a vote, on its own or compared with the votes before it.
    fn objection(&self, running: &Running, id: MemberId, vote: &Vote) -> Option<String> {
        let member = self.members.get(&id)?;
        // Only for an objection: nearly all votes are without one.
        let who = || member.describe(id);
        let next = self.at.step + 1;
        if member.seat.is_none() || vote.generation != self.generation {
            return Some(format!(
                "{} voted in generation {}, the run is in generation {}",
                who(),
                vote.generation,
                self.generation
            ));
        }
        if let Some(step) = running.drained_at {
            return Some(format!(
                "{} voted for step {}, but step {step} was agreed as the last one",
                who(),
                vote.step
            ));
        }
        if vote.step != next {
            return Some(format!(
                "{} voted for step {}, the run is at step {next}",
                who(),
                vote.step
            ));
        }
        if running.ballot.votes.contains_key(&id) {
            return Some(format!(
                "{} voted twice for step {next}, and not the same",
                who()
            ));
        }
        if let Some(left) = running.first_done {
            let left = self.members.describe(left);
            return Some(format!(
                "{} voted for step {next}, but {left} has finished",
                who()
            ));
        }
        if !vote.finite {
            return Some(format!(
                "{} has a loss or gradient norm that is not finite in step {next} (loss {}); no rank has moved",
                who(),
                vote.loss
            ));
        }
        self.range_objection(running, &who, vote)
    }

    /// The range must continue where the last step ended, and lie within the epoch.
    fn range_objection(
        &self,
        running: &Running,
        who: &dyn Fn() -> String,
        vote: &Vote,
    ) -> Option<String> {
        let total = self
            .agreed
            .as_ref()
            .map_or(0, |ready| ready.samples_per_epoch);
        let first = self.first_sample(vote.epoch, total);
        let Some(first) = first else {
            return Some(format!(
                "{} voted for epoch {} while {} of {total} samples of epoch {} are committed",
                who(),
                vote.epoch,
                self.at.cursor,
                self.at.epoch
            ));
        };
        if vote.cursor_after <= first || vote.cursor_after > total {
            return Some(format!(
                "{} voted for samples {first}..{} of epoch {}, which has {total} samples",
                who(),
                vote.cursor_after,
                vote.epoch
            ));
        }
        let first = running.ballot.first?;
        let reference = running.ballot.votes.get(&first)?;
        if (vote.epoch, vote.cursor_after) != (reference.epoch, reference.cursor_after) {
            return Some(format!(
                "{} voted for samples up to {} of epoch {}, {} up to {} of epoch {}",
                who(),
                vote.cursor_after,
                vote.epoch,
                self.members.describe(first),
                reference.cursor_after,
                reference.epoch
            ));
        }
        None
    }

    /// Where the next step of `epoch` has to start: behind the committed samples, or at 0 of the
    /// next epoch once this one is through.
    fn first_sample(&self, epoch: u32, total: u64) -> Option<u64> {
        let through = self.at.cursor == total;
        if epoch == self.at.epoch && !through {
            Some(self.at.cursor)
        } else if through && Some(epoch) == self.at.epoch.checked_add(1) {
            Some(0)
        } else {
            None
        }
    }

    /// All ranks voted: the step is committed if their samples add up to its range.
    fn commit(&mut self, ballot: &Ballot, now_ms: u64) -> Transition {
        let votes = || ballot.votes.values();
        let Some(first) = votes().next() else {
            return Transition::none();
        };
        let (epoch, step, cursor_end) = (first.epoch, first.step, first.cursor_after);
        let cursor_start = if epoch == self.at.epoch {
            self.at.cursor
        } else {
            0
        };
        let samples = votes().fold(0u64, |sum, vote| sum.saturating_add(vote.samples));
        if samples != cursor_end - cursor_start {
            let reason = format!(
                "step {step}: the ranks trained on {samples} samples, the range {cursor_start}..{cursor_end} of epoch {epoch} has {}",
                cursor_end - cursor_start
            );
            return self.fail(&reason);
        }
        let loss = votes().map(|v| v.loss * v.samples as f64).sum::<f64>() / samples as f64;
        self.results.loss = loss.is_finite().then_some(loss);
        self.at = StartPoint {
            epoch,
            step,
            cursor: cursor_end,
        };
        self.progress.commit(epoch, samples, now_ms);
        for member in self.members.values_mut() {
            member.step = step;
        }
        self.newest = self.at;
        if self.drain.is_none()
            && let Some(reason) = self.out_of_time(now_ms)
        {
            self.drain = Some(reason);
        }
        let next = if let Some(asked) = &self.drain {
            self.why = format!("step {step} is the last one: {asked}");
            if let Some(running) = self.running_mut() {
                running.drained_at = Some(step);
            }
            Next::Leave
        } else if let Some(reason) = self.running_mut().and_then(|r| r.regroup.take()) {
            self.why = reason;
            Next::Regroup
        } else {
            Next::Step
        };
        let generation = self.generation;
        let committed = CommittedStep {
            generation,
            epoch,
            step,
            cursor_start,
            cursor_end,
        };
        let mut effects = vec![
            Effect::Ledger(LedgerEntry::Commit(committed)),
            Effect::Send {
                to: self.members.ids(|m| m.seat.is_some()),
                reply: Reply::Commit {
                    generation,
                    step,
                    next,
                },
            },
        ];
        if let Some(incident) = self.incidents.open.take() {
            effects.push(Effect::Journal(JournalEntry::Recovered {
                generation,
                step,
                after_ms: now_ms.saturating_sub(incident.since_ms),
                steps_lost: incident.steps_lost,
            }));
        }
        let world = self.world;
        let reason = format!(
            "step {step} committed by {world} of {world} ranks: samples {cursor_start}..{cursor_end} of epoch {epoch}, loss {loss}{}",
            match next {
                Next::Step => "",
                Next::Regroup => ", then a rendezvous",
                Next::Leave => ", the last one",
            }
        );
        if next == Next::Regroup {
            self.gather(now_ms);
        }
        Transition::because(reason, effects)
    }

    /// Why no further step may be begun: another one and the save after it would end too late.
    pub(super) fn out_of_time(&self, now_ms: u64) -> Option<String> {
        let deadline = self.config.deadline_ms?;
        let step = self.progress.median_step_ms().unwrap_or(0);
        let save = self
            .results
            .checkpoint
            .as_ref()
            .map_or(UNKNOWN_SAVE_MS, |saved| saved.took_ms.max(1));
        let left = deadline.saturating_sub(now_ms);
        // Twice the measured times: neither is constant.
        let needed = 2 * (step + save) + MARGIN_MS;
        (left < needed).then(|| {
            format!(
                "{left} ms are left until the deadline; a step takes {step} ms, a checkpoint {save} ms"
            )
        })
    }

    pub(super) fn trainer(&mut self, id: MemberId, event: TrainerEvent, now_ms: u64) -> Transition {
        let Some(member) = self.seen(id, now_ms) else {
            return Transition::none();
        };
        let who = member.describe(id);
        if self.outcome().is_some() {
            return Transition::none();
        }
        match event {
            TrainerEvent::EpochEnd {
                epoch,
                mut metrics,
                undefined,
            } => {
                metrics.retain(|name, value| value.is_finite() && name.len() <= METRIC_NAME_MAX);
                while metrics.len() > METRICS_MAX {
                    metrics.pop_last();
                }
                if self
                    .results
                    .epoch
                    .as_ref()
                    .is_none_or(|last| last.epoch <= epoch)
                {
                    self.results.epoch = Some(EpochSummary {
                        epoch,
                        metrics,
                        undefined: undefined.map(|why| clip(&why)),
                    });
                }
                Transition::none()
            }
            TrainerEvent::CheckpointSaved(info) => self.checkpoint_saved(&who, &info),
            TrainerEvent::CheckpointFailed { step, reason } => {
                let reason = format!(
                    "{who} could not save the checkpoint of step {step}: {}",
                    clip(&reason)
                );
                self.results.unsaved = Some(reason.clone());
                Transition::because(reason, Vec::new())
            }
            TrainerEvent::Shared { step, state_blake3 } => {
                self.state_shared(&who, step, &state_blake3)
            }
            TrainerEvent::Failed { reason } => {
                let reason = format!("{who} failed: {}", clip(&reason));
                self.lose(id, &reason, 0, now_ms)
            }
            TrainerEvent::Finished {
                step,
                weights_blake3,
            } => self.leave(id, &who, step, Done::Finished, weights_blake3),
            TrainerEvent::Left { step } => self.leave(id, &who, step, Done::Left, None),
        }
    }

    fn checkpoint_saved(&mut self, who: &str, info: &CheckpointInfo) -> Transition {
        if self
            .results
            .checkpoint
            .as_ref()
            .is_some_and(|newest| newest.step >= info.step)
        {
            return Transition::none();
        }
        let info = CheckpointInfo {
            step: info.step,
            path: clip(&info.path),
            weights_blake3: clip(&info.weights_blake3),
            took_ms: info.took_ms,
        };
        let reason = format!(
            "{who} saved the checkpoint of step {} to {}",
            info.step, info.path
        );
        self.results.checkpoint = Some(info);
        self.results.unsaved = None;
        Transition::because(reason, vec![Effect::SyncLedger])
    }

    /// All ranks must have got the same state.
    fn state_shared(&mut self, who: &str, step: u64, hash: &str) -> Transition {
        let hash = clip(hash);
        let reports = match &mut self.phase {
            Phase::Gathering(Gathering { shared, .. }) | Phase::Running(Running { shared, .. }) => {
                shared
            }
            Phase::Over(_) => return Transition::none(),
        };
        let reports = reports.get_or_insert_with(|| StateReports {
            state_blake3: hash.clone(),
            ranks: 0,
        });
        if reports.state_blake3 != hash || step != self.at.step {
            let first = &reports.state_blake3;
            let reason = format!(
                "{who} got the state of step {step} with hash {hash}, the run is at step {} and others have {first}",
                self.at.step
            );
            return self.fail(&reason);
        }
        reports.ranks += 1;
        let ranks = reports.ranks;
        if ranks < self.world {
            return Transition::none();
        }
        let entry = JournalEntry::Shared {
            generation: self.generation,
            step,
            ranks,
            state_blake3: hash,
        };
        Transition::because(
            format!("{ranks} of {ranks} ranks hold the same state of step {step}"),
            vec![Effect::Journal(entry)],
        )
    }

    fn leave(
        &mut self,
        id: MemberId,
        who: &str,
        step: u64,
        done: Done,
        weights: Option<String>,
    ) -> Transition {
        let committed = self.at.step;
        let Phase::Running(running) = &mut self.phase else {
            return if self.formed_here() {
                // Its generation is over, which it does not know yet: it will leave again.
                Transition::none()
            } else {
                self.fail(&format!("{who} left before all ranks were there"))
            };
        };
        let expected = match done {
            Done::Left => running.drained_at,
            Done::Finished | Done::No => Some(committed),
        };
        let objection = if self.members.get(&id).is_some_and(|m| m.done != Done::No) {
            Some(format!("{who} left twice"))
        } else if expected != Some(step) {
            Some(match expected {
                Some(expected) => {
                    format!("{who} left at step {step}, the run is at step {expected}")
                }
                None => format!("{who} left at step {step} although no last step was agreed"),
            })
        } else if let Some(voter) = running.ballot.first {
            let voter = self.members.describe(voter);
            Some(format!(
                "{who} left at step {step}, but {voter} voted for the next one"
            ))
        } else {
            weights_objection(&mut running.weights, &self.members, id, who, weights)
        };
        if let Some(objection) = objection {
            return self.fail(&objection);
        }
        running.done += 1;
        running.first_done.get_or_insert(id);
        let all_done = running.done >= running.seated;
        if let Some(member) = self.members.get_mut(id) {
            member.done = done;
        }
        if all_done {
            return self.all_done(step);
        }
        Transition::because(
            format!("{who} is done at step {step} ({done:?})"),
            Vec::new(),
        )
    }

    pub(super) fn all_done(&mut self, step: u64) -> Transition {
        let left = self
            .members
            .values()
            .any(|member: &Member| member.done == Done::Left);
        if left {
            let asked = self.drain.clone().unwrap_or_default();
            let why = format!("drained at step {step}, all ranks have left: {asked}");
            return self.end(RunOutcome::Drained { step }, None, &why);
        }
        let why = format!("all ranks finished at step {step}");
        self.end(RunOutcome::Finished { step }, None, &why)
    }
}

/// All ranks must end with the same weights. The first hash is kept, with the rank that reported it.
fn weights_objection(
    known: &mut Option<(MemberId, String)>,
    members: &Roster,
    id: MemberId,
    who: &str,
    weights: Option<String>,
) -> Option<String> {
    let mine = clip(&weights?);
    let (other, theirs) = known.get_or_insert_with(|| (id, mine.clone()));
    (*theirs != mine).then(|| {
        let other = members.describe(*other);
        format!("the ranks end with different weights: {who} has {mine}, {other} has {theirs}")
    })
}
