//! The threshold of one class, chosen from its scores.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How thresholds are chosen, for each class by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The highest F1 over all thresholds that tell the scores apart.
    F1,
    /// The highest F1 over the multiples of this step between 0 and 1.
    Grid(f64),
    /// The highest threshold at which this share of the positives is found.
    Sensitivity(f64),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F1 => f.write_str("F1 over all scores"),
            Self::Grid(step) => write!(f, "F1 on a grid of {step}"),
            Self::Sensitivity(share) => write!(f, "a sensitivity of {share}"),
        }
    }
}

impl Rule {
    /// A sentence with what is wrong with the rule's number, if anything is.
    ///
    /// # Errors
    /// A step outside `[0.001, 0.5]`, or a share outside `(0, 1]`.
    pub fn check(self) -> Result<(), String> {
        match self {
            Self::Grid(step) if !(0.001..=0.5).contains(&step) => {
                Err(format!("a grid of {step}: 0.001 to 0.5 is possible"))
            }
            Self::Sensitivity(share) if !(share > 0.0 && share <= 1.0) => Err(format!(
                "a sensitivity of {share}: above 0, up to 1 is possible"
            )),
            _ => Ok(()),
        }
    }
}

/// Samples that reach a threshold: those with the class and those without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reached {
    tp: u64,
    fp: u64,
}

/// A threshold that tells scores apart, and the samples that reach it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    threshold: f32,
    reached: Reached,
}

/// The threshold for `scored`, pairs of a probability in `[0, 1]` and whether the sample has the class; a sample is
/// predicted to have it when its probability is `>=` the threshold. `None` without positives: every threshold finds all
/// of none.
///
/// Thresholds of [`Rule::F1`] and [`Rule::Sensitivity`] lie half-way between two scores, the lowest half-way to 0. Of
/// thresholds with equal F1 the one nearest to 0.5 is taken, and of two as near the higher one. F1 is compared exactly,
/// in integers.
#[must_use]
pub fn choose(scored: &[(f32, bool)], rule: Rule) -> Option<f32> {
    let positives = scored.iter().filter(|(_, has)| *has).count() as u64;
    if positives == 0 {
        return None;
    }
    let between = between_scores(scored);
    match rule {
        Rule::F1 => best_f1(between.into_iter(), positives),
        Rule::Grid(step) => {
            let steps = (1..).map(|k| f64::from(k) * step);
            let steps = steps.take_while(|t| *t < 1.0 - 1e-9);
            let candidates = steps.map(|t| {
                let threshold = t as f32;
                let reached = reached(&between, threshold, scored);
                Candidate { threshold, reached }
            });
            best_f1(candidates, positives)
        }
        Rule::Sensitivity(share) => {
            // The tolerance keeps 0.9 of 10 positives at 9.
            let wanted = (share * positives as f64 - 1e-9).ceil() as u64;
            let enough = between.iter().find(|c| c.reached.tp >= wanted);
            enough.map(|c| c.threshold)
        }
    }
}

/// One threshold below each distinct score, highest first.
fn between_scores(scored: &[(f32, bool)]) -> Vec<Candidate> {
    let mut sorted = scored.to_vec();
    sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let groups: Vec<&[(f32, bool)]> = sorted.chunk_by(|a, b| a.0 == b.0).collect();
    let (mut tp, mut fp) = (0, 0);
    let mut candidates = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        let with = group.iter().filter(|(_, has)| *has).count() as u64;
        tp += with;
        fp += group.len() as u64 - with;
        let score = group[0].0;
        let below = groups.get(i + 1).map_or(0.0, |next| next[0].0);
        let middle = ((f64::from(score) + f64::from(below)) / 2.0) as f32;
        candidates.push(Candidate {
            // Neighbours in f32 have nothing between them.
            threshold: if middle > below { middle } else { score },
            reached: Reached { tp, fp },
        });
    }
    candidates
}

/// The samples that reach a threshold that need not lie between scores.
fn reached(between: &[Candidate], threshold: f32, scored: &[(f32, bool)]) -> Reached {
    let count = scored.iter().filter(|(score, _)| *score >= threshold);
    let count = count.count() as u64;
    let same = between
        .iter()
        .find(|c| c.reached.tp + c.reached.fp == count);
    same.map_or(Reached { tp: 0, fp: 0 }, |c| c.reached)
}

fn best_f1(candidates: impl Iterator<Item = Candidate>, positives: u64) -> Option<f32> {
    let better = |a: &Candidate, b: &Candidate| {
        // F1 = 2 tp / (tp + fp + positives); positives > 0.
        let of = |c: &Candidate| {
            let sum = c.reached.tp + c.reached.fp + positives;
            (u128::from(c.reached.tp), u128::from(sum))
        };
        let ((tp_a, sum_a), (tp_b, sum_b)) = (of(a), of(b));
        let near = |c: &Candidate| (c.threshold - 0.5).abs();
        (tp_a * sum_b)
            .cmp(&(tp_b * sum_a))
            .then_with(|| near(b).total_cmp(&near(a)))
            .then_with(|| a.threshold.total_cmp(&b.threshold))
    };
    candidates.max_by(better).map(|c| c.threshold)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// F1 at a threshold, counted anew.
    fn f1(scored: &[(f32, bool)], threshold: f32) -> f64 {
        let count = |has: bool| {
            let reached = scored.iter().filter(|s| s.1 == has && s.0 >= threshold);
            reached.count() as f64
        };
        let positives = scored.iter().filter(|s| s.1).count() as f64;
        2.0 * count(true) / (count(true) + count(false) + positives)
    }

    #[test]
    fn thresholds_lie_between_scores() {
        let scored = [(0.9, true), (0.5, true), (0.4, false), (0.1, false)];
        let between =
            |a: f64, b: f64| Some(((f64::from(a as f32) + f64::from(b as f32)) / 2.0) as f32);
        assert_eq!(choose(&scored, Rule::F1), between(0.5, 0.4));
        assert_eq!(choose(&scored, Rule::Sensitivity(0.5)), between(0.9, 0.5));
        assert_eq!(choose(&scored, Rule::Sensitivity(0.51)), between(0.5, 0.4));
        assert_eq!(choose(&scored, Rule::Grid(0.25)), Some(0.5));
        assert_eq!(choose(&[(0.2, true)], Rule::F1), Some(0.1));
        assert_eq!(choose(&[(0.0, true)], Rule::F1), Some(0.0));
        assert_eq!(choose(&[(0.2, false)], Rule::F1), None);
        assert_eq!(choose(&[], Rule::Sensitivity(0.9)), None);
        let next = f32::from_bits(0.5f32.to_bits() + 1);
        let close = [(next, true), (0.5, false)];
        assert_eq!(choose(&close, Rule::F1), Some(next));
    }

    #[test]
    fn of_equal_thresholds_the_nearest_to_a_half_wins() {
        // Every grid point from 0.30 to 0.85 is as good.
        let scored = [(0.9, true), (0.26, false)];
        assert_eq!(choose(&scored, Rule::Grid(0.05)), Some(0.5));
        assert_eq!(choose(&scored, Rule::Grid(0.4)), Some(0.4));
        // F1 is 2/3 at 0.625 and at 0.375, and 1/2 between them.
        let scored = [(0.7, true), (0.55, false), (0.45, false), (0.4, true)];
        assert_eq!(choose(&scored, Rule::Grid(0.125)), Some(0.625));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (rule, why) in [
            (Rule::Grid(0.0), "a grid of 0"),
            (Rule::Grid(f64::NAN), "a grid of NaN"),
            (Rule::Grid(0.6), "0.001 to 0.5"),
            (Rule::Sensitivity(0.0), "above 0, up to 1"),
            (Rule::Sensitivity(1.1), "a sensitivity of 1.1"),
            (Rule::Sensitivity(f64::NAN), "a sensitivity of NaN"),
        ] {
            let error = rule.check().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(Rule::Grid(0.05).check(), Ok(()));
        assert_eq!(Rule::Sensitivity(1.0).check(), Ok(()));
    }

    proptest! {
        #[test]
        fn no_threshold_is_better_than_the_chosen_one(
            scored in prop::collection::vec((0u8..=20, any::<bool>()), 1..60),
            others in prop::collection::vec(0f32..=1.0, 20),
        ) {
            let scored: Vec<(f32, bool)> =
                scored.into_iter().map(|(s, has)| (f32::from(s) / 20.0, has)).collect();
            let positives = scored.iter().filter(|s| s.1).count() as f64;
            let Some(exact) = choose(&scored, Rule::F1) else {
                prop_assert_eq!(positives, 0.0);
                return Ok(());
            };
            let best = f1(&scored, exact);
            for t in others.iter().chain(scored.iter().map(|s| &s.0)) {
                prop_assert!(f1(&scored, *t) <= best + 1e-12, "{} beats {}", t, exact);
            }
            let grid = choose(&scored, Rule::Grid(0.05)).unwrap();
            let on_grid = (1..20).map(|k| f1(&scored, (f64::from(k) * 0.05) as f32));
            let on_grid = on_grid.fold(0.0, f64::max);
            prop_assert!((f1(&scored, grid) - on_grid).abs() < 1e-12);
            let found = |t: f32| {
                scored.iter().filter(|s| s.1 && s.0 >= t).count() as f64 / positives
            };
            let t = choose(&scored, Rule::Sensitivity(0.8)).unwrap();
            prop_assert!(found(t) >= 0.8 - 1e-9);
            // The next score up would find too few.
            let higher = scored.iter().map(|s| s.0).filter(|s| *s > t);
            let above = higher.filter(|s| found(*s) < found(t)).fold(f32::MAX, f32::min);
            prop_assert!(found(above) < 0.8 - 1e-9);
        }
    }
}
