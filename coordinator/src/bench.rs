//! A real coordinator under the load of many simulated members: `fovea bench coordinator`.
//!
//! The server runs in its own process, which separates its time and memory from those of the
//! members, which are tasks of this process. Members do what trainers do: join, report that they are
//! ready, send heartbeats at the prescribed interval, and vote in lockstep. Some fail, by
//! closing the connection, and return as new ones.

mod member;
mod numbers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use numbers::Latency;

use self::member::{MemberContext, SimulatedMember};
use crate::client::{Endpoint, Observer};
use crate::error::{Error, Result};
use crate::rundir::RunLock;
use crate::server::{RunOutcome, Server, ServerOptions};

/// Epochs that no measurement gets to the end of.
const EPOCHS: u32 = 1_000_000;
/// How long the server may take to come up and all members to meet.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The simulated run: how many members, for how long, with which faults.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Ranks of the run; also its virtual shards.
    pub world: usize,
    /// Members beyond them, which stand by.
    pub spares: usize,
    /// How long steps are taken after the first rendezvous.
    pub lasts: Duration,
    /// From one step to the next.
    pub step: Duration,
    /// Part of the members that fails in a minute.
    pub fail_per_minute: f64,
}

/// Measured latencies, counts and sizes of one simulated run.
#[derive(Clone, Debug, Serialize)]
pub struct LoadMeasurement {
    /// Ranks that vote for a step.
    pub world: usize,
    /// Members beyond `world`, which stand by for a lost rank.
    pub spares: usize,
    /// Steps that the coordinator committed.
    pub steps: u64,
    /// From the first connection to the first generation of all ranks, in seconds.
    pub rendezvous_s: f64,
    /// From the last vote sent to the commit received, over all ranks and steps.
    pub vote: Latency,
    /// From a failure to the first commit after it.
    pub recovery: Latency,
    /// Members that failed, as `Load::fail_per_minute` asks.
    pub failures: u64,
    /// Processor time of the server from the first generation on, user and system, per step.
    pub cpu_s_per_step: f64,
    /// The same as a part of the time that passed: 1.0 is one core.
    pub cpu_share: f64,
    /// Processor time of the server until the first generation, in seconds.
    pub cpu_rendezvous_s: f64,
    /// Largest resident memory of the server, in MiB.
    pub peak_memory_mib: f64,
    /// Generations that formed, the first included.
    pub generations: u64,
    /// Interval of the heartbeats, in milliseconds.
    pub heartbeat_ms: u32,
}

/// The server's part, in a process of its own: serves until the run is over.
pub fn serve(run_dir: &Path, world: usize) -> Result<RunOutcome> {
    crate::server::raise_file_limit(2 * world + 256)?;
    let options = ServerOptions::new(run_dir, world, world, EPOCHS);
    let lock = RunLock::acquire(run_dir)?;
    let server = Server::bind(options, lock)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(server.run(std::future::pending()))
}

/// The members' part: loads the server of `run_dir`, which is process `pid`, and stops it.
pub fn load(run_dir: &Path, pid: u32, load: Load) -> Result<LoadMeasurement> {
    crate::server::raise_file_limit(load.world + load.spares)?;
    let deadline = Instant::now() + START_TIMEOUT;
    let endpoint = Endpoint::RunDir(run_dir.to_path_buf());
    let mut launcher = Observer::connect_launcher(&endpoint, deadline)?;
    let info = crate::rundir::CoordinatorInfo::load(run_dir)?;
    let token = crate::token::Token::load(run_dir)?;
    let shared = Arc::new(MemberContext::new(info.addr, token, load));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(drive(&shared, pid));
    let status = launcher.status();
    let _ = launcher.shutdown("the measurement is over");
    let (mut measured, status) = (measured?, status?);
    measured.generations = status.generation;
    Ok(measured)
}

async fn drive(shared: &Arc<MemberContext>, pid: u32) -> Result<LoadMeasurement> {
    let load = shared.load;
    let begun = Instant::now();
    let ends = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..load.world + load.spares {
        let member = SimulatedMember::new(number as u32, Arc::clone(shared));
        tasks.spawn(member.run(Arc::clone(&ends)));
    }
    while shared.generation() == 0 {
        if begun.elapsed() > START_TIMEOUT {
            return Err(Error::Timeout {
                what: format!("{} members to meet", load.world),
                waited_ms: begun.elapsed().as_millis() as u64,
                help: "measure fewer members",
            });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (rendezvous, cpu_before) = (begun.elapsed(), numbers::cpu_s(pid)?);
    let started = Instant::now();
    tokio::time::sleep(load.lasts).await;
    let (cpu, passed) = (numbers::cpu_s(pid)? - cpu_before, started.elapsed());
    let peak_memory_mib = numbers::peak_mib(pid)?;
    ends.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    let tally = shared.tally();
    let steps = tally.steps;
    Ok(LoadMeasurement {
        world: load.world,
        spares: load.spares,
        steps,
        rendezvous_s: rendezvous.as_secs_f64(),
        vote: Latency::of(tally.votes),
        recovery: Latency::of(tally.recoveries),
        failures: tally.failures,
        cpu_s_per_step: cpu / steps.max(1) as f64,
        cpu_share: cpu / passed.as_secs_f64(),
        cpu_rendezvous_s: cpu_before,
        peak_memory_mib,
        generations: 0,
        heartbeat_ms: tally.heartbeat_ms,
    })
}
