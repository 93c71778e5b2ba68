//! Prepares a raw dataset and prints its labels, the speed and the peak memory:
//! `cargo run --release -p fovea-dataset --example prepare -- SRC OUT [WORKERS [SIZE PATCH [GROUP_BY]]]`

use std::path::Path;
use std::time::Instant;

use fovea_dataset::{Bar, Dataset, MosaicOptions, PrepareOptions, mosaic, prepare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [src, out, rest @ ..] = &args[..] else {
        return Err("usage: prepare SRC OUT [WORKERS [SIZE PATCH [GROUP_BY]]]".into());
    };
    let workers = rest.first().map_or(Ok(0), |n| n.parse())?;
    let mut options = PrepareOptions {
        workers,
        ..PrepareOptions::default()
    };
    if let [_, size, patch, group_by @ ..] = rest {
        (options.size, options.patch) = (size.parse()?, patch.parse()?);
        options.group_by = group_by.first().cloned();
    }
    let begin = Instant::now();
    let manifest = prepare(
        Path::new(src),
        Path::new(out),
        &options,
        &Bar::new("prepare"),
    )
    .inspect_err(|e| eprintln!("error: {e}"))?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", manifest.label_table());
    let images = manifest.images.len();
    println!(
        "{images} images in {seconds:.2} s: {:.1} images/s",
        images as f64 / seconds
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("peak memory {}", peak.unwrap_or("unknown"));
    let data = Dataset::open(Path::new(out))?;
    mosaic(
        &data,
        &Path::new(out).with_extension("mosaic.png"),
        &MosaicOptions::default(),
    )?;
    Ok(())
}
