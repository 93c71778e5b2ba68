//! Who takes part and what they agreed on: one pure state machine.
//!
//! [`Membership::apply`] takes an event and the time, and returns effects in their required
//! order, with the reason for them. It does no IO and reads no clock, so a test can replay any script of
//! events. The shell around it is [`crate::server`].
//!
//! ```text
//!            all there                      a rank is lost, or gave up (`regroup`)
//! Waiting ---------------> Running ------+
//!    ^      `form`            |          |   others want to take part: at the next commit
//!    +------------------------|----------+
//!                             v
//!                           Over    (in a run that is not elastic, the loss of a rank leads here too)
//! ```
//!
//! Every way from Waiting to Running makes a new generation. It starts at the newest committed step
//! that one of its members still holds; without such a member, at the newest complete checkpoint.

mod detect;
mod publish;
mod rendezvous;
mod report;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
mod types;
mod vote;

pub(crate) use rendezvous::room;
pub use types::{Effect, MembershipConfig, MembershipEvent, RunOutcome, Ticket, Transition};

use std::collections::BTreeMap;

use crate::journal::JournalEntry;
use crate::progress::CommitRate;
use crate::protocol::{
    Abort, Cause, CheckpointInfo, Generation, MemberId, MemberState, Ready, Reply, StartPoint,
    Terms, TrainerInfo, Vote,
};
use crate::status::EpochSummary;

/// Longest text that is taken from a peer, in characters.
const TEXT_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Over(RunOutcome),
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
    /// What it said for this rendezvous.
    ready: Option<Ready>,
    seat: Option<usize>,
    /// Its seat in the generation before this rendezvous.
    last_seat: Option<usize>,
    state: MemberState,
    step: u64,
    samples_per_s: f32,
    last_seen_ms: u64,
    beat: u64,
    /// When its training thread last got something done.
    moved_ms: u64,
    vote: Option<Vote>,
    done: Done,
}

/// A rank was lost and no step was committed since.
#[derive(Clone, Copy, Debug)]
struct Incident {
    since_ms: u64,
    /// Committed steps whose state nobody holds any more.
    steps_lost: u64,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Membership {
    config: MembershipConfig,
    phase: Phase,
    generation: Generation,
    members: BTreeMap<MemberId, Member>,
    /// How many of them are ready, and how many that had a seat are not yet. Counted along, because a
    /// rendezvous of N members asks N times.
    ready: usize,
    owing: usize,
    next_member: MemberId,
    /// The newest committed step.
    at: StartPoint,
    /// The newest step that a member may hold.
    newest: StartPoint,
    /// What all members train.
    agreed: Option<Terms>,
    /// Ranks of this generation, and how many of them are still there.
    world: usize,
    seated: usize,
    /// A generation was formed here, or by a coordinator whose ranks may come back.
    formed: bool,
    /// A generation was formed by this coordinator.
    formed_here: bool,
    /// Ranks of an earlier coordinator that did not come back yet.
    absent: BTreeMap<MemberId, usize>,
    waiting_since_ms: u64,
    /// The shell looks for a checkpoint; what it found.
    looking: bool,
    found: Option<StartPoint>,
    /// Why to meet at the next commit.
    regroup: Option<String>,
    /// The next generation only saves and leaves.
    last: bool,
    incident: Option<Incident>,
    incidents: u32,
    last_incident: Option<String>,
    /// Rank 0 has published in this generation.
    published: bool,
    /// Ranks that have the shared state, and its hash.
    shared: Option<(String, usize)>,
    /// Votes for step `at.step + 1`, and who voted first.
    votes: usize,
    first_vote: Option<MemberId>,
    /// The first one to finish or leave, and how many did.
    first_done: Option<MemberId>,
    done: usize,
    drain: Option<String>,
    /// The step that was committed as the last one.
    drained_at: Option<u64>,
    weights: Option<(MemberId, String)>,
    loss: Option<f64>,
    checkpoint: Option<CheckpointInfo>,
    /// Why the newest one that was tried is not there.
    unsaved: Option<String>,
    last_epoch: Option<EpochSummary>,
    progress: CommitRate,
    last_tick_ms: Option<u64>,
    /// Why the run is where it is.
    why: String,
}

impl Membership {
    /// Nobody is there yet.
    pub fn new(config: MembershipConfig) -> Self {
        Self {
            phase: Phase::Waiting,
            generation: config.last_generation,
            members: BTreeMap::new(),
            ready: 0,
            owing: 0,
            next_member: config.first_member,
            at: config.start,
            newest: config.newest.max(config.start),
            agreed: None,
            world: config.world,
            seated: 0,
            formed: !config.absent.is_empty(),
            formed_here: false,
            absent: config.absent.clone(),
            waiting_since_ms: 0,
            looking: false,
            found: None,
            regroup: None,
            last: false,
            incident: None,
            incidents: 0,
            last_incident: None,
            published: false,
            shared: None,
            votes: 0,
            first_vote: None,
            first_done: None,
            done: 0,
            drain: None,
            drained_at: None,
            weights: None,
            loss: None,
            checkpoint: None,
            unsaved: None,
            last_epoch: None,
            progress: CommitRate::default(),
            last_tick_ms: None,
            why: format!("0 of {} ranks are there", config.world),
            config,
        }
    }

    /// Takes an event at a time and says what has to be done. Time never goes back.
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
            Phase::Waiting | Phase::Running => None,
        }
    }

    fn seen(&mut self, id: MemberId, now_ms: u64) -> Option<&mut Member> {
        let member = self.members.get_mut(&id)?;
        member.last_seen_ms = now_ms;
        Some(member)
    }

    fn drain(&mut self, reason: &str, now_ms: u64) -> Transition {
        match &self.phase {
            Phase::Over(_) => {
                Transition::because(format!("the run is over: {}", self.why), Vec::new())
            }
            Phase::Waiting if !self.formed => {
                let step = self.at.step;
                let why = format!("drained at step {step}, before all ranks were there: {reason}");
                self.end(RunOutcome::Drained { step }, Some(Cause::Drained), &why)
            }
            Phase::Waiting => {
                self.drain.get_or_insert(reason.to_owned());
                self.last = true;
                self.why = format!("the ranks will meet once more, save and leave: {reason}");
                Transition::because(self.why.clone(), Vec::new()).and(self.try_form(now_ms))
            }
            Phase::Running => {
                if let Some(step) = self.drained_at {
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
                    // It can be done again; the time that is left may not be enough for it.
                    self.last = true;
                    let why = format!("the evaluation is given up to save and leave: {reason}");
                    return self.leave_generation(&why, now_ms);
                }
                self.why = format!("step {} will be the last one: {reason}", self.at.step + 1);
                Transition::because(self.why.clone(), Vec::new())
            }
        }
    }

    /// The run cannot go on.
    fn fail(&mut self, reason: &str) -> Transition {
        let outcome = RunOutcome::Failed {
            reason: reason.to_owned(),
        };
        self.end(outcome, Some(Cause::Failed), reason)
    }

    /// The run is over; with a cause, those who still train are told to abort. Those without a seat
    /// are told in any case.
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
        let to: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, m)| m.done == Done::No && (abort.is_some() || m.seat.is_none()))
            .map(|(id, _)| *id)
            .collect();
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

    /// Adds a member.
    fn admit(&mut self, id: MemberId, member: Member) {
        self.owing += usize::from(member.owes_ready());
        self.members.insert(id, member);
    }

    /// Takes a member out.
    fn forget(&mut self, id: MemberId) {
        if let Some(member) = self.members.remove(&id) {
            self.ready -= usize::from(member.ready.is_some());
            self.owing -= usize::from(member.owes_ready());
        }
    }

    fn set_ready(&mut self, id: MemberId, ready: Ready) {
        if let Some(member) = self.members.get_mut(&id) {
            self.ready += usize::from(member.ready.is_none());
            self.owing -= usize::from(member.owes_ready());
            member.ready = Some(ready);
            member.state = MemberState::Waiting;
        }
    }

    fn describe(&self, id: MemberId) -> String {
        match self.members.get(&id) {
            Some(member) => member.describe(id),
            None => format!("member {id}"),
        }
    }
}

impl Member {
    fn new(mut info: TrainerInfo, now_ms: u64) -> Self {
        info.host = clip(&info.host);
        info.machine = clip(&info.machine);
        Self {
            info,
            ready: None,
            seat: None,
            last_seat: None,
            state: MemberState::Starting,
            step: 0,
            samples_per_s: 0.0,
            last_seen_ms: now_ms,
            beat: 0,
            moved_ms: now_ms,
            vote: None,
            done: Done::No,
        }
    }

    /// It had a seat in the generation before this rendezvous and is not ready yet.
    fn owes_ready(&self) -> bool {
        self.last_seat.is_some() && self.ready.is_none()
    }

    /// `rank 1 (host node3, pid 77, last step 12)`.
    fn describe(&self, id: MemberId) -> String {
        let TrainerInfo { host, pid, .. } = &self.info;
        match self.seat.or(self.last_seat) {
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
