//! The two tables: all scores with the constant's, and the ranks.

use fovea_run::config::MetricName;
use fovea_run::metrics::{Baseline, MetricsRow};
use fovea_task::Target;
use maud::{Markup, html};

use super::super::plots::{grouped, metric_title, noun};
use super::super::run::Run;
use super::super::throughput::Throughput;

const DASH: &str = "\u{2013}";

/// Every metric at the best epoch, per target, beside the best constant. `None` before the
/// first validation.
pub(super) fn scores(run: &Run) -> Option<Markup> {
    let epoch = run.best_epoch()?;
    let targets: Vec<(&Target, &MetricsRow, Option<Baseline>)> = run
        .targets()
        .filter_map(|target| Some((target, run.best_row(target)?, run.baseline(target))))
        .collect();
    let agreement = |row: &MetricsRow| row.metrics.agreement.clone();
    Some(html! {
        div .card .scroll {
            table {
                caption { "Validation at the best epoch (" (epoch) ")" }
                thead {
                    tr {
                        td {}
                        @for (target, ..) in &targets { th colspan="2" scope="colgroup" { (noun(target)) } }
                    }
                    tr {
                        td {}
                        @for _ in &targets { th scope="col" { "model" } th scope="col" { "best constant" } }
                    }
                }
                tbody {
                    @for &metric in MetricName::ALL {
                        tr {
                            th scope="row" { (metric_title(metric)) @if !metric.higher_is_better() { span .hint { " lower is better" } } }
                            @for (_, row, baseline) in &targets {
                                @let value = row.metrics.get(metric);
                                @let constant = baseline.and_then(|b| b.get(metric));
                                td .worse[is_worse(metric, value, constant)] { (number(value)) }
                                td .quiet { (number(constant)) }
                            }
                        }
                    }
                    @if targets.iter().any(|(_, row, _)| row.metrics.agreement.is_some()) {
                        tr {
                            th scope="row" { "Cohen's kappa" }
                            @for (_, row, _) in &targets {
                                @let kappa = agreement(row).and_then(|it| it.kappa);
                                td .worse[kappa.is_some_and(|kappa| kappa <= 0.0)] { (number(kappa)) }
                                // A constant agrees as often as chance.
                                td .quiet { (number(agreement(row).map(|_| 0.0))) }
                            }
                        }
                    }
                }
            }
        }
    })
}

/// Not better than a constant: set apart in the table.
fn is_worse(metric: MetricName, value: Option<f64>, constant: Option<f64>) -> bool {
    let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
    value
        .zip(constant)
        .is_some_and(|(v, c)| (v - c) * sign <= 0.0)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(
        || DASH.to_owned(),
        |v| format!("{v:.3}").replace('-', "\u{2212}"),
    )
}

/// Samples, throughput and times of each rank, one line per rank.
pub(super) fn ranks(throughput: &Throughput) -> Markup {
    html! {
        div .card .scroll .full {
            table .ranks {
                caption { "Ranks over the whole run; times in milliseconds" }
                thead {
                    tr {
                        @for head in ["rank", "steps", "samples", "samples/s", "step, median", "step, 95 %", "compute, median", "waiting, median", "time waiting"] {
                            th scope="col" { (head) }
                        }
                    }
                }
                tbody {
                    @for rank in throughput.rank_summaries() {
                        tr {
                            th scope="row" { (rank.rank) }
                            td { (grouped(rank.steps as u64)) }
                            td { (grouped(rank.samples)) }
                            td { (format!("{:.1}", rank.samples_per_s)) }
                            td { (format!("{:.1}", rank.step_ms.0)) }
                            td { (format!("{:.1}", rank.step_ms.1)) }
                            td { (format!("{:.1}", rank.compute_ms)) }
                            td { (format!("{:.1}", rank.wait_ms)) }
                            td { (format!("{:.1} %", rank.wait_share * 100.0)) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_follows_the_direction_of_the_metric() {
        assert!(is_worse(MetricName::F1Micro, Some(0.2), Some(0.2)));
        assert!(!is_worse(MetricName::F1Micro, Some(0.3), Some(0.2)));
        assert!(is_worse(MetricName::Hamming, Some(0.3), Some(0.2)));
        assert!(!is_worse(MetricName::Hamming, Some(0.1), Some(0.2)));
        assert!(!is_worse(MetricName::Loss, Some(0.1), None));
        assert_eq!(
            (number(None), number(Some(-0.5))),
            (DASH.to_owned(), "\u{2212}0.500".to_owned())
        );
    }
}
