//! `fovea status`

use std::path::Path;

use fovea_coordinator::client::status_of;
use fovea_coordinator::rundir::INFO_FILE;
use fovea_coordinator::status::{STATUS_FILE, Status};
use fovea_trainer::run_dir::RunDir;

use crate::cli::StatusArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;
use crate::show;

pub fn run(args: &StatusArgs) -> anyhow::Result<Ending> {
    check(&args.run)?;
    let (status, live) = status_of(&args.run).map_err(fovea_trainer::Error::from)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        print(&status, live)?;
    }
    Ok(Ending::Finished)
}

/// Refuses what holds nothing to show.
fn check(run: &Path) -> Result<(), Usage> {
    let path = run.display();
    let problem = if !run.exists() {
        "there is no such directory"
    } else if !run.is_dir() {
        "this is a file, not a run directory"
    } else if !RunDir::new(run).config().is_file() {
        "this is not a run directory: it has no config.toml"
    } else if !run.join(STATUS_FILE).is_file() && !run.join(INFO_FILE).is_file() {
        return Err(Usage(format!(
            "{path}: this run has not begun yet, so it has no status\n  help: wait a moment, or see {path}/logs"
        )));
    } else {
        return Ok(());
    };
    Err(Usage(format!(
        "{path}: {problem}\n  help: give the directory that `fovea train --out` wrote, it holds config.toml"
    )))
}

fn print(status: &Status, live: bool) -> Result<(), Unsaid> {
    let state = format!("{:?}", status.state).to_lowercase();
    let seen = if live || status.state.is_over() {
        ""
    } else {
        " when last seen: no coordinator answers"
    };
    say!("state        {state}{seen}")?;
    say!("why          {}", status.reason)?;
    say!(
        "epoch        {} of {}",
        (status.epoch + 1).min(status.epochs),
        status.epochs
    )?;
    say!("step         {}", status.step)?;
    say!(
        "samples      {} of {} in this epoch",
        status.cursor,
        status.samples_total
    )?;
    if let Some(loss) = status.loss {
        say!("loss         {loss:.4}")?;
    }
    say!("throughput   {:.1} patches/s", status.samples_per_s)?;
    if let Some(eta) = status.eta_s {
        say!("ETA          {}", show::duration(eta))?;
    }
    match &status.checkpoint {
        Some(c) => say!(
            "checkpoint   step {}: {}\n             weights_blake3 {}",
            c.step,
            c.path,
            c.weights_blake3
        )?,
        None => say!("checkpoint   none yet")?,
    }
    if let Some(last) = &status.last_epoch {
        let figures: Vec<String> = last
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {value:.3}"))
            .collect();
        say!("epoch {:<6} {}", last.epoch, figures.join("  "))?;
    }
    for rank in &status.ranks {
        say!("{}", show::rank_line(rank))?;
    }
    if status.ranks_left_out > 0 {
        say!("             and {} more ranks", status.ranks_left_out)?;
    }
    let turned = &status.turned;
    if turned.dropped_connections > 0 {
        say!(
            "turned away  {} connections: {} malformed frames, {} without the token",
            turned.dropped_connections,
            turned.malformed_frames,
            turned.refused_tokens
        )?;
    }
    Ok(())
}
