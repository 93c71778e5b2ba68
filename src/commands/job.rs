//! `fovea job`: the decisions that a batch script cannot make by itself.
//!
//! Only the script talks to the scheduler, because this program may run in a container without the scheduler's
//! commands. Their outputs therefore come as arguments.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fovea_collectives::{BACKENDS, BackendChoice, BackendEntry};
use fovea_coordinator::order::allowed_world_sizes;
use fovea_coordinator::status::Status;
use fovea_dataset::Dataset;
use fovea_launch::exit_code;
use fovea_run::config::{Config, Device};
use fovea_run::run_dir::RunDir;
use fovea_slurm::env::Allocation;
use fovea_slurm::history::{self, History, HistoryEvent};
use fovea_slurm::interfaces;
use fovea_slurm::launcher;
use fovea_slurm::next::{self, Ended, NextAction, next};
use fovea_slurm::plan::{Offer, Plan, Transport, down_nodes, plan};
use fovea_slurm::script::quote;

use super::absolute;
use super::source::places;
use super::train::{Begin, enter};
use crate::cli::{JobArgs, JobCommand, JobNextArgs, JobPlanArgs};
use crate::exit::{self, Ending, Usage};
use crate::say;

// The exit codes mean the same to the batch script and to the processes of a run.
const _: () = assert!(
    next::FINISHED == exit_code::FINISHED
        && next::FAILED == exit_code::FAILED
        && next::WRONG_INPUT == exit_code::WRONG_INPUT
        && next::LEFT == exit_code::LEFT
);

pub fn run(args: &JobArgs) -> anyhow::Result<Ending> {
    match &args.what {
        JobCommand::Plan(args) => {
            let made = make_plan(args);
            if let Err(error) = &made
                && exit::is_usage(error)
            {
                // `fovea status` shows it to users who look later.
                note_wrong_input(&args.out, &exit::message(error));
            }
            made
        }
        JobCommand::Next(args) => say_next(args),
    }
}

fn make_plan(args: &JobPlanArgs) -> anyhow::Result<Ending> {
    let job = Allocation::of_process().map_err(|e| Usage(e.to_string()))?;
    let mut config = Config::load(&args.config)?;
    for assignment in &args.set {
        config.set(assignment)?;
    }
    config.run.out = absolute(&args.out)?.to_string_lossy().into_owned();
    if config.train.device == Device::Auto {
        // A job that was given GPUs must not fall back to the CPU when their driver fails.
        config.train.device = match job.gpus_on_node {
            0 => Device::Cpu,
            _ => Device::Cuda,
        };
    }
    let plan = plan(&offer(&job, &config, args)).map_err(|e| Usage(e.to_string()))?;
    for note in &plan.notes {
        tracing::warn!("{note}");
    }
    config.train.ranks = u32::try_from(plan.world)?;
    config.train.backend = BackendChoice::try_from(plan.transport.name.to_owned())?;
    config.validate()?;
    let (out, data) = places(&config)?;
    let run = RunDir::new(out);
    let begun = run.config().is_file();
    // The start of a run reads and checks all of the data; a later start only looks at its manifest.
    let data = match begun {
        false => Dataset::open(&data),
        true => Dataset::open_unverified(&data),
    }?;
    let step = match enter(&run, &mut config, &data, begun)? {
        Begin::New => 0,
        Begin::After(step) => step,
        Begin::Over { .. } => {
            say!("finished=1")?;
            return Ok(Ending::Finished);
        }
    };
    let address = address(&plan, args.interface.as_deref())?;
    let start = HistoryEvent::Start {
        unix_ms: unix_ms(),
        job: job.id_text(),
        requeues: job.restart_count,
        nodes: plan.nodes.clone(),
        world: plan.world,
        backend: config.train.backend.to_string(),
        step,
    };
    history::append(run.path(), &start)?;
    say!("finished=")?;
    let launch: Vec<String> = plan.launch.iter().map(|word| quote(word)).collect();
    say!("launch=({})", launch.join(" "))?;
    say!("world={}", plan.world)?;
    say!("bind={}", quote(&address))?;
    Ok(Ending::Finished)
}

fn offer(job: &Allocation, config: &Config, args: &JobPlanArgs) -> Offer {
    let tasks = job.tasks_per_node.iter().map(|tasks| *tasks as usize);
    let mut down = down_nodes(&args.node_states);
    // This process runs on its node, so that one is up.
    down.retain(|node| Some(node) != job.node_name.as_ref());
    Offer {
        nodes: job.nodes.iter().cloned().zip(tasks).collect(),
        down,
        cpus_per_task: job.cpus_per_task.map(|cpus| cpus as usize),
        gpus: job.gpus_on_node as usize,
        world_sizes: allowed_world_sizes(config.train.virtual_shards as usize),
        transports: transports(config),
        pmi: launcher::plugins(&args.mpi_list),
        pmi_wish: args.mpi.clone(),
        mpirun: args.mpirun.clone(),
    }
}

/// The transports that this configuration allows, in order of preference.
fn transports(config: &Config) -> Vec<Transport> {
    let transport = |row: &BackendEntry| Transport {
        name: row.name,
        one_node: row.one_machine,
        by_mpi: row.world_launcher.is_some(),
    };
    match config.train.backend.entry() {
        Some(row) => vec![transport(row)],
        None => {
            let on_gpus = config.train.device == Device::Cuda;
            let rows = BACKENDS.iter().filter(|row| row.on_gpus == on_gpus);
            rows.map(transport).collect()
        }
    }
}

/// The address that the coordinator listens on: loopback where all ranks are on one node, unless an interface is named.
fn address(plan: &Plan, interface: Option<&str>) -> anyhow::Result<String> {
    if plan.nodes.len() == 1 && interface.is_none() {
        return Ok("127.0.0.1".to_owned());
    }
    let there = interfaces::list().context("listing the network interfaces of this node")?;
    let chosen = interfaces::choose(&there, interface).map_err(|e| Usage(e.to_string()))?;
    tracing::info!(
        "the coordinator listens on {}: {}",
        chosen.name,
        chosen.reason
    );
    Ok(chosen.address.to_string())
}

fn say_next(args: &JobNextArgs) -> anyhow::Result<Ending> {
    let history = History::load(&args.run)?;
    let status = Status::load(&args.run).ok();
    let max_restarts = Config::load(&RunDir::new(&args.run).config())
        .map_or(0, |config| config.elastic.max_restarts);
    let step = status.as_ref().map_or(0, |status| status.step);
    let (verdict, mut why) = next(&Ended {
        coordinator: args.coordinator,
        trainers: args.trainers,
        noticed: args.noticed.clone(),
        step,
        failures: history.failures_without_progress(),
        failed_at: history.last_step(),
        max_restarts,
    });
    if let Some(status) = status.filter(|_| verdict.is_failure()) {
        why = match args.coordinator {
            // The ranks had left before, so the batch script asked the coordinator to end.
            exit_code::LEFT => format!("{why}: all ranks ended; see the job's log and logs/"),
            _ => format!("{why}: {}", status.reason),
        };
    }
    let job = Allocation::of_process().map_or_else(|_| "none".to_owned(), |job| job.id_text());
    let end = HistoryEvent::End {
        unix_ms: unix_ms(),
        job,
        step,
        verdict,
        why: why.clone(),
    };
    // The decision matters more than its record: a full disk must not end the run.
    if let Err(e) = history::append(&args.run, &end) {
        tracing::warn!("{}: {e}", history::path(&args.run).display());
    }
    say!("{why}")?;
    Ok(Ending::Code(verdict.code()))
}

fn note_wrong_input(run: &Path, why: &str) {
    let end = HistoryEvent::End {
        unix_ms: unix_ms(),
        job: Allocation::of_process().map_or_else(|_| "none".to_owned(), |job| job.id_text()),
        step: Status::load(run).map_or(0, |status| status.step),
        verdict: NextAction::ConfigError,
        why: why.to_owned(),
    };
    if let Err(e) = history::append(run, &end) {
        tracing::warn!("{}: {e}", history::path(run).display());
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
