//! `fovea eval`

use fovea_dataset::{Bar, CLASSES, Dataset, ProgressListener, Split};
use fovea_run::config::Config;
use fovea_run::metrics::{Metrics, Scored, best_constant};
use fovea_trainer::evaluate::Summary;
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
    let (rows, summary) = predictor.evaluate(data, split, || bar.advance(1))?;
    bar.finish();
    let level = |wanted: u32| -> Vec<Scored> {
        rows.iter()
            .filter(|r| r.level == wanted)
            .map(fovea_trainer::evaluate::Row::scored)
            .collect()
    };
    let baselines = [best_constant(&level(0)), best_constant(&level(1))];
    let [patch, image] = baselines.map(|b| b);
    let (patch, image) = (patch?, image?);
    if args.json {
        let value = json!({
            "split": split.to_string(),
            "patch": summary.patch,
            "image": summary.image,
            "best_constant": { "patch": patch, "image": image },
        });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        print(split, &summary, [patch.f1_micro, image.f1_micro])?;
    }
    Ok(Ending::Finished)
}

/// `--set` over a checkpoint's configuration.
pub fn apply(config: &mut Config, assignments: &[String]) -> fovea_trainer::Result<()> {
    for assignment in assignments {
        config.set(assignment)?;
    }
    Ok(())
}

fn print(split: Split, summary: &Summary, constant_f1: [f64; 2]) -> Result<(), Unsaid> {
    let optional = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
    say!("{split:<16} {:>10} {:>10}", "patch", "image")?;
    let line = |name: &str, value: &dyn Fn(&Metrics) -> String| {
        say!(
            "{name:<16} {:>10} {:>10}",
            value(&summary.patch),
            value(&summary.image)
        )
    };
    line("samples", &|m| m.samples.to_string())?;
    line("micro-F1", &|m| format!("{:.4}", m.f1_micro))?;
    say!(
        "  best constant  {:>10.4} {:>10.4}",
        constant_f1[0],
        constant_f1[1]
    )?;
    line("macro-F1", &|m| format!("{:.4}", m.f1_macro))?;
    line("mean AUROC", &|m| optional(m.mean_auroc))?;
    line("mean AP", &|m| optional(m.mean_ap))?;
    line("Hamming", &|m| format!("{:.4}", m.hamming))?;
    line("subset accuracy", &|m| format!("{:.4}", m.subset_acc))?;
    line("IoU", &|m| format!("{:.4}", m.iou))?;
    line("Dice", &|m| format!("{:.4}", m.dice))?;
    line("Pearson r", &|m| optional(m.pearson_r))?;
    line("loss", &|m| format!("{:.4}", m.loss))?;
    for (c, name) in CLASSES.iter().enumerate() {
        let class = |m: &Metrics| m.per_class[c];
        line(&format!("{name} F1"), &|m| format!("{:.4}", class(m).f1))?;
        line(&format!("{name} AUROC"), &|m| optional(class(m).auroc))?;
        line(&format!("{name} AP"), &|m| optional(class(m).ap))?;
    }
    Ok(())
}
