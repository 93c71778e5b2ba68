//! What `eval`, `predict` and `tune` share: one model or several as one.

use std::path::{Path, PathBuf};

use fovea_dataset::Split;
use fovea_run::config::Config;
use fovea_trainer::ensemble::{Ensemble, Options, Tuned, Weights};
use fovea_trainer::tta::TestViews;

use crate::cli::AverageArgs;
use crate::exit::Usage;

/// The models of a command: `checkpoint` and those that `--with` adds.
pub fn open(checkpoint: &Path, args: &AverageArgs, set: &[String]) -> anyhow::Result<Ensemble> {
    let mut paths = vec![checkpoint.to_owned()];
    paths.extend(args.with.iter().cloned());
    let tuned = match (&args.tuned, args.untuned) {
        (Some(file), _) => Tuned::File(file.clone()),
        (None, true) => Tuned::Not,
        (None, false) => Tuned::Beside,
    };
    let options = Options {
        weights: weights(args.weights.as_deref())?,
        views: views(args.tta),
        tuned,
    };
    models(&paths, options, set)
}

/// Models whose configurations have these assignments applied.
pub fn models(paths: &[PathBuf], options: Options, set: &[String]) -> anyhow::Result<Ensemble> {
    let set = set.to_vec();
    let adjust = move |config: &mut Config| apply(config, &set);
    Ok(Ensemble::open(paths, options, Box::new(adjust))?)
}

/// Applies the `--set` assignments over a checkpoint's configuration.
pub fn apply(config: &mut Config, assignments: &[String]) -> fovea_trainer::Result<()> {
    for assignment in assignments {
        config.set(assignment)?;
    }
    Ok(())
}

/// The views that `--tta` asks for.
pub fn views(tta: Option<usize>) -> TestViews {
    tta.and_then(TestViews::of_count).unwrap_or_default()
}

/// Reads `--weights`.
pub fn weights(text: Option<&str>) -> Result<Weights, Usage> {
    let Some(text) = text else {
        return Ok(Weights::Default);
    };
    if text == "val" {
        return Ok(Weights::Validation);
    }
    let numbers = text.split(',').map(|number| number.trim().parse());
    let numbers: Result<Vec<f64>, _> = numbers.collect();
    numbers.map(Weights::Given).map_err(|_| {
        Usage(format!(
            "--weights {text}: neither numbers nor `val`\n  help: give one number per model, as 0.5,0.3,0.2"
        ))
    })
}

/// Reads `--split`.
pub fn split(text: &str) -> Result<Split, Usage> {
    text.parse().map_err(|_| {
        Usage(format!(
            "--split {text}: no such split\n  help: choose train, val or test"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_numbers_or_a_word() {
        assert_eq!(weights(None).ok(), Some(Weights::Default));
        assert_eq!(weights(Some("val")).ok(), Some(Weights::Validation));
        let given = weights(Some("0.5, 0.3,2e-1")).ok();
        assert_eq!(given, Some(Weights::Given(vec![0.5, 0.3, 0.2])));
        let error = weights(Some("0.5;0.3")).err().map(|e| e.0);
        assert!(error.is_some_and(|text| text.contains("neither numbers") && text.contains("\n  help: ")));
    }
}
