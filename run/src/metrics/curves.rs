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
