//! How the coordinator notices a lost member, and the effect on others.

use super::{Done, Effect, Incident, Member, Membership, Phase, RunOutcome, Transition};
use crate::journal::JournalEntry;
use crate::protocol::{Cause, MemberId, MemberState, Reply};

/// The least that a rank may take to begin in a generation, in milliseconds: a checkpoint may come from a slow
/// file system.
const STARTING_MS: u64 = 60_000;

impl Membership {
    /// Its socket says so, at once.
    pub(super) fn disconnected(&mut self, id: MemberId, detail: &str, now_ms: u64) -> Transition {
        let Some(member) = self.members.get(&id) else {
            return Transition::none();
        };
        if member.done != Done::No || self.outcome().is_some() {
            return Transition::none();
        }
        let (who, state) = (member.describe(id), member.state);
        let silent_ms = now_ms.saturating_sub(member.last_seen_ms);
        let reason = match (member.seat, self.drained_at) {
            (None, _) => format!("{who} is gone: {detail}"),
            (Some(_), None) => format!(
                "{who} is gone while the run was at step {} (it was {state:?}): {detail}",
                self.at.step
            ),
            (Some(_), Some(step)) => format!(
                "{who} is gone while the run was at step {step} (it was {state:?}); step {step} was agreed as the last one, but its checkpoint may be missing: {detail}"
            ),
        };
        self.lose(id, &reason, silent_ms, now_ms)
    }

    /// A member is gone, or as good as gone. In an elastic run the others go on without it.
    pub(super) fn lose(
        &mut self,
        id: MemberId,
        reason: &str,
        silent_ms: u64,
        now_ms: u64,
    ) -> Transition {
        let Some(member) = self.members.get(&id) else {
            return Transition::none();
        };
        let had_seat = member.seat.is_some();
        if !self.config.elastic && had_seat {
            return self.fail(reason);
        }
        self.forget(id);
        if self.ready == 0 && !self.formed {
            self.agreed = None;
        }
        if !had_seat {
            self.why = format!(
                "{reason}; {} of {} are left",
                self.members.len(),
                self.config.world
            );
            return Transition::because(self.why.clone(), Vec::new()).and(self.try_form(now_ms));
        }
        self.seated -= 1;
        if self.first_done.is_some() {
            // Those who are done have passed the last barrier: what had to be saved is saved.
            self.why = format!("{reason}; nothing depended on it any more");
            let noted = Transition::because(self.why.clone(), Vec::new());
            return if self.done == self.seated {
                noted.and(self.all_done(self.at.step))
            } else {
                noted
            };
        }
        let incident = self.note_incident(reason, silent_ms, now_ms);
        // The others first: the journal waits for the disk.
        let mut left = self.leave_generation(reason, now_ms);
        left.effects.push(incident);
        left.and(self.try_form(now_ms))
    }

    /// Something that costs time; for the journal and the status.
    pub(super) fn note_incident(&mut self, reason: &str, silent_ms: u64, now_ms: u64) -> Effect {
        self.incidents += 1;
        self.last_incident = Some(reason.to_owned());
        self.incident.get_or_insert(Incident {
            since_ms: now_ms,
            steps_lost: 0,
        });
        Effect::Journal(JournalEntry::Incident {
            generation: self.generation,
            step: self.at.step,
            silent_ms,
            reason: reason.to_owned(),
        })
    }

    /// The generation is over; its ranks abandon the attempt and say again that they are ready.
    pub(super) fn leave_generation(&mut self, reason: &str, now_ms: u64) -> Transition {
        let to: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, m)| m.seat.is_some() && m.done == Done::No)
            .map(|(id, _)| *id)
            .collect();
        self.gather(now_ms);
        self.why = format!("generation {} is over: {reason}", self.generation);
        let reply = Reply::Abort {
            generation: self.generation,
            cause: Cause::Regroup,
            reason: reason.to_owned(),
        };
        let effects = match to.is_empty() {
            true => Vec::new(),
            false => vec![Effect::Send { to, reply }],
        };
        Transition::because(self.why.clone(), effects)
    }

    /// Everybody back to the rendezvous. Those who had no seat have said what they have to say.
    pub(super) fn gather(&mut self, now_ms: u64) {
        self.phase = Phase::Waiting;
        self.waiting_since_ms = now_ms;
        self.votes = 0;
        self.first_vote = None;
        self.regroup = None;
        self.published = false;
        self.shared = None;
        self.found = None;
        self.seated = 0;
        // Those who did not leave before this are asked to leave again.
        self.drained_at = None;
        self.last |= self.drain.is_some();
        for member in self.members.values_mut() {
            member.vote = None;
            if member.seat.is_some() {
                member.ready = None;
            }
            member.last_seat = member.seat.take();
            member.moved_ms = now_ms;
        }
        let count = |is: fn(&Member) -> bool| self.members.values().filter(|m| is(m)).count();
        self.ready = count(|m| m.ready.is_some());
        self.owing = count(Member::owes_ready);
    }

    pub(super) fn tick(&mut self, now_ms: u64) -> Transition {
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
                member.moved_ms = (member.moved_ms + away).min(now_ms);
            }
            self.waiting_since_ms = (self.waiting_since_ms + away).min(now_ms);
            return Transition::because(
                format!("the coordinator was away for {away} ms"),
                Vec::new(),
            );
        }
        let mut all = Transition::none();
        for (id, reason, silent_ms) in self.suspects(now_ms) {
            let dismissal = Effect::Dismiss {
                member: id,
                reason: format!(
                    "{reason}\n  help: the process hung or was stopped; start it again"
                ),
            };
            let mut lost = self.lose(id, &reason, silent_ms, now_ms);
            if self.outcome().is_none() {
                lost.effects.push(dismissal);
            }
            all = all.and(lost);
            if self.outcome().is_some() {
                return all;
            }
        }
        all.and(self.stall(now_ms))
            .and(self.patience(now_ms))
            .and(self.evaluation_over_time(now_ms))
    }

    /// An evaluation may take longer than a step, and nothing is committed while it runs: without this
    /// check, a deadline would pass unseen until the step after it.
    fn evaluation_over_time(&mut self, now_ms: u64) -> Transition {
        let evaluates = self.phase == Phase::Running
            && self.drain.is_none()
            && self.first_done.is_none()
            && self.members.values().any(|m| m.state == MemberState::Evaluating);
        match self.out_of_time(now_ms).filter(|_| evaluates) {
            Some(reason) => self.drain(&reason, now_ms),
            None => Transition::none(),
        }
    }

    /// All wait for each other, so one of them hangs in what the others take for waiting. Who does not
    /// come to the next rendezvous is the one.
    fn stall(&mut self, now_ms: u64) -> Transition {
        if self.phase != Phase::Running || !self.config.elastic || self.first_done.is_some() {
            return Transition::none();
        }
        let hung = self.watchdog_ms();
        let seated = || self.members.values().filter(|m| m.seat.is_some());
        let still = |m: &Member| now_ms.saturating_sub(m.moved_ms);
        if !seated().all(|m| m.state == MemberState::Waiting && still(m) > hung) {
            return Transition::none();
        }
        let shortest = seated().map(still).min().unwrap_or(0);
        let reason = format!(
            "all {} ranks have waited for each other for {shortest} ms, the limit is {hung} ms",
            self.seated
        );
        let incident = self.note_incident(&reason, shortest, now_ms);
        let mut left = self.leave_generation(&reason, now_ms);
        left.effects.push(incident);
        left
    }

    /// Members that are silent, or that hang, with the reason and for how long.
    fn suspects(&self, now_ms: u64) -> Vec<(MemberId, String, u64)> {
        let lapse = self.config.heartbeat_lapse_ms;
        let hung = self.watchdog_ms();
        let mut suspects = Vec::new();
        for (id, member) in self.members.iter().filter(|(_, m)| m.done == Done::No) {
            let silent = now_ms.saturating_sub(member.last_seen_ms);
            let still = now_ms.saturating_sub(member.moved_ms);
            let (who, state, step) = (|| member.describe(*id), member.state, self.at.step);
            if silent > lapse {
                suspects.push((
                    *id,
                    format!(
                        "{} was not heard of for {silent} ms, the limit is {lapse} ms; it was {state:?} and the run at step {step}",
                        who()
                    ),
                    silent,
                ));
                continue;
            }
            // Who waits for others is not the one that hangs; who starts may read a checkpoint.
            let limit = match state {
                MemberState::Starting => hung.max(STARTING_MS),
                _ => hung,
            };
            let owes_ready = self.phase == Phase::Waiting && member.owes_ready();
            let works = member.seat.is_some() && state != MemberState::Waiting;
            if self.config.elastic && (works || owes_ready) && still > limit {
                suspects.push((
                    *id,
                    format!(
                        "{} is alive but got nothing done for {still} ms, the limit is {limit} ms; it was {state:?} and the run at step {step}",
                        who()
                    ),
                    still,
                ));
            }
        }
        suspects
    }

    fn watchdog_ms(&self) -> u64 {
        let steps = self.progress.median_step_ms().unwrap_or(0);
        self.config
            .watchdog_ms
            .max(steps.saturating_mul(self.config.watchdog_steps))
    }

    /// Waiting ends some time.
    fn patience(&mut self, now_ms: u64) -> Transition {
        if self.phase != Phase::Waiting {
            return Transition::none();
        }
        let waited = now_ms.saturating_sub(self.waiting_since_ms);
        let mut all = Transition::none();
        if !self.absent.is_empty() && waited > self.config.rejoin_ms {
            let lost = std::mem::take(&mut self.absent).len();
            self.why = format!(
                "{lost} ranks of the coordinator before this one did not come back within {} ms",
                self.config.rejoin_ms
            );
            all = Transition::because(self.why.clone(), Vec::new()).and(self.try_form(now_ms));
        }
        if self.phase != Phase::Waiting {
            return all;
        }
        if self.last && self.members.is_empty() && self.absent.is_empty() {
            let step = self.at.step;
            let asked = self.drain.clone().unwrap_or_default();
            let why = format!(
                "drained; no rank is left to save more than the newest checkpoint: {asked}"
            );
            return all.and(self.end(RunOutcome::Drained { step }, None, &why));
        }
        if waited <= self.config.join_ms {
            return all;
        }
        all.and(self.give_up_waiting(waited, now_ms))
    }
}
