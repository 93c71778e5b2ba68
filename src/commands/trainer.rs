//! `fovea trainer`: runs one trainer of a run in this process, or keeps one alive in a job.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fovea_coordinator::client::Endpoint;
use fovea_launch::exit_code;
use fovea_launch::keep::{KeepOptions, keep};
use fovea_run::config::Config;
use fovea_run::run_dir::RunDir;
use fovea_slurm::env::Allocation;
use fovea_trainer::train::{Outcome, TrainerOptions, join};

use super::signals::{Again, Parent, drain_flag};
use super::stage;
use crate::cli::TrainerArgs;
use crate::exit::{Ending, Usage};
use crate::show;

/// How long a job's trainers wait for the configuration that `fovea job plan` has written: some file systems show new
/// files late.
const CONFIG_PATIENCE: Duration = Duration::from_secs(20);

pub fn run(args: TrainerArgs) -> anyhow::Result<Ending> {
    let parent = args.with_parent.map(Parent::of_this_process).transpose()?;
    if args.in_job {
        return run_in_job(args, parent);
    }
    let again = if args.kept {
        Again::Nothing
    } else {
        Again::LeaveAtOnce
    };
    train(args, again, parent)
}

/// The flag that signals set; the end of the parent sets it as well, where there is a parent to watch.
fn drain_wanted(again: Again, parent: Option<Parent>) -> anyhow::Result<Arc<AtomicBool>> {
    let flag = drain_flag(again)?;
    if let Some(parent) = parent {
        parent.watch(Arc::clone(&flag))?;
    }
    Ok(flag)
}

fn train(args: TrainerArgs, again: Again, parent: Option<Parent>) -> anyhow::Result<Ending> {
    if let Some(rank) = args.rank {
        let config = RunDir::new(&args.run).config();
        let ranks = Config::load(&config)?.train.ranks;
        if rank >= ranks {
            return Err(Usage(format!(
                "rank {rank} does not exist: this run has {}, counted from 0\n  help: give --rank 0 to {}, or leave it out to get a free one",
                show::counted(ranks as usize, "rank"),
                ranks - 1
            ))
            .into());
        }
    }
    // In a job, Slurm numbers the processes of a node; elsewhere the launcher does.
    let task = (args.kept || args.in_job)
        .then(|| Allocation::of_process().ok()?.task)
        .flatten();
    let options = TrainerOptions {
        local_rank: task.map_or(args.rank.unwrap_or(0), |task| task.localid),
        endpoint: Endpoint::RunDir(args.run.clone()),
        run: RunDir::new(args.run),
        preferred_rank: args.rank,
        staged: stage::places(&args.staged),
        drain_wanted: drain_wanted(again, parent)?,
    };
    match join(options)?.run()? {
        Outcome::Finished => Ok(Ending::Finished),
        Outcome::Drained => Ok(Ending::Resume),
    }
}

/// Runs a task of a job step. In a world that starts as a whole, the process that `srun` started is the rank itself.
/// Otherwise it is the keeper of a trainer, which it restarts when it is lost.
fn run_in_job(args: TrainerArgs, parent: Option<Parent>) -> anyhow::Result<Ending> {
    let run = RunDir::new(&args.run);
    let mut left = CONFIG_PATIENCE;
    while !run.config().is_file() && !left.is_zero() {
        let pause = left.min(Duration::from_millis(200));
        std::thread::sleep(pause);
        left -= pause;
    }
    let config = Config::load(&run.config())?;
    let backend = config.train.backend.entry();
    if backend.is_some_and(|row| row.world_launcher.is_some()) {
        return train(args, Again::Nothing, parent);
    }
    let task = Allocation::of_process().ok().and_then(|job| job.task);
    let code = keep(&KeepOptions {
        program: std::env::current_exe()?,
        run,
        rank: args.rank.or(task.map(|task| task.procid)),
        arguments: args
            .staged
            .iter()
            .flat_map(|place| ["--staged".to_owned(), place.clone()])
            .collect(),
        max_restarts: config.elastic.max_restarts,
        drain_wanted: drain_wanted(Again::Nothing, parent)?,
    })?;
    Ok(match code {
        exit_code::LEFT => Ending::Resume,
        _ => Ending::Finished,
    })
}
