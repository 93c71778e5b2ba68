//! ROC and precision-recall of the predictions in `predictions-val.csv`.

use fovea_run::metrics::{ClassMetrics, Ranking, curves};
use fovea_task::{Kind, Target};

use super::super::chart::{Chart, Series, Size, Stroke};
use super::super::palette::Ink;
use super::super::run::TargetScores;
use super::{noun, unit_axis};

fn rankings(scores: &TargetScores, target: &Target) -> Vec<Ranking> {
    (0..target.classes.len())
        .map(|class| scores.table.ranking(target, class))
        .collect()
}

/// ROC of each class and, where they exclude each other, of all pairs (micro) and the mean of the classes (macro); `None`
/// when no class has both kinds of samples.
pub(in super::super) fn roc(scores: &TargetScores, target: &Target) -> Option<Chart> {
    let mut series = Vec::new();
    let rankings = rankings(scores, target);
    if target.kind == Kind::OneOf {
        series.extend(roc_averages(scores, target, &rankings));
    }
    for (class, ranking) in rankings.iter().enumerate() {
        let Some((points, area)) = curves::roc(ranking).zip(ranking.auroc()) else {
            continue;
        };
        series.push(class_series(target, class, area, points));
    }
    series.push(Series {
        name: String::new(),
        ink: Ink::Constant,
        stroke: Stroke::Reference,
        points: vec![(0.0, 0.0), (1.0, 1.0)],
    });
    let mut chart = chart("roc", "ROC", target, series)?;
    chart.note = undefined(scores, target, |c| c.auroc);
    chart.x = unit_axis("false positive rate");
    chart.y = unit_axis("true positive rate");
    Some(chart)
}

fn roc_averages(scores: &TargetScores, target: &Target, rankings: &[Ranking]) -> Vec<Series> {
    let pooled = scores.table.pooled_ranking(target);
    let micro = curves::roc(&pooled).zip(pooled.auroc());
    let macro_ = curves::roc_macro(rankings).zip(scores.metrics.mean_auroc);
    let curves = [("micro", Ink::Val, micro), ("macro", Ink::Train, macro_)].into_iter();
    let series = curves.filter_map(|(name, ink, curve)| {
        let (points, area) = curve?;
        Some(Series {
            name: format!("{name} {area:.3}"),
            ink,
            stroke: Stroke::Line(2.6),
            points,
        })
    });
    series.collect()
}

/// Precision against recall of each class as a staircase; `None` when no class has positives.
pub(in super::super) fn precision_recall(scores: &TargetScores, target: &Target) -> Option<Chart> {
    let mut series = Vec::new();
    for (class, ranking) in rankings(scores, target).iter().enumerate() {
        let Some((points, area)) =
            curves::precision_recall(ranking).zip(ranking.average_precision())
        else {
            continue;
        };
        let prevalence =
            scores.metrics.per_class[class].positives as f64 / scores.metrics.samples as f64;
        series.push(Series {
            name: String::new(),
            ink: Ink::Class(class),
            stroke: Stroke::Reference,
            points: vec![(0.0, prevalence), (1.0, prevalence)],
        });
        series.push(class_series(target, class, area, stairs(&points)));
    }
    let mut chart = chart("pr", "Precision-recall", target, series)?;
    chart.note = undefined(scores, target, |c| c.ap);
    chart.x = unit_axis("recall");
    chart.y = unit_axis("precision");
    Some(chart)
}

fn class_series(target: &Target, class: usize, area: f64, points: Vec<(f64, f64)>) -> Series {
    Series {
        name: format!("{} {area:.3}", target.classes[class].name),
        ink: Ink::Class(class),
        stroke: Stroke::Line(2.0),
        points,
    }
}

/// Corner points of the staircase: each precision holds from the recall before it.
fn stairs(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let corners = points.windows(2).flat_map(|w| [(w[0].0, w[1].1), w[1]]);
    points.first().copied().into_iter().chain(corners).collect()
}

/// Which classes have no `area`.
fn undefined(
    scores: &TargetScores,
    target: &Target,
    area: fn(&ClassMetrics) -> Option<f64>,
) -> String {
    let classes = target.classes.iter().zip(&scores.metrics.per_class);
    let missing: Vec<&str> = classes
        .filter(|(_, scores)| area(scores).is_none())
        .map(|(class, _)| class.name.as_str())
        .collect();
    if missing.is_empty() {
        String::new()
    } else {
        format!(
            "Undefined for {}: validation has one kind of label only.",
            missing.join(", ")
        )
    }
}

fn chart(slug: &str, title: &str, target: &Target, series: Vec<Series>) -> Option<Chart> {
    let names: Vec<&str> = series
        .iter()
        .map(|s| s.name.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return None;
    }
    let area = if slug == "roc" {
        "area under the curve"
    } else {
        "average precision"
    };
    Some(Chart {
        slug: format!("{slug}-{}", super::slug(target)),
        title: format!("{title}, {}", noun(target)),
        alt: format!(
            "{title} curves on validation {}, {area}: {}",
            noun(target),
            names.join(", ")
        ),
        note: String::new(),
        size: Size::Tall,
        x: unit_axis(""),
        y: unit_axis(""),
        bands: Vec::new(),
        series,
        mark: None,
        guides: Vec::new(),
        own_legend: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stairs_drop_at_the_old_recall() {
        let points = [(0.0, 1.0), (0.5, 1.0), (1.0, 0.5)];
        assert_eq!(
            stairs(&points),
            [(0.0, 1.0), (0.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 0.5)]
        );
        assert_eq!(
            curves::line_area(&stairs(&points)),
            curves::stair_area(&points)
        );
    }
}
