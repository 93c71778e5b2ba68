//! What rank 0 publishes, and what nobody may.

use super::*;
use crate::protocol::PUBLISH_MAX;

fn elastic() -> (Membership, Vec<MemberId>) {
    running_as(MembershipConfig {
        elastic: true,
        ..config(4)
    })
}

fn publish(run: &mut Membership, member: MemberId, generation: u64, len: usize) -> Transition {
    let event = MembershipEvent::Publish {
        member,
        generation,
        bytes: vec![7; len],
    };
    run.apply(event, 0)
}

fn sent_to(transition: &Transition) -> Option<(&[MemberId], usize)> {
    transition.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            to,
            reply: Reply::Published { bytes, .. },
        } => Some((&to[..], bytes.len())),
        _ => None,
    })
}

#[test]
fn all_other_ranks_get_what_rank_0_publishes() {
    for len in [1, 128, PUBLISH_MAX] {
        let (mut run, ids) = elastic();
        let told = publish(&mut run, ids[0], 7, len);
        assert_eq!(sent_to(&told), Some((&ids[1..], len)));
        assert_eq!(told.effects.len(), 1);
    }
    let (mut alone, ids) = running(1);
    assert_eq!(publish(&mut alone, ids[0], 7, 1).effects, []);
}

#[test]
fn what_nobody_may_publish_costs_the_seat() {
    for (rank, generation, len, why) in [
        (1, 7, 128, "only rank 0 may"),
        (
            0,
            8,
            128,
            "published in generation 8, the run is in generation 7",
        ),
        (0, 7, 0, "0 bytes, allowed are 1 to 1024"),
        (0, 7, PUBLISH_MAX + 1, "1025 bytes, allowed are 1 to 1024"),
    ] {
        let (mut run, ids) = elastic();
        let refused = publish(&mut run, ids[rank], generation, len);
        assert_eq!(sent_to(&refused), None);
        let dismissed = refused.effects.iter().find_map(|effect| match effect {
            Effect::Dismiss { member, reason } => Some((*member, reason.as_str())),
            _ => None,
        });
        let (member, reason) = dismissed.expect("it has to go");
        assert_eq!(member, ids[rank]);
        assert!(reason.contains(why) && reason.contains("help:"), "{reason}");
        let aborted = refused.effects.iter().any(|effect| {
            matches!(effect, Effect::Send { to, reply: Reply::Abort(Abort { cause: Cause::Regroup, .. }) }
                if to.len() == 3)
        });
        assert!(aborted, "the others form anew: {refused:?}");
    }
    // Where ranks cannot form anew, it is the end.
    let (mut run, ids) = running(2);
    assert!(failure(&publish(&mut run, ids[1], 7, 1)).contains("only rank 0 may"));
}

#[test]
fn once_per_generation_and_forgotten_with_it() {
    let (mut run, ids) = elastic();
    publish(&mut run, ids[0], 7, 8);
    let lost = MembershipEvent::Disconnected {
        member: ids[3],
        detail: "killed".to_owned(),
    };
    run.apply(lost, 0);
    // On its way when the generation ended: no harm, and nobody hears of it.
    assert_eq!(publish(&mut run, ids[0], 7, 8), Transition::none());
    for member in &ids[..3] {
        let ready = MembershipEvent::Ready {
            member: *member,
            ready: Ready {
                have: Some(StartPoint::default()),
                ..ready()
            },
        };
        run.apply(ready, 0);
    }
    assert_eq!((run.generation, run.world), (8, 2));
    assert_eq!(publish(&mut run, ids[0], 7, 8), Transition::none());
    assert_eq!(
        sent_to(&publish(&mut run, ids[0], 8, 8)),
        Some((&ids[1..2], 8))
    );
    let again = publish(&mut run, ids[0], 8, 8);
    let reason = again.reason.as_deref().unwrap_or_default();
    assert!(
        reason.contains("for the second time in generation 8"),
        "{reason}"
    );
}
