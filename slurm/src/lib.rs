//! What Fovea knows of SLURM, and nothing of training: the batch script that is submitted, the environment
//! of a job, how many ranks start on which nodes, what happens when a job has ended, and what to ask the
//! scheduler's commands.
//!
//! Pure but for [`client`], which runs those commands, and the files that are read by name.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

pub mod doctor;
pub mod filesystem;
pub mod interfaces;
pub mod scratch;

/// "12.0 GB".
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
