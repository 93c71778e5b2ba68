//! All scores of one set of rows.

use fovea_dataset::CLASSES;

use super::{
    CLASS_COUNT, ClassMetrics, Error, LABEL_MASK, Metrics, Ranking, Result, Scored, mean_defined,
};

/// Computes every metric of `rows`, which hold each sample once, in any order.
///
/// `thresholds` turn probabilities into predicted bits (`>=`); `loss` is the mean loss the caller
/// measured and is passed through. The result has the same bits for every permutation of `rows`.
///
/// # Errors
/// No rows, an id twice, a probability outside `[0, 1]` or NaN, a label beyond the four classes, a
/// NaN threshold, or a loss that is not finite.
pub fn compute(rows: &[Scored], thresholds: [f32; CLASS_COUNT], loss: f64) -> Result<Metrics> {
    check(rows, thresholds, loss)?;
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|row| row.id);
    if let Some(pair) = rows.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Error::Duplicate {
            id: pair[0].id,
            samples: rows.len(),
        });
    }

    let per_class = std::array::from_fn(|class| class_metrics(&rows, class, thresholds[class]));
    let sum = |count: fn(&ClassMetrics) -> u64| per_class.iter().map(count).sum::<u64>();
    let (tp, fp, fn_) = (sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_));
    let pooled = ClassMetrics::from_counts(tp, fp, fn_, 0);
    let overlap = overlap(&rows, thresholds);
    let samples = rows.len() as f64;
    Ok(Metrics {
        f1_micro: pooled.f1,
        f1_macro: per_class.iter().map(|c| c.f1).sum::<f64>() / CLASS_COUNT as f64,
        hamming: (fp + fn_) as f64 / (samples * CLASS_COUNT as f64),
        subset_acc: overlap.exact as f64 / samples,
        iou: overlap.iou_sum / samples,
        dice: overlap.dice_sum / samples,
        pearson_r: pearson(&rows),
        loss,
        mean_auroc: mean_defined(per_class.iter().map(|c| c.auroc)),
        mean_ap: mean_defined(per_class.iter().map(|c| c.ap)),
        per_class,
        samples: rows.len() as u64,
    })
}

fn check(rows: &[Scored], thresholds: [f32; CLASS_COUNT], loss: f64) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::Empty);
    }
    if !loss.is_finite() {
        return Err(Error::BadLoss(loss));
    }
    for (class, &value) in thresholds.iter().enumerate() {
        if value.is_nan() {
            return Err(Error::BadThreshold {
                class: CLASSES[class],
                value,
            });
        }
    }
    for row in rows {
        if row.label & !LABEL_MASK != 0 {
            return Err(Error::BadLabel {
                id: row.id,
                label: row.label,
            });
        }
        for (class, &value) in row.probs.iter().enumerate() {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::BadProbability {
                    id: row.id,
                    class: CLASSES[class],
                    value,
                });
            }
        }
    }
    Ok(())
}

/// The label byte that `probs` predict at `thresholds`.
fn predicted(probs: &[f32; CLASS_COUNT], thresholds: [f32; CLASS_COUNT]) -> u8 {
    (0..CLASS_COUNT).fold(0, |label, c| {
        label | (u8::from(probs[c] >= thresholds[c]) << c)
    })
}

fn class_metrics(rows: &[Scored], class: usize, threshold: f32) -> ClassMetrics {
    let (mut tp, mut fp, mut fn_, mut tn) = (0, 0, 0, 0);
    for row in rows {
        match (row.label >> class & 1 == 1, row.probs[class] >= threshold) {
            (true, true) => tp += 1,
            (false, true) => fp += 1,
            (true, false) => fn_ += 1,
            (false, false) => tn += 1,
        }
    }
    let ranking = Ranking::new(
        rows.iter()
            .map(|r| (r.probs[class], r.label >> class & 1 == 1))
            .collect(),
    );
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

/// Set overlap of truth and prediction, summed over samples in the given order.
fn overlap(rows: &[Scored], thresholds: [f32; CLASS_COUNT]) -> Overlap {
    let mut sums = Overlap {
        exact: 0,
        iou_sum: 0.0,
        dice_sum: 0.0,
    };
    for row in rows {
        let guess = predicted(&row.probs, thresholds);
        let (iou, dice) = set_overlap(row.label, guess);
        sums.exact += u64::from(row.label == guess);
        sums.iou_sum += iou;
        sums.dice_sum += dice;
    }
    sums
}

/// `(Jaccard, Dice)` of two label bytes; two empty sets agree fully: `(1, 1)`.
pub(super) fn set_overlap(a: u8, b: u8) -> (f64, f64) {
    let both = f64::from((a & b).count_ones());
    let either = f64::from((a | b).count_ones());
    if either == 0.0 {
        (1.0, 1.0)
    } else {
        (both / either, 2.0 * both / (both + either))
    }
}

/// Pearson correlation over all (sample, class) pairs, in two passes (means first: the one-pass
/// form cancels badly). `None` when probabilities or labels do not vary.
fn pearson(rows: &[Scored]) -> Option<f64> {
    let pairs = || {
        rows.iter().flat_map(|row| {
            (0..CLASS_COUNT).map(move |c| (f64::from(row.probs[c]), f64::from(row.label >> c & 1)))
        })
    };
    let count = (rows.len() * CLASS_COUNT) as f64;
    let first = rows.first()?.probs[0];
    if rows.iter().all(|row| row.probs.iter().all(|&p| p == first)) {
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
    use proptest::prelude::*;

    const HALF: [f32; 4] = [0.5; 4];

    fn row(id: u64, label: u8, probs: [f32; 4]) -> Scored {
        Scored { id, label, probs }
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
        let counts = m.per_class.map(|c| (c.tp, c.fp, c.fn_, c.tn, c.positives));
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
        let text = |rows: &[Scored]| compute(rows, HALF, 0.0).unwrap_err().to_string();
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

    fn rows_strategy() -> impl Strategy<Value = Vec<Scored>> {
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
        fn same_bits_for_any_order(rows in rows_strategy(), seed in any::<u64>()) {
            let expected = format!("{:?}", compute(&rows, HALF, 0.1).unwrap());
            let mut shuffled = rows.clone();
            shuffled.sort_by_key(|r| (r.id ^ seed).wrapping_mul(0xD1B5_4A32_D192_ED03));
            prop_assert_eq!(format!("{:?}", compute(&shuffled, HALF, 0.1).unwrap()), expected);
        }

        #[test]
        fn auroc_is_the_fraction_of_ordered_pairs(rows in rows_strategy()) {
            let m = compute(&rows, HALF, 0.0).unwrap();
            for c in 0..4 {
                let has = |r: &&Scored| r.label >> c & 1 == 1;
                let (mut won, mut pairs) = (0.0, 0.0);
                for p in rows.iter().filter(has) {
                    for n in rows.iter().filter(|r| !has(r)) {
                        pairs += 1.0;
                        won += if p.probs[c] > n.probs[c] { 1.0 } else if p.probs[c] == n.probs[c] { 0.5 } else { 0.0 };
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
