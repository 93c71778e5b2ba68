//! Random scripts of events, and what has to hold whatever happens.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{LAPSE, TOTAL, config, info, ready, vote};
use super::*;
use crate::ledger::{self, LedgerEntry};
use crate::protocol::TrainerEvent;

type Checked = std::result::Result<(), TestCaseError>;

/// What a random script does; members and kinds are picked by index.
#[derive(Clone, Copy, Debug)]
enum Op {
    Join(Option<u32>),
    Ready(usize, bool),
    Heartbeat(usize, MemberState),
    /// All who have a seat vote properly for a step of so many samples.
    Step(u64),
    /// One votes properly.
    Vote(usize, u64),
    /// One votes for anything.
    Wild(usize, u64, u32, u64, u64, bool),
    Event(usize, u8, u64),
    /// All say that they are done.
    Leave,
    Gone(usize),
    Wait(u64),
    Drain,
    Shutdown,
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0usize..5;
    prop_oneof![
        6 => prop::option::of(0u32..4).prop_map(Op::Join),
        8 => (who.clone(), prop::bool::weighted(0.98)).prop_map(|(m, same)| Op::Ready(m, same)),
        4 => (who.clone(), 0u8..5).prop_map(|(m, s)| Op::Heartbeat(m, MemberState::from_u8(s))),
        24 => (1u64..15).prop_map(Op::Step),
        6 => (who.clone(), 1u64..15).prop_map(|(m, n)| Op::Vote(m, n)),
        1 => (who.clone(), 0u64..9, 0u32..3, 0u64..20, 0u64..50, any::<bool>())
            .prop_map(|(m, g, e, s, c, f)| Op::Wild(m, g, e, s, c, f)),
        2 => (who.clone(), 0u8..5, 0u64..8).prop_map(|(m, k, s)| Op::Event(m, k, s)),
        1 => Just(Op::Leave),
        1 => who.prop_map(Op::Gone),
        4 => (0u64..600).prop_map(Op::Wait),
        1 => Just(Op::Drain),
        1 => Just(Op::Shutdown),
    ]
}

/// Replays a script and checks after every event what has to hold at any time.
struct Script {
    run: Membership,
    world: usize,
    now: u64,
    ids: Vec<MemberId>,
    ledger: Vec<LedgerEntry>,
    generations: BTreeSet<Generation>,
    ended: Option<Outcome>,
}

impl Script {
    fn new(world: usize) -> Self {
        Self {
            run: Membership::new(config(world)),
            world,
            now: 0,
            ids: Vec::new(),
            ledger: Vec::new(),
            generations: BTreeSet::new(),
            ended: None,
        }
    }

    fn id(&self, index: usize) -> MemberId {
        match self.ids.len() {
            0 => MemberId(99),
            n => self.ids[index % n],
        }
    }

    /// The vote that goes on from here with `samples` samples, this member's share of them.
    fn proper(&self, member: MemberId, samples: u64) -> Vote {
        let at = self.run.at;
        let (epoch, from) = match at.cursor == TOTAL {
            true => (at.epoch + 1, 0),
            false => (at.epoch, at.cursor),
        };
        let cursor_after = (from + samples).min(TOTAL);
        let seat = self
            .run
            .members
            .get(&member)
            .and_then(|m| m.seat)
            .unwrap_or(0);
        let share = crate::order::virtual_shard((cursor_after - from) as usize, seat, self.world);
        Vote {
            epoch,
            ..vote(
                self.run.generation,
                at.step + 1,
                cursor_after,
                share.len() as u64,
            )
        }
    }

    /// All who have a seat and did not vote yet, vote properly.
    fn step(&mut self, samples: u64) -> Checked {
        for member in self.ids.clone() {
            if self
                .run
                .members
                .get(&member)
                .is_some_and(|m| m.seat.is_some() && m.vote.is_none())
            {
                let vote = self.proper(member, samples);
                self.apply(&Event::Vote { member, vote })?;
            }
        }
        Ok(())
    }

    /// All say that they are done, as is due.
    fn leave(&mut self) -> Checked {
        let step = self.run.at.step;
        let event = match self.run.drained_at {
            Some(step) => TrainerEvent::Left { step },
            None => TrainerEvent::Finished {
                step,
                weights_blake3: None,
            },
        };
        for member in self.ids.clone() {
            self.apply(&Event::Trainer {
                member,
                event: event.clone(),
            })?;
        }
        Ok(())
    }

    fn play(&mut self, op: Op) -> Checked {
        let event = match op {
            Op::Join(preferred_rank) => Event::Join {
                ticket: 1,
                info: info(
                    self.ids.len() as u32,
                    preferred_rank.map(|r| r % self.world as u32),
                ),
            },
            Op::Ready(who, same) => Event::Ready {
                member: self.id(who),
                ready: Ready {
                    samples_per_epoch: if same { TOTAL } else { TOTAL + 1 },
                    ..ready()
                },
            },
            Op::Heartbeat(who, state) => Event::Heartbeat {
                member: self.id(who),
                state,
                step: 0,
                samples_per_s: 1.0,
            },
            Op::Step(samples) => return self.step(samples),
            Op::Vote(who, samples) => Event::Vote {
                member: self.id(who),
                vote: self.proper(self.id(who), samples),
            },
            Op::Wild(who, generation, epoch, step, cursor_after, finite) => Event::Vote {
                member: self.id(who),
                vote: Vote {
                    epoch,
                    finite,
                    ..vote(generation, step, cursor_after, 3)
                },
            },
            Op::Event(who, kind, step) => Event::Trainer {
                member: self.id(who),
                event: match kind {
                    0 => TrainerEvent::Finished {
                        step: self.run.at.step,
                        weights_blake3: None,
                    },
                    1 => TrainerEvent::Left {
                        step: self.run.drained_at.unwrap_or(step),
                    },
                    2 => TrainerEvent::EpochEnd {
                        epoch: 0,
                        metrics: [("a".to_owned(), f64::NAN)].into(),
                    },
                    3 => TrainerEvent::CheckpointSaved(CheckpointInfo {
                        step,
                        path: "p".to_owned(),
                        weights_blake3: "w".to_owned(),
                    }),
                    _ => TrainerEvent::Failed {
                        reason: "out of memory".to_owned(),
                    },
                },
            },
            Op::Leave => return self.leave(),
            Op::Gone(who) => Event::Disconnected {
                member: self.id(who),
                detail: "closed".to_owned(),
            },
            Op::Wait(ms) => {
                self.now += ms;
                Event::Tick
            }
            Op::Drain => Event::Drain {
                reason: "drain".to_owned(),
            },
            Op::Shutdown => Event::Shutdown {
                reason: "stop".to_owned(),
            },
        };
        self.apply(&event)
    }

    fn apply(&mut self, event: &Event) -> Checked {
        let before = self.run.clone();
        let transition = self.run.apply(event.clone(), self.now);
        let effects = &transition.effects;
        prop_assert!(
            effects.is_empty() || transition.reason.as_ref().is_some_and(|r| !r.is_empty())
        );
        if self.ended.is_some() {
            let refused = effects.iter().all(|e| matches!(e, Effect::Refuse { .. }));
            prop_assert!(refused, "after the end: {:?}", transition);
            return Ok(());
        }
        let mut journaled = None;
        for effect in effects {
            match effect {
                Effect::Admit { member, .. } => {
                    prop_assert!(!self.ids.contains(member), "id given twice");
                    self.ids.push(*member);
                }
                Effect::Journal(JournalEntry::Generation {
                    generation, seats, ..
                }) => {
                    prop_assert!(*generation > before.config.last_generation);
                    prop_assert!(self.generations.insert(*generation), "generation reused");
                    let ranks: Vec<usize> = seats.iter().map(|s| s.rank).collect();
                    prop_assert_eq!(ranks, (0..self.world).collect::<Vec<_>>());
                    let members: BTreeSet<MemberId> = seats.iter().map(|s| s.member).collect();
                    prop_assert_eq!(members.len(), self.world, "two ranks share a member");
                    journaled = Some(*generation);
                }
                Effect::Send { to, reply } => self.check_send(&before, to, reply, journaled)?,
                Effect::Ledger(entry) => self.ledger.push(*entry),
                Effect::End(outcome) => self.ended = Some(outcome.clone()),
                _ => {}
            }
        }
        self.check_dead(&before, event)?;
        self.check_ledger()?;
        let status = self.run.status(self.now);
        prop_assert_eq!(status.state.is_over(), self.ended.is_some());
        prop_assert!(crate::codec::encode(&Reply::StatusReport(Box::new(status))).is_ok());
        Ok(())
    }

    fn check_send(
        &self,
        before: &Membership,
        to: &[MemberId],
        reply: &Reply,
        journaled: Option<Generation>,
    ) -> Checked {
        match reply {
            Reply::Assign(a) => {
                prop_assert_eq!(
                    Some(a.generation),
                    journaled,
                    "announced before it was journaled"
                );
            }
            Reply::Commit { step, .. } => {
                prop_assert_eq!(to.len(), self.world);
                prop_assert_eq!(*step, before.at.step + 1);
                let newest = self.ledger.last();
                let written = matches!(newest, Some(LedgerEntry::Commit(c)) if c.step == *step);
                prop_assert!(written, "answered before the ledger was written");
                // Everyone but the last voter had voted before.
                let voted = before.members.values().filter(|m| m.vote.is_some()).count();
                prop_assert_eq!(voted + 1, self.world);
            }
            Reply::Abort { .. } => {
                // All who still train, the one at fault included.
                let open = before.members.iter().filter(|(_, m)| m.done == Done::No);
                let open: Vec<MemberId> = open.map(|(id, _)| *id).collect();
                prop_assert_eq!(to, open);
            }
            other => prop_assert!(false, "unexpected {:?}", other),
        }
        Ok(())
    }

    /// A dead member never blocks the others.
    fn check_dead(&self, before: &Membership, event: &Event) -> Checked {
        let seated = |id: &MemberId| {
            before
                .members
                .get(id)
                .is_some_and(|m| m.seat.is_some() && m.done == Done::No)
        };
        match event {
            Event::Disconnected { member, .. } if seated(member) => {
                prop_assert!(self.ended.is_some())
            }
            Event::Tick
                if before
                    .last_tick_ms
                    .is_some_and(|t| self.now - t <= LAPSE / 2) =>
            {
                let silent = before
                    .members
                    .iter()
                    .any(|(id, m)| seated(id) && self.now - m.last_seen_ms > LAPSE);
                prop_assert!(!silent || self.ended.is_some());
            }
            _ => {}
        }
        Ok(())
    }

    /// Committed ranges follow on each other without a gap or a repetition.
    fn check_ledger(&self) -> Checked {
        let (mut epoch, mut cursor) = (0, 0);
        for (index, step) in ledger::history(&self.ledger).iter().enumerate() {
            prop_assert_eq!(step.step, index as u64 + 1);
            if step.epoch != epoch {
                prop_assert_eq!(cursor, TOTAL);
                prop_assert_eq!(step.epoch, epoch + 1);
                (epoch, cursor) = (step.epoch, 0);
            }
            prop_assert_eq!(step.cursor_start, cursor);
            prop_assert!(step.cursor_end > cursor && step.cursor_end <= TOTAL);
            cursor = step.cursor_end;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_scripts_keep_the_promises(world in 1usize..5, ops in prop::collection::vec(op(), 1..120)) {
        let mut script = Script::new(world);
        for op in ops {
            script.play(op)?;
        }
    }
}

/// The property test would prove little if its scripts never got anywhere.
#[test]
fn random_scripts_reach_all_ends() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = (1usize..5, prop::collection::vec(op(), 1..120));
    let mut seen = BTreeSet::new();
    let mut most_steps = 0;
    for _ in 0..600 {
        let (world, ops) = strategy.new_tree(&mut runner).unwrap().current();
        let mut script = Script::new(world);
        for op in ops {
            script.play(op).unwrap();
        }
        most_steps = most_steps.max(script.run.at.step);
        seen.insert(script.ended.map_or("open", |outcome| outcome.name()));
    }
    let all = BTreeSet::from(["drained", "failed", "finished", "open", "stopped"]);
    assert_eq!(seen, all);
    assert!(most_steps > 10, "{most_steps}");
}
