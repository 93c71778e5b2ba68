//! Faults in real runs: processes are killed, stopped, hung and asked to leave, connections dropped and delayed, files
//! damaged, disks filled, clocks moved. Whatever happens, the run must end with the weights of an undisturbed one, and
//! must use every sample of every epoch once.
//!
//! `make chaos` runs the long storm (`FOVEA_CHAOS_FAULTS`, `FOVEA_CHAOS_SEED`; `FOVEA_CHAOS_ONLY=preemption` restricts
//! it to faults with that word in their name); `make test` runs a short one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;
mod fault;
mod hands;
mod storm;

use storm::Storm;

/// One fault of each kind, in a fixed order.
#[test]
fn a_short_storm() {
    let _turn = common::turn();
    let mut storm = Storm::new(1);
    for fault in fault::ALL {
        storm.inject(fault);
    }
    storm.end();
}

/// The requested number of random faults, at random moments.
#[test]
#[ignore = "takes many minutes: `make chaos`"]
fn a_long_storm() {
    let number = |name: &str, default: u64| {
        let text = std::env::var(name).unwrap_or_default();
        text.parse().unwrap_or(default)
    };
    let mut storm = Storm::new(number("FOVEA_CHAOS_SEED", 1));
    let only = std::env::var("FOVEA_CHAOS_ONLY").unwrap_or_default();
    assert!(
        fault::ALL
            .iter()
            .any(|f| f.what.to_string().contains(&only)),
        "no fault is called {only:?}"
    );
    for _ in 0..number("FOVEA_CHAOS_FAULTS", 200) {
        let fault = storm.any_fault(&only);
        storm.inject(fault);
    }
    storm.end();
}
