//! Whether models answer the same questions.

use std::path::Path;

use fovea_task::Task;

use crate::error::{Error, Result};
use crate::predict::questions;

/// Refuses models that answer different questions; says what differs.
pub(super) fn same_task(first: (&Path, &Task), other: (&Path, &Task)) -> Result<()> {
    match difference(first.1, other.1) {
        None => Ok(()),
        Some(what) => Err(Error::Usage {
            what: format!(
                "{} and {} answer different questions: {what}",
                first.0.display(),
                other.0.display()
            ),
            help: "average only models that were trained on datasets of one task".to_owned(),
        }),
    }
}

/// What differs between two tasks, in words; `None` when they are equal.
fn difference(a: &Task, b: &Task) -> Option<String> {
    if a == b {
        return None;
    }
    let (ours, theirs) = (questions(a), questions(b));
    if ours != theirs {
        return Some(format!("{ours}; and {theirs}"));
    }
    for (ours, theirs) in a.targets().iter().zip(b.targets()) {
        if ours.kind != theirs.kind {
            return Some(format!(
                "{} is {:?} and {:?}",
                ours.name, ours.kind, theirs.kind
            ));
        }
        if ours.level != theirs.level {
            return Some(format!(
                "{} is asked of each {} and of each {}",
                ours.name, ours.level, theirs.level
            ));
        }
        if ours.union_of_cells != theirs.union_of_cells {
            return Some(format!(
                "the label of {} is the union of the cells' in one of them",
                ours.name
            ));
        }
    }
    if a.columns() != b.columns() {
        return Some(format!(
            "{} and {} columns are read of each image, or others",
            a.columns().len(),
            b.columns().len()
        ));
    }
    Some("titles or colours of classes".to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fovea_task::{Kind, Target};

    use super::*;

    #[test]
    fn the_difference_between_tasks_has_a_name() {
        let lesions = Task::lesions();
        assert_eq!(difference(&lesions, &lesions), None);
        let changed = |edit: &dyn Fn(&mut Vec<Target>)| {
            let mut targets = lesions.targets().to_vec();
            edit(&mut targets);
            difference(&lesions, &Task::new(targets).unwrap()).unwrap()
        };
        let fewer = changed(&|targets| {
            targets[0].union_of_cells = false;
            targets.truncate(1);
        });
        assert!(
            fewer.contains("image (MA HE EX SE), patch (MA HE EX SE); and image"),
            "{fewer}"
        );
        let kind = changed(&|targets| {
            (targets[0].kind, targets[0].union_of_cells) = (Kind::OneOf, false);
        });
        assert_eq!(kind, "image is AnyOf and OneOf");
        let union = changed(&|targets| targets[0].union_of_cells = false);
        assert!(union.contains("union of the cells'"), "{union}");
        let colour = changed(&|targets| {
            for target in targets {
                target.classes[0].colour = [1, 2, 3];
            }
        });
        assert_eq!(colour, "titles or colours of classes");
        let columns = lesions
            .clone()
            .with_columns(vec!["age".to_owned()])
            .unwrap();
        let columns = difference(&lesions, &columns).unwrap();
        assert!(columns.starts_with("0 and 1 columns"), "{columns}");
    }
}
