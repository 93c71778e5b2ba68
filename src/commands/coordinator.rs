//! `fovea coordinator`: runs the coordinator of a run in this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use fovea_coordinator::client::{Endpoint, Observer};
use fovea_coordinator::rundir::RunLock;
use fovea_coordinator::server::{
    FindCheckpoint, RunOutcome, Server, ServerOptions, raise_file_limit,
};
use fovea_run::config::Config;
use fovea_run::run_dir::RunDir;
use fovea_trainer::train::resume_point;

use super::signals::{Again, Parent, drain_flag};
use crate::cli::CoordinatorArgs;
use crate::exit::Ending;

pub fn run(args: &CoordinatorArgs) -> anyhow::Result<Ending> {
    let parent = args.with_parent.map(Parent::of_this_process).transpose()?;
    let run = RunDir::new(&args.run);
    let config = Config::load(&run.config())?;
    config.validate()?;
    let lock = RunLock::acquire(run.path())?;
    let (train, elastic) = (&config.train, &config.elastic);
    let looked_at = run.clone();
    let find_checkpoint = FindCheckpoint::new(move || {
        resume_point(&looked_at, None).map_err(|error| error.to_string())
    });
    let options = ServerOptions {
        bind: args.bind,
        start: resume_point(&run, None)?,
        elastic: train.backend.entry().is_none_or(|row| row.is_elastic),
        min_ranks: elastic.min_ranks as usize,
        heartbeat_lapse_ms: elastic.heartbeat_lapse_ms.into(),
        watchdog_ms: 1000 * u64::from(elastic.watchdog_s),
        watchdog_steps: elastic.watchdog_steps.into(),
        join_ms: 1000 * u64::from(elastic.join_timeout_s),
        time_left: args.time_left.and_then(|left| left.0),
        find_checkpoint: Some(find_checkpoint),
        summary: BTreeMap::from([
            ("model".to_owned(), config.model.name.to_string()),
            ("backend".to_owned(), train.backend.to_string()),
            ("precision".to_owned(), train.precision.to_string()),
            ("data".to_owned(), config.data.path.clone()),
        ]),
        ..ServerOptions::new(
            run.path(),
            train.ranks as usize,
            train.virtual_shards as usize,
            train.epochs,
        )
    };
    // Twice as many members as ranks may connect, and some observers.
    raise_file_limit(2 * train.ranks as usize + 256)?;
    let server = Server::bind(options, lock)?;
    let again = if args.in_job {
        Again::Nothing
    } else {
        Again::LeaveAtOnce
    };
    let flag = drain_flag(again)?;
    flag.fetch_or(args.drain, Ordering::Relaxed);
    if let Some(parent) = parent {
        parent.watch(Arc::clone(&flag))?;
    }
    drain_on_signal(flag, server.endpoint())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    match runtime.block_on(server.run(std::future::pending()))? {
        RunOutcome::Finished { .. } => Ok(Ending::Finished),
        RunOutcome::Drained { .. } | RunOutcome::Stopped { .. } => Ok(Ending::Resume),
        RunOutcome::Failed { reason } => Err(fovea_launch::Error::Child(reason).into()),
    }
}

/// Turns a signal to the coordinator into a drain request like the launcher's, over the same protocol.
fn drain_on_signal(flag: Arc<AtomicBool>, endpoint: Endpoint) -> anyhow::Result<()> {
    let watch = move || {
        while !flag.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let asked = Observer::connect_launcher(&endpoint, Instant::now() + Duration::from_secs(5))
            .and_then(|mut launcher| launcher.drain("the coordinator was asked to"));
        if let Err(e) = asked {
            tracing::warn!("the drain could not be asked for: {e}");
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .context("starting the signal thread")?;
    Ok(())
}
