//! Single situations; those of elastic runs are in [`elastic`], rank 0's publications in
//! [`publish`].

mod elastic;
mod publish;

use super::*;
use crate::ledger::{CommittedStep, LedgerEntry};
use crate::protocol::{Next, Ready, Seated, Terms, TrainerEvent, TrainerInfo, Vote};

pub(in crate::membership) const LAPSE: u64 = 1000;
pub(in crate::membership) const TOTAL: u64 = 40;
pub(in crate::membership) const WATCHDOG: u64 = 3000;
pub(in crate::membership) const JOIN: u64 = 60_000;
pub(in crate::membership) const REJOIN: u64 = 5000;

pub(in crate::membership) fn config(world: usize) -> MembershipConfig {
    MembershipConfig {
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

pub(in crate::membership) fn info(pid: u32, preferred_rank: Option<u32>) -> TrainerInfo {
    TrainerInfo {
        member: None,
        host: format!("node{pid}"),
        machine: format!("node{pid}/{pid}"),
        pid,
        preferred_rank,
    }
}

pub(in crate::membership) fn ready() -> Ready {
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

pub(in crate::membership) fn vote(
    generation: Generation,
    step: u64,
    cursor_after: u64,
    samples: u64,
) -> Vote {
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

fn running_as(config: MembershipConfig) -> (Membership, Vec<MemberId>) {
    let world = config.world;
    let mut run = Membership::new(config);
    let mut assigned = Vec::new();
    for pid in 0..world {
        let join = MembershipEvent::Join {
            ticket: pid as u64,
            info: info(pid as u32, None),
        };
        let Some(Effect::Admit { member, .. }) = run.apply(join, 0).effects.pop() else {
            panic!("not admitted");
        };
        let ready = MembershipEvent::Ready {
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
    run.apply(MembershipEvent::Vote { member, vote }, 0)
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
    let Some(Effect::End(RunOutcome::Failed { reason })) = ends else {
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
        let join = MembershipEvent::Join {
            ticket: 0,
            info: info(pid as u32, preferred),
        };
        run.apply(join, 0);
    }
    let ids: Vec<MemberId> = run.members.keys().copied().collect();
    for member in &ids {
        last = run.apply(
            MembershipEvent::Ready {
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
        let told = transition.effects.iter().any(
            |effect| matches!(effect, Effect::Send { to, reply: Reply::Abort(_) } if *to == ids),
        );
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
        MembershipEvent::Drain {
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
    let left = |member| MembershipEvent::Trainer {
        member,
        event: TrainerEvent::Left { step: 1 },
    };
    assert!(run.apply(left(ids[0]), 0).effects.is_empty());
    let gone = MembershipEvent::Disconnected {
        member: ids[0],
        detail: String::new(),
    };
    assert_eq!(run.apply(gone, 0), Transition::none());
    let end = run.apply(left(ids[1]), 0);
    assert_eq!(
        end.effects.last(),
        Some(&Effect::End(RunOutcome::Drained { step: 1 }))
    );
}

#[test]
fn nobody_may_vote_or_vanish_after_the_last_step() {
    let drained = || {
        let (mut run, ids) = running(1);
        run.apply(
            MembershipEvent::Drain {
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
    let gone = MembershipEvent::Disconnected {
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
    let gone = MembershipEvent::Disconnected {
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
    let alive = |member| MembershipEvent::Heartbeat {
        member,
        state: MemberState::Training,
        step: 0,
        samples_per_s: 0.0,
        beat: 0,
    };
    for now in (0..=LAPSE).step_by(100) {
        run.apply(alive(ids[0]), now);
        assert_eq!(
            run.apply(MembershipEvent::Tick, now),
            Transition::none(),
            "at {now}"
        );
    }
    // The coordinator stands still for a minute; that is not held against anyone.
    let back = LAPSE + 60_000;
    let away = run.apply(MembershipEvent::Tick, back);
    assert_eq!(
        away.reason.as_deref(),
        Some("the coordinator was away for 60000 ms")
    );
    run.apply(alive(ids[0]), back + 100);
    let transition = run.apply(MembershipEvent::Tick, back + 100);
    let expected = "rank 1 (host node1, pid 1, last step 0) was not heard of for 1100 ms, the limit is 1000 ms";
    assert!(failure(&transition).starts_with(expected), "{transition:?}");
}

#[test]
fn trainers_that_do_not_fit_are_told() {
    let mut run = Membership::new(config(2));
    let join = |pid, rank| MembershipEvent::Join {
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
    let say = |member, samples_per_epoch| MembershipEvent::Ready {
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
    let finished = |member, weights: &str| MembershipEvent::Trainer {
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

#[test]
fn a_checkpoint_that_failed_is_in_the_status_until_one_stands() {
    let (mut run, ids) = running(1);
    let mut tell = |event: TrainerEvent| {
        let member = ids[0];
        run.apply(MembershipEvent::Trainer { member, event }, 0);
        run.status(0).unsaved
    };
    let reason = "no space left".to_owned();
    let unsaved = tell(TrainerEvent::CheckpointFailed { step: 5, reason }).unwrap();
    assert!(
        unsaved.contains("step 5") && unsaved.contains("no space left"),
        "{unsaved}"
    );
    let saved = CheckpointInfo {
        step: 6,
        path: "p".to_owned(),
        weights_blake3: "w".to_owned(),
        took_ms: 7,
    };
    assert_eq!(tell(TrainerEvent::CheckpointSaved(saved)), None);
}
