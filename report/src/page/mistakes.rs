//! Misclassified images on the page, and the classification reports.

use fovea_run::metrics::{Classification, classification_report};
use fovea_task::{Kind, Target};
use maud::{Markup, html};

use super::super::Result;
use super::super::files::data_url;
use super::super::pictures::ClassMistakes;
use super::super::plots::noun;
use super::super::run::{Run, TargetScores};

/// The pictures of errors; `None` without any.
pub(super) fn section(mistakes: &[ClassMistakes]) -> Result<Option<Markup>> {
    if mistakes.is_empty() {
        return Ok(None);
    }
    let classes = mistakes.iter().map(of_class).collect::<Result<Vec<_>>>()?;
    Ok(Some(html! {
        p .lead { "Validation images that the model gets wrong: of each class the errors to which it gives the highest probability." }
        @for class in classes { (class) }
    }))
}

fn of_class(mistakes: &ClassMistakes) -> Result<Markup> {
    let target = &mistakes.target;
    let class = target.classes.get(mistakes.class);
    let (name, title) = class.map_or(("", ""), |class| (&class.name, &class.title));
    let about = match target.kind {
        Kind::OneOf => "true class",
        Kind::AnyOf => "wrong about",
    };
    let pictures = mistakes.shown.iter().map(|it| {
        let words = format!(
            "true: {}, predicted: {}",
            target.describe(it.guess.label),
            target.describe(it.guess.predicted)
        );
        Ok((&it.id, data_url(&it.photo)?, words, it.sureness))
    });
    let pictures = pictures.collect::<Result<Vec<_>>>()?;
    Ok(html! {
        figure .card .full .mistakes {
            figcaption {
                (noun(target)) ", " (about) " " (name)
                @if title != name { " (" (title) ")" }
                span .quiet { " " (mistakes.errors) @if mistakes.errors == 1 { " error" } @else { " errors" } }
            }
            div .panels {
                @for (id, url, words, sureness) in &pictures {
                    div {
                        img src=(url) alt=(format!("Photograph {id}; {words}")) width="240" height="240" loading="lazy";
                        p { (id) }
                        p { (words) ", probability " (format!("{sureness:.2}")) }
                    }
                }
            }
        }
    })
}

/// scikit-learn's classification report of each target that has scores; `None` without any.
pub(super) fn reports(run: &Run) -> Option<Markup> {
    let scored: Vec<(&Target, &TargetScores)> = run
        .targets()
        .filter_map(|target| Some((target, run.scores_of(target)?)))
        .collect();
    (!scored.is_empty()).then(|| {
        html! {
            p .lead { "Precision, recall and F1 of each class, the number of samples with it, and the averages over classes: of all counts together (micro, or the accuracy), each class once (macro), each as often as it occurs (weighted)." }
            @for (target, scores) in scored {
                figure .card .full {
                    figcaption { (noun(target)) }
                    div .scroll { pre { (classification_report(target, &scores.metrics)) "\n" (Classification::of(target, &scores.table, &scores.metrics).details()) } }
                }
            }
        }
    })
}
