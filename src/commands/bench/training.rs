//! `fovea bench step` and `fovea bench epoch`: the speed of training.

use fovea_bench::{EpochFigures, Spread, StepFigures, Work, measure_epoch, measure_steps};

use crate::cli::{BenchEpochArgs, BenchStepArgs, WorkArgs};
use crate::exit::Ending;
use crate::say;
use crate::say::Unsaid;
use crate::show::gigabytes;

/// Images of the set per image of a step: enough that an image is seldom in two consecutive steps.
const SETS: u32 = 4;

pub fn step(args: &BenchStepArgs) -> anyhow::Result<Ending> {
    let work = Work {
        images_per_step: args.images,
        even: true,
        ..work(&args.work, args.images.saturating_mul(SETS))
    };
    let figures = measure_steps(&work, args.warm_up, args.steps)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&figures)?)?;
    } else {
        print_step(&figures)?;
    }
    Ok(Ending::Finished)
}

pub fn epoch(args: &BenchEpochArgs) -> anyhow::Result<Ending> {
    let work = Work {
        images_per_step: args.images_per_step,
        ..work(&args.work, args.images)
    };
    let figures = measure_epoch(&work)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&figures)?)?;
    } else {
        print_epoch(&figures)?;
    }
    Ok(Ending::Finished)
}

/// The work that the options describe, on a set of this many images.
pub(super) fn work(args: &WorkArgs, images: u32) -> Work {
    Work {
        device: args.device.into(),
        images,
        size: args.size,
        patch: args.patch,
        global_size: args.global_size,
        images_per_step: 1,
        patches_per_image: args.patches,
        virtual_shards: args.virtual_shards,
        precision: args.precision.into(),
        threads: args.threads,
        cuda_graphs: args.cuda_graphs,
        even: false,
    }
}

fn milliseconds(ms: &Spread) -> String {
    format!(
        "median {:.2} ms, p10 {:.2} ms, p90 {:.2} ms",
        ms.median, ms.p10, ms.p90
    )
}

fn print_step(f: &StepFigures) -> Result<(), Unsaid> {
    say!("device       {}", f.device)?;
    say!(
        "work         {} images of {} px with {} patches of {} px, {}, {} virtual shards{}, {:.1} GFLOP",
        f.images,
        f.global_size,
        f.patches_per_image,
        f.patch,
        f.precision,
        f.virtual_shards,
        if f.cuda_graphs { ", CUDA graphs" } else { "" },
        f.gflop
    )?;
    say!(
        "step         {} ({} steps)",
        milliseconds(&f.step_ms),
        f.steps
    )?;
    say!("throughput   {:.1} patches/s", f.patches_per_s)?;
    say!("arithmetic   {:.3} TFLOP/s", f.tflop_per_s)?;
    if let Some(share) = f.gpu_share {
        say!("on the GPU   {:.1} % of the time", 100.0 * share)?;
    }
    say!("loss         {:.5}", f.loss)
}

fn print_epoch(f: &EpochFigures) -> Result<(), Unsaid> {
    say!("device       {}", f.device)?;
    say!(
        "work         {} images of {} px, {} patches, {}",
        f.images,
        f.size,
        f.patches,
        f.precision
    )?;
    say!("set-up       {:.1} s", f.set_up_s)?;
    say!("epoch        {:.2} s, {} steps", f.seconds, f.steps)?;
    say!("step         {}", milliseconds(&f.step_ms))?;
    say!("throughput   {:.1} patches/s", f.patches_per_s)?;
    say!("peak memory  {}", gigabytes(f.peak_bytes))?;
    say!("loss         {:.5} to {:.5}", f.loss[0], f.loss[1])
}
