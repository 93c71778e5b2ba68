//! The weights depend neither on the number of ranks nor on the way they exchange gradients.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{FINISHED, Run, facts, turn};

/// How a run is divided: number of ranks, and backend.
type Way = (u32, &'static str);

/// The results that must be equal.
#[derive(Debug, PartialEq)]
struct Result {
    hash: String,
    metrics: Vec<String>,
    predictions: String,
    steps: Vec<(u64, (String, String, String), u64)>,
}

fn train(settings: &[&str], (ranks, backend): Way) -> Result {
    let _turn = turn();
    let backend = format!("train.backend={backend}");
    let run = Run::new(&[settings, &[&backend]].concat());
    run.start(ranks).wait().with_code(FINISHED);
    common::assert_nobody_left(&run.path);
    let steps = run.steps();
    assert!(
        steps
            .values()
            .all(|step| step.ranks.len() == ranks as usize),
        "{steps:?}"
    );
    Result {
        hash: run.final_hash(),
        metrics: run.metrics(),
        predictions: std::fs::read_to_string(run.path.join("predictions-val.csv")).unwrap(),
        steps: facts(&steps),
    }
}

#[track_caller]
fn all_the_same(settings: &[&str], ways: &[Way]) -> Result {
    let first = train(settings, ways[0]);
    for way in &ways[1..] {
        assert_eq!(
            train(settings, *way),
            first,
            "{settings:?}: {way:?} against {:?}",
            ways[0]
        );
    }
    first
}

const LOCAL: [Way; 3] = [(1, "local"), (2, "local"), (4, "local")];

/// Seven steps of three units, fewer than virtual shards, so some shards are always empty. Two epochs include
/// evaluation and the schedule.
#[test]
fn ranks_do_not_change_the_weights() {
    let result = all_the_same(&[], &LOCAL);
    assert_eq!(result.steps.len(), 14);
    let mpi = if cfg!(feature = "mpi") {
        Some(train(&[], (2, "mpi")))
    } else {
        None
    };
    assert!(
        mpi.is_none_or(|mpi| mpi == result),
        "two ranks over MPI differ from one rank"
    );
}

/// Whole images as units: seven of them in steps of five. The last step has two, which leaves some of four ranks
/// without work. Another seed gives other weights.
#[test]
fn uneven_tails_do_not_change_the_weights() {
    let settings = [
        "train.images_per_step=5",
        "data.patches_per_image=16",
        "train.epochs=1",
        "eval.train_metrics=true",
    ];
    let result = all_the_same(&settings, &[LOCAL[0], LOCAL[2]]);
    // Each patch of the epoch is scored once, at every number of ranks.
    let columns: Vec<&str> = result.metrics[0].split(',').collect();
    let at = |name: &str| columns.iter().position(|column| *column == name).unwrap();
    let field = |line: &str, name: &str| line.split(',').nth(at(name)).unwrap().to_owned();
    let of_patches =
        |line: &&String| field(line, "split") == "train" && field(line, "level") == "patch";
    let scored: Vec<&String> = result.metrics[1..].iter().filter(of_patches).collect();
    let trained: u64 = result.steps.iter().map(|(_, _, samples)| *samples).sum();
    assert_eq!(scored.len(), 1, "{:?}", result.metrics);
    assert_eq!(field(scored[0], "samples"), trained.to_string());
    assert_eq!(field(scored[0], "mean_auroc"), "");
    let samples: Vec<u64> = result
        .steps
        .iter()
        .map(|(_, _, samples)| *samples)
        .collect();
    assert_eq!(samples.len(), 2, "{samples:?}");
    assert!(
        samples[0] > samples[1],
        "the second step is the tail: {samples:?}"
    );
    let other = train(&[&settings[..], &["train.seed=1"]].concat(), LOCAL[0]);
    assert_ne!(other.hash, result.hash, "the hash does not see the weights");
}

/// bf16 rounds often; the order of sums still does not depend on the ranks.
#[test]
fn bf16_is_deterministic_too() {
    if !native_bf16() {
        eprintln!("skipped: this processor has no bf16");
        return;
    }
    let settings = [
        "train.precision=bf16",
        "train.images_per_step=8",
        "train.epochs=1",
    ];
    all_the_same(&settings, &LOCAL);
}

fn native_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Threads divide the virtual shards of a rank among them, but never split one.
#[test]
fn the_number_of_threads_does_not_matter_either() {
    let one = train(&[], (1, "local"));
    let by_threads = |threads: &str, ranks| {
        train(
            &[&format!("train.threads_per_rank={threads}")],
            (ranks, "local"),
        )
    };
    assert_eq!(by_threads("2", 1), one);
    assert_eq!(by_threads("4", 1), one);
    assert_eq!(by_threads("2", 2), one);
}
