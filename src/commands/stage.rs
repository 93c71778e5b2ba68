//! `fovea stage`: copies a prepared dataset to a disk of this node, or removes the copy.

use std::path::{Path, PathBuf};

use fovea_dataset::stage::{
    StageOptions, StageOutcome, UnstageOutcome, stage, staged_dir, unstage,
};
use fovea_dataset::{Manifest, Silent};
use fovea_slurm::scratch;
use fovea_slurm::site::Site;

use crate::cli::StageArgs;
use crate::exit::Ending;
use crate::say;
use crate::show::{counted, duration, gigabytes};

/// The value of `--to` and `--staged` that leaves the choice to fovea.
const AUTO: &str = "auto";

pub fn run(args: &StageArgs) -> anyhow::Result<Ending> {
    let node = std::env::var("SLURMD_NODENAME").map_or(String::new(), |name| format!("{name}: "));
    let line = if args.remove {
        remove(args)?
    } else {
        copy(args)?
    };
    say!("{node}{line}")?;
    Ok(Ending::Finished)
}

/// Directories where copies may lie: the named ones, and all usual ones for [`AUTO`].
pub fn places(scratch: &[String]) -> Vec<PathBuf> {
    candidates(scratch).into_iter().map(|c| c.dir).collect()
}

fn candidates(scratch: &[String]) -> Vec<scratch::Candidate> {
    let mut named: Vec<String> = scratch.iter().filter(|dir| *dir != AUTO).cloned().collect();
    let usual = named.len() < scratch.len();
    if usual {
        // Commands that need the site file report an unreadable one; this one ignores it.
        named.extend(Site::load().map_or_else(|_| Vec::new(), |site| site.scratch));
    }
    scratch::candidates(&named, usual, &|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    })
}

fn copy(args: &StageArgs) -> anyhow::Result<String> {
    let manifest = Manifest::load(&args.data)?;
    let options = StageOptions::default();
    let scratch = match choose(args, &manifest, &options) {
        Ok(scratch) => scratch,
        Err(reasons) => {
            return Ok(format!(
                "not staged, no disk of this node will do: {reasons}"
            ));
        }
    };
    let begun = std::time::Instant::now();
    let outcome = stage(&args.data, &scratch, &options, &Silent)?;
    Ok(match outcome {
        StageOutcome::Staged {
            dir,
            bytes,
            copied,
            kept,
        } => format!(
            "staged {} in {} to {} ({copied} copied, {kept} there already, {})",
            gigabytes(bytes),
            counted(copied + kept, "shard"),
            dir.display(),
            duration(begun.elapsed().as_secs_f64())
        ),
        StageOutcome::Skipped { needed, free } => format!(
            "not staged, no room in {}: {} needed, {} free",
            scratch.display(),
            gigabytes(needed),
            gigabytes(free)
        ),
    })
}

/// A directory that already has a copy, else one with room, else the reasons against all.
fn choose(
    args: &StageArgs,
    manifest: &Manifest,
    options: &StageOptions,
) -> Result<PathBuf, String> {
    let facts = scratch::look(candidates(&args.to));
    let has_copy = |dir: &&Path| staged_dir(dir, manifest).exists();
    let dirs = facts.iter().map(|fact| fact.candidate.dir.as_path());
    if let Some(dir) = dirs.into_iter().find(|dir| has_copy(dir)) {
        return Ok(dir.to_owned());
    }
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let choice = scratch::choose(&facts, bytes + options.margin_bytes);
    match choice.chosen {
        Some(fact) => Ok(fact.candidate.dir.clone()),
        None => Err(choice.refused.join("; ")),
    }
}

fn remove(args: &StageArgs) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for place in places(&args.to) {
        let outcome = unstage(&args.data, &place)?;
        let place = place.display();
        match outcome {
            UnstageOutcome::Removed => lines.push(format!("removed the copy in {place}")),
            UnstageOutcome::InUse => lines.push(format!("kept the copy in {place}: it is in use")),
            UnstageOutcome::Absent => {}
        }
    }
    if lines.is_empty() {
        lines.push(format!("there is no copy of {}", args.data.display()));
    }
    Ok(lines.join("; "))
}
