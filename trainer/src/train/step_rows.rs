//! The rows of `throughput.csv` in memory.
//!
//! With every attempt the ranks exchange their sample counts and how they spent their time. So every rank knows the
//! rows of all, and the rows of a rank's steps survive its death.

use std::path::Path;
use std::time::Duration;

use fovea_run::run_dir::{self, StepRow};

use crate::error::{Error, Result};

/// Number of values that each rank gives to the exchange.
const NUMBERS: usize = 3;

/// One rank's part in an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    pub samples: u64,
    pub compute_ms: f32,
    pub wait_ms: f32,
}

/// Rows that are not yet in the file, and the clocks of this rank.
#[derive(Debug, Default)]
pub(super) struct StepRows {
    rows: Vec<StepRow>,
    compute: Duration,
    wait: Duration,
}

impl StepRows {
    /// Adds time spent in forward, backward or optimizer.
    pub fn computed(&mut self, time: Duration) {
        self.compute += time;
    }

    /// Adds time spent waiting for data, other ranks or the coordinator.
    pub fn waited(&mut self, time: Duration) {
        self.wait += time;
    }

    /// The contribution of rank `rank` of `world` to the sum over ranks; zero at the places of the others. Its times
    /// are those since the last call.
    pub fn take_share(&mut self, samples: u64, rank: usize, world: usize) -> Vec<f32> {
        let millis = |time: &mut Duration| std::mem::take(time).as_secs_f32() * 1e3;
        let mut buf = vec![0.0; NUMBERS * world];
        if let Some([a, b, c]) = buf.as_chunks_mut::<NUMBERS>().0.get_mut(rank) {
            // Exact up to 2^24 samples of one rank in one step.
            (*a, *b, *c) = (
                samples as f32,
                millis(&mut self.compute),
                millis(&mut self.wait),
            );
        }
        buf
    }

    /// Keeps the rows of a committed step.
    pub fn commit(&mut self, rows: impl IntoIterator<Item = StepRow>) {
        self.rows.extend(rows);
    }

    /// Appends all rows to the file.
    pub fn append_to(&mut self, path: &Path) -> Result<()> {
        run_dir::append_steps(path, &self.rows)?;
        self.rows.clear();
        Ok(())
    }

    /// Drops the rows of steps up to `step`, which are on disk.
    pub fn written(&mut self, step: u64) {
        self.rows.retain(|row| row.step > step);
    }

    /// Replaces the rows by these, which are the ones not yet in the file.
    pub fn adopt(&mut self, rows: Vec<StepRow>) {
        self.rows = rows;
    }

    /// Drops the steps after `step`, and returns a copy of the rows up to it.
    pub fn up_to(&mut self, step: u64) -> Vec<StepRow> {
        self.rows.retain(|row| row.step <= step);
        self.rows.clone()
    }
}

/// Encodes rows for another rank.
pub(super) fn to_bytes(rows: &[StepRow]) -> Result<Vec<u8>> {
    serde_json::to_vec(rows).map_err(|e| Error::Internal(format!("step rows: {e}")))
}

/// Decodes and joins the rows of all ranks.
pub(super) fn from_bytes(all: &[Vec<u8>]) -> Result<Vec<StepRow>> {
    let mut rows = Vec::new();
    for part in all {
        let part: Vec<StepRow> =
            serde_json::from_slice(part).map_err(|e| Error::Internal(format!("step rows: {e}")))?;
        rows.extend(part);
    }
    Ok(run_dir::valid_steps(rows))
}

/// Splits the sum over ranks into the ranks' shares.
pub(super) fn shares(buf: &[f32]) -> Vec<Share> {
    let share = |&[samples, compute_ms, wait_ms]: &[f32; NUMBERS]| Share {
        samples: samples as u64,
        compute_ms,
        wait_ms,
    };
    buf.as_chunks::<NUMBERS>().0.iter().map(share).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn row(step: u64, rank: usize) -> StepRow {
        StepRow {
            epoch: 1,
            step,
            rank,
            samples: 10,
            step_ms: 1.0,
            compute_ms: 1.0,
            wait_ms: 0.0,
            loss: 0.5,
            lr: 1e-3,
            generation: 1,
        }
    }

    #[test]
    fn shares_come_back_from_the_sum_and_the_clocks_start_again() {
        let mut ranks = [StepRows::default(), StepRows::default()];
        ranks[0].computed(Duration::from_millis(4));
        ranks[0].computed(Duration::from_millis(2));
        ranks[1].waited(Duration::from_millis(8));
        let exchange = |ranks: &mut [StepRows; 2]| {
            let parts: Vec<Vec<f32>> = ranks
                .iter_mut()
                .enumerate()
                .map(|(rank, rows)| rows.take_share(30 + rank as u64, rank, 2))
                .collect();
            let sum: Vec<f32> = parts[0].iter().zip(&parts[1]).map(|(a, b)| a + b).collect();
            shares(&sum)
        };
        let share = |samples, compute_ms, wait_ms| Share {
            samples,
            compute_ms,
            wait_ms,
        };
        assert_eq!(
            exchange(&mut ranks),
            [share(30, 6.0, 0.0), share(31, 0.0, 8.0)]
        );
        assert_eq!(
            exchange(&mut ranks),
            [share(30, 0.0, 0.0), share(31, 0.0, 0.0)]
        );
    }

    #[test]
    fn a_new_first_rank_completes_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("throughput.csv");
        let read = || {
            let mut reader = csv::Reader::from_path(&path).unwrap();
            let rows = reader
                .deserialize()
                .map(|r: csv::Result<StepRow>| r.unwrap());
            rows.map(|r| (r.step, r.rank)).collect::<Vec<_>>()
        };
        let mut survivor = StepRows::default();
        survivor.commit([
            row(1, 0),
            row(1, 1),
            row(2, 0),
            row(2, 1),
            row(3, 0),
            row(3, 1),
        ]);
        // The dead rank had written step 1, half of step 2, and a step that is void now.
        run_dir::append_steps(&path, &[row(1, 0), row(1, 1), row(2, 0), row(4, 0)]).unwrap();
        let bytes = [
            to_bytes(&survivor.up_to(2)).unwrap(),
            to_bytes(&[]).unwrap(),
        ];
        run_dir::merge_steps(&path, 2, from_bytes(&bytes).unwrap()).unwrap();
        let mut newcomer = StepRows::default();
        newcomer.adopt(from_bytes(&[bytes[0].clone(), bytes[0].clone()]).unwrap());
        assert_eq!(newcomer.up_to(2).len(), 4);
        survivor.written(2);
        assert_eq!(read(), [(1, 0), (1, 1), (2, 0), (2, 1)]);
        survivor.commit([row(3, 0)]);
        survivor.append_to(&path).unwrap();
        survivor.append_to(&path).unwrap();
        assert_eq!(read(), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]);
    }

    #[test]
    fn rows_of_a_step_that_was_taken_again_are_those_of_the_last_time() {
        let of = |generation, step, rank| StepRow {
            generation,
            ..row(step, rank)
        };
        // Step 2 was void: four ranks took it in generation 1, one rank in generation 2. A rank that stood by in
        // generation 2 knows only the rows of generation 1.
        let stale: Vec<StepRow> = (0..4)
            .flat_map(|rank| [of(1, 1, rank), of(1, 2, rank)])
            .collect();
        let newer = [of(2, 2, 0), of(2, 3, 0)];
        let bytes = [to_bytes(&stale).unwrap(), to_bytes(&newer).unwrap()];
        let rows = from_bytes(&bytes).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r.generation, r.step, r.rank))
            .collect();
        let first = (0..4).map(|rank| (1, 1, rank));
        let expected: Vec<_> = first.chain([(2, 2, 0), (2, 3, 0)]).collect();
        assert_eq!(seen, expected);
    }
}
