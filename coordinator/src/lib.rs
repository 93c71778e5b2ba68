//! The coordinator: who takes part, in what order samples are used, which of them are committed.
//!
//! Pure rooms, with time as an argument: [`order`], [`membership`], [`progress`], [`audit`]. Bytes on the wire:
//! [`protocol`], [`codec`]. Bytes on disk: [`journal`], [`ledger`], [`status`], [`rundir`]. The thin
//! shells around them: [`server`] for the coordinator, [`client`] for everyone else.
//!
//! This crate knows nothing of tensors, models or shards: the trainer hands it plain numbers.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a panic is how a test fails")
)]

pub mod audit;
pub mod bench;
pub mod client;
pub mod codec;
mod error;
mod files;
pub mod host;
mod ids;
pub mod journal;
pub mod ledger;
pub mod membership;
pub mod order;
pub mod progress;
pub mod protocol;
mod records;
pub mod rundir;
pub mod server;
pub mod status;
pub mod token;

pub use error::{Error, Result};
pub use records::{Contents, Torn};
