//! `fovea train`: resolves the configuration, enters the run directory, and launches the run.

use std::path::Path;
use std::time::Instant;

use fovea_collectives::{BackendChoice, BackendEntry, Surroundings};
use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::status::{RunState, Status};
use fovea_dataset::Dataset;
use fovea_launch::{LaunchOptions, launch};
use fovea_run::config::{self, Config};
use fovea_run::run_dir::{self, RunDir};
use fovea_trainer::gpu;
use fovea_trainer::initial;
use fovea_trainer::preflight::{Moment, preflight};
use fovea_trainer::train::resume_from;

use super::signals::{Again, drain_flag};
use super::source::{self, Epochs, places};
use crate::cli::TrainArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show::{self, StatusView};

pub fn run(args: &TrainArgs) -> anyhow::Result<Ending> {
    if args.list_presets {
        for preset in config::presets() {
            say!("{}\n    {}", preset.name, preset.about)?;
            say!("    published: {}", preset.published)?;
        }
        return Ok(Ending::Finished);
    }
    let mut config = resolve(args)?;
    if args.print_config {
        say!("{}", config.to_toml_documented().trim_end())?;
        return Ok(Ending::Finished);
    }
    let backend = backend_here(&config)?;
    config.train.backend = BackendChoice::Named(backend);
    config.validate()?;
    let (out, data) = places(&config)?;
    let run = RunDir::new(out);
    // The data is checked here, once; the trainers map the shards without hashing them again.
    let data = Dataset::open(&data)?;
    match enter(&run, &mut config, &data, args.resume)? {
        Begin::New if config.model.init.is_empty() => {}
        Begin::New => drop(say!("beginning from the weights of {}", config.model.init)),
        Begin::After(step) => drop(say!("going on after step {step}")),
        Begin::Over { step, early } => {
            let early = early.map_or_else(String::new, |epoch| stopped_early(&config, epoch));
            say!(
                "nothing left to do: finished after step {step}{early}; look at it with: fovea report {}",
                run.path().display()
            )?;
            return Ok(Ending::Finished);
        }
    }

    // From here on the run continues even when nobody reads its output.
    let _ = say!(
        "{}, training {} with {} on {}",
        show::counted(data.len(), "image"),
        config.model.name,
        show::counted(config.train.ranks as usize, "rank"),
        config.train.backend
    );
    let options = LaunchOptions {
        program: std::env::current_exe()?,
        run: run.clone(),
        ranks: config.train.ranks as usize,
        gpus: backend.shared_gpus(config.train.ranks as usize)?,
        backend,
        max_restarts: config.elastic.max_restarts,
        deadline: args
            .deadline
            .and_then(|left| Instant::now().checked_add(left)),
        drain_wanted: drain_flag(Again::LeaveAtOnce)?,
    };
    let mut view = StatusView::new();
    let ended = launch(&options, |status| view.update(status))?;
    view.finish(&ended.status);
    let step = ended.status.step;
    if let Some(checkpoint) = &ended.status.checkpoint {
        let _ = say!(
            "newest checkpoint: {} (weights {})",
            checkpoint.path,
            checkpoint.weights_blake3
        );
    }
    if ended.drained {
        let _ = say!(
            "stopped after step {step}; go on with: fovea train --out {} --resume",
            run.path().display()
        );
        return Ok(Ending::Resume);
    }
    let early = match ended.status.stopped_early() {
        true => stopped_early(&config, ended.status.epoch + 1),
        false => String::new(),
    };
    let _ = say!(
        "finished after step {step}{early}; look at it with: fovea report {}",
        run.path().display()
    );
    Ok(Ending::Finished)
}

/// Why a run has ended before its last epoch; text to append to its last step.
fn stopped_early(config: &Config, epoch: u32) -> String {
    let watched = &config.early_stopping;
    format!(
        ": stopped early after epoch {epoch} of {}, as {} at {} level had not become better in {}",
        config.train.epochs,
        watched.metric,
        watched.level,
        show::counted(watched.patience as usize, "validation")
    )
}

/// The configuration of the file, the preset or the run itself, with the options applied over it.
fn resolve(args: &TrainArgs) -> anyhow::Result<Config> {
    let own = args
        .source
        .out
        .as_ref()
        .filter(|_| args.resume)
        .map(|out| RunDir::new(out).config());
    let mut config = match (source::named(&args.source)?, own) {
        (Some(config), _) => config,
        (None, Some(own)) if own.is_file() => Config::load(&own)?,
        (None, Some(own)) => return Err(nothing_to_resume(own.parent().unwrap_or(&own))),
        (None, None) if args.print_config => Config::default(),
        (None, None) if args.resume => {
            let help = "add --out RUN, the directory of the run to go on with";
            return Err(Usage(format!("--resume without a run directory\n  help: {help}")).into());
        }
        (None, None) => return Err(source::nothing_named()),
    };
    source::apply(&mut config, &args.source)?;
    config.train.ranks = args.ranks.unwrap_or(config.train.ranks);
    config.train.device = args.device.map_or(config.train.device, Into::into);
    config.train.backend = args.backend.unwrap_or(config.train.backend);
    Ok(config)
}

/// The backend for the ranks that this launcher starts on this machine.
fn backend_here(config: &Config) -> anyhow::Result<&'static BackendEntry> {
    let gpu = gpu::choose(config.train.device, &gpu::VisibleGpus::here(), 0)?.is_some();
    let backend = config.train.backend.resolve(&Surroundings {
        gpu,
        // The world of another launcher around this process is not the one that this launcher starts.
        variable: &|_| None,
    });
    if backend.on_gpus && !gpu {
        return Err(Usage(format!(
            "backend {} joins GPUs, and this run computes on the CPU: --device cpu, or no GPU here that can be used\n  help: leave --backend at auto; nvidia-smi -L lists the GPUs",
            backend.name
        ))
        .into());
    }
    Ok(backend)
}

/// The step after which training continues, by the run directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// A new run: training starts at the first step.
    New,
    /// Training continues after this step, from its checkpoint.
    After(u64),
    /// The run finished after this step, and nothing is left to do; `early` is the epoch of an early stop.
    Over { step: u64, early: Option<u32> },
}

/// Turns the run directory into this run's: a new one, or one to continue. Neither a refusal nor a finished run changes
/// anything. `config` receives the identity of the initial weights.
pub(super) fn enter(
    run: &RunDir,
    config: &mut Config,
    data: &Dataset,
    resume: bool,
) -> anyhow::Result<Begin> {
    let path = run.path().display();
    if !run.path().exists() && resume {
        return Err(nothing_to_resume(run.path()));
    }
    source::refuse_foreign(run)?;
    if !run.config().exists() && !resume {
        // This comes before the lock, which makes the directory: a configuration that cannot train leaves nothing
        // behind.
        warn(preflight(config, data, Moment::Beginning)?);
        warn(fovea_dataset::oddities(data));
        for line in initial::pin(config, Some(data.task()))? {
            let _ = say!("initial weights: {line}");
        }
    }
    // The lock refuses a directory where another run is active. The coordinator takes it again for the run's life.
    let _lock = RunLock::acquire(run.path())?;
    let mut begin = Begin::New;
    if run.config().exists() {
        if !resume {
            return Err(Usage(format!(
                "{path}: this directory holds a run already\n  help: go on with it with --resume, or choose another --out"
            ))
            .into());
        }
        begin = go_on(run, config, data)?;
        if matches!(begin, Begin::Over { .. }) {
            return Ok(begin);
        }
    } else if resume {
        return Err(nothing_to_resume(run.path()));
    }
    run_dir::replace(&run.config(), config.to_toml_documented().as_bytes())?;
    Ok(begin)
}

/// Decides whether and where a run that has started continues with this configuration.
fn go_on(run: &RunDir, config: &mut Config, data: &Dataset) -> anyhow::Result<Begin> {
    let before = Config::load(&run.config())?;
    source::keep_initial_weights(run.path(), config, &before)?;
    source::same_run(run.path(), config, &before)?;
    // The trainers look for it as well; this look reports skipped checkpoints to the user.
    let (start, stopped_early) = resume_from(run, Some(data))?;
    let status = Status::load(run.path()).ok();
    let epochs = Epochs {
        before: before.train.epochs,
        now: config.train.epochs,
        done: start.epoch,
        finished: status.is_some_and(|s| s.state == RunState::Finished && s.step == start.step),
        stopped_early,
    };
    if !source::epochs_are_left(run.path(), &epochs)? {
        let early = stopped_early.then_some(start.epoch);
        let step = start.step;
        return Ok(Begin::Over { step, early });
    }
    if start.step == 0 && !config.model.init.is_empty() {
        // The trainers will read the initial weights again.
        initial::pinned(config)?;
    }
    warn(preflight(config, data, Moment::GoingOn)?);
    if epochs.now != epochs.before && is_stretched(config) && start.step > 0 {
        tracing::warn!(
            "cosine schedule: from step {} on the learning rate is that of a run of {} epochs, up to there it was that of {}",
            start.step + 1,
            epochs.now,
            epochs.before
        );
    }
    Ok(Begin::After(start.step))
}

/// Whether more epochs change the learning rate of the last stage: a cosine over its length.
fn is_stretched(config: &Config) -> bool {
    let last = config.plan().pop();
    last.is_some_and(|stage| {
        stage.schedule.kind == config::ScheduleKind::Cosine && stage.t_max == 0
    })
}

fn warn(warnings: Vec<String>) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

fn nothing_to_resume(run: &Path) -> anyhow::Error {
    let path = run.display();
    Usage(format!("{path}: no run to resume here (no config.toml)\n  help: check --out, or leave --resume away")).into()
}
