//! What happens between epochs: evaluation, metrics, the best checkpoint.

use std::collections::BTreeMap;
use std::time::SystemTime;

use fovea_coordinator::protocol::{MemberState, TrainerEvent};
use fovea_dataset::Split;
use fovea_run::config::Level as WatchedLevel;
use fovea_run::metrics::log::MetricsLog;
use fovea_run::metrics::{Level, Metrics, MetricsRow, undefined};
use fovea_run::run_dir::{self, Columns, Prediction};

use super::Trainer;
use crate::error::{Error, Result};
use crate::evaluate::{self, Row, Summary};
use crate::samples::SampleSource;

impl Trainer {
    /// Evaluates when due, keeps the best, and opens the next epoch.
    pub(super) fn end_epoch(&mut self) -> Result<()> {
        self.write_step_rows();
        let epoch = self.state.progress.epoch + 1;
        let due = epoch.is_multiple_of(self.config.eval.every_epochs.max(1))
            || epoch == self.config.train.epochs;
        // Kept apart from the present state until all ranks are through: if one is lost on the way, the
        // others do all of this again.
        let mut next = self.state.progress.clone();
        if due {
            let rows = self.score_validation()?;
            let summary =
                evaluate::summarise(&rows, &self.state.replica, self.config.eval.threshold)?;
            let watch = &self.config.early_stopping;
            let metrics = match watch.level {
                WatchedLevel::Patch => &summary.patch,
                WatchedLevel::Image => &summary.image,
            };
            let undefined = undefined(watch.metric, watch.level, metrics);
            let value = metrics.get(watch.metric).unwrap_or(f64::NAN);
            let best = next.evaluated(&self.config, value);
            if self.is_first() {
                let undefined = undefined.map(|why| self.tell_undefined(epoch, &why));
                self.log_epoch(epoch, &summary, best.then_some(&rows), undefined)?;
            }
        }
        next.next_epoch();
        self.barrier()?; // behind it, the records of the epoch are written
        self.records.rows.written(next.step);
        self.state.progress = next;
        self.save()
    }

    /// Every rank scores its images of the validation split; all get all rows.
    fn score_validation(&mut self) -> Result<Vec<Row>> {
        let (rank, world) = (self.seat.assignment.rank, self.seat.assignment.world);
        self.link.client.state(MemberState::Evaluating);
        let images = evaluate::images_of(&self.data.source, Split::Val, rank, world);
        let (link, state) = (&mut self.link, &self.state);
        let mine = evaluate::score(&state.replica, &self.data.source, &images, || {
            link.client.beat();
            link.drain_if_wanted(rank)?;
            link.check_generation()
        })?;
        let all = self.all_gather(bytemuck::cast_slice(&mine))?;
        let mut rows = Vec::new();
        for part in all {
            // Row holds u64: the bytes of a Vec<u8> need not be aligned for it.
            let whole = part.chunks_exact(size_of::<Row>());
            if !whole.remainder().is_empty() {
                return Err(Error::Internal(format!(
                    "{} bytes of scores are no whole rows",
                    part.len()
                )));
            }
            rows.extend(whole.map(bytemuck::pod_read_unaligned::<Row>));
        }
        // The same rows at every rank: all of them end here, and none is taken for lost.
        match rows.iter().filter(|row| !row.is_finite()).count() {
            0 => Ok(rows),
            n => Err(Error::Usage {
                what: format!(
                    "epoch {}: the model's answers to {n} of the {} samples of the validation split are not finite (NaN or infinite)",
                    self.state.progress.epoch + 1,
                    rows.len()
                ),
                help: "the weights are of no use any more: begin a new run (another --out) from an earlier checkpoint with --init and a lower optimizer.lr, or check the weights that this one began from".to_owned(),
            }),
        }
    }

    /// Rank 0: says that nothing was decided by the watched metric, and returns what everybody is to hear.
    fn tell_undefined(&self, epoch: u32, why: &str) -> String {
        let watch = &self.config.early_stopping;
        let what = format!(
            "the watched metric {} at {} level is undefined: {why}",
            watch.metric, watch.level
        );
        tracing::warn!("epoch {epoch}: {what}; so this epoch cannot be the best one");
        what
    }

    /// Rank 0: metrics.csv, the coordinator's summary, and the best epoch's predictions.
    fn log_epoch(
        &mut self,
        epoch: u32,
        summary: &Summary,
        best: Option<&Vec<Row>>,
        undefined: Option<String>,
    ) -> Result<()> {
        let timestamp = rfc3339(SystemTime::now());
        let row = |level, metrics: &Metrics| MetricsRow {
            timestamp: timestamp.clone(),
            epoch,
            split: Split::Val,
            level,
            metrics: metrics.clone(),
        };
        let rows = [
            row(Level::Patch, &summary.patch),
            row(Level::Image, &summary.image),
        ];
        if let Err(e) =
            MetricsLog::open(&self.records.run.metrics()).and_then(|mut log| log.append(&rows))
        {
            tracing::warn!("{e}"); // the checkpoint carries the state; a log is no reason to stop
        }
        if let Some(rows) = best
            && let Err(e) = run_dir::write_predictions(
                &self.records.run.predictions(),
                &predictions(rows, &self.data.source),
                Columns::Label,
            )
        {
            tracing::warn!("{e}");
        }
        let mut figures = BTreeMap::new();
        for (level, metrics) in [("patch", &summary.patch), ("image", &summary.image)] {
            figures.insert(format!("{level}_f1_micro"), metrics.f1_micro);
            figures.extend(
                metrics
                    .mean_auroc
                    .map(|auroc| (format!("{level}_mean_auroc"), auroc)),
            );
            figures.insert(format!("{level}_loss"), metrics.loss);
        }
        self.link.client.event(TrainerEvent::EpochEnd {
            epoch,
            metrics: figures,
            undefined,
        })?;
        Ok(())
    }
}

/// Rows with names and grid positions, images first within each image.
pub(crate) fn predictions(rows: &[Row], source: &SampleSource) -> Vec<Prediction> {
    let manifest = source.data().manifest();
    let cells = u64::from(manifest.grid) * u64::from(manifest.grid);
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|r| match r.level() {
        Level::Image => (r.id, 0, 0),
        Level::Patch => (r.id / cells, 1, r.id),
    });
    rows.iter()
        .map(|r| {
            let scored = r.scored();
            let (image, cell) = match r.level() {
                Level::Image => (r.id, None),
                Level::Patch => {
                    let cell = (r.id % cells) as u32;
                    (
                        r.id / cells,
                        Some((cell / manifest.grid, cell % manifest.grid)),
                    )
                }
            };
            Prediction {
                image_id: manifest.images[image as usize].id.clone(),
                cell,
                label: Some(scored.label),
                probs: scored.probs,
                note: None,
            }
        })
        .collect()
}

/// UTC time as `2026-01-31T12:00:00Z`.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
