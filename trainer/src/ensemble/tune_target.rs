//! Temperatures and thresholds of one target from its labelled rows.

use fovea_run::metrics;
use fovea_run::tuning::{self, Rule, TargetTuning, TuningScores};
use fovea_task::{Kind, Target};

use crate::error::Result;
use crate::evaluate::Answers;

/// Temperatures and thresholds of one target.
pub(super) fn tune_target(
    target: &Target,
    answers: &Answers,
    rule: Rule,
    temperatures: bool,
    default: f32,
) -> Result<TargetTuning> {
    let classes = target.classes.len();
    let mut chosen = TargetTuning::neutral(target, default);
    let mut rows = answers.labelled(classes);
    chosen.samples = rows.ids.len() as u64;
    if rows.ids.is_empty() {
        return Ok(chosen);
    }
    chosen.before = Some(scores(target, &rows, &chosen.thresholds)?);
    if temperatures {
        let fitted = tuning::temperature::fit(target, &rows.labels, &rows.logits);
        let fitted = fitted.into_iter().map(|t| t.unwrap_or(1.0));
        chosen.temperature = fitted.collect();
        chosen.temper(&mut rows.logits);
    }
    if target.kind == Kind::AnyOf {
        let table = rows.table(target);
        for class in 0..classes {
            let of_class = table.probabilities.iter().skip(class).step_by(classes);
            let labelled = of_class.zip(&rows.labels);
            let scored: Vec<(f32, bool)> = labelled
                .map(|(&p, &label)| (p, target.has(label, class)))
                .collect();
            let threshold = tuning::threshold::choose(&scored, rule);
            chosen.thresholds[class] = threshold.unwrap_or(default);
        }
    }
    chosen.after = Some(scores(target, &rows, &chosen.thresholds)?);
    Ok(chosen)
}

/// The scores of labelled rows at these thresholds.
fn scores(target: &Target, rows: &Answers, thresholds: &[f32]) -> Result<TuningScores> {
    let metrics = metrics::compute(target, &rows.table(target), thresholds, 0.0)?;
    Ok(TuningScores {
        nll: tuning::temperature::mean_nll(target, &rows.labels, &rows.logits),
        f1_micro: metrics.f1_micro,
        f1_macro: metrics.f1_macro,
        f1: metrics.per_class.iter().map(|c| c.f1).collect(),
        sensitivity: metrics.per_class.iter().map(|c| c.recall).collect(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fovea_task::{Label, Task};

    use super::*;

    #[test]
    fn a_target_is_tuned_on_its_labelled_rows() {
        let target = Task::lesions().targets()[0].clone();
        // Class 0 wants a low threshold, class 1 a high one, class 2 has no positive, class 3 is always there.
        let rows: [(u64, u64, [f32; 4]); 5] = [
            (0, 0b1001, [-2.0, 1.0, 0.0, 1.0]),
            (1, 0b1010, [-4.0, 3.0, 0.0, 2.0]),
            (2, 0b1000, [-3.5, 1.5, 0.0, 0.5]),
            (3, 0b1011, [-2.5, 2.5, 1.0, 3.0]),
            (4, u64::MAX, [9.0, 9.0, 9.0, 9.0]),
        ];
        let answers = Answers {
            ids: rows.iter().map(|r| r.0).collect(),
            labels: rows.iter().map(|r| Label(r.1)).collect(),
            logits: rows.iter().flat_map(|r| r.2).collect(),
        };
        let tuned = tune_target(&target, &answers, Rule::F1, true, 0.5).unwrap();
        assert_eq!(tuned.samples, 4);
        let (before, after) = (tuned.before.unwrap(), tuned.after.unwrap());
        assert_eq!((before.f1[0], after.f1[0]), (0.0, 1.0));
        assert!(before.f1[1] < 1.0 && after.f1[1] == 1.0);
        assert_eq!(tuned.thresholds[2], 0.5, "no positive: the configured one");
        assert_eq!(tuned.temperature[2..], [1.0, 1.0], "one kind of label");
        assert!(after.nll < before.nll);
        let raw = tune_target(&target, &answers, Rule::F1, false, 0.5).unwrap();
        assert_eq!(raw.temperature, [1.0; 4]);
        assert_eq!(
            raw.after.unwrap().f1,
            after.f1,
            "F1 does not feel the temperature"
        );
    }
}
