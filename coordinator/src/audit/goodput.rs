//! Useful time as a share of a run's uptime.

use serde::Serialize;

use super::AuditInput;
use super::coverage::{Replay, Taken};
use crate::journal::JournalEntry;

/// `goodput = useful_ms / wall_ms`.
///
/// *Wall time* is the time a coordinator was up: from each `Started` to its `Ended`. One that was
/// killed counts until the next one started, so the gap of a coordinator restart is wall time; the
/// last one, when it did not end, until the last record. The time between an end in order and a
/// resume is not wall time.
///
/// *Useful time* is the sum over the effective steps (those that made the newest weights) of the time
/// between the commit before and their own, both in one generation. The first step of a generation
/// has no commit before it: it counts from the generation's start, but no longer than the median of
/// the others (of the first steps, where there are no others), because the start also holds what a
/// fault costs: loading, sharing the state.
///
/// What is left over is starting, waiting for lost ranks, attempts that were given up, steps that
/// were taken back, and what comes after the last step. Evaluations and checkpoints between two steps
/// are useful time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Time that a coordinator was up, in milliseconds.
    pub wall_ms: u64,
    /// Time of effective steps, in milliseconds.
    pub useful_ms: u64,
    /// Time of steps that were taken back, counted like useful time, in milliseconds.
    pub void_ms: u64,
    /// Median time of a step, in milliseconds.
    pub median_step_ms: u64,
    /// `useful_ms / wall_ms`, from 0 to 1.
    pub goodput: f64,
}

pub(super) fn goodput(input: &AuditInput<'_>, replay: &Replay) -> Option<Goodput> {
    let wall_ms = wall_ms(input);
    if wall_ms == 0 {
        return None;
    }
    let took = |taken: &Taken| taken.unix_ms.saturating_sub(taken.before_ms);
    let times = |first: bool| -> Vec<u64> {
        replay
            .live()
            .filter(|t| t.first == first)
            .map(took)
            .collect()
    };
    let median_step_ms = median(times(false))
        .or_else(|| median(times(true)))
        .unwrap_or(0);
    let counts = |taken: &Taken| match taken.first {
        true => took(taken).min(median_step_ms),
        false => took(taken),
    };
    let useful_ms = replay.live().map(counts).sum();
    Some(Goodput {
        wall_ms,
        useful_ms,
        void_ms: replay.taken.iter().filter(|t| t.void).map(counts).sum(),
        median_step_ms,
        goodput: useful_ms as f64 / wall_ms as f64,
    })
}

fn median(mut times: Vec<u64>) -> Option<u64> {
    times.sort_unstable();
    times.get(times.len().checked_sub(1)? / 2).copied()
}

fn wall_ms(input: &AuditInput<'_>) -> u64 {
    let (mut sum, mut up) = (0u64, None);
    for record in input.journal {
        match &record.entry {
            JournalEntry::Started { .. } => {
                up.get_or_insert(record.unix_ms);
            }
            JournalEntry::Ended { .. } => {
                let since = up.take().unwrap_or(record.unix_ms);
                sum += record.unix_ms.saturating_sub(since);
            }
            _ => {}
        }
    }
    let last = |ms: Option<u64>| ms.unwrap_or(0);
    let last_ms = last(input.journal.last().map(|r| r.unix_ms))
        .max(last(input.ledger.last().map(|r| r.unix_ms)));
    sum + up.map_or(0, |since| last_ms.saturating_sub(since))
}
