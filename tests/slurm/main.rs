//! Jobs on a real Slurm: Debian's packages and two slurmd on this machine, with nothing imitated.
//!
//! Set-up installs the packages when it may (`scripts/setup.sh`). Without them these tests fail, and report what to
//! install. `FOVEA_TEST_SLURM=off` skips them; `FOVEA_TEST_NAMESPACES=off` skips only those that need root to give each
//! node its own network and processes. Standard error names the skipped tests.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, reason = "the bed can do more than one list of tests needs")]

mod apart;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod config;
mod control;
mod fixture;
mod job;
mod jobs;
mod need;
mod nodes;
mod process;
mod submitted;
