//! The top of the page: what run this is, how far it got, and whether it beats a constant.

use fovea_coordinator::status::{RunState, Status};
use fovea_dataset::Split;
use fovea_run::config::MetricName;
use fovea_task::Target;
use maud::{Markup, html};

use super::super::plots::{grouped, metric_title, noun};
use super::super::run::Run;
use super::tables;

/// Name, state, and one line of what was trained.
pub(super) fn header(run: &Run) -> Markup {
    let (state, tone) = state(run);
    html! {
        header {
            p .brand { "Fovea training report" }
            h1 { (run.name) span .chip .(tone) { (state) } }
            @if let Some(reason) = run.status.as_ref().map(|s| s.reason.as_str()).filter(|r| !r.is_empty()) {
                p .reason { (reason) }
            }
        }
    }
}

fn state(run: &Run) -> (&'static str, &'static str) {
    let Some(status) = &run.status else {
        return if run.metrics.is_empty() && run.throughput.is_none() {
            ("never started", "quiet")
        } else {
            ("state unknown", "quiet")
        };
    };
    if !run.live && !status.state.is_over() {
        return ("stopped without a word: no coordinator answers", "bad");
    }
    match status.state {
        RunState::Waiting => ("waiting for ranks", "busy"),
        RunState::Training => ("training", "busy"),
        RunState::Evaluating => ("evaluating", "busy"),
        RunState::Draining => ("draining", "busy"),
        RunState::Finished => ("finished", "fine"),
        RunState::Failed => ("failed", "bad"),
        RunState::Stopped => ("stopped", "warn"),
    }
}

/// Headline numbers, facts, and all scores beside the constant's.
pub(super) fn summary(run: &Run) -> Markup {
    html! {
        section .summary aria-label="Summary" {
            div .tiles {
                @for target in run.targets() {
                    @for metric in [MetricName::F1Micro, MetricName::MeanAuroc] {
                        @if let Some(tile) = score_tile(run, target, metric) { (tile) }
                    }
                }
            }
            div .columns {
                (facts(run))
                @if let Some(table) = tables::scores(run) { (table) }
            }
        }
    }
}

/// A score at the best epoch and how far it is above the best constant.
fn score_tile(run: &Run, target: &Target, metric: MetricName) -> Option<Markup> {
    let row = run.best_row(target)?;
    let value = row.metrics.get(metric);
    let constant = run.baseline(target).and_then(|b| b.get(metric));
    let lead = value.zip(constant).map(|(v, c)| v - c);
    let tone = lead.map_or("quiet", |lead| if lead > 0.0 { "fine" } else { "bad" });
    Some(html! {
        div .tile {
            p .what { (metric_title(metric)) ", " (noun(target)) }
            p .number { (value.map_or_else(|| "undefined".to_owned(), |v| format!("{v:.3}"))) }
            @if let Some(((value, constant), lead)) = value.zip(constant).zip(lead) {
                (meter(value, constant))
                p .versus { span .(tone) { (format!("{lead:+.3}").replace('-', "\u{2212}")) } " vs. best constant " (format!("{constant:.3}")) }
            } @else {
                p .versus { "no positive and negative labels to rank" }
            }
        }
    })
}

/// A bar from 0 to 1 with a tick where the constant is.
fn meter(value: f64, constant: f64) -> Markup {
    html! {
        div .meter aria-hidden="true" {
            span .bar style=(format!("width:{:.1}%", value.clamp(0.0, 1.0) * 100.0)) {}
            span .tick style=(format!("left:{:.1}%", constant.clamp(0.0, 1.0) * 100.0)) {}
        }
    }
}

fn facts(run: &Run) -> Markup {
    html! {
        dl .facts .card {
            @for (name, value) in fact_list(run) { dt { (name) } dd { (value) } }
        }
    }
}

fn fact_list(run: &Run) -> Vec<(&'static str, Markup)> {
    let config = &run.config;
    let text = |t: String| html! { (t) };
    let mut facts = vec![(
        "Model",
        text(format!(
            "{}, precision {}, {} virtual shards, {} images a step",
            config.model.name,
            config.train.precision,
            config.train.virtual_shards,
            config.train.images_per_step
        )),
    )];
    if !config.data.path.is_empty() {
        facts.push(("Data", html! { code { (config.data.path) } }));
    }
    let validated = run
        .watched()
        .map_or(0, |target| run.history(Split::Val, target).count());
    let planned = run
        .status
        .as_ref()
        .map_or(config.train.epochs, |s| s.epochs);
    facts.push((
        "Epochs",
        text(format!(
            "{validated} validated of {planned} planned{}",
            match run.status.as_ref().is_some_and(Status::stopped_early) {
                true => "; stopped early",
                false => "",
            }
        )),
    ));
    if let Some((best, watched)) = run.best_epoch().zip(run.watched()) {
        let by = format!(
            "{best}, by {} on {}",
            metric_title(config.early_stopping.metric),
            noun(watched)
        );
        facts.push(("Best epoch", text(by)));
    }
    let samples = run
        .targets()
        .filter_map(|target| {
            let last = run.history(Split::Val, target).next_back()?;
            Some(format!(
                "{} {}",
                grouped(last.metrics.samples),
                noun(target)
            ))
        })
        .collect::<Vec<_>>();
    if !samples.is_empty() {
        facts.push(("Validation set", text(samples.join(", "))));
    }
    speed_facts(run, &mut facts);
    if let Some(checkpoint) = run.status.as_ref().and_then(|s| s.checkpoint.as_ref()) {
        facts.push((
            "Newest checkpoint",
            html! { "step " (grouped(checkpoint.step)) ", " code { (checkpoint.path) } },
        ));
        facts.push((
            "Weights (blake3)",
            html! { code .hash { (checkpoint.weights_blake3) } },
        ));
    }
    facts
}

fn speed_facts(run: &Run, facts: &mut Vec<(&'static str, Markup)>) {
    let Some(throughput) = &run.throughput else {
        return;
    };
    let steps = throughput.steps().count() as u64;
    facts.push(("Trained", html! { (grouped(throughput.samples())) " samples in " (grouped(steps)) " steps, " (duration(throughput.seconds())) " of step time" }));
    if let Some(rate) = throughput.samples_per_s() {
        let ranks = throughput.ranks().len();
        let plural = if ranks == 1 { "rank" } else { "ranks" };
        facts.push((
            "Throughput",
            html! { (format!("{rate:.1} samples/s on {ranks} {plural}")) },
        ));
    }
}

/// `2 h 05 min`, `3 min 20 s`, `12.3 s`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(duration(12.34), "12.3 s");
        assert_eq!(duration(200.4), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 05 min");
    }
}
