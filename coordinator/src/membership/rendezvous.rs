//! From a set of members to a generation: joining, checking that they fit together, who holds what,
//! and the seats.

use super::{Done, Effect, Member, Membership, Phase, Running, Ticket, Transition, clip};
use crate::journal::{JournalEntry, Seat};
use crate::ledger::LedgerEntry;
use crate::order::allowed_world_sizes;
use crate::protocol::{Assignment, MemberId, Ready, Reply, Seated, StartPoint, TrainerInfo};

/// Most members of a run. An elastic one has room for a second set, which stands by until ranks are
/// lost.
pub(crate) fn room(world: usize, elastic: bool) -> usize {
    if elastic {
        world.saturating_mul(2)
    } else {
        world
    }
}

impl Membership {
    pub(super) fn join(&mut self, ticket: Ticket, info: TrainerInfo, now_ms: u64) -> Transition {
        let refuse = |reason: String| {
            let effect = Effect::Refuse {
                ticket,
                reason: reason.clone(),
            };
            Transition::because(reason, vec![effect])
        };
        let (here, world) = (self.members.len(), self.config.world);
        if let Phase::Over(outcome) = &self.phase {
            return refuse(format!(
                "the run is over ({}): {}\n  help: start it again with --resume",
                outcome.name(),
                self.why
            ));
        }
        let room = room(world, self.config.elastic);
        if here >= room {
            return refuse(format!(
                "{here} of {room} members are here in generation {}\n  help: this run has no seat left; do not start more trainers than it has ranks",
                self.generation
            ));
        }
        if let Some(rank) = info.preferred_rank
            && rank as usize >= world
        {
            return refuse(format!(
                "rank {rank} does not exist among {world} ranks\n  help: start as many trainers as the coordinator was told with --ranks"
            ));
        }
        let member = match info.member {
            // The same process: it lost its connection, which nobody has noticed here yet.
            Some(id)
                if self
                    .members
                    .get(&id)
                    .is_some_and(|m| m.info.is_process(&info)) =>
            {
                let reason = format!("{} connected again", self.members.describe(id));
                let mut replaced = self.lose(id, &reason, 0, now_ms);
                if self.outcome().is_none() {
                    let reason = format!("{reason}\n  help: use the newer connection");
                    replaced
                        .effects
                        .push(Effect::Dismiss { member: id, reason });
                }
                return replaced.and(self.join(ticket, info, now_ms));
            }
            Some(id) if self.members.contains_key(&id) => {
                return refuse(format!(
                    "member {id} is connected already\n  help: two processes use the same member id; start the second one without it"
                ));
            }
            // An id that was issued before, perhaps by an earlier coordinator. Any other could be
            // one that this coordinator is about to issue.
            Some(id) if id < self.next_member => id,
            _ => {
                let id = self.next_member;
                self.next_member = MemberId(id.0 + 1);
                id
            }
        };
        let reason = format!(
            "member {member} on host {} with pid {} joined: {} of {world} are here",
            info.host,
            info.pid,
            here + 1
        );
        let mut joined = Member::new(info, now_ms);
        // Perhaps it comes back from a generation of the coordinator before this one.
        joined.last_seat = self.absent.remove(&member);
        self.members.admit(member, joined);
        if self.is_gathering() {
            self.why.clone_from(&reason);
        }
        Transition::because(reason, vec![Effect::Admit { ticket, member }])
    }

    pub(super) fn ready(&mut self, id: MemberId, ready: Ready, now_ms: u64) -> Transition {
        let (agreed, cursor, newest) = (self.agreed.clone(), self.config.start.cursor, self.newest);
        let (running, elastic) = (self.running().is_some(), self.config.elastic);
        if self.outcome().is_some() {
            return Transition::none();
        }
        let Some(member) = self.seen(id, now_ms) else {
            return Transition::none();
        };
        let who = member.describe(id);
        if member.ready.is_some() && !elastic {
            return self.fail(&format!("{who} said for the second time that it is ready"));
        }
        if member.done != Done::No {
            return self.fail(&format!("{who} said that it is ready after it had left"));
        }
        member.moved_ms = now_ms;
        let terms = &ready.terms;
        let dismissal = match &agreed {
            Some(agreed) if agreed != terms => Some(format!(
                "this rank has another config or other data than those before it: {} samples per epoch and fingerprint {} against {} and {}\n  help: give all ranks the same config and the same prepared dataset",
                terms.samples_per_epoch,
                clip(&terms.fingerprint),
                agreed.samples_per_epoch,
                agreed.fingerprint
            )),
            _ if terms.samples_per_epoch < cursor || terms.samples_per_epoch == 0 => Some(format!(
                "the epoch has {} samples, the run starts after sample {cursor} of it\n  help: the checkpoint belongs to another dataset or config; resume with those that wrote it",
                terms.samples_per_epoch
            )),
            _ if terms.fingerprint.len() > 256 => Some(format!(
                "the fingerprint has {} bytes, the limit is 256\n  help: give a hash",
                terms.fingerprint.len()
            )),
            _ => None,
        };
        if let Some(reason) = dismissal {
            let mut lost = self.lose(id, &reason, 0, now_ms);
            if self.outcome().is_none() {
                lost.effects.push(Effect::Dismiss { member: id, reason });
            }
            return lost;
        }
        let ready = Ready {
            // Nobody can hold a step that was not committed: it comes from an abandoned generation.
            have: ready.have.filter(|have| have.step <= newest.step),
            ..ready
        };
        self.agreed = Some(ready.terms.clone());
        self.config.elastic &= ready.terms.elastic;
        let seated = self.members.get(&id).is_some_and(|m| m.seat.is_some());
        let gave_up = ready.gave_up.as_deref().map(clip);
        if let Some(running) = self.running()
            && seated
        {
            let reason = format!(
                "{who} gave up its attempt at step {}: {}",
                self.at.step + 1,
                gave_up.as_deref().unwrap_or("no reason given")
            );
            if running.first_done.is_some() {
                // Others have left for good: nobody is there to form a generation with.
                let mut lost = self.lose(id, &reason, 0, now_ms);
                if self.outcome().is_none() {
                    let reason = format!("{reason}\n  help: other ranks have finished already");
                    let dismissal = Effect::Dismiss { member: id, reason };
                    lost.effects.push(dismissal);
                }
                return lost;
            }
            let incident = self.note_incident(&reason, 0, now_ms);
            let mut left = self.leave_generation(&reason, now_ms);
            left.effects.push(incident);
            self.members.set_ready(id, ready);
            return left.and(self.try_form(now_ms));
        }
        self.members.set_ready(id, ready);
        if running {
            return self.welcome_spare(id);
        }
        let (here, world) = (self.members.ready(), self.config.world);
        self.why = format!("{here} of {world} ranks are ready");
        let noted = Transition::because(self.why.clone(), Vec::new());
        match self.try_form(now_ms) {
            formed if formed.effects.is_empty() => noted,
            formed => formed,
        }
    }

    /// A member without a seat is ready while the others train: if it makes a larger world possible,
    /// they meet after the next step.
    fn welcome_spare(&mut self, id: MemberId) -> Transition {
        let who = self.members.describe(id);
        // Members with a seat count as ready too.
        let possible = self.usable(self.members.ready());
        if possible <= self.world {
            return Transition::because(
                format!("{who} stands by: {} ranks train", self.world),
                Vec::new(),
            );
        }
        let reason = format!(
            "{who} is ready: after step {} there will be {possible} ranks instead of {}",
            self.at.step + 1,
            self.world
        );
        if let Some(running) = self.running_mut() {
            running.regroup = Some(reason.clone());
        }
        Transition::because(reason, Vec::new())
    }

    /// The most ranks that so many members can make up.
    pub(super) fn usable(&self, members: usize) -> usize {
        let most = members.min(self.config.world);
        let sizes = allowed_world_sizes(self.config.virtual_shards);
        sizes
            .into_iter()
            .filter(|size| *size <= most)
            .max()
            .unwrap_or(0)
    }

    /// Forms a new generation if every member that the run waits for is there.
    pub(super) fn try_form(&mut self, now_ms: u64) -> Transition {
        if !self.is_gathering() || self.searching {
            return Transition::none();
        }
        // Ranks of the generation before come back; the run does not wait for new processes.
        let back = self.absent.is_empty() && self.members.owing() == 0;
        let least = match self.drain {
            Some(_) => 1,
            None => self.config.min_ranks.max(1),
        };
        let enough = self.config.elastic
            && self.formed()
            && back
            && self.usable(self.members.ready()) >= least;
        if self.members.ready() >= self.config.world || enough {
            self.form(now_ms)
        } else {
            Transition::none()
        }
    }

    /// Nobody else came. With enough ranks the run continues; with too few it saves the state they hold.
    pub(super) fn give_up_waiting(&mut self, waited_ms: u64, now_ms: u64) -> Transition {
        let usable = self.usable(self.members.ready());
        let short = format!(
            "{} of {} ranks came within {waited_ms} ms",
            self.members.ready(),
            self.config.world
        );
        if !self.config.elastic || usable == 0 {
            return self.fail(&format!(
                "{short}\n  help: see the logs of the missing ones, then go on with --resume"
            ));
        }
        if usable < self.config.min_ranks {
            if !self.members.values().any(|m| m.holds().is_some()) {
                return self.fail(&format!(
                    "{short}, at least {} are needed\n  help: start more, or lower elastic.min_ranks",
                    self.config.min_ranks
                ));
            }
            self.drain.get_or_insert(format!(
                "{short}, at least {} are needed",
                self.config.min_ranks
            ));
        }
        self.absent.clear();
        self.form(now_ms)
    }

    /// The answer to [`Effect::FindCheckpoint`].
    pub(super) fn checkpoint_found(
        &mut self,
        found: std::result::Result<StartPoint, String>,
        now_ms: u64,
    ) -> Transition {
        self.searching = false;
        let Phase::Gathering(gathering) = &mut self.phase else {
            return Transition::none();
        };
        match found {
            Ok(start) => {
                gathering.found = Some(start);
                self.try_form(now_ms)
            }
            Err(reason) => self.fail(&format!(
                "no member holds the state of step {} any more, and no checkpoint can be used: {}",
                self.at.step,
                clip(&reason)
            )),
        }
    }

    /// Forms a new generation from the members that are ready.
    fn form(&mut self, now_ms: u64) -> Transition {
        let Phase::Gathering(gathering) = &self.phase else {
            return Transition::none();
        };
        let held = self.members.values().filter_map(Member::holds).max();
        let start = match held.or(gathering.found) {
            Some(start) => start,
            None if !self.formed_here() => self.config.start,
            None => {
                self.searching = true;
                let why = format!(
                    "no member holds the state of step {}: looking for the newest checkpoint",
                    self.at.step
                );
                return Transition::because(why, vec![Effect::FindCheckpoint]);
            }
        };
        let world = self.usable(self.members.ready());
        let by_rank = self.seats(world, start);
        self.generation += 1;
        let last = self.drain.is_some();
        let running = Running::new(world, last.then_some(start.step), gathering.shared.clone());
        self.phase = Phase::Running(running);
        self.progress.restart();
        self.world = world;
        let before = self.at;
        (self.at, self.newest) = (start, start);
        if let Some(incident) = &mut self.incidents.open {
            incident.steps_lost += before.step.saturating_sub(start.step);
        }
        for (rank, id) in by_rank.iter().enumerate() {
            if let Some(member) = self.members.get_mut(*id) {
                member.seat = Some(rank);
                member.step = start.step;
                member.moved_ms = now_ms;
            }
        }
        let holds = |id: &MemberId| {
            let member = self.members.get(id);
            member.and_then(Member::holds) == Some(start)
        };
        let source = by_rank.iter().position(holds);
        let share = !by_rank.iter().all(holds);
        let generation = self.generation;
        self.why = format!(
            "generation {generation}: {world} of {} ranks, training starts after step {} at sample {} of epoch {}{}{}",
            self.config.world,
            start.step,
            start.cursor,
            start.epoch,
            match before.step > start.step {
                true => format!(
                    "; nobody holds steps {} to {} any more",
                    start.step + 1,
                    before.step
                ),
                false => String::new(),
            },
            if last {
                "; it only saves and leaves"
            } else {
                ""
            }
        );
        let seats = self.journal_seats(&by_rank);
        let machines = self.machines(&by_rank);
        let mut effects = vec![
            Effect::Journal(JournalEntry::Generation {
                generation,
                seats,
                start,
                reason: self.why.clone(),
            }),
            Effect::Ledger(LedgerEntry::Start { generation, start }),
        ];
        effects.extend(by_rank.iter().enumerate().map(|(rank, id)| Effect::Send {
            to: vec![*id],
            reply: Reply::Assign(Assignment {
                generation,
                rank,
                world,
                machines: machines.clone(),
                start,
                source,
                share,
                last,
            }),
        }));
        Transition::because(self.why.clone(), effects)
    }

    fn journal_seats(&self, by_rank: &[MemberId]) -> Vec<Seat> {
        let seat = |(rank, id): (usize, &MemberId)| {
            let info = &self.members.get(id)?.info;
            Some(Seat {
                rank,
                member: *id,
                host: info.host.clone(),
                pid: info.pid,
            })
        };
        by_rank.iter().enumerate().filter_map(seat).collect()
    }

    /// Rank 0's machine, and the lowest rank's that is elsewhere.
    fn machines(&self, by_rank: &[MemberId]) -> Vec<Seated> {
        let machine = |(rank, id): (usize, &MemberId)| Seated {
            rank,
            machine: self
                .members
                .get(id)
                .map(|m| m.info.machine.clone())
                .unwrap_or_default(),
        };
        let mut all = by_rank.iter().enumerate().map(machine);
        let Some(first) = all.next() else {
            return Vec::new();
        };
        let elsewhere = all.find(|seat| !crate::host::same_machine(&seat.machine, &first.machine));
        [first].into_iter().chain(elsewhere).collect()
    }

    /// Members by rank. Holders of the state are taken first, then members that had a lower rank, then
    /// lower ids. A member keeps the rank it had, or gets the one it prefers, when that is free; the
    /// others fill the gaps.
    fn seats(&self, world: usize, start: StartPoint) -> Vec<MemberId> {
        let mut ready: Vec<(&MemberId, &Member)> = self
            .members
            .iter()
            .filter(|(_, m)| m.ready.is_some())
            .collect();
        ready.sort_by_key(|(id, m)| {
            let seat = m.last_seat.unwrap_or(usize::MAX);
            (m.holds() != Some(start), seat, **id)
        });
        ready.truncate(world);
        let mut seats: Vec<Option<MemberId>> = vec![None; world];
        let wishes: [fn(&Member) -> Option<usize>; 2] = [
            |m| m.last_seat,
            |m| m.info.preferred_rank.map(|rank| rank as usize),
        ];
        for wish in wishes {
            ready.retain(
                |(id, member)| match wish(member).and_then(|rank| seats.get_mut(rank)) {
                    Some(seat) if seat.is_none() => {
                        *seat = Some(**id);
                        false
                    }
                    _ => true,
                },
            );
        }
        let mut rest = ready.into_iter().map(|(id, _)| *id);
        seats
            .into_iter()
            .filter_map(|seat| seat.or_else(|| rest.next()))
            .collect()
    }
}
