//! `fovea bench kernels` and `fovea gpu-check`: measures and checks a GPU.

use fovea_bench::{Check, CheckReport, GpuFacts, KernelFigures, check_gpu, measure_kernels};
use fovea_launch::exit_code::FAILED;

use crate::cli::{BenchKernelsArgs, GpuCheckArgs};
use crate::exit::Ending;
use crate::say;
use crate::say::Unsaid;
use crate::show::gigabytes;

pub fn kernels(args: &BenchKernelsArgs) -> anyhow::Result<Ending> {
    let figures = measure_kernels(args.gpu, args.repeats as usize)?;
    if args.json {
        let mut value = serde_json::to_value(&figures)?;
        value["libtorch"] = libtorch().into();
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        print_kernels(&figures)?;
    }
    Ok(Ending::Finished)
}

pub fn check(args: &GpuCheckArgs) -> anyhow::Result<Ending> {
    let report = check_gpu(args.gpu, args.cases, args.seed, !args.kernels_only)?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["libtorch"] = libtorch().into();
        value["passed"] = report.passed().into();
        say!("{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        print_checks(&report)?;
    }
    Ok(match report.passed() {
        true => Ending::Finished,
        false => Ending::Code(FAILED),
    })
}

/// Version of the libtorch in this process, for the report.
fn libtorch() -> String {
    let version = crate::libtorch::libtorch().version;
    version.map_or_else(
        || "of unknown version".to_owned(),
        |version| version.to_string(),
    )
}

fn print_facts(gpu: &GpuFacts) -> Result<(), Unsaid> {
    let told = |mhz: Option<u32>| mhz.map_or_else(|| "?".to_owned(), |mhz| mhz.to_string());
    say!(
        "gpu       {}, compute capability {}, {}, {} multiprocessors",
        gpu.name,
        gpu.compute_capability,
        gigabytes(gpu.memory_bytes),
        gpu.multiprocessors
    )?;
    say!(
        "clock     {} MHz of at most {}",
        told(gpu.sm_clock_mhz),
        told(gpu.max_sm_clock_mhz)
    )?;
    say!(
        "software  driver {} for CUDA {}, NVRTC {}, libtorch {}",
        gpu.driver.as_deref().unwrap_or("?"),
        gpu.cuda,
        gpu.nvrtc,
        libtorch()
    )
}

fn print_kernels(figures: &KernelFigures) -> Result<(), Unsaid> {
    print_facts(&figures.gpu)?;
    say!(
        "copy      {:.0} GB/s read and written; medians of {}",
        figures.copy_gb_s,
        figures.repeats
    )?;
    say!(
        "kernel                   on                              ms     GB/s  of copy  libtorch ms  ratio"
    )?;
    for f in &figures.kernels {
        say!(
            "{:<24} {:<24} {:>9.4} {:>8.0} {:>7.0} % {:>12.4} {:>6.2}",
            f.name,
            f.shape,
            f.ms,
            f.gb_s,
            100.0 * f.of_copy,
            f.composed_ms,
            f.ratio
        )?;
    }
    Ok(())
}

fn print_checks(report: &CheckReport) -> Result<(), Unsaid> {
    print_facts(&report.gpu)?;
    for check in &report.checks {
        let Check {
            name,
            cases,
            deviation,
            limit,
            ..
        } = check;
        let verdict = if check.passed { "passed" } else { "FAILED" };
        let bits = if check.same_bits { ", same bits" } else { "" };
        say!(
            "{verdict}  {name:<24} {cases:>4} x  off by {deviation:.1e}, limit {limit:.0e}{bits}"
        )?;
        if let Some(problem) = &check.problem {
            say!("        {problem}")?;
        }
    }
    Ok(())
}
