//! The configuration and the directories that `train`, `submit` and `job` work on: from what was typed to what is meant.

use std::path::{Path, PathBuf};

use fovea_coordinator::rundir::LOCK_FILE;
use fovea_slurm::history;
use fovea_trainer::config::Config;
use fovea_trainer::run_dir::RunDir;

use super::absolute;
use crate::cli::ConfigArgs;
use crate::exit::Usage;

/// The configuration of the file or preset that was named.
pub fn named(args: &ConfigArgs) -> anyhow::Result<Option<Config>> {
    let config = match (&args.config, &args.preset) {
        (Some(path), _) => Config::load(path),
        (None, Some(name)) => Config::preset(name),
        (None, None) => return Ok(None),
    };
    Ok(Some(config.map_err(fovea_trainer::Error::from)?))
}

/// The options over it.
pub fn apply(config: &mut Config, args: &ConfigArgs) -> anyhow::Result<()> {
    for assignment in &args.set {
        config.set(assignment).map_err(fovea_trainer::Error::from)?;
    }
    if let Some(path) = &args.data {
        config.data.path = absolute(path)?.to_string_lossy().into_owned();
    }
    if let Some(path) = &args.out {
        config.run.out = absolute(path)?.to_string_lossy().into_owned();
    }
    Ok(())
}

/// Neither file nor preset, and no run to take it from.
pub fn nothing_named() -> anyhow::Error {
    let help = "give CONFIG.toml, or --preset demo|hybrid; `fovea train --preset hybrid --print-config` shows all keys";
    Usage(format!("no configuration given\n  help: {help}")).into()
}

/// Run directory and dataset; what is missing is said in one go.
pub fn places(config: &Config) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (out, data) = (&config.run.out, &config.data.path);
    let (what, how) = match (out.is_empty(), data.is_empty()) {
        (false, false) => return Ok((absolute(Path::new(out))?, absolute(Path::new(data))?)),
        (true, false) => ("run directory", "--out RUN (or run.out)"),
        (false, true) => ("prepared dataset", "--data DATA (or data.path)"),
        (true, true) => (
            "run directory and no prepared dataset",
            "--out RUN (or run.out) and --data DATA (or data.path)",
        ),
    };
    Err(Usage(format!("no {what} given\n  help: add {how}")).into())
}

/// Refuses to go on with a run under a configuration that would change its result.
pub fn same_run(run: &Path, config: &Config, before: &Config) -> Result<(), Usage> {
    let changed = config.differences(before);
    if changed.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = changed
        .iter()
        .map(|d| format!("{} is {} now and was {}", d.key, d.ours, d.theirs))
        .collect();
    Err(Usage(format!(
        "{}: the run cannot go on with another configuration: {}\n  help: leave these keys as they were, or start a new run with another --out",
        run.display(),
        list.join("; ")
    )))
}

/// Refuses a directory that holds something, but no run.
pub fn refuse_foreign(run: &RunDir) -> Result<(), Usage> {
    match foreign(run)? {
        None => Ok(()),
        Some(found) => Err(Usage(format!(
            "{} is not empty and holds no run (found {found})\n  help: choose a new directory with --out, or empty this one yourself",
            run.path().display()
        ))),
    }
}

/// Something in a directory that holds no run, if it does: what no run leaves behind before its config.toml is there.
fn foreign(run: &RunDir) -> Result<Option<String>, Usage> {
    if run.config().exists() || !run.path().exists() {
        return Ok(None);
    }
    let path = run.path();
    let entries = std::fs::read_dir(path).map_err(|e| {
        Usage(format!(
            "{}: {e}\n  help: choose another directory with --out",
            path.display()
        ))
    })?;
    let own = |name: &String| {
        name == LOCK_FILE
            || name == history::FOLDER
            || name.starts_with(".tmp")
            || RunDir::new("").checkpoints() == Path::new(name)
    };
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| !own(name)))
}
