//! Curves over epochs: every metric with its bands, trend and best epoch; scores per class.

use fovea_dataset::Split;
use fovea_run::config::MetricName;
use fovea_run::metrics::{ClassMetrics, MetricsRow, Quadratic};
use fovea_task::{Class, Target};

use super::super::chart::{Axis, Band, Chart, Count, MarkedPoint, Series, Size, Stroke};
use super::super::palette::Ink;
use super::super::run::Run;
use super::{metric_title, noun, unit_axis, whole_axis};

/// The bands of the published plots: two limits and the words below, between and above them.
fn bands(metric: MetricName) -> Vec<Band> {
    let (low, high, names, rising) = match metric {
        MetricName::F1Micro | MetricName::F1Macro | MetricName::Dice => {
            (0.6, 0.75, ["poor", "moderate", "good"], true)
        }
        MetricName::Hamming => (0.15, 0.25, ["good", "moderate", "high"], false),
        MetricName::SubsetAcc => (0.4, 0.65, ["low", "moderate", "good"], true),
        MetricName::Loss => (0.3, 0.6, ["low", "moderate", "high"], false),
        MetricName::PearsonR => (0.3, 0.6, ["weak", "moderate", "strong"], true),
        MetricName::Iou => (0.5, 0.7, ["low", "moderate", "high"], true),
        MetricName::MeanAuroc | MetricName::MeanAp => return Vec::new(),
    };
    let inks = if rising {
        [Ink::Poor, Ink::Middle, Ink::Good]
    } else {
        [Ink::Good, Ink::Middle, Ink::Poor]
    };
    let limits = [(f64::NEG_INFINITY, low), (low, high), (high, f64::INFINITY)];
    let band = |i: usize| Band {
        from: limits[i].0,
        to: limits[i].1,
        name: names[i],
        ink: inks[i],
    };
    vec![band(0), band(1), band(2)]
}

/// One chart per metric of `target`, then the scores per class; empty when nothing was validated.
pub(in super::super) fn over_epochs(run: &Run, target: &Target) -> Vec<Chart> {
    let metrics = MetricName::ALL
        .iter()
        .filter_map(|&metric| metric_curve(run, target, metric));
    metrics.chain(class_curves(run, target)).collect()
}

fn metric_curve(run: &Run, target: &Target, metric: MetricName) -> Option<Chart> {
    let points = |split| -> Vec<(f64, f64)> {
        let value = |row: &MetricsRow| {
            Some((
                f64::from(row.epoch),
                row.metrics.get(metric).filter(|v| v.is_finite())?,
            ))
        };
        run.history(split, target).filter_map(value).collect()
    };
    let (val, train) = (points(Split::Val), points(Split::Train));
    let last = *val.last()?;
    let trend: Vec<(f64, f64)> = Quadratic::fit(&val).map_or_else(Vec::new, |fit| {
        (0..=40)
            .map(|i| val[0].0 + (last.0 - val[0].0) * f64::from(i) / 40.0)
            .map(|x| (x, fit.at(x)))
            .collect()
    });
    let x = whole_axis(val.iter().chain(&train).map(|p| p.0), "epoch");
    let constant = run.baseline(target).and_then(|b| b.get(metric));
    let reference = constant.map_or_else(Vec::new, |c| vec![(x.min, c), (x.max, c)]);
    let best = run
        .best_epoch()
        .and_then(|epoch| val.iter().find(|p| p.0 == f64::from(epoch)));
    let y = value_axis(
        metric,
        val.iter().chain(&train).chain(&reference).map(|p| p.1),
    );
    let title = metric_title(metric);
    let named = |name: &str, ink, stroke, points| Series {
        name: name.to_owned(),
        ink,
        stroke,
        points,
    };
    Some(Chart {
        slug: format!(
            "{}-{}",
            super::slug(target),
            metric.name().replace('_', "-")
        ),
        title: format!("{title}, {}", noun(target)),
        alt: format!(
            "{title} on {} over epochs {} to {}: validation ends at {:.3}{}",
            noun(target),
            val[0].0,
            last.0,
            last.1,
            best.map_or_else(String::new, |b| format!(
                ", {:.3} at the best epoch {}",
                b.1, b.0
            ))
        ),
        note: String::new(),
        size: Size::Small,
        x,
        y,
        bands: bands(metric),
        mark: best.map(|b| MarkedPoint {
            at: *b,
            label: format!("epoch {}: {:.3}", b.0, b.1),
        }),
        series: vec![
            named("validation", Ink::Val, Stroke::Dotted(2.2), val),
            named("training", Ink::Train, Stroke::Dotted(1.8), train),
            named("quadratic trend", Ink::Val, Stroke::Dashed, trend),
            named("best constant", Ink::Constant, Stroke::Reference, reference),
        ],
        guides: Vec::new(),
        own_legend: false,
    })
}

/// Scores span 0..1; losses start at 0 and end a little above what occurs, so that they can be read.
fn value_axis(metric: MetricName, values: impl Iterator<Item = f64>) -> Axis {
    let (low, high) = values.fold((0.0f64, 0.0f64), |(lo, hi), v| (lo.min(v), hi.max(v)));
    let (min, max) = match metric {
        MetricName::Loss | MetricName::Hamming => (0.0, if high > 0.0 { high * 1.15 } else { 1.0 }),
        MetricName::PearsonR if low < 0.0 => (-1.0, 1.0),
        _ => (0.0, 1.0),
    };
    Axis {
        min,
        max,
        label: "",
        count: Count::Real,
    }
}

/// Every score that classes have one by one, over epochs.
fn class_curves(run: &Run, target: &Target) -> Vec<Chart> {
    type Score = fn(&ClassMetrics) -> Option<f64>;
    let scores: [(&str, &str, Score); 5] = [
        ("precision", "Precision per class", |c| Some(c.precision)),
        ("recall", "Recall per class", |c| Some(c.recall)),
        ("f1", "F1 per class", |c| Some(c.f1)),
        ("auroc", "AUROC per class", |c| c.auroc),
        ("ap", "Average precision per class", |c| c.ap),
    ];
    let charts = scores
        .iter()
        .filter_map(|(slug, title, score)| class_curve(run, target, slug, title, *score));
    charts.collect()
}

fn class_curve(
    run: &Run,
    target: &Target,
    slug: &str,
    title: &str,
    score: fn(&ClassMetrics) -> Option<f64>,
) -> Option<Chart> {
    let series: Vec<Series> = target
        .classes
        .iter()
        .enumerate()
        .map(|(class, Class { name, .. })| {
            let value = |row: &MetricsRow| {
                Some((f64::from(row.epoch), score(&row.metrics.per_class[class])?))
            };
            let points = run.history(Split::Val, target).filter_map(value).collect();
            Series {
                name: name.clone(),
                ink: Ink::Class(class),
                stroke: Stroke::Dotted(2.0),
                points,
            }
        })
        .collect();
    let last = |s: &Series| s.points.last().map(|p| format!("{} {:.3}", s.name, p.1));
    let ends: Vec<String> = series.iter().filter_map(last).collect();
    if ends.is_empty() {
        return None;
    }
    Some(Chart {
        slug: format!("{}-class-{slug}", super::slug(target)),
        title: format!("{title}, {}", noun(target)),
        alt: format!(
            "Validation {title} on {} over epochs, at the last: {}",
            noun(target),
            ends.join(", ")
        ),
        note: String::new(),
        size: Size::Small,
        x: whole_axis(
            series.iter().flat_map(|s| s.points.iter().map(|p| p.0)),
            "epoch",
        ),
        y: unit_axis(""),
        bands: Vec::new(),
        series,
        mark: None,
        guides: run.best_epoch().map(f64::from).into_iter().collect(),
        own_legend: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_the_published_ones() {
        let of = |metric, value: f64| {
            let band = bands(metric)
                .into_iter()
                .find(|b| b.from <= value && value < b.to)
                .unwrap();
            (band.name, band.ink)
        };
        assert_eq!(of(MetricName::F1Micro, 0.59), ("poor", Ink::Poor));
        assert_eq!(of(MetricName::Dice, 0.6), ("moderate", Ink::Middle));
        assert_eq!(of(MetricName::F1Micro, 0.75), ("good", Ink::Good));
        assert_eq!(of(MetricName::Hamming, 0.1), ("good", Ink::Good));
        assert_eq!(of(MetricName::Hamming, 0.3), ("high", Ink::Poor));
        assert_eq!(of(MetricName::SubsetAcc, 0.41).0, "moderate");
        assert_eq!(of(MetricName::SubsetAcc, 0.39).0, "low");
        assert_eq!(of(MetricName::Loss, 0.29), ("low", Ink::Good));
        assert_eq!(of(MetricName::Loss, 0.61), ("high", Ink::Poor));
        assert_eq!(of(MetricName::PearsonR, -0.2).0, "weak");
        assert_eq!(of(MetricName::PearsonR, 0.61).0, "strong");
        assert_eq!(of(MetricName::Iou, 0.69).0, "moderate");
        assert_eq!(of(MetricName::Iou, 0.71), ("high", Ink::Good));
    }
}
