//! `fovea`: parse, dispatch, map the error to an exit code.

mod cli;
mod commands;
mod exit;
mod inherited;
mod libtorch;
mod say;
mod show;
mod version;

use clap::Parser;

fn main() -> std::process::ExitCode {
    inherited::restore();
    let cli = cli::Cli::parse();
    exit::init_logging(cli.verbose);
    exit::code(commands::dispatch(cli.command))
}
