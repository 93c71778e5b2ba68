//! Confusion counts of one head's logits: all that threshold scores of a set of samples need, as numbers that can be
//! added up over shards, ranks and steps.

use fovea_task::{Kind, Label, MAX_CLASSES};

use crate::error::{Error, Result, check_len, checked_elements};
use crate::loss::sigmoid;

/// Which counts a head has, and where they lie in a flat buffer.
///
/// [`Kind::AnyOf`]: `[3, C]` true positives, false positives and false negatives of each class, then
/// `[C + 1, C + 1]` samples by the number of classes that truth or prediction has (row) and that both have (column).
/// [`Kind::OneOf`]: `[C, C]` samples by true class (row) and predicted class (column).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountLayout {
    /// How many classes a label has.
    pub kind: Kind,
    /// C, the number of classes, 1 to [`fovea_task::MAX_CLASSES`].
    pub classes: usize,
}

impl CountLayout {
    /// Number of counts.
    #[must_use]
    pub fn len(self) -> usize {
        let c = self.classes;
        match self.kind {
            Kind::AnyOf => 3 * c + (c + 1) * (c + 1),
            Kind::OneOf => c * c,
        }
    }

    /// Whether there are no counts; there always are.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns an error for a number of classes that no label has.
    pub(crate) fn check(self) -> Result<()> {
        if (1..=MAX_CLASSES).contains(&self.classes) {
            return Ok(());
        }
        Err(Error::Argument {
            what: "CountLayout::classes",
            limit: "1 to 63",
            actual: self.classes.to_string(),
            help: "pass the number of classes of the head's target",
        })
    }
}

/// The lowest logit whose sigmoid, as [`sigmoid`] computes it, reaches `threshold`; infinity where none does. So
/// `z >= lowest_logit(t)` is `sigmoid(z) >= t` without an exponential.
#[must_use]
pub fn lowest_logit(threshold: f32) -> f32 {
    if sigmoid(f32::MAX) < threshold || threshold.is_nan() {
        return f32::INFINITY;
    }
    // The bits of numbers of one sign rise with their magnitude: this maps all finite numbers to rising integers.
    let ordered = |z: f32| {
        let bits = i64::from(z.to_bits() & 0x7FFF_FFFF);
        if z.is_sign_negative() { -bits } else { bits }
    };
    let number = |order: i64| {
        let magnitude = f32::from_bits(order.unsigned_abs() as u32);
        if order < 0 { -magnitude } else { magnitude }
    };
    let (mut below, mut reached) = (ordered(f32::MIN) - 1, ordered(f32::MAX));
    while reached - below > 1 {
        let middle = below + (reached - below) / 2;
        if sigmoid(number(middle)) >= threshold {
            reached = middle;
        } else {
            below = middle;
        }
    }
    number(reached)
}

/// Adds the counts of `n` samples to `counts`, which has [`CountLayout::len`] elements. This defines the counts.
///
/// `logits` is `[n, C]` row-major, `labels` is `[n]`. With [`Kind::AnyOf`], a class is predicted when its logit is
/// `lowest` or more (see [`lowest_logit`]); with [`Kind::OneOf`], the class of the highest logit is, the first of equal
/// ones. A row with [`Label::UNKNOWN`], or with a label that the kind does not allow, counts nowhere. Counts are whole
/// numbers and exact up to 2^24 each.
///
/// # Errors
///
/// A buffer of another length; no classes, or too many.
pub fn confusion_counts(
    layout: CountLayout,
    logits: &[f32],
    labels: &[Label],
    lowest: f32,
    counts: &mut [f32],
) -> Result<()> {
    layout.check()?;
    let classes = layout.classes;
    let elements = checked_elements("logits", &[labels.len(), classes])?;
    check_len("logits", "[labels.len(), C]", logits.len(), elements)?;
    check_len("counts", "CountLayout::len", counts.len(), layout.len())?;
    for (logits, label) in logits.chunks(classes).zip(labels) {
        if !label.is_known() {
            continue;
        }
        match layout.kind {
            Kind::AnyOf if label.0 >> classes == 0 => {
                let guess = logits
                    .iter()
                    .enumerate()
                    .fold(0u64, |set, (c, &z)| set | u64::from(z >= lowest) << c);
                for c in 0..classes {
                    let kind = match (label.0 >> c & 1, guess >> c & 1) {
                        (1, 1) => 0,
                        (0, 1) => 1,
                        (1, 0) => 2,
                        _ => continue,
                    };
                    counts[kind * classes + c] += 1.0;
                }
                let either = (label.0 | guess).count_ones() as usize;
                let both = (label.0 & guess).count_ones() as usize;
                counts[3 * classes + either * (classes + 1) + both] += 1.0;
            }
            Kind::OneOf if label.0 < classes as u64 => {
                let mut guess = 0;
                for (c, &z) in logits.iter().enumerate() {
                    if z > logits[guess] {
                        guess = c;
                    }
                }
                counts[label.0 as usize * classes + guess] += 1.0;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_of(classes: usize) -> CountLayout {
        CountLayout {
            kind: Kind::AnyOf,
            classes,
        }
    }

    fn one_of(classes: usize) -> CountLayout {
        CountLayout {
            kind: Kind::OneOf,
            classes,
        }
    }

    fn counted(layout: CountLayout, logits: &[f32], labels: &[u64]) -> Vec<f32> {
        let mut counts = vec![0.0; layout.len()];
        let labels: &[Label] = bytemuck::cast_slice(labels);
        confusion_counts(layout, logits, labels, lowest_logit(0.5), &mut counts).unwrap();
        counts
    }

    proptest! {
        #[test]
        fn a_logit_reaches_the_lowest_when_its_sigmoid_reaches_the_threshold(
            threshold in prop_oneof![0.001f32..0.999, Just(0.5f32), 1e-30f32..1.0, Just(0.999_999_94f32)],
            far in prop::collection::vec(-200f32..200.0, 50),
            near in prop::collection::vec(-1000i32..1000, 50),
        ) {
            let lowest = lowest_logit(threshold);
            let near = near.iter().map(|&ulps| f32::from_bits(lowest.to_bits().wrapping_add_signed(ulps)));
            for z in far.into_iter().chain(near).filter(|z| z.is_finite()) {
                prop_assert_eq!(z >= lowest, sigmoid(z) >= threshold, "{} {}", z, threshold);
            }
        }
    }

    #[test]
    fn the_ends_of_the_thresholds() {
        assert_eq!(lowest_logit(0.5), lowest_logit(0.5).min(0.0));
        assert!(sigmoid(0.0) >= 0.5 && lowest_logit(0.5) > -1e-6);
        assert_eq!(lowest_logit(0.0), f32::MIN);
        for none in [1.5, f32::NAN] {
            assert_eq!(lowest_logit(none), f32::INFINITY);
        }
    }

    #[test]
    fn worked_examples() {
        // Truth {0} guess {0, 1}; truth {} guess {}; truth {1} guess {0}; one without a label.
        let logits = [1.0, 1.0, -1.0, -1.0, 0.5, -0.5, 9.0, 9.0];
        let counts = counted(any_of(2), &logits, &[1, 0, 2, u64::MAX]);
        let (per_class, overlap) = counts.split_at(6);
        assert_eq!(per_class, [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
        // Rows: 0, 1, 2 classes in either; columns: in both.
        assert_eq!(overlap, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);

        // Truth 0 guess 1; truth 2 guess 0, the first of two equal ones; one without a label.
        let logits = [0.0, 3.0, 1.0, 2.0, 1.0, 2.0, 9.0, 0.0, 0.0];
        let counts = counted(one_of(3), &logits, &[0, 2, u64::MAX]);
        assert_eq!(counts, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn counts_are_added_and_strange_rows_left_out() {
        let mut counts = vec![2.0; 9];
        let logits = [0.0, 1.0, f32::NAN, 0.0, 0.0, 0.0];
        confusion_counts(one_of(3), &logits, &[Label(1), Label(3)], 0.0, &mut counts).unwrap();
        assert_eq!(counts, [2.0, 2.0, 2.0, 2.0, 3.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(counted(any_of(1), &[1.0], &[2]), [0.0; 7]);
        assert_eq!(counted(any_of(1), &[f32::NAN], &[1])[..3], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn bad_arguments_are_errors() {
        let fail = |layout: CountLayout, logits: usize, counts: usize| {
            let (logits, mut counts) = (vec![0.0; logits], vec![0.0; counts]);
            let error = confusion_counts(layout, &logits, &[Label(0)], 0.0, &mut counts);
            error.unwrap_err().to_string()
        };
        assert!(fail(any_of(2), 3, 15).starts_with("logits has 3 elements"));
        assert!(fail(any_of(2), 2, 14).starts_with("counts has 14 elements, its shape needs 15"));
        assert!(fail(one_of(0), 0, 0).contains("CountLayout::classes is 0"));
        assert!(fail(any_of(64), 64, 4417).contains("is 64, the limit is 1 to 63"));
        assert!(!any_of(1).is_empty());
    }
}
