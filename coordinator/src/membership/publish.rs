//! What rank 0 tells the other ranks of its generation so that they can meet.

use super::{Effect, Membership, Transition};
use crate::protocol::{Generation, MemberId, PUBLISH_MAX, Reply};

impl Membership {
    pub(super) fn publish(
        &mut self,
        id: MemberId,
        generation: Generation,
        bytes: Vec<u8>,
        now_ms: u64,
    ) -> Transition {
        let Some(member) = self.seen(id, now_ms) else {
            return Transition::none();
        };
        member.moved_ms = now_ms;
        let (who, seat) = (member.describe(id), member.seat);
        let published = self.running().map(|running| running.published);
        // It has been told that its generation is over; this only crossed the message.
        let crossed = self.formed_here()
            && (generation < self.generation
                || generation == self.generation && published.is_none());
        if crossed || self.outcome().is_some() {
            return Transition::none();
        }
        let objection = if generation != self.generation || published.is_none() {
            Some(format!(
                "in generation {generation}, the run is in generation {}",
                self.generation
            ))
        } else if seat != Some(0) {
            Some("but only rank 0 may".to_owned())
        } else if published == Some(true) {
            Some(format!("for the second time in generation {generation}"))
        } else if bytes.is_empty() || bytes.len() > PUBLISH_MAX {
            Some(format!(
                "{} bytes, allowed are 1 to {PUBLISH_MAX}",
                bytes.len()
            ))
        } else {
            None
        };
        if let Some(objection) = objection {
            return self.dismiss(id, &format!("{who} published {objection}"), now_ms);
        }
        if let Some(running) = self.running_mut() {
            running.published = true;
        }
        let to = self.members.ids(|m| m.seat.is_some_and(|rank| rank != 0));
        let reason = format!(
            "rank 0 published {} bytes to {} ranks",
            bytes.len(),
            to.len()
        );
        let effects = match to.is_empty() {
            true => Vec::new(),
            false => vec![Effect::Send {
                to,
                reply: Reply::Published { generation, bytes },
            }],
        };
        Transition::because(reason, effects)
    }

    /// Removes a member that broke the protocol.
    fn dismiss(&mut self, member: MemberId, reason: &str, now_ms: u64) -> Transition {
        let mut lost = self.lose(member, reason, 0, now_ms);
        if self.outcome().is_none() {
            lost.effects.push(Effect::Dismiss {
                member,
                reason: format!("{reason}\n  help: this is a bug in the trainer; please report it"),
            });
        }
        lost
    }
}
