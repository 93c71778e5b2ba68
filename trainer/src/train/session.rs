//! Joining a run: configuration, data, GPU, model, the connection to the coordinator.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fovea_collectives::{AbortHandle, BackendOptions, Surroundings};
use fovea_coordinator::client::Endpoint;
use fovea_coordinator::order::EpochOrder;
use fovea_coordinator::protocol::{Assignment, StartPoint, Terms, TrainerInfo};
use fovea_dataset::Dataset;
use fovea_run::config::{Config, TrainConfig};
use fovea_run::run_dir::RunDir;

use super::link::CoordinatorLink;
use super::{GenerationSeat, ModelState, Progress, RunRecords, Trainer, TrainingData};
use crate::error::{Error, Result};
use crate::gpu::{self, Gpu};
use crate::lanes::ThreadLanes;
use crate::models;
use crate::objective::objective;
use crate::precision::{Precision, native_bf16};
use crate::replica::Replica;
use crate::samples::{SampleSource, order_input};

/// How long a trainer waits for its coordinator and for the other ranks. (The coordinator gives up earlier, with a
/// reason.)
pub(super) const JOIN: Duration = Duration::from_secs(86_400);

/// The arguments of a trainer process.
pub struct TrainerOptions {
    /// The run directory, which holds the resolved configuration.
    pub run: RunDir,
    /// Address of the coordinator.
    pub endpoint: Endpoint,
    /// The rank to ask for; none for any. An MPI rank takes precedence.
    pub preferred_rank: Option<u32>,
    /// Number of this process among those of its machine, counted from 0; it selects the GPU.
    pub local_rank: u32,
    /// Directories of this node that may hold a copy of the data, now or later.
    pub staged: Vec<PathBuf>,
    /// Set by a signal handler to ask for a drain.
    pub drain_wanted: Arc<AtomicBool>,
}

/// Loads everything and connects. [`Trainer::run`] then takes a seat.
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
    let entry = models::find(&config.model.name)?;
    let (images, on_gpu) = (Arc::clone(&data), gpu.is_some());
    let source = SampleSource::new(images, &config, entry.grain, precision, on_gpu);
    let source = Arc::new(source.with_images(entry.reads_images));
    let order_input = order_input(source.data(), entry.grain, &config);
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
    let task = source.task();
    let replica = Replica::configured(&config, task, precision, objective, lanes, gpu)?;
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

/// This rank's GPU; none if it trains on the CPU.
pub fn gpu(config: &TrainConfig, local_rank: u32) -> Result<Option<Gpu>> {
    let gpus = gpu::VisibleGpus::here();
    let Some(ordinal) = gpu::choose(config.device, &gpus, local_rank)? else {
        return Ok(None);
    };
    Gpu::open(ordinal, gpu::cache_folder().as_deref()).map(Some)
}

/// One lane per virtual shard of a rank, as far as there are threads; on a GPU the shards take turns.
pub fn lanes(config: &TrainConfig, on_gpu: bool) -> Result<ThreadLanes> {
    let shards = match on_gpu {
        true => 1,
        false => config.virtual_shards / config.ranks.max(1),
    };
    ThreadLanes::over(config.threads(cores()), shards as usize)
}

/// A hash of configuration, data and precision, which all ranks must have in common.
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
