//! Thresholds and temperatures: how probabilities become decisions, chosen on a validation split after training.
//!
//! A **temperature** divides the logits of a class (of a target with exactly one class per sample: all logits of the
//! target), so that probabilities mean what they say (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017);
//! a **threshold** is the probability from which a class counts as predicted. Neither changes the order of the samples,
//! so areas under curves stay what they are (but for probabilities that rounding makes equal).
//!
//! [`threshold`] and [`temperature`] are pure; [`record`] is the file that keeps both beside a checkpoint.

#![cfg_attr(
    test,
    expect(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

pub mod record;
pub mod temperature;
pub mod threshold;

#[cfg(test)]
mod golden;

pub use record::{FORMAT_VERSION, Member, TargetTuning, Tuning, TuningScores, beside};
pub use threshold::Rule;
