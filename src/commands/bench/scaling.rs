//! `fovea bench scaling`: training steps over growing numbers of ranks.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use fovea_bench::Work;
use fovea_bench::scaling::{
    Growth, Measured, ScalingPoint, measure_rank, plot, points, shared, worlds,
};
use fovea_bench::seat::{MeetingSeat, gpus};
use fovea_collectives::Surroundings;
use fovea_run::config::Device;

use super::training::work;
use super::{ChildGuard, meeting};
use crate::cli::{BenchRankArgs, BenchScalingArgs};
use crate::commands::signals::die_with_parent;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;

/// Images of the set per image of a step.
const SETS: u32 = 2;

pub fn run(args: &BenchScalingArgs) -> anyhow::Result<Ending> {
    let gpus = gpus();
    let on_gpus = match args.work.device.into() {
        Device::Cpu => false,
        Device::Cuda => true,
        Device::Auto => gpus > 0,
    };
    let most = args.ranks.map_or_else(
        || if on_gpus { gpus.max(1) } else { cores() },
        |ranks| ranks as usize,
    );
    let worlds = worlds(most);
    let most = worlds.last().copied().unwrap_or(1);
    let mut each = Work {
        images_per_step: args.images,
        even: true,
        ..work(&args.work, args.images.saturating_mul(SETS))
    };
    if each.threads == 0 {
        // Each rank gets as many threads as in the largest world, whatever the world size.
        each.threads = (cores() / most).max(1) as u32;
    }
    let mut all = Vec::new();
    for growth in [Growth::Weak, Growth::Strong] {
        let mut measured = Vec::new();
        for &world in &worlds {
            let work = shared(&each, growth, world, most)?;
            work.config(world as u32)?;
            let same = all
                .iter()
                .find(|point: &&ScalingPoint| world == most && point.measured.ranks == most);
            measured.push(match same {
                // Weak and strong are the same measurement at the largest world size.
                Some(point) => point.measured.clone(),
                None => together(args, &work, world, on_gpus.then_some(gpus))?,
            });
        }
        all.extend(points(growth, &measured));
    }
    print(&all)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).map_err(|e| {
            Usage(format!(
                "{}: {e}\n  help: give a file in a folder that exists",
                path.display()
            ))
        })?;
    }
    if let Some(path) = &args.plot {
        plot(&all, path)?;
    }
    Ok(Ending::Finished)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measures one world size with `world` processes; the first one prints the figures of all.
fn together(
    args: &BenchScalingArgs,
    work: &Work,
    world: usize,
    gpus: Option<usize>,
) -> anyhow::Result<Measured> {
    let meeting = meeting();
    let backend = args.backend.resolve(&Surroundings {
        gpu: gpus.is_some(),
        variable: &|_| None,
    });
    let mut ranks = Vec::with_capacity(world);
    for rank in 0..world {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command
            .args(["bench", "rank"])
            .args(["--seat", &rank.to_string(), &meeting])
            .args(["--world", &world.to_string()])
            .args(["--backend", args.backend.name()])
            .args(["--work", &serde_json::to_string(work)?])
            .args(["--warm-up", &args.warm_up.to_string()])
            .args(["--steps", &args.steps.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command.envs((backend.variable)(world, gpus.unwrap_or(0), rank));
        ranks.push(ChildGuard(command.spawn().context("starting a rank")?));
    }
    wait_for_all(&mut ranks)?;
    let mut told = String::new();
    if let Some(out) = ranks.first_mut().and_then(|rank| rank.0.stdout.take()) {
        // The output is a few lines, so all of it is in the pipe.
        out.take(1 << 16)
            .read_to_string(&mut told)
            .context("reading what rank 0 found")?;
    }
    serde_json::from_str(&told).with_context(|| format!("rank 0 of {world} told {told:?}"))
}

/// Waits until all ranks have ended. When one fails, this returns at once, because the others would wait for it.
fn wait_for_all(ranks: &mut [ChildGuard]) -> anyhow::Result<()> {
    loop {
        let mut running = 0;
        for (rank, child) in ranks.iter_mut().enumerate() {
            match child.0.try_wait().context("waiting for a rank")? {
                None => running += 1,
                Some(status) if status.success() => {}
                Some(status) => anyhow::bail!(
                    "rank {rank} of {} ended with {status}\n  help: what it said is above",
                    ranks.len()
                ),
            }
        }
        if running == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The child process of `fovea bench scaling`.
pub fn rank(args: &BenchRankArgs) -> anyhow::Result<Ending> {
    die_with_parent()?;
    let [rank, meeting] = args.seat.as_slice() else {
        return Err(Usage(
            "--seat RANK MEETING\n  help: fovea bench scaling starts this".to_owned(),
        )
        .into());
    };
    let seat = MeetingSeat {
        meeting: meeting.clone(),
        rank: rank.parse().context("the rank of a child")?,
        world: args.world as usize,
    };
    let work: Work = serde_json::from_str(&args.work).context("the work of a child")?;
    let measured = measure_rank(&work, &seat, args.backend, (args.warm_up, args.steps))?;
    if seat.rank == 0 {
        say!("{}", serde_json::to_string(&measured)?)?;
    }
    Ok(Ending::Finished)
}

fn print(points: &[ScalingPoint]) -> Result<(), Unsaid> {
    if let Some(first) = points.first() {
        say!("on {}", first.measured.device)?;
    }
    say!(
        "          ranks  backend    images    step ms   p10-p90 ms        patches/s  efficiency"
    )?;
    for point in points {
        let m = &point.measured;
        let growth = match point.growth {
            Growth::Weak => "weak",
            Growth::Strong => "strong",
        };
        say!(
            "{growth:<8} {:>6}  {:<8} {:>8} {:>10.2}   {:>7.2}-{:<9.2} {:>10.1} {:>10.1} %",
            m.ranks,
            m.backend,
            m.images,
            m.step_ms.median,
            m.step_ms.p10,
            m.step_ms.p90,
            m.patches_per_s,
            100.0 * point.efficiency
        )?;
    }
    Ok(())
}
