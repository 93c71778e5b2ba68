//! Histories as a coordinator writes them, and what happens to an audit when one is damaged.

mod history;

use std::collections::BTreeSet;

use proptest::prelude::*;

use history::{Op, Writer, history, op};

use super::*;
use crate::journal::Seat;
use crate::ledger::{CommittedStep, LedgerEntry};
use crate::order::{AllSamples, EpochOrder, Grain, OrderInput, Sampling};
use crate::protocol::{MemberId, StartPoint};

/// Positions of the commits that made the newest weights, told apart by the journal's own rule.
fn effective(writer: &Writer) -> Vec<usize> {
    let mut live: Vec<(usize, u64)> = Vec::new();
    for (i, record) in writer.ledger.iter().enumerate() {
        match record.entry {
            LedgerEntry::Start { start, .. } => live.retain(|(_, step)| *step <= start.step),
            LedgerEntry::Commit(step) => live.push((i, step.step)),
        }
    }
    live.into_iter().map(|(i, _)| i).collect()
}

fn range_of(record: &LedgerRecord) -> (u32, u64, u64) {
    match record.entry {
        LedgerEntry::Commit(step) => (step.epoch + 1, step.cursor_start, step.cursor_end),
        LedgerEntry::Start { .. } => panic!("no commit"),
    }
}

fn covers(ranges: &[SampleRange], start: u64, end: u64) -> bool {
    ranges.iter().any(|r| r.start <= start && end <= r.end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Losses, rewinds, restarts and resumes: none of them is a problem, and every sample is counted.
    #[test]
    fn valid_histories_are_clean(
        total in 1u64..60,
        epochs in 1u32..5,
        ops in prop::collection::vec(op(), 0..60),
        finish in any::<bool>(),
    ) {
        let writer = history(total, epochs, &ops, finish);
        let report = writer.report();
        prop_assert_eq!(&report.problems, &Vec::<String>::new());
        prop_assert_eq!(report.epochs.len(), writer.at.epoch as usize + usize::from(writer.at.cursor > 0));
        for epoch in &report.epochs {
            prop_assert_eq!(epoch.used_once + epoch.to_come, total);
            prop_assert_eq!((epoch.missed, epoch.repeated), (0, 0));
            prop_assert_eq!(epoch.in_progress, epoch.to_come > 0);
        }
        let count = |wanted: &dyn Fn(&Op) -> bool| ops.iter().filter(|op| wanted(op)).count();
        let losses = count(&|op| matches!(op, Op::LoseRank(_) | Op::LoseCoordinator(_)));
        prop_assert_eq!(report.incidents.len(), losses);
        prop_assert_eq!(report.resumes.len(), count(&|op| matches!(op, Op::Resume(_))));
        prop_assert_eq!(report.steps, effective(&writer).len() as u64);
        let goodput = report.goodput.unwrap();
        prop_assert!((0.0..=1.0).contains(&goodput.goodput), "{goodput:?}");
        prop_assert!(goodput.useful_ms + goodput.void_ms <= goodput.wall_ms);
    }

    /// A committed range that is taken out of the ledger, or entered twice, is found and named.
    #[test]
    fn damage_is_found(
        total in 1u64..60,
        epochs in 1u32..5,
        ops in prop::collection::vec(op(), 0..60),
        finish in any::<bool>(),
        at in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
    ) {
        let mut writer = history(total, epochs, &ops, finish);
        let live = effective(&writer);
        let at = live[at.index(live.len())];
        let (epoch, start, end) = range_of(&writer.ledger[at]);
        let of = |report: &Report| report.epochs.iter().find(|e| e.epoch == epoch).cloned();

        let record = writer.ledger.remove(at);
        let report = writer.report();
        prop_assert!(!report.is_clean());
        // The very last range of a run that is not finished could be one to come; the journal knows.
        let last = of(&report).is_none_or(|e| {
            e.in_progress && e.expected - e.to_come <= start
        });
        prop_assert!(last || covers(&of(&report).unwrap().missed_ranges, start, end), "{report:#?}");

        writer.ledger.insert(at, record);
        writer.ledger.insert(at, record);
        let report = writer.report();
        let found = of(&report).unwrap();
        prop_assert!(!report.is_clean());
        prop_assert!(covers(&found.repeated_ranges, start, end), "{report:#?}");
        writer.ledger.remove(at);

        // Also one that stands elsewhere.
        let to = to.index(writer.ledger.len() + 1);
        writer.ledger.insert(to, record);
        prop_assert!(!writer.report().is_clean());
    }
}

/// Two ranks are lost, one after the other, and a coordinator: all with their times.
#[test]
fn what_faults_cost() {
    let mut writer = Writer::new(100, 1);
    writer.commit(10);
    writer.save(false);
    writer.commit(10);
    writer.commit(10);
    writer.lose_rank(true);
    writer.lose_rank(false);
    writer.note(JournalEntry::Shared {
        generation: writer.generation,
        step: 1,
        ranks: 2,
        state_blake3: String::new(),
    });
    writer.commit(10);
    writer.lose_coordinator(true);
    writer.commit(10);
    writer.end("drained");
    writer.now_ms += 60_000;
    writer.save(false);
    writer.coordinator();
    let report = writer.report();
    assert_eq!(report.problems, [""; 0]);
    assert_eq!(report.state, "open");
    assert_eq!(
        (report.steps, report.steps_void, report.generations),
        (3, 2, 4)
    );
    assert_eq!(report.coordinators, 3);
    let [one, two, three] = &report.incidents[..] else {
        panic!("{report:#?}")
    };
    let facts = |i: &IncidentAudit| {
        (
            (i.lost, i.generation, i.step),
            (i.detection_ms, i.recovery_ms, i.steps_lost),
            (i.ranks_after, i.shared),
        )
    };
    let rank = Lost::Rank;
    assert_eq!(
        facts(one),
        ((rank, 1, 3), (40, Some(450), 0), (Some(2), None))
    );
    assert_eq!(
        facts(two),
        ((rank, 2, 3), (40, Some(300), 2), (Some(2), Some(2)))
    );
    assert_eq!(
        facts(three),
        (
            (Lost::Coordinator, 3, 2),
            (500, Some(800), 0),
            (Some(2), None)
        )
    );
    let expected = Resume {
        unix_ms: writer.now_ms,
        after: "drained".to_owned(),
        idle_ms: 60_500,
        ended_step: 3,
        step: 3,
    };
    assert_eq!(report.resumes, [expected]);
    let goodput = report.goodput.unwrap();
    // Each generation's first step took 200 ms, as did all others; the 60 s do not count.
    assert_eq!((goodput.useful_ms, goodput.void_ms), (600, 400));
    let up = 100 + 3 * 200 + 150 + 150 + 200 + 600 + 200 + 10;
    assert_eq!((goodput.wall_ms, goodput.median_step_ms), (up, 200));
}

/// What an earlier step says must not hide what a later one does.
#[test]
fn inconsistent_ledgers_are_told() {
    let told = |damage: &dyn Fn(&mut Writer), words: &str| {
        let mut writer = Writer::new(100, 1);
        (0..4).for_each(|_| writer.commit(10));
        writer.form(true);
        (0..6).for_each(|_| writer.commit(10));
        writer.end("finished");
        assert!(writer.report().is_clean());
        damage(&mut writer);
        let problems = writer.report().problems.join("\n");
        assert!(problems.contains(words), "{words:?} is not in\n{problems}");
    };
    let edit = |w: &mut Writer, at: usize, edit: &dyn Fn(&mut CommittedStep)| {
        if let LedgerEntry::Commit(step) = &mut w.ledger[at].entry {
            edit(step);
        }
    };
    // Records: start 1, steps 1 to 4, start 2, steps 5 to 10.
    told(
        &|w| {
            w.ledger.remove(3);
        },
        "epoch 1: 10 samples missed: 20..30",
    );
    told(
        &|w| {
            w.ledger.remove(4);
        },
        "generation 2 starts after step 4 (sample 40 of epoch 1), but the newest step that the ledger has up to there is step 3",
    );
    told(
        &|w| {
            w.ledger.remove(5);
        },
        "step 5 is committed by generation 2, the newest one started is 1",
    );
    told(
        &|w| w.ledger.truncate(11),
        "generation 2 ended after step 10 in the journal, after step 9 in the ledger",
    );
    told(&|w| w.ledger.clear(), "the ledger ends in epoch 0 of 1");
    told(
        &|w| drop(w.journal.remove(2)),
        "generation 2 of the ledger is not in the journal",
    );
    told(&|w| edit(w, 2, &|s| s.step = 9), "step 9 follows step 1");
    told(
        &|w| edit(w, 2, &|s| s.cursor_start = 5),
        "epoch 1: 5 samples repeated: 5..10",
    );
    told(
        &|w| edit(w, 2, &|s| s.cursor_start = 15),
        "step 2 begins at sample 15 of epoch 1, the record before it ends at sample 10",
    );
    told(
        &|w| edit(w, 11, &|s| s.cursor_end = 101),
        "samples 90..101 of epoch 1, which has 100",
    );
    told(
        &|w| edit(w, 2, &|s| s.cursor_end = 10),
        "step 2 has samples 10..10",
    );
    told(
        &|w| edit(w, 11, &|s| s.epoch = u32::MAX),
        "epoch 4294967296",
    );
    let restart = |w: &mut Writer, number: Generation| {
        if let LedgerEntry::Start { generation, .. } = &mut w.ledger[5].entry {
            *generation = number;
        }
    };
    told(&|w| restart(w, 1), "generation 1 is started twice");
    told(
        &|w| restart(w, 0),
        "generation 0 is started after generation 1",
    );
    // A rewind that the journal knows nothing of.
    told(
        &|w| {
            if let LedgerEntry::Start { start, .. } = &mut w.ledger[5].entry {
                (start.step, start.cursor) = (2, 20);
            }
        },
        "generation 2 starts after step 4 in the journal, after step 2 in the ledger",
    );
}

#[test]
fn nothing_and_long_lists() {
    let report = audit(&AuditInput {
        ledger: &[],
        journal: &[],
        samples_per_epoch: 10,
        epochs: 2,
    });
    assert!(report.is_clean() && report.epochs.is_empty() && report.goodput.is_none());
    assert_eq!(report.state, "unknown");
    let ranges: Vec<SampleRange> = (0..9)
        .map(|i| SampleRange {
            start: 2 * i,
            end: 2 * i + 1,
        })
        .collect();
    assert_eq!(
        name_ranges(&ranges),
        "0..1, 2..3, 4..5, 6..7, 8..9, 10..11 and 3 more"
    );
}

#[test]
fn orders_are_counted() {
    let input = OrderInput {
        images: vec![(0, vec![0, 1, 2]), (4, vec![5, 6])],
        grain: Grain::Cell,
        sampler: &AllSamples,
        sampling: Sampling::default(),
        seed: 1,
        patches_per_image: 2,
    };
    let order = EpochOrder::new(&input, 0).unwrap();
    let names = |cells: [(u32, u16); 5]| BTreeSet::from(cells.map(|(i, c)| (i, Some(c))));
    let all = names([(0, 0), (0, 1), (0, 2), (4, 5), (4, 6)]);
    let mut writer = Writer::new(5, 1);
    let first = order.units()[0].cells.len() as u64;
    writer.commit(first);
    assert_eq!(order_problems(&order, &all, &writer.ledger), [""; 0]);
    writer.commit(4);
    assert_eq!(order_problems(&order, &all, &writer.ledger), [""; 0]);
    let other = names([(0, 0), (0, 1), (0, 2), (4, 5), (7, 6)]);
    let problems = order_problems(&order, &other, &[]);
    assert!(problems[0].contains("misses 1 of the 5"), "{problems:?}");
    assert!(problems[0].contains("and 1 that are none"), "{problems:?}");

    let within = order
        .units()
        .iter()
        .position(|u| u.cells.len() == 2)
        .unwrap();
    let before: u64 = order.units()[..within]
        .iter()
        .map(|u| u.cells.len() as u64)
        .sum();
    let mut writer = Writer::new(5, 1);
    writer.commit(before + 1);
    let problems = order_problems(&order, &all, &writer.ledger);
    assert!(
        problems[0].contains("not between two units"),
        "{problems:?}"
    );

    assert_eq!(list_problems(&order, &all), [""; 0]);
    let problems = list_problems(&order, &other);
    assert!(
        problems[0].contains("1 samples that are none of the 5"),
        "{problems:?}"
    );

    let grain = Grain::Image;
    let order = EpochOrder::new(&OrderInput { grain, ..input }, 0).unwrap();
    let images = BTreeSet::from([(0, None), (4, None)]);
    let mut writer = Writer::new(2, 1);
    writer.commit(1);
    assert_eq!(order_problems(&order, &images, &writer.ledger), [""; 0]);
    let problems = order_problems(&order, &BTreeSet::from([(0, None)]), &[]);
    assert!(
        problems[0].contains("of the 1 training images"),
        "{problems:?}"
    );
}
