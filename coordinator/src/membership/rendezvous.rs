//! Until all ranks are there: joining, checking that they fit together, and the seats.

use super::{Effect, Member, Membership, Phase, Ticket, Transition, clip};
use crate::journal::{JournalEntry, Seat};
use crate::ledger::LedgerEntry;
use crate::protocol::{Assignment, MemberId, Ready, Reply, TrainerInfo};

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
        if here >= world {
            return refuse(format!(
                "{here} of {world} ranks are taken in generation {}\n  help: this run has no seat left; do not start more trainers than it has ranks",
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
            Some(id) if self.members.contains_key(&id) => {
                return refuse(format!(
                    "member {id} is connected already\n  help: two processes use the same member id; start the second one without it"
                ));
            }
            // An id that was given before, perhaps by an earlier coordinator. Any other could be
            // one that this coordinator is going to give.
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
        self.members.insert(member, Member::new(info, now_ms));
        self.why.clone_from(&reason);
        Transition::because(reason, vec![Effect::Admit { ticket, member }])
    }

    pub(super) fn ready(&mut self, id: MemberId, ready: Ready, now_ms: u64) -> Transition {
        let running = self.phase != Phase::Waiting;
        let agreed = self.agreed.clone();
        let cursor = self.at.cursor;
        let Some(member) = self.seen(id, now_ms) else {
            return Transition::none();
        };
        if running || member.ready.is_some() {
            let who = member.describe(id);
            return self.fail(&format!("{who} said for the second time that it is ready"));
        }
        let dismissal = match &agreed {
            Some(agreed) if *agreed != ready => Some(format!(
                "this rank has another config or other data than those before it: {} samples per epoch and fingerprint {} against {} and {}\n  help: give all ranks the same config and the same prepared dataset",
                ready.samples_per_epoch,
                clip(&ready.fingerprint),
                agreed.samples_per_epoch,
                agreed.fingerprint
            )),
            _ if ready.samples_per_epoch < cursor || ready.samples_per_epoch == 0 => Some(format!(
                "the epoch has {} samples, the run starts after sample {cursor} of it\n  help: the checkpoint belongs to another dataset or config; resume with those that wrote it",
                ready.samples_per_epoch
            )),
            _ if ready.fingerprint.len() > 256 => Some(format!(
                "the fingerprint has {} bytes, the limit is 256\n  help: give a hash",
                ready.fingerprint.len()
            )),
            _ => None,
        };
        if let Some(reason) = dismissal {
            self.members.remove(&id);
            let effect = Effect::Dismiss {
                member: id,
                reason: reason.clone(),
            };
            return Transition::because(reason, vec![effect]);
        }
        member.ready = Some(ready.clone());
        self.agreed = Some(ready);
        let (here, world) = (self.ready_count(), self.config.world);
        self.why = format!("{here} of {world} ranks are ready");
        if here < world {
            return Transition::because(self.why.clone(), Vec::new());
        }
        self.form()
    }

    pub(super) fn ready_count(&self) -> usize {
        self.members.values().filter(|m| m.ready.is_some()).count()
    }

    /// All seats can be taken: a new generation.
    fn form(&mut self) -> Transition {
        self.generation += 1;
        self.phase = Phase::Running;
        self.progress.restart();
        let by_rank = self.seats();
        for (rank, id) in by_rank.iter().enumerate() {
            if let Some(member) = self.members.get_mut(id) {
                member.seat = Some(rank);
                member.step = self.at.step;
            }
        }
        let (world, start) = (by_rank.len(), self.at);
        self.why = format!(
            "generation {}: {world} of {world} ranks are ready, training starts after step {} at sample {} of epoch {}",
            self.generation, start.step, start.cursor, start.epoch
        );
        let seats: Vec<Seat> = by_rank
            .iter()
            .enumerate()
            .filter_map(|(rank, id)| {
                let info = &self.members.get(id)?.info;
                Some(Seat {
                    rank,
                    member: *id,
                    host: info.host.clone(),
                    pid: info.pid,
                })
            })
            .collect();
        let hosts: Vec<String> = seats.iter().map(|seat| seat.host.clone()).collect();
        let generation = self.generation;
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
                hosts: hosts.clone(),
                start,
            }),
        }));
        Transition::because(self.why.clone(), effects)
    }

    /// Members by rank: the ranks they prefer first, lower ids before higher ones; the others fill
    /// the gaps.
    fn seats(&self) -> Vec<MemberId> {
        let mut seats: Vec<Option<MemberId>> = vec![None; self.config.world];
        let mut rest = Vec::new();
        for (id, member) in &self.members {
            let preferred = member.info.preferred_rank.map(|rank| rank as usize);
            match preferred.and_then(|rank| seats.get_mut(rank)) {
                Some(seat) if seat.is_none() => *seat = Some(*id),
                _ => rest.push(*id),
            }
        }
        let mut rest = rest.into_iter();
        seats
            .into_iter()
            .filter_map(|seat| seat.or_else(|| rest.next()))
            .collect()
    }
}
