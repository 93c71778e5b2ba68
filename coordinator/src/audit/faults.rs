//! The journal: what was lost when, what it cost, and whether the ledger agrees.

use std::collections::BTreeSet;

use super::coverage::{Replay, same_place};
use super::{AuditInput, IncidentAudit, Lost, Resume};
use crate::journal::{JournalEntry, JournalRecord};
use crate::protocol::Generation;

/// Positions of the `Started` entries: one for each coordinator that ran in this directory.
pub(super) fn starts(journal: &[JournalRecord]) -> impl Iterator<Item = usize> {
    let started = |record: &JournalRecord| matches!(record.entry, JournalEntry::Started { .. });
    (0..journal.len()).filter(move |i| started(&journal[*i]))
}

/// The journal and the ledger have to tell the same story.
pub(super) fn against_journal(input: &AuditInput<'_>, replay: &Replay, problems: &mut Vec<String>) {
    if input.journal.is_empty() {
        return;
    }
    let mut newest: Generation = 0;
    let mut formed_here = false;
    for record in input.journal {
        match &record.entry {
            JournalEntry::Started { .. } => formed_here = false,
            JournalEntry::Generation {
                generation, start, ..
            } => {
                if *generation <= newest {
                    problems.push(format!(
                        "the journal has generation {generation} after generation {newest}"
                    ));
                }
                newest = newest.max(*generation);
                formed_here = true;
                // A coordinator may be killed between the two records; then no step was taken.
                if let Some(run) = replay.generations.get(generation)
                    && !same_place(run.start, *start, input.samples_per_epoch)
                {
                    problems.push(format!(
                        "generation {generation} starts after step {} in the journal, after step {} in the ledger",
                        start.step, run.start.step
                    ));
                }
            }
            JournalEntry::Incident {
                generation, step, ..
            } => problems.extend(differs(replay, *generation, *step, "was lost")),
            JournalEntry::Ended { step, .. } if formed_here => {
                problems.extend(differs(replay, newest, *step, "ended"));
            }
            JournalEntry::Recovered {
                generation, step, ..
            } => {
                let wanted = (*generation, *step);
                let mut steps = replay.taken.iter().map(|taken| taken.step);
                if !steps.any(|s| (s.generation, s.step) == wanted) {
                    problems.push(format!(
                        "the journal has step {step} of generation {generation}, the ledger has not"
                    ));
                }
            }
            JournalEntry::Ended { .. } | JournalEntry::Shared { .. } => {}
        }
    }
    let entries = input.journal.iter().map(|record| &record.entry);
    let known: BTreeSet<Generation> = entries
        .filter_map(|entry| match entry {
            JournalEntry::Generation { generation, .. } => Some(*generation),
            _ => None,
        })
        .collect();
    for generation in replay.generations.keys().filter(|g| !known.contains(g)) {
        problems.push(format!(
            "generation {generation} of the ledger is not in the journal"
        ));
    }
}

fn differs(replay: &Replay, generation: Generation, step: u64, how: &str) -> Option<String> {
    match replay.generations.get(&generation) {
        Some(run) if run.at.step == step => None,
        Some(run) => Some(format!(
            "generation {generation} {how} after step {step} in the journal, after step {} in the ledger",
            run.at.step
        )),
        None => Some(format!(
            "generation {generation} {how} after step {step} in the journal, the ledger does not have it"
        )),
    }
}

/// Every loss, with what followed it.
pub(super) fn incidents(journal: &[JournalRecord], replay: &Replay) -> Vec<IncidentAudit> {
    let mut found: Vec<IncidentAudit> = Vec::new();
    // Losses that no step followed yet, by position in `found`.
    let mut pending: Vec<usize> = Vec::new();
    let mut newest: Generation = 0;
    let mut up: Option<(&str, u32)> = None;
    let mut last_ms = 0;
    for record in journal {
        match &record.entry {
            JournalEntry::Started {
                incarnation,
                host,
                pid,
                start,
            } => {
                if let Some((host, pid)) = up {
                    settle(&mut found, &mut pending, replay);
                    let cause = format!(
                        "the coordinator (host {host}, pid {pid}) was lost; coordinator {incarnation} took over"
                    );
                    let seen = (newest, last_ms, record.unix_ms);
                    found.push(coordinator_lost(replay, cause, seen, start.step));
                }
                up = Some((host, *pid));
            }
            JournalEntry::Generation {
                generation, seats, ..
            } => {
                newest = *generation;
                let unknown = found.iter_mut().filter(|i| i.ranks_after.is_none());
                unknown.for_each(|i| i.ranks_after = Some(seats.len()));
            }
            JournalEntry::Ended { .. } => {
                settle(&mut found, &mut pending, replay);
                up = None;
            }
            JournalEntry::Incident {
                generation,
                step,
                silent_ms,
                reason,
            } => {
                pending.push(found.len());
                found.push(IncidentAudit {
                    unix_ms: record.unix_ms,
                    lost: Lost::Rank,
                    generation: *generation,
                    step: *step,
                    cause: reason.lines().next().unwrap_or_default().to_owned(),
                    detection_ms: *silent_ms,
                    recovery_ms: None,
                    steps_lost: 0,
                    ranks_after: None,
                    shared: None,
                });
            }
            JournalEntry::Recovered {
                after_ms,
                steps_lost,
                ..
            } => {
                let first_ms = pending.first().map_or(0, |i| found[*i].unix_ms);
                if let Some(last) = pending.last() {
                    found[*last].steps_lost = *steps_lost;
                }
                for i in pending.drain(..) {
                    // Measured from the first of them.
                    let later_ms = found[i].unix_ms.saturating_sub(first_ms);
                    found[i].recovery_ms = Some(after_ms.saturating_sub(later_ms));
                }
            }
            JournalEntry::Shared {
                generation, ranks, ..
            } => {
                let last = found.last_mut();
                if let Some(last) = last.filter(|i| i.generation < *generation) {
                    last.shared.get_or_insert(*ranks);
                }
            }
        }
        last_ms = record.unix_ms;
    }
    settle(&mut found, &mut pending, replay);
    found
}

/// Losses whose recovery the coordinator did not live to write down: from the ledger.
fn settle(found: &mut [IncidentAudit], pending: &mut Vec<usize>, replay: &Replay) {
    for i in pending.drain(..) {
        (found[i].recovery_ms, found[i].steps_lost) =
            recovery(replay, found[i].generation, found[i].unix_ms);
    }
}

/// Time until the first step of a later generation, and the steps that were taken back until then.
fn recovery(replay: &Replay, generation: Generation, since_ms: u64) -> (Option<u64>, u64) {
    let mut steps_lost = 0;
    for (_, run) in replay.generations.range(generation.saturating_add(1)..) {
        steps_lost += run.voided;
        if let Some(at) = run.first_commit_ms {
            return (Some(at.saturating_sub(since_ms)), steps_lost);
        }
    }
    (None, steps_lost)
}

fn coordinator_lost(
    replay: &Replay,
    cause: String,
    (generation, journal_ms, started_ms): (Generation, u64, u64),
    checkpoint: u64,
) -> IncidentAudit {
    let run = replay.generations.get(&generation);
    // Its last sign of life, in either file.
    let unix_ms = run.map_or(journal_ms, |run| run.last_ms.max(journal_ms));
    let (recovery_ms, steps_lost) = recovery(replay, generation, unix_ms);
    IncidentAudit {
        unix_ms,
        lost: Lost::Coordinator,
        generation,
        step: run.map_or(checkpoint, |run| run.at.step),
        cause,
        detection_ms: started_ms.saturating_sub(unix_ms),
        recovery_ms,
        steps_lost,
        ranks_after: None,
        shared: None,
    }
}

/// Starts after an end in order.
pub(super) fn resumes(journal: &[JournalRecord]) -> Vec<Resume> {
    let mut ended: Option<(&str, u64, u64)> = None;
    let mut resumes = Vec::new();
    for record in journal {
        match &record.entry {
            JournalEntry::Ended { outcome, step, .. } => {
                ended = Some((outcome, record.unix_ms, *step));
            }
            JournalEntry::Started { start, .. } => {
                if let Some((outcome, ended_ms, ended_step)) = ended.take() {
                    resumes.push(Resume {
                        unix_ms: record.unix_ms,
                        after: outcome.to_owned(),
                        idle_ms: record.unix_ms.saturating_sub(ended_ms),
                        ended_step,
                        step: start.step,
                    });
                }
            }
            _ => {}
        }
    }
    resumes
}
