//! Whether a run kept its promise: every sample of every epoch once, and what each fault cost.
//!
//! [`audit`] replays the raw ledger itself; it relies neither on [`crate::ledger::history`] nor on
//! a correct coordinator. It also checks ledger and journal against each
//! other, so a ledger cut at its end does not pass as that of a shorter run. [`order_problems`]
//! does the same for the sample order: it counts what an epoch visits.
//!
//! What these files cannot show: steps at the very end of a ledger whose coordinator was
//! killed and never restarted. They count as samples that are still to come.

mod coverage;
mod faults;
mod goodput;
#[cfg(test)]
mod tests;

pub use coverage::{list_problems, order_problems};
pub use goodput::Goodput;

use serde::Serialize;

use crate::journal::{JournalEntry, JournalRecord};
use crate::ledger::LedgerRecord;
use crate::protocol::Generation;

/// Ranges that a line of text names before it only counts the others.
const RANGES_NAMED: usize = 6;

/// What an audit looks at.
#[derive(Clone, Copy, Debug)]
pub struct AuditInput<'a> {
    /// All records of the ledger, oldest first.
    pub ledger: &'a [LedgerRecord],
    /// All records of the journal, oldest first.
    pub journal: &'a [JournalRecord],
    /// Samples of one epoch: [`crate::order::EpochOrder::total_samples`].
    pub samples_per_epoch: u64,
    /// Epochs of the run.
    pub epochs: u32,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `finished`, `drained`, `stopped` or `failed`; `open` while a coordinator runs, or when the last
    /// one was killed; `unknown` without a journal.
    pub state: String,
    /// Committed steps that made the newest weights.
    pub steps: u64,
    /// Committed steps that were taken again, because nobody held their state any more.
    pub steps_void: u64,
    /// Generations that the journal announced.
    pub generations: u64,
    /// Starts of a coordinator in this run directory; one without a restart.
    pub coordinators: u64,
    /// The epochs that were begun.
    pub epochs: Vec<EpochAudit>,
    /// What is wrong, one sentence each; empty when all is well.
    pub problems: Vec<String>,
    /// What is worth knowing but breaks no promise.
    pub notes: Vec<String>,
    /// Losses of ranks and of coordinators, oldest first.
    pub incidents: Vec<IncidentAudit>,
    /// Coordinators that went on after one that had ended in order.
    pub resumes: Vec<Resume>,
    /// Useful time; `None` when the journal knows no time at all.
    pub goodput: Option<Goodput>,
}

impl Report {
    /// Every sample was used as often as it should be, and the records agree.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// One epoch, from the steps that made the newest weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EpochAudit {
    /// The epoch, from 1.
    pub epoch: u32,
    /// The run has not finished this epoch: samples after the newest committed step are still to come, not missed.
    pub in_progress: bool,
    /// Samples of an epoch.
    pub expected: u64,
    /// Samples that exactly one step used.
    pub used_once: u64,
    /// Samples that no step used.
    pub missed: u64,
    /// Samples that several steps used.
    pub repeated: u64,
    /// Samples behind the newest committed step of an epoch in progress.
    pub to_come: u64,
    /// Where `missed` lie in the epoch's order.
    pub missed_ranges: Vec<SampleRange>,
    /// Where `repeated` lie in the epoch's order.
    pub repeated_ranges: Vec<SampleRange>,
}

/// Samples `start..end` of an epoch's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SampleRange {
    /// First sample of the range, counted within its epoch.
    pub start: u64,
    /// The first one behind.
    pub end: u64,
}

/// Which kind of process an incident took from the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lost {
    /// A rank of the running generation.
    Rank,
    /// The coordinator itself: the next one found a generation without an end.
    Coordinator,
}

/// A loss and what it cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IncidentAudit {
    /// When it was noticed; of a coordinator, its last sign of life. Milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// The process that the run lost here.
    pub lost: Lost,
    /// The generation that it ended, 0 when there was none yet.
    pub generation: Generation,
    /// Committed steps at that time.
    pub step: u64,
    /// What happened, to whom.
    pub cause: String,
    /// Detection: milliseconds that the lost rank was silent, or hung, when it was noticed. Of a
    /// coordinator: from its last record until the next one had started.
    pub detection_ms: u64,
    /// From `unix_ms` to the first committed step after it, in milliseconds; `None` when there was none.
    pub recovery_ms: Option<u64>,
    /// Committed steps that had to be taken again. When several ranks were lost before one recovery,
    /// the last one has them.
    pub steps_lost: u64,
    /// Ranks of the generation after it.
    pub ranks_after: Option<usize>,
    /// Ranks of the next generation, that one or a later, in which all were given the state of one of
    /// them; `None` when that was not necessary.
    pub shared: Option<usize>,
}

/// A coordinator that went on after one that had ended in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resume {
    /// When, in milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// How the one before ended.
    pub after: String,
    /// Milliseconds between the two.
    pub idle_ms: u64,
    /// Committed steps when the one before ended.
    pub ended_step: u64,
    /// Committed steps of the checkpoint that this one went on from.
    pub step: u64,
}

/// Replays a run's records. Pure: the same records give the same report.
pub fn audit(input: &AuditInput<'_>) -> Report {
    let replay = coverage::replay(input.ledger, input.samples_per_epoch);
    let state = state(input.journal);
    let finished = state == "finished";
    let mut problems = replay.problems.clone();
    let epochs = coverage::epochs(&replay, input, finished, &mut problems);
    faults::against_journal(input, &replay, &mut problems);
    Report {
        state: state.to_owned(),
        steps: replay.live().count() as u64,
        steps_void: replay.taken.iter().filter(|t| t.void).count() as u64,
        generations: replay.generations.len() as u64,
        coordinators: faults::starts(input.journal).count() as u64,
        epochs,
        problems,
        notes: Vec::new(),
        incidents: faults::incidents(input.journal, &replay),
        resumes: faults::resumes(input.journal),
        goodput: goodput::goodput(input, &replay),
    }
}

fn state(journal: &[JournalRecord]) -> &str {
    let last = journal.iter().rev().find_map(|record| match &record.entry {
        JournalEntry::Started { .. } => Some("open"),
        JournalEntry::Ended { outcome, .. } => Some(outcome.as_str()),
        _ => None,
    });
    last.unwrap_or("unknown")
}

/// `0..9, 18..27 and 3 more`.
pub fn name_ranges(ranges: &[SampleRange]) -> String {
    let named: Vec<String> = ranges
        .iter()
        .take(RANGES_NAMED)
        .map(|range| format!("{}..{}", range.start, range.end))
        .collect();
    let more = match ranges.len().saturating_sub(RANGES_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}
