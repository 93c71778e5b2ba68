//! Runs that use part of the samples in an epoch, from windows off the grid and in interpolated views, keep the promises of
//! all others: the same weights on any number of ranks and after faults, and an audit that proves each listed sample used
//! once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{FINISHED, RESUME, Run, Signal, USAGE, fovea, outcome, turn};

const SETTINGS: [&str; 8] = [
    "data.sampler=balanced",
    "data.healthy_ratio=0.5",
    "data.class_cap=5",
    "data.cells=mixed",
    "augment.offset=8",
    "augment.rotation=20",
    "augment.scale=0.1",
    "augment.erasing=0.25",
];

#[track_caller]
fn audits_clean(run: &Run) {
    let text = fovea(&["audit", run.text()]).with_code(FINISHED).prints(&[
        "epoch 1 ",
        "epoch 2 ",
        "0 missed, 0 repeated",
        "note         data.sampler = balanced lists ",
        "verdict      no sample was missed, none was used twice",
    ]);
    println!("{text}");
}

#[test]
fn a_balanced_run_is_the_same_on_any_ranks_and_after_faults() {
    let _turn = turn();
    let alone = Run::new(&SETTINGS);
    alone.start(1).wait().with_code(FINISHED);
    let reference = outcome(&alone);
    audits_clean(&alone);

    let two = Run::new(&SETTINGS);
    two.start(2).wait().with_code(FINISHED);
    assert_eq!(outcome(&two), reference);

    // A trainer is killed, then the run is stopped, and continued with other ranks.
    let disturbed = Run::new(&SETTINGS);
    let mut process = disturbed.start(2);
    disturbed.wait_for_step(&mut process, 1);
    common::send(
        common::process_of(&disturbed.path, "--rank 1"),
        Signal::KILL,
    );
    disturbed.wait_until(&mut process, "a new generation", |status| {
        status.generation > 1 && status.step >= 2
    });
    process.signal(Signal::INT);
    process.wait().with_code(RESUME);
    disturbed.resume(4).wait().with_code(FINISHED);
    assert_eq!(outcome(&disturbed), reference);
    audits_clean(&disturbed);

    // All samples instead: another run altogether.
    let all = Run::new(&[&SETTINGS[3..], &["train.epochs=1"]].concat());
    all.start(2).wait().with_code(FINISHED);
    let samples = |run: &Run| -> u64 {
        let steps = run.steps();
        let rows = common::facts(&steps);
        rows.iter().map(|(_, _, samples)| *samples).sum()
    };
    assert!(samples(&alone) < 2 * samples(&all));
    fovea(&["audit", all.text()])
        .with_code(FINISHED)
        .prints(&["verdict      no sample was missed, none was used twice"]);
}

#[test]
fn numbers_that_the_sampler_does_not_read_are_refused() {
    let run = Run::new(&["data.class_cap=5"]);
    run.start(1)
        .wait()
        .with_code(USAGE)
        .explains(&["data.class_cap is set", "data.sampler = \"all\""]);
}
