//! The processes of one machine: the launcher of `fovea train`, and the keeper of one task of a job.
//!
//! This room sees processes, exit codes and the coordinator's status. It knows nothing of training.

mod child;
mod error;
pub mod exit_code;
pub mod keep;
mod launcher;

pub use error::{Error, Result};
pub use launcher::{LaunchOptions, LaunchOutcome, launch};
