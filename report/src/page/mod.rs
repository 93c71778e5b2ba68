//! `report.html`: one file, no scripts, nothing loaded from elsewhere.

mod samples;
mod summary;
mod tables;

use fovea_run::config::Level;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Chart, Size};
use super::pictures::{Panels, Scene};
use super::plots;
use super::run::{LevelScores, Run};
use super::{Figures, Result, palette};

/// The whole page.
pub(super) fn page(
    run: &Run,
    figures: &Figures,
    scenes: &[Scene],
    panels: &[Panels],
) -> Result<Markup> {
    let samples = samples::section(scenes, panels)?;
    let sections = [
        (
            "curves-patch",
            "Patches over epochs",
            curves(run, &figures.patches, Level::Patch),
        ),
        (
            "curves-image",
            "Images over epochs",
            curves(run, &figures.images, Level::Image),
        ),
        ("ranking", "ROC and precision-recall", ranking(run, figures)),
        ("confusion", "Confusion", confusion(run)),
        ("samples", "Sample predictions", samples),
        ("training", "Training", grid(&figures.training)),
        ("throughput", "Throughput", throughput(run, figures)),
    ];
    let shown: Vec<_> = sections
        .into_iter()
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

/// A chart in a card.
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

fn curves(run: &Run, charts: &[Chart], level: Level) -> Option<Markup> {
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
            "Validation on " (plots::noun(level)) ". The best epoch is that of the highest "
            @if !watched.metric.higher_is_better() { "(here: lowest) " }
            (plots::metric_title(watched.metric)) " on " (plots::noun(watched.level)) "; the shaded bands are those of the published plots."
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
fn source(scores: &LevelScores, level: Level) -> String {
    let epoch = match scores.epoch {
        Some(epoch) => format!("epoch {epoch}"),
        None => "an epoch that is not in metrics.csv".to_owned(),
    };
    format!(
        "{} {} of {epoch}",
        plots::grouped(scores.metrics.samples),
        plots::noun(level)
    )
}

fn ranking(run: &Run, figures: &Figures) -> Option<Markup> {
    let body = grid(&figures.ranking)?;
    let sources: Vec<String> = Level::ALL
        .iter()
        .filter_map(|&level| Some(source(run.level(level)?, level)))
        .collect();
    Some(html! {
        p .lead {
            "From predictions-val.csv: " (sources.join(", ")) ". Numbers in the legends are the area under the ROC curve and the average precision; dotted lines are what chance gives."
        }
        (body)
    })
}

fn confusion(run: &Run) -> Option<Markup> {
    let levels: Vec<(Level, &LevelScores)> = Level::ALL
        .iter()
        .filter_map(|&level| Some((level, run.level(level)?)))
        .collect();
    (!levels.is_empty()).then(|| {
        html! {
            p .lead { "At a probability of " (run.config.eval.threshold) " or more a class counts as predicted. Shades and percentages are shares of the row." }
            @for (level, scores) in levels {
                @let (drawing, alt) = plots::confusion(&scores.metrics, level, false);
                figure .card .full {
                    figcaption { (source(scores, level)) }
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
