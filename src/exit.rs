//! Exit codes and logging, which scripts and schedulers see.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use fovea_launch::exit_code::{FAILED, FINISHED, LEFT, WRONG_INPUT};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use crate::say::Unsaid;

/// How a command without an error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command's work is complete; exits with [`FINISHED`].
    Finished,
    /// The run was drained, and `--resume` continues it; exits with [`LEFT`].
    Resume,
    /// The command ends with this exit code, and has already printed what there is to know.
    Code(i32),
}

/// An error that the user can fix; exits with [`WRONG_INPUT`].
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints the error, if there is one, and chooses the exit code.
pub fn code(result: anyhow::Result<Ending>) -> ExitCode {
    let code = match result {
        Ok(Ending::Finished) => FINISHED,
        Ok(Ending::Resume) => LEFT,
        Ok(Ending::Code(code)) => code,
        Err(error) if is_broken_pipe(&error) => FINISHED,
        Err(error) => {
            let red = if std::io::stderr().is_terminal() {
                ("\x1b[31;1m", "\x1b[0m")
            } else {
                ("", "")
            };
            // A failure to write here is ignored: the exit code still tells the caller.
            let text = format!("{}error{}: {}\n", red.0, red.1, message(&error));
            let _ = std::io::stderr().write_all(text.as_bytes());
            if is_usage(&error) {
                WRONG_INPUT
            } else {
                FAILED
            }
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(FAILED as u8))
}

/// The error and its causes, without causes that it quotes already.
pub fn message(error: &anyhow::Error) -> String {
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

/// Whether the user can fix what failed; each crate decides that for its own errors.
pub fn is_usage(error: &anyhow::Error) -> bool {
    macro_rules! any_of {
        ($($room:ty),+ $(,)?) => {
            $(error.downcast_ref::<$room>().is_some_and(<$room>::is_usage))||+
        };
    }
    error.is::<Usage>()
        // A wrong configuration is always the user's to fix.
        || error.is::<fovea_run::config::Error>()
        || any_of!(
            fovea_collectives::Error,
            fovea_coordinator::Error,
            fovea_dataset::Error,
            fovea_launch::Error,
            fovea_report::Error,
            fovea_run::checkpoint::Error,
            fovea_run::metrics::Error,
            fovea_slurm::submit::Error,
            fovea_trainer::Error,
        )
}

/// Whether the reader of standard output left, as in `fovea data ... | head`: that is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Unsaid>()
        .is_some_and(Unsaid::reader_left)
}

/// Logs warnings and errors to standard error; `-v` adds information, `-vv` debugging. FOVEA_LOG overrides both.
pub fn init_logging(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let wanted = std::env::var("FOVEA_LOG").ok();
    let wanted = wanted.and_then(|directives| directives.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| level.parse().unwrap_or_default());
    let colours = std::io::stderr().is_terminal();
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        // A message that cannot be written (a full disk, a closed terminal) must not end the run.
        .log_internal_errors(false)
        .with_ansi(colours)
        .with_target(false);
    registry().with(filter).with(lines).init();
}
