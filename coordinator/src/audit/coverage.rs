//! The ledger, replayed record by record: which samples its effective steps used, and how often.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{AuditInput, EpochAudit, SampleRange, name_ranges};
use crate::ledger::{CommittedStep, LedgerEntry, LedgerRecord};
use crate::order::{EpochOrder, SampleName, Unit};
use crate::protocol::{Generation, StartPoint};

/// Problems of one kind that are worth a sentence each.
const PROBLEMS_NAMED: usize = 20;

/// A committed step as the ledger has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub step: CommittedStep,
    /// When it was committed, and when the record before it in its generation was written.
    pub unix_ms: u64,
    pub before_ms: u64,
    /// The record before it is the generation's start, not a step.
    pub first: bool,
    /// A later start took it back.
    pub void: bool,
}

/// What one generation did.
#[derive(Clone, Copy, Debug)]
pub(super) struct GenerationRun {
    pub start: StartPoint,
    /// Its newest step, or where it started.
    pub at: StartPoint,
    pub first_commit_ms: Option<u64>,
    /// Written last by this generation.
    pub last_ms: u64,
    /// Steps that its start took back.
    pub voided: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    pub taken: Vec<Taken>,
    pub generations: BTreeMap<Generation, GenerationRun>,
    /// Where the ledger ends.
    pub at: StartPoint,
    pub problems: Vec<String>,
}

impl Replay {
    /// The steps that made the newest weights.
    pub fn live(&self) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(|taken| !taken.void)
    }
}

/// Two names of one place: the end of an epoch is the beginning of the next one.
pub(super) fn same_place(a: StartPoint, b: StartPoint, total: u64) -> bool {
    let normal = |p: StartPoint| match p.cursor >= total && total > 0 {
        true => (u64::from(p.epoch) + 1, 0, p.step),
        false => (u64::from(p.epoch), p.cursor, p.step),
    };
    normal(a) == normal(b)
}

fn place(p: StartPoint) -> String {
    format!(
        "step {} (sample {} of epoch {})",
        p.step,
        p.cursor,
        u64::from(p.epoch) + 1
    )
}

/// Goes through the records in file order; what does not follow from the one before is a problem.
pub(super) fn replay(ledger: &[LedgerRecord], total: u64) -> Replay {
    let mut replay = Replay::default();
    let mut current: Option<Generation> = None;
    let mut problems = Vec::new();
    for record in ledger {
        match &record.entry {
            LedgerEntry::Start { generation, start } => {
                problems.extend(begin(&mut replay, *generation, *start, record, total));
                current = Some(*generation);
            }
            LedgerEntry::Commit(step) => {
                if current != Some(step.generation) {
                    let running = current.map_or("none".to_owned(), |g| g.to_string());
                    problems.push(format!(
                        "step {} is committed by generation {}, the newest one started is {running}",
                        step.step, step.generation
                    ));
                }
                problems.extend(objections(replay.at, step, total));
                commit(&mut replay, step, record.unix_ms);
            }
        }
    }
    replay.problems = shorten(problems);
    replay
}

fn begin(
    replay: &mut Replay,
    generation: Generation,
    start: StartPoint,
    record: &LedgerRecord,
    total: u64,
) -> Vec<String> {
    let mut problems = Vec::new();
    match replay.generations.last_key_value() {
        _ if replay.generations.contains_key(&generation) => {
            problems.push(format!("generation {generation} is started twice"));
        }
        Some((newest, _)) if *newest > generation => problems.push(format!(
            "generation {generation} is started after generation {newest}"
        )),
        _ => {}
    }
    let mut voided = 0;
    for taken in &mut replay.taken {
        if !taken.void && taken.step.step > start.step {
            taken.void = true;
            voided += 1;
        }
    }
    let newest = replay
        .live()
        .last()
        .map_or(StartPoint::default(), |t| end_of(&t.step));
    if !same_place(newest, start, total) {
        problems.push(format!(
            "generation {generation} starts after {}, but the newest step that the ledger has up to there is {}",
            place(start),
            place(newest)
        ));
    }
    replay.at = start;
    let run = GenerationRun {
        start,
        at: start,
        first_commit_ms: None,
        last_ms: record.unix_ms,
        voided,
    };
    replay.generations.insert(generation, run);
    problems
}

fn end_of(step: &CommittedStep) -> StartPoint {
    StartPoint {
        epoch: step.epoch,
        step: step.step,
        cursor: step.cursor_end,
    }
}

fn objections(at: StartPoint, step: &CommittedStep, total: u64) -> Vec<String> {
    let mut problems = Vec::new();
    if Some(step.step) != at.step.checked_add(1) {
        problems.push(format!("step {} follows step {}", step.step, at.step));
    }
    let (start, end) = (step.cursor_start, step.cursor_end);
    let epoch = u64::from(step.epoch) + 1;
    if start >= end || end > total {
        problems.push(format!(
            "step {} has samples {start}..{end} of epoch {epoch}, which has {total}",
            step.step
        ));
    }
    let begins = StartPoint {
        epoch: step.epoch,
        step: at.step,
        cursor: start,
    };
    if !same_place(begins, at, total) {
        problems.push(format!(
            "step {} begins at sample {start} of epoch {epoch}, the record before it ends at sample {} of epoch {}",
            step.step,
            at.cursor,
            u64::from(at.epoch) + 1
        ));
    }
    problems
}

fn commit(replay: &mut Replay, step: &CommittedStep, unix_ms: u64) {
    let at = end_of(step);
    // Of a generation that never started, no time is known.
    let (mut before_ms, mut first) = (unix_ms, true);
    if let Some(run) = replay.generations.get_mut(&step.generation) {
        (before_ms, first) = (run.last_ms, run.first_commit_ms.is_none());
        run.first_commit_ms.get_or_insert(unix_ms);
        run.last_ms = unix_ms;
        run.at = at;
    }
    replay.at = at;
    replay.taken.push(Taken {
        step: *step,
        unix_ms,
        before_ms,
        first,
        void: false,
    });
}

/// One damaged place can make every record after it wrong.
fn shorten(mut problems: Vec<String>) -> Vec<String> {
    if problems.len() > PROBLEMS_NAMED {
        let more = problems.len() - PROBLEMS_NAMED;
        problems.truncate(PROBLEMS_NAMED);
        problems.push(format!("{more} more of this kind in the ledger"));
    }
    problems
}

/// How often each sample was used, per epoch. Only ranges are looked at, whatever the steps claim.
pub(super) fn epochs(
    replay: &Replay,
    input: &AuditInput<'_>,
    finished: bool,
    problems: &mut Vec<String>,
) -> Vec<EpochAudit> {
    let total = input.samples_per_epoch;
    let mut ranges: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for taken in replay.live() {
        let range = (taken.step.cursor_start, taken.step.cursor_end);
        ranges.entry(taken.step.epoch).or_default().push(range);
    }
    let last = ranges.keys().next_back().copied();
    // An epoch that was skipped has no range at all.
    for epoch in 0..last.unwrap_or(0).min(input.epochs) {
        ranges.entry(epoch).or_default();
    }
    if finished && last.map_or(0, |epoch| u64::from(epoch) + 1) < u64::from(input.epochs) {
        problems.push(format!(
            "the run is finished, but the ledger ends in epoch {} of {}",
            last.map_or(0, |epoch| u64::from(epoch) + 1),
            input.epochs
        ));
    }
    let mut audits = Vec::new();
    for (epoch, ranges) in &ranges {
        let newest = ranges.iter().map(|(_, end)| *end).max().unwrap_or(0);
        let in_progress = Some(*epoch) == last && newest < total && !finished;
        let due = if in_progress { newest } else { total };
        let found = count(ranges, due);
        let number = u64::from(*epoch) + 1;
        for (ranges, what) in [(&found.missed, "missed"), (&found.repeated, "repeated")] {
            if !ranges.is_empty() {
                problems.push(format!(
                    "epoch {number}: {} samples {what}: {}",
                    length(ranges),
                    name_ranges(ranges)
                ));
            }
        }
        audits.push(EpochAudit {
            epoch: epoch.saturating_add(1),
            in_progress,
            expected: total,
            used_once: found.once,
            missed: length(&found.missed),
            repeated: length(&found.repeated),
            to_come: total - due.min(total),
            missed_ranges: found.missed,
            repeated_ranges: found.repeated,
        });
    }
    audits
}

#[derive(Default)]
struct Counted {
    once: u64,
    missed: Vec<SampleRange>,
    repeated: Vec<SampleRange>,
}

/// Sweeps over the ranges.
fn count(ranges: &[(u64, u64)], due: u64) -> Counted {
    let mut changes: BTreeMap<u64, (i64, i64)> = BTreeMap::from([(0, (0, 0)), (due, (0, 0))]);
    for (start, end) in ranges.iter().filter(|(start, end)| start < end) {
        changes.entry(*start).or_default().0 += 1;
        changes.entry(*end).or_default().1 += 1;
    }
    let (mut counted, mut open) = (Counted::default(), 0);
    let bounds: Vec<u64> = changes.keys().copied().collect();
    for ((start, (opened, closed)), end) in changes.into_iter().zip(bounds.into_iter().skip(1)) {
        open += opened - closed;
        match open {
            0 if start < due => extend(&mut counted.missed, start, end),
            1 if start < due => counted.once += end - start,
            // What lies behind the epoch is told as a problem of its step.
            0 | 1 => {}
            _ => extend(&mut counted.repeated, start, end),
        }
    }
    counted
}

fn extend(ranges: &mut Vec<SampleRange>, start: u64, end: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => ranges.push(SampleRange { start, end }),
    }
}

fn length(ranges: &[SampleRange]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether an epoch's order has only samples that are `there`, in the training split.
pub fn list_problems(order: &EpochOrder, there: &BTreeSet<SampleName>) -> Vec<String> {
    let samples = order.units().iter().flat_map(Unit::samples);
    let foreign = samples.filter(|sample| !there.contains(sample)).count();
    let problem = || {
        format!(
            "the order of epoch {} has {foreign} samples that are none of the {} of the training split",
            u64::from(order.epoch()) + 1,
            there.len()
        )
    };
    (foreign > 0).then(problem).into_iter().collect()
}

/// Whether an epoch's order visits every one of `expected` once and nothing else, and
/// whether the ledger's steps of this epoch begin and end between two units of it.
pub fn order_problems(
    order: &EpochOrder,
    expected: &BTreeSet<SampleName>,
    ledger: &[LedgerRecord],
) -> Vec<String> {
    let mut visits: HashMap<SampleName, u64> = HashMap::with_capacity(expected.len());
    let mut bounds = BTreeSet::from([0]);
    let mut samples = 0;
    for unit in order.units() {
        for sample in unit.samples() {
            *visits.entry(sample).or_default() += 1;
        }
        samples += unit.count();
        bounds.insert(samples);
    }
    let epoch = u64::from(order.epoch()) + 1;
    let missed = expected.iter().filter(|s| !visits.contains_key(s)).count();
    let twice = visits.values().filter(|times| **times > 1).count();
    let foreign = visits.keys().filter(|s| !expected.contains(s)).count();
    let mut problems = Vec::new();
    if (missed, twice, foreign) != (0, 0, 0) {
        problems.push(format!(
            "the order of epoch {epoch} misses {missed} of the {} training {}, visits {twice} more than once and {foreign} that are none",
            expected.len(),
            match expected.iter().any(|(_, cell)| cell.is_none()) {
                true => "images",
                false => "patches that are not black",
            }
        ));
    }
    let inside = ledger.iter().filter_map(|record| match &record.entry {
        LedgerEntry::Commit(step) if step.epoch == order.epoch() => {
            [step.cursor_start, step.cursor_end]
                .into_iter()
                .find(|cursor| !bounds.contains(cursor))
                .map(|cursor| (step.step, cursor))
        }
        _ => None,
    });
    problems.extend(inside.take(1).map(|(step, cursor)| {
        format!(
            "step {step}: sample {cursor} of epoch {epoch} is not between two units of its order"
        )
    }));
    problems
}
