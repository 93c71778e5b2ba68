//! Joining a run: configuration, data, the seat, the collective, the starting state.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fovea_collectives::{AbortHandle, BackendOptions, Surroundings};
use fovea_coordinator::client::Endpoint;
use fovea_coordinator::order::EpochOrder;
use fovea_coordinator::protocol::{Assignment, StartPoint, Terms, TrainerInfo};
use fovea_dataset::{Dataset, Split};
use fovea_kernels::FocalParams;
use fovea_run::config::{Alpha, Config, LossConfig, TrainConfig};
use fovea_run::run_dir::RunDir;

use super::link::CoordinatorLink;
use super::{GenerationSeat, ModelState, Progress, RunRecords, Trainer, TrainingData};
use crate::error::{Error, Result};
use crate::gpu::{self, Gpu};
use crate::lanes::ThreadLanes;
use crate::precision::{Precision, native_bf16};
use crate::replica::{Objective, Replica};
use crate::samples::{SampleSource, order_input};

/// How long a trainer waits for its coordinator and for the other ranks. (The coordinator gives up
/// earlier, and says why.)
pub(super) const JOIN: Duration = Duration::from_secs(86_400);

/// What a trainer process is started with.
pub struct TrainerOptions {
    /// The run directory; holds the resolved configuration.
    pub run: RunDir,
    /// Where the coordinator is.
    pub endpoint: Endpoint,
    /// Rank to ask for (an MPI rank wins over it).
    pub preferred_rank: Option<u32>,
    /// Number of this process among those of its machine: which GPU is its own.
    pub local_rank: u32,
    /// Directories of this node in which a copy of the data may be, or may come to be.
    pub staged: Vec<PathBuf>,
    /// Set by a signal handler to ask for a drain.
    pub drain_wanted: Arc<AtomicBool>,
}

/// Loads everything and connects. [`Trainer::run`] takes a seat.
pub fn join(options: TrainerOptions) -> Result<Trainer> {
    let config = Config::load(&options.run.config())?;
    config.validate()?;
    let gpu = gpu(&config.train, options.local_rank)?;
    let lanes = lanes(&config.train, gpu.is_some())?;
    let native = gpu.as_ref().map_or_else(native_bf16, Gpu::native_bf16);
    let precision = Precision::resolve(config.train.precision, native);
    let data = Arc::new(Dataset::open_unverified(config.data.path.as_ref())?);
    data.prefer(&options.staged);
    let fingerprint = fingerprint(&config, &data, precision);
    let source = Arc::new(SampleSource::new(
        Arc::clone(&data),
        &config,
        precision,
        gpu.is_some(),
    ));
    let order_input = order_input(source.data(), &config);
    let first = EpochOrder::new(&order_input, 0)?;
    let total_steps =
        first.steps(config.train.images_per_step as usize) as u64 * u64::from(config.train.epochs);
    if first.total_samples() == 0 {
        return Err(Error::Usage {
            what: format!(
                "{}: the training split has no patch that is not black",
                config.data.path
            ),
            help: "look at `fovea data` for what was prepared".to_owned(),
        });
    }

    let abort = AbortHandle::new();
    let row = config.train.backend.resolve(&Surroundings {
        gpu: gpu.is_some(),
        variable: &|name| std::env::var(name).ok(),
    });
    let backend = row.open_run(&BackendOptions {
        ranks: config.train.ranks as usize,
        patience: Duration::from_secs(config.train.step_timeout_s.into()),
        kernels: gpu.as_ref().map(Gpu::kernels),
        abort: &abort,
    })?;
    let terms = Terms {
        samples_per_epoch: first.total_samples(),
        fingerprint,
        elastic: row.is_elastic,
    };
    let link = CoordinatorLink::new(
        options.endpoint,
        TrainerInfo::this_process(backend.rank().or(options.preferred_rank)),
        terms,
        options.drain_wanted,
        Duration::from_secs(config.elastic.join_timeout_s.into()),
    )?;
    let objective = objective(&config.loss, &source)?;
    let gpu = match gpu {
        None => None,
        Some(mut gpu) => {
            gpu.load_images(data)?;
            tracing::info!("{}", gpu.describe());
            Some(gpu)
        }
    };
    let replica = Replica::new(&config, precision, objective, lanes, gpu)?;
    let before_any = Assignment {
        generation: 0,
        rank: 0,
        world: 1,
        machines: Vec::new(),
        start: StartPoint::default(),
        source: None,
        share: false,
        last: false,
    };
    Ok(Trainer {
        link,
        backend,
        seat: GenerationSeat::alone(before_any, &abort),
        data: TrainingData {
            source,
            order_input,
            total_steps,
        },
        state: ModelState {
            replica,
            precision,
            progress: Progress::new(&config),
            holds: false,
            pristine: true,
        },
        records: RunRecords::new(options.run),
        config,
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// This rank's GPU, if it is to have one.
pub fn gpu(config: &TrainConfig, local_rank: u32) -> Result<Option<Gpu>> {
    let gpus = gpu::VisibleGpus::here();
    let Some(ordinal) = gpu::choose(config.device, &gpus, local_rank)? else {
        return Ok(None);
    };
    Gpu::open(ordinal, gpu::cache_folder().as_deref()).map(Some)
}

/// One lane per virtual shard of a rank, as far as there are threads; on a GPU they take turns.
pub fn lanes(config: &TrainConfig, on_gpu: bool) -> Result<ThreadLanes> {
    let shards = match on_gpu {
        true => 1,
        false => config.virtual_shards / config.ranks.max(1),
    };
    ThreadLanes::over(config.threads(cores()), shards as usize)
}

/// All ranks must train the same thing on the same data in the same arithmetic.
fn fingerprint(config: &Config, data: &Dataset, precision: Precision) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [
        config.blake3(),
        data.manifest().blake3(),
        precision.name().to_owned(),
    ] {
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The configured loss, with class weights from the training split's label counts.
pub fn objective(config: &LossConfig, source: &SampleSource) -> Result<Objective> {
    let (mut patches, mut images) = ([0u64; 4], [0u64; 4]);
    let count = |label: u8, counts: &mut [u64; 4]| {
        counts
            .iter_mut()
            .enumerate()
            .for_each(|(c, n)| *n += u64::from(label >> c & 1));
    };
    for image in source.data().indices(Split::Train) {
        count(source.image_label(image), &mut images);
        for cell in source.cells(image) {
            count(source.cell_labels(image)[cell as usize], &mut patches);
        }
    }
    let focal = |counts: [u64; 4]| FocalParams {
        gamma: config.gamma,
        alpha: match config.alpha {
            Alpha::InverseFrequency => inverse_frequency(counts).to_vec(),
            Alpha::None => vec![1.0; 4],
            Alpha::Weights(weights) => weights.to_vec(),
        },
        pos_weight: if config.balance {
            config.positive_weight
        } else {
            1.0
        },
        neg_weight: if config.balance {
            config.negative_weight
        } else {
            1.0
        },
    };
    Ok(Objective {
        image: focal(images),
        patch: focal(patches),
        patch_weight: config.patch_weight,
    })
}

/// `alpha_c` proportional to `1 / count_c`, mean 1. A class that never occurs weighs as much as the
/// rarest one that does.
fn inverse_frequency(counts: [u64; 4]) -> [f32; 4] {
    let rarest = counts.iter().copied().filter(|&n| n > 0).min().unwrap_or(1);
    let inverse = counts.map(|n| 1.0 / if n == 0 { rarest } else { n } as f64);
    let mean = inverse.iter().sum::<f64>() / 4.0;
    inverse.map(|a| (a / mean) as f32)
}

#[cfg(test)]
mod tests {
    use super::inverse_frequency;

    #[test]
    fn rare_classes_weigh_more_and_the_mean_is_one() {
        let alpha = inverse_frequency([11_993, 28_829, 17_647, 3_448]);
        assert!((alpha.iter().sum::<f32>() - 4.0).abs() < 1e-5);
        assert!(alpha[3] > alpha[0] && alpha[0] > alpha[2] && alpha[2] > alpha[1]);
        assert!((alpha[0] / alpha[1] - 28_829.0 / 11_993.0).abs() < 1e-4);
        let absent = inverse_frequency([10, 20, 40, 0]);
        assert_eq!(absent[3], absent[0]);
    }
}
