//! `fovea audit`: checks that a run used every sample once, and what each fault cost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::anyhow;
use fovea_coordinator::audit::{
    self, AuditInput, EpochAudit, IncidentAudit, Report, Resume, name_ranges,
};
use fovea_coordinator::journal::{self, JOURNAL_FILE, JournalRecord};
use fovea_coordinator::ledger::{self, LEDGER_FILE, LedgerRecord};
use fovea_coordinator::order::{EpochOrder, Grain, SampleName};
use fovea_coordinator::{Contents, Error};
use fovea_dataset::{Dataset, Split};
use fovea_run::config::Config;
use fovea_run::run_dir::RunDir;
use fovea_trainer::models;
use fovea_trainer::train::{order_input, resume_from};

use super::scheduled::refuse_not_begun;
use crate::cli::AuditArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;
use crate::show;

/// Most times that both files are read again, because an active run may write while they are read.
const READS: usize = 20;
/// Most problems that the error message repeats; the report has all.
const PROBLEMS_TOLD: usize = 5;

pub fn run(args: &AuditArgs) -> anyhow::Result<Ending> {
    refuse_not_begun(&args.run)?;
    let run = RunDir::new(&args.run);
    let config = Config::load(&run.config())?;
    if !run.path().join(LEDGER_FILE).exists() {
        let path = run.path().display();
        // A coordinator creates the journal after the ledger, so a run with a journal has had a ledger.
        return Err(Usage(match run.path().join(JOURNAL_FILE).exists() {
            true => format!(
                "{path} has a journal but no ledger ({LEDGER_FILE}): it was removed, and which samples were used is known no more\n  help: get it back from a copy of the run directory; without it nothing can be audited"
            ),
            false => format!(
                "{path} has no ledger: no coordinator has started there yet\n  help: give the directory of a run that has trained"
            ),
        })
        .into());
    }
    let (data, stopped_early) = open(args, &config, &run)?;
    let records = AuditRecords::read(run.path())?;
    let epochs = stopped_early.unwrap_or(config.train.epochs);
    let report = examine(&config, epochs, &data, &records)?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["clean"] = report.is_clean().into();
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        print(&report)?;
    }
    match report.is_clean() {
        true => Ok(Ending::Finished),
        false => Err(failure(run.path(), &report)),
    }
}

/// The dataset that the run trains on, and the epoch after which it stopped early, if it did. The shards are not
/// hashed: the audit needs only the black cells.
fn open(args: &AuditArgs, config: &Config, run: &RunDir) -> anyhow::Result<(Dataset, Option<u32>)> {
    let path = args.data.as_deref().unwrap_or(config.data.path.as_ref());
    let data = Dataset::open_unverified(path).map_err(|error| Usage(error.to_string()))?;
    match resume_from(run, Some(&data)) {
        // This is another dataset, whose samples are not those of the ledger.
        Err(error @ fovea_trainer::Error::Mismatch { .. }) => Err(error.into()),
        Ok((start, true)) => Ok((data, Some(start.epoch))),
        // The audit does not need a usable checkpoint.
        _ => Ok((data, None)),
    }
}

/// The records of both files, and notes and problems from reading them.
struct AuditRecords {
    ledger: Vec<LedgerRecord>,
    journal: Vec<JournalRecord>,
    notes: Vec<String>,
    problems: Vec<String>,
}

impl AuditRecords {
    /// Reads both as of one moment: no entry reached the journal while the ledger was read.
    fn read(run: &Path) -> anyhow::Result<Self> {
        let length = |read: &Result<Contents<JournalRecord>, Error>| {
            read.as_ref().map_or(0, |journal| journal.records.len())
        };
        let mut journal = journal::read(run);
        let mut ledger = ledger::read(run)?;
        for _ in 0..READS {
            let again = journal::read(run);
            if length(&again) == length(&journal) {
                break;
            }
            journal = again;
            ledger = ledger::read(run)?;
        }
        let (mut notes, mut problems) = (Vec::new(), Vec::new());
        notes.extend(torn("ledger", &ledger));
        let journal = match journal {
            Ok(journal) => {
                notes.extend(torn("journal", &journal));
                journal.records
            }
            Err(error) => {
                let what = error.to_string();
                problems.push(what.lines().next().unwrap_or_default().to_owned());
                Vec::new()
            }
        };
        Ok(Self {
            ledger: ledger.records,
            journal,
            notes,
            problems,
        })
    }
}

fn torn<T>(name: &str, contents: &Contents<T>) -> Option<String> {
    let torn = contents.torn?;
    Some(format!(
        "the {name} ends in the middle of a record: {} bytes at byte {}, which the next coordinator cuts",
        torn.bytes, torn.offset
    ))
}

fn examine(
    config: &Config,
    epochs: u32,
    data: &Dataset,
    records: &AuditRecords,
) -> anyhow::Result<Report> {
    // The samples come from the dataset itself, independently of the sample order that they must match.
    let grain = models::find(&config.model.name)?.grain;
    let there = samples(data, grain);
    let order_input = order_input(data, grain, config);
    let order = |epoch| EpochOrder::new(&order_input, epoch);
    let mut report = audit::audit(&AuditInput {
        ledger: &records.ledger,
        journal: &records.journal,
        samples_per_epoch: order(0)?.total_samples(),
        epochs,
    });
    for epoch in &report.epochs {
        let order = order(epoch.epoch.saturating_sub(1))?;
        let expected = match order_input.sampler.reads_classes() {
            false => Cow::Borrowed(&there),
            true => Cow::Owned(order_input.listed(order.epoch())),
        };
        report.problems.extend(audit::list_problems(&order, &there));
        let problems = audit::order_problems(&order, &expected, &records.ledger);
        report.problems.extend(problems);
    }
    if order_input.sampler.reads_classes() {
        report.notes.push(format!(
            "data.sampler = {} lists {} of the {} training samples for an epoch",
            order_input.sampler.name(),
            order(0)?.total_samples(),
            there.len()
        ));
    }
    report.notes.extend_from_slice(&records.notes);
    report.problems.extend_from_slice(&records.problems);
    Ok(report)
}

/// The samples of the training split: every patch that is not black, or every image.
fn samples(data: &Dataset, grain: Grain) -> BTreeSet<SampleName> {
    let mut samples = BTreeSet::new();
    for image in data.indices(Split::Train) {
        let name = image as u32;
        match grain {
            Grain::Cell => {
                let cells = (0u16..).zip(data.black(image));
                let kept = cells.filter(|(_, black)| **black == 0);
                samples.extend(kept.map(|(cell, _)| (name, Some(cell))));
            }
            Grain::Image => _ = samples.insert((name, None)),
        }
    }
    samples
}

fn failure(run: &Path, report: &Report) -> anyhow::Error {
    let told: Vec<&str> = report
        .problems
        .iter()
        .take(PROBLEMS_TOLD)
        .map(String::as_str)
        .collect();
    let more = match report.problems.len() - told.len() {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    anyhow!(
        "{}: the audit found {} problem(s):\n  {}{more}\n  help: do not trust the weights of this run; keep ledger and journal, and start again in a new run directory",
        run.display(),
        report.problems.len(),
        told.join("\n  ")
    )
}

fn print(report: &Report) -> Result<(), Unsaid> {
    say!(
        "run          {}: {} steps, {} generations, {} coordinators; {} steps were void and taken again",
        report.state,
        report.steps,
        report.generations,
        report.coordinators,
        report.steps_void
    )?;
    if report.epochs.is_empty() {
        say!("epoch        no step is committed yet")?;
    }
    report.epochs.iter().try_for_each(print_epoch)?;
    for resume in &report.resumes {
        say!("{}", resume_line(resume))?;
    }
    report.incidents.iter().try_for_each(print_incident)?;
    if report.incidents.is_empty() {
        say!("incident     none")?;
    }
    if let Some(g) = &report.goodput {
        say!(
            "goodput      {:.1} %: {} of {} went into steps that count, {} into void ones (a step takes {})",
            100.0 * g.goodput,
            took(g.useful_ms),
            took(g.wall_ms),
            took(g.void_ms),
            took(g.median_step_ms)
        )?;
    }
    for note in &report.notes {
        say!("note         {note}")?;
    }
    for problem in &report.problems {
        say!("PROBLEM      {problem}")?;
    }
    if report.is_clean() {
        say!("verdict      no sample was missed, none was used twice")?;
    }
    Ok(())
}

fn print_epoch(epoch: &EpochAudit) -> Result<(), Unsaid> {
    let ranges = |what: &str, ranges: &[audit::SampleRange]| match ranges {
        [] => String::new(),
        some => format!("; {what} {}", name_ranges(some)),
    };
    let to_come = match epoch.in_progress {
        true => format!(", {} to come (in progress)", epoch.to_come),
        false => String::new(),
    };
    say!(
        "epoch {:<6} {} samples: {} used once, {} missed, {} repeated{to_come}{}{}",
        epoch.epoch,
        epoch.expected,
        epoch.used_once,
        epoch.missed,
        epoch.repeated,
        ranges("missed", &epoch.missed_ranges),
        ranges("repeated", &epoch.repeated_ranges),
    )
}

fn resume_line(resume: &Resume) -> String {
    let back = match resume.ended_step.saturating_sub(resume.step) {
        0 => String::new(),
        steps => format!(", {steps} steps back"),
    };
    format!(
        "resume       {} from step {}{back}, {} after the run had {} at step {}",
        when(resume.unix_ms),
        resume.step,
        took(resume.idle_ms),
        resume.after,
        resume.ended_step
    )
}

fn print_incident(incident: &IncidentAudit) -> Result<(), Unsaid> {
    say!(
        "incident     {} generation {}, step {}: {}",
        when(incident.unix_ms),
        incident.generation,
        incident.step,
        incident.cause
    )?;
    let recovery = incident.recovery_ms.map_or_else(
        || "no step since".to_owned(),
        |ms| format!("next step after {}", took(ms)),
    );
    let ranks = incident.ranks_after.map_or_else(String::new, |ranks| {
        format!(", went on with {ranks} rank(s)")
    });
    let shared = incident.shared.map_or_else(String::new, |ranks| {
        format!("; {ranks} ranks were given the same state since")
    });
    say!(
        "             noticed after {}, {recovery}, {} steps lost{ranks}{shared}",
        took(incident.detection_ms),
        incident.steps_lost
    )
}

fn when(unix_ms: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    time.map_or_else(
        || format!("{unix_ms} ms"),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// A duration from milliseconds: `340 ms`, `2.1 s`, `3m20s`.
fn took(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => show::duration(ms as f64 / 1000.0),
    }
}
