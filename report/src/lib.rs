//! The report of a run: one HTML file with everything in it, and each figure as a PNG.
//!
//! Reads a run directory and writes only `RUN/report.html` and `RUN/report/*.png`. It measures
//! nothing and has no clock: the same run gives the same bytes. The report says what a run does not
//! have yet; damaged data is an error.

#![cfg_attr(
    test,
    expect(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

mod chart;
mod error;
mod files;
pub mod heat;
pub mod measured;
mod page;
mod palette;
mod pictures;
mod plots;
mod predictions;
mod run;
mod shape;
mod table;
mod text;
mod throughput;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;

use chart::Chart;
use error::io_error;
use pictures::{Panels, Scene};
use run::Run;
use throughput::Throughput;

/// Files that [`write_report`] wrote, and what it could not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportPaths {
    /// The page, `RUN/report.html`.
    pub html: PathBuf,
    /// `RUN/report/*.png`, in the order of the page.
    pub pngs: Vec<PathBuf>,
    /// What the report could not show, and why; also at the top of the page.
    pub notes: Vec<String>,
}

/// The figures of a report.
struct Figures {
    /// Over epochs, per target in the order of the page.
    epochs: Vec<Vec<Chart>>,
    ranking: Vec<Chart>,
    training: Vec<Chart>,
    speed: Vec<Chart>,
}

impl Figures {
    fn of(run: &Run) -> Self {
        let scored = run
            .targets()
            .filter_map(|target| Some((run.scores_of(target)?, target)));
        let ranking = scored.flat_map(|(scores, target)| {
            [
                plots::roc(scores, target),
                plots::precision_recall(scores, target),
            ]
        });
        let of_steps = |plot: fn(&Throughput) -> Vec<Chart>| {
            run.throughput.as_ref().map_or_else(Vec::new, plot)
        };
        Self {
            epochs: run
                .targets()
                .map(|target| plots::over_epochs(run, target))
                .collect(),
            ranking: ranking.flatten().collect(),
            training: of_steps(plots::training),
            speed: of_steps(plots::speed),
        }
    }

    fn charts(&self) -> impl Iterator<Item = &Chart> {
        let groups = [&self.ranking, &self.training, &self.speed];
        self.epochs.iter().chain(groups).flatten()
    }
}

/// Writes the report of the run in `run_dir`, replacing an earlier one.
///
/// # Errors
/// `run_dir` is not a run directory, one of its files is damaged, or the report cannot be written.
pub fn write_report(run_dir: &Path) -> Result<ReportPaths> {
    let mut run = Run::load(run_dir)?;
    let scenes = match pictures::scenes(&run) {
        Ok(scenes) => scenes,
        Err(note) => {
            run.notes.push(note);
            Vec::new()
        }
    };
    let mistakes = match pictures::mistakes(&run) {
        Ok(mistakes) => mistakes,
        Err(note) => {
            run.notes.push(note);
            Vec::new()
        }
    };
    let panels: Vec<Panels> = scenes.par_iter().map(Scene::panels).collect();
    let figures = Figures::of(&run);

    let picture_dir = run_dir.join("report");
    fs::create_dir_all(&picture_dir).map_err(io_error(&picture_dir, "create"))?;
    let pngs = write_pictures(&picture_dir, &run, &figures, &scenes, &panels)?;
    files::remove_stale(&picture_dir, &pngs)?;
    let html = run_dir.join("report.html");
    let page = page::page(&run, &figures, &scenes, &panels, &mistakes)?;
    files::replace(&html, page.into_string().as_bytes())?;
    Ok(ReportPaths {
        html,
        pngs,
        notes: run.notes,
    })
}

fn write_pictures(
    dir: &Path,
    run: &Run,
    figures: &Figures,
    scenes: &[Scene],
    panels: &[Panels],
) -> Result<Vec<PathBuf>> {
    type Job<'a> = (String, Box<dyn Fn() -> Result<RgbImage> + Send + Sync + 'a>);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for chart in figures.charts() {
        jobs.push((
            chart.slug.clone(),
            Box::new(|| chart.drawing(true).picture()),
        ));
    }
    for target in run.targets() {
        if let Some(scores) = run.scores_of(target) {
            let draw = move || plots::confusion(&scores.metrics, target, true).0.picture();
            jobs.push((format!("confusion-{}", plots::slug(target)), Box::new(draw)));
        }
    }
    for (index, (scene, panels)) in scenes.iter().zip(panels).enumerate() {
        jobs.push((
            format!("sample-{}", index + 1),
            Box::new(move || pictures::sheet(scene, panels)),
        ));
    }
    jobs.par_iter()
        .map(|(slug, draw)| {
            let path = dir.join(format!("{slug}.png"));
            files::replace(&path, &files::png(&draw()?)?)?;
            Ok(path)
        })
        .collect()
}
