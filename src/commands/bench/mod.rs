//! `fovea bench`: measures parts of the system on this machine.

mod allreduce;
pub mod gpu;
mod scaling;
mod training;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use fovea_coordinator::bench::{self, Latency, Load, LoadMeasurement};

use crate::cli::{BenchArgs, BenchCommand, BenchCoordinatorArgs, BenchServerArgs};
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;

pub fn run(args: &BenchArgs) -> anyhow::Result<Ending> {
    match &args.what {
        BenchCommand::Coordinator(args) => coordinator(args),
        BenchCommand::Allreduce(args) => allreduce::run(args),
        BenchCommand::Kernels(args) => gpu::kernels(args),
        BenchCommand::Step(args) => training::step(args),
        BenchCommand::Epoch(args) => training::epoch(args),
        BenchCommand::Scaling(args) => scaling::run(args),
        BenchCommand::Rank(args) => scaling::rank(args),
        BenchCommand::Server(args) => server(args),
    }
}

/// A name under which only the ranks of one measurement meet.
fn meeting() -> String {
    format!(
        "bench-{}-{:?}",
        std::process::id(),
        std::time::SystemTime::now()
    )
}

/// The child process of `fovea bench coordinator`.
fn server(args: &BenchServerArgs) -> anyhow::Result<Ending> {
    super::signals::die_with_parent()?;
    bench::serve(&args.run, args.members)?;
    Ok(Ending::Finished)
}

fn coordinator(args: &BenchCoordinatorArgs) -> anyhow::Result<Ending> {
    let load = load(args)?;
    fovea_coordinator::server::raise_file_limit(load.world + load.spares)?;
    let dir = std::env::temp_dir().join(format!("fovea-bench-{}", std::process::id()));
    let measured = measure(&dir, load);
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        tracing::debug!("{}: {error}", dir.display());
    }
    let measured = measured?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&measured)?)?;
    } else {
        print(&measured)?;
    }
    Ok(Ending::Finished)
}

/// The load to simulate: the world is the largest power of two among the members, and the others stand by.
fn load(args: &BenchCoordinatorArgs) -> anyhow::Result<Load> {
    let step = args.step.as_secs_f64();
    if args.members == 0 || args.seconds == 0 || step <= 0.0 || !(0.0..=100.0).contains(&args.fail)
    {
        return Err(Usage(
            "bench coordinator: --members, --seconds and --step have to be above 0, --fail from 0 to 100\n  help: fovea bench coordinator --members 1000 --seconds 60".to_owned(),
        )
        .into());
    }
    let world = 1 << args.members.ilog2();
    Ok(Load {
        world,
        spares: args.members - world,
        lasts: std::time::Duration::from_secs(args.seconds),
        step: args.step,
        fail_per_minute: args.fail / 100.0,
    })
}

fn measure(dir: &Path, load: Load) -> anyhow::Result<LoadMeasurement> {
    let program = std::env::current_exe().context("finding this program")?;
    let child = Command::new(program)
        .args(["bench", "server"])
        .arg(dir)
        .arg(load.world.to_string())
        .stdin(Stdio::null())
        .spawn()
        .context("starting the server's process")?;
    let mut child = ChildGuard(child);
    let measured = bench::load(dir, child.0.id(), load)?;
    child.0.wait().context("waiting for the server's process")?;
    Ok(measured)
}

/// A child process that ends with its measurement.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn print(m: &LoadMeasurement) -> Result<(), Unsaid> {
    let latency = |l: &Latency| {
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} times)",
            l.p50_ms, l.p99_ms, l.max_ms, l.count
        )
    };
    say!(
        "members            {} ranks and {} that stand by, heartbeats every {} ms",
        m.world,
        m.spares,
        m.heartbeat_ms
    )?;
    say!(
        "rendezvous         {:.2} s, {:.2} CPU s of the server",
        m.rendezvous_s,
        m.cpu_rendezvous_s
    )?;
    say!("steps              {}", m.steps)?;
    say!("last vote, commit  {}", latency(&m.vote))?;
    say!(
        "failures           {} in {} generations",
        m.failures,
        m.generations
    )?;
    say!("failure, commit    {}", latency(&m.recovery))?;
    say!(
        "server             {:.4} CPU s per step, {:.1} % of a core, peak memory {:.1} MiB",
        m.cpu_s_per_step,
        100.0 * m.cpu_share,
        m.peak_memory_mib
    )
}
