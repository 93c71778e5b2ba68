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
use fovea_run::config::Level;
use pictures::{Panels, Scene};
use run::Run;

/// What [`write_report`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportPaths {
    /// `RUN/report.html`.
    pub html: PathBuf,
    /// `RUN/report/*.png`, in the order of the page.
    pub pngs: Vec<PathBuf>,
    /// What the report could not show, and why; also at the top of the page.
    pub notes: Vec<String>,
}

/// The figures of a report.
struct Figures {
    /// Over epochs.
    patches: Vec<Chart>,
    /// Over epochs.
    images: Vec<Chart>,
    ranking: Vec<Chart>,
    training: Vec<Chart>,
    speed: Vec<Chart>,
}

impl Figures {
    fn of(run: &Run) -> Self {
        let levels = || Level::ALL.iter().copied();
        let ranking = levels()
            .filter_map(|level| Some((run.level(level)?, level)))
            .flat_map(|(scores, level)| {
                [
                    plots::roc(scores, level),
                    plots::precision_recall(scores, level),
                ]
            });
        Self {
            patches: plots::over_epochs(run, Level::Patch),
            images: plots::over_epochs(run, Level::Image),
            ranking: ranking.flatten().collect(),
            training: run
                .throughput
                .as_ref()
                .map_or_else(Vec::new, plots::training),
            speed: run.throughput.as_ref().map_or_else(Vec::new, plots::speed),
        }
    }

    fn charts(&self) -> impl Iterator<Item = &Chart> {
        let groups = [
            &self.patches,
            &self.images,
            &self.ranking,
            &self.training,
            &self.speed,
        ];
        groups.into_iter().flatten()
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
    let panels: Vec<Panels> = scenes.par_iter().map(Scene::panels).collect();
    let figures = Figures::of(&run);

    let picture_dir = run_dir.join("report");
    fs::create_dir_all(&picture_dir).map_err(io_error(&picture_dir, "create"))?;
    let pngs = write_pictures(&picture_dir, &run, &figures, &scenes, &panels)?;
    files::remove_stale(&picture_dir, &pngs)?;
    let html = run_dir.join("report.html");
    let page = page::page(&run, &figures, &scenes, &panels)?;
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
    for &level in Level::ALL {
        if let Some(scores) = run.level(level) {
            let draw = move || plots::confusion(&scores.metrics, level, true).0.picture();
            jobs.push((format!("confusion-{level}"), Box::new(draw)));
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
