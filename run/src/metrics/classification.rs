//! Scores that follow from a [`Metrics`] or from a table, and the classification report: what scikit-learn prints in
//! addition to the columns of `metrics.csv`.

use std::fmt::Write as _;

use fovea_task::{Kind, Target};
use serde::Serialize;

use super::{ClassMetrics, Metrics, Ranking, Table, mean_defined, ratio};

/// Precision, recall and F1, averaged over classes in one of scikit-learn's ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Averages {
    /// Averaged precision.
    pub precision: f64,
    /// Averaged recall.
    pub recall: f64,
    /// Averaged F1; not the F1 of the two others.
    pub f1: f64,
}

/// Areas under the ROC curve, averaged in scikit-learn's ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AurocAverages {
    /// Of all (sample, class) pairs as one class; `None` without both kinds of labels.
    pub micro: Option<f64>,
    /// Mean of the classes, each against the rest, over those that have both kinds of labels.
    #[serde(rename = "macro")]
    pub macro_: Option<f64>,
    /// The same mean, weighted by the samples with the class.
    pub weighted: Option<f64>,
}

/// Scores of one class that its four counts give.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassDetail {
    /// The class's name in its target.
    pub name: String,
    /// See [`ClassMetrics::specificity`].
    pub specificity: f64,
    /// See [`ClassMetrics::kappa`].
    pub kappa: Option<f64>,
    /// See [`ClassMetrics::f1_absent_and_present`].
    pub f1_absent_and_present: f64,
}

/// The scores of one target that scikit-learn's reports have in addition to [`Metrics`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// Of the counts of all classes, added up.
    pub micro: Averages,
    /// Mean of the classes.
    #[serde(rename = "macro")]
    pub macro_: Averages,
    /// Mean of the classes, weighted by the samples with the class.
    pub weighted: Averages,
    /// Areas under the ROC curves.
    pub auroc: AurocAverages,
    /// Mean over classes of [`ClassMetrics::f1_absent_and_present`].
    pub f1_absent_and_present: f64,
    /// Mean over classes of the specificity.
    pub specificity: f64,
    /// Mean of the classes' kappas that are defined, each class against the rest.
    pub mean_kappa: Option<f64>,
    /// In class order.
    pub classes: Vec<ClassDetail>,
}

impl ClassMetrics {
    /// `tn / (tn + fp)`, the recall of the samples without the class; 0 when there is none.
    #[must_use]
    pub fn specificity(&self) -> f64 {
        ratio(self.tn, self.tn + self.fp)
    }

    /// Cohen's kappa of truth and prediction of this class alone; `None` when both are one and the same throughout.
    #[must_use]
    pub fn kappa(&self) -> Option<f64> {
        let confusion = vec![vec![self.tn, self.fp], vec![self.fn_, self.tp]];
        super::compute::agreement(confusion).kappa
    }

    /// Mean of the F1 of having the class and the F1 of not having it, over those of the two that occur in truth or
    /// prediction: scikit-learn's `f1_score(average="macro")` on a column of zeros and ones.
    #[must_use]
    pub fn f1_absent_and_present(&self) -> f64 {
        let wrong = self.fp + self.fn_;
        let of = |right: u64| (right + wrong > 0).then(|| ratio(2 * right, 2 * right + wrong));
        mean_defined([of(self.tp), of(self.tn)].into_iter()).unwrap_or(0.0)
    }
}

impl Metrics {
    /// Averages of the counts of all classes, added up.
    #[must_use]
    pub fn micro_average(&self) -> Averages {
        let sum = |count: fn(&ClassMetrics) -> u64| self.per_class.iter().map(count).sum();
        let pooled = ClassMetrics::from_counts(sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_), 0);
        Averages {
            precision: pooled.precision,
            recall: pooled.recall,
            f1: pooled.f1,
        }
    }

    /// Averages in which each class counts once.
    #[must_use]
    pub fn macro_average(&self) -> Averages {
        self.average(|_| 1.0)
    }

    /// Averages in which each class counts as often as it occurs; 0 where none does.
    #[must_use]
    pub fn weighted_average(&self) -> Averages {
        self.average(|class| class.positives as f64)
    }

    fn average(&self, weight: fn(&ClassMetrics) -> f64) -> Averages {
        let total: f64 = self.per_class.iter().map(weight).sum();
        let of = |score: fn(&ClassMetrics) -> f64| match total > 0.0 {
            true => {
                self.per_class
                    .iter()
                    .map(|c| weight(c) * score(c))
                    .sum::<f64>()
                    / total
            }
            false => 0.0,
        };
        Averages {
            precision: of(|c| c.precision),
            recall: of(|c| c.recall),
            f1: of(|c| c.f1),
        }
    }
}

impl Table {
    /// The ranking of all (sample, class) pairs of the labelled samples as one class; probabilities must not be NaN.
    #[must_use]
    pub fn pooled_ranking(&self, target: &Target) -> Ranking {
        let scores = self.probabilities.chunks_exact(target.classes.len());
        let labelled = self
            .labels
            .iter()
            .zip(scores)
            .filter(|(label, _)| label.is_known());
        let pairs = labelled.flat_map(|(&label, scores)| {
            let scores = scores.iter().enumerate();
            scores.map(move |(class, &score)| (score, target.has(label, class)))
        });
        Ranking::new(pairs.collect())
    }
}

impl Classification {
    /// Those of a table, whose metrics are `metrics`.
    #[must_use]
    pub fn of(target: &Target, table: &Table, metrics: &Metrics) -> Self {
        let classes = target.classes.iter().zip(&metrics.per_class);
        let classes: Vec<ClassDetail> = classes
            .map(|(class, it)| ClassDetail {
                name: class.name.clone(),
                specificity: it.specificity(),
                kappa: it.kappa(),
                f1_absent_and_present: it.f1_absent_and_present(),
            })
            .collect();
        let mean = |score: fn(&ClassDetail) -> f64| {
            classes.iter().map(score).sum::<f64>() / classes.len().max(1) as f64
        };
        Self {
            micro: metrics.micro_average(),
            macro_: metrics.macro_average(),
            weighted: metrics.weighted_average(),
            auroc: AurocAverages {
                micro: table.pooled_ranking(target).auroc(),
                macro_: metrics.mean_auroc,
                weighted: weighted_auroc(metrics),
            },
            f1_absent_and_present: mean(|c| c.f1_absent_and_present),
            specificity: mean(|c| c.specificity),
            mean_kappa: mean_defined(classes.iter().map(|c| c.kappa)),
            classes,
        }
    }
}

impl Classification {
    /// What the [`classification_report`] leaves out, as text in its form: specificity, kappa and the F1 averaged over
    /// absent and present of each class, and the averaged areas under the ROC curves.
    #[must_use]
    pub fn details(&self) -> String {
        let optional = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
        let names = self.classes.iter().map(|class| class.name.chars().count());
        let width = names.fold("weighted avg".len(), usize::max);
        let mut out = String::new();
        let mut line = |name: &str, specificity: String, kappa: String, f1: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:>width$}  {specificity:>11} {kappa:>9} {f1:>22}");
        };
        let heads = ["specificity", "kappa", "F1 absent and present"].map(str::to_owned);
        let [specificity, kappa, f1] = heads;
        line("", specificity, kappa, f1);
        let some = |x: f64| format!("{x:.4}");
        for class in &self.classes {
            line(
                &class.name,
                some(class.specificity),
                optional(class.kappa),
                some(class.f1_absent_and_present),
            );
        }
        line(
            "macro avg",
            some(self.specificity),
            optional(self.mean_kappa),
            some(self.f1_absent_and_present),
        );
        let areas = &self.auroc;
        let _ = writeln!(
            out,
            "\nAUROC, one class against the rest: micro {}, macro {}, weighted {}",
            optional(areas.micro),
            optional(areas.macro_),
            optional(areas.weighted)
        );
        out
    }
}

fn weighted_auroc(metrics: &Metrics) -> Option<f64> {
    let defined = metrics.per_class.iter();
    let defined = defined.filter_map(|c| Some((c.positives as f64, c.auroc?)));
    let (weights, sum) = defined.fold((0.0, 0.0), |(weights, sum), (weight, area)| {
        (weights + weight, sum + weight * area)
    });
    (weights > 0.0).then(|| sum / weights)
}

/// scikit-learn's `classification_report(digits=4, zero_division=0)`: a line per class with precision, recall, F1 and
/// the number of samples with it, then the averages. Of classes that do not exclude each other it leaves out the line
/// `samples avg`; Dice in [`Metrics`] is its F1, with two empty sets counted as 1.
#[must_use]
pub fn classification_report(target: &Target, metrics: &Metrics) -> String {
    let names = target
        .classes
        .iter()
        .map(|class| class.name.chars().count());
    let width = names.fold("weighted avg".len(), usize::max);
    let mut out = format!(
        "{:>width$}  {:>9} {:>9} {:>9} {:>9}\n\n",
        "", "precision", "recall", "f1-score", "support"
    );
    for (class, it) in target.classes.iter().zip(&metrics.per_class) {
        let scores = Averages {
            precision: it.precision,
            recall: it.recall,
            f1: it.f1,
        };
        line(&mut out, width, &class.name, scores, it.positives);
    }
    let support: u64 = metrics.per_class.iter().map(|c| c.positives).sum();
    out.push('\n');
    match target.kind {
        Kind::OneOf => {
            let accuracy = metrics.micro_average().f1;
            let _ = writeln!(
                out,
                "{:>width$}  {:>9} {:>9} {accuracy:>9.4} {support:>9}",
                "accuracy", "", ""
            );
        }
        Kind::AnyOf => line(
            &mut out,
            width,
            "micro avg",
            metrics.micro_average(),
            support,
        ),
    }
    line(
        &mut out,
        width,
        "macro avg",
        metrics.macro_average(),
        support,
    );
    line(
        &mut out,
        width,
        "weighted avg",
        metrics.weighted_average(),
        support,
    );
    out
}

fn line(out: &mut String, width: usize, name: &str, it: Averages, support: u64) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{name:>width$}  {:>9.4} {:>9.4} {:>9.4} {support:>9}",
        it.precision, it.recall, it.f1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_the_counts_of_a_class() {
        let class = ClassMetrics::from_counts(6, 2, 1, 11);
        assert_eq!(class.specificity(), 11.0 / 13.0);
        assert_eq!(
            class.f1_absent_and_present(),
            (12.0 / 15.0 + 22.0 / 25.0) / 2.0
        );
        // Observed 17 / 20, by chance (7 * 8 + 13 * 12) / 400.
        assert_eq!(class.kappa(), Some((0.85 - 0.53) / (1.0 - 0.53)));
        // Rightly nothing at all: only "absent" occurs.
        let nothing = ClassMetrics::from_counts(0, 0, 0, 5);
        assert_eq!(
            (nothing.f1_absent_and_present(), nothing.kappa()),
            (1.0, None)
        );
        assert_eq!(ClassMetrics::from_counts(5, 0, 0, 0).specificity(), 0.0);
        assert_eq!(ClassMetrics::default().f1_absent_and_present(), 0.0);
    }

    #[test]
    fn details_stand_in_columns() {
        let target = crate::metrics::fixture::grade(2);
        let mut table = Table::default();
        for (id, (label, p)) in [(0, 0.75), (1, 0.5), (1, 0.25)].into_iter().enumerate() {
            table.push(id as u64, fovea_task::Label(label), &[p, 1.0 - p]);
        }
        let metrics = crate::metrics::compute(&target, &table, &[], 0.0).unwrap();
        let text = Classification::of(&target, &table, &metrics).details();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "              specificity     kappa  F1 absent and present"
        );
        assert_eq!(
            lines[1],
            "          g0       0.5000    0.4000                 0.6667"
        );
        assert_eq!(
            lines[3],
            "   macro avg       0.7500    0.4000                 0.6667"
        );
        assert!(
            lines[5].starts_with("AUROC, one class against the rest: micro 0.9444, macro 1.0000"),
            "{text}"
        );
    }

    #[test]
    fn averages_weigh_as_they_say() {
        let metrics = Metrics {
            per_class: vec![
                ClassMetrics::from_counts(3, 1, 1, 5),
                ClassMetrics::from_counts(0, 2, 1, 7),
            ],
            ..Metrics::default()
        };
        assert_eq!(metrics.macro_average().f1, 0.375);
        assert_eq!(metrics.weighted_average().recall, (4.0 * 0.75) / 5.0);
        assert_eq!(metrics.micro_average().precision, 0.5);
        assert_eq!(Metrics::default().weighted_average(), Averages::default());
    }
}
