//! Compares training steps on a GPU with the same steps on the CPU, on a small synthetic dataset.

use std::sync::Arc;

use fovea_collectives::{AbortHandle, Solo};
use fovea_coordinator::order::{EpochOrder, Unit};
use fovea_dataset::{Dataset, PrepareOptions, Silent, prepare};
use fovea_run::config::Config;
use fovea_synth::{SynthOptions, synth};
use fovea_trainer::gpu::Gpu;
use fovea_trainer::lanes::ThreadLanes;
use fovea_trainer::models;
use fovea_trainer::objective::{Denominators, objective};
use fovea_trainer::precision::Precision;
use fovea_trainer::replica::Replica;
use fovea_trainer::samples::{SampleSource, ShardBatch, order_input};
use fovea_trainer::train::Peers;
use fovea_trainer::{Error, Result};

use super::{Check, Deviation};

/// Largest relative distance of the first step's sums, by their norm: convolutions sum in other orders.
const SUMS_LIMIT: f64 = 1e-2;
/// Largest relative difference of losses: the optimizer amplifies small differences from step to step.
const LOSS_LIMIT: f64 = 1e-2;
const VIRTUAL_SHARDS: usize = 2;
const IMAGES_PER_STEP: usize = 4;
const PATCHES_PER_IMAGE: usize = 4;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Compares the gradient sums of the first step, and the losses of all steps.
pub(super) fn check(gpu: Result<Gpu>, steps: u32, graphs: bool) -> Vec<Check> {
    let how = if graphs { "as CUDA graphs" } else { "f32" };
    let (sums, losses) = match gpu.and_then(|gpu| compare(gpu, steps, graphs)) {
        Ok((sums, losses)) => (Ok(sums), Ok(losses)),
        Err(error) => {
            let again = Error::Internal(error.to_string());
            (Err(error), Err(again))
        }
    };
    vec![
        Check::new(&format!("sums of a step, {how}"), 1, SUMS_LIMIT, sums),
        Check::new(
            &format!("losses of {steps} steps, {how}"),
            steps,
            LOSS_LIMIT,
            losses,
        ),
    ]
}

fn compare(mut gpu: Gpu, steps: u32, graphs: bool) -> Result<(Deviation, Deviation)> {
    let dir = tempfile::tempdir().map_err(|e| {
        fovea_run::Error::file(
            std::env::temp_dir(),
            &e,
            "set TMPDIR to a directory with 10 MB of space",
        )
    })?;
    let (raw, prepared) = (dir.path().join("raw"), dir.path().join("data"));
    let made = SynthOptions {
        images: 8,
        size: 256,
        seed: 1,
    };
    synth(&raw, &made, &Silent)?;
    let options = PrepareOptions {
        size: 256,
        patch: 64,
        ..PrepareOptions::default()
    };
    prepare(&raw, &prepared, &options, &Silent)?;
    let data = Arc::new(Dataset::open_unverified(&prepared)?);
    let mut config = Config::preset("hybrid")?;
    config.data.global_size = 64;
    config.data.patches_per_image = PATCHES_PER_IMAGE as u32;
    config.train.images_per_step = IMAGES_PER_STEP as u32;
    config.train.virtual_shards = VIRTUAL_SHARDS as u32;
    config.train.cuda_graphs = graphs;

    gpu.load_images(Arc::clone(&data))?;
    let there = run(&config, &data, steps, Some(gpu))?;
    if graphs && there.graphs == 0 {
        return Err(Error::Internal(
            "no step was recorded; the warning above says why".to_owned(),
        ));
    }
    let here = run(&config, &data, steps, None)?;
    Ok((
        distance(&there.sums, &here.sums),
        Deviation::between(&there.losses, &here.losses),
    ))
}

struct Ran {
    /// Gradient sums of the first step, as one flat buffer.
    sums: Vec<f32>,
    losses: Vec<f64>,
    /// Number of CUDA graphs at the end.
    graphs: usize,
}

/// Takes steps on two batches in turn. Their shapes are equal, so graphs are used; their contents differ, so leftovers
/// of the step before would show.
fn run(config: &Config, data: &Arc<Dataset>, steps: u32, gpu: Option<Gpu>) -> Result<Ran> {
    let precision = Precision::F32;
    let (entry, on_gpu) = (models::find(&config.model.name)?, gpu.is_some());
    let grain = entry.grain;
    let source = SampleSource::new(Arc::clone(data), config, grain, precision, on_gpu)
        .with_images(entry.reads_images);
    let order = EpochOrder::new(&order_input(data, grain, config), 0)?;
    let is_full = |unit: &&Unit| unit.cells.len() == PATCHES_PER_IMAGE;
    let units: Vec<Unit> = order.units().iter().filter(is_full).cloned().collect();
    if units.len() < 2 * IMAGES_PER_STEP {
        return Err(Error::Internal(format!(
            "{} units are no two batches",
            units.len()
        )));
    }
    let load = |units: &[Unit]| source.load(units, Some(0)).map(Some);
    let batch = |units: &[Unit]| -> Result<Vec<Option<ShardBatch>>> {
        units
            .chunks(IMAGES_PER_STEP / VIRTUAL_SHARDS)
            .map(load)
            .collect()
    };
    let (first, second) = units.split_at(IMAGES_PER_STEP);
    let batches = [batch(first)?, batch(&second[..IMAGES_PER_STEP])?];
    let total = Denominators {
        images: IMAGES_PER_STEP,
        patches: (IMAGES_PER_STEP * PATCHES_PER_IMAGE) as u64,
    };
    let objective = objective(&config.loss, &source)?;
    let (task, lanes) = (source.task(), ThreadLanes::one());
    let mut replica = Replica::configured(config, task, precision, objective, lanes, gpu)?;
    let mut alone = Solo::new(&AbortHandle::new());
    let mut peers = Peers {
        collective: &mut alone,
        patience: PATIENCE,
    };
    let mut ran = Ran {
        sums: Vec::new(),
        losses: Vec::new(),
        graphs: 0,
    };
    for step in 1..=u64::from(steps) {
        let shards = &batches[step as usize % 2];
        let sums = replica.attempt(shards, 0, total, &mut peers, &mut || ())?;
        if step == 1 {
            ran.sums = sums.to_host()?;
        }
        let verdict = replica.verdict(&sums, total);
        ran.losses.push(verdict.loss);
        replica.commit(sums, config, config.optimizer.lr, step, verdict)?;
    }
    ran.graphs = replica.graphs();
    Ok(ran)
}

/// `|a - b| / |b|` by the Euclidean norm.
fn distance(a: &[f32], b: &[f32]) -> Deviation {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let off = apart / norm(&mut b.iter().map(|b| f64::from(*b)));
    match a.len() == b.len() && off.is_finite() {
        true => Deviation {
            largest: off,
            same_bits: a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()),
        },
        false => Deviation::UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_trainer::ops::NormEngine;

    #[test]
    fn steps_on_the_emulated_gpu_are_those_of_the_cpu() {
        let _alone = crate::emulated::alone();
        let checks = check(Ok(crate::emulated::gpu(NormEngine::Composed)), 2, false);
        assert_eq!(checks.len(), 2);
        assert!(checks.iter().all(|check| check.passed), "{checks:?}");
        assert!(
            checks[0].deviation > 0.0,
            "two ways to compute it: {checks:?}"
        );
    }

    /// Without libtorch's CUDA side nothing can be recorded: training continues without graphs, and the check reports
    /// it.
    #[test]
    fn graphs_that_were_not_recorded_are_no_success() {
        let _alone = crate::emulated::alone();
        let checks = check(Ok(crate::emulated::gpu(NormEngine::Fused)), 5, true);
        assert!(checks.iter().all(|check| !check.passed), "{checks:?}");
        let problem = checks[0].problem.as_deref().unwrap_or_default();
        assert!(problem.contains("no step was recorded"), "{problem}");
    }

    #[test]
    fn distances_are_relative_to_the_whole() {
        assert_eq!(distance(&[3.0, 4.0], &[3.0, 4.0]), Deviation::NONE);
        assert!((distance(&[3.0, 9.0], &[3.0, 4.0]).largest - 1.0).abs() < 1e-12);
        assert_eq!(distance(&[1.0], &[1.0, 2.0]), Deviation::UNKNOWN);
        assert_eq!(distance(&[f32::NAN], &[1.0]), Deviation::UNKNOWN);
    }
}
