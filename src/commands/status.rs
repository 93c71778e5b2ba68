//! `fovea status`: shows the state of a run, or of the runs of an array.

use std::path::Path;

use fovea_coordinator::client::status_of;
use fovea_coordinator::rundir::INFO_FILE;
use fovea_coordinator::status::{RunState, STATUS_FILE, Status};
use fovea_run::run_dir::RunDir;

use super::scheduled::Scheduled;
use crate::cli::StatusArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::say::Unsaid;
use crate::show;

pub fn run(args: &StatusArgs) -> anyhow::Result<Ending> {
    let scheduled = Scheduled::load(&args.run);
    if scheduled.is_of_array(&args.run) {
        elements(&args.run, &scheduled, args.json)?;
        return Ok(Ending::Finished);
    }
    let begun = match check(&args.run) {
        Ok(()) => true,
        // A job that waits, or that failed before training began, has only its scheduler state to show.
        Err(_) if scheduled.is_any() => false,
        Err(error) => return Err(error.into()),
    };
    let found = match begun {
        true => Some(status_of(&args.run)?),
        false => None,
    };
    if args.json {
        let mut value = match &found {
            Some((status, _)) => serde_json::to_value(status)?,
            None => serde_json::json!({}),
        };
        value["slurm"] = scheduled.to_json();
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(Ending::Finished);
    }
    match &found {
        Some((status, live)) => print(status, *live, &scheduled)?,
        None => say!("state        not begun")?,
    }
    scheduled.print()?;
    let finished = |(status, _): &(Status, bool)| status.state == RunState::Finished;
    if !found.as_ref().is_some_and(finished) {
        scheduled.print_next(&args.run)?;
    }
    Ok(Ending::Finished)
}

/// Prints a line for each element of an array.
fn elements(base: &Path, scheduled: &Scheduled, json: bool) -> anyhow::Result<()> {
    let mut runs: Vec<(u32, std::path::PathBuf)> = std::fs::read_dir(base)
        .map_err(|e| Usage(format!("{}: {e}", base.display())))?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    runs.sort();
    if json {
        let each = runs.iter().map(|(element, run)| {
            let status = Status::load(run).ok();
            serde_json::json!({
                "element": element,
                "status": status,
                "slurm": Scheduled::history_of(run),
            })
        });
        let elements: Vec<_> = each.collect();
        let value = serde_json::json!({ "slurm": scheduled.to_json(), "elements": elements });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    scheduled.print()?;
    for (element, run) in &runs {
        let last = Scheduled::last_words(run);
        match Status::load(run) {
            Ok(status) => say!(
                "element {element:<5} {:<10} epoch {} of {}  step {:<7} {last}",
                format!("{:?}", status.state).to_lowercase(),
                (status.epoch + 1).min(status.epochs),
                status.epochs,
                status.step,
            )?,
            Err(_) => say!("element {element:<5} not begun  {last}")?,
        }
    }
    Ok(())
}

/// Refuses a directory that has nothing to show.
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

fn print(status: &Status, live: bool, scheduled: &Scheduled) -> Result<(), Unsaid> {
    let state = format!("{:?}", status.state).to_lowercase();
    let seen = if live || status.state.is_over() {
        ""
    } else {
        " when last seen: no coordinator answers"
    };
    say!("state        {state}{seen}")?;
    say!("why          {}", status.reason)?;
    say!(
        "epoch        {} of {}{}",
        (status.epoch + 1).min(status.epochs),
        status.epochs,
        if status.stopped_early() {
            ": stopped early (early_stopping.patience)"
        } else {
            ""
        }
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
    // Ranks that have left have no state to show.
    let over = status.state.is_over();
    if !over {
        say!("throughput   {:.1} patches/s", status.samples_per_s)?;
    }
    if let Some(eta) = status.eta_s.filter(|_| !over) {
        say!(
            "ETA          {}{}",
            show::duration(eta),
            scheduled.beyond(eta)
        )?;
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
    if let Some(why) = &status.unsaved {
        say!("NOT SAVED    {why}")?;
    }
    if let Some(last) = &status.last_epoch {
        let figures: Vec<String> = last
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {value:.3}"))
            .collect();
        say!("epoch {:<6} {}", last.epoch, figures.join("  "))?;
        if let Some(why) = &last.undefined {
            say!(
                "UNDEFINED    {why}; epoch {} cannot be the best one",
                last.epoch
            )?;
        }
    }
    for rank in status.ranks.iter().filter(|_| !over) {
        say!("{}", show::rank_line(rank))?;
    }
    if status.ranks_left_out > 0 && !over {
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
