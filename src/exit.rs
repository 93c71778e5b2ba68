//! Exit codes and logging: what scripts and schedulers see.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::say::Unsaid;

/// Done.
pub const FINISHED: u8 = 0;
/// Failed; trying again as it is may not help.
pub const FAILED: u8 = 1;
/// The command line, the configuration or the input is wrong: trying again never helps.
pub const USAGE: u8 = 2;
/// Stopped early with a complete checkpoint: start again with `--resume` (a scheduler: requeue).
pub const RESUME: u8 = 85;

/// How a command ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done.
    Finished,
    /// Drained: resume later.
    Resume,
    /// Something is wrong, and it has been said.
    Failed,
}

/// An error that is the user's to mend; exits with [`USAGE`].
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints an error and chooses the exit code.
pub fn code(result: anyhow::Result<Ending>) -> ExitCode {
    match result {
        Ok(Ending::Finished) => ExitCode::from(FINISHED),
        Ok(Ending::Resume) => ExitCode::from(RESUME),
        Ok(Ending::Failed) => ExitCode::from(FAILED),
        Err(error) if is_broken_pipe(&error) => ExitCode::from(FINISHED),
        Err(error) => {
            let red = if std::io::stderr().is_terminal() {
                ("\x1b[31;1m", "\x1b[0m")
            } else {
                ("", "")
            };
            // The exit code tells, where nobody reads what is said.
            let text = format!("{}error{}: {}\n", red.0, red.1, message(&error));
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(if is_usage(&error) { USAGE } else { FAILED })
        }
    }
}

/// The error and its causes; those that the error quotes already are not said twice.
fn message(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| {
            if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>()
        || error
            .downcast_ref::<fovea_trainer::Error>()
            .is_some_and(fovea_trainer::Error::is_usage)
        || error
            .downcast_ref::<fovea_trainer::report::Error>()
            .is_some_and(fovea_trainer::report::Error::is_usage)
        || error
            .downcast_ref::<fovea_dataset::Error>()
            .is_some_and(fovea_dataset::Error::is_usage)
        || error
            .downcast_ref::<fovea_coordinator::Error>()
            .is_some_and(fovea_coordinator::Error::is_usage)
}

/// `fovea data ... | head` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Unsaid>()
        .is_some_and(Unsaid::reader_left)
}

/// Warnings and worse on standard error; `-v` adds information, `-vv` debugging. FOVEA_LOG overrides.
pub fn init_logging(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_env("FOVEA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}
