//! The arguments of `fovea bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use fovea_collectives::BackendChoice;
use fovea_run::config;

use super::{DeviceChoice, backend_choice};

#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchCommand,
}

#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// A coordinator under the load of many simulated members
    Coordinator(BenchCoordinatorArgs),
    /// Sums over ranks: time, algorithm and bus bandwidth by size. Under mpirun or srun --mpi the ranks are those of
    /// the MPI job, else processes of this machine
    Allreduce(BenchAllreduceArgs),
    /// Training steps on images of random pixels, without a coordinator
    Step(BenchStepArgs),
    /// A whole epoch on images of random pixels, made where they are used; FGADR's numbers unless told otherwise
    Epoch(BenchEpochArgs),
    /// The CUDA kernels at full size, each beside the same operation composed of libtorch's
    Kernels(BenchKernelsArgs),
    /// Training steps over 1, 2, 4, ... ranks of this machine: with the same work per rank, and with the same global
    /// batch. --images and --virtual-shards are those of one rank
    Scaling(BenchScalingArgs),
    /// A rank's process of `bench scaling`
    #[command(hide = true)]
    Rank(BenchRankArgs),
    /// The server's process of `bench coordinator`
    #[command(hide = true)]
    Server(BenchServerArgs),
}

#[derive(Args, Debug)]
pub struct BenchAllreduceArgs {
    /// Number of ranks on this machine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// Smallest buffer, in bytes; K, M and G are powers of 1024
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = parse_bytes)]
    pub from: u64,
    /// Largest buffer; each is four times as large as the one before
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_bytes)]
    pub to: u64,
    /// How they meet: auto is MPI under a launcher, else shared memory; nccl sums in GPU memory, rank r on GPU r modulo
    /// their number
    #[arg(long, value_parser = backend_choice(|choice| choice.entry().is_none_or(|row| row.on_gpus)), default_value = "auto")]
    pub backend: BackendChoice,
    /// Calls of each size
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeats: u32,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    /// The rank of this process, and where it meets the others
    #[arg(long, hide = true, num_args = 2, value_names = ["RANK", "MEETING"])]
    pub seat: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PrecisionChoice {
    Auto,
    F32,
    Bf16,
}

impl From<PrecisionChoice> for config::Precision {
    fn from(precision: PrecisionChoice) -> Self {
        match precision {
            PrecisionChoice::Auto => Self::Auto,
            PrecisionChoice::F32 => Self::F32,
            PrecisionChoice::Bf16 => Self::Bf16,
        }
    }
}

/// What a step is made of, and what computes it.
#[derive(Args, Clone, Debug)]
pub struct WorkArgs {
    /// What computes
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
    /// Side of an image in pixels; a multiple of --patch
    #[arg(long, value_name = "PIXELS", default_value_t = 1280)]
    pub size: u32,
    /// Side of a patch in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub patch: u32,
    /// Side of a whole image's view in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    pub global_size: u32,
    /// Patches of each image in a step
    #[arg(long, value_name = "P", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub patches: u32,
    /// Slices of a step that are computed one by one on a GPU
    #[arg(long, value_name = "V", default_value_t = 4)]
    pub virtual_shards: u32,
    /// Arithmetic of forward and backward
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: PrecisionChoice,
    /// Compute threads of a rank; 0 = its share of the cores
    #[arg(long, default_value_t = 0)]
    pub threads: u32,
    /// Run steps as CUDA graphs (train.cuda_graphs)
    #[arg(long)]
    pub cuda_graphs: bool,
}

#[derive(Args, Debug)]
pub struct BenchKernelsArgs {
    /// Number of the GPU, as CUDA counts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpu: u32,
    /// How often each is measured
    #[arg(long, value_name = "R", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeats: u32,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct GpuCheckArgs {
    /// Number of the GPU, as CUDA counts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpu: u32,
    /// Random inputs of each kernel
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub cases: u32,
    /// Chooses the inputs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Without training steps, for tools that make everything slow
    #[arg(long)]
    pub kernels_only: bool,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct BenchStepArgs {
    /// Images of a step
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub images: u32,
    #[command(flatten)]
    pub work: WorkArgs,
    /// Steps that are measured
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// Steps before them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub warm_up: u32,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct BenchEpochArgs {
    /// Images of the set; on the CPU few
    #[arg(long, default_value_t = 1841, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub images: u32,
    /// Images of a step
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub images_per_step: u32,
    #[command(flatten)]
    pub work: WorkArgs,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

impl BenchAllreduceArgs {
    /// Whether the buffers lie in GPU memory.
    pub fn on_gpus(&self) -> bool {
        self.backend.entry().is_some_and(|row| row.on_gpus)
    }
}

#[derive(Args, Debug)]
pub struct BenchScalingArgs {
    /// Most ranks; on a GPU each has its own, and more than GPUs share them [default: the GPUs, or the cores]
    #[arg(long, visible_alias = "gpus", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: Option<u32>,
    /// Images of a step, of one rank
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub images: u32,
    #[command(flatten)]
    pub work: WorkArgs,
    /// How ranks exchange gradients
    #[arg(long, value_parser = backend_choice(|_| true), default_value = "auto")]
    pub backend: BackendChoice,
    /// Steps that are measured, of each number of ranks
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// Steps before them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub warm_up: u32,
    /// Machine-readable results
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Efficiency over ranks as a picture
    #[arg(long, value_name = "FILE.png")]
    pub plot: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct BenchRankArgs {
    /// The rank of this process, and where it meets the others
    #[arg(long, num_args = 2, value_names = ["RANK", "MEETING"], required = true)]
    pub seat: Vec<String>,
    /// Number of ranks
    #[arg(long)]
    pub world: u32,
    /// How they meet
    #[arg(long, value_parser = backend_choice(|_| true))]
    pub backend: BackendChoice,
    /// What is measured, as JSON
    #[arg(long)]
    pub work: String,
    /// Steps that are measured
    #[arg(long)]
    pub steps: u32,
    /// Steps before them
    #[arg(long)]
    pub warm_up: u32,
}

/// Parses a size in bytes: `512`, `64K`, `1M`, `2G` (powers of 1024).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write 512, 64K, 16M or 1G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "m" | "M" | "MiB" => 20,
        "g" | "G" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    match bytes {
        4..=0x40_0000_0000 => Ok(bytes),
        _ => Err(format!("{text:?} is not between 4 bytes and 256G")),
    }
}

#[derive(Args, Debug)]
pub struct BenchCoordinatorArgs {
    /// Members; the largest power of two among them is the number of ranks, the others stand by
    #[arg(long, default_value_t = 1000)]
    pub members: usize,
    /// Seconds of steps after the first rendezvous
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// From one step to the next vote
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub step: Duration,
    /// Percent of the members that fail in a minute, and come back
    #[arg(long, default_value_t = 1.0)]
    pub fail: f64,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct BenchServerArgs {
    /// Run directory to create
    pub run: PathBuf,
    /// Ranks
    pub members: usize,
}
