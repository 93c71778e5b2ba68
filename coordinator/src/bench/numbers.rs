//! Quantiles, and what `/proc` says of the server.

use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};

/// How long something took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How often it was measured.
    pub count: usize,
    /// Half were at most this.
    pub p50_ms: f64,
    /// 99 of 100 were at most this.
    pub p99_ms: f64,
    /// The longest of all, in milliseconds.
    pub max_ms: f64,
}

impl Latency {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |q: f64| {
            let index = (times.len().saturating_sub(1) as f64 * q) as usize;
            times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e3)
        };
        Self {
            count: times.len(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: at(1.0),
        }
    }
}

fn proc_file(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    std::fs::read_to_string(&path).map_err(Error::file("read", path.as_ref()))
}

/// User and system time of a process so far, in seconds.
pub(super) fn cpu_s(pid: u32) -> Result<f64> {
    let stat = proc_file(pid, "stat")?;
    // The name is in parentheses and may hold anything; utime and stime are the 12th and 13th behind it.
    let behind = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Largest resident memory of a process so far, in MiB.
pub(super) fn peak_mib(pid: u32) -> Result<f64> {
    let status = proc_file(pid, "status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<f64>().ok());
    Ok(kib.unwrap_or_default() / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_this_process() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let latency = Latency::of(times);
        assert_eq!(
            (latency.count, latency.p50_ms, latency.p99_ms),
            (100, 50.0, 99.0)
        );
        assert_eq!(latency.max_ms, 100.0);
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        assert!(peak_mib(std::process::id()).unwrap() > 0.0);
        assert!(cpu_s(std::process::id()).unwrap() >= 0.0);
    }
}
