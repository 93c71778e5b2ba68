//! Between the state of a run and its checkpoints.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fovea_coordinator::protocol::{CheckpointInfo, MemberState, StartPoint, TrainerEvent};
use fovea_dataset::Dataset;

use super::{Progress, Trainer};
use crate::checkpoint::{self, NamedTensor, Snapshot, State, TensorData};
use crate::error::{Error, Result};
use crate::metrics::log::MetricsLog;
use crate::params::Params;
use crate::replica::Replica;
use crate::run_dir::{self, RunDir};

/// Where a run goes on: its newest complete checkpoint, or the beginning.
///
/// # Errors
/// [`Error::Mismatch`] when that checkpoint was trained on another dataset than `data` (where given):
/// its cursor would stand for other samples.
pub fn resume_point(run: &RunDir, data: Option<&Dataset>) -> Result<StartPoint> {
    let Some(found) = checkpoint::newest_complete(&run.checkpoints())? else {
        return Ok(StartPoint::default());
    };
    if let Some(data) = data {
        same_dataset(&found.path, &found.state, data)?;
    }
    Ok(StartPoint {
        epoch: found.state.epoch,
        step: found.state.step,
        cursor: found.state.cursor,
    })
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

/// The best checkpoint in a run's directory of checkpoints, or the newest when none is marked or it is gone.
pub fn best_of(directory: &Path) -> Result<PathBuf> {
    let newest = checkpoint::newest_complete(directory)?.ok_or_else(|| Error::Usage {
        what: format!("{}: no complete checkpoint", directory.display()),
        help: "train first, or give a checkpoint directory".to_owned(),
    })?;
    let progress: Option<Progress> = serde_json::from_value(newest.state.progress.clone()).ok();
    let best = progress
        .and_then(|p| p.best)
        .map(|best| checkpoint::directory(directory, best.step));
    Ok(best
        .filter(|path| checkpoint::is_complete(path))
        .unwrap_or(newest.path))
}

/// Parameters and running statistics with PyTorch's names, shapes and element order.
fn weights(params: &Params, steps: u64) -> Result<Vec<NamedTensor>> {
    let mut tensors = named(params, params.master()?, "");
    let running = crate::host::slice::<f32>(params.running())?;
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

/// One tensor per parameter out of a flat buffer.
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

/// Sets parameters and running statistics from tensors with PyTorch's names; every tensor of the
/// model must be there with its shape. Unknown tensors are an error too: they mean another model.
pub fn restore_weights(params: &mut Params, tensors: &[NamedTensor], origin: &Path) -> Result<()> {
    let mut flat = vec![0.0; params.layout.len];
    restore_flat(params, tensors, "", &mut flat, origin)?;
    params.master_mut()?.copy_from_slice(&flat);
    let norms = params.blueprint.norms.clone();
    let running = params.running_mut()?;
    for norm in &norms {
        for (suffix, start) in [
            ("running_mean", norm.offset),
            ("running_var", norm.offset + norm.channels),
        ] {
            let values = find(
                tensors,
                &format!("{}.{suffix}", norm.name),
                &[norm.channels],
                origin,
            )?;
            running[start..start + norm.channels].copy_from_slice(values);
        }
    }
    let known = |name: &str| {
        params.blueprint.params.iter().any(|p| p.name == name)
            || norms.iter().any(|n| {
                name.strip_prefix(n.name.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
            })
    };
    if let Some(stranger) = tensors.iter().find(|t| !known(&t.name)) {
        return Err(mismatch(
            origin,
            format!("tensor {} does not belong to the model", stranger.name),
        ));
    }
    params.refresh_working()
}

fn restore_flat(
    params: &Params,
    tensors: &[NamedTensor],
    prefix: &str,
    flat: &mut [f32],
    origin: &Path,
) -> Result<()> {
    for (index, spec) in params.blueprint.params.iter().enumerate() {
        let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
        let values = find(tensors, &format!("{prefix}{}", spec.name), &shape, origin)?;
        params.put_pytorch(index, values, flat)?;
    }
    Ok(())
}

fn find<'a>(
    tensors: &'a [NamedTensor],
    name: &str,
    shape: &[usize],
    origin: &Path,
) -> Result<&'a [f32]> {
    let tensor = tensors.iter().find(|t| t.name == name);
    let tensor = tensor.ok_or_else(|| mismatch(origin, format!("tensor {name} is missing")))?;
    match &tensor.data {
        TensorData::F32(values) if tensor.shape == shape => Ok(values),
        TensorData::F32(_) => Err(mismatch(
            origin,
            format!(
                "tensor {name} has shape {:?}, expected {shape:?}",
                tensor.shape
            ),
        )),
        TensorData::I64(_) => Err(mismatch(
            origin,
            format!("tensor {name} holds integers, expected f32"),
        )),
    }
}

fn mismatch(origin: &Path, what: String) -> Error {
    let help = "give weights of the configured model, in f32, with the parameter names that docs/models.md lists";
    Error::Mismatch {
        path: origin.to_owned(),
        what,
        help: help.to_owned(),
    }
}

impl Replica {
    /// The hash over all weight tensors that `fovea status` shows.
    pub fn weights_blake3(&self, steps: u64) -> Result<String> {
        Ok(checkpoint::weights_blake3(&weights(&self.params, steps)?))
    }
}

impl Trainer {
    /// Takes the starting state: fresh, or from the checkpoint that the coordinator starts at. Rank 0
    /// reads it; the others get it from rank 0.
    pub(super) fn enter(&mut self) -> Result<()> {
        let start = self.assignment.start;
        if start.step > 0 && self.is_first() {
            self.restore(start)?;
        }
        self.share_state()?;
        if self.is_first() {
            run_dir::truncate_steps(&self.run.throughput(), start.step)?;
            MetricsLog::open(&self.run.metrics())?.truncate_after(start.epoch + 1)?;
        }
        self.client
            .heartbeat_state(MemberState::Training, start.step, 0.0);
        self.barrier()
    }

    fn restore(&mut self, start: StartPoint) -> Result<()> {
        let path = checkpoint::directory(&self.run.checkpoints(), start.step);
        let loaded = checkpoint::load(&path)?;
        same_dataset(&path, &loaded.state, self.source.data())?;
        let params = &mut self.replica.params;
        restore_weights(params, &loaded.weights, &path)?;
        let (mut m, mut v) = (vec![0.0; params.layout.len], vec![0.0; params.layout.len]);
        restore_flat(params, &loaded.optimizer, "m.", &mut m, &path)?;
        restore_flat(params, &loaded.optimizer, "v.", &mut v, &path)?;
        (params.m, params.v) = (m, v);
        // The coordinator does not look into checkpoints, and a run may end before it writes another.
        self.client
            .event(TrainerEvent::CheckpointSaved(CheckpointInfo {
                step: start.step,
                path: path.display().to_string(),
                weights_blake3: loaded.state.weights_blake3.clone(),
            }))?;
        self.progress = serde_json::from_value(loaded.state.progress)
            .map_err(|e| mismatch(&path, format!("state.json: progress: {e}")))?;
        Ok(())
    }

    /// Rank 0's parameters, moments, statistics and progress, to everybody.
    fn share_state(&mut self) -> Result<()> {
        let progress = if self.is_first() {
            serde_json::to_vec(&self.progress)
                .map_err(|e| Error::Internal(format!("progress: {e}")))?
        } else {
            Vec::new()
        };
        let shared = self.all_gather(&progress)?;
        let first = shared.first().map_or(&[][..], Vec::as_slice);
        self.progress =
            serde_json::from_slice(first).map_err(|e| Error::Internal(format!("progress: {e}")))?;
        let deadline = self.deadline();
        let Self {
            replica,
            collective,
            ..
        } = self;
        let params = &mut replica.params;
        collective.broadcast(bytemuck::cast_slice_mut(params.master_mut()?), 0, deadline)?;
        collective.broadcast(bytemuck::cast_slice_mut(&mut params.m), 0, deadline)?;
        collective.broadcast(bytemuck::cast_slice_mut(&mut params.v), 0, deadline)?;
        collective.broadcast(bytemuck::cast_slice_mut(params.running_mut()?), 0, deadline)?;
        params.refresh_working()
    }

    /// Rank 0 saves between epochs by the clock or the step count.
    pub(super) fn save_if_due(&mut self) -> Result<()> {
        let policy = &self.config.checkpoint;
        let by_steps = policy.every_steps > 0
            && self
                .progress
                .step
                .is_multiple_of(u64::from(policy.every_steps));
        let seconds = Duration::from_secs(u64::from(policy.every_seconds));
        let by_time = !seconds.is_zero() && self.last_save.elapsed() >= seconds;
        if by_steps {
            // The step's rows go to disk before its checkpoint: a run that is killed and goes on from
            // there has them all. (By time only rank 0 knows that it is due; gathering takes all ranks.)
            self.write_step_rows()?;
        }
        if by_steps || by_time {
            self.save()
        } else {
            Ok(())
        }
    }

    /// Rank 0 hands a snapshot of the committed state to the writer thread.
    pub(super) fn save(&mut self) -> Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let Progress {
            step,
            epoch,
            cursor,
            best,
            ..
        } = self.progress;
        self.client.heartbeat_state(MemberState::Saving, step, 0.0);
        let params = &self.replica.params;
        let mut optimizer = named(params, &params.m, "m.");
        optimizer.extend(named(params, &params.v, "v."));
        let snapshot = Snapshot {
            step,
            epoch,
            cursor,
            seed: self.config.train.seed,
            config: self.config.to_toml_documented(),
            config_blake3: self.config.blake3(),
            dataset_blake3: self.source.data().manifest().blake3(),
            image_size: self.source.data().manifest().recipe.size,
            patch: self.source.data().manifest().recipe.patch,
            progress: serde_json::to_value(&self.progress)
                .map_err(|e| Error::Internal(format!("progress: {e}")))?,
            best_step: best.map(|b| b.step),
            weights: weights(params, step)?,
            optimizer,
        };
        let reporter = self.client.reporter();
        let unsaved = Arc::clone(&self.unsaved);
        writer.save(snapshot, move |saved| match saved {
            Ok(saved) => {
                *unsaved.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let path = saved.path.display().to_string();
                let info = CheckpointInfo {
                    step: saved.step,
                    path,
                    weights_blake3: saved.weights_blake3.clone(),
                };
                if let Err(e) = reporter.event(TrainerEvent::CheckpointSaved(info)) {
                    tracing::warn!("{e}");
                }
            }
            // The run goes on; the checkpoint before stays what it was.
            Err(e) => {
                tracing::warn!("checkpoint of step {step}: {e}");
                *unsaved.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            }
        });
        self.last_save = Instant::now();
        self.client
            .heartbeat_state(MemberState::Training, step, 0.0);
        Ok(())
    }

    /// Until the writer is idle. An error when the newest state is not on disk: this is called before
    /// leaving, and the run must not look as if it were.
    pub(super) fn wait_for_checkpoints(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.wait();
        }
        let unsaved = self
            .unsaved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        unsaved.map_or(Ok(()), |source| {
            Err(Error::Unsaved {
                step: self.progress.step,
                source,
            })
        })
    }
}
