//! `fovea train`

use std::path::Path;
use std::time::Instant;

use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::status::{RunState, Status};
use fovea_dataset::Dataset;
use fovea_trainer::config::{self, Config};
use fovea_trainer::gpu;
use fovea_trainer::launch::{LaunchOptions, Spawner, launch};
use fovea_trainer::run_dir::{self, RunDir};
use fovea_trainer::train::{backend, gpus, resume_point};

use super::source::{self, places};
use super::signals::{Again, drain_flag};
use crate::cli::TrainArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show::{self, View};

pub fn run(args: &TrainArgs) -> anyhow::Result<Ending> {
    let config = resolve(args)?;
    if args.print_config {
        say!("{}", config.to_toml_documented().trim_end())?;
        return Ok(Ending::Finished);
    }
    config.validate().map_err(fovea_trainer::Error::from)?;
    let (out, data) = places(&config)?;
    let run = RunDir::new(out);
    // Everything is checked here, once; the trainers map the shards without hashing them again.
    let data = Dataset::open(&data).map_err(fovea_trainer::Error::from)?;
    match enter(&run, &config, &data, args.resume)? {
        Begin::New => {}
        Begin::After(step) => drop(say!("going on after step {step}")),
        Begin::Over(step) => {
            say!(
                "nothing left to do: finished after step {step}; look at it with: fovea report {}",
                run.path().display()
            )?;
            return Ok(Ending::Finished);
        }
    }

    // From here on the run goes on whether or not anybody reads what is said.
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
        spawner: if config.train.backend == config::Backend::Mpi {
            Spawner::MpiRun
        } else {
            Spawner::Direct
        },
        gpus: gpus(&config.train)?,
        max_restarts: config.elastic.max_restarts,
        deadline: args
            .deadline
            .and_then(|left| Instant::now().checked_add(left)),
        drain_wanted: drain_flag(Again::LeaveAtOnce)?,
    };
    let mut view = View::new();
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
    let _ = say!(
        "finished after step {step}; look at it with: fovea report {}",
        run.path().display()
    );
    Ok(Ending::Finished)
}

/// File, preset or the run's own configuration, then the options over it.
fn resolve(args: &TrainArgs) -> anyhow::Result<Config> {
    let own = args
        .source
        .out
        .as_ref()
        .filter(|_| args.resume)
        .map(|out| RunDir::new(out).config());
    let mut config = match (source::named(&args.source)?, own) {
        (Some(config), _) => config,
        (None, Some(own)) if own.is_file() => {
            Config::load(&own).map_err(fovea_trainer::Error::from)?
        }
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
    config.train.backend = args.backend.map_or(config.train.backend, Into::into);
    if !args.print_config {
        // This launcher starts ranks of one machine.
        let on_gpus = gpu::choose(config.train.device, &gpu::Found::here(), 0)?.is_some();
        config.train.backend = backend(config.train.backend, on_gpus, None);
        if config.train.backend == config::Backend::Nccl && !on_gpus {
            return Err(Usage(
                "backend nccl joins GPUs, and this run computes on the CPU: --device cpu, or no GPU here that can be used\n  help: leave --backend at auto; nvidia-smi -L lists the GPUs".to_owned(),
            )
            .into());
        }
    }
    Ok(config)
}

/// Where training begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// At the beginning.
    New,
    /// After this step, from its checkpoint.
    After(u64),
    /// Nowhere: the run is finished after this step.
    Over(u64),
}

/// Makes the run directory this run's: a new one, or the one to go on with. A refusal changes nothing, and so does
/// going on with what is finished.
pub(super) fn enter(
    run: &RunDir,
    config: &Config,
    data: &Dataset,
    resume: bool,
) -> anyhow::Result<Begin> {
    let path = run.path().display();
    if !run.path().exists() && resume {
        return Err(nothing_to_resume(run.path()));
    }
    source::refuse_foreign(run)?;
    // Refused while another run is going on here; the coordinator takes it again for the run's life.
    let _lock = RunLock::acquire(run.path()).map_err(fovea_trainer::Error::from)?;
    let mut begin = Begin::New;
    if run.config().exists() {
        if !resume {
            return Err(Usage(format!(
                "{path}: this directory holds a run already\n  help: go on with it with --resume, or choose another --out"
            ))
            .into());
        }
        let before = Config::load(&run.config()).map_err(fovea_trainer::Error::from)?;
        source::same_run(run.path(), config, &before)?;
        // Looked for here as well, so that whoever resumes reads of checkpoints that are passed over.
        let start = resume_point(run, Some(data))?;
        let status = Status::load(run.path()).ok();
        if status.is_some_and(|s| s.state == RunState::Finished && s.step == start.step) {
            return Ok(Begin::Over(start.step));
        }
        begin = Begin::After(start.step);
    } else if resume {
        return Err(nothing_to_resume(run.path()));
    }
    run_dir::replace(&run.config(), config.to_toml_documented().as_bytes())?;
    Ok(begin)
}

fn nothing_to_resume(run: &Path) -> anyhow::Error {
    let path = run.display();
    Usage(format!("{path}: no run to resume here (no config.toml)\n  help: check --out, or leave --resume away")).into()
}
