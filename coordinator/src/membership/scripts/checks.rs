//! The invariants that hold after every event.

use super::*;

impl Script {
    /// Whoever could train does: all that were there before are back, and they are enough.
    pub(super) fn check_nobody_waits_for_nothing(&self) -> Checked {
        let run = &self.run;
        let count = |is: fn(&Member) -> bool| run.members.values().filter(|m| is(m)).count();
        prop_assert_eq!(run.members.ready(), count(|m| m.ready.is_some()));
        prop_assert_eq!(run.members.owing(), count(Member::owes_ready));
        if !run.is_gathering() || run.searching || !run.config.elastic || !run.formed() {
            return Ok(());
        }
        let all_back = run.members.values().all(|m| !m.owes_ready());
        let enough = run.usable(run.members.ready()) >= run.config.min_ranks.max(1);
        prop_assert!(!(all_back && enough), "{}", run.why);
        Ok(())
    }

    pub(super) fn check_send(
        &mut self,
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
                prop_assert_eq!(to.len(), before.world);
                prop_assert_eq!(*step, before.at.step + 1);
                let newest = self.ledger.last();
                let written = matches!(newest, Some(LedgerEntry::Commit(c)) if c.step == *step);
                prop_assert!(written, "answered before the ledger was written");
                // Everyone but the last voter had voted before.
                prop_assert_eq!(voted(before).len() + 1, before.world);
            }
            Reply::Abort(Abort { cause, .. }) => {
                // All who have no reason of their own to be gone.
                for (id, member) in self.run.members.iter() {
                    let told = match cause {
                        Cause::Regroup => member.last_seat.is_some(),
                        Cause::Failed | Cause::Stopped => member.done == Done::No,
                        Cause::Finished | Cause::Drained => {
                            member.done == Done::No && member.seat.is_none()
                        }
                    };
                    if told && before.members.contains_key(id) {
                        prop_assert!(to.contains(id), "{} was not told", member.describe(*id));
                    }
                }
            }
            Reply::Published { generation, bytes } => {
                prop_assert_eq!(*generation, before.generation);
                prop_assert!((1..=1024).contains(&bytes.len()));
                prop_assert!(self.published.insert(*generation), "published twice");
                prop_assert!(before.running().is_some());
                for (id, member) in before.members.iter() {
                    let other = member.seat.is_some_and(|rank| rank > 0);
                    prop_assert_eq!(to.contains(id), other, "{}", member.describe(*id));
                }
            }
            other => prop_assert!(false, "unexpected {:?}", other),
        }
        Ok(())
    }

    /// A dead member never blocks the others.
    pub(super) fn check_dead(&self, before: &Membership, event: &MembershipEvent) -> Checked {
        let seated = |id: &MemberId| {
            before
                .members
                .get(id)
                .is_some_and(|m| m.seat.is_some() && m.done == Done::No)
        };
        match event {
            MembershipEvent::Disconnected { member, .. } if seated(member) => {
                let gone = !self.run.members.contains_key(member);
                prop_assert!(self.ended.is_some() || (before.config.elastic && gone));
            }
            MembershipEvent::Tick
                if before
                    .last_tick_ms
                    .is_some_and(|t| self.now - t <= LAPSE / 2) =>
            {
                let silent = before
                    .members
                    .iter()
                    .any(|(id, m)| seated(id) && self.now - m.last_seen_ms > LAPSE);
                let still_there = self
                    .run
                    .members
                    .values()
                    .any(|m| m.done == Done::No && self.now - m.last_seen_ms > LAPSE);
                prop_assert!(!silent || self.ended.is_some() || !still_there);
            }
            _ => {}
        }
        Ok(())
    }

    /// Committed ranges follow on each other without a gap or a repetition.
    pub(super) fn check_ledger(&self) -> Checked {
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
