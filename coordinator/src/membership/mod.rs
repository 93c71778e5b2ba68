//! Who takes part and what they agreed on: one pure state machine.
//!
//! [`Membership::apply`] takes an event and the time, and returns effects in the order in which
//! they have to happen, with the reason for them. It does no IO and reads no clock, so any script of
//! events can be replayed in a test. The shell around it is [`crate::server`].
//!
//! A run has one generation per coordinator here: when a seated rank dies, the generation is
//! aborted and the run has failed. Where it would go on with a new generation instead is
//! `Membership::fail`.

mod rendezvous;
mod report;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
mod types;
mod vote;

pub use types::{Config, Effect, Event, Outcome, Ticket, Transition};

use std::collections::BTreeMap;

use crate::journal::JournalEntry;
use crate::progress::Progress;
use crate::protocol::{
    Cause, CheckpointInfo, Generation, MemberId, MemberState, Ready, Reply, StartPoint,
    TrainerInfo, Vote,
};
use crate::status::EpochSummary;

/// Longest text that is taken from a peer, in characters.
const TEXT_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Over(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    No,
    Finished,
    Left,
}

#[derive(Clone, Debug)]
struct Member {
    info: TrainerInfo,
    ready: Option<Ready>,
    seat: Option<usize>,
    state: MemberState,
    step: u64,
    samples_per_s: f32,
    last_seen_ms: u64,
    vote: Option<Vote>,
    done: Done,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Membership {
    config: Config,
    phase: Phase,
    generation: Generation,
    members: BTreeMap<MemberId, Member>,
    next_member: MemberId,
    /// The newest committed step.
    at: StartPoint,
    /// What all ranks said when they were ready.
    agreed: Option<Ready>,
    /// Votes for step `at.step + 1`, and who voted first.
    votes: usize,
    first_vote: Option<MemberId>,
    /// The first one to finish or leave, and how many did.
    first_done: Option<MemberId>,
    done: usize,
    drain: Option<String>,
    /// The step that was committed with the drain flag.
    drained_at: Option<u64>,
    weights: Option<(MemberId, String)>,
    loss: Option<f64>,
    checkpoint: Option<CheckpointInfo>,
    last_epoch: Option<EpochSummary>,
    progress: Progress,
    last_tick_ms: Option<u64>,
    /// Why the run is where it is.
    why: String,
}

impl Membership {
    /// Nobody is there yet.
    pub fn new(config: Config) -> Self {
        Self {
            phase: Phase::Waiting,
            generation: config.last_generation,
            members: BTreeMap::new(),
            next_member: config.first_member,
            at: config.start,
            agreed: None,
            votes: 0,
            first_vote: None,
            first_done: None,
            done: 0,
            drain: None,
            drained_at: None,
            weights: None,
            loss: None,
            checkpoint: None,
            last_epoch: None,
            progress: Progress::default(),
            last_tick_ms: None,
            why: format!("0 of {} ranks are there", config.world),
            config,
        }
    }

    /// Takes an event at a time and says what has to be done. Time never goes back.
    pub fn apply(&mut self, event: Event, now_ms: u64) -> Transition {
        match event {
            Event::Join { ticket, info } => self.join(ticket, info, now_ms),
            Event::Ready { member, ready } => self.ready(member, ready, now_ms),
            Event::Heartbeat {
                member,
                state,
                step,
                samples_per_s,
            } => {
                if let Some(member) = self.seen(member, now_ms) {
                    member.state = state;
                    member.step = member.step.max(step);
                    if samples_per_s.is_finite() && samples_per_s > 0.0 {
                        member.samples_per_s = samples_per_s;
                    }
                }
                Transition::none()
            }
            Event::Vote { member, vote } => self.vote(member, vote, now_ms),
            Event::Trainer { member, event } => self.trainer(member, event, now_ms),
            Event::Disconnected { member, detail } => self.disconnected(member, &detail),
            Event::Drain { reason } => self.drain(&clip(&reason)),
            Event::Shutdown { reason } => {
                let reason = clip(&reason);
                self.end(
                    Outcome::Stopped {
                        reason: reason.clone(),
                    },
                    Some(Cause::Stopped),
                    &reason,
                )
            }
            Event::Fail { reason } => self.fail(&clip(&reason)),
            Event::Tick => self.tick(now_ms),
        }
    }

    /// How the run ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Over(outcome) => Some(outcome),
            Phase::Waiting | Phase::Running => None,
        }
    }

    fn seen(&mut self, id: MemberId, now_ms: u64) -> Option<&mut Member> {
        let member = self.members.get_mut(&id)?;
        member.last_seen_ms = now_ms;
        Some(member)
    }

    fn disconnected(&mut self, id: MemberId, detail: &str) -> Transition {
        let Some(member) = self.members.get(&id) else {
            return Transition::none();
        };
        let who = member.describe(id);
        if member.done != Done::No || self.outcome().is_some() {
            return Transition::none();
        }
        if member.seat.is_some() {
            let state = member.state;
            let agreed = match self.drained_at {
                Some(step) => format!(
                    "; step {step} was agreed as the last one, but its checkpoint may be missing"
                ),
                None => String::new(),
            };
            let reason = format!(
                "{who} is gone while the run was at step {} (it was {state:?}){agreed}: {detail}",
                self.at.step
            );
            return self.fail(&reason);
        }
        self.members.remove(&id);
        if self.ready_count() == 0 {
            self.agreed = None;
        }
        self.why = format!(
            "{who} is gone before all were there, {} of {} are left: {detail}",
            self.members.len(),
            self.config.world
        );
        Transition::because(self.why.clone(), Vec::new())
    }

    fn drain(&mut self, reason: &str) -> Transition {
        match &self.phase {
            Phase::Over(_) => {
                Transition::because(format!("the run is over: {}", self.why), Vec::new())
            }
            Phase::Waiting => {
                let step = self.at.step;
                let why = format!("drained at step {step}, before all ranks were there: {reason}");
                self.end(Outcome::Drained { step }, Some(Cause::Drained), &why)
            }
            Phase::Running => {
                if let Some(step) = self.drained_at {
                    return Transition::because(
                        format!("step {step} is the last one already"),
                        Vec::new(),
                    );
                }
                if self.drain.is_none() {
                    self.drain = Some(reason.to_owned());
                    self.why = format!("step {} will be the last one: {reason}", self.at.step + 1);
                }
                Transition::because(self.why.clone(), Vec::new())
            }
        }
    }

    fn tick(&mut self, now_ms: u64) -> Transition {
        let lapse = self.config.heartbeat_lapse_ms;
        let away = self
            .last_tick_ms
            .map_or(0, |last| now_ms.saturating_sub(last));
        self.last_tick_ms = Some(now_ms);
        if self.outcome().is_some() {
            return Transition::none();
        }
        // This process itself stood still. What the members sent meanwhile is not read yet, so the
        // time it was away does not count against them.
        if away > lapse / 2 {
            for member in self.members.values_mut() {
                member.last_seen_ms = (member.last_seen_ms + away).min(now_ms);
            }
            return Transition::because(
                format!("the coordinator was away for {away} ms"),
                Vec::new(),
            );
        }
        let silent = self
            .members
            .iter()
            .find(|(_, m)| m.done == Done::No && now_ms.saturating_sub(m.last_seen_ms) > lapse);
        let Some((id, member)) = silent else {
            return Transition::none();
        };
        let id = *id;
        let reason = format!(
            "{} was not heard of for {} ms, the limit is {lapse} ms; it was {:?} and the run at step {}",
            member.describe(id),
            now_ms.saturating_sub(member.last_seen_ms),
            member.state,
            self.at.step
        );
        if member.seat.is_some() {
            return self.fail(&reason);
        }
        self.members.remove(&id);
        let effect = Effect::Dismiss {
            member: id,
            reason: format!("{reason}\n  help: the process hung or was stopped; start it again"),
        };
        Transition::because(reason, vec![effect])
    }

    /// A rank is lost or the ranks disagree: the generation is over, and the run with it.
    fn fail(&mut self, reason: &str) -> Transition {
        let outcome = Outcome::Failed {
            reason: reason.to_owned(),
        };
        self.end(outcome, Some(Cause::Failed), reason)
    }

    /// The run is over; with a cause, those who still train are told to abort.
    fn end(&mut self, outcome: Outcome, abort: Option<Cause>, reason: &str) -> Transition {
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
        if let Some(cause) = abort {
            // The one at fault is told as well: it may be alive.
            let to: Vec<MemberId> = self
                .members
                .iter()
                .filter(|(_, member)| member.done == Done::No)
                .map(|(id, _)| *id)
                .collect();
            let reply = Reply::Abort {
                generation: self.generation,
                cause,
                reason: reason.to_owned(),
            };
            if !to.is_empty() {
                effects.push(Effect::Send { to, reply });
            }
        }
        effects.push(Effect::End(outcome.clone()));
        self.phase = Phase::Over(outcome);
        Transition::because(reason, effects)
    }
}

impl Member {
    fn new(mut info: TrainerInfo, now_ms: u64) -> Self {
        info.host = clip(&info.host);
        Self {
            info,
            ready: None,
            seat: None,
            state: MemberState::Starting,
            step: 0,
            samples_per_s: 0.0,
            last_seen_ms: now_ms,
            vote: None,
            done: Done::No,
        }
    }

    /// `rank 1 (host node3, pid 77, last step 12)`.
    fn describe(&self, id: MemberId) -> String {
        let TrainerInfo { host, pid, .. } = &self.info;
        match self.seat {
            Some(rank) => format!(
                "rank {rank} (host {host}, pid {pid}, last step {})",
                self.step
            ),
            None => format!("member {id} (host {host}, pid {pid}, without a rank)"),
        }
    }
}

/// A peer's text, cut to a length that can be passed on.
fn clip(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}
