//! A run in stages is the same on any number of ranks, and stopped or killed in any of its stages it goes on to the same
//! weights.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Dice, FINISHED, Outcome, RESUME, Run, Signal, USAGE, fovea, once, turn};

/// First the heads, then everything: seven steps each.
const STAGES: [&str; 4] = [
    "stages=[{epochs=1, train=\"head\", lr=1e-3, kind=\"constant\"}, \
     {epochs=1, groups={\"local_branch\"=1e-4, \"attn\"=2e-4}, kind=\"cosine\", t_max=2, warmup_steps=0}]",
    "optimizer.kind=adamw",
    "optimizer.decay=weights",
    "optimizer.clip_norm=1.0",
];

fn settings<'a>(more: &[&'a str]) -> Vec<&'a str> {
    STAGES.iter().chain(more).copied().collect()
}

/// The result of the run without interruption; it trains once for all tests.
fn reference() -> Outcome {
    once("stages-reference", || {
        let run = Run::new(&settings(&[]));
        run.start(2).wait().with_code(FINISHED);
        let lrs: Vec<String> = run
            .steps()
            .values()
            .map(|step| step.share.2.clone())
            .collect();
        let lrs: Vec<f32> = lrs.iter().map(|lr| lr.parse().unwrap()).collect();
        // Two steps of warm-up in the first stage; the second begins with its own rate.
        assert_eq!(lrs[..7], [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]);
        assert_eq!(lrs[7], 3e-4);
        assert!(
            lrs[13] < 3e-4 && lrs[13] > 1.5e-4,
            "half of a cosine over two epochs: {lrs:?}"
        );
        common::outcome(&run)
    })
}

#[test]
fn stages_do_not_depend_on_the_number_of_ranks() {
    let _turn = turn();
    let reference = reference();
    for ranks in [1, 4] {
        let run = Run::new(&settings(&[]));
        run.start(ranks).wait().with_code(FINISHED);
        assert_eq!(common::outcome(&run), reference, "{ranks} ranks");
    }
}

/// Ctrl-C in each stage; the run goes on with another number of ranks each time.
#[test]
fn a_run_that_is_stopped_in_each_stage_goes_on() {
    let _turn = turn();
    let reference = reference();
    let mut dice = Dice::new("a_run_that_is_stopped_in_each_stage_goes_on");
    let run = Run::new(&settings(&[]));
    let mut process = run.start(2);
    for (ranks, step) in [(1, dice.roll(2, 4)), (4, dice.roll(8, 10))] {
        run.wait_for_step(&mut process, step);
        process.signal(Signal::INT);
        process.wait().with_code(RESUME);
        common::assert_nobody_left(&run.path);
        process = run.resume(ranks);
    }
    process.wait().with_code(FINISHED);
    assert_eq!(common::outcome(&run), reference);
}

/// A rank is killed in each stage, and one at the border between them if the dice say so; a new one gets the state.
#[test]
fn a_rank_that_is_killed_in_each_stage_is_replaced() {
    let _turn = turn();
    let reference = reference();
    let mut dice = Dice::new("a_rank_that_is_killed_in_each_stage_is_replaced");
    let run = Run::new(&settings(&["checkpoint.every_steps=3"]));
    let mut process = run.start(2);
    for step in [dice.roll(2, 4), dice.roll(7, 10)] {
        let before = run.wait_for_step(&mut process, step);
        let victim = format!("--rank {}", dice.roll(0, 1));
        common::send(common::process_of(&run.path, &victim), Signal::KILL);
        run.wait_until(&mut process, "a new rank", |status| {
            status.generation > before.generation && status.world == 2 && status.step > before.step
        });
    }
    process.wait().with_code(FINISHED);
    assert_eq!(common::outcome(&run), reference);
}

#[test]
fn stages_that_a_model_cannot_train_are_refused_before_the_first_step() {
    let run = Run::new(&["stages=[{epochs=1, train=\"layer4\"}]"]);
    let done = run.start(1).wait().with_code(USAGE);
    done.explains(&[
        "stages.1.train",
        "\"layer4\"",
        "global_branch",
        "image_head",
    ]);
    assert!(!run.path.exists());
}

#[test]
fn presets_say_what_they_are_for() {
    let done = fovea(&["train", "--list-presets"]).with_code(FINISHED);
    done.prints(&[
        "hybrid\n    The main model",
        "published: validation F1 micro 0.837",
        "demo\n",
    ]);
}
