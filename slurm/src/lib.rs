//! Everything that Fovea knows of Slurm, and nothing of training: the batch script, a job's environment, how many ranks
//! start on which nodes, the next action after a job's end, and how to query the scheduler.
//!
//! The modules are pure, except for thin layers around the scheduler's commands, the system's facts and a run's files.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

pub mod client;
pub mod doctor;
pub mod env;
pub mod filesystem;
pub mod history;
pub mod hostlist;
pub mod interfaces;
pub mod launcher;
pub mod next;
pub mod plan;
pub mod scratch;
pub mod script;
pub mod site;
pub mod submit;
pub mod time;

/// A size in decimal units: `999 bytes`, `1.5 MB`, `12.0 GB`.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
