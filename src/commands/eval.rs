//! `fovea eval`: metrics of a checkpoint on one split.

use fovea_dataset::{Bar, Dataset, ProgressListener, Split};
use fovea_run::config::Config;
use fovea_run::metrics::{
    Baseline, ClassMetrics, Classification, MetricName, Metrics, best_constant, class_names,
    classification_report, table_order,
};
use fovea_task::Target;
use fovea_trainer::predict::Predictor;
use serde_json::json;

use crate::cli::EvalArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;

pub fn run(args: &EvalArgs) -> anyhow::Result<Ending> {
    let split: Split = args.split.parse().map_err(|_| {
        Usage(format!(
            "--split {}: no such split\n  help: choose train, val or test",
            args.split
        ))
    })?;
    let mut predictor = Predictor::load(&args.checkpoint, |config| apply(config, &args.set))?;
    let data = Dataset::open(&args.data)?;
    let bar = Bar::new("images");
    bar.start(data.indices(split).len() as u64);
    let (answers, summary) = predictor.evaluate(data, split, || bar.advance(1))?;
    bar.finish();
    let task = predictor.task();
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
    if args.json {
        let mut value =
            json!({ "split": split.to_string(), "best_constant": {}, "classification": {} });
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
    }
    Ok(Ending::Finished)
}

/// Applies the `--set` assignments over a checkpoint's configuration.
pub fn apply(config: &mut Config, assignments: &[String]) -> fovea_trainer::Result<()> {
    for assignment in assignments {
        config.set(assignment)?;
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
