//! The options of what comes after training: scores, predictions, thresholds, pictures.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How the answers of one model or several become one.
#[derive(Args, Debug)]
pub struct AverageArgs {
    /// Another model, of the same task, whose probabilities are averaged with the first one's; repeat for more
    #[arg(long, value_name = "CHECKPOINT")]
    pub with: Vec<PathBuf>,
    /// Weight of each model, in their order, or val: their scores on the validation split [default: equal]
    #[arg(long, value_name = "0.5,0.3,0.2|val")]
    pub weights: Option<String>,
    /// Average over orientations of each picture: 5 (as it is, two mirrors, two quarter turns) or 8 (all)
    #[arg(long, value_name = "VIEWS", value_parser = views)]
    pub tta: Option<usize>,
    /// Thresholds and temperatures of this file [default: those beside the checkpoint, if any]
    #[arg(long, value_name = "FILE", conflicts_with = "untuned")]
    pub tuned: Option<PathBuf>,
    /// Ignore thresholds and temperatures beside the checkpoint
    #[arg(long)]
    pub untuned: bool,
}

/// Parses a number of views.
fn views(text: &str) -> Result<usize, String> {
    match text {
        "5" => Ok(5),
        "8" => Ok(8),
        _ => Err("5 or 8 views are possible".to_owned()),
    }
}

#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Checkpoint directory, run directory, or .safetensors file
    pub checkpoint: PathBuf,
    /// Prepared dataset
    pub data: PathBuf,
    /// Part of the dataset: train, val, test
    #[arg(long, default_value = "test")]
    pub split: String,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub average: AverageArgs,
    /// Change a key of the checkpoint's configuration, for example --set train.precision=f32
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args, Debug)]
pub struct PredictArgs {
    /// Checkpoint directory, run directory, or .safetensors file
    pub checkpoint: PathBuf,
    /// Prepared dataset, photograph, or folder of photographs
    pub input: PathBuf,
    /// CSV to write, in a folder that exists
    #[arg(long, value_name = "FILE.csv", required_unless_present = "submission")]
    pub out: Option<PathBuf>,
    /// CSV with one line per image and the predicted classes in place of probabilities: 0 or 1 per class, or the name of
    /// the class
    #[arg(long, value_name = "FILE.csv")]
    pub submission: Option<PathBuf>,
    #[command(flatten)]
    pub average: AverageArgs,
    /// Change a key of the checkpoint's configuration, for example --set train.precision=f32
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// A way to choose thresholds.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TuneBy {
    /// The best F1 over all scores
    F1,
}

#[derive(Args, Debug)]
pub struct TuneArgs {
    /// Checkpoint directory, run directory, or .safetensors file; several make an ensemble, which needs --out
    #[arg(required = true)]
    pub checkpoints: Vec<PathBuf>,
    /// Prepared dataset [default: the one that the model was trained on]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Part of the dataset to choose on; test is refused
    #[arg(long, default_value = "val")]
    pub split: String,
    /// How thresholds are chosen, unless --grid or --sensitivity says so
    #[arg(long, value_enum, default_value_t = TuneBy::F1)]
    pub by: TuneBy,
    /// Choose among multiples of this step, by F1
    #[arg(long, value_name = "STEP", conflicts_with = "sensitivity")]
    pub grid: Option<f64>,
    /// Choose the highest threshold that finds this share of the positives
    #[arg(long, value_name = "SHARE")]
    pub sensitivity: Option<f64>,
    /// Leave probabilities as they are: choose thresholds alone
    #[arg(long)]
    pub no_temperature: bool,
    /// Weight of each model, in their order, or val: their scores on the validation split [default: equal]
    #[arg(long, value_name = "0.5,0.3,0.2|val")]
    pub weights: Option<String>,
    /// Average over orientations of each picture: 5 or 8
    #[arg(long, value_name = "VIEWS", value_parser = views)]
    pub tta: Option<usize>,
    /// File to write [default: tuning.json in the checkpoint's directory]
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Change a key of the checkpoint's configuration, for example --set data.min_lesion_pixels=4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args, Debug)]
pub struct GradcamArgs {
    /// Checkpoint directory, run directory, or .safetensors file
    pub checkpoint: PathBuf,
    /// Prepared dataset, photograph, or folder of photographs
    pub input: PathBuf,
    /// Directory for the pictures, one folder per image
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Class to explain; repeat for more [default: the predicted ones, or the most probable]
    #[arg(long = "class", value_name = "NAME")]
    pub classes: Vec<String>,
    /// Also write each map as numbers, in NumPy's format: f32 at the network's resolution, before scaling
    #[arg(long)]
    pub raw: bool,
    /// Part of a prepared dataset: train, val, test
    #[arg(long, default_value = "test")]
    pub split: String,
    /// Most images
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Change a key of the checkpoint's configuration, for example --set data.global_size=256
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}
