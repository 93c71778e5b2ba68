//! Slurm's commands: `sbatch`, `squeue`, `scontrol`, `sinfo`, `scancel`. This module runs them with a time limit and
//! quotes their errors; pure functions read their output.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::time;

/// Longest that a command may take: a busy or absent controller answers late or never.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of each output stream that are kept.
const MAX_BYTES: u64 = 16 << 20;
/// Fields of `squeue -o`, in the order of [`parse_squeue`].
const SQUEUE_FIELDS: &str = "%i|%T|%L|%N|%r";

/// A command of Slurm that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The program is not on the PATH.
    #[error(
        "{command}: command not found\n  help: go to the cluster's login node, or load its slurm module; `fovea submit --dry-run` shows the script without Slurm"
    )]
    NotFound {
        /// Name of the program, without arguments.
        command: String,
    },
    /// The system refused to start the program.
    #[error("{command}: cannot be started: {source}\n  help: see whether you may run it", source = .what)]
    NotStarted {
        /// Name of the program, without arguments.
        command: String,
        /// The operating system's error.
        what: String,
    },
    /// The command was still running at the limit and was killed.
    #[error(
        "`{command}` has not answered for {} s{}\n  help: Slurm's controller is busy or away: see `scontrol ping`, and try again", limit.as_secs(), said_so(said)
    )]
    Timeout {
        /// The command with its arguments.
        command: String,
        /// How long fovea waited.
        limit: Duration,
        /// Standard error in one line; empty when the stream was still open.
        said: String,
    },
    /// The command ended with an exit code other than 0.
    #[error(
        "`{command}` failed ({status}){}\n  help: {}",
        said_so(said),
        help(said)
    )]
    Failed {
        /// The command with its arguments.
        command: String,
        /// The exit status in words, such as `exit status: 1`.
        status: String,
        /// Standard error in one line, or standard output where standard error is empty.
        said: String,
    },
    /// The command succeeded, but its output cannot be parsed.
    #[error(
        "`{command}` printed {printed:?}: {what}\n  help: this Slurm is of a kind that fovea does not know; please report it with `sinfo --version`"
    )]
    Unexpected {
        /// The command with its arguments.
        command: String,
        /// The first 200 characters of standard output.
        printed: String,
        /// What is wrong with the output.
        what: String,
    },
}

fn said_so(said: &str) -> String {
    match said.is_empty() {
        true => String::new(),
        false => format!(": {said}"),
    }
}

const AWAY: &str = "Slurm's controller is away: see `scontrol ping`, and try again";

/// The instruction for a refusal that users meet, by Slurm's words.
fn help(said: &str) -> &'static str {
    let said = said.to_lowercase();
    let has = |words: &str| said.contains(words);
    if has("invalid account") || has("association") {
        "name an account that you may use with --account, or `account` in site.toml (see `sacctmgr show assoc user=$USER`)"
    } else if has("partition") {
        "choose a partition with --partition, or `partition` in site.toml (see `sinfo`)"
    } else if has("qos") {
        "choose another --qos, or `qos` in site.toml (see `sacctmgr show qos`)"
    } else if has("time limit") {
        "ask for less with --time (see the limits of the partitions with `sinfo`)"
    } else if has("invalid generic resource") || has("gres") {
        "correct `gpu` in site.toml (see how the nodes call their GPUs with `sinfo -o '%N %G'`)"
    } else if has("node configuration") || has("node count") || has("cpu count") {
        "ask for fewer nodes, ranks, CPUs or GPUs per node (see `sinfo -N -l`)"
    } else if has("unable to contact") || has("connection refused") || has("timed out") {
        AWAY
    } else {
        "Slurm's own words above say why; `sbatch --help` explains its options"
    }
}

impl Error {
    /// Whether Slurm refused the request itself: asking again is of no use.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Failed { said, .. } if help(said) != AWAY)
    }
}

/// The output of a command that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The command with its arguments, for errors.
    pub command: String,
    /// Standard output as text, at most 16 MiB.
    pub out: String,
    /// Standard error as text, at most 16 MiB.
    pub err: String,
}

impl Said {
    fn unexpected(&self, what: impl Into<String>) -> Error {
        Error::Unexpected {
            command: self.command.clone(),
            printed: self.out.trim().chars().take(200).collect(),
            what: what.into(),
        }
    }
}

/// Runs a command and waits for it, at most `limit`.
pub fn run(program: &str, args: &[&str], limit: Duration) -> Result<Said, Error> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(program, command, limit)
}

fn run_command(program: &str, mut command: Command, limit: Duration) -> Result<Said, Error> {
    let words: Vec<String> = std::iter::once(program.to_owned())
        .chain(
            command
                .get_args()
                .map(|arg| crate::script::quote(&arg.to_string_lossy())),
        )
        .collect();
    let text = words.join(" ");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound {
            command: program.to_owned(),
        },
        _ => Error::NotStarted {
            command: program.to_owned(),
            what: e.to_string(),
        },
    })?;
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let end = Instant::now() + limit;
    let status: Option<ExitStatus> = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let Some(status) = status else {
        // The command's children may hold the pipes open, so nobody waits for the readers.
        let said = if err.is_finished() {
            collect(err)
        } else {
            String::new()
        };
        return Err(Error::Timeout {
            command: text,
            limit,
            said: one_line(&said),
        });
    };
    let said = Said {
        command: text,
        out: collect(out),
        err: collect(err),
    };
    if status.success() {
        return Ok(said);
    }
    let words = if said.err.trim().is_empty() {
        &said.out
    } else {
        &said.err
    };
    Err(Error::Failed {
        status: status.to_string(),
        said: one_line(words),
        command: said.command,
    })
}

type PipeReader = std::thread::JoinHandle<String>;

fn reader(pipe: Option<impl Read + Send + 'static>) -> PipeReader {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(MAX_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn collect(reader: PipeReader) -> String {
    reader.join().unwrap_or_default()
}

/// Joins the lines of a command's output and drops the command's name at the beginning of each.
fn one_line(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(|line| {
            let line = line.trim();
            let named = [
                "sbatch: ",
                "squeue: ",
                "scontrol: ",
                "sinfo: ",
                "scancel: ",
                "error: ",
            ];
            named
                .iter()
                .fold(line, |line, name| line.strip_prefix(name).unwrap_or(line))
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

/// A job, or an element of an array, as Slurm sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// `17`, `15_3`, or `15_[4-9]` for elements that wait together.
    pub id: String,
    /// `PENDING`, `RUNNING`, `COMPLETING`, `CANCELLED`, ...
    pub state: String,
    /// Why it is in this state: `None`, `Resources`, `BeginTime`, ...
    pub reason: String,
    /// Time left, where it has a limit that is running.
    pub time_left: Option<Duration>,
    /// Its nodes, compressed; empty while it waits.
    pub nodes: String,
    /// How often Slurm requeued it; only `scontrol` reports that.
    pub restarts: Option<u32>,
    /// Exit code and signal; only `scontrol` reports them.
    pub exit: Option<(i32, i32)>,
}

impl JobState {
    /// Whether it will not run any more.
    pub fn is_over(&self) -> bool {
        let over = [
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "TIMEOUT",
        ];
        over.iter().any(|state| self.state == *state)
    }

    /// Whether it waits for its turn.
    pub fn is_waiting(&self) -> bool {
        self.state == "PENDING" || self.state.starts_with("REQUEUE")
    }
}

/// Lines of `squeue -h -o '%i|%T|%L|%N|%r'`.
pub fn parse_squeue(text: &str) -> Result<Vec<JobState>, String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.trim().splitn(5, '|').collect();
        let [id, state, left, nodes, reason] = fields.as_slice() else {
            return Err(format!("{line:?} has {} fields, not 5", fields.len()));
        };
        Ok(JobState {
            id: (*id).to_owned(),
            state: (*state).to_owned(),
            reason: (*reason).to_owned(),
            time_left: time::parse(left).map_err(|e| e.to_string())?,
            nodes: (*nodes).to_owned(),
            restarts: None,
            exit: None,
        })
    };
    text.lines()
        .filter(|text| !text.trim().is_empty())
        .map(line)
        .collect()
}

/// Lines of `scontrol show job --oneliner`, one job each.
pub fn parse_show_job(text: &str) -> Result<Vec<JobState>, String> {
    let line = |line: &str| {
        // Values such as names and comments may hold spaces. The fields that are read here hold none, and the first
        // match counts: a job name with ` JobState=` in it would win, because JobName comes before JobState.
        let field = |name: &str| {
            line.split_whitespace()
                .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .next()
                .filter(|value| !matches!(*value, "(null)" | "N/A" | ""))
        };
        let id = field("JobId").ok_or_else(|| format!("{line:?} has no JobId"))?;
        let id = match (field("ArrayJobId"), field("ArrayTaskId")) {
            (Some(array), Some(task)) => format!("{array}_{task}"),
            _ => id.to_owned(),
        };
        let state = field("JobState").ok_or_else(|| format!("{line:?} has no JobState"))?;
        let exit = field("ExitCode").and_then(|code| {
            let (code, signal) = code.split_once(':')?;
            Some((code.parse().ok()?, signal.parse().ok()?))
        });
        Ok(JobState {
            id,
            state: state.to_owned(),
            reason: field("Reason").unwrap_or("None").to_owned(),
            time_left: None,
            nodes: field("NodeList").unwrap_or_default().to_owned(),
            restarts: field("Restarts").and_then(|n| n.parse().ok()),
            exit,
        })
    };
    text.lines()
        .filter(|text| text.contains("JobId="))
        .map(line)
        .collect()
}

/// `17` or `17;cluster` from `sbatch --parsable`.
pub fn parse_job_id(text: &str) -> Option<u64> {
    // A site's job-submit plugin may print a greeting before the id.
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    line.split(';').next()?.parse().ok()
}

/// Asks Slurm whether it would accept a script, without submitting it. Returns Slurm's answer: where the job would run,
/// and when.
pub fn test_only(script: &Path) -> Result<String, Error> {
    let said = sbatch(&["--test-only"], script)?;
    Ok(one_line(&said.err))
}

/// Submits a script and returns the id of the job.
pub fn submit(script: &Path, options: &[&str]) -> Result<u64, Error> {
    let options: Vec<&str> = std::iter::once("--parsable")
        .chain(options.iter().copied())
        .collect();
    let said = sbatch(&options, script)?;
    parse_job_id(&said.out).ok_or_else(|| said.unexpected("no job id"))
}

/// Runs sbatch without this job's own `SLURM_*` variables: a job that is submitted from inside another one must not
/// inherit that one's numbers.
fn sbatch(options: &[&str], script: &Path) -> Result<Said, Error> {
    let mut command = Command::new("sbatch");
    command.args(options).arg(script);
    let keep = [
        "SLURM_CONF",
        "SLURM_CONF_SERVER",
        "SLURM_CLUSTERS",
        "SLURM_JWT",
    ];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("SLURM_") && !keep.contains(&name.as_ref()) {
            command.env_remove(name.as_ref());
        }
    }
    run_command("sbatch", command, TIMEOUT)
}

/// The states of jobs. `squeue` reports those in the queue; `scontrol` reports those that have ended, which it
/// remembers for some minutes. A job that Slurm has forgotten is left out; an array gives one state per element.
///
/// `ids` name jobs or arrays (`17`), or elements (`17_3`).
pub fn job_states(ids: &[String]) -> Result<Vec<JobState>, Error> {
    let mut states = Vec::new();
    for id in ids {
        let queued = match run(
            "squeue",
            &["-h", "-r", "-j", id, "-o", SQUEUE_FIELDS],
            TIMEOUT,
        ) {
            Ok(said) => parse_squeue(&said.out).map_err(|what| said.unexpected(what))?,
            Err(error) if is_unknown_job(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        let ended = match run("scontrol", &["show", "job", "--oneliner", id], TIMEOUT) {
            Ok(said) => parse_show_job(&said.out).map_err(|what| said.unexpected(what))?,
            Err(error) if is_unknown_job(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        states.extend(merge(queued, ended));
    }
    Ok(states)
}

/// Merges both views of the same jobs: the queue knows the time left; the controller knows the exit code and how often
/// a job was requeued.
fn merge(mut queued: Vec<JobState>, shown: Vec<JobState>) -> Vec<JobState> {
    for job in shown {
        match queued.iter_mut().find(|known| known.id == job.id) {
            Some(known) => (known.restarts, known.exit) = (job.restarts, job.exit),
            None if job.is_over() => queued.push(job),
            // `scontrol` shows waiting elements as one job; the queue lists them one by one.
            None => {}
        }
    }
    queued
}

fn is_unknown_job(error: &Error) -> bool {
    matches!(error, Error::Failed { said, .. } if said.contains("Invalid job id"))
}

/// Sends a signal to the batch script of a job, or cancels it.
pub fn cancel(id: &str, signal: Option<&str>) -> Result<(), Error> {
    let signalled = signal.map(|signal| format!("--signal={signal}"));
    let mut args: Vec<&str> = Vec::new();
    if let Some(signal) = &signalled {
        args.extend(["--batch", signal]);
    }
    args.push(id);
    run("scancel", &args, TIMEOUT).map(drop)
}

/// The output of `sinfo` for these nodes: one line `NAME STATE` per node and partition.
pub fn node_states(nodes: &str) -> Result<String, Error> {
    run("sinfo", &["-h", "-N", "-n", nodes, "-o", "%N %t"], TIMEOUT).map(|said| said.out)
}

#[cfg(test)]
mod tests;
