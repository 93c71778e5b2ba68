//! Training steps on a GPU against the same steps on the CPU, on a small synthetic dataset.

use std::sync::Arc;

use fovea_coordinator::order::{EpochOrder, Unit};
use fovea_dataset::synth::{SynthOptions, synth};
use fovea_dataset::{Dataset, PrepareOptions, Silent, prepare};

use super::{Check, Deviation};
use crate::collectives::{AbortHandle, Solo};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::lanes::Lanes;
use crate::precision::Precision;
use crate::replica::{Denominators, Replica};
use crate::samples::{SampleSource, ShardBatch, order_input};
use crate::train::{Peers, objective};

/// Of the first step's sums, by their norm: convolutions add in other orders.
const SUMS_LIMIT: f64 = 1e-2;
/// Of the losses of steps put there as graphs against plain ones, relative: cuDNN may choose other algorithms.
const GRAPH_LIMIT: f64 = 1e-2;
/// Of the losses, relative: the optimizer makes more of small differences from step to step.
const LOSS_LIMIT: f64 = 1e-2;
const VIRTUAL_SHARDS: usize = 2;
const IMAGES_PER_STEP: usize = 4;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The sums of the first step, and the losses of all; then the losses of steps that are put on the GPU, opened `again`,
/// as CUDA graphs.
pub(super) fn check(gpu: Gpu, again: impl Fn() -> Result<Gpu>, steps: u32) -> Vec<Check> {
    let fails = |error: &Error| Error::Internal(error.to_string());
    let (sums, losses, graphs) = match Setting::new() {
        Err(error) => (Err(fails(&error)), Err(fails(&error)), Err(error)),
        Ok(setting) => match setting.compare(gpu, steps) {
            Err(error) => (Err(fails(&error)), Err(fails(&error)), Err(error)),
            Ok((sums, there, losses)) => {
                let graphs = again().and_then(|gpu| setting.by_graphs(gpu, &there, steps));
                (Ok(sums), Ok(losses), graphs)
            }
        },
    };
    vec![
        Check::new("steps by CUDA graphs, f32", steps, GRAPH_LIMIT, graphs),
        Check::new("first step's sums, f32", 1, SUMS_LIMIT, sums),
        Check::new(
            &format!("losses of {steps} steps, f32"),
            steps,
            LOSS_LIMIT,
            losses,
        ),
    ]
}

/// A small dataset and how it is trained on.
struct Setting {
    config: Config,
    data: Arc<Dataset>,
    _dir: tempfile::TempDir,
}

impl Setting {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir().map_err(|e| {
            Error::file(
                std::env::temp_dir(),
                &e,
                "set TMPDIR to a directory with 10 MB of space",
            )
        })?;
        let (raw, prepared) = (dir.path().join("raw"), dir.path().join("data"));
        let made = SynthOptions {
            images: 6,
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
        config.data.patches_per_image = 4;
        config.train.images_per_step = IMAGES_PER_STEP as u32;
        config.train.virtual_shards = VIRTUAL_SHARDS as u32;
        Ok(Self {
            config,
            data,
            _dir: dir,
        })
    }

    /// The first sums and all losses against the CPU's; between them the losses.
    fn compare(&self, mut gpu: Gpu, steps: u32) -> Result<(Deviation, Vec<f64>, Deviation)> {
        gpu.load_images(Arc::clone(&self.data))?;
        let there = run(&self.config, &self.data, steps, Some(gpu))?;
        let here = run(&self.config, &self.data, steps, None)?;
        let losses = Deviation::between(&there.losses, &here.losses);
        Ok((distance(&there.sums, &here.sums), there.losses, losses))
    }

    fn by_graphs(&self, mut gpu: Gpu, plain: &[f64], steps: u32) -> Result<Deviation> {
        let mut config = self.config.clone();
        config.train.cuda_graphs = true;
        gpu.load_images(Arc::clone(&self.data))?;
        let ran = run(&config, &self.data, steps, Some(gpu))?;
        if ran.graphs == 0 {
            return Err(Error::Internal(
                "no step was recorded; the warning above says why".to_owned(),
            ));
        }
        Ok(Deviation::between(&ran.losses, plain))
    }
}

struct Ran {
    /// Of the first step.
    sums: Vec<f32>,
    losses: Vec<f64>,
    /// CUDA graphs at the end.
    graphs: usize,
}

/// Several steps on the same batch.
fn run(config: &Config, data: &Arc<Dataset>, steps: u32, gpu: Option<Gpu>) -> Result<Ran> {
    let precision = Precision::F32;
    let source = SampleSource::new(Arc::clone(data), config, precision, gpu.is_some());
    let order = EpochOrder::new(&order_input(data, config), 0)?;
    let units = &order.units()[..IMAGES_PER_STEP.min(order.units().len())];
    let load = |units: &[Unit]| source.load(units, Some(0)).map(Some);
    let each = units.len().div_ceil(VIRTUAL_SHARDS);
    let shards: Vec<Option<ShardBatch>> = units.chunks(each).map(load).collect::<Result<_>>()?;
    let total = Denominators {
        images: units.len(),
        patches: units.iter().map(|unit| unit.cells.len() as u64).sum(),
    };
    let objective = objective(&config.loss, &source)?;
    let mut replica = Replica::new(config, precision, objective, Lanes::one(), gpu)?;
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
        let sums = replica.attempt(&shards, 0, total, &mut peers, &mut || ())?;
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

/// `|a - b| / |b|`.
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
    use crate::ops::Engine;

    #[test]
    fn steps_on_the_emulated_gpu_are_those_of_the_cpu() {
        let _alone = crate::gpu::tests::alone();
        let gpu = || Gpu::emulated(Engine::Composed);
        let checks = check(gpu(), || Ok(gpu()), 3);
        let [graphs, compared @ ..] = &checks[..] else {
            panic!("no checks");
        };
        assert_eq!(compared.len(), 2);
        assert!(compared.iter().all(|check| check.passed), "{compared:?}");
        assert!(
            compared[0].deviation > 0.0,
            "two ways to compute it: {compared:?}"
        );
        // Without libtorch's CUDA side the third step cannot be recorded: training went on, and it is told.
        let problem = graphs.problem.as_deref().unwrap_or_default();
        assert!(problem.contains("no step was recorded"), "{graphs:?}");
    }

    #[test]
    fn distances_are_relative_to_the_whole() {
        assert_eq!(distance(&[3.0, 4.0], &[3.0, 4.0]), Deviation::NONE);
        assert!((distance(&[3.0, 9.0], &[3.0, 4.0]).largest - 1.0).abs() < 1e-12);
        assert_eq!(distance(&[1.0], &[1.0, 2.0]), Deviation::UNKNOWN);
        assert_eq!(distance(&[f32::NAN], &[1.0]), Deviation::UNKNOWN);
    }
}
