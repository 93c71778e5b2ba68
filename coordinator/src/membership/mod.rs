//! The members of a run and their agreements: one pure state machine.
//!
//! [`Membership::apply`] takes an event and the time, and returns effects in their required
//! order, with the reason for them. It does no IO and reads no clock, so a test can replay any script of
//! events. The shell around it is [`crate::server`].
//!
//! ```text
//!            all there                      a rank is lost, or gave up (`regroup`)
//! Gathering -------------> Running ------+
//!    ^      `form`            |          |   others want to take part: at the next commit
//!    +------------------------|----------+
//!                             v
//!                           Over    (in a run that is not elastic, the loss of a rank leads here too)
//! ```
//!
//! Every way from Gathering to Running makes a new generation. It starts at the newest committed step
//! that one of its members still holds; without such a member, at the newest complete checkpoint.

mod detect;
mod phase;
mod publish;
mod rendezvous;
mod report;
mod roster;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
mod types;
mod vote;

pub(crate) use rendezvous::room;
pub use types::{Effect, MembershipConfig, MembershipEvent, RunOutcome, Ticket, Transition};

use std::collections::BTreeMap;

use phase::{Gathering, Phase, Running};
use roster::{Done, Member, Roster};

use crate::journal::JournalEntry;
use crate::progress::CommitRate;
use crate::protocol::{
    Abort, Cause, CheckpointInfo, Generation, MemberId, MemberState, Reply, StartPoint, Terms,
};
use crate::status::EpochSummary;

/// Longest text that is taken from a peer, in characters.
const TEXT_MAX: usize = 2000;

/// What cost the run time.
#[derive(Clone, Debug, Default)]
struct Incidents {
    count: u32,
    /// The reason of the newest one.
    last: Option<String>,
    /// Since when no step was committed after one.
    open: Option<Incident>,
}

/// A rank was lost and no step was committed since.
#[derive(Clone, Copy, Debug)]
struct Incident {
    since_ms: u64,
    /// Committed steps whose state nobody holds any more.
    steps_lost: u64,
}

/// The newest results that the ranks reported, for the status.
#[derive(Clone, Debug, Default)]
struct Results {
    /// Mean loss per sample of the newest committed step; `None` before one, or when it is not finite.
    loss: Option<f64>,
    epoch: Option<EpochSummary>,
    checkpoint: Option<CheckpointInfo>,
    /// Why a rank could not save a checkpoint after `checkpoint`.
    unsaved: Option<String>,
}

/// The state machine.
///
/// Its own fields last for the whole run. Fields that only mean something in one phase are in [`Phase`].
#[derive(Clone, Debug)]
pub struct Membership {
    config: MembershipConfig,
    phase: Phase,
    generation: Generation,
    members: Roster,
    next_member: MemberId,
    /// The newest committed step.
    at: StartPoint,
    /// The newest step that a member may hold.
    newest: StartPoint,
    /// What all members train.
    agreed: Option<Terms>,
    /// Ranks of the newest generation; before the first, those that the run shall have.
    world: usize,
    /// Ranks of an earlier coordinator that did not come back yet.
    absent: BTreeMap<MemberId, usize>,
    /// The shell is looking for a checkpoint. The search may outlast the rendezvous that asked for it.
    searching: bool,
    /// Why the run ends early. A generation that forms after this only saves and leaves.
    drain: Option<String>,
    incidents: Incidents,
    results: Results,
    progress: CommitRate,
    last_tick_ms: Option<u64>,
    /// Why the run is where it is.
    why: String,
}

impl Membership {
    /// Nobody is there yet.
    pub fn new(config: MembershipConfig) -> Self {
        Self {
            phase: Phase::Gathering(Gathering::new(0)),
            generation: config.last_generation,
            members: Roster::default(),
            next_member: config.first_member,
            at: config.start,
            newest: config.newest.max(config.start),
            agreed: None,
            world: config.world,
            absent: config.absent.clone(),
            searching: false,
            drain: None,
            incidents: Incidents::default(),
            results: Results::default(),
            progress: CommitRate::default(),
            last_tick_ms: None,
            why: format!("0 of {} ranks are there", config.world),
            config,
        }
    }

    /// Takes an event and its time, and returns the effects. Time never goes back.
    pub fn apply(&mut self, event: MembershipEvent, now_ms: u64) -> Transition {
        match event {
            MembershipEvent::Join { ticket, info } => self.join(ticket, info, now_ms),
            MembershipEvent::Ready { member, ready } => self.ready(member, ready, now_ms),
            MembershipEvent::Heartbeat {
                member,
                state,
                step,
                samples_per_s,
                beat,
            } => {
                if let Some(member) = self.seen(member, now_ms) {
                    if (beat, state) != (member.beat, member.state) {
                        member.moved_ms = now_ms;
                    }
                    member.beat = beat;
                    member.state = state;
                    member.step = member.step.max(step);
                    if samples_per_s.is_finite() && samples_per_s > 0.0 {
                        member.samples_per_s = samples_per_s;
                    }
                }
                Transition::none()
            }
            MembershipEvent::Vote { member, vote } => self.vote(member, vote, now_ms),
            MembershipEvent::Trainer { member, event } => self.trainer(member, event, now_ms),
            MembershipEvent::Publish {
                member,
                generation,
                bytes,
            } => self.publish(member, generation, bytes, now_ms),
            MembershipEvent::Disconnected { member, detail } => {
                self.disconnected(member, &detail, now_ms)
            }
            MembershipEvent::Drain { reason } => self.drain(&clip(&reason), now_ms),
            MembershipEvent::Shutdown { reason } => {
                let reason = clip(&reason);
                self.end(
                    RunOutcome::Stopped {
                        reason: reason.clone(),
                    },
                    Some(Cause::Stopped),
                    &reason,
                )
            }
            MembershipEvent::Fail { reason } => self.fail(&clip(&reason)),
            MembershipEvent::Checkpoint(found) => self.checkpoint_found(found, now_ms),
            MembershipEvent::Tick => self.tick(now_ms),
        }
    }

    /// How the run ended, once it has.
    pub fn outcome(&self) -> Option<&RunOutcome> {
        match &self.phase {
            Phase::Over(outcome) => Some(outcome),
            Phase::Gathering(_) | Phase::Running(_) => None,
        }
    }

    fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            Phase::Gathering(_) | Phase::Over(_) => None,
        }
    }

    fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) => Some(running),
            Phase::Gathering(_) | Phase::Over(_) => None,
        }
    }

    fn is_gathering(&self) -> bool {
        matches!(self.phase, Phase::Gathering(_))
    }

    /// This coordinator has formed a generation.
    fn formed_here(&self) -> bool {
        self.generation > self.config.last_generation
    }

    /// A generation was formed here, or by a coordinator whose ranks may come back.
    fn formed(&self) -> bool {
        self.formed_here() || !self.config.absent.is_empty()
    }

    fn seen(&mut self, id: MemberId, now_ms: u64) -> Option<&mut Member> {
        let member = self.members.get_mut(id)?;
        member.last_seen_ms = now_ms;
        Some(member)
    }

    fn drain(&mut self, reason: &str, now_ms: u64) -> Transition {
        match &self.phase {
            Phase::Over(_) => {
                Transition::because(format!("the run is over: {}", self.why), Vec::new())
            }
            Phase::Gathering(_) if !self.formed() => {
                let step = self.at.step;
                let why = format!("drained at step {step}, before all ranks were there: {reason}");
                self.end(RunOutcome::Drained { step }, Some(Cause::Drained), &why)
            }
            Phase::Gathering(_) => {
                self.drain.get_or_insert(reason.to_owned());
                self.why = format!("the ranks will meet once more, save and leave: {reason}");
                Transition::because(self.why.clone(), Vec::new()).and(self.try_form(now_ms))
            }
            Phase::Running(running) => {
                if let Some(step) = running.drained_at {
                    return Transition::because(
                        format!("step {step} is the last one already"),
                        Vec::new(),
                    );
                }
                if self.drain.is_some() {
                    return Transition::because(self.why.clone(), Vec::new());
                }
                self.drain = Some(reason.to_owned());
                let evaluates = |m: &Member| m.state == MemberState::Evaluating;
                if self.config.elastic && self.members.values().any(evaluates) {
                    // An evaluation can be repeated; the time that is left may not be enough for it.
                    let why = format!("the evaluation is given up to save and leave: {reason}");
                    return self.leave_generation(&why, now_ms);
                }
                self.why = format!("step {} will be the last one: {reason}", self.at.step + 1);
                Transition::because(self.why.clone(), Vec::new())
            }
        }
    }

    /// Ends the run, which cannot continue.
    fn fail(&mut self, reason: &str) -> Transition {
        let outcome = RunOutcome::Failed {
            reason: reason.to_owned(),
        };
        self.end(outcome, Some(Cause::Failed), reason)
    }

    /// Ends the run. With a cause, the members that still train are told to abort; members without a
    /// seat are told in any case.
    fn end(&mut self, outcome: RunOutcome, abort: Option<Cause>, reason: &str) -> Transition {
        if let Phase::Over(_) = self.phase {
            return Transition::because(
                format!("the run is over already: {}", self.why),
                Vec::new(),
            );
        }
        self.why = reason.to_owned();
        let mut effects = vec![Effect::Journal(JournalEntry::Ended {
            outcome: outcome.name().to_owned(),
            step: self.at.step,
            reason: reason.to_owned(),
        })];
        let cause = abort.unwrap_or(match outcome {
            RunOutcome::Finished { .. } => Cause::Finished,
            RunOutcome::Drained { .. } => Cause::Drained,
            RunOutcome::Stopped { .. } => Cause::Stopped,
            RunOutcome::Failed { .. } => Cause::Failed,
        });
        // The one at fault is told as well: it may be alive.
        let told = |m: &Member| m.done == Done::No && (abort.is_some() || m.seat.is_none());
        let to = self.members.ids(told);
        if !to.is_empty() {
            let reply = Reply::Abort(Abort {
                generation: self.generation,
                cause,
                reason: reason.to_owned(),
            });
            effects.push(Effect::Send { to, reply });
        }
        effects.push(Effect::End(outcome.clone()));
        self.phase = Phase::Over(outcome);
        Transition::because(reason, effects)
    }
}

/// A peer's text, cut to a length that can be forwarded.
fn clip(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}
