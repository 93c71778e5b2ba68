//! `fovea tune`: thresholds and temperatures, chosen on the validation split.

use std::sync::Arc;

use anyhow::Context;
use fovea_dataset::{Bar, Dataset, ProgressListener, Split};
use fovea_run::tuning::{Rule, TargetTuning, Tuning};
use fovea_task::{Kind, Target, Task};
use fovea_trainer::ensemble::{Options, Tuned};

use super::{average, output};
use crate::cli::{TuneArgs, TuneBy};
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;

pub fn run(args: &TuneArgs) -> anyhow::Result<Ending> {
    let split = average::split(&args.split)?;
    if split == Split::Test {
        return Err(Usage(
            "--split test: thresholds that were chosen on the split that is reported make its scores too good\n  help: tune on val, then `fovea eval .. --split test`"
                .to_owned(),
        )
        .into());
    }
    let rule = rule(args)?;
    let options = Options {
        weights: average::weights(args.weights.as_deref())?,
        views: average::views(args.tta),
        tuned: Tuned::Not,
    };
    if args.checkpoints.len() > 1 && args.out.is_none() {
        return Err(Usage(format!(
            "{} models: an ensemble has no directory of its own to keep thresholds in\n  help: name a file with --out; eval and predict take it as --tuned FILE",
            args.checkpoints.len()
        ))
        .into());
    }
    let mut models = average::models(&args.checkpoints, options, &args.set)?;
    let dir = args.data.as_deref().unwrap_or(models.trained_on());
    if dir.as_os_str().is_empty() || !dir.exists() {
        return Err(Usage(format!(
            "the dataset of the training is not at {:?}\n  help: give it with --data",
            dir.display().to_string()
        ))
        .into());
    }
    let data = Arc::new(Dataset::open(dir)?);
    let out = match (&args.out, models.beside()) {
        (Some(out), _) => output::checked("--out", out, data.dir())?,
        (None, beside) => beside.context("several models, and no --out")?,
    };
    let bar = Bar::new("images");
    bar.start(models.ticks(&data, split));
    let temperatures = !args.no_temperature;
    let tuning = models.tune(&data, split, rule, temperatures, &mut || bar.advance(1))?;
    bar.finish();
    tuning.write(&out)?;
    print(models.task(), &tuning)?;
    say!("{}: {}", out.display(), tuning.describe())?;
    if tuning.models.len() > 1 {
        let weights = tuning.models.iter().map(|m| format!("{:.3}", m.weight));
        let weights: Vec<String> = weights.collect();
        say!(
            "weights {}; use with --tuned {}",
            weights.join(" "),
            out.display()
        )?;
    }
    Ok(Ending::Finished)
}

fn rule(args: &TuneArgs) -> Result<Rule, Usage> {
    let rule = match (args.grid, args.sensitivity) {
        (Some(step), _) => Rule::Grid(step),
        (None, Some(share)) => Rule::Sensitivity(share),
        (None, None) => match args.by {
            TuneBy::F1 => Rule::F1,
        },
    };
    let refused = |what| {
        Usage(format!(
            "{what}\n  help: --grid 0.05 or --sensitivity 0.9, for example"
        ))
    };
    rule.check().map(|()| rule).map_err(refused)
}

/// One block per target: its scores before and after, and a line per class.
fn print(task: &Task, tuning: &Tuning) -> Result<(), Unsaid> {
    for (target, tuned) in task.targets().iter().zip(&tuning.targets) {
        let (Some(before), Some(after)) = (&tuned.before, &tuned.after) else {
            say!("{}: no labels, nothing to choose", target.name)?;
            continue;
        };
        say!(
            "{}, {} samples: macro-F1 {:.4} -> {:.4}, micro-F1 {:.4} -> {:.4}, log-likelihood {:.4} -> {:.4}",
            target.name,
            tuned.samples,
            before.f1_macro,
            after.f1_macro,
            before.f1_micro,
            after.f1_micro,
            -before.nll,
            -after.nll
        )?;
        match target.kind {
            Kind::AnyOf => classes(target, tuned)?,
            Kind::OneOf => say!(
                "  temperature {:.3}; the most probable class is predicted, without thresholds",
                tuned.temperature.first().copied().unwrap_or(1.0)
            )?,
        }
    }
    Ok(())
}

fn classes(target: &Target, tuned: &TargetTuning) -> Result<(), Unsaid> {
    let (Some(before), Some(after)) = (&tuned.before, &tuned.after) else {
        return Ok(());
    };
    let width = target.classes.iter().map(|c| c.name.chars().count());
    let width = width.max().unwrap_or(0).max(5);
    say!(
        "  {:width$} temperature threshold     F1 before -> after  sensitivity",
        "class"
    )?;
    for (index, class) in target.classes.iter().enumerate() {
        say!(
            "  {:width$} {:>11.3} {:>9.4} {:>13.4} -> {:<6.4} {:>9.4}",
            class.name,
            tuned.temperature[index],
            tuned.thresholds[index],
            before.f1[index],
            after.f1[index],
            after.sensitivity[index]
        )?;
    }
    Ok(())
}
