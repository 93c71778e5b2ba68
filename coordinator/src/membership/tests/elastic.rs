//! Ranks go and come, and the run continues.

use super::*;
use crate::protocol::Cause;

fn elastic(world: usize) -> MembershipConfig {
    MembershipConfig {
        elastic: true,
        ..config(world)
    }
}

fn gone(run: &mut Membership, member: MemberId, now_ms: u64) -> Transition {
    let detail = "it closed the connection".to_owned();
    run.apply(MembershipEvent::Disconnected { member, detail }, now_ms)
}

/// Says that it is ready and what it holds; the assignments that follow, by member.
fn meets(
    run: &mut Membership,
    member: MemberId,
    have: Option<StartPoint>,
) -> (Transition, Vec<(MemberId, crate::protocol::Assignment)>) {
    let ready = Ready { have, ..ready() };
    let transition = run.apply(MembershipEvent::Ready { member, ready }, 0);
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
    let join = MembershipEvent::Join {
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
        Effect::Send { to, reply: Reply::Abort(Abort { cause: Cause::Regroup, generation: 7, .. }) }
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
    let found = run.apply(MembershipEvent::Checkpoint(Ok(point(1, 8))), 5);
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
        Membership::new(MembershipConfig {
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
        run.apply(MembershipEvent::Join { ticket: 0, info }, 0);
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
        let heartbeat = MembershipEvent::Heartbeat {
            member: first,
            state: MemberState::Waiting,
            step: 3,
            samples_per_s: 0.0,
            beat: now,
        };
        run.apply(heartbeat, now);
        run.apply(MembershipEvent::Tick, now)
    };
    let formed = (0..=REJOIN + 200)
        .step_by(100)
        .map(|now| heartbeat(&mut run, now))
        .filter(|t| !t.effects.is_empty())
        .count();
    assert_eq!((formed, run.running().is_some()), (1, true));
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
    hangs(MemberState::Training, WATCHDOG);
    hangs(MemberState::Evaluating, WATCHDOG);
    // Longer: it may be reading a checkpoint.
    hangs(MemberState::Starting, WATCHDOG.max(60_000));
}

/// Rank 1 hangs while rank 0 waits for it; it is given up just after `limit`, and rank 0 is not.
#[track_caller]
fn hangs(state: MemberState, limit: u64) {
    let (mut run, ids) = running_as(elastic(2));
    let mut suspects = Vec::new();
    for now in (0..=limit + 300).step_by(100) {
        for (id, state) in [(ids[0], MemberState::Waiting), (ids[1], state)] {
            let heartbeat = MembershipEvent::Heartbeat {
                member: id,
                state,
                step: 0,
                samples_per_s: 0.0,
                beat: 7,
            };
            run.apply(heartbeat, now);
        }
        suspects.extend(run.apply(MembershipEvent::Tick, now).effects);
    }
    let incidents: Vec<&Effect> = suspects
        .iter()
        .filter(|e| matches!(e, Effect::Journal(JournalEntry::Incident { .. })))
        .collect();
    let [Effect::Journal(JournalEntry::Incident { reason, .. })] = incidents.as_slice() else {
        panic!("{suspects:?}");
    };
    assert!(
        reason.starts_with("rank 1")
            && reason.contains("is alive but got nothing done")
            && reason.contains(&format!("the limit is {limit} ms")),
        "{reason}"
    );
}

#[test]
fn too_few_ranks_save_what_they_hold_and_leave() {
    let (mut run, ids) = running_as(MembershipConfig {
        min_ranks: 2,
        ..elastic(2)
    });
    gone(&mut run, ids[1], 0);
    assert!(meets(&mut run, ids[0], Some(point(0, 0))).1.is_empty());
    let mut last = Transition::none();
    for now in (0..=JOIN + 200).step_by(100) {
        let heartbeat = MembershipEvent::Heartbeat {
            member: ids[0],
            state: MemberState::Waiting,
            step: 0,
            samples_per_s: 0.0,
            beat: now,
        };
        run.apply(heartbeat, now);
        last = last.and(run.apply(MembershipEvent::Tick, now));
    }
    let assigned = last.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            reply: Reply::Assign(a),
            ..
        } => Some(a.last),
        _ => None,
    });
    assert_eq!(assigned, Some(true), "{last:?}");
    let left = MembershipEvent::Trainer {
        member: ids[0],
        event: TrainerEvent::Left { step: 0 },
    };
    let end = run.apply(left, JOIN + 300);
    assert!(matches!(
        end.effects.last(),
        Some(Effect::End(RunOutcome::Drained { step: 0 }))
    ));
}

#[test]
fn a_rank_lost_after_the_others_have_left_costs_nothing() {
    let (mut run, ids) = running_as(elastic(2));
    let finished = |member| MembershipEvent::Trainer {
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
        Some(Effect::End(RunOutcome::Finished { .. }))
    ));
}

#[test]
fn a_drain_does_not_wait_for_an_evaluation() {
    let (mut run, ids) = running_as(elastic(1));
    let heartbeat = MembershipEvent::Heartbeat {
        member: ids[0],
        state: MemberState::Evaluating,
        step: 0,
        samples_per_s: 0.0,
        beat: 0,
    };
    run.apply(heartbeat, 0);
    let reason = "SIGTERM".to_owned();
    let told = run.apply(MembershipEvent::Drain { reason }, 0);
    assert!(matches!(
        told.effects[0],
        Effect::Send {
            reply: Reply::Abort(Abort {
                cause: Cause::Regroup,
                ..
            }),
            ..
        }
    ));
    let (_, assigned) = meets(&mut run, ids[0], Some(point(0, 0)));
    assert!(assigned[0].1.last);
}

#[test]
fn no_step_is_begun_that_would_end_after_the_deadline() {
    let (mut run, ids) = running_as(MembershipConfig {
        deadline_ms: Some(30_000),
        ..elastic(1)
    });
    let mut last = None;
    for step in 1..=20 {
        let cast = run.apply(
            MembershipEvent::Vote {
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
    // 2 x (1 s + 5 s for a checkpoint that was never measured) + 2 s before 30 s.
    assert_eq!(last, Some((17, true)));
}

#[test]
fn an_evaluation_is_given_up_before_the_deadline() {
    let (mut run, ids) = running_as(MembershipConfig {
        deadline_ms: Some(30_000),
        ..elastic(1)
    });
    let gave_up = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send {
                reply: Reply::Abort(_),
                ..
            }
        )
    };
    let mut at = None;
    for now in (0..30_000).step_by(100) {
        let heartbeat = MembershipEvent::Heartbeat {
            member: ids[0],
            state: MemberState::Evaluating,
            step: 0,
            samples_per_s: 0.0,
            beat: now,
        };
        run.apply(heartbeat, now);
        let tick = run.apply(MembershipEvent::Tick, now);
        if tick.effects.iter().any(gave_up) {
            at = Some(now);
            break;
        }
    }
    // 2 x 5 s for a checkpoint that was never measured + 2 s before 30 s.
    assert_eq!(at, Some(18_100));
    let (_, assigned) = meets(&mut run, ids[0], Some(point(0, 0)));
    assert!(assigned[0].1.last);
}

#[test]
fn when_all_wait_the_one_that_does_not_come_back_is_lost() {
    let (mut run, ids) = running_as(elastic(2));
    let mut told = Transition::none();
    let mut met = false;
    for now in (0..=3 * WATCHDOG).step_by(100) {
        for (id, beat) in [(ids[0], u64::from(met) * now), (ids[1], 7)] {
            let heartbeat = MembershipEvent::Heartbeat {
                member: id,
                state: MemberState::Waiting,
                step: 0,
                samples_per_s: 0.0,
                beat,
            };
            run.apply(heartbeat, now);
        }
        let tick = run.apply(MembershipEvent::Tick, now);
        let abort = tick.effects.iter().any(|effect| {
            matches!(effect, Effect::Send { to, reply: Reply::Abort(Abort { cause: Cause::Regroup, .. }) } if *to == ids)
        });
        if abort {
            let ready = Ready {
                have: Some(point(0, 0)),
                ..ready()
            };
            let member = ids[0];
            run.apply(MembershipEvent::Ready { member, ready }, now);
            met = true;
        }
        told = told.and(tick);
    }
    assert!(met);
    let reasons = told.reason.unwrap();
    assert!(
        reasons.contains("all 2 ranks have waited for each other for 3100 ms"),
        "{reasons}"
    );
    assert!(
        reasons.contains("rank 1 (host node1, pid 1, last step 0) is alive but got nothing done"),
        "{reasons}"
    );
    assert_eq!((run.world, run.running().is_some()), (1, true));
}
