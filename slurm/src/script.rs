//! The batch script: from a resolved [`Job`] to the text that `sbatch` gets.
//!
//! Pure. The header tells Slurm what the job wants; the settings name what runs. The rest is the same for all jobs of a
//! kind: it comes from `script/*.sh`, with comments for readers of `RUN/slurm/job.sh`. Only the script talks to Slurm,
//! because a container has none of its commands; the script forwards what it learned to `fovea` as options.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use crate::site::{GpuLine, Requeue, Site};
use crate::time;

/// The placeholder for the element's number in the paths and values of an array job.
pub const ELEMENT: &str = "%a";
/// Least and usual notice ahead of the time limit.
const LEAST_LEAD: Duration = Duration::from_secs(60);
const USUAL_LEAD: Duration = Duration::from_secs(120);
/// Slurm stores the lead in 16 bits.
const MOST_LEAD: Duration = Duration::from_secs(65_535);

/// Everything that a batch script depends on. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Name of the job in the queue.
    pub name: String,
    /// Run directory; of an array, with [`ELEMENT`] for each element's own. See [`Job::base`].
    pub run: String,
    /// Directory of the prepared dataset.
    pub data: String,
    /// Path of the fovea program on the nodes; with a container, inside the image.
    pub program: String,
    /// Number of nodes (`--nodes`).
    pub nodes: u32,
    /// Number of ranks on each node (`--ntasks-per-node`).
    pub ranks_per_node: u32,
    /// GPUs per node, 0 for none.
    pub gpus_per_node: u32,
    /// Value of `--cpus-per-task`; Slurm's default when absent.
    pub cpus_per_rank: Option<u32>,
    /// Time limit of one job (`--time`).
    pub time: Duration,
    /// Notice ahead of the time limit; see [`signal_lead`].
    pub lead: Duration,
    /// Value of `--array`; absent for a single job.
    pub array: Option<String>,
    /// Assignments that contain [`ELEMENT`], applied over `RUN/slurm/config.toml`; that file has the others already.
    pub set: Vec<String>,
    /// Container image that fovea runs in; absent without a container.
    pub container: Option<String>,
    /// Directories on a node for a copy of the data, best first; `auto` for the node's usual places; empty for no copy.
    pub scratch: Vec<String>,
    /// The site's defaults, overridden by the options of this submission.
    pub site: Site,
}

/// A job that no batch script can express.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  help: {help}")]
pub struct Error {
    /// What is wrong with the job.
    pub what: String,
    /// What the user should do, as an instruction.
    pub help: String,
}

impl Error {
    fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            help: help.into(),
        }
    }
}

/// How long before its time limit Slurm signals a job. Where the time of the newest checkpoint is known: three times
/// that, and 30 s for the last step; otherwise 120 s. At most a quarter of the time limit and what Slurm can store; at
/// least 60 s, because Slurm checks limits only every 30 s.
pub fn signal_lead(save: Option<Duration>, time: Duration) -> Duration {
    let wanted = match save.filter(|save| !save.is_zero()) {
        Some(save) => save
            .saturating_mul(3)
            .saturating_add(Duration::from_secs(30)),
        None => USUAL_LEAD,
    };
    let lead = wanted.min(time / 4).clamp(LEAST_LEAD, MOST_LEAD);
    // Rounded up to whole seconds.
    Duration::from_secs(lead.as_secs() + u64::from(lead.subsec_nanos() > 0))
}

impl Job {
    /// Directory of the files that belong to the whole job. It is the run directory; for an array with [`ELEMENT`] in
    /// its run directory (`lr-%a`), it is the one called `lr-array`.
    pub fn base(&self) -> String {
        base(&self.run, self.array.is_some())
    }

    /// Refuses a job that Slurm or bash would understand differently.
    pub fn check(&self) -> Result<(), Error> {
        let paths = [
            ("run directory", &self.run),
            ("dataset", &self.data),
            ("program", &self.program),
        ];
        for (what, path) in paths {
            if path.chars().any(|c| c.is_control()) {
                return Err(Error::new(
                    format!("the {what} {path:?} has a control character in its name"),
                    "choose another name",
                ));
            }
        }
        // Slurm interprets % and \ in the names of log files.
        if self.run.contains('\\') {
            return Err(Error::new(
                format!(
                    "the run directory {:?} has a backslash in its name, which Slurm takes for its own",
                    self.run
                ),
                "choose another --out",
            ));
        }
        if self.nodes == 0 || self.ranks_per_node == 0 {
            return Err(Error::new(
                format!(
                    "{} nodes with {} ranks each are no job",
                    self.nodes, self.ranks_per_node
                ),
                "give --nodes and --ranks-per-node of at least 1",
            ));
        }
        if self.array.is_some() && self.site.requeue == Requeue::Chain {
            return Err(Error::new(
                "an array cannot come back by a chain of jobs: an element cannot wait for its own predecessor",
                "submit the elements one by one, or set requeue = \"scontrol\" in site.toml",
            ));
        }
        if let Some(array) = &self.array {
            elements(array)?;
        }
        Ok(())
    }
}

/// [`Job::base`] for a run directory, and whether it is that of an array.
pub fn base(run: &str, array: bool) -> String {
    match array {
        true => run.replace(ELEMENT, "array"),
        false => run.to_owned(),
    }
}

/// Slurm's usual limit to the numbers of an array (`MaxArraySize`) is far below this.
const MOST_ELEMENTS: usize = 1_000_000;

/// The elements of `1-10:2%3` or `7,9`, in the order given, each once. Never empty.
pub fn elements(array: &str) -> Result<Vec<u32>, Error> {
    let wrong = || {
        Error::new(
            format!("--array {array:?} is no list of numbers"),
            "write it like 0-9, 1,3,5, 0-20:5 or 0-99%4",
        )
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let list = match array.split_once('%') {
        Some((list, most)) => number(most).map(|_| list)?,
        None => array,
    };
    let mut all = BTreeSet::new();
    let mut elements = Vec::new();
    for part in list.split(',') {
        let (range, stride) = match part.split_once(':') {
            Some((range, stride)) => (range, number(stride)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if last < first || stride == 0 {
            return Err(wrong());
        }
        for element in (first..=last).step_by(stride as usize) {
            if all.insert(element) {
                elements.push(element);
            }
            if elements.len() > MOST_ELEMENTS {
                return Err(wrong());
            }
        }
    }
    Ok(elements)
}

/// The run directory of an element, given its number or a placeholder for it.
pub fn run_of_element(run: &str, element: impl Display) -> String {
    match run.contains(ELEMENT) {
        true => run.replace(ELEMENT, &element.to_string()),
        false => format!("{}/{element}", base(run, true)),
    }
}

/// The whole text of the batch script.
pub fn render(job: &Job) -> String {
    let mut script = header(job);
    script.push_str(&modules(job));
    script.push_str(&settings(job));
    script.push_str(include_str!("script/notice.sh"));
    let launch = "\"${launch[@]}\" \"${fovea[@]}\" trainer \"$run\" --in-job";
    if job.scratch.is_empty() {
        script.push_str(&include_str!("script/loop.sh").replace("@LAUNCH@", launch));
    } else {
        script.push_str(include_str!("script/stage.sh"));
        let launch = format!("{launch} \"${{staged[@]}}\"");
        script.push_str(&include_str!("script/loop.sh").replace("@LAUNCH@", &launch));
        script.push_str(include_str!("script/unstage.sh"));
    }
    script.push_str(include_str!("script/end.sh"));
    script.push_str(match job.site.requeue {
        Requeue::Scontrol => include_str!("script/requeue.sh"),
        Requeue::Chain => include_str!("script/chain.sh"),
    });
    script
}

/// The shebang and the `#SBATCH` lines, which `sbatch` reads.
fn header(job: &Job) -> String {
    let site = &job.site;
    let log = match job.array {
        Some(_) => "job-%A_%a.log",
        None => "job-%j.log",
    };
    let base = job.base();
    let mut lines = vec![
        format!("--job-name={}", job.name),
        format!("--output={}/slurm/{log}", base.replace('%', "%%")),
        "--open-mode=append".to_owned(),
        match site.requeue {
            Requeue::Scontrol => "--requeue",
            Requeue::Chain => "--no-requeue",
        }
        .to_owned(),
        "--no-kill".to_owned(),
        format!("--signal=B:USR1@{}", job.lead.as_secs()),
        format!("--nodes={}", job.nodes),
        format!("--ntasks-per-node={}", job.ranks_per_node),
    ];
    lines.extend(
        job.cpus_per_rank
            .map(|cpus| format!("--cpus-per-task={cpus}")),
    );
    if job.gpus_per_node > 0 {
        let kind = site
            .gpu_type
            .as_ref()
            .map_or_else(String::new, |kind| format!("{kind}:"));
        lines.push(match site.gpu {
            GpuLine::GpusPerNode => format!("--gpus-per-node={kind}{}", job.gpus_per_node),
            GpuLine::Gres => format!("--gres=gpu:{kind}{}", job.gpus_per_node),
        });
    }
    lines.push(format!("--time={}", time::format(Some(job.time))));
    let named = [
        ("partition", &site.partition),
        ("account", &site.account),
        ("qos", &site.qos),
        ("constraint", &site.constraint),
        ("array", &job.array),
    ];
    for (option, value) in named {
        lines.extend(value.as_ref().map(|value| format!("--{option}={value}")));
    }
    let mut text = String::from("#!/bin/bash\n");
    let _ = writeln!(
        text,
        "# Written by `fovea submit`. To run it again, changed or not: sbatch {}",
        quote(&format!("{base}/slurm/job.sh"))
    );
    for line in lines {
        let _ = writeln!(text, "#SBATCH {}", quote_option(&line));
    }
    // Copied from the site file as they are: their quotes are the user's.
    for line in &site.sbatch {
        let _ = writeln!(text, "#SBATCH {line}");
    }
    text
}

fn modules(job: &Job) -> String {
    if job.site.modules.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "
# A shell that is no login shell may not know `module` yet.
if ! command -v module >/dev/null 2>&1; then
    for file in /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh; do
        # shellcheck disable=SC1090
        if [ -r \"$file\" ]; then . \"$file\" && break; fi
    done
fi
",
    );
    for module in &job.site.modules {
        let _ = writeln!(text, "module load {} || exit 2", quote(module));
    }
    text
}

/// The variables of the script: the program to run, the paths, and the options.
fn settings(job: &Job) -> String {
    let array = job.array.is_some();
    let value = |text: &str| match array {
        true => quote_element(text),
        false => quote(text),
    };
    let mut text = String::from("\nset -u\n");
    if array {
        text.push_str("element=$SLURM_ARRAY_TASK_ID\n");
        text.push_str("# The last element has the whole array's id as SLURM_JOB_ID: this names one element only.\n");
        text.push_str("job=${SLURM_ARRAY_JOB_ID}_$element\n");
    } else {
        text.push_str("job=$SLURM_JOB_ID\n");
    }
    let _ = writeln!(text, "base={}", quote(&job.base()));
    let run = match array && !job.run.contains(ELEMENT) {
        true => "$base/$element".to_owned(),
        false if array => value(&job.run),
        false => "$base".to_owned(),
    };
    let _ = writeln!(text, "run={run}");
    text.push_str("config=$base/slurm/config.toml\n");
    if job.container.is_some() || !job.scratch.is_empty() {
        let _ = writeln!(text, "data={}", quote(&job.data));
    }
    text.push_str(&program(job));
    // Never empty: before version 4.4, bash takes an empty array for a variable that is not set.
    let mut options = vec!["--out \"$run\"".to_owned()];
    options.extend(job.set.iter().map(|set| format!("--set {}", value(set))));
    options.extend(
        job.site
            .mpi
            .as_ref()
            .map(|mpi| format!("--mpi {}", quote(mpi))),
    );
    options.extend(
        job.site
            .interface
            .as_ref()
            .map(|name| format!("--interface {}", quote(name))),
    );
    let _ = writeln!(text, "options=({})", options.join(" "));
    if !job.scratch.is_empty() {
        let places = |option: &str| {
            let all: Vec<String> = job
                .scratch
                .iter()
                .map(|place| format!("{option} {}", quote(place)))
                .collect();
            all.join(" ")
        };
        text.push_str("# Each node takes the first of these that it has, and puts in its own value of a variable.\n");
        for (name, option) in [("to", "--to"), ("staged", "--staged")] {
            if job.scratch.iter().any(|place| place.contains('$')) {
                text.push_str("# shellcheck disable=SC2016\n");
            }
            let _ = writeln!(text, "{name}=({})", places(option));
        }
    }
    text.push_str(
        "# Seconds that ranks and coordinator get to leave by themselves.\npatience=20\n",
    );
    text
}

fn program(job: &Job) -> String {
    let Some(image) = &job.container else {
        return format!("fovea=({})\n", quote(&job.program));
    };
    let words = &job.site.container;
    let prefix = if words.is_empty() {
        let gpus = if job.gpus_per_node > 0 { "--nv " } else { "" };
        format!("apptainer exec {gpus}--bind \"$run\" --bind \"$base\" --bind \"$data\"")
    } else {
        words
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "# The container has to see these directories, and to let Slurm's variables through.\nmkdir -p \"$run\"\nfovea=({prefix} {} {})\n",
        quote(image),
        quote(&job.program)
    )
}

/// A word of bash that stands for exactly this text.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=@%+,-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// [`quote`], with the element's number in place of every [`ELEMENT`].
fn quote_element(text: &str) -> String {
    let parts: Vec<String> = text
        .split(ELEMENT)
        .map(|part| {
            if part.is_empty() {
                String::new()
            } else {
                quote(part)
            }
        })
        .collect();
    parts.join("\"$element\"")
}

/// Quotes an option in an `#SBATCH` line: Slurm knows quotes and backslashes there, but no shell reads the line.
fn quote_option(option: &str) -> String {
    if !option.contains(|c: char| c.is_whitespace() || "'\"\\#".contains(c)) {
        return option.to_owned();
    }
    format!("\"{}\"", option.replace('\\', r"\\").replace('"', r#"\""#))
}

#[cfg(test)]
mod tests;
