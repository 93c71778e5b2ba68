//! `fovea audit` finds a disturbed run clean and reports what the faults cost; it does not find a ledger clean that
//! somebody has tampered with.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::Path;

use common::{Done, FAILED, FINISHED, RESUME, Run, Signal, USAGE, fovea, turn};
use fovea_coordinator::ledger::{self, Ledger, LedgerEntry, LedgerRecord};
use serde_json::Value;

fn audit(run: &Run) -> Done {
    fovea(&["audit", run.text()])
}

/// The audit's report as JSON; the command prints it whatever the result is.
#[track_caller]
fn report(run: &Run, code: i32) -> Value {
    let done = fovea(&["audit", run.text(), "--json"]).with_code(code);
    serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"))
}

/// Writes a ledger with exactly these records.
fn rewrite(run: &Path, records: &[LedgerRecord]) {
    fs::remove_file(run.join("ledger")).unwrap();
    let (mut ledger, _) = Ledger::open(run).unwrap();
    for record in records {
        ledger.append(record).unwrap();
    }
    ledger.sync().unwrap();
}

/// Position of step 9 in the records, the second step of the second epoch.
fn ninth(records: &[LedgerRecord]) -> usize {
    let wanted = |r: &LedgerRecord| matches!(r.entry, LedgerEntry::Commit(step) if step.step == 9);
    records.iter().position(wanted).unwrap()
}

#[test]
fn a_run_audits_clean_until_its_ledger_is_touched() {
    let _turn = turn();
    let run = Run::new(&[]);
    let mut process = run.start(2);
    run.wait_for_step(&mut process, 3);
    // The audit works while the run trains, too.
    audit(&run)
        .with_code(FINISHED)
        .prints(&["run          open", "to come (in progress)"]);
    process.signal(Signal::INT);
    process.wait().with_code(RESUME);
    run.resume(1).wait().with_code(FINISHED);

    let text = audit(&run).with_code(FINISHED).prints(&[
        "run          finished: 14 steps",
        "epoch 1 ",
        "epoch 2 ",
        "0 missed, 0 repeated",
        "resume ",
        "had drained",
        "incident     none",
        "goodput ",
        "verdict      no sample was missed, none was used twice",
    ]);
    println!("{text}");
    let clean = report(&run, FINISHED);
    assert_eq!(clean["clean"], true, "{clean:#}");
    assert_eq!(clean["epochs"].as_array().unwrap().len(), 2, "{clean:#}");
    let total = clean["epochs"][1]["expected"].as_u64().unwrap();
    assert!(
        total > 0 && clean["epochs"][1]["used_once"] == total,
        "{clean:#}"
    );
    let goodput = clean["goodput"]["goodput"].as_f64().unwrap();
    assert!(goodput > 0.0 && goodput <= 1.0, "{clean:#}");

    let records = ledger::read(&run.path).unwrap().records;
    let at = ninth(&records);
    let LedgerEntry::Commit(step) = records[at].entry else {
        panic!("{:?}", records[at])
    };
    let range = format!("{}..{}", step.cursor_start, step.cursor_end);

    // A step was removed.
    let mut fewer = records.clone();
    fewer.remove(at);
    rewrite(&run.path, &fewer);
    audit(&run).with_code(FAILED).explains(&[
        &format!(
            "epoch 2: {} samples missed: {range}",
            step.cursor_end - step.cursor_start
        ),
        "step 10 follows step 8",
    ]);
    let damaged = report(&run, FAILED);
    let missed = &damaged["epochs"][1]["missed_ranges"][0];
    assert_eq!(missed["start"], step.cursor_start, "{damaged:#}");
    assert_eq!(missed["end"], step.cursor_end, "{damaged:#}");

    // A step is there twice.
    let mut more = records.clone();
    more.insert(at, records[at]);
    rewrite(&run.path, &more);
    audit(&run)
        .with_code(FAILED)
        .prints(&["PROBLEM "])
        .explains(&["epoch 2: ", &format!("samples repeated: {range}")]);

    // The end is missing, and the journal shows that there was one.
    rewrite(&run.path, &records[..records.len() - 1]);
    audit(&run)
        .with_code(FAILED)
        .explains(&["after step 14 in the journal, after step 13 in the ledger"]);

    // A torn write causes a note; damage is an error.
    rewrite(&run.path, &records);
    let path = run.path.join("ledger");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &whole[16..25]].concat()).unwrap();
    audit(&run)
        .with_code(FINISHED)
        .prints(&["the ledger ends in the middle of a record: 9 bytes"]);
    fs::write(&path, &whole).unwrap();
    common::flip_byte(&path, 40);
    audit(&run)
        .with_code(FAILED)
        .explains(&["ledger is damaged at byte"]);
    fs::write(&path, &whole).unwrap();
    common::flip_byte(&run.path.join("journal"), 40);
    audit(&run)
        .with_code(FAILED)
        .explains(&["journal is damaged at byte"]);
}

#[test]
fn a_killed_trainer_is_one_incident() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=4"]);
    let mut process = run.start(2);
    run.wait_for_step(&mut process, 3);
    common::send(common::process_of(&run.path, "--rank 1"), Signal::KILL);
    process.wait().with_code(FINISHED);
    let text = audit(&run)
        .with_code(FINISHED)
        .prints(&["rank 1", "next step after "]);
    println!("{text}");
    let report = report(&run, FINISHED);
    let incidents = report["incidents"].as_array().unwrap();
    assert_eq!(incidents.len(), 1, "{report:#}");
    assert_eq!(incidents[0]["lost"], "rank", "{report:#}");
    assert_eq!(incidents[0]["steps_lost"], 0, "{report:#}");
    assert!(incidents[0]["step"].as_u64().unwrap() >= 3, "{report:#}");
    assert!(incidents[0]["recovery_ms"].as_u64().is_some(), "{report:#}");
    for epoch in report["epochs"].as_array().unwrap() {
        assert_eq!(epoch["used_once"], epoch["expected"], "{report:#}");
    }
}

/// A killed coordinator is an incident too; the samples are still used once.
#[test]
fn a_killed_coordinator_is_one_incident() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=4"]);
    let mut process = run.start(2);
    run.wait_for_step(&mut process, 3);
    common::send(common::process_of(&run.path, "coordinator"), Signal::KILL);
    process.wait().with_code(FINISHED);
    let text = audit(&run)
        .with_code(FINISHED)
        .prints(&["the coordinator (host ", "coordinator 2 took over"]);
    println!("{text}");
    let report = report(&run, FINISHED);
    assert_eq!(report["coordinators"], 2, "{report:#}");
    let incidents = report["incidents"].as_array().unwrap();
    assert_eq!(incidents[0]["lost"], "coordinator", "{report:#}");
    assert!(incidents[0]["recovery_ms"].as_u64().is_some(), "{report:#}");
}

#[test]
fn what_is_no_run_is_told() {
    let directory = common::scratch();
    fovea(&["audit", directory.path().to_str().unwrap()])
        .with_code(USAGE)
        .explains(&["config.toml"]);
}
