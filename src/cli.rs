//! The command line. The commands resolve it into a configuration; no code below them reads flags.

mod after;
mod bench;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use fovea_collectives::BackendChoice;
use fovea_run::config::{self, PRESETS};

pub use after::{AverageArgs, EvalArgs, GradcamArgs, PredictArgs, TuneArgs, TuneBy};
pub use bench::{
    BenchAllreduceArgs, BenchArgs, BenchCommand, BenchCoordinatorArgs, BenchEpochArgs,
    BenchKernelsArgs, BenchRankArgs, BenchScalingArgs, BenchServerArgs, BenchStepArgs,
    GpuCheckArgs, WorkArgs,
};

/// Fault-tolerant distributed training of fundus-lesion models.
#[derive(Parser, Debug)]
#[command(name = "fovea", version = crate::version::SHORT, long_version = crate::version::long(), propagate_version = true)]
pub struct Cli {
    /// More messages: -v information, -vv debugging
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write a synthetic fundus dataset in FGADR layout
    Synth(SynthArgs),
    /// Turn a raw dataset into checked shards
    Prepare(PrepareArgs),
    /// Print the label table of a prepared dataset; draw a mosaic of patches, or of photographs
    Data(DataArgs),
    /// Train: starts the coordinator and the trainers of this machine
    Train(TrainArgs),
    /// Submit a run to Slurm: it comes back after every preemption and time limit until it is finished
    Submit(SubmitArgs),
    /// The coordinator of a run (for launchers; `train` starts it)
    Coordinator(CoordinatorArgs),
    /// One trainer of a run (for launchers; `train` starts them)
    Trainer(TrainerArgs),
    /// What a batch script asks: how to start, and what comes next
    Job(JobArgs),
    /// Metrics of a checkpoint on one split
    Eval(EvalArgs),
    /// Lesion probabilities for a prepared dataset or for photographs
    Predict(PredictArgs),
    /// Choose thresholds and temperatures on the validation split; eval, predict and report use them
    Tune(TuneArgs),
    /// Pictures of where a model looks: Grad-CAM per class and branch, and attention
    Gradcam(GradcamArgs),
    /// What a run is doing, or how it ended
    Status(StatusArgs),
    /// Whether a run used every sample once, and what each fault cost
    Audit(AuditArgs),
    /// Write RUN/report.html with all plots
    Report(ReportArgs),
    /// Copy a prepared dataset to a disk of this node
    Stage(StageArgs),
    /// What on this machine stands in the way of a run, and what to do about it
    Doctor(DoctorArgs),
    /// Measure parts of the system on this machine
    Bench(BenchArgs),
    /// Compare kernels and training steps on a GPU with the CPU's (scripts/gpu-check.sh)
    #[command(hide = true)]
    GpuCheck(GpuCheckArgs),
}

#[derive(Args, Debug)]
pub struct StageArgs {
    /// Prepared dataset
    pub data: PathBuf,
    /// Directory on a disk of this node; $NAME stands for a variable of the environment, auto for the usual places
    #[arg(long, value_name = "DIR|auto", default_value = "auto")]
    pub to: Vec<String>,
    /// Remove the copy, unless another process reads it
    #[arg(long)]
    pub remove: bool,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Run directory, or a directory for runs (here, when it is left out)
    pub run: Option<PathBuf>,
    /// Machine-readable output, with all facts
    #[arg(long)]
    pub json: bool,
}

/// What `fovea synth` draws.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SynthKind {
    Lesions,
    Labels,
    Classes,
    Boxes,
}

#[derive(Args, Debug)]
pub struct SynthArgs {
    /// Directory to create
    pub out: PathBuf,
    /// What is drawn: photographs with lesion masks, with labels (D, G, A), folders of classes, or scenes with boxes
    #[arg(long, value_enum, default_value = "lesions")]
    pub kind: SynthKind,
    /// Number of images [default: 24 with lesions, else 240]
    #[arg(long)]
    pub images: Option<u32>,
    /// Side of an image in pixels [default: 1280 with lesions, else 256]
    #[arg(long)]
    pub size: Option<u32>,
    /// Same seed, same bytes
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn layout_help() -> String {
    let names = fovea_dataset::LayoutChoice::names().join(", ");
    format!("How the raw dataset is laid out: {names}")
}

fn preset_help() -> String {
    let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    format!("Start from a built-in configuration instead of a file: {names}")
}

#[derive(Args, Debug)]
pub struct PrepareArgs {
    /// Raw dataset: a directory, or a zip archive of one
    pub src: PathBuf,
    /// Directory for the prepared dataset
    pub out: PathBuf,
    #[arg(long, default_value = "auto", help = layout_help())]
    pub layout: String,
    /// Working size in pixels; a multiple of --patch [default: 1280, or 256 where only whole images have labels]
    #[arg(long)]
    pub size: Option<u32>,
    /// Side of a grid cell in pixels; 0 for no grid [default: 128, or 0 where only whole images have labels]
    #[arg(long)]
    pub patch: Option<u32>,
    /// What of a photograph is kept: fov (the bright disc), none (all of it), or auto (fov with lesion masks, else none)
    #[arg(long, default_value = "auto")]
    pub crop: String,
    /// How it is brought to a square: stretch, pad (with black), or centre (shorter side to 256/224 of --size, the
    /// middle of that) [default: pad after --crop fov, else stretch]
    #[arg(long)]
    pub fit: Option<String>,
    /// Column of a table that names the pictures [default: the one whose values do]
    #[arg(long, value_name = "COLUMN")]
    pub image_column: Option<String>,
    /// Columns of labels, as D,G,A: of 0 and 1, or one of class names [default: all of 0 and 1, else one of names]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Boxes of a picture that a model reads, those with the highest scores (layout boxes)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub max_boxes: u32,
    /// Lesion pixels that make a cell positive
    #[arg(long, default_value_t = 1)]
    pub min_lesion_pixels: u32,
    /// Seed of the split
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Keep images together whose names have the same first group of this regular expression (or, without a group,
    /// the same match) in one split: '^(.+)_(?:left|right)$' for both eyes of a patient
    #[arg(long, value_name = "REGEX")]
    pub group_by: Option<String>,
    /// Threads; 0 = one per core
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
}

#[derive(Args, Debug)]
pub struct DataArgs {
    /// Prepared dataset; with --mosaic also a photograph or a folder of them
    pub data: PathBuf,
    /// Also draw patches with their labels and lesion outlines into this PNG; of photographs that are not
    /// prepared, what is cut out of each, with its grid and black cells
    #[arg(long, value_name = "FILE.png")]
    pub mosaic: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    #[value(alias = "gpu")]
    Cuda,
}

/// Parses a spelling of `train.backend` for which `offered` holds.
fn backend_choice(
    offered: fn(BackendChoice) -> bool,
) -> impl TypedValueParser<Value = BackendChoice> {
    let names = BackendChoice::NAMES.iter().copied();
    let offers = move |name: &&str| BackendChoice::named(name).is_some_and(offered);
    PossibleValuesParser::new(names.filter(offers)).try_map(BackendChoice::try_from)
}

impl From<DeviceChoice> for config::Device {
    fn from(device: DeviceChoice) -> Self {
        match device {
            DeviceChoice::Auto => Self::Auto,
            DeviceChoice::Cpu => Self::Cpu,
            DeviceChoice::Cuda => Self::Cuda,
        }
    }
}

/// Where a configuration comes from.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Configuration (TOML); see `fovea train --print-config`
    pub config: Option<PathBuf>,
    #[arg(long, conflicts_with = "config", help = preset_help())]
    pub preset: Option<String>,
    /// Prepared dataset (data.path)
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Run directory (run.out)
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Begin from these weights: a .safetensors or PyTorch file, a checkpoint or a run directory (model.init)
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,
    /// Set any key of the configuration, for example --set optimizer.lr=3e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Trainer processes (train.ranks)
    #[arg(long)]
    pub ranks: Option<u32>,
    /// What computes: the processor, or an NVIDIA GPU per rank (train.device)
    #[arg(long, value_enum)]
    pub device: Option<DeviceChoice>,
    /// How ranks exchange gradients (train.backend)
    #[arg(long, value_parser = backend_choice(|_| true))]
    pub backend: Option<BackendChoice>,
    /// Go on from the newest checkpoint of the run directory
    #[arg(long)]
    pub resume: bool,
    /// Stop in time, with a checkpoint, so that everybody has left after this long (90m, 3h 50m)
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    pub deadline: Option<Duration>,
    /// Print the resolved configuration with every key explained, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Print what each preset is for and the figure it was published with, and stop
    #[arg(long)]
    pub list_presets: bool,
}

#[derive(Args, Clone, Debug)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Nodes [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub nodes: Option<u32>,
    /// GPUs of each node; as many ranks start there
    #[arg(long, value_name = "G", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub gpus_per_node: Option<u32>,
    /// Ranks of each node [default: its GPUs, or 1]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks_per_node: Option<u32>,
    /// CPUs of each rank
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub cpus_per_rank: Option<u32>,
    /// Time limit of one job: minutes, 4:00:00, 1-12:00:00, or 3h 50m [default: the site's, or 4 hours]
    #[arg(long, value_parser = time_limit)]
    pub time: Option<Duration>,
    /// Partition [default: the site's]
    #[arg(long)]
    pub partition: Option<String>,
    /// Account [default: the site's]
    #[arg(long)]
    pub account: Option<String>,
    /// Quality of service [default: the site's]
    #[arg(long)]
    pub qos: Option<String>,
    /// Features that the nodes must have [default: the site's]
    #[arg(long)]
    pub constraint: Option<String>,
    /// Runs beside each other, as 0-9 or 1,3,5%2: each in its own directory RUN/ELEMENT; %a in --out and --set is
    /// the element
    #[arg(long, value_name = "SPEC")]
    pub array: Option<String>,
    /// Image to run in, whose `fovea` is used
    #[arg(long, value_name = "IMAGE")]
    pub container: Option<String>,
    /// Copy the data to each node's own disk while training begins: auto (the site's scratch), none, or a directory
    /// [default: none]
    #[arg(long, value_name = "auto|none|DIR")]
    pub stage: Option<String>,
    /// Module to load, after the site's
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// Print the batch script, and stop: writes nothing, needs no Slurm
    #[arg(long)]
    pub dry_run: bool,
}

impl SubmitArgs {
    /// The options of this command, completed by those of the command `before` where this one gives none.
    pub fn or(self, before: Self) -> Self {
        let keep = |now: Vec<String>, before: Vec<String>| match now.is_empty() {
            true => before,
            false => now,
        };
        Self {
            source: ConfigArgs {
                set: keep(self.source.set, before.source.set),
                data: self.source.data.or(before.source.data),
                ..self.source
            },
            nodes: self.nodes.or(before.nodes),
            // Either of the two options implies the other, so one of `before` must not contradict a new one.
            ranks_per_node: self.ranks_per_node.or(before
                .ranks_per_node
                .filter(|_| self.gpus_per_node.is_none())),
            gpus_per_node: self.gpus_per_node.or(before
                .gpus_per_node
                .filter(|_| self.ranks_per_node.is_none())),
            cpus_per_rank: self.cpus_per_rank.or(before.cpus_per_rank),
            time: self.time.or(before.time),
            partition: self.partition.or(before.partition),
            account: self.account.or(before.account),
            qos: self.qos.or(before.qos),
            constraint: self.constraint.or(before.constraint),
            array: self.array.or(before.array),
            container: self.container.or(before.container),
            stage: self.stage.or(before.stage),
            modules: keep(self.modules, before.modules),
            dry_run: self.dry_run,
        }
    }
}

/// Parses a time limit that Slurm can enforce: at least a minute.
fn time_limit(text: &str) -> Result<Duration, String> {
    // The notation of `fovea train --deadline` works too: 90m, 3h 50m.
    let spelled = humantime::parse_duration(text).map(Some);
    match spelled.or_else(|_| fovea_slurm::time::parse(text)) {
        Ok(Some(limit)) if limit >= Duration::from_secs(60) => Ok(limit),
        Ok(Some(_)) => Err("less than a minute, the least that Slurm counts".to_owned()),
        Ok(None) => Err("a job needs a limit".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Args, Debug)]
pub struct CoordinatorArgs {
    /// Run directory with its config.toml
    pub run: PathBuf,
    /// Address to listen on; trainers of other hosts need one that they can reach
    #[arg(long, default_value = "127.0.0.1")]
    pub bind: IpAddr,
    /// Stop in time, with a checkpoint, so that everybody has left after this long (90m, 3h 50m, or as squeue
    /// writes it: 3:50:00; no limit when it writes none)
    #[arg(long, value_name = "TIME", value_parser = time_left, allow_hyphen_values = true)]
    pub time_left: Option<TimeLeft>,
    /// Under a scheduler, which may repeat its signals: each of them only asks for a drain
    #[arg(long)]
    pub in_job: bool,
    /// Drain as soon as the ranks are there
    #[arg(long)]
    pub drain: bool,
    /// End when the process that started this one (this pid, when given) ends
    #[arg(long, hide = true, value_name = "PID", num_args = 0..=1, default_missing_value = "0")]
    pub with_parent: Option<u32>,
}

#[derive(Args, Debug)]
pub struct TrainerArgs {
    /// Run directory with its config.toml
    pub run: PathBuf,
    /// Rank to ask for
    #[arg(long)]
    pub rank: Option<u32>,
    /// As a task of a SLURM job step: started again when it is lost, patient with repeated signals
    #[arg(long)]
    pub in_job: bool,
    /// Read the data from this node's copy, as far as `fovea stage` has made one there
    #[arg(long, value_name = "DIR|auto")]
    pub staged: Vec<String>,
    /// Somebody keeps this trainer alive
    #[arg(long, hide = true)]
    pub kept: bool,
    /// Drain when the process that started this one (this pid, when given) ends
    #[arg(long, hide = true, value_name = "PID", num_args = 0..=1, default_missing_value = "0")]
    pub with_parent: Option<u32>,
}

/// Longest deadline that is accepted: a longer one is a typing error.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

fn deadline(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) => Err("more than ten years".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Time until the end of a job; `None` when it has no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLeft(pub Option<Duration>);

/// Parses both notations, 3h 50m and squeue's. An empty text or squeue's words for an unknown time mean no limit.
fn time_left(text: &str) -> Result<TimeLeft, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(TimeLeft(None));
    }
    if let Ok(time) = humantime::parse_duration(text) {
        return Ok(TimeLeft(Some(time)));
    }
    fovea_slurm::time::parse(text)
        .map(TimeLeft)
        .map_err(|e| e.to_string())
}

#[derive(Args, Debug)]
pub struct JobArgs {
    #[command(subcommand)]
    pub what: JobCommand,
}

#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// Make the run ready and print shell assignments: where its ranks start
    Plan(JobPlanArgs),
    /// Say by the exit code what comes after all processes are gone: 0 finished, 85 requeue, 75 start again
    /// here, 1 failed, 2 wrong input
    Next(JobNextArgs),
}

#[derive(Args, Debug)]
pub struct JobPlanArgs {
    /// Configuration (TOML)
    pub config: PathBuf,
    /// Run directory
    #[arg(long)]
    pub out: PathBuf,
    /// Set any key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Output of `sinfo -h -N -n NODES -o '%N %t'`
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub node_states: String,
    /// Output of `srun --mpi=list`
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub mpi_list: String,
    /// Output of `mpirun --version`
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub mpirun: String,
    /// One of these types, or mpirun
    #[arg(long)]
    pub mpi: Option<String>,
    /// Network interface of the coordinator
    #[arg(long)]
    pub interface: Option<String>,
}

#[derive(Args, Debug)]
pub struct JobNextArgs {
    /// Run directory
    pub run: PathBuf,
    /// Exit code of the coordinator
    #[arg(long)]
    pub coordinator: i32,
    /// Exit code of srun
    #[arg(long)]
    pub trainers: i32,
    /// The signal by which the scheduler had asked the job to leave
    #[arg(long, value_name = "SIGNAL")]
    pub noticed: Option<String>,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Run directory
    pub run: PathBuf,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Run directory
    pub run: PathBuf,
    /// Prepared dataset, where it is not any more where the run had it
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Run directory
    pub run: PathBuf,
}
