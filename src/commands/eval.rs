//! `fovea eval`: metrics of a checkpoint on one split.

use std::path::Path;
use std::sync::Arc;

use fovea_dataset::{Bar, Dataset, ProgressListener, Split};
use fovea_run::metrics::{
    Baseline, ClassMetrics, Classification, MetricName, Metrics, best_constant, class_names,
    classification_report, table_order,
};
use fovea_run::tuning::Tuning;
use fovea_task::Target;
use serde_json::json;

use super::average;
use crate::cli::EvalArgs;
use crate::exit::Ending;
use crate::say;
use crate::say::Unsaid;

pub fn run(args: &EvalArgs) -> anyhow::Result<Ending> {
    let split = average::split(&args.split)?;
    let mut models = average::open(&args.checkpoint, &args.average, &args.set)?;
    let data = Arc::new(Dataset::open(&args.data)?);
    let bar = Bar::new("images");
    bar.start(models.ticks(&data, split));
    let evaluation = models.evaluate(&data, split, &mut || bar.advance(1))?;
    bar.finish();
    let (answers, summary) = (&evaluation.answers, &evaluation.summary);
    let task = models.task();
    let mut scored = Vec::new();
    for (index, target) in table_order(task) {
        if let Some(metrics) = &summary[index] {
            let table = answers[index].table(target);
            scored.push(ScoredTarget {
                target,
                metrics,
                constant: best_constant(target, &table)?,
                more: Classification::of(target, &table, metrics),
            });
        }
    }
    let tuning = models.tuning();
    let same_data = |tuning: &Tuning| {
        tuning.split == split && tuning.dataset_blake3 == data.manifest().blake3()
    };
    let chosen_here = tuning.is_some_and(|(_, tuning)| same_data(tuning));
    if args.json {
        let mut value =
            json!({ "split": split.to_string(), "best_constant": {}, "classification": {} });
        if models.models() > 1 {
            value["weights"] = json!(evaluation.weights);
        }
        if let Some(views) = args.average.tta {
            value["views"] = json!(views);
        }
        if let Some((path, tuning)) = tuning {
            value["tuning"] = json!({
                "file": path, "split": tuning.split, "rule": tuning.rule,
                "chosen_on_this_split": chosen_here, "targets": tuning.targets,
            });
        }
        for of in &scored {
            value[&of.target.name] = json!(of.metrics);
            value["best_constant"][&of.target.name] = json!(of.constant);
            value["classification"][&of.target.name] = json!(of.more);
        }
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        print(split, class_names(task), &scored)?;
        for of in &scored {
            print_classification(of)?;
        }
        told_of(&evaluation.weights, args.average.tta, tuning, chosen_here)?;
    }
    Ok(Ending::Finished)
}

/// Lines below the table: how the answers became one, and where the thresholds are from.
fn told_of(
    weights: &[f64],
    views: Option<usize>,
    tuning: Option<(&Path, &Tuning)>,
    chosen_here: bool,
) -> Result<(), Unsaid> {
    if weights.len() > 1 {
        let weights: Vec<String> = weights.iter().map(|w| format!("{w:.3}")).collect();
        say!(
            "average of {} models, weights {}",
            weights.len(),
            weights.join(" ")
        )?;
    }
    if let Some(views) = views {
        say!("average over {views} views of each picture")?;
    }
    let Some((path, tuning)) = tuning else {
        return Ok(());
    };
    say!(
        "thresholds and temperatures of {}: {} (--untuned ignores them)",
        path.display(),
        tuning.describe()
    )?;
    if chosen_here {
        say!(
            "they were chosen on this very split: its scores at a threshold are too good, report those of test"
        )?;
    }
    Ok(())
}

/// A column of the table: a target with its metrics and the best constant prediction.
struct ScoredTarget<'a> {
    target: &'a Target,
    metrics: &'a Metrics,
    constant: Baseline,
    more: Classification,
}

/// The classification report, then what it leaves out.
fn print_classification(of: &ScoredTarget<'_>) -> Result<(), Unsaid> {
    say!("\nclassification report, {}\n", of.target.name)?;
    say!("{}", classification_report(of.target, of.metrics))?;
    say!("{}", of.more.details().trim_end())
}

fn print(split: Split, classes: Vec<&str>, scored: &[ScoredTarget<'_>]) -> Result<(), Unsaid> {
    let optional = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
    let line = |name: &str, value: &dyn Fn(&ScoredTarget<'_>) -> String| {
        let cells: Vec<String> = scored
            .iter()
            .map(|of| format!("{:>10}", value(of)))
            .collect();
        say!("{name:<16} {}", cells.join(" "))
    };
    let metric =
        |name: &str, metric: MetricName| line(name, &|of| optional(of.metrics.get(metric)));
    line(&split.to_string(), &|of| of.target.name.clone())?;
    line("samples", &|of| of.metrics.samples.to_string())?;
    metric("micro-F1", MetricName::F1Micro)?;
    line("  best constant", &|of| {
        optional(Some(of.constant.f1_micro))
    })?;
    metric("macro-F1", MetricName::F1Macro)?;
    metric("mean AUROC", MetricName::MeanAuroc)?;
    metric("mean AP", MetricName::MeanAp)?;
    metric("Hamming", MetricName::Hamming)?;
    metric("subset accuracy", MetricName::SubsetAcc)?;
    metric("IoU", MetricName::Iou)?;
    metric("Dice", MetricName::Dice)?;
    metric("Pearson r", MetricName::PearsonR)?;
    metric("loss", MetricName::Loss)?;
    if scored.iter().any(|of| of.metrics.agreement.is_some()) {
        let agreement = |of: &ScoredTarget<'_>| of.metrics.agreement.clone();
        line("accuracy", &|of| {
            optional(agreement(of).map(|it| it.accuracy))
        })?;
        line("Cohen's kappa", &|of| {
            optional(agreement(of).and_then(|it| it.kappa))
        })?;
    }
    for name in classes {
        let class = |of: &ScoredTarget<'_>| -> Option<ClassMetrics> {
            let place = of
                .target
                .classes
                .iter()
                .position(|class| class.name == name)?;
            of.metrics.per_class.get(place).copied()
        };
        line(&format!("{name} F1"), &|of| {
            optional(class(of).map(|c| c.f1))
        })?;
        line(&format!("{name} AUROC"), &|of| {
            optional(class(of).and_then(|c| c.auroc))
        })?;
        line(&format!("{name} AP"), &|of| {
            optional(class(of).and_then(|c| c.ap))
        })?;
    }
    Ok(())
}
