//! Tests of the configuration: reading, the table, schedule and stopping.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod messages;
mod overrides;
mod roundtrip;
mod rules;
mod schedule;
mod stages;
