//! Resolves the configuration and the directories of `train`, `submit` and `job` from the command line.

use std::path::{Path, PathBuf};

use fovea_coordinator::rundir::LOCK_FILE;
use fovea_run::config::{Config, PRESETS};
use fovea_run::run_dir::RunDir;
use fovea_slurm::history;
use fovea_trainer::initial;

use super::absolute;
use crate::cli::ConfigArgs;
use crate::exit::Usage;

/// The configuration of the file or preset that the user named; none when the user named neither.
pub fn named(args: &ConfigArgs) -> anyhow::Result<Option<Config>> {
    let config = match (&args.config, &args.preset) {
        (Some(path), _) => Config::load(path),
        (None, Some(name)) => Config::preset(name),
        (None, None) => return Ok(None),
    };
    Ok(Some(config?))
}

/// Applies the options over a configuration.
pub fn apply(config: &mut Config, args: &ConfigArgs) -> anyhow::Result<()> {
    for assignment in &args.set {
        config.set(assignment)?;
    }
    if let Some(path) = &args.data {
        config.data.path = absolute(path)?.to_string_lossy().into_owned();
    }
    if let Some(path) = &args.out {
        config.run.out = absolute(path)?.to_string_lossy().into_owned();
    }
    if let Some(path) = &args.init {
        config.model.init = absolute(path)?.to_string_lossy().into_owned();
    }
    Ok(())
}

/// The error when there is neither a file nor a preset, nor a run that has a configuration.
pub fn nothing_named() -> anyhow::Error {
    let presets: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    Usage(format!(
        "no configuration given\n  help: give CONFIG.toml, or --preset {}; `fovea train --preset hybrid --print-config` shows all keys",
        presets.join("|")
    ))
    .into()
}

/// Run directory and dataset; a single error lists everything that is missing.
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

/// Keeps the initial weights of a run: a run that continues keeps its `model.init` and the hash of it, whatever the
/// named configuration has there. A file with the same content may have moved.
pub fn keep_initial_weights(
    run: &Path,
    config: &mut Config,
    before: &Config,
) -> anyhow::Result<()> {
    let (now, begun) = (&mut config.model, &before.model);
    if now.init == begun.init {
        if now.init_blake3.is_empty() {
            now.init_blake3.clone_from(&begun.init_blake3);
        }
        return Ok(());
    }
    let other = |what: &str| {
        let path = run.display();
        Usage(format!(
            "{path}: the run began from {}, and is to go on from {what} now\n  help: leave --init and model.init away; to begin from other weights, start a new run with another --out",
            match begun.init.as_str() {
                "" => "random weights",
                init => init,
            }
        ))
    };
    if begun.init.is_empty() {
        return Err(other(&now.init).into());
    }
    // The user may name the run or the checkpoint that the file was taken from.
    let is_of_it = |given: &str| {
        let given = absolute(Path::new(given));
        given.is_ok_and(|given| Path::new(&begun.init).starts_with(given))
    };
    if now.init.is_empty() || is_of_it(&now.init) {
        now.init.clone_from(&begun.init);
        now.init_blake3.clone_from(&begun.init_blake3);
        return Ok(());
    }
    let mut moved = config.clone();
    moved.model.init_blake3.clear();
    initial::pin(&mut moved, None)?;
    if moved.model.init_blake3 != begun.init_blake3 {
        return Err(other(&moved.model.init).into());
    }
    *config = moved;
    Ok(())
}

/// How many epochs a run has done, and how many it must do.
#[derive(Clone, Copy, Debug)]
pub struct Epochs {
    /// `train.epochs` in the run's configuration so far.
    pub before: u32,
    /// `train.epochs` as this command sets it.
    pub now: u32,
    /// Number of complete epochs.
    pub done: u32,
    /// Whether the run has ended by itself, with nothing left of `before`.
    pub finished: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
}

/// Whether anything is left to train.
///
/// # Errors
/// The request is impossible: fewer epochs than are done, or more epochs for a run that stopped early.
pub fn epochs_are_left(run: &Path, epochs: &Epochs) -> Result<bool, Usage> {
    let Epochs {
        before, now, done, ..
    } = *epochs;
    let path = run.display();
    if epochs.stopped_early && now > before {
        return Err(Usage(format!(
            "{path}: this run stopped early after epoch {done} of {before}, so train.epochs = {now} adds nothing\n  help: begin a new run from its weights, with --init {path} and another --out"
        )));
    }
    if now < before && now <= done && !epochs.stopped_early {
        return Err(Usage(format!(
            "{path}: train.epochs = {now}, but {done} of {before} epochs are done\n  help: give a larger number, or leave train.epochs away"
        )));
    }
    Ok(!epochs.finished || (now > before && !epochs.stopped_early))
}

/// Refuses to continue a run under a configuration that would change its result. More epochs change nothing that is
/// done: see [`epochs_are_left`].
pub fn same_run(run: &Path, config: &Config, before: &Config) -> Result<(), Usage> {
    let mut changed = config.differences(before);
    let last = format!("stages.{}.epochs", config.stages.len());
    changed.retain(|d| d.key != "train.epochs" && d.key != last);
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

/// Refuses a directory that holds something other than a run.
pub fn refuse_foreign(run: &RunDir) -> Result<(), Usage> {
    match foreign(run)? {
        None => Ok(()),
        Some(found) => Err(Usage(format!(
            "{} is not empty and holds no run (found {found})\n  help: choose a new directory with --out, or empty this one yourself",
            run.path().display()
        ))),
    }
}

/// A file in a directory that holds no run, if there is one that a run could not have left before its config.toml.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn left(before: u32, now: u32, done: u32, finished: bool, stopped_early: bool) -> Option<bool> {
        let epochs = Epochs {
            before,
            now,
            done,
            finished,
            stopped_early,
        };
        epochs_are_left(Path::new("RUN"), &epochs).ok()
    }

    #[test]
    fn epochs_can_be_added_and_what_is_done_stays() {
        assert_eq!(left(2, 2, 1, false, false), Some(true), "goes on");
        assert_eq!(left(2, 2, 2, true, false), Some(false), "finished");
        assert_eq!(left(2, 2, 2, false, false), Some(true), "not told yet");
        assert_eq!(
            left(2, 5, 2, true, false),
            Some(true),
            "more of a finished run"
        );
        assert_eq!(left(2, 5, 1, false, false), Some(true));
        assert_eq!(
            left(5, 3, 1, false, false),
            Some(true),
            "fewer, but more than are done"
        );
        assert_eq!(left(5, 1, 1, false, false), None);
        assert_eq!(left(5, 1, 2, false, false), None);
        assert_eq!(left(5, 4, 5, true, false), None);
        assert_eq!(left(9, 9, 3, true, true), Some(false), "stopped early");
        assert_eq!(
            left(9, 9, 3, false, true),
            Some(true),
            "it has yet to be told"
        );
        assert_eq!(left(9, 12, 3, true, true), None);
        assert_eq!(left(9, 12, 3, false, true), None);
    }
}
