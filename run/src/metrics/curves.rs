//! ROC and precision-recall curves as points to draw, thinned so that a page stays small.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Ranking;

/// No curve has more points than this.
pub const MAX_POINTS: usize = 500;

/// `(x, y)`, both in `[0, 1]`.
pub type Point = (f64, f64);

/// `(false positive rate, true positive rate)` from (0, 0) to (1, 1), joined by straight lines.
/// `None` unless there are positives and negatives.
#[must_use]
pub fn roc(ranking: &Ranking) -> Option<Vec<Point>> {
    if ranking.positives == 0 || ranking.negatives == 0 {
        return None;
    }
    let (mut tp, mut fp) = (0, 0);
    let mut points = vec![(0.0, 0.0)];
    for tie in &ranking.ties {
        tp += tie.positives;
        fp += tie.negatives;
        points.push((
            fp as f64 / ranking.negatives as f64,
            tp as f64 / ranking.positives as f64,
        ));
    }
    Some(thin(points, MAX_POINTS, |a, b, c| {
        ((b.0 - a.0) * (c.1 - a.1) - (c.0 - a.0) * (b.1 - a.1)).abs() / 2.0
    }))
}

/// The mean of the classes' ROC curves at every false positive rate, from (0, 0) to (1, 1), over the classes that have
/// positives and negatives: the macro-average, whose area is the mean of theirs. `None` without such a class.
#[must_use]
pub fn roc_macro(rankings: &[Ranking]) -> Option<Vec<Point>> {
    let curves: Vec<Vec<Point>> = rankings.iter().filter_map(roc).collect();
    if curves.is_empty() {
        return None;
    }
    let mut rates: Vec<f64> = curves.iter().flatten().map(|point| point.0).collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates.dedup();
    let mut points = Vec::with_capacity(2 * rates.len());
    for x in rates {
        // A curve that rises vertically here has two heights, and so has the mean.
        let both: Vec<(f64, f64)> = curves.iter().map(|curve| heights(curve, x)).collect();
        let mean = |height: fn(&(f64, f64)) -> f64| {
            both.iter().map(height).sum::<f64>() / both.len() as f64
        };
        let (lower, upper) = (mean(|it| it.0), mean(|it| it.1));
        points.push((x, lower));
        if upper > lower {
            points.push((x, upper));
        }
    }
    Some(thin(points, MAX_POINTS, |a, b, c| {
        ((b.0 - a.0) * (c.1 - a.1) - (c.0 - a.0) * (b.1 - a.1)).abs() / 2.0
    }))
}

/// The lowest and the highest value at `x` of straight lines between points that rise in both coordinates.
fn heights(curve: &[Point], x: f64) -> (f64, f64) {
    let first = curve.partition_point(|point| point.0 < x);
    let behind = curve.partition_point(|point| point.0 <= x);
    if first < behind {
        return (curve[first].1, curve[behind - 1].1);
    }
    let between = || {
        let (a, b) = (curve.get(first.checked_sub(1)?)?, curve.get(first)?);
        Some(a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0))
    };
    let height = between().unwrap_or(0.0);
    (height, height)
}

/// `(recall, precision)` by rising recall, to be drawn as a staircase: the precision of a point
/// holds from the recall of the point before it. The area under it is the average precision.
/// `None` without positives.
#[must_use]
pub fn precision_recall(ranking: &Ranking) -> Option<Vec<Point>> {
    if ranking.positives == 0 {
        return None;
    }
    let (mut tp, mut predicted) = (0, 0);
    let mut points = Vec::new();
    for tie in &ranking.ties {
        tp += tie.positives;
        predicted += tie.positives + tie.negatives;
        // A score that only negatives have moves no recall: it adds no stair.
        if tie.positives > 0 {
            points.push((
                tp as f64 / ranking.positives as f64,
                tp as f64 / predicted as f64,
            ));
        }
    }
    let first = points.first().map_or(1.0, |p| p.1);
    points.insert(0, (0.0, first));
    Some(thin(points, MAX_POINTS, |a, b, c| {
        (b.0 - a.0) * (b.1 - c.1).abs()
    }))
}

/// Area under a staircase as [`precision_recall`] returns it.
#[must_use]
pub fn stair_area(points: &[Point]) -> f64 {
    points.windows(2).map(|w| (w[1].0 - w[0].0) * w[1].1).sum()
}

/// Area under straight lines between the points.
#[must_use]
pub fn line_area(points: &[Point]) -> f64 {
    points
        .windows(2)
        .map(|w| (w[1].0 - w[0].0) * (w[1].1 + w[0].1) / 2.0)
        .sum()
}

/// Removes inner points, always the one whose loss (`cost(before, it, after)`) changes the area
/// least, until `max` are left (Visvalingam and Whyatt 1993).
fn thin(points: Vec<Point>, max: usize, cost: impl Fn(Point, Point, Point) -> f64) -> Vec<Point> {
    let count = points.len();
    if count <= max.max(2) {
        return points;
    }
    // Bits of a non-negative float order like the float: the heap needs no wrapper type.
    let price =
        |a: usize, b: usize, c: usize| cost(points[a], points[b], points[c]).abs().to_bits();
    let mut before: Vec<usize> = (0..count).map(|i| i.saturating_sub(1)).collect();
    let mut after: Vec<usize> = (1..=count).collect();
    let mut prices: Vec<u64> = vec![0; count];
    let mut alive = vec![true; count];
    let mut heap = BinaryHeap::new();
    for (i, slot) in prices.iter_mut().enumerate().take(count - 1).skip(1) {
        *slot = price(i - 1, i, i + 1);
        heap.push(Reverse((*slot, i)));
    }
    let mut left = count;
    while left > max {
        let Some(Reverse((paid, i))) = heap.pop() else {
            break;
        };
        if !alive[i] || paid != prices[i] {
            continue; // An entry from before a neighbour went.
        }
        alive[i] = false;
        left -= 1;
        let (a, c) = (before[i], after[i]);
        after[a] = c;
        before[c] = a;
        for k in [a, c] {
            if k > 0 && k < count - 1 {
                prices[k] = price(before[k], k, after[k]);
                heap.push(Reverse((prices[k], k)));
            }
        }
    }
    (0..count)
        .filter(|&i| alive[i])
        .map(|i| points[i])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores from a fixed multiplicative hash: positives lean high.
    fn noisy(count: u64, rarity: u64) -> Ranking {
        let unit =
            |x: u64| (x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1u64 << 24) as f32;
        Ranking::new(
            (1..=count)
                .map(|i| {
                    let positive = i % rarity == 0;
                    let draw = unit(i.wrapping_mul(i) ^ 0x5555);
                    (if positive { draw.sqrt() } else { draw }, positive)
                })
                .collect(),
        )
    }

    #[test]
    fn thinned_curves_keep_their_area() {
        for (count, rarity) in [(30_000, 2), (30_000, 11), (5_000, 60)] {
            let ranking = noisy(count, rarity);
            let roc = roc(&ranking).unwrap();
            assert!(roc.len() <= MAX_POINTS);
            assert_eq!((roc[0], *roc.last().unwrap()), ((0.0, 0.0), (1.0, 1.0)));
            assert!((line_area(&roc) - ranking.auroc().unwrap()).abs() < 1e-4);
            let pr = precision_recall(&ranking).unwrap();
            assert!(pr.len() <= MAX_POINTS);
            assert!((stair_area(&pr) - ranking.average_precision().unwrap()).abs() < 2e-3);
            assert!(pr.windows(2).all(|w| w[0].0 <= w[1].0) && pr.last().unwrap().0 == 1.0);
        }
    }

    #[test]
    fn the_macro_average_is_the_mean_of_the_curves() {
        let step = |scores: &[(f32, bool)]| Ranking::new(scores.to_vec());
        // One class is ranked without a fault, one the wrong way round, one has no negative.
        let perfect = step(&[(0.9, true), (0.1, false)]);
        let reversed = step(&[(0.9, false), (0.1, true)]);
        let undefined = step(&[(0.5, true)]);
        let points = roc_macro(&[perfect.clone(), reversed, undefined.clone()]).unwrap();
        assert_eq!(points, [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]);
        assert_eq!(roc_macro(std::slice::from_ref(&perfect)), roc(&perfect));
        assert_eq!(roc_macro(&[undefined]), None);

        let some = [noisy(4000, 3), noisy(900, 7), noisy(50, 2)];
        let mean = some.iter().map(|r| r.auroc().unwrap()).sum::<f64>() / 3.0;
        let points = roc_macro(&some).unwrap();
        assert!(points.len() <= MAX_POINTS);
        assert!((line_area(&points) - mean).abs() < 1e-4);
        assert!(
            points
                .windows(2)
                .all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1)
        );
    }

    #[test]
    fn short_curves_are_exact() {
        let ranking = Ranking::new(vec![(0.9, true), (0.8, false), (0.7, true), (0.7, false)]);
        assert_eq!(
            roc(&ranking).unwrap(),
            [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (1.0, 1.0)]
        );
        let pr = precision_recall(&ranking).unwrap();
        assert_eq!(pr, [(0.0, 1.0), (0.5, 1.0), (1.0, 0.5)]);
        assert_eq!(stair_area(&pr), ranking.average_precision().unwrap());
    }

    #[test]
    fn undefined_curves_are_none() {
        assert!(roc(&Ranking::new(vec![(0.5, true)])).is_none());
        assert!(roc(&Ranking::new(vec![])).is_none());
        assert!(precision_recall(&Ranking::new(vec![(0.5, false)])).is_none());
    }
}
