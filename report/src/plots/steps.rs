//! Curves over steps: loss and learning rate, throughput per rank, where a step's time goes.

use fovea_run::run_dir::StepRow;

use super::super::chart::{Axis, Chart, Count, Series, Size, Stroke};
use super::super::palette::{Ink, RANK_COLOURS};
use super::super::throughput::{Throughput, quantile, thin_mean};
use super::whole_axis;

/// Points of a curve over steps; more are averaged.
const POINTS: usize = 240;

type Points = Vec<(f64, f64)>;

/// Loss and learning rate over steps.
pub(in super::super) fn training(throughput: &Throughput) -> Vec<Chart> {
    // Ranks may report their own loss or the common one: weighted by samples, both give the step's.
    let loss: Points = throughput
        .steps()
        .filter_map(|rows| {
            let samples: u64 = rows.iter().map(|r| r.samples).sum();
            let sum: f64 = rows.iter().map(|r| r.loss * r.samples as f64).sum();
            finite(rows[0].step, sum / samples as f64)
        })
        .collect();
    let lr: Points = throughput
        .steps()
        .filter_map(|rows| finite(rows[0].step, rows[0].lr.into()))
        .collect();
    let smooth = running_mean(&loss);
    let raw = match loss.len().div_ceil(POINTS) {
        0 | 1 => "each step".to_owned(),
        many => format!("mean of {many} steps"),
    };
    let last = |points: &Points| points.last().map_or(0.0, |p| p.1);
    let loss_chart = Chart {
        series: vec![
            series(
                "running mean",
                Ink::Val,
                Stroke::Line(2.2),
                thin_mean(&smooth, POINTS),
            ),
            series(
                &raw,
                Ink::Train,
                Stroke::Line(1.0),
                thin_mean(&loss, POINTS),
            ),
        ],
        y: Axis {
            min: 0.0,
            max: top(&[&loss]),
            label: "loss per sample",
            count: Count::Real,
        },
        alt: format!(
            "Training loss over {} steps; running mean at the end {:.4}",
            loss.len(),
            last(&smooth)
        ),
        ..steps_chart("loss-steps", "Training loss", throughput)
    };
    let lr_chart = Chart {
        y: Axis {
            min: 0.0,
            max: top(&[&lr]),
            label: "",
            count: Count::Real,
        },
        alt: format!(
            "Learning rate over {} steps; {:e} at the end",
            lr.len(),
            last(&lr)
        ),
        series: vec![series(
            "",
            Ink::Val,
            Stroke::Line(2.2),
            thin_mean(&lr, POINTS),
        )],
        ..steps_chart("learning-rate", "Learning rate", throughput)
    };
    [loss_chart, lr_chart]
        .into_iter()
        .filter(|c| c.series.iter().any(|s| !s.points.is_empty()))
        .collect()
}

/// Throughput, where the time of a step goes, and what tells a slow rank from one that waits for it.
pub(in super::super) fn speed(throughput: &Throughput) -> Vec<Chart> {
    let per_rank = |slug, title, label, value: fn(&StepRow) -> f64| {
        rank_chart(throughput, slug, title, label, value)
    };
    vec![
        per_rank(
            "throughput-samples",
            "Throughput per rank",
            "samples per second",
            |r| r.samples as f64 * 1000.0 / f64::from(r.step_ms),
        ),
        time_chart(throughput),
        per_rank(
            "throughput-compute",
            "Compute per rank",
            "milliseconds per step",
            |r| r.compute_ms.into(),
        ),
        per_rank(
            "throughput-wait",
            "Waiting per rank",
            "milliseconds per step",
            |r| r.wait_ms.into(),
        ),
    ]
}

/// One line per rank.
fn rank_chart(
    throughput: &Throughput,
    slug: &str,
    title: &str,
    label: &'static str,
    value: fn(&StepRow) -> f64,
) -> Chart {
    let ranks = throughput.ranks();
    let curve = |rank| -> Points {
        let points: Points = throughput
            .of_rank(rank)
            .filter_map(|row| finite(row.step, value(row)))
            .collect();
        thin_mean(&points, POINTS)
    };
    let curves: Vec<Points> = ranks.iter().map(|&rank| curve(rank)).collect();
    let max = top(&curves.iter().collect::<Vec<_>>());
    let above = curves.iter().flatten().filter(|p| p.1 > max).count();
    let named = ranks.len() <= RANK_COLOURS;
    let lines = ranks
        .iter()
        .zip(curves)
        .enumerate()
        .map(|(i, (&rank, points))| {
            let name = if named {
                format!("rank {rank}")
            } else {
                String::new()
            };
            // Ranks in step have the same rate: the ones beneath stay visible by being wider.
            let width = 1.4 + 1.6 * i as f64 / ranks.len() as f64;
            series(&name, Ink::Rank(rank), Stroke::Line(width), points)
        });
    let many = if named {
        String::new()
    } else {
        format!("{} ranks, one line each. ", ranks.len())
    };
    Chart {
        series: lines.collect(),
        y: Axis {
            min: 0.0,
            max,
            label,
            count: Count::Real,
        },
        alt: format!("{title}: {label} of {} ranks over steps", ranks.len()),
        note: many + &cut_note(above),
        ..steps_chart(slug, title, throughput)
    }
}

fn cut_note(above: usize) -> String {
    match above {
        0 => String::new(),
        1 => "One slow point is cut at the top.".to_owned(),
        many => format!("{many} slow points are cut at the top."),
    }
}

/// Step, compute and wait time, mean over ranks.
fn time_chart(throughput: &Throughput) -> Chart {
    let mean = |field: fn(&StepRow) -> f64| -> Points {
        let value = |rows: &[StepRow]| rows.iter().map(field).sum::<f64>() / rows.len() as f64;
        thin_mean(
            &throughput
                .steps()
                .filter_map(|rows| finite(rows[0].step, value(rows)))
                .collect::<Points>(),
            POINTS,
        )
    };
    let (step, compute, wait) = (
        mean(|r| r.step_ms.into()),
        mean(|r| r.compute_ms.into()),
        mean(|r| r.wait_ms.into()),
    );
    let max = top(&[&step]);
    let above = step.iter().filter(|p| p.1 > max).count();
    Chart {
        series: vec![
            series("step", Ink::Text, Stroke::Line(2.0), step),
            series("compute", Ink::Rank(0), Stroke::Line(1.6), compute),
            series("waiting", Ink::Rank(1), Stroke::Line(1.6), wait),
        ],
        y: Axis {
            min: 0.0,
            max,
            label: "milliseconds, mean over ranks",
            count: Count::Real,
        },
        alt: "Milliseconds per step, computing and waiting, mean over ranks, over steps".to_owned(),
        note: cut_note(above),
        ..steps_chart("throughput-times", "Where a step's time goes", throughput)
    }
}

fn steps_chart(slug: &str, title: &str, throughput: &Throughput) -> Chart {
    Chart {
        slug: slug.to_owned(),
        title: title.to_owned(),
        alt: String::new(),
        note: String::new(),
        size: Size::Wide,
        x: whole_axis(throughput.rows.iter().map(|r| r.step as f64), "step"),
        y: Axis {
            min: 0.0,
            max: 1.0,
            label: "",
            count: Count::Real,
        },
        bands: Vec::new(),
        series: Vec::new(),
        mark: None,
        guides: epoch_starts(throughput),
        own_legend: true,
    }
}

fn series(name: &str, ink: Ink, stroke: Stroke, points: Points) -> Series {
    Series {
        name: name.to_owned(),
        ink,
        stroke,
        points,
    }
}

fn finite(step: u64, value: f64) -> Option<(f64, f64)> {
    value.is_finite().then_some((step as f64, value))
}

/// Steps at which an epoch begins; none when there are too many to tell apart.
fn epoch_starts(throughput: &Throughput) -> Vec<f64> {
    let changes = throughput
        .rows
        .windows(2)
        .filter(|w| w[0].epoch != w[1].epoch);
    let starts: Vec<f64> = changes.map(|w| w[1].step as f64).collect();
    if starts.len() <= 30 {
        starts
    } else {
        Vec::new()
    }
}

/// Upper end of an axis from 0: the largest value, unless a few outliers (a first step that loads
/// libraries) would flatten everything else.
fn top(curves: &[&Points]) -> f64 {
    let mut values: Vec<f64> = curves.iter().flat_map(|c| c.iter().map(|p| p.1)).collect();
    values.sort_by(f64::total_cmp);
    let (most, largest) = (quantile(&values, 0.95), quantile(&values, 1.0));
    let end = if largest > 2.0 * most {
        most * 1.5
    } else {
        largest * 1.08
    };
    if end > 0.0 { end } else { 1.0 }
}

/// Mean over the nearest twentieth of all steps (at least 5): enough to see through batch noise. The
/// window is centred, and narrower towards the ends, so that the curve does not lag.
fn running_mean(points: &Points) -> Points {
    let half = (points.len() / 40).max(2);
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, p| {
            *sum += p.1;
            Some(*sum)
        }))
        .collect();
    let mean = |i: usize| {
        let reach = half.min(i).min(points.len() - 1 - i);
        (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) as f64
    };
    points
        .iter()
        .enumerate()
        .map(|(i, point)| (point.0, mean(i)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_mean_of_a_constant_and_of_few() {
        let flat: Points = (0..200).map(|i| (f64::from(i), 2.0)).collect();
        assert!(
            running_mean(&flat)
                .iter()
                .all(|p| (p.1 - 2.0).abs() < 1e-12)
        );
        let ramp: Points = (0..200).map(|i| (f64::from(i), f64::from(i))).collect();
        assert!(
            running_mean(&ramp).iter().all(|p| (p.1 - p.0).abs() < 1e-9),
            "no lag"
        );
        assert_eq!(
            running_mean(&vec![(0.0, 1.0), (1.0, 3.0)]),
            [(0.0, 1.0), (1.0, 3.0)]
        );
        assert_eq!(running_mean(&Vec::new()), []);
    }

    #[test]
    fn one_slow_step_does_not_flatten_the_rest() {
        let mut points: Points = (0..100).map(|i| (f64::from(i), 100.0)).collect();
        assert!((top(&[&points]) - 108.0).abs() < 1e-9);
        points[0].1 = 5000.0;
        assert_eq!(top(&[&points]), 150.0);
        assert_eq!(top(&[]), 1.0);
    }
}
