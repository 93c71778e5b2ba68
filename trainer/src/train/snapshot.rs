//! Turns a run's state into checkpoints, and a checkpoint into a state to continue from.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fovea_collectives::Collective;
use fovea_coordinator::ledger;
use fovea_coordinator::protocol::{CheckpointInfo, MemberState, StartPoint, TrainerEvent};
use fovea_coordinator::status::Status;
use fovea_dataset::Dataset;
use fovea_run::checkpoint::{self, NamedTensor, Snapshot, State, TensorData};
use fovea_run::run_dir::RunDir;
use fovea_task::Task;

use super::{Progress, Trainer};
use crate::error::{Error, Result};
use crate::initial::{self, InitMap};
use crate::params::{Params, StateBuffer};
use crate::replica::Replica;
use crate::weights;

/// The optimizer's moments, each with the prefix of its tensors' names.
const MOMENTS: [(StateBuffer, &str); 2] = [
    (StateBuffer::FirstMoment, "m."),
    (StateBuffer::SecondMoment, "v."),
];

/// The point from which a run continues: its newest complete checkpoint, or its beginning.
///
/// # Errors
/// [`Error::Mismatch`] when that checkpoint was trained on another dataset than `data` (if given): its cursor would
/// stand for other samples. [`Error::Usage`] when checkpoints that the run had are missing, or when its ledger does not
/// reach any of them.
pub fn resume_point(run: &RunDir, data: Option<&Dataset>) -> Result<StartPoint> {
    Ok(resume_from(run, data)?.0)
}

/// As [`resume_point`]; also returns whether early stopping ended the run there.
///
/// # Errors
/// As [`resume_point`].
pub fn resume_from(run: &RunDir, data: Option<&Dataset>) -> Result<(StartPoint, bool)> {
    let last = last_recorded(run)?;
    let Some(found) = checkpoint::newest_complete_up_to(&run.checkpoints(), last)? else {
        return Ok((nothing_to_go_on_from(run, last)?, false));
    };
    if let Some(data) = data {
        same_dataset(&found.path, &found.state, data)?;
    }
    let start = StartPoint {
        epoch: found.state.epoch,
        step: found.state.step,
        cursor: found.state.cursor,
    };
    let stopped = progress_in(&found.state).is_some_and(|progress| progress.stopped);
    Ok((start, stopped))
}

/// Newest committed step in the run's ledger; 0 when it has none.
fn last_recorded(run: &RunDir) -> Result<u64> {
    if !run.path().join(ledger::LEDGER_FILE).exists() {
        return Ok(0);
    }
    let contents = ledger::read(run.path())?;
    let steps = ledger::history(contents.records.iter().map(|record| &record.entry));
    Ok(steps.last().map_or(0, |committed| committed.step))
}

/// The beginning, for a run that never had a checkpoint; otherwise an error.
fn nothing_to_go_on_from(run: &RunDir, last: u64) -> Result<StartPoint> {
    let checkpoints = run.checkpoints();
    if let Some(beyond) = checkpoint::list(&checkpoints)?.last() {
        return Err(Error::Usage {
            what: format!(
                "{}: the ledger of this run ends at step {last}, but the newest checkpoint is of step {}: which samples went into it is not known any more",
                run.path().display(),
                beyond.step
            ),
            help: "put the run's `ledger` back as it was, or start a new run with another --out"
                .to_owned(),
        });
    }
    let saved = Status::load(run.path())
        .ok()
        .and_then(|status| status.checkpoint);
    match saved {
        None => Ok(StartPoint::default()),
        Some(saved) => Err(Error::Usage {
            what: format!(
                "{}: there is no checkpoint, though this run has saved one of step {} ({})",
                checkpoints.display(),
                saved.step,
                saved.path
            ),
            help: "put the checkpoints back, or start a new run with another --out".to_owned(),
        }),
    }
}

fn same_dataset(checkpoint: &Path, state: &State, data: &Dataset) -> Result<()> {
    let (ours, theirs) = (data.manifest().blake3(), &state.dataset_blake3);
    if ours == *theirs {
        return Ok(());
    }
    Err(Error::Mismatch {
        path: checkpoint.to_owned(),
        what: format!(
            "this run was trained on another dataset (manifest {theirs}; {} has {ours})",
            data.dir().display()
        ),
        help: "give the dataset that the run began with (--data), or start a new run with another --out".to_owned(),
    })
}

/// The best checkpoint in a run's directory of checkpoints; the newest when none is marked as best or the best is
/// missing.
pub fn best_of(directory: &Path) -> Result<PathBuf> {
    let newest = checkpoint::newest_complete(directory)?.ok_or_else(|| Error::Usage {
        what: format!("{}: no complete checkpoint", directory.display()),
        help: "train first, or give a checkpoint directory".to_owned(),
    })?;
    let best = progress_in(&newest.state)
        .and_then(|progress| progress.best)
        .map(|best| checkpoint::directory(directory, best.step));
    let why = match best {
        Some(best) if checkpoint::is_complete(&best) => return Ok(best),
        Some(best) => format!("the best checkpoint {} is gone", best.display()),
        None => "no epoch was found to be the best one".to_owned(),
    };
    tracing::warn!("{why}: taking the newest, {}", newest.path.display());
    Ok(newest.path)
}

fn progress_in(state: &State) -> Option<Progress> {
    serde_json::from_value(state.progress.clone()).ok()
}

/// Parameters and running statistics as tensors with PyTorch's names, shapes and element order.
fn weights_of(params: &Params, steps: u64) -> Result<Vec<NamedTensor>> {
    let mut tensors = named(params, &params.read(StateBuffer::Master)?, "");
    let running = params.read(StateBuffer::Running)?;
    for norm in &params.blueprint.norms {
        let (mean, var) = (norm.offset, norm.offset + norm.channels);
        for (suffix, start) in [("running_mean", mean), ("running_var", var)] {
            tensors.push(NamedTensor {
                name: format!("{}.{suffix}", norm.name),
                shape: vec![norm.channels],
                data: TensorData::F32(running[start..start + norm.channels].to_vec()),
            });
        }
        tensors.push(NamedTensor {
            name: format!("{}.num_batches_tracked", norm.name),
            shape: vec![],
            data: TensorData::I64(vec![steps as i64]),
        });
    }
    Ok(tensors)
}

/// Cuts a flat buffer into one tensor per parameter, named with `prefix`.
fn named(params: &Params, flat: &[f32], prefix: &str) -> Vec<NamedTensor> {
    let tensor = |(index, spec): (usize, &crate::models::ParamSpec)| NamedTensor {
        name: format!("{prefix}{}", spec.name),
        shape: spec.shape.iter().map(|&d| d as usize).collect(),
        data: TensorData::F32(params.to_pytorch(index, flat)),
    };
    params
        .blueprint
        .params
        .iter()
        .enumerate()
        .map(tensor)
        .collect()
}

/// Sets parameters and running statistics from tensors with PyTorch's names. The tensors must be exactly the model's,
/// and finite: see [`weights::fitted`].
pub fn restore_weights(params: &mut Params, tensors: &[NamedTensor], origin: &Path) -> Result<()> {
    let tensors = weights::fitted(&params.blueprint, tensors, origin)?;
    let mut flat = vec![0.0; params.layout.len];
    for (index, spec) in params.blueprint.params.iter().enumerate() {
        params.put_pytorch(index, tensors.values(&spec.name)?, &mut flat)?;
    }
    params.edit(StateBuffer::Master, |master| {
        master.copy_from_slice(&flat);
        Ok(())
    })?;
    let norms = params.blueprint.norms.clone();
    params.edit(StateBuffer::Running, |running| {
        for norm in &norms {
            for (suffix, start) in [
                ("running_mean", norm.offset),
                ("running_var", norm.offset + norm.channels),
            ] {
                let values = tensors.values(&format!("{}.{suffix}", norm.name))?;
                running[start..start + norm.channels].copy_from_slice(values);
            }
        }
        Ok(())
    })
}

/// Collects the optimizer's tensors of a checkpoint whose names begin with `prefix` into the flat layout.
fn restore_moments(
    params: &Params,
    tensors: &[NamedTensor],
    prefix: &str,
    origin: &Path,
) -> Result<Vec<f32>> {
    let mut flat = vec![0.0; params.layout.len];
    for (index, spec) in params.blueprint.params.iter().enumerate() {
        let name = format!("{prefix}{}", spec.name);
        let found = tensors.iter().find(|tensor| tensor.name == name);
        match found.map(|tensor| &tensor.data) {
            Some(TensorData::F32(values)) if values.len() == spec.numel() => {
                params.put_pytorch(index, values, &mut flat)?;
            }
            Some(_) => {
                let what = format!("tensor {name} of the optimizer is not {:?} f32", spec.shape);
                return Err(mismatch(origin, what));
            }
            None => return Err(mismatch(origin, format!("tensor {name} is missing"))),
        }
    }
    Ok(flat)
}

fn mismatch(origin: &Path, what: String) -> Error {
    Error::Mismatch {
        path: origin.to_owned(),
        what,
        help: "use the version of fovea that wrote this checkpoint, or the checkpoint before it"
            .to_owned(),
    }
}

impl Replica {
    /// The hash over all weight tensors, which `fovea status` shows.
    pub fn weights_blake3(&self, steps: u64) -> Result<String> {
        Ok(checkpoint::weights_blake3(&weights_of(
            &self.net.params,
            steps,
        )?))
    }
}

fn copy_state(
    replica: &mut Replica,
    collective: &mut dyn Collective,
    root: usize,
    deadline: Instant,
) -> Result<()> {
    for part in StateBuffer::ALL {
        replica.net.params.edit(part, |values| {
            Ok(collective.broadcast(bytemuck::cast_slice_mut(values), root, deadline)?)
        })?;
    }
    Ok(())
}

impl Trainer {
    /// Takes the initial state, or reads the checkpoint of `start`. Only rank 0 calls this, and only when no rank holds
    /// the state.
    pub(super) fn begin(&mut self, start: StartPoint) -> Result<()> {
        if start.step > 0 {
            self.restore(start)?;
        } else {
            if !self.state.pristine {
                self.state.replica.start_again(self.state.precision)?;
                self.state.pristine = true;
            }
            if !self.config.model.init.is_empty() {
                let tensors = initial::pinned(&self.config)?;
                self.state.pristine = false;
                let origin = Path::new(&self.config.model.init);
                let map = InitMap::parse(&self.config.model.init_map)?;
                let params = &mut self.state.replica.net.params;
                let report = initial::restore_initial(params, &tensors, &map, origin)?;
                tracing::info!(
                    "beginning from the weights of {}: {}",
                    origin.display(),
                    report.join("; ")
                );
            }
            self.state.progress = Progress::new(&self.config);
        }
        self.state.holds = true;
        Ok(())
    }

    fn restore(&mut self, start: StartPoint) -> Result<()> {
        let path = checkpoint::directory(&self.records.run.checkpoints(), start.step);
        let loaded = checkpoint::load(&path)?;
        same_dataset(&path, &loaded.state, self.data.source.data())?;
        (self.state.holds, self.state.pristine) = (false, false);
        let params = &mut self.state.replica.net.params;
        restore_weights(params, &loaded.weights, &path)?;
        weights::refuse_not_finite(&loaded.optimizer, &path)?;
        for (part, prefix) in MOMENTS {
            let moments = restore_moments(params, &loaded.optimizer, prefix, &path)?;
            params.edit(part, |values| {
                values.copy_from_slice(&moments);
                Ok(())
            })?;
        }
        // The coordinator does not read checkpoints, and a run may end before it writes another.
        self.link
            .client
            .event(TrainerEvent::CheckpointSaved(CheckpointInfo {
                step: start.step,
                path: path.display().to_string(),
                weights_blake3: loaded.state.weights_blake3.clone(),
                took_ms: 0,
            }))?;
        self.state.progress = serde_json::from_value(loaded.state.progress)
            .map_err(|e| mismatch(&path, format!("state.json: progress: {e}")))?;
        Ok(())
    }

    /// Copies rank `root`'s parameters, moments, statistics and progress to all ranks.
    pub(super) fn share_state(&mut self, root: usize) -> Result<()> {
        let mine = if self.seat.assignment.rank == root {
            serde_json::to_vec(&self.state.progress)
                .map_err(|e| Error::Internal(format!("progress: {e}")))?
        } else {
            // If this generation ends meanwhile, half of the state may be overwritten.
            (self.state.holds, self.state.pristine) = (false, false);
            Vec::new()
        };
        let shared = self.all_gather(&mine)?;
        let theirs = shared.get(root).map_or(&[][..], Vec::as_slice);
        let progress: Progress = serde_json::from_slice(theirs)
            .map_err(|e| Error::Internal(format!("progress: {e}")))?;
        let deadline = self.deadline();
        self.link.client.state(MemberState::Waiting);
        let collective = self.seat.collective.as_mut();
        let copied = copy_state(&mut self.state.replica, collective, root, deadline);
        self.link.client.state(MemberState::Starting);
        self.link.or_its_reason(copied)?;
        self.state.progress = progress;
        Ok(())
    }

    /// The blake3 hash (64 hex digits) over all that determines the next step: parameters, moments, statistics.
    pub(super) fn state_blake3(&self) -> Result<String> {
        let params = &self.state.replica.net.params;
        let mut hasher = blake3::Hasher::new();
        for part in StateBuffer::ALL {
            hasher.update(bytemuck::cast_slice(&params.read(part)?));
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Starts the thread that writes checkpoints, in a run that continues after `step`.
    pub(super) fn start_writer(&mut self, step: u64) -> Result<()> {
        let checkpoints = self.records.run.checkpoints();
        for path in checkpoint::set_aside_newer(&checkpoints, step)? {
            tracing::warn!(
                "set aside, as the run goes on before it: {}",
                path.display()
            );
        }
        let policy = checkpoint::Retention {
            keep_last: self.config.checkpoint.keep_last as usize,
            keep_best: self.config.checkpoint.keep_best,
        };
        self.records.writer = Some(checkpoint::Writer::spawn(&checkpoints, policy)?);
        Ok(())
    }

    /// On rank 0, saves between epochs by the clock or the step count.
    pub(super) fn save_if_due(&mut self) -> Result<()> {
        let policy = &self.config.checkpoint;
        let by_steps = policy.every_steps > 0
            && self
                .state
                .progress
                .step
                .is_multiple_of(u64::from(policy.every_steps));
        let seconds = Duration::from_secs(u64::from(policy.every_seconds));
        let by_time = !seconds.is_zero() && self.records.last_save.elapsed() >= seconds;
        if by_steps || by_time {
            // The steps' rows must be on disk before their checkpoint: a run that is killed and continues from it then
            // has all of them.
            self.write_step_rows();
            self.save()
        } else {
            Ok(())
        }
    }

    /// Saves, unless this step's checkpoint is complete.
    pub(super) fn save_unless_saved(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.records.writer {
            writer.wait();
            let path =
                checkpoint::directory(&self.records.run.checkpoints(), self.state.progress.step);
            // A checkpoint of the same step may be older than the step's evaluation.
            let saved = checkpoint::verify(&path).is_ok_and(|state| {
                serde_json::to_value(&self.state.progress).is_ok_and(|now| now == state.progress)
            });
            if saved {
                return Ok(());
            }
        }
        self.save()
    }

    /// On rank 0, hands a snapshot of the committed state to the writer thread.
    pub(super) fn save(&mut self) -> Result<()> {
        let Some(writer) = &mut self.records.writer else {
            return Ok(());
        };
        let Progress {
            step,
            epoch,
            cursor,
            best,
            ..
        } = self.state.progress;
        self.link
            .client
            .heartbeat_state(MemberState::Saving, step, 0.0);
        let params = &self.state.replica.net.params;
        let mut optimizer = Vec::new();
        for (part, prefix) in MOMENTS {
            optimizer.extend(named(params, &params.read(part)?, prefix));
        }
        let snapshot = Snapshot {
            step,
            epoch,
            cursor,
            seed: self.config.train.seed,
            config: self.config.to_toml_documented(),
            config_blake3: self.config.blake3(),
            dataset_blake3: self.data.source.data().manifest().blake3(),
            image_size: self.data.source.data().manifest().recipe.size,
            patch: self.data.source.data().manifest().recipe.patch,
            framing: self.data.source.data().manifest().recipe.framing,
            task: Some(self.data.source.data().task().clone())
                .filter(|task| *task != Task::lesions()),
            progress: serde_json::to_value(&self.state.progress)
                .map_err(|e| Error::Internal(format!("progress: {e}")))?,
            best_step: best.map(|b| b.step),
            weights: weights_of(params, step)?,
            optimizer,
        };
        let reporter = Arc::clone(&self.link.reporter);
        let unsaved = Arc::clone(&self.records.unsaved);
        writer.save(snapshot, move |saved| {
            let (event, failure) = match saved {
                Ok(saved) => {
                    let info = CheckpointInfo {
                        step: saved.step,
                        path: saved.path.display().to_string(),
                        weights_blake3: saved.weights_blake3.clone(),
                        took_ms: saved.took.as_millis() as u64,
                    };
                    (TrainerEvent::CheckpointSaved(info), None)
                }
                // The run continues; the checkpoint before stays unchanged.
                Err(e) => {
                    tracing::warn!("checkpoint of step {step}: {e}");
                    let reason = e.to_string().lines().next().unwrap_or_default().to_owned();
                    (TrainerEvent::CheckpointFailed { step, reason }, Some(e))
                }
            };
            *unsaved.lock().unwrap_or_else(PoisonError::into_inner) = failure;
            let reporter = reporter
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Err(e) = reporter.event(event) {
                tracing::warn!("{e}");
            }
        });
        self.records.last_save = Instant::now();
        self.link
            .client
            .heartbeat_state(MemberState::Training, step, 0.0);
        Ok(())
    }

    /// Waits until the writer is idle. Returns an error when the newest state is not on disk: this rank is about to
    /// leave, and the run must not look as if it were saved.
    pub(super) fn wait_for_checkpoints(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.records.writer {
            writer.wait();
        }
        let unsaved = self
            .records
            .unsaved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        unsaved.map_or(Ok(()), |source| {
            Err(Error::Unsaved {
                step: self.state.progress.step,
                source,
            })
        })
    }
}

#[cfg(test)]
mod tests;
