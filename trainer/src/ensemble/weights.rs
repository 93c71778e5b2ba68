//! How much each model of an ensemble counts.

use fovea_run::metrics;

use super::{Ensemble, Weights};
use crate::error::{Error, Result};
use crate::evaluate::{self, Answers};
use crate::objective::Objective;

impl Ensemble {
    /// The watched metric of one model on the validation split, at the configured threshold.
    pub(super) fn validation_score(
        &self,
        answers: &[Answers],
        objective: &Objective,
        index: usize,
    ) -> Result<f64> {
        let watch = &self.config.early_stopping;
        let thresholds = evaluate::one_threshold(&self.task, self.config.eval.threshold);
        let summary = evaluate::summarise(&self.task, answers, objective, &thresholds)?;
        let watched = metrics::watched(&self.task, watch.level);
        let metrics = watched.and_then(|(target, _)| summary[target].as_ref());
        let score = metrics.and_then(|metrics| metrics.get(watch.metric));
        match score.filter(|_| watch.metric.higher_is_better()) {
            Some(score) if score > 0.0 => Ok(score),
            score => Err(Error::Usage {
                what: format!(
                    "--weights val: {} at {} level of {} is {}, of which no weight can be made",
                    watch.metric,
                    watch.level,
                    self.known[index].path.display(),
                    match (watch.metric.higher_is_better(), score) {
                        (false, _) => "better when lower".to_owned(),
                        (true, None) => "undefined".to_owned(),
                        (true, Some(score)) => score.to_string(),
                    }
                ),
                help: "give the weights as numbers, or watch another metric: --set early_stopping.metric=f1_macro".to_owned(),
            }),
        }
    }

    /// The share of each model, summing to 1.
    pub(super) fn weights(&self, scores: Option<Vec<f64>>) -> Vec<f64> {
        let given = match (&self.options.weights, scores) {
            (_, Some(scores)) => scores,
            (Weights::Given(given), _) => given.clone(),
            _ => match &self.tuning {
                Some((_, tuning)) => tuning.models.iter().map(|m| m.weight).collect(),
                None => vec![1.0; self.models()],
            },
        };
        let sum: f64 = given.iter().sum();
        given.iter().map(|weight| weight / sum).collect()
    }
}

/// Refuses weights that are not one per model, or no weights.
pub(super) fn check_weights(weights: &Weights, models: usize) -> Result<()> {
    let Weights::Given(given) = weights else {
        return Ok(());
    };
    let what = if given.len() != models {
        format!("{} numbers for {models} models", given.len())
    } else if let Some(bad) = given.iter().find(|w| !w.is_finite() || **w < 0.0) {
        format!("{bad} is no weight")
    } else if given.iter().sum::<f64>() <= 0.0 {
        "all are 0".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Usage {
        what: format!("--weights: {what}"),
        help: "give one number per model, 0 or more, in their order".to_owned(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn weights_are_checked() {
        for (given, models, why) in [
            (vec![1.0], 2, "1 numbers for 2 models"),
            (vec![1.0, -0.5], 2, "-0.5 is no weight"),
            (vec![f64::NAN, 1.0], 2, "NaN is no weight"),
            (vec![0.0, 0.0], 2, "all are 0"),
        ] {
            let error = check_weights(&Weights::Given(given), models).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(check_weights(&Weights::Given(vec![0.0, 2.0]), 2).is_ok());
        assert!(check_weights(&Weights::Validation, 3).is_ok());
    }
}
