//! Random scripts of events, and the invariants that must hold.

mod checks;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{LAPSE, TOTAL, config, info, ready, vote};
use super::*;
use crate::ledger::{self, LedgerEntry};
use crate::protocol::{Ready, Terms, TrainerEvent, Vote};

type Checked = std::result::Result<(), TestCaseError>;

/// What a random script does; members and kinds are picked by index.
#[derive(Clone, Copy, Debug)]
enum ScriptAction {
    Join(Option<u32>),
    /// With other terms; holding nothing, the newest step, or an older one.
    Ready(usize, bool, u8),
    /// All who are not ready say that they are, with what they should hold.
    Meet,
    /// Members join until there are enough, and all meet.
    Fill,
    Heartbeat(usize, MemberState),
    /// All who have a seat vote properly for a step of so many samples.
    Step(u64),
    /// One member casts the vote that is due.
    Vote(usize, u64),
    /// One votes for anything.
    Wild(usize, u64, u32, u64, u64, bool),
    Event(usize, u8, u64),
    /// Rank 0 properly, or anybody so many bytes in this generation or another one.
    Publish(Option<(usize, i64, usize)>),
    /// All say that they are done.
    Leave,
    Gone(usize),
    Wait(u64),
    Drain,
    Shutdown,
}

fn op() -> impl Strategy<Value = ScriptAction> {
    let who = 0usize..5;
    prop_oneof![
        6 => prop::option::of(0u32..4).prop_map(ScriptAction::Join),
        4 => (who.clone(), prop::bool::weighted(0.98), 0u8..4)
            .prop_map(|(m, same, have)| ScriptAction::Ready(m, same, have)),
        12 => Just(ScriptAction::Meet),
        4 => Just(ScriptAction::Fill),
        4 => (who.clone(), 0u8..5).prop_map(|(m, s)| ScriptAction::Heartbeat(m, MemberState::from_u8(s))),
        24 => (1u64..15).prop_map(ScriptAction::Step),
        6 => (who.clone(), 1u64..15).prop_map(|(m, n)| ScriptAction::Vote(m, n)),
        1 => (who.clone(), 0u64..9, 0u32..3, 0u64..20, 0u64..50, any::<bool>())
            .prop_map(|(m, g, e, s, c, f)| ScriptAction::Wild(m, g, e, s, c, f)),
        2 => (who.clone(), 0u8..5, 0u64..8).prop_map(|(m, k, s)| ScriptAction::Event(m, k, s)),
        4 => Just(ScriptAction::Publish(None)),
        1 => (who.clone(), -1i64..2, prop::sample::select(vec![0, 1, 1024, 1025]))
            .prop_map(|wild| ScriptAction::Publish(Some(wild))),
        1 => Just(ScriptAction::Leave),
        2 => who.prop_map(ScriptAction::Gone),
        4 => (0u64..600).prop_map(ScriptAction::Wait),
        1 => Just(ScriptAction::Drain),
        1 => Just(ScriptAction::Shutdown),
    ]
}

/// Replays a script and checks after every event what has to hold at any time.
struct Script {
    run: Membership,
    /// Where the run stood after each step, by step.
    points: Vec<StartPoint>,
    /// The answer to the next search for a checkpoint: an older step, or none at all.
    checkpoint: usize,
    world: usize,
    now: u64,
    ids: Vec<MemberId>,
    ledger: Vec<LedgerEntry>,
    generations: BTreeSet<Generation>,
    published: BTreeSet<Generation>,
    ended: Option<RunOutcome>,
    recovered: bool,
}

/// The members that have voted for the next step.
fn voted(run: &Membership) -> Vec<MemberId> {
    let votes = run.running().map(|r| r.ballot.votes.keys());
    votes.into_iter().flatten().copied().collect()
}

impl Script {
    fn new(world: usize, elastic: bool, min_ranks: usize, checkpoint: usize) -> Self {
        let config = MembershipConfig {
            elastic,
            min_ranks,
            ..config(world)
        };
        Self {
            run: Membership::new(config),
            points: vec![StartPoint::default()],
            checkpoint,
            world,
            now: 0,
            ids: Vec::new(),
            ledger: Vec::new(),
            generations: BTreeSet::new(),
            published: BTreeSet::new(),
            ended: None,
            recovered: false,
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
        let world = self.run.world.max(1);
        let share = crate::order::virtual_shard((cursor_after - from) as usize, seat, world);
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
                .is_some_and(|m| m.seat.is_some() && !voted(&self.run).contains(&member))
            {
                let vote = self.proper(member, samples);
                self.apply(&MembershipEvent::Vote { member, vote })?;
            }
        }
        Ok(())
    }

    /// All say that they are done, as is due.
    fn leave(&mut self) -> Checked {
        let step = self.run.at.step;
        let event = match self.run.running().and_then(|r| r.drained_at) {
            Some(step) => TrainerEvent::Left { step },
            None => TrainerEvent::Finished {
                step,
                weights_blake3: None,
            },
        };
        for member in self.ids.clone() {
            self.apply(&MembershipEvent::Trainer {
                member,
                event: event.clone(),
            })?;
        }
        Ok(())
    }

    fn meet(&mut self) -> Checked {
        let held = self.points.last().copied();
        for member in self.ids.clone() {
            let Some(m) = self.run.members.get(&member) else {
                continue;
            };
            if m.ready.is_none() && m.done == Done::No {
                let ready = Ready {
                    have: m.last_seat.and(held),
                    ..ready()
                };
                self.apply(&MembershipEvent::Ready { member, ready })?;
            }
        }
        Ok(())
    }

    fn play(&mut self, op: ScriptAction) -> Checked {
        let event = match op {
            ScriptAction::Join(preferred_rank) => MembershipEvent::Join {
                ticket: 1,
                info: info(
                    self.ids.len() as u32,
                    preferred_rank.map(|r| r % self.world as u32),
                ),
            },
            ScriptAction::Ready(who, same, have) => {
                let point = match have {
                    0 => None,
                    1 | 2 => self.points.last().copied(),
                    _ => self.points.get(self.points.len() / 2).copied(),
                };
                MembershipEvent::Ready {
                    member: self.id(who),
                    ready: Ready {
                        terms: Terms {
                            samples_per_epoch: if same { TOTAL } else { TOTAL + 1 },
                            ..ready().terms
                        },
                        have: point,
                        gave_up: None,
                    },
                }
            }
            ScriptAction::Meet => return self.meet(),
            ScriptAction::Fill => {
                while self.run.members.len() < self.world && self.ended.is_none() {
                    let info = info(self.ids.len() as u32, None);
                    self.apply(&MembershipEvent::Join { ticket: 1, info })?;
                }
                return self.meet();
            }
            ScriptAction::Heartbeat(who, state) => MembershipEvent::Heartbeat {
                member: self.id(who),
                state,
                step: 0,
                samples_per_s: 1.0,
                beat: self.now,
            },
            ScriptAction::Step(samples) => return self.step(samples),
            ScriptAction::Vote(who, samples) => MembershipEvent::Vote {
                member: self.id(who),
                vote: self.proper(self.id(who), samples),
            },
            ScriptAction::Wild(who, generation, epoch, step, cursor_after, finite) => {
                MembershipEvent::Vote {
                    member: self.id(who),
                    vote: Vote {
                        epoch,
                        finite,
                        ..vote(generation, step, cursor_after, 3)
                    },
                }
            }
            ScriptAction::Event(who, kind, step) => MembershipEvent::Trainer {
                member: self.id(who),
                event: match kind {
                    0 => TrainerEvent::Finished {
                        step: self.run.at.step,
                        weights_blake3: None,
                    },
                    1 => TrainerEvent::Left {
                        step: self
                            .run
                            .running()
                            .and_then(|r| r.drained_at)
                            .unwrap_or(step),
                    },
                    2 => TrainerEvent::EpochEnd {
                        epoch: 0,
                        metrics: [("a".to_owned(), f64::NAN)].into(),
                        undefined: None,
                    },
                    3 => TrainerEvent::CheckpointSaved(CheckpointInfo {
                        step,
                        path: "p".to_owned(),
                        weights_blake3: "w".to_owned(),
                        took_ms: 1,
                    }),
                    _ => TrainerEvent::Failed {
                        reason: "out of memory".to_owned(),
                    },
                },
            },
            ScriptAction::Publish(wild) => {
                let first = self.run.members.iter().find(|(_, m)| m.seat == Some(0));
                let first = first
                    .map(|(id, _)| *id)
                    .filter(|_| self.run.running().is_none_or(|r| !r.published));
                let (member, later, len) = match (wild, first) {
                    (Some((who, later, len)), _) => (self.id(who), later, len),
                    (None, Some(first)) => (first, 0, 128),
                    (None, None) => return Ok(()),
                };
                MembershipEvent::Publish {
                    member,
                    generation: self.run.generation.saturating_add_signed(later),
                    bytes: vec![1; len],
                }
            }
            ScriptAction::Leave => return self.leave(),
            ScriptAction::Gone(who) => MembershipEvent::Disconnected {
                member: self.id(who),
                detail: "closed".to_owned(),
            },
            ScriptAction::Wait(ms) => {
                self.now += ms;
                MembershipEvent::Tick
            }
            ScriptAction::Drain => MembershipEvent::Drain {
                reason: "drain".to_owned(),
            },
            ScriptAction::Shutdown => MembershipEvent::Shutdown {
                reason: "stop".to_owned(),
            },
        };
        self.apply(&event)
    }

    fn apply(&mut self, event: &MembershipEvent) -> Checked {
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
        let (mut journaled, mut searched) = (None, false);
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
                    let world = seats.len();
                    let sizes = crate::order::allowed_world_sizes(self.world);
                    prop_assert!(sizes.contains(&world), "{world} ranks");
                    prop_assert!(before.config.elastic || world == self.world);
                    let ranks: Vec<usize> = seats.iter().map(|s| s.rank).collect();
                    prop_assert_eq!(ranks, (0..world).collect::<Vec<_>>());
                    let members: BTreeSet<MemberId> = seats.iter().map(|s| s.member).collect();
                    prop_assert_eq!(members.len(), world, "two ranks share a member");
                    journaled = Some(*generation);
                }
                Effect::Send { to, reply } => self.check_send(&before, to, reply, journaled)?,
                Effect::Ledger(entry) => {
                    self.ledger.push(*entry);
                    match entry {
                        LedgerEntry::Start { start, .. } => {
                            prop_assert!(self.points.contains(start), "nobody was ever there");
                            self.points.truncate(start.step as usize + 1);
                        }
                        LedgerEntry::Commit(_) => self.points.push(self.run.at),
                    }
                }
                Effect::Journal(JournalEntry::Recovered { .. }) => self.recovered = true,
                Effect::FindCheckpoint => searched = true,
                Effect::End(outcome) => self.ended = Some(outcome.clone()),
                _ => {}
            }
        }
        self.check_dead(&before, event)?;
        self.check_nobody_waits_for_nothing()?;
        self.check_ledger()?;
        let status = self.run.status(self.now);
        prop_assert_eq!(status.state.is_over(), self.ended.is_some());
        prop_assert!(crate::codec::encode(&Reply::StatusReport(Box::new(status))).is_ok());
        if searched {
            let found = self.points.get(self.checkpoint.min(self.points.len() - 1));
            let found = found.copied().ok_or("none".to_owned());
            self.apply(&MembershipEvent::Checkpoint(found))?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_scripts_keep_the_promises(
        world in prop::sample::select(vec![1usize, 2, 4]),
        elastic in any::<bool>(),
        min_ranks in 1usize..3,
        checkpoint in 0usize..20,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut script = Script::new(world, elastic, min_ranks.min(world), checkpoint);
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
    let worlds = prop::sample::select(vec![1usize, 2, 4]);
    let strategy = (worlds, any::<bool>(), prop::collection::vec(op(), 1..200));
    let mut seen = BTreeSet::new();
    let (mut most_steps, mut most_generations, mut recovered, mut published) = (0, 0, 0, 0);
    for _ in 0..600 {
        let (world, elastic, ops) = strategy.new_tree(&mut runner).unwrap().current();
        let mut script = Script::new(world, elastic, 1, 3);
        for op in ops {
            script.play(op).unwrap();
        }
        most_steps = most_steps.max(script.run.at.step);
        most_generations = most_generations.max(script.generations.len());
        recovered += usize::from(script.recovered);
        published += script.published.len();
        seen.insert(script.ended.map_or("open", |outcome| outcome.name()));
    }
    let all = BTreeSet::from(["drained", "failed", "finished", "open", "stopped"]);
    assert_eq!(seen, all);
    assert!(most_steps > 10, "{most_steps}");
    assert!(most_generations > 3, "{most_generations}");
    assert!(recovered > 20, "{recovered}");
    assert!(published > 20, "{published}");
}
