//! `fovea submit`: checks a run, writes its batch script, and hands it to Slurm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fovea_collectives::BackendChoice;
use fovea_coordinator::order::allowed_world_sizes;
use fovea_coordinator::rundir::{LOCK_FILE, RunLock};
use fovea_coordinator::status::{RunState, Status};
use fovea_dataset::Dataset;
use fovea_run::config::{Config, Device};
use fovea_run::run_dir::RunDir;
use fovea_slurm::history::{self, FOLDER, History};
use fovea_slurm::script::{self, ELEMENT, Job, elements, render, run_of_element, signal_lead};
use fovea_slurm::site::{Requeue, Site};
use fovea_slurm::submit::{self, CONFIG_FILE, SCRIPT_FILE, Submission, Submitted};
use fovea_slurm::{client, time};
use fovea_trainer::initial;
use fovea_trainer::preflight::{Moment, preflight};

use clap::Parser;

use super::absolute;
use super::source::{self, Epochs, places};
use crate::cli::{Cli, Command, SubmitArgs};
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show;

pub fn run(args: &SubmitArgs) -> anyhow::Result<Ending> {
    let args = &with_what_was_typed_before(args)?;
    let mut config = resolve(args)?;
    let (run, data) = places(&config)?;
    let base = PathBuf::from(script::base(&text(&run)?, args.array.is_some()));
    check(args, &config, &data, RunDir::new(&base).config().is_file())?;
    if let Some(done) = finished(args, &base, &run, config.train.epochs)? {
        say!("nothing left to do: {done}")?;
        return Ok(Ending::Finished);
    }
    refuse_other_run(args, &base, &mut config)?;
    let job = job(args, &base, &run, &data)?;
    job.check().map_err(|e| Usage(e.to_string()))?;
    let script = render(&job);
    if args.dry_run {
        say!("{}", script.trim_end())?;
        return Ok(Ending::Finished);
    }

    refuse_alive(&base)?;
    let anew = !base.exists();
    // The lock keeps off a second submission at the same time, and a run without Slurm.
    let _lock = RunLock::acquire(&base)?;
    refuse_alive(&base)?;
    let submitted = match hand_over(args, &base, &config, &job, &script) {
        Ok(submitted) => submitted,
        Err(error) => {
            if anew {
                take_away(&base);
            }
            return Err(error);
        }
    };
    tell(&job, &submitted, &base)?;
    Ok(Ending::Finished)
}

/// Writes the job's files, lets Slurm check the script, and submits it.
fn hand_over(
    args: &SubmitArgs,
    base: &Path,
    config: &Config,
    job: &Job,
    script: &str,
) -> anyhow::Result<Submitted> {
    let folder = base.join(FOLDER);
    std::fs::create_dir_all(&folder)
        .map_err(|e| fovea_run::Error::file(&folder, &e, "check the place and its permissions"))?;
    let path = folder.join(SCRIPT_FILE);
    submit::replace(
        &folder.join(CONFIG_FILE),
        config.to_toml_documented().as_bytes(),
    )?;
    submit::replace(&path, script.as_bytes())?;
    client::test_only(&path).map_err(submit::Error::from)?;
    let links = match job.site.requeue {
        Requeue::Scontrol => 1,
        Requeue::Chain => job.site.chain,
    };
    Ok(submit::submit(&Submission {
        base: base.to_owned(),
        links,
        array: args.array.clone(),
        run: job.run.clone(),
        command: std::env::args().collect(),
    })?)
}

/// Removes a run directory that holds only the files of a job that Slurm refused.
fn take_away(base: &Path) {
    let folder = base.join(FOLDER);
    for file in [
        folder.join(CONFIG_FILE),
        folder.join(SCRIPT_FILE),
        base.join(LOCK_FILE),
    ] {
        // A file that cannot be removed stays: the caller reports the first error.
        let _ = std::fs::remove_file(file);
    }
    // These succeed only when nothing else is there.
    let _ = std::fs::remove_dir(&folder);
    let _ = std::fs::remove_dir(base);
}

/// The arguments of a submission. When the user submits a run again and names no configuration, the options of the last
/// submission apply, except for those that this command gives.
fn with_what_was_typed_before(args: &SubmitArgs) -> anyhow::Result<SubmitArgs> {
    let (source, again) = (&args.source, args.clone());
    let (None, None, Some(out)) = (&source.config, &source.preset, &source.out) else {
        return Ok(again);
    };
    let out = text(&absolute(out)?)?;
    for base in [script::base(&out, false), script::base(&out, true)] {
        let Some(submitted) = Submitted::load(Path::new(&base))? else {
            continue;
        };
        let typed = Cli::try_parse_from(&submitted.command);
        if let Ok(Cli {
            command: Command::Submit(mut before),
            ..
        }) = typed
        {
            // The kept configuration has the assignments of the last submission already; those of array elements are
            // applied by the script.
            before.source.set.retain(|set| set.contains(ELEMENT));
            before.source.data = None;
            return Ok(again.or(before));
        }
    }
    Ok(again)
}

/// Resolves the configuration as `fovea train` does; without a file or preset, it is the run's own. The job decides how
/// many ranks there are and how they exchange gradients.
fn resolve(args: &SubmitArgs) -> anyhow::Result<Config> {
    let mut config = match source::named(&args.source)? {
        Some(config) => config,
        None => own(args)?.ok_or_else(source::nothing_named)?,
    };
    source::apply(&mut config, &without_elements(args))?;
    if let Some(world) = ranks_per_node(args).checked_mul(nodes(args)) {
        config.train.ranks = world;
    }
    // The job's working directory may differ, so paths become absolute.
    if !config.data.path.is_empty() {
        config.data.path = text(&absolute(Path::new(&config.data.path))?)?;
    }
    if !config.model.init.is_empty() {
        config.model.init = text(&absolute(Path::new(&config.model.init))?)?;
    }
    if !config.run.out.is_empty() {
        config.run.out = text(&absolute(Path::new(&config.run.out))?)?;
    }
    Ok(config)
}

/// The configuration of the last submission, or that of a run which `fovea train` has started.
fn own(args: &SubmitArgs) -> anyhow::Result<Option<Config>> {
    let Some(out) = &args.source.out else {
        return Ok(None);
    };
    let base = PathBuf::from(script::base(&text(out)?, args.array.is_some()));
    let submitted = base.join(FOLDER).join(CONFIG_FILE);
    if submitted.is_file() {
        return Ok(Some(Config::load(&submitted)?));
    }
    let begun = RunDir::new(&base).config();
    if !begun.is_file() {
        return Ok(None);
    }
    let mut config = Config::load(&begun)?;
    // `fovea train` chose these for its own machine; the job chooses again.
    config.train.backend = BackendChoice::Auto;
    config.train.device = Device::Auto;
    Ok(Some(config))
}

/// The configuration's options, without assignments that differ between the elements of an array.
fn without_elements(args: &SubmitArgs) -> crate::cli::ConfigArgs {
    let source = &args.source;
    crate::cli::ConfigArgs {
        config: source.config.clone(),
        preset: source.preset.clone(),
        data: source.data.clone(),
        out: source.out.clone(),
        init: source.init.clone(),
        set: source
            .set
            .iter()
            .filter(|set| !of_element(args, set))
            .cloned()
            .collect(),
    }
}

fn of_element(args: &SubmitArgs, assignment: &str) -> bool {
    args.array.is_some() && assignment.contains(ELEMENT)
}

fn nodes(args: &SubmitArgs) -> u32 {
    args.nodes.unwrap_or(1)
}

fn ranks_per_node(args: &SubmitArgs) -> u32 {
    args.ranks_per_node.or(args.gpus_per_node).unwrap_or(1)
}

/// Refuses what the job would refuse hours later.
fn check(args: &SubmitArgs, config: &Config, data: &Path, begun: bool) -> anyhow::Result<()> {
    let mut config = config.clone();
    if let Some(array) = &args.array {
        let all = elements(array).map_err(|e| Usage(e.to_string()))?;
        let element = all[0].to_string();
        for assignment in args.source.set.iter().filter(|set| of_element(args, set)) {
            config.set(&assignment.replace(ELEMENT, &element))?;
        }
    }
    let (nodes, each) = (nodes(args), ranks_per_node(args));
    let allowed = allowed_world_sizes(config.train.virtual_shards as usize);
    let world = nodes as usize * each as usize;
    if !allowed.contains(&world) {
        let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
        return Err(Usage(format!(
            "{} with {} each make {world} ranks, which do not fit train.virtual_shards = {}\n  help: with that many virtual shards the allowed numbers of ranks are {}; change --nodes, --gpus-per-node or --ranks-per-node, or set train.virtual_shards (this changes the result)",
            show::counted(nodes as usize, "node"),
            show::counted(each as usize, "rank"),
            config.train.virtual_shards,
            list.join(", ")
        ))
        .into());
    }
    if let Some(backend) = config.train.backend.entry()
        && backend.one_machine
        && nodes > 1
    {
        return Err(Usage(format!(
            "train.backend = \"{}\" joins ranks of one machine, and the job has {nodes} nodes\n  help: leave train.backend at \"auto\", or submit with --nodes 1",
            backend.name
        ))
        .into());
    }
    config.validate()?;
    // The job reads all of the data once; a login node only looks at the manifest.
    let data = Dataset::open_unverified(data)?;
    if !begun {
        for warning in preflight(&config, &data, Moment::Beginning)? {
            tracing::warn!("{warning}");
        }
        // This only validates the weights; the job records which ones it starts from.
        for line in initial::pin(&mut config, Some(data.task()))? {
            tracing::info!("initial weights: {line}");
        }
    }
    Ok(())
}

/// The message for a run that is finished, or an array whose runs all are; none otherwise.
fn finished(
    args: &SubmitArgs,
    base: &Path,
    run: &Path,
    epochs: u32,
) -> anyhow::Result<Option<String>> {
    let Some(array) = &args.array else {
        let step = finished_after(base, epochs)?;
        let report = base.display();
        return Ok(step.map(|step| {
            format!("finished after step {step}; look at it with: fovea report {report}")
        }));
    };
    let all = elements(array).map_err(|e| Usage(e.to_string()))?;
    let run = text(run)?;
    let mut all_done = true;
    for element in &all {
        let run = run_of_element(&run, *element);
        all_done &= finished_after(Path::new(&run), epochs)?.is_some();
    }
    let first = run_of_element(&run, all[0]);
    Ok(all_done.then(|| {
        let elements = show::counted(all.len(), "element");
        format!("all {elements} of {array} finished; look at one with: fovea report {first}")
    }))
}

/// The last step of a run that has nothing left to do in this number of epochs; none otherwise.
fn finished_after(run: &Path, epochs: u32) -> anyhow::Result<Option<u64>> {
    let config = RunDir::new(run).config();
    if !config.is_file() {
        return Ok(None);
    }
    let Ok(status) = Status::load(run) else {
        return Ok(None);
    };
    if status.state != RunState::Finished {
        return Ok(None);
    }
    let before = Config::load(&config)?;
    let left = source::epochs_are_left(
        run,
        &Epochs {
            before: before.train.epochs,
            now: epochs,
            done: status.epoch.saturating_add(1).min(status.epochs),
            finished: true,
            stopped_early: status.stopped_early(),
        },
    )?;
    Ok((!left).then_some(status.step))
}

/// Refuses a directory of something else, or of a run that another configuration started.
fn refuse_other_run(args: &SubmitArgs, base: &Path, config: &mut Config) -> anyhow::Result<()> {
    let run = RunDir::new(base);
    // The directory of an array holds its elements' runs; each element checks its own when it starts.
    if args.array.is_some() {
        return Ok(());
    }
    source::refuse_foreign(&run)?;
    if run.config().is_file() {
        let before = Config::load(&run.config())?;
        source::keep_initial_weights(base, config, &before)?;
        source::same_run(base, config, &before)?;
    }
    Ok(())
}

/// Refuses a run that already has a job: two jobs would disturb each other.
fn refuse_alive(base: &Path) -> anyhow::Result<()> {
    let history = History::load(base)
        .map_err(|e| Usage(format!("{}: {e}", history::path(base).display())))?;
    let jobs = submit::jobs_of(Submitted::load(base)?.as_ref(), &history);
    let alive = submit::alive(&jobs)?;
    let Some(job) = alive.first() else {
        return Ok(());
    };
    let more = match alive.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Err(Usage(format!(
        "{}: this run has a job already: {} is {}{more}\n  help: see `fovea status {}`; to submit it anew, first end that with: scancel {}",
        base.display(),
        job.id,
        job.state,
        base.display(),
        jobs.join(" ")
    ))
    .into())
}

/// The job: the options of the command over the defaults of the site file.
fn job(args: &SubmitArgs, base: &Path, run: &Path, data: &Path) -> anyhow::Result<Job> {
    let mut site = Site::load().map_err(|e| Usage(e.to_string()))?;
    for (given, default) in [
        (&args.partition, &mut site.partition),
        (&args.account, &mut site.account),
        (&args.qos, &mut site.qos),
        (&args.constraint, &mut site.constraint),
    ] {
        if given.is_some() {
            default.clone_from(given);
        }
    }
    site.modules.extend(args.modules.iter().cloned());
    let scratch = match args.stage.as_deref().unwrap_or("none") {
        "none" => Vec::new(),
        "auto" if !site.scratch.is_empty() => site.scratch.clone(),
        dir => vec![dir.to_owned()],
    };
    let program = match args.container {
        Some(_) => "fovea".to_owned(),
        None => text(&std::env::current_exe()?)?,
    };
    let time = args.time.unwrap_or(site.time);
    let saved = Status::load(base).ok().and_then(|status| status.checkpoint);
    let saved = saved.map(|checkpoint| Duration::from_millis(checkpoint.took_ms));
    Ok(Job {
        name: name(base),
        run: text(run)?,
        data: text(data)?,
        program,
        nodes: nodes(args),
        ranks_per_node: ranks_per_node(args),
        gpus_per_node: args.gpus_per_node.unwrap_or(0),
        cpus_per_rank: args.cpus_per_rank,
        time,
        lead: signal_lead(saved, time),
        array: args.array.clone(),
        set: args
            .source
            .set
            .iter()
            .filter(|set| of_element(args, set))
            .cloned()
            .collect(),
        container: args.container.clone(),
        scratch,
        site,
    })
}

/// `fovea-` and the name of the run directory, shortened to characters that queues display well.
fn name(base: &Path) -> String {
    let name = base.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!(
        "fovea-{}",
        name.chars().take(100).map(plain).collect::<String>()
    )
}

/// A path as text; refuses one that is not UTF-8, which a script cannot hold.
fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Usage(format!(
            "{}: the name is not UTF-8\n  help: choose another name",
            path.display()
        ))
        .into()
    })
}

/// Tells the user what was submitted and which commands follow it.
fn tell(job: &Job, submitted: &Submitted, base: &Path) -> anyhow::Result<()> {
    let ids: Vec<String> = submitted.jobs.iter().map(u64::to_string).collect();
    let first = ids.first().map_or("", String::as_str);
    let what = match (&job.array, submitted.jobs.len()) {
        (Some(array), _) => format!("array {first} ({array})"),
        (None, 1) => format!("job {first}"),
        (None, links) => format!("job {first} and {} that follow it", links - 1),
    };
    say!(
        "submitted {what}: {} with {} each, {} at a time until the run is finished",
        show::counted(job.nodes as usize, "node"),
        show::counted(job.ranks_per_node as usize, "rank"),
        time::format(Some(job.time))
    )?;
    let run = script::quote(&base.display().to_string());
    let log = match job.array {
        Some(_) => format!("job-{first}_ELEMENT.log"),
        None => format!("job-{first}.log"),
    };
    // Each element of an array has a run of its own.
    let (run_of, one) = match &job.array {
        Some(_) => (
            run_of_element(&job.run, "ELEMENT"),
            format!("{first}_ELEMENT"),
        ),
        None => (job.run.clone(), first.to_owned()),
    };
    say!(
        "  how it goes                fovea status {}",
        script::quote(&run_of)
    )?;
    say!("  in the queue               squeue -j {}", ids.join(","))?;
    say!("  what it says               tail -f {run}/{FOLDER}/{log}")?;
    say!("  stop, with a checkpoint    scancel --batch --signal=INT {one}")?;
    say!("  requeue, with a checkpoint scancel --batch --signal=USR1 {one}")?;
    say!("  stop at once, for good     scancel {}", ids.join(" "))?;
    Ok(())
}
