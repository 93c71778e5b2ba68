//! What `throughput.csv` says about speed.

use std::collections::BTreeMap;
use std::path::Path;

use fovea_run::run_dir::StepRow;

use super::Result;
use super::table::read_table;

/// All steps of a run, by step and rank; a step that was taken again after a resume counts once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Throughput {
    pub(super) rows: Vec<StepRow>,
}

/// One rank over the whole run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RankSummary {
    pub(super) rank: usize,
    pub(super) steps: usize,
    pub(super) samples: u64,
    pub(super) samples_per_s: f64,
    /// Median and 95th percentile of a step, milliseconds.
    pub(super) step_ms: (f64, f64),
    /// Median of the time computed per step, milliseconds.
    pub(super) compute_ms: f64,
    pub(super) wait_ms: f64,
    /// Time waited over time taken.
    pub(super) wait_share: f64,
}

/// Reads `RUN/throughput.csv`; `None` when there is nothing in it.
pub(super) fn read(path: &Path) -> Result<Option<Throughput>> {
    Ok(read_table::<StepRow>(path)?.map(Throughput::new))
}

impl Throughput {
    pub(super) fn new(rows: impl IntoIterator<Item = StepRow>) -> Self {
        let latest: BTreeMap<(u64, usize), StepRow> = rows
            .into_iter()
            .map(|row| ((row.step, row.rank), row))
            .collect();
        Self {
            rows: latest.into_values().collect(),
        }
    }

    pub(super) fn ranks(&self) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.rows.iter().map(|row| row.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    pub(super) fn of_rank(&self, rank: usize) -> impl Iterator<Item = &StepRow> {
        self.rows.iter().filter(move |row| row.rank == rank)
    }

    /// Rows of each step, by step.
    pub(super) fn steps(&self) -> impl Iterator<Item = &[StepRow]> {
        self.rows.chunk_by(|a, b| a.step == b.step)
    }

    pub(super) fn samples(&self) -> u64 {
        self.rows.iter().map(|row| row.samples).sum()
    }

    /// Seconds spent in steps: each step takes as long as its slowest rank.
    pub(super) fn seconds(&self) -> f64 {
        self.steps()
            .map(|rows| {
                rows.iter()
                    .map(|r| f64::from(r.step_ms))
                    .fold(0.0, f64::max)
            })
            .sum::<f64>()
            / 1000.0
    }

    /// Samples of all ranks per second of step time; `None` when no time was recorded.
    pub(super) fn samples_per_s(&self) -> Option<f64> {
        let seconds = self.seconds();
        (seconds > 0.0).then(|| self.samples() as f64 / seconds)
    }

    pub(super) fn rank_summaries(&self) -> Vec<RankSummary> {
        self.ranks()
            .into_iter()
            .map(|rank| {
                let rows: Vec<&StepRow> = self.of_rank(rank).collect();
                let sorted = |field: fn(&StepRow) -> f32| {
                    let mut values: Vec<f64> =
                        rows.iter().map(|row| f64::from(field(row))).collect();
                    values.sort_by(f64::total_cmp);
                    values
                };
                let (steps, waits) = (sorted(|r| r.step_ms), sorted(|r| r.wait_ms));
                let taken = steps.iter().sum::<f64>();
                let samples = rows.iter().map(|r| r.samples).sum();
                let share = |part: f64| if taken > 0.0 { part / taken } else { 0.0 };
                RankSummary {
                    rank,
                    steps: rows.len(),
                    samples,
                    samples_per_s: share(samples as f64 * 1000.0),
                    step_ms: (quantile(&steps, 0.5), quantile(&steps, 0.95)),
                    compute_ms: quantile(&sorted(|r| r.compute_ms), 0.5),
                    wait_ms: quantile(&waits, 0.5),
                    wait_share: share(waits.iter().sum()),
                }
            })
            .collect()
    }
}

/// Value at a quantile of ascending `values` (nearest rank), 0 when empty.
pub(super) fn quantile(values: &[f64], part: f64) -> f64 {
    let index = (part * values.len() as f64).ceil() as usize;
    values
        .get(index.clamp(1, values.len().max(1)) - 1)
        .copied()
        .unwrap_or(0.0)
}

/// Averages a long series into at most `buckets` points (mean x, mean y of consecutive points).
pub(super) fn thin_mean(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64)> {
    let per_bucket = points.len().div_ceil(buckets.max(1)).max(1);
    points
        .chunks(per_bucket)
        .map(|chunk| {
            let count = chunk.len() as f64;
            (
                chunk.iter().map(|p| p.0).sum::<f64>() / count,
                chunk.iter().map(|p| p.1).sum::<f64>() / count,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, rank: usize, step_ms: f32) -> StepRow {
        StepRow {
            epoch: 1,
            step,
            rank,
            samples: 10,
            step_ms,
            compute_ms: step_ms * 0.7,
            wait_ms: step_ms * 0.2,
            loss: 0.5,
            lr: 1e-3,
            generation: 1,
        }
    }

    #[test]
    fn a_step_taken_again_counts_once_and_lasts_as_its_slowest_rank() {
        let table = Throughput::new([
            row(1, 0, 999.0),
            row(1, 1, 80.0),
            row(1, 0, 100.0),
            row(2, 0, 50.0),
            row(2, 1, 150.0),
        ]);
        assert_eq!(table.rows.len(), 4);
        assert_eq!(table.seconds(), 0.25);
        assert_eq!(table.samples_per_s(), Some(160.0));
        let summary = &table.rank_summaries()[1];
        assert_eq!((summary.rank, summary.steps, summary.samples), (1, 2, 20));
        assert_eq!(summary.step_ms, (80.0, 150.0));
        assert!((summary.wait_share - 0.2).abs() < 1e-6);
        assert!((summary.samples_per_s - 20.0 / 0.23).abs() < 1e-9);
    }

    #[test]
    fn nothing_measured_divides_by_nothing() {
        assert_eq!(Throughput::new([row(1, 0, 0.0)]).samples_per_s(), None);
        assert_eq!(Throughput::new([]).rank_summaries(), []);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(thin_mean(&[], 5), []);
    }

    #[test]
    fn thinning_keeps_the_mean() {
        let points: Vec<_> = (0..1000)
            .map(|i| (f64::from(i), f64::from(i % 7)))
            .collect();
        let thin = thin_mean(&points, 100);
        assert_eq!(thin.len(), 100);
        assert_eq!(
            thin[0],
            (4.5, points[..10].iter().map(|p| p.1).sum::<f64>() / 10.0)
        );
    }
}
