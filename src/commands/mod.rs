//! The subcommands, one file each.

mod audit;
mod average;
mod bench;
mod coordinator;
mod data;
pub mod doctor;
mod eval;
mod gradcam;
mod job;
mod output;
mod predict;
mod prepare;
mod report;
mod scheduled;
mod signals;
mod source;
mod stage;
mod status;
mod submit;
mod synth;
mod train;
mod trainer;
mod tune;

use std::path::Path;

use anyhow::Context;

use crate::cli::Command;
use crate::exit::Ending;

/// Runs the subcommand that the user typed.
pub fn dispatch(command: Command) -> anyhow::Result<Ending> {
    match command {
        Command::Synth(args) => synth::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Submit(args) => submit::run(&args),
        Command::Coordinator(args) => coordinator::run(&args),
        Command::Trainer(args) => trainer::run(args),
        Command::Job(args) => job::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Gradcam(args) => gradcam::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Stage(args) => stage::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GpuCheck(args) => bench::gpu::check(&args),
    }
}

/// The absolute form of a path that may not exist yet, for files that other processes read.
fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: no absolute path", path.display()))
}
