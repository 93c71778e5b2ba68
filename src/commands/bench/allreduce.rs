//! `fovea bench allreduce`: the speed of sums between ranks.

use std::process::{Command, Stdio};

use anyhow::Context;
use fovea_bench::allreduce::{measure, measure_on_gpus};
use fovea_bench::seat::{MeetingSeat, gpus, join, join_by, launched, open_gpu};

use super::{ChildGuard, meeting};
use crate::cli::BenchAllreduceArgs;
use crate::commands::signals::die_with_parent;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show;

/// Measures as rank 0 and starts the other ranks, unless a launcher has started them all.
pub fn run(args: &BenchAllreduceArgs) -> anyhow::Result<Ending> {
    if args.from > args.to {
        return Err(Usage(format!(
            "bench allreduce: --from {} is larger than --to {}\n  help: fovea bench allreduce --from 64K --to 64M",
            args.from, args.to
        ))
        .into());
    }
    let mut seat = MeetingSeat {
        meeting: meeting(),
        rank: 0,
        world: args.ranks as usize,
    };
    let mut others = Vec::new();
    match args.seat.as_deref() {
        Some([rank, meeting]) => {
            die_with_parent()?;
            seat.rank = rank.parse().context("the rank of a child")?;
            seat.meeting.clone_from(meeting);
        }
        _ if launched().is_none() => {
            for rank in 1..seat.world {
                others.push(another_rank(args, rank, &seat.meeting)?);
            }
        }
        _ => {}
    }
    let mut ranks = join(&seat)?;
    let sizes: Vec<u64> = std::iter::successors(Some(args.from), |size| size.checked_mul(4))
        .take_while(|size| *size <= args.to)
        .collect();
    let repeats = args.repeats as usize;
    let figures = if args.on_gpus() {
        let kernels = open_gpu(ranks.rank())?;
        ranks = join_by(args.backend, ranks, Some(&kernels))?;
        measure_on_gpus(ranks.as_mut(), &kernels, &sizes, repeats)?
    } else {
        measure(ranks.as_mut(), &sizes, repeats)?
    };
    if ranks.rank() > 0 {
        return Ok(Ending::Finished);
    }
    let (backend, world) = (ranks.name(), ranks.world());
    if args.json {
        let value = serde_json::json!({ "backend": backend, "ranks": world, "sizes": figures });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        say!(
            "all-reduce of f32 over {}, backend {backend}",
            show::counted(world, "rank")
        )?;
        say!("       bytes        ms    min ms  algbw GB/s  busbw GB/s")?;
        for f in &figures {
            say!(
                "{:>12}{:>10.3}{:>10.3}{:>12.3}{:>12.3}",
                f.bytes,
                f.ms,
                f.min_ms,
                f.algbw_gb_s,
                f.busbw_gb_s
            )?;
        }
    }
    for mut other in others {
        other.0.wait().context("waiting for the other ranks")?;
    }
    Ok(Ending::Finished)
}

fn another_rank(
    args: &BenchAllreduceArgs,
    rank: usize,
    meeting: &str,
) -> anyhow::Result<ChildGuard> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["bench", "allreduce"]);
    for (name, value) in [
        ("--ranks", u64::from(args.ranks)),
        ("--from", args.from),
        ("--to", args.to),
        ("--repeats", u64::from(args.repeats)),
    ] {
        command.arg(name).arg(value.to_string());
    }
    if let Some(backend) = args.backend.entry() {
        command
            .args(["--backend", backend.name])
            .envs((backend.variable)(args.ranks as usize, gpus(), rank));
    }
    command.arg("--seat").arg(rank.to_string()).arg(meeting);
    let child = command.stdin(Stdio::null()).spawn();
    Ok(ChildGuard(child.context("starting another rank")?))
}
