//! `report.html`: one file, no scripts, nothing loaded from elsewhere.

mod mistakes;
mod samples;
mod summary;
mod tables;

use fovea_task::{Kind, Target};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Chart, Size};
use super::pictures::{ClassMistakes, Panels, Scene};
use super::plots;
use super::run::{Run, TargetScores};
use super::{Figures, Result, palette};

/// The page of a run, with all figures in it.
pub(super) fn page(
    run: &Run,
    figures: &Figures,
    scenes: &[Scene],
    panels: &[Panels],
    mistakes: &[ClassMistakes],
) -> Result<Markup> {
    let samples = samples::section(scenes, panels)?;
    let mistakes = mistakes::section(mistakes)?;
    let curves = run.targets().zip(&figures.epochs).map(|(target, charts)| {
        let mut title = format!("{} over epochs", plots::noun(target));
        title[..1].make_ascii_uppercase();
        let id = format!("curves-{}", plots::slug(target));
        (id, title, curves(run, charts, target))
    });
    let sections = [
        ("ranking", "ROC and precision-recall", ranking(run, figures)),
        ("confusion", "Confusion", confusion(run)),
        (
            "classification",
            "Classification report",
            mistakes::reports(run),
        ),
        ("mistakes", "Misclassified images", mistakes),
        ("samples", "Sample predictions", samples),
        ("training", "Training", grid(&figures.training)),
        ("throughput", "Throughput", throughput(run, figures)),
    ];
    let sections = sections
        .into_iter()
        .map(|(id, title, body)| (id.to_owned(), title.to_owned(), body));
    let shown: Vec<_> = curves
        .chain(sections)
        .filter_map(|(id, title, body)| Some((id, title, body?)))
        .collect();
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (run.name) " \u{2013} Fovea report" }
                style { (PreEscaped(palette::style_sheet())) (PreEscaped(include_str!("style.css"))) }
            }
            body {
                (summary::header(run))
                @if !shown.is_empty() {
                    nav aria-label="Sections" { @for (id, title, _) in &shown { a href=(format!("#{id}")) { (title) } } }
                }
                main {
                    (notes(&run.notes))
                    (summary::summary(run))
                    @for (id, title, body) in &shown {
                        section id=(id) { h2 { (title) } (body) }
                    }
                }
                (footer(run, !shown.is_empty()))
            }
        }
    })
}

fn notes(notes: &[String]) -> Markup {
    html! {
        @if !notes.is_empty() {
            aside .notes aria-label="What is missing" {
                strong { "Not everything is here" }
                ul { @for note in notes { li { (note) } } }
            }
        }
    }
}

/// A chart with its title and its note, as one card of the page.
fn card(chart: &Chart) -> Markup {
    html! {
        figure .card .(if chart.size == Size::Small { "small" } else { "wide" }) {
            figcaption { (chart.title) }
            (chart.drawing(false).svg(&chart.alt))
            @if !chart.note.is_empty() { p .note { (chart.note) } }
        }
    }
}

fn grid(charts: &[Chart]) -> Option<Markup> {
    (!charts.is_empty()).then(|| html! { div .grid { @for chart in charts { (card(chart)) } } })
}

fn curves(run: &Run, charts: &[Chart], target: &Target) -> Option<Markup> {
    let body = grid(charts)?;
    let watched = &run.config.early_stopping;
    let has = |name: &str| {
        charts.iter().any(|c| {
            c.series
                .iter()
                .any(|s| s.name == name && !s.points.is_empty())
        })
    };
    Some(html! {
        p .lead {
            "Validation on " (plots::noun(target)) ". The best epoch is that of the highest "
            @if !watched.metric.higher_is_better() { "(here: lowest) " }
            (plots::metric_title(watched.metric)) @if let Some(watched) = run.watched() { " on " (plots::noun(watched)) } "; the shaded bands are those of the published plots."
        }
        ul .legend {
            li { span .swatch .line .val {} "validation" }
            @if has("training") { li { span .swatch .line .train {} "training" } }
            @if has("quadratic trend") { li { span .swatch .dash .val {} "quadratic trend" } }
            @if has("best constant") { li { span .swatch .dots .constant {} "best constant prediction" } }
            @if charts.iter().any(|c| c.mark.is_some()) { li { span .swatch .point .best {} "best epoch" } }
        }
        (body)
    })
}

/// Which predictions a figure was made from.
fn source(scores: &TargetScores, target: &Target) -> String {
    let epoch = match scores.epoch {
        Some(epoch) => format!("epoch {epoch}"),
        None => "an epoch that is not in metrics.csv".to_owned(),
    };
    format!(
        "{} {} of {epoch}",
        plots::grouped(scores.metrics.samples),
        plots::noun(target)
    )
}

fn ranking(run: &Run, figures: &Figures) -> Option<Markup> {
    let body = grid(&figures.ranking)?;
    let sources: Vec<String> = run
        .targets()
        .filter_map(|target| Some(source(run.scores_of(target)?, target)))
        .collect();
    Some(html! {
        p .lead {
            "From predictions-val.csv: " (sources.join(", ")) ". Numbers in the legends are the area under the ROC curve and the average precision; dotted lines are what chance gives."
        }
        (body)
    })
}

fn confusion(run: &Run) -> Option<Markup> {
    let scored: Vec<(&Target, &TargetScores)> = run
        .targets()
        .filter_map(|target| Some((target, run.scores_of(target)?)))
        .collect();
    let any = |kind| scored.iter().any(|(target, _)| target.kind == kind);
    (!scored.is_empty()).then(|| {
        html! {
            p .lead { @if let (true, Some(tuned)) = (any(Kind::AnyOf), &run.tuned) { "Thresholds and temperatures were " (tuned) ", so these tables are better than those of new images will be; `fovea eval` has the test split's. " } @else if any(Kind::AnyOf) { "At a probability of " (run.config.eval.threshold) " or more a class counts as predicted. " } @if any(Kind::OneOf) { "Of classes that exclude each other, the most probable counts as predicted. " } "Shades and percentages are shares of the row." }
            @for (target, scores) in &scored {
                @let (drawing, alt) = plots::confusion(&scores.metrics, target, false);
                figure .card .full {
                    figcaption { (source(scores, target)) }
                    div .scroll { (drawing.svg(&alt)) }
                }
            }
        }
    })
}

fn throughput(run: &Run, figures: &Figures) -> Option<Markup> {
    let body = grid(&figures.speed)?;
    let table = run.throughput.as_ref().map(tables::ranks);
    Some(html! { (body) @if let Some(table) = table { (table) } })
}

fn footer(run: &Run, figures: bool) -> Markup {
    html! {
        footer {
            p {
                @if figures {
                    "Every figure is also a picture in " code { (run.dir.join("report").display()) } ". "
                }
                "IoU and Dice are averaged over samples, a healthy sample that was called healthy counting 1. "
                "The best constant prediction is the set of classes that, given for every sample, has the best micro F1; for the other scores each the constant that is best on it."
            }
        }
    }
}
