//! Images that the model gets wrong: of each class the errors that it is surest of.

use std::collections::BTreeMap;

use fovea_dataset::Dataset;
use fovea_run::predictions::Prediction;
use fovea_task::{Kind, Level, Target};
use image::{RgbImage, imageops};

use super::super::run::Run;
use super::{Guess, dataset, photo};

/// Errors shown of each class.
const SHOWN: usize = 3;
/// Side of a picture in pixels.
const SIDE: u32 = 240;

/// An image whose class, or one of whose classes, the model gets wrong.
#[derive(Clone, Debug)]
pub(in super::super) struct Mistake {
    pub(in super::super) id: String,
    /// The photograph, scaled to `[240, 240]` pixels.
    pub(in super::super) photo: RgbImage,
    pub(in super::super) guess: Guess,
    /// Probability of the wrong answer.
    pub(in super::super) sureness: f32,
}

/// The mistakes about one class of one target.
#[derive(Clone, Debug)]
pub(in super::super) struct ClassMistakes {
    pub(in super::super) target: Target,
    /// The class that is true and missed, or, where a sample may have any number of classes, wrongly there or missing.
    pub(in super::super) class: usize,
    /// All labelled images that are wrong about the class.
    pub(in super::super) errors: usize,
    /// The surest of them first.
    pub(in super::super) shown: Vec<Mistake>,
}

/// The surest errors about each class of each target at image level. Lesions of cells have pictures of their own, so
/// targets whose classes are those of the cells are left out. `Err` says, for the reader of the report, why there are none.
pub(in super::super) fn mistakes(run: &Run) -> Result<Vec<ClassMistakes>, String> {
    let of_images = |target: &Target| target.level == Level::Image && !target.union_of_cells;
    let targets = run.task.targets().iter().enumerate();
    let wrong: Vec<(&Target, usize, Vec<Wrong<'_>>)> = targets
        .filter(|(_, target)| of_images(target))
        .flat_map(|(index, target)| {
            let classes = 0..target.classes.len();
            classes.map(move |class| (target, class, surest(run, index, class)))
        })
        .filter(|(.., errors)| !errors.is_empty())
        .collect();
    if wrong.is_empty() {
        return Ok(Vec::new());
    }
    let data = dataset(run).map_err(|reason| format!("No pictures of errors: {reason}."))?;
    let images = data.manifest().images.iter().enumerate();
    let index: BTreeMap<&str, usize> = images.map(|(i, image)| (image.id.as_str(), i)).collect();
    let all: Result<Vec<ClassMistakes>, String> = wrong
        .into_iter()
        .map(|(target, class, errors)| {
            let known = errors.iter().filter_map(|it| {
                let at = index.get(it.line.image_id.as_str())?;
                Some(mistake(&data, *at, target, it, &run.thresholds))
            });
            Ok(ClassMistakes {
                target: target.clone(),
                class,
                errors: errors.len(),
                shown: known.take(SHOWN).collect::<Result<_, String>>()?,
            })
        })
        .collect();
    let mut all = all?;
    // Another dataset may hold none of the images.
    all.retain(|it| !it.shown.is_empty());
    Ok(all)
}

/// A line that is wrong about a class, and the probability of its wrong answer.
struct Wrong<'a> {
    line: &'a Prediction,
    sureness: f32,
}

/// The errors about `class` of target `index`, the surest first, equally sure ones by image.
fn surest(run: &Run, index: usize, class: usize) -> Vec<Wrong<'_>> {
    let target = &run.task.targets()[index];
    let lines = run.predictions.iter();
    let lines = lines.filter(|line| line.target == index && line.label.is_known());
    let mut errors: Vec<Wrong<'_>> = lines
        .filter_map(|line| {
            let sureness = sureness(target, line, class, &run.thresholds)?;
            Some(Wrong { line, sureness })
        })
        .collect();
    errors.sort_by(|a, b| {
        let surer = b.sureness.total_cmp(&a.sureness);
        surer.then_with(|| a.line.image_id.cmp(&b.line.image_id))
    });
    errors
}

/// The probability that the model gives its wrong answer about a class; none if the answer is right or is about another
/// class.
fn sureness(
    target: &Target,
    line: &Prediction,
    class: usize,
    thresholds: &[Vec<f32>],
) -> Option<f32> {
    let guess = Guess::of(target, line, thresholds);
    let (truth, told) = (
        target.has(line.label, class),
        target.has(guess.predicted, class),
    );
    match target.kind {
        Kind::OneOf if truth && !told => {
            let predicted = usize::try_from(guess.predicted.0).ok()?;
            line.probabilities.get(predicted).copied()
        }
        Kind::AnyOf if truth != told => {
            let p = line.probabilities.get(class).copied()?;
            Some(if told { p } else { 1.0 - p })
        }
        _ => None,
    }
}

fn mistake(
    data: &Dataset,
    at: usize,
    target: &Target,
    wrong: &Wrong<'_>,
    thresholds: &[Vec<f32>],
) -> Result<Mistake, String> {
    let photo = photo(&data.image(at))?;
    Ok(Mistake {
        id: wrong.line.image_id.clone(),
        photo: imageops::resize(&photo, SIDE, SIDE, imageops::FilterType::Triangle),
        guess: Guess::of(target, wrong.line, thresholds),
        sureness: wrong.sureness,
    })
}

#[cfg(test)]
mod tests {
    use fovea_task::{Label, Task};

    use super::*;

    fn line(label: u64, probabilities: [f32; 4]) -> Prediction {
        Prediction {
            image_id: "a".to_owned(),
            target: 0,
            cell: None,
            label: Label(label),
            probabilities: probabilities.to_vec(),
            note: None,
        }
    }

    #[test]
    fn an_error_is_about_the_class_that_was_missed_or_wrongly_told() {
        let halves = vec![vec![0.5; 4]; 2];
        let any_of = Task::lesions().targets()[0].clone();
        let told = line(0b0011, [0.9, 0.2, 0.7, 0.1]);
        let sure = |class| sureness(&any_of, &told, class, &halves);
        assert_eq!(
            [sure(0), sure(1), sure(2), sure(3)],
            [None, Some(0.8), Some(0.7), None]
        );

        let mut one_of = any_of;
        (one_of.kind, one_of.union_of_cells) = (Kind::OneOf, false);
        let told = line(1, [0.1, 0.2, 0.6, 0.1]);
        let sure = |class| sureness(&one_of, &told, class, &halves);
        assert_eq!(
            [sure(0), sure(1), sure(2), sure(3)],
            [None, Some(0.6), None, None]
        );
        assert_eq!(
            sureness(&one_of, &line(2, [0.1, 0.2, 0.6, 0.1]), 2, &halves),
            None
        );
    }
}
