//! All scores of one table.

use fovea_task::{Kind, Label, Target};

use super::table::set_of;
use super::{Agreement, ClassMetrics, Error, Metrics, Result, Table, mean_defined};

/// Computes every metric of `table`, which holds each sample once, in any order.
///
/// `thresholds`, one per class, turn probabilities into predicted classes (`>=`) where a sample has any number of them; a
/// target with exactly one class per sample takes the most probable instead, and ignores them. `loss` is the mean loss the
/// caller measured and is passed through. The result has the same bits for every permutation of the rows.
///
/// # Errors
/// No labelled rows, an id twice, a probability outside `[0, 1]` or NaN, a label that is none of the target's, a NaN
/// threshold, another number of thresholds or probabilities than of classes, or a loss that is not finite.
pub fn compute(target: &Target, table: &Table, thresholds: &[f32], loss: f64) -> Result<Metrics> {
    check(target, thresholds, loss)?;
    let table = table.checked(target)?;
    let sets = Sets::of(target, &table, thresholds);
    let classes = target.classes.len();
    let per_class: Vec<ClassMetrics> = (0..classes)
        .map(|class| class_metrics(target, &table, &sets, class))
        .collect();
    let sum = |count: fn(&ClassMetrics) -> u64| per_class.iter().map(count).sum::<u64>();
    let (tp, fp, fn_) = (sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_));
    let pooled = ClassMetrics::from_counts(tp, fp, fn_, 0);
    let overlap = overlap(&sets);
    let samples = table.len() as f64;
    Ok(Metrics {
        f1_micro: pooled.f1,
        f1_macro: per_class.iter().map(|c| c.f1).sum::<f64>() / classes as f64,
        hamming: match target.kind {
            Kind::AnyOf => (fp + fn_) as f64 / (samples * classes as f64),
            Kind::OneOf => fn_ as f64 / samples,
        },
        subset_acc: overlap.exact as f64 / samples,
        iou: overlap.iou_sum / samples,
        dice: overlap.dice_sum / samples,
        pearson_r: pearson(&table, &sets, classes),
        loss,
        mean_auroc: mean_defined(per_class.iter().map(|c| c.auroc)),
        mean_ap: mean_defined(per_class.iter().map(|c| c.ap)),
        agreement: (target.kind == Kind::OneOf).then(|| agreement(confusion(&sets, classes))),
        per_class,
        samples: table.len() as u64,
    })
}

fn check(target: &Target, thresholds: &[f32], loss: f64) -> Result<()> {
    if !loss.is_finite() {
        return Err(Error::BadLoss(loss));
    }
    if target.kind == Kind::OneOf {
        return Ok(());
    }
    let (given, classes) = (thresholds.len(), target.classes.len());
    if given != classes {
        return Err(Error::Thresholds {
            thresholds: given,
            classes,
        });
    }
    match thresholds.iter().position(|value| value.is_nan()) {
        None => Ok(()),
        Some(class) => Err(Error::BadThreshold {
            class: target.classes[class].name.clone(),
            value: thresholds[class],
        }),
    }
}

/// Classes per sample as bits, in id order.
struct Sets {
    truth: Vec<u64>,
    guess: Vec<u64>,
}

impl Sets {
    fn of(target: &Target, table: &Table, thresholds: &[f32]) -> Self {
        let scores = table.probabilities.chunks_exact(target.classes.len());
        Self {
            truth: table.labels.iter().map(|&l| set_of(target, l)).collect(),
            guess: scores
                .map(|s| set_of(target, predicted(target, s, thresholds)))
                .collect(),
        }
    }

    /// `(truth, guess)` per sample.
    fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.truth.iter().copied().zip(self.guess.iter().copied())
    }
}

/// The label that `probabilities` of one sample predict: the classes that reach their threshold, or the first of the most
/// probable where there is exactly one.
#[must_use]
pub fn predicted(target: &Target, probabilities: &[f32], thresholds: &[f32]) -> Label {
    match target.kind {
        Kind::AnyOf => {
            let reached = probabilities.iter().zip(thresholds).map(|(p, t)| p >= t);
            let bits = reached
                .enumerate()
                .fold(0, |set, (class, yes)| set | u64::from(yes) << class);
            Label(bits)
        }
        Kind::OneOf => {
            let most = (1..probabilities.len()).fold(0, |best, class| {
                match probabilities[class] > probabilities[best] {
                    true => class,
                    false => best,
                }
            });
            Label(most as u64)
        }
    }
}

fn class_metrics(target: &Target, table: &Table, sets: &Sets, class: usize) -> ClassMetrics {
    let (mut tp, mut fp, mut fn_, mut tn) = (0, 0, 0, 0);
    for (truth, guess) in sets.pairs() {
        match (truth >> class & 1 == 1, guess >> class & 1 == 1) {
            (true, true) => tp += 1,
            (false, true) => fp += 1,
            (true, false) => fn_ += 1,
            (false, false) => tn += 1,
        }
    }
    let ranking = table.ranking(target, class);
    ClassMetrics {
        auroc: ranking.auroc(),
        ap: ranking.average_precision(),
        ..ClassMetrics::from_counts(tp, fp, fn_, tn)
    }
}

struct Overlap {
    exact: u64,
    iou_sum: f64,
    dice_sum: f64,
}

/// Set overlap of truth and prediction, summed over samples in id order.
fn overlap(sets: &Sets) -> Overlap {
    let mut sums = Overlap {
        exact: 0,
        iou_sum: 0.0,
        dice_sum: 0.0,
    };
    for (truth, guess) in sets.pairs() {
        let (iou, dice) = set_overlap(truth, guess);
        sums.exact += u64::from(truth == guess);
        sums.iou_sum += iou;
        sums.dice_sum += dice;
    }
    sums
}

/// `(Jaccard, Dice)` of two sets of class bits; two empty sets agree fully: `(1, 1)`.
pub(super) fn set_overlap(a: u64, b: u64) -> (f64, f64) {
    let both = f64::from((a & b).count_ones());
    let either = f64::from((a | b).count_ones());
    if either == 0.0 {
        (1.0, 1.0)
    } else {
        (both / either, 2.0 * both / (both + either))
    }
}

/// Samples by true class (row) and predicted class (column), where each has one.
fn confusion(sets: &Sets, classes: usize) -> Vec<Vec<u64>> {
    let mut confusion = vec![vec![0u64; classes]; classes];
    for (truth, guess) in sets.pairs() {
        confusion[truth.trailing_zeros() as usize][guess.trailing_zeros() as usize] += 1;
    }
    confusion
}

/// Accuracy and Cohen's kappa (Cohen 1960) of samples with one class each; `confusion` is square and not all 0.
pub(super) fn agreement(confusion: Vec<Vec<u64>>) -> Agreement {
    let classes = confusion.len();
    let samples: u64 = confusion.iter().flatten().sum();
    let right: u64 = (0..classes).map(|class| confusion[class][class]).sum();
    let accuracy = right as f64 / samples as f64;
    let by_chance = |class: usize| {
        let truth: u64 = confusion[class].iter().sum();
        let guess: u64 = confusion.iter().map(|row| row[class]).sum();
        u128::from(truth) * u128::from(guess)
    };
    // In whole numbers, so that full agreement by chance is exactly that.
    let chance: u128 = (0..classes).map(by_chance).sum();
    let pairs = u128::from(samples).pow(2);
    let kappa = (chance < pairs).then(|| {
        let chance = chance as f64 / pairs as f64;
        (accuracy - chance) / (1.0 - chance)
    });
    Agreement {
        accuracy,
        kappa,
        confusion,
    }
}

/// Pearson correlation over all (sample, class) pairs, in two passes (means first: the one-pass
/// form cancels badly). `None` when probabilities or labels do not vary.
fn pearson(table: &Table, sets: &Sets, classes: usize) -> Option<f64> {
    let pairs = || {
        let scores = table.probabilities.chunks_exact(classes);
        scores.zip(&sets.truth).flat_map(|(scores, truth)| {
            let bit = move |class: usize| (truth >> class & 1) as f64;
            let score = scores.iter().map(|&p| f64::from(p));
            score.enumerate().map(move |(class, p)| (p, bit(class)))
        })
    };
    let count = table.probabilities.len() as f64;
    let first = table.probabilities.first()?;
    if table.probabilities.iter().all(|p| p == first) {
        return None; // A constant's computed variance may be a rounding error instead of 0.
    }
    let (sum_p, sum_y) = pairs().fold((0.0, 0.0), |(sp, sy), (p, y)| (sp + p, sy + y));
    let (mean_p, mean_y) = (sum_p / count, sum_y / count);
    let (mut pp, mut yy, mut py) = (0.0, 0.0, 0.0);
    for (p, y) in pairs() {
        let (dp, dy) = (p - mean_p, y - mean_y);
        pp += dp * dp;
        yy += dy * dy;
        py += dp * dy;
    }
    let scale = (pp * yy).sqrt();
    (scale > 0.0).then(|| (py / scale).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::fixture::{grade, lesions};
    use proptest::prelude::*;

    const HALF: [f32; 4] = [0.5; 4];

    /// Id, label and probabilities of a sample.
    type Row = (u64, u8, [f32; 4]);

    fn row(id: u64, label: u8, probs: [f32; 4]) -> Row {
        (id, label, probs)
    }

    fn compute(rows: &[Row], thresholds: [f32; 4], loss: f64) -> Result<Metrics> {
        super::compute(&lesions(), &Table::of(rows), &thresholds, loss)
    }

    #[test]
    fn worked_example() {
        // Truth {MA,HE} guess {MA}; truth {} guess {}; truth {EX} guess {SE}.
        let rows = [
            row(0, 0b0011, [0.9, 0.1, 0.2, 0.3]),
            row(1, 0b0000, [0.1, 0.1, 0.1, 0.1]),
            row(2, 0b0100, [0.0, 0.0, 0.4, 0.6]),
        ];
        let m = compute(&rows, HALF, 0.25).unwrap();
        assert_eq!(m.f1_micro, 2.0 / (2.0 + 1.0 + 2.0));
        assert_eq!(m.f1_macro, 0.25);
        assert_eq!(m.hamming, 3.0 / 12.0);
        assert_eq!(m.subset_acc, 1.0 / 3.0);
        assert_eq!(m.iou, (0.5 + 1.0 + 0.0) / 3.0);
        assert_eq!(m.dice, (2.0 / 3.0 + 1.0) / 3.0);
        assert_eq!((m.loss, m.samples), (0.25, 3));
        assert_eq!(m.per_class[3].auroc, None);
        assert_eq!(m.per_class[3].ap, None);
        // MA and EX are ranked right; HE: its positive ties with one negative, above the other.
        let he = 0.75;
        assert_eq!(m.per_class[1].auroc, Some(he));
        assert_eq!(m.mean_auroc, Some((1.0 + he + 1.0) / 3.0));
        let counts = m.per_class.iter();
        let counts: Vec<_> = counts
            .map(|c| (c.tp, c.fp, c.fn_, c.tn, c.positives))
            .collect();
        assert_eq!(
            counts,
            [
                (1, 0, 0, 2, 1),
                (0, 0, 1, 2, 1),
                (0, 0, 1, 2, 1),
                (0, 1, 0, 2, 0)
            ]
        );
    }

    #[test]
    fn all_healthy_and_called_healthy() {
        let rows: Vec<_> = (0..5).map(|id| row(id, 0, [0.1; 4])).collect();
        let m = compute(&rows, HALF, 0.0).unwrap();
        assert_eq!(
            (m.iou, m.dice, m.subset_acc, m.hamming),
            (1.0, 1.0, 1.0, 0.0)
        );
        assert_eq!((m.f1_micro, m.f1_macro), (0.0, 0.0));
        assert_eq!((m.pearson_r, m.mean_auroc, m.mean_ap), (None, None, None));
    }

    #[test]
    fn thresholds_are_per_class_and_inclusive() {
        let rows = [row(0, 0b0001, [0.3, 0.3, 0.3, 0.3])];
        let m = compute(&rows, [0.3, 0.4, 0.5, 0.6], 0.0).unwrap();
        assert_eq!((m.per_class[0].tp, m.f1_micro), (1, 1.0));
    }

    #[test]
    fn bad_rows_are_refused_and_named() {
        let text = |rows: &[Row]| compute(rows, HALF, 0.0).unwrap_err().to_string();
        assert!(text(&[]).contains("no samples"));
        assert!(text(&[row(7, 0, [0.0, f32::NAN, 0.0, 0.0])]).starts_with("sample 7, class HE"));
        assert!(text(&[row(7, 0, [0.0, 0.0, 1.5, 0.0])]).contains("1.5"));
        assert!(text(&[row(7, 16, [0.0; 4])]).contains("label byte 16"));
        assert!(text(&[row(7, 0, [0.0; 4]), row(7, 0, [0.0; 4])]).contains("more than once"));
        let loss = compute(&[row(0, 0, [0.0; 4])], HALF, f64::NAN)
            .unwrap_err()
            .to_string();
        assert!(loss.contains("the loss is NaN"));
        for message in [text(&[]), loss] {
            assert!(message.contains("\n  help: "), "{message}");
        }
    }

    #[test]
    fn worked_example_of_one_class_per_sample() {
        // Truth 0 0 1 2 2; predicted 0 1 1 2 0, the last as the first of two equal ones.
        let target = grade(3);
        let mut table = Table::default();
        for (id, label, scores) in [
            (9, 2, [0.4, 0.2, 0.4]),
            (0, 0, [0.8, 0.1, 0.1]),
            (1, 0, [0.2, 0.5, 0.3]),
            (5, 2, [0.1, 0.2, 0.7]),
            (2, 1, [0.3, 0.4, 0.3]),
        ] {
            table.push(id, Label(label), &scores);
        }
        let m = super::compute(&target, &table, &[], 0.5).unwrap();
        let agreement = m.agreement.clone().unwrap();
        assert_eq!(
            agreement.confusion,
            [vec![1, 1, 0], vec![0, 1, 0], vec![1, 0, 1]]
        );
        assert_eq!(
            (agreement.accuracy, m.subset_acc, m.f1_micro),
            (0.6, 0.6, 0.6)
        );
        assert_eq!((m.hamming, m.iou, m.dice, m.loss), (0.4, 0.6, 0.6, 0.5));
        // By chance: (2 * 2 + 1 * 2 + 2 * 1) / 25.
        assert_eq!(agreement.kappa, Some((0.6 - 0.32) / (1.0 - 0.32)));
        let f1: Vec<f64> = m.per_class.iter().map(|c| c.f1).collect();
        assert_eq!(f1, [0.5, 2.0 / 3.0, 2.0 / 3.0]);
        // Class 2: both positives above all negatives.
        assert_eq!(m.per_class[2].auroc, Some(1.0));

        // A sample without a label changes nothing, whatever its scores.
        table.push(3, Label::UNKNOWN, &[0.0, 0.0, 1.0]);
        assert_eq!(super::compute(&target, &table, &[], 0.5).unwrap(), m);
        let mut alone = Table::default();
        alone.push(3, Label::UNKNOWN, &[0.0, 0.0, 1.0]);
        let none = super::compute(&target, &alone, &[], 0.5);
        assert!(matches!(none, Err(Error::Empty)));
        alone.push(4, Label(1), &[0.0, 1.0, 0.0]);
        let one = super::compute(&target, &alone, &[], 0.5).unwrap();
        let agreement = one.agreement.unwrap();
        assert_eq!((agreement.accuracy, agreement.kappa), (1.0, None));
    }

    #[test]
    fn columns_must_fit() {
        let text = |target: &Target, table: &Table, thresholds: &[f32]| {
            let error = super::compute(target, table, thresholds, 0.0).unwrap_err();
            error.to_string()
        };
        let table = Table::of(&[row(7, 3, [0.5; 4])]);
        assert!(text(&lesions(), &table, &[0.5; 3]).contains("3 thresholds were given for 4"));
        assert!(text(&grade(5), &table, &[]).contains("4 probabilities of 5 classes"));
        let table = Table::of(&[row(7, 4, [0.25; 4])]);
        let message = text(&grade(4), &table, &[]);
        assert!(
            message.contains("label 4 is none of the 4 classes"),
            "{message}"
        );
    }

    fn rows_strategy() -> impl Strategy<Value = Vec<Row>> {
        let probs = prop::array::uniform4((0u8..=20).prop_map(|k| f32::from(k) / 20.0));
        prop::collection::vec((0u8..16, probs), 1..60).prop_map(|rows| {
            rows.into_iter()
                .enumerate()
                .map(|(i, (label, probs))| {
                    row((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15), label, probs)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn one_class_per_sample_agrees_with_its_definitions(
            rows in prop::collection::vec((0u64..3, prop::array::uniform3(0u8..5)), 1..40),
        ) {
            let mut table = Table::default();
            for (id, (label, scores)) in rows.iter().enumerate() {
                table.push(id as u64, Label(*label), &scores.map(|k| f32::from(k) / 4.0));
            }
            let m = super::compute(&grade(3), &table, &[], 0.0).unwrap();
            let right = rows.iter().filter(|(label, scores)| {
                let most = *scores.iter().max().unwrap();
                scores.iter().position(|&s| s == most) == Some(*label as usize)
            });
            let agreement = m.agreement.unwrap();
            let accuracy = right.count() as f64 / rows.len() as f64;
            prop_assert_eq!(agreement.accuracy, accuracy);
            prop_assert_eq!((m.subset_acc, m.f1_micro), (accuracy, accuracy));
            prop_assert!((m.hamming - (1.0 - accuracy)).abs() < 1e-12);
            prop_assert!(m.iou == accuracy && m.dice == accuracy);
            let counted: u64 = agreement.confusion.iter().flatten().sum();
            prop_assert_eq!(counted, m.samples);
            for (c, class) in m.per_class.iter().enumerate() {
                prop_assert_eq!(class.tp, agreement.confusion[c][c]);
                prop_assert_eq!(class.positives, agreement.confusion[c].iter().sum::<u64>());
            }
        }

        #[test]
        fn same_bits_for_any_order(rows in rows_strategy(), seed in any::<u64>()) {
            let expected = format!("{:?}", compute(&rows, HALF, 0.1).unwrap());
            let mut shuffled = rows.clone();
            shuffled.sort_by_key(|r| (r.0 ^ seed).wrapping_mul(0xD1B5_4A32_D192_ED03));
            prop_assert_eq!(format!("{:?}", compute(&shuffled, HALF, 0.1).unwrap()), expected);
        }

        #[test]
        fn auroc_is_the_fraction_of_ordered_pairs(rows in rows_strategy()) {
            let m = compute(&rows, HALF, 0.0).unwrap();
            for c in 0..4 {
                let has = |r: &&Row| r.1 >> c & 1 == 1;
                let (mut won, mut pairs) = (0.0, 0.0);
                for p in rows.iter().filter(has) {
                    for n in rows.iter().filter(|r| !has(r)) {
                        pairs += 1.0;
                        won += if p.2[c] > n.2[c] { 1.0 } else if p.2[c] == n.2[c] { 0.5 } else { 0.0 };
                    }
                }
                match m.per_class[c].auroc {
                    Some(a) => prop_assert!((a - won / pairs).abs() < 1e-12),
                    None => prop_assert_eq!(pairs, 0.0),
                }
            }
        }

        #[test]
        fn everything_stays_in_range(rows in rows_strategy()) {
            let m = compute(&rows, HALF, 0.0).unwrap();
            for v in [m.f1_micro, m.f1_macro, m.hamming, m.subset_acc, m.iou, m.dice] {
                prop_assert!((0.0..=1.0).contains(&v));
            }
            prop_assert!(m.iou <= m.dice && m.subset_acc <= m.iou);
            for c in m.per_class {
                prop_assert_eq!(c.tp + c.fp + c.fn_ + c.tn, m.samples);
                prop_assert_eq!(c.positives, c.tp + c.fn_);
            }
        }
    }
}
