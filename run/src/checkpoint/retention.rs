//! Which checkpoints stay. Pure: the writer carries the actions out.

/// What to do with one checkpoint, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The checkpoint stays on the disk.
    Keep {
        /// Number of the step that the checkpoint was taken after.
        step: u64,
        /// Why, in words for the log.
        reason: &'static str,
    },
    /// The checkpoint can be deleted.
    Delete {
        /// Number of the step that the checkpoint was taken after.
        step: u64,
    },
}

/// One action per step of `existing` (any order), oldest first: the newest `keep_last` stay (at least
/// one does), and so do the best one and the one that has just been written and verified. The latter
/// may not be among the newest: after falling back from a damaged checkpoint, that one is newer.
pub fn plan(existing: &[u64], written: u64, best: Option<u64>, keep_last: usize) -> Vec<Action> {
    let mut steps = existing.to_vec();
    steps.sort_unstable();
    steps.dedup();
    let newest = steps.len().saturating_sub(keep_last.max(1));
    let decide = |(i, &step): (usize, &u64)| {
        let reason = if i >= newest {
            Some("among the newest")
        } else if best == Some(step) {
            Some("best so far")
        } else {
            (step == written).then_some("just written")
        };
        match reason {
            Some(reason) => Action::Keep { step, reason },
            None => Action::Delete { step },
        }
    };
    steps.iter().enumerate().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(existing: &[u64], written: u64, best: Option<u64>, keep_last: usize) -> Vec<u64> {
        let actions = plan(existing, written, best, keep_last).into_iter();
        let kept = actions.filter_map(|action| match action {
            Action::Keep { step, .. } => Some(step),
            Action::Delete { .. } => None,
        });
        kept.collect()
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        assert_eq!(kept(&[10, 40, 20, 30], 40, Some(10), 2), [10, 30, 40]);
        assert_eq!(kept(&[10, 20, 30], 30, Some(30), 2), [20, 30]);
        assert_eq!(kept(&[10, 20, 30], 30, None, 0), [30], "never none at all");
        assert_eq!(
            kept(&[10, 20], 20, Some(5), 5),
            [10, 20],
            "the best may be gone"
        );
        assert_eq!(kept(&[], 1, None, 3), [0; 0]);
    }

    #[test]
    fn a_damaged_newer_one_does_not_push_out_the_one_just_written() {
        assert_eq!(kept(&[50, 75, 100], 75, None, 1), [75, 100]);
    }

    proptest! {
        #[test]
        fn every_step_gets_one_action_and_enough_stay(
            existing in prop::collection::vec(0_u64..50, 0..20),
            written in 0_u64..50, best in prop::option::of(0_u64..50), keep_last in 0_usize..6,
        ) {
            let actions = plan(&existing, written, best, keep_last);
            let distinct: std::collections::BTreeSet<u64> = existing.iter().copied().collect();
            let steps: Vec<u64> = actions
                .iter()
                .map(|a| match *a { Action::Keep { step, .. } | Action::Delete { step } => step })
                .collect();
            prop_assert_eq!(&steps, &distinct.iter().copied().collect::<Vec<_>>());
            let kept = kept(&existing, written, best, keep_last);
            let newest = distinct.iter().rev().take(keep_last.max(1));
            for step in newest.chain(best.iter()).chain([&written]) {
                prop_assert_eq!(kept.contains(step), distinct.contains(step));
            }
            prop_assert!(kept.len() <= keep_last.max(1) + 2);
        }
    }
}
