//! Single situations.

use super::*;
use crate::ledger::{CommittedStep, LedgerEntry};
use crate::protocol::{Next, Seated, Terms, TrainerEvent};

pub(super) const LAPSE: u64 = 1000;
pub(super) const TOTAL: u64 = 40;
pub(super) const WATCHDOG: u64 = 3000;
pub(super) const JOIN: u64 = 60_000;
pub(super) const REJOIN: u64 = 5000;

pub(super) fn config(world: usize) -> Config {
    Config {
        world,
        virtual_shards: world,
        elastic: false,
        min_ranks: 1,
        epochs: 3,
        heartbeat_lapse_ms: LAPSE,
        watchdog_ms: WATCHDOG,
        watchdog_steps: 10,
        join_ms: JOIN,
        rejoin_ms: REJOIN,
        deadline_ms: None,
        start: StartPoint::default(),
        newest: StartPoint::default(),
        absent: BTreeMap::new(),
        last_generation: 6,
        first_member: MemberId((2 << 32) + 1),
        summary: BTreeMap::new(),
    }
}

pub(super) fn info(pid: u32, preferred_rank: Option<u32>) -> TrainerInfo {
    TrainerInfo {
        member: None,
        host: format!("node{pid}"),
        machine: format!("node{pid}/{pid}"),
        pid,
        preferred_rank,
    }
}

pub(super) fn ready() -> Ready {
    Ready {
        terms: Terms {
            samples_per_epoch: TOTAL,
            fingerprint: "f".to_owned(),
            elastic: true,
        },
        have: None,
        gave_up: None,
    }
}

pub(super) fn vote(generation: Generation, step: u64, cursor_after: u64, samples: u64) -> Vote {
    Vote {
        generation,
        epoch: 0,
        step,
        cursor_after,
        loss: 0.5,
        finite: true,
        samples,
        step_ms: 10.0,
    }
}

/// A run whose ranks are all seated, and their ids by rank.
fn running(world: usize) -> (Membership, Vec<MemberId>) {
    running_as(config(world))
}

fn running_as(config: Config) -> (Membership, Vec<MemberId>) {
    let world = config.world;
    let mut run = Membership::new(config);
    let mut assigned = Vec::new();
    for pid in 0..world {
        let join = Event::Join {
            ticket: pid as u64,
            info: info(pid as u32, None),
        };
        let Some(Effect::Admit { member, .. }) = run.apply(join, 0).effects.pop() else {
            panic!("not admitted");
        };
        let ready = Event::Ready {
            member,
            ready: ready(),
        };
        assigned.push((member, run.apply(ready, 0)));
    }
    let (_, last) = &assigned[world - 1];
    assert!(matches!(
        last.effects[0],
        Effect::Journal(JournalEntry::Generation { generation: 7, .. })
    ));
    (run, assigned.into_iter().map(|(id, _)| id).collect())
}

fn cast(run: &mut Membership, member: MemberId, vote: Vote) -> Transition {
    run.apply(Event::Vote { member, vote }, 0)
}

fn commit_of(transition: &Transition) -> Option<(u64, bool)> {
    transition.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            reply: Reply::Commit { step, next, .. },
            ..
        } => Some((*step, *next == Next::Leave)),
        _ => None,
    })
}

fn failure(transition: &Transition) -> &str {
    let ends = transition.effects.last();
    let Some(Effect::End(Outcome::Failed { reason })) = ends else {
        panic!("no failure: {transition:?}");
    };
    reason
}

#[test]
fn seats_follow_preferences_then_ids() {
    let mut run = Membership::new(config(4));
    let preferences = [Some(2), None, Some(2), Some(0)];
    let mut last = Transition::none();
    for (pid, preferred) in preferences.into_iter().enumerate() {
        let join = Event::Join {
            ticket: 0,
            info: info(pid as u32, preferred),
        };
        run.apply(join, 0);
    }
    let ids: Vec<MemberId> = run.members.keys().copied().collect();
    for member in &ids {
        last = run.apply(
            Event::Ready {
                member: *member,
                ready: ready(),
            },
            0,
        );
    }
    let Effect::Journal(JournalEntry::Generation { seats, .. }) = &last.effects[0] else {
        panic!("{last:?}");
    };
    let pids: Vec<u32> = seats.iter().map(|seat| seat.pid).collect();
    // 0 keeps rank 2, 3 gets rank 0; 1 and 2 fill the gaps in the order of their ids.
    assert_eq!(pids, [3, 1, 0, 2]);
    let assigned: Vec<(MemberId, usize)> = last.effects[2..]
        .iter()
        .map(|effect| match effect {
            Effect::Send {
                to,
                reply: Reply::Assign(a),
            } => {
                let machine = |rank, name: &str| Seated {
                    rank,
                    machine: name.to_owned(),
                };
                assert_eq!(a.machines, [machine(0, "node3/3"), machine(1, "node1/1")]);
                assert_eq!((a.source, a.share, a.last), (None, true, false));
                (to[0], a.rank)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        assigned,
        [(ids[3], 0), (ids[1], 1), (ids[0], 2), (ids[2], 3)]
    );
}

#[test]
fn a_step_needs_every_vote_and_the_loss_is_weighted() {
    let (mut run, ids) = running(2);
    let mut first = vote(7, 1, 8, 6);
    first.loss = 1.0;
    assert_eq!(cast(&mut run, ids[0], first.clone()), Transition::none());
    // The same vote again counts once.
    assert_eq!(cast(&mut run, ids[0], first), Transition::none());
    let mut second = vote(7, 1, 8, 2);
    second.loss = 3.0;
    let done = cast(&mut run, ids[1], second);
    assert_eq!(
        done.effects[0],
        Effect::Ledger(LedgerEntry::Commit(CommittedStep {
            generation: 7,
            epoch: 0,
            step: 1,
            cursor_start: 0,
            cursor_end: 8,
        }))
    );
    assert_eq!(commit_of(&done), Some((1, false)));
    let status = run.status(0);
    assert_eq!((status.step, status.cursor, status.loss), (1, 8, Some(1.5)));
    assert_eq!(status.ranks[0].samples_per_s, 600.0);
    // The next step needs every vote again.
    let next = vote(7, 2, 10, 1);
    assert_eq!(cast(&mut run, ids[1], next.clone()), Transition::none());
    assert_eq!(commit_of(&cast(&mut run, ids[0], next)), Some((2, false)));
}

#[test]
fn votes_that_differ_fail_the_run_with_the_numbers() {
    let cases: [(Vote, &str); 7] = [
        (
            vote(6, 1, 8, 4),
            "voted in generation 6, the run is in generation 7",
        ),
        (vote(7, 2, 8, 4), "voted for step 2, the run is at step 1"),
        (vote(7, 1, 9, 4), "up to 9 of epoch 0, rank 0"),
        (vote(7, 1, 41, 4), "samples 0..41 of epoch 0, which has 40"),
        (vote(7, 1, 8, 5), "trained on 9 samples, the range 0..8"),
        (
            Vote {
                epoch: 1,
                ..vote(7, 1, 8, 4)
            },
            "epoch 1 while 0 of 40 samples of epoch 0",
        ),
        (
            Vote {
                finite: false,
                ..vote(7, 1, 8, 4)
            },
            "not finite in step 1",
        ),
    ];
    for (bad, expected) in cases {
        let (mut run, ids) = running(2);
        cast(&mut run, ids[0], vote(7, 1, 8, 4));
        let transition = cast(&mut run, ids[1], bad);
        let reason = failure(&transition);
        assert!(reason.contains(expected), "{reason}");
        let told = transition.effects.iter().any(|effect| {
            matches!(effect, Effect::Send { to, reply: Reply::Abort { .. } } if *to == ids)
        });
        assert!(told, "{transition:?}");
    }
}

#[test]
fn the_next_epoch_starts_when_this_one_is_through() {
    let (mut run, ids) = running(1);
    assert_eq!(
        commit_of(&cast(&mut run, ids[0], vote(7, 1, TOTAL, TOTAL))),
        Some((1, false))
    );
    let next = Vote {
        epoch: 1,
        ..vote(7, 2, 8, 8)
    };
    assert_eq!(commit_of(&cast(&mut run, ids[0], next)), Some((2, false)));
    let skipped = Vote {
        epoch: 2,
        ..vote(7, 3, 8, 8)
    };
    assert!(failure(&cast(&mut run, ids[0], skipped)).contains("8 of 40 samples of epoch 1"));
}

#[test]
fn a_drain_is_the_same_step_for_all() {
    let (mut run, ids) = running(2);
    cast(&mut run, ids[0], vote(7, 1, 8, 4));
    let noted = run.apply(
        Event::Drain {
            reason: "SIGTERM".to_owned(),
        },
        0,
    );
    assert_eq!(
        noted.reason.as_deref(),
        Some("step 1 will be the last one: SIGTERM")
    );
    assert_eq!(run.status(0).state, crate::status::RunState::Draining);
    assert_eq!(
        commit_of(&cast(&mut run, ids[1], vote(7, 1, 8, 4))),
        Some((1, true))
    );
    let left = |member| Event::Trainer {
        member,
        event: TrainerEvent::Left { step: 1 },
    };
    assert!(run.apply(left(ids[0]), 0).effects.is_empty());
    let gone = Event::Disconnected {
        member: ids[0],
        detail: String::new(),
    };
    assert_eq!(run.apply(gone, 0), Transition::none());
    let end = run.apply(left(ids[1]), 0);
    assert_eq!(
        end.effects.last(),
        Some(&Effect::End(Outcome::Drained { step: 1 }))
    );
}

#[test]
fn nobody_may_vote_or_vanish_after_the_last_step() {
    let drained = || {
        let (mut run, ids) = running(1);
        run.apply(
            Event::Drain {
                reason: "x".to_owned(),
            },
            0,
        );
        cast(&mut run, ids[0], vote(7, 1, 8, 8));
        (run, ids[0])
    };
    let (mut run, id) = drained();
    assert!(
        failure(&cast(&mut run, id, vote(7, 2, 16, 8))).contains("step 1 was agreed as the last")
    );
    let (mut run, member) = drained();
    let gone = Event::Disconnected {
        member,
        detail: "it closed".to_owned(),
    };
    assert!(failure(&run.apply(gone, 0)).contains("its checkpoint may be missing"));
}

#[test]
fn a_lost_rank_is_named() {
    let (mut run, ids) = running(2);
    cast(&mut run, ids[0], vote(7, 1, 8, 4));
    cast(&mut run, ids[1], vote(7, 1, 8, 4));
    let gone = Event::Disconnected {
        member: ids[1],
        detail: "it closed the connection".to_owned(),
    };
    let transition = run.apply(gone, 5);
    let expected = "rank 1 (host node1, pid 1, last step 1) is gone while the run was at step 1";
    assert!(failure(&transition).starts_with(expected), "{transition:?}");
}

#[test]
fn a_silent_rank_is_lost_but_not_while_the_coordinator_was_away() {
    let (mut run, ids) = running(2);
    let alive = |member| Event::Heartbeat {
        member,
        state: MemberState::Training,
        step: 0,
        samples_per_s: 0.0,
        beat: 0,
    };
    for now in (0..=LAPSE).step_by(100) {
        run.apply(alive(ids[0]), now);
        assert_eq!(run.apply(Event::Tick, now), Transition::none(), "at {now}");
    }
    // The coordinator stands still for a minute; that is not held against anyone.
    let back = LAPSE + 60_000;
    let away = run.apply(Event::Tick, back);
    assert_eq!(
        away.reason.as_deref(),
        Some("the coordinator was away for 60000 ms")
    );
    run.apply(alive(ids[0]), back + 100);
    let transition = run.apply(Event::Tick, back + 100);
    let expected = "rank 1 (host node1, pid 1, last step 0) was not heard of for 1100 ms, the limit is 1000 ms";
    assert!(failure(&transition).starts_with(expected), "{transition:?}");
}

#[test]
fn trainers_that_do_not_fit_are_told() {
    let mut run = Membership::new(config(2));
    let join = |pid, rank| Event::Join {
        ticket: 9,
        info: info(pid, rank),
    };
    let refusal = |transition: Transition| match transition.effects.as_slice() {
        [Effect::Refuse { ticket: 9, reason }] => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(refusal(run.apply(join(1, Some(2)), 0)).contains("rank 2 does not exist among 2"));
    run.apply(join(1, None), 0);
    run.apply(join(2, None), 0);
    assert!(refusal(run.apply(join(3, None), 0)).contains("2 of 2 members are here"));
    let ids: Vec<MemberId> = run.members.keys().copied().collect();
    let say = |member, samples_per_epoch| Event::Ready {
        member,
        ready: Ready {
            terms: Terms {
                samples_per_epoch,
                ..ready().terms
            },
            ..ready()
        },
    };
    run.apply(say(ids[0], 40), 0);
    let other = run.apply(say(ids[1], 41), 0);
    let [Effect::Dismiss { member, reason }] = other.effects.as_slice() else {
        panic!("{other:?}");
    };
    assert_eq!(*member, ids[1]);
    assert!(
        reason.contains("41 samples per epoch") && reason.contains("help:"),
        "{reason}"
    );
    // Its seat is free for another one, under a new id.
    let next = run.apply(join(4, None), 0);
    let [Effect::Admit { member, .. }] = next.effects.as_slice() else {
        panic!("{next:?}");
    };
    assert!(!ids.contains(member));
    assert_eq!(run.apply(say(*member, 40), 0).effects.len(), 4);
}

#[test]
fn ranks_that_end_with_other_weights_are_a_failure() {
    let (mut run, ids) = running(2);
    let finished = |member, weights: &str| Event::Trainer {
        member,
        event: TrainerEvent::Finished {
            step: 0,
            weights_blake3: Some(weights.to_owned()),
        },
    };
    assert!(run.apply(finished(ids[0], "aa"), 0).effects.is_empty());
    let reason = run.apply(finished(ids[1], "bb"), 0);
    assert!(
        failure(&reason).contains("different weights: rank 1"),
        "{reason:?}"
    );
}

// Elastic runs.

fn elastic(world: usize) -> Config {
    Config {
        elastic: true,
        ..config(world)
    }
}

fn gone(run: &mut Membership, member: MemberId, now_ms: u64) -> Transition {
    let detail = "it closed the connection".to_owned();
    run.apply(Event::Disconnected { member, detail }, now_ms)
}

/// Says that it is ready and what it holds; the assignments that follow, by member.
fn meets(
    run: &mut Membership,
    member: MemberId,
    have: Option<StartPoint>,
) -> (Transition, Vec<(MemberId, crate::protocol::Assignment)>) {
    let ready = Ready { have, ..ready() };
    let transition = run.apply(Event::Ready { member, ready }, 0);
    let assigned = transition.effects.iter().filter_map(|effect| match effect {
        Effect::Send {
            to,
            reply: Reply::Assign(a),
        } => Some((to[0], a.clone())),
        _ => None,
    });
    let assigned = assigned.collect();
    (transition, assigned)
}

fn point(step: u64, cursor: u64) -> StartPoint {
    StartPoint {
        epoch: 0,
        step,
        cursor,
    }
}

fn joins(run: &mut Membership, pid: u32) -> MemberId {
    let join = Event::Join {
        ticket: 0,
        info: info(pid, None),
    };
    match run.apply(join, 0).effects.pop() {
        Some(Effect::Admit { member, .. }) => member,
        other => panic!("{other:?}"),
    }
}

#[test]
fn survivors_go_on_from_the_newest_step_that_one_of_them_holds() {
    let (mut run, ids) = running_as(elastic(4));
    for id in &ids {
        cast(&mut run, *id, vote(7, 1, 8, 2));
    }
    cast(&mut run, ids[0], vote(7, 2, 16, 2));
    let lost = gone(&mut run, ids[2], 5);
    assert!(matches!(
        &lost.effects[0],
        Effect::Send { to, reply: Reply::Abort { cause: Cause::Regroup, generation: 7, .. } }
            if *to == [ids[0], ids[1], ids[3]]
    ));
    assert!(matches!(
        &lost.effects[1],
        Effect::Journal(JournalEntry::Incident {
            generation: 7,
            step: 1,
            ..
        })
    ));
    // A vote that crossed the abort counts for nothing.
    assert_eq!(
        cast(&mut run, ids[1], vote(7, 2, 16, 2)),
        Transition::none()
    );
    // Rank 1 did not hear of the commit any more.
    assert!(meets(&mut run, ids[1], Some(point(0, 0))).1.is_empty());
    assert!(meets(&mut run, ids[3], Some(point(1, 8))).1.is_empty());
    let (_, assigned) = meets(&mut run, ids[0], Some(point(1, 8)));
    let seats: Vec<_> = assigned
        .iter()
        .map(|(id, a)| {
            (
                *id,
                a.generation,
                a.rank,
                a.world,
                a.start,
                a.source,
                a.share,
            )
        })
        .collect();
    // Three ranks cannot share four virtual shards: the two who hold the state do.
    let start = point(1, 8);
    assert_eq!(
        seats,
        [
            (ids[0], 8, 0, 2, start, Some(0), false),
            (ids[3], 8, 1, 2, start, Some(0), false)
        ]
    );
    // A replacement makes four: they meet after the next step.
    let new = joins(&mut run, 9);
    let (noted, assigned) = meets(&mut run, new, None);
    assert!(assigned.is_empty() && noted.reason.unwrap().contains("4 ranks instead of 2"));
    cast(&mut run, ids[0], vote(8, 2, 16, 4));
    let commit = cast(&mut run, ids[3], vote(8, 2, 16, 4));
    let next = commit.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            to,
            reply: Reply::Commit { next, .. },
        } => Some((to.clone(), *next)),
        _ => None,
    });
    assert_eq!(next, Some((vec![ids[0], ids[3]], Next::Regroup)));
    assert!(commit.effects.iter().any(|effect| matches!(
        effect,
        Effect::Journal(JournalEntry::Recovered {
            generation: 8,
            step: 2,
            steps_lost: 0,
            ..
        })
    )));
    assert!(meets(&mut run, ids[0], Some(point(2, 16))).1.is_empty());
    let (_, assigned) = meets(&mut run, ids[3], Some(point(2, 16)));
    assert_eq!(assigned.len(), 4);
    assert!(assigned.iter().all(|(_, a)| a.share && a.source == Some(0)));
}

#[test]
fn without_a_survivor_the_newest_checkpoint_is_looked_for() {
    let (mut run, ids) = running_as(elastic(1));
    cast(&mut run, ids[0], vote(7, 1, 8, 8));
    cast(&mut run, ids[0], vote(7, 2, 16, 8));
    gone(&mut run, ids[0], 5);
    let new = joins(&mut run, 9);
    let (looking, _) = meets(&mut run, new, None);
    assert_eq!(looking.effects, [Effect::FindCheckpoint]);
    let found = run.apply(Event::Checkpoint(Ok(point(1, 8))), 5);
    let reason = found.reason.unwrap();
    assert!(
        reason.contains("nobody holds steps 2 to 2 any more"),
        "{reason}"
    );
    let recovered = cast(&mut run, new, vote(8, 2, 16, 8));
    assert!(recovered.effects.iter().any(|effect| matches!(
        effect,
        Effect::Journal(JournalEntry::Recovered {
            step: 2,
            steps_lost: 1,
            ..
        })
    )));
}

#[test]
fn ranks_of_a_lost_coordinator_are_waited_for() {
    let restarted = || {
        Membership::new(Config {
            absent: BTreeMap::from([(MemberId(1 << 32), 0), (MemberId((1 << 32) + 1), 1)]),
            newest: point(3, 24),
            start: point(1, 8),
            ..elastic(2)
        })
    };
    let back = |run: &mut Membership, id: u64| {
        let member = MemberId((1 << 32) + id);
        let info = TrainerInfo {
            member: Some(member),
            ..info(id as u32, None)
        };
        run.apply(Event::Join { ticket: 0, info }, 0);
        member
    };
    let mut run = restarted();
    let first = back(&mut run, 0);
    assert!(meets(&mut run, first, Some(point(3, 24))).1.is_empty());
    let second = back(&mut run, 1);
    // It had not heard of the commit that the ledger knows.
    let (_, assigned) = meets(&mut run, second, Some(point(2, 16)));
    assert_eq!(assigned.len(), 2);
    assert_eq!(
        (assigned[0].1.start, assigned[0].1.share),
        (point(3, 24), true)
    );
    // The other one does not come back.
    let mut run = restarted();
    let first = back(&mut run, 0);
    meets(&mut run, first, Some(point(3, 24)));
    let heartbeat = |run: &mut Membership, now| {
        let heartbeat = Event::Heartbeat {
            member: first,
            state: MemberState::Waiting,
            step: 3,
            samples_per_s: 0.0,
            beat: now,
        };
        run.apply(heartbeat, now);
        run.apply(Event::Tick, now)
    };
    let formed = (0..=REJOIN + 200)
        .step_by(100)
        .map(|now| heartbeat(&mut run, now))
        .filter(|t| !t.effects.is_empty())
        .count();
    assert_eq!((formed, run.phase == Phase::Running), (1, true));
    // Nobody holds what the ledger knows: the steps behind it are void.
    let mut run = restarted();
    let first = back(&mut run, 0);
    meets(&mut run, first, None);
    let second = back(&mut run, 1);
    let (_, assigned) = meets(&mut run, second, Some(point(9, 72)));
    assert_eq!(
        assigned[0].1.start,
        point(1, 8),
        "step 9 was never committed"
    );
}

#[test]
fn a_rank_that_hangs_is_not_the_one_that_waits() {
    let (mut run, ids) = running_as(elastic(2));
    let mut suspects = Vec::new();
    for now in (0..=WATCHDOG + 300).step_by(100) {
        for (id, state) in [
            (ids[0], MemberState::Waiting),
            (ids[1], MemberState::Training),
        ] {
            let heartbeat = Event::Heartbeat {
                member: id,
                state,
                step: 0,
                samples_per_s: 0.0,
                beat: 7,
            };
            run.apply(heartbeat, now);
        }
        suspects.extend(run.apply(Event::Tick, now).effects);
    }
    let incidents: Vec<&Effect> = suspects
        .iter()
        .filter(|e| matches!(e, Effect::Journal(JournalEntry::Incident { .. })))
        .collect();
    let [Effect::Journal(JournalEntry::Incident { reason, .. })] = incidents.as_slice() else {
        panic!("{suspects:?}");
    };
    assert!(
        reason.starts_with("rank 1") && reason.contains("is alive but got nothing done for 3"),
        "{reason}"
    );
}

#[test]
fn too_few_ranks_save_what_they_hold_and_leave() {
    let (mut run, ids) = running_as(Config {
        min_ranks: 2,
        ..elastic(2)
    });
    gone(&mut run, ids[1], 0);
    assert!(meets(&mut run, ids[0], Some(point(0, 0))).1.is_empty());
    let mut last = Transition::none();
    for now in (0..=JOIN + 200).step_by(100) {
        let heartbeat = Event::Heartbeat {
            member: ids[0],
            state: MemberState::Waiting,
            step: 0,
            samples_per_s: 0.0,
            beat: now,
        };
        run.apply(heartbeat, now);
        last = last.and(run.apply(Event::Tick, now));
    }
    let assigned = last.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            reply: Reply::Assign(a),
            ..
        } => Some(a.last),
        _ => None,
    });
    assert_eq!(assigned, Some(true), "{last:?}");
    let left = Event::Trainer {
        member: ids[0],
        event: TrainerEvent::Left { step: 0 },
    };
    let end = run.apply(left, JOIN + 300);
    assert!(matches!(
        end.effects.last(),
        Some(Effect::End(Outcome::Drained { step: 0 }))
    ));
}

#[test]
fn a_rank_lost_after_the_others_have_left_costs_nothing() {
    let (mut run, ids) = running_as(elastic(2));
    let finished = |member| Event::Trainer {
        member,
        event: TrainerEvent::Finished {
            step: 0,
            weights_blake3: None,
        },
    };
    run.apply(finished(ids[0]), 0);
    let end = gone(&mut run, ids[1], 0);
    assert!(matches!(
        end.effects.last(),
        Some(Effect::End(Outcome::Finished { .. }))
    ));
}

#[test]
fn a_drain_does_not_wait_for_an_evaluation() {
    let (mut run, ids) = running_as(elastic(1));
    let heartbeat = Event::Heartbeat {
        member: ids[0],
        state: MemberState::Evaluating,
        step: 0,
        samples_per_s: 0.0,
        beat: 0,
    };
    run.apply(heartbeat, 0);
    let reason = "SIGTERM".to_owned();
    let told = run.apply(Event::Drain { reason }, 0);
    assert!(matches!(
        told.effects[0],
        Effect::Send {
            reply: Reply::Abort {
                cause: Cause::Regroup,
                ..
            },
            ..
        }
    ));
    let (_, assigned) = meets(&mut run, ids[0], Some(point(0, 0)));
    assert!(assigned[0].1.last);
}

#[test]
fn no_step_is_begun_that_would_end_after_the_deadline() {
    let (mut run, ids) = running_as(Config {
        deadline_ms: Some(30_000),
        ..elastic(1)
    });
    let mut last = None;
    for step in 1..=20 {
        let cast = run.apply(
            Event::Vote {
                member: ids[0],
                vote: vote(7, step, step, 1),
            },
            step * 1000,
        );
        last = commit_of(&cast);
        if last.is_some_and(|(_, leave)| leave) {
            break;
        }
    }
    // 2 x (1 s + 5 s for a checkpoint that was never measured) + 1 s before 30 s.
    assert_eq!(last, Some((18, true)));
}
