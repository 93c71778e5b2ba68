//! The end of an epoch: evaluation, metrics, the best checkpoint.

use std::collections::BTreeMap;
use std::time::SystemTime;

use fovea_coordinator::protocol::{MemberState, TrainerEvent};
use fovea_dataset::Split;
use fovea_run::metrics::log::MetricsLog;
use fovea_run::metrics::{
    LabelCounts, Metrics, MetricsRow, never_defined, table_order, undefined, watched,
};
use fovea_run::predictions::{self, Columns, Prediction};
use fovea_task::{Level, Target};

use super::Trainer;
use crate::error::{Error, Result};
use crate::evaluate::{self, Answers};
use crate::samples::SampleSource;
use crate::tta::TestViews;

impl Trainer {
    /// Evaluates when an evaluation is due, keeps the best checkpoint, and opens the next epoch.
    pub(super) fn end_epoch(&mut self) -> Result<()> {
        self.write_step_rows();
        let epoch = self.state.progress.epoch + 1;
        let due = epoch.is_multiple_of(self.config.eval.every_epochs.max(1))
            || epoch == self.config.train.epochs;
        // Kept apart from the present state until all ranks are done: if one is lost meanwhile, the others repeat all
        // of this.
        let mut next = self.state.progress.clone();
        if self.is_first() {
            self.log_training(epoch)?;
        }
        if due {
            let answers = self.score_validation()?;
            let task = self.data.source.data().task();
            let thresholds = evaluate::one_threshold(task, self.config.eval.threshold);
            let objective = self.state.replica.objective();
            let summary = evaluate::summarise(task, &answers, objective, &thresholds)?;
            let (value, undefined) = self.watched_value(&summary)?;
            let best = next.evaluated(&self.config, value);
            if self.is_first() {
                let undefined = undefined.map(|why| self.tell_undefined(epoch, &why));
                self.log_epoch(epoch, &summary, best.then_some(&answers[..]), undefined)?;
            }
        }
        let begins_a_stage = next.next_epoch(&self.config);
        self.barrier()?; // behind the barrier, the epoch's records are written
        self.records.rows.written(next.step);
        self.state.progress = next;
        if begins_a_stage {
            self.state.replica.reset_moments()?;
            self.enter_stage()?;
        }
        self.save()
    }

    /// The watched metric: NaN if it is undefined, and then the reason.
    fn watched_value(&self, summary: &[Option<Metrics>]) -> Result<(f64, Option<String>)> {
        let watch = &self.config.early_stopping;
        let task = self.data.source.data().task();
        let (index, target) = watched(task, watch.level).ok_or_else(|| {
            Error::Internal(format!("no target at the watched level {}", watch.level))
        })?;
        Ok(match &summary[index] {
            Some(metrics) => (
                metrics.get(watch.metric).unwrap_or(f64::NAN),
                undefined(watch.metric, target, metrics),
            ),
            None => (
                f64::NAN,
                never_defined(watch.metric, target, &LabelCounts::default()),
            ),
        })
    }

    /// Scores this rank's images of the validation split; returns the answers of all ranks.
    fn score_validation(&mut self) -> Result<Vec<Answers>> {
        let (rank, world) = (self.seat.assignment.rank, self.seat.assignment.world);
        self.link.client.state(MemberState::Evaluating);
        let images = evaluate::images_of(&self.data.source, Split::Val, rank, world);
        let (link, state) = (&mut self.link, &self.state);
        let views = TestViews::One;
        let mine = evaluate::score(&state.replica, &self.data.source, &images, views, || {
            link.client.beat();
            link.drain_if_wanted(rank)?;
            link.check_generation()
        })?;
        let gathered = self.all_gather(&evaluate::encode(&mine))?;
        let task = self.data.source.data().task();
        let mut all = Answers::none(task);
        for part in gathered {
            evaluate::decode(task, &part, &mut all)?;
        }
        // All ranks have the same rows, so all of them end here, and none counts as lost.
        let targets = task.targets().iter().zip(&all);
        let bad = targets.map(|(target, all)| all.not_finite(target.classes.len()).count());
        match bad.sum::<usize>() {
            0 => Ok(all),
            n => Err(Error::Usage {
                what: format!(
                    "epoch {}: the model's answers to {n} of the {} samples of the validation split are not finite (NaN or infinite)",
                    self.state.progress.epoch + 1,
                    all.iter().map(|of_target| of_target.ids.len()).sum::<usize>()
                ),
                help: "the weights are of no use any more: begin a new run (another --out) from an earlier checkpoint with --init and a lower optimizer.lr, or check the weights that this one began from".to_owned(),
            }),
        }
    }

    /// Rank 0: warns that the watched metric decides nothing in this epoch, and returns the text for the coordinator.
    fn tell_undefined(&self, epoch: u32, why: &str) -> String {
        let watch = &self.config.early_stopping;
        let what = format!(
            "the watched metric {} at {} level is undefined: {why}",
            watch.metric, watch.level
        );
        tracing::warn!("epoch {epoch}: {what}; so this epoch cannot be the best one");
        what
    }

    /// Rank 0: writes the scores of the epoch's training steps to metrics.csv.
    fn log_training(&self, epoch: u32) -> Result<()> {
        let Some(scores) = &self.state.progress.training else {
            return Ok(());
        };
        if scores.from > 0 {
            tracing::warn!(
                "epoch {epoch}: eval.train_metrics was turned on after {} of its samples, so metrics.csv gets no training scores of it",
                scores.from
            );
            return Ok(());
        }
        let summary = scores.metrics(self.data.source.data().task())?;
        self.append_rows(epoch, Split::Train, &self.scored(&summary));
        Ok(())
    }

    /// The targets with metrics, in the order of tables.
    fn scored<'a>(&'a self, summary: &'a [Option<Metrics>]) -> Vec<(&'a Target, &'a Metrics)> {
        let task = self.data.source.data().task();
        let scored = |(index, target)| Some((target, Option::as_ref(summary.get(index)?)?));
        table_order(task).filter_map(scored).collect()
    }

    /// Appends a row per target to metrics.csv. The checkpoint carries the state; a missing record is no reason to stop.
    fn append_rows(&self, epoch: u32, split: Split, scored: &[(&Target, &Metrics)]) {
        let timestamp = rfc3339(SystemTime::now());
        let task = self.data.source.data().task();
        let row = |(target, metrics): &(&Target, &Metrics)| MetricsRow {
            timestamp: timestamp.clone(),
            epoch,
            split,
            target: target.name.clone(),
            metrics: (*metrics).clone(),
        };
        let rows: Vec<MetricsRow> = scored.iter().map(row).collect();
        if let Err(e) = self.records.run.keep_task(task) {
            tracing::warn!("{e}");
        }
        let path = self.records.run.metrics();
        if let Err(e) = MetricsLog::open(&path, task).and_then(|mut log| log.append(&rows)) {
            tracing::warn!("{e}");
        }
    }

    /// Rank 0: writes metrics.csv, the summary for the coordinator, and the best epoch's predictions.
    fn log_epoch(
        &mut self,
        epoch: u32,
        summary: &[Option<Metrics>],
        best: Option<&[Answers]>,
        undefined: Option<String>,
    ) -> Result<()> {
        let task = self.data.source.data().task();
        let scored = self.scored(summary);
        self.append_rows(epoch, Split::Val, &scored);
        if let Some(answers) = best {
            let (path, rows) = (
                self.records.run.predictions(),
                predictions(answers, &self.data.source),
            );
            if let Err(e) = predictions::write(&path, task, &rows, Columns::Label) {
                tracing::warn!("{e}");
            }
        }
        let mut figures = BTreeMap::new();
        for (Target { name, .. }, metrics) in scored {
            figures.insert(format!("{name}_f1_micro"), metrics.f1_micro);
            figures.extend(
                metrics
                    .mean_auroc
                    .map(|auroc| (format!("{name}_mean_auroc"), auroc)),
            );
            figures.insert(format!("{name}_loss"), metrics.loss);
        }
        self.link.client.event(TrainerEvent::EpochEnd {
            epoch,
            metrics: figures,
            undefined,
        })?;
        Ok(())
    }
}

/// Answers with image names and grid positions, sorted by image; those to targets at image level come first.
pub(crate) fn predictions(answers: &[Answers], source: &SampleSource) -> Vec<Prediction> {
    let manifest = source.data().manifest();
    let (grid, cells) = (u64::from(manifest.grid), u64::from(manifest.grid).pow(2));
    let targets = source.data().task().targets().iter().zip(answers);
    let mut rows = Vec::new();
    for (index, (target, answers)) in targets.enumerate() {
        for (id, label, logits) in answers.rows(target.classes.len()) {
            let (image, cell) = match target.level {
                Level::Image => (id, None),
                Level::Patch => (id / cells, Some(id % cells)),
            };
            let row = Prediction {
                image_id: manifest.images[image as usize].id.clone(),
                target: index,
                cell: cell.map(|cell| ((cell / grid) as u32, (cell % grid) as u32)),
                label,
                probabilities: evaluate::probabilities(target, logits),
                note: None,
            };
            rows.push(((image, cell, index), row));
        }
    }
    rows.sort_by_key(|(key, _)| *key);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// UTC time as `2026-01-31T12:00:00Z`.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
