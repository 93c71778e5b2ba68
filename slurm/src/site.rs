//! One cluster's settings for every job: `~/.config/fovea/site.toml`, written once by the user.
//!
//! Without it, the defaults suit a Slurm without accounts and with one default partition.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::time;

/// A site file is a few lines long; this limits how much is read of another file that was named by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Which option of `sbatch` asks for GPUs on this cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GpuLine {
    /// `--gpus-per-node=2`, or `--gpus-per-node=a100:2` with a type.
    #[default]
    GpusPerNode,
    /// `--gres=gpu:2`, or `--gres=gpu:a100:2` with a type.
    Gres,
}

/// How a run that is not finished gets its next job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requeue {
    /// The job requeues itself with `scontrol requeue`.
    #[default]
    Scontrol,
    /// For clusters that forbid requeueing: `fovea submit` submits a chain of dependent jobs beforehand.
    Chain,
}

/// Defaults for the jobs of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Value of `--partition`; Slurm's default partition when absent.
    pub partition: Option<String>,
    /// Value of `--account`; the user's default account when absent.
    pub account: Option<String>,
    /// Value of `--qos`; the account's default when absent.
    pub qos: Option<String>,
    /// Value of `--constraint`, such as `a100&ib`; any node when absent.
    pub constraint: Option<String>,
    /// Names that the batch script gives to `module load`, one line each, in this order.
    pub modules: Vec<String>,
    /// Which option asks for GPUs.
    pub gpu: GpuLine,
    /// Type of GPU in that option, such as `a100`; any type when absent.
    pub gpu_type: Option<String>,
    /// Directories for node-local scratch, the best first: paths, or variables such as `$SLURM_TMPDIR`. Empty for the
    /// usual places of [`crate::scratch::candidates`].
    pub scratch: Vec<String>,
    /// Network interface that the coordinator listens on, such as `ib0`; the best one when absent.
    pub interface: Option<String>,
    /// How a run gets its next job.
    pub requeue: Requeue,
    /// Number of jobs in a chain, the first one included; 1 to 100.
    pub chain: u32,
    /// The words before the image in a container's command, such as `apptainer exec --nv`; empty for the default.
    pub container: Vec<String>,
    /// Further options of `sbatch`, one `#SBATCH` line each, copied as they are.
    pub sbatch: Vec<String>,
    /// Value of `srun --mpi` where the automatic choice is not the right one; `mpirun` asks for MPI's own launcher.
    pub mpi: Option<String>,
    /// Time limit of a job whose submission gives none; at least a minute.
    pub time: Duration,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            modules: Vec::new(),
            gpu: GpuLine::default(),
            gpu_type: None,
            scratch: Vec::new(),
            interface: None,
            requeue: Requeue::default(),
            chain: 10,
            container: Vec::new(),
            sbatch: Vec::new(),
            mpi: None,
            time: Duration::from_secs(4 * 3600),
        }
    }
}

/// A key of the file: its name, an example of its value, and how its value gets into a [`Site`].
struct SiteKey {
    name: &'static str,
    example: &'static str,
    take: fn(&mut Site, &DeValue<'_>) -> Result<(), String>,
}

/// All keys, in the order in which messages list them.
const KEYS: &[SiteKey] = &[
    SiteKey {
        name: "partition",
        example: "\"gpu\"",
        take: |s, v| word(v).map(|w| s.partition = Some(w)),
    },
    SiteKey {
        name: "account",
        example: "\"lab\"",
        take: |s, v| word(v).map(|w| s.account = Some(w)),
    },
    SiteKey {
        name: "qos",
        example: "\"normal\"",
        take: |s, v| word(v).map(|w| s.qos = Some(w)),
    },
    SiteKey {
        name: "constraint",
        example: "\"a100&ib\"",
        take: |s, v| word(v).map(|w| s.constraint = Some(w)),
    },
    SiteKey {
        name: "modules",
        example: "[\"openmpi/5.0\"]",
        take: |s, v| list(v).map(|l| s.modules = l),
    },
    SiteKey {
        name: "gpu",
        example: "\"gpus-per-node\", \"gres\", or with a type \"gres:a100\"",
        take: gpu,
    },
    SiteKey {
        name: "scratch",
        example: "\"$SLURM_TMPDIR\" or [\"$TMPDIR\", \"/scratch/local\"]",
        take: |s, v| list(v).map(|l| s.scratch = l),
    },
    SiteKey {
        name: "interface",
        example: "\"ib0\"",
        take: |s, v| word(v).map(|w| s.interface = Some(w)),
    },
    SiteKey {
        name: "requeue",
        example: "\"scontrol\" or \"chain\"",
        take: requeue,
    },
    SiteKey {
        name: "chain",
        example: "10",
        take: chain,
    },
    SiteKey {
        name: "container",
        example: "\"apptainer exec --nv --bind /data\"",
        take: |s, v| words(v).map(|w| s.container = w),
    },
    SiteKey {
        name: "sbatch",
        example: "[\"--mem=0\", \"--exclusive\"]",
        take: sbatch,
    },
    SiteKey {
        name: "mpi",
        example: "\"pmix_v4\"",
        take: |s, v| word(v).map(|w| s.mpi = Some(w)),
    },
    SiteKey {
        name: "time",
        example: "\"12:00:00\"",
        take: limit,
    },
];

fn text(value: &DeValue<'_>) -> Result<String, String> {
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        _ => return Err("not a text in quotes".to_owned()),
    };
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("{c:?} in it")),
        None if text.trim().is_empty() => Err("empty".to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn word(value: &DeValue<'_>) -> Result<String, String> {
    let text = text(value)?;
    if text.contains(char::is_whitespace) {
        return Err("a space in it".to_owned());
    }
    Ok(text)
}

/// One text, or a list of them.
fn list(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(values) => values.iter().map(|value| text(value.get_ref())).collect(),
        other => Ok(vec![text(other)?]),
    }
}

/// A command: a list, or one text that is cut at its spaces.
fn words(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(_) => list(value),
        other => Ok(text(other)?.split_whitespace().map(str::to_owned).collect()),
    }
}

fn gpu(site: &mut Site, value: &DeValue<'_>) -> Result<(), String> {
    let text = word(value)?;
    let (line, kind) = match text.split_once(':') {
        Some((line, kind)) if !kind.is_empty() => (line, Some(kind.to_owned())),
        Some(_) => return Err("no type behind the colon".to_owned()),
        None => (text.as_str(), None),
    };
    site.gpu = match line {
        "gpus-per-node" => GpuLine::GpusPerNode,
        "gres" => GpuLine::Gres,
        _ => return Err("neither gpus-per-node nor gres".to_owned()),
    };
    site.gpu_type = kind;
    Ok(())
}

fn requeue(site: &mut Site, value: &DeValue<'_>) -> Result<(), String> {
    site.requeue = match text(value)?.as_str() {
        "scontrol" => Requeue::Scontrol,
        "chain" => Requeue::Chain,
        _ => return Err("neither scontrol nor chain".to_owned()),
    };
    Ok(())
}

fn chain(site: &mut Site, value: &DeValue<'_>) -> Result<(), String> {
    let DeValue::Integer(number) = value else {
        return Err("not a whole number".to_owned());
    };
    site.chain = number
        .to_string()
        .parse()
        .ok()
        .filter(|jobs| (1..=100).contains(jobs))
        .ok_or("not in 1..=100")?;
    Ok(())
}

fn sbatch(site: &mut Site, value: &DeValue<'_>) -> Result<(), String> {
    let lines = list(value)?;
    let bare: Vec<String> = lines
        .iter()
        .map(|line| line.trim_start_matches("#SBATCH").trim().to_owned())
        .collect();
    if let Some(line) = bare.iter().find(|line| !line.starts_with('-')) {
        return Err(format!(
            "{line:?} is no option of sbatch: it begins without -"
        ));
    }
    site.sbatch = bare;
    Ok(())
}

fn limit(site: &mut Site, value: &DeValue<'_>) -> Result<(), String> {
    let minutes = match value {
        DeValue::Integer(minutes) => minutes.to_string(),
        other => text(other)?,
    };
    match time::parse(&minutes) {
        Ok(Some(limit)) if limit >= Duration::from_secs(60) => site.time = limit,
        Ok(Some(_)) => return Err("less than a minute".to_owned()),
        Ok(None) => return Err("a job needs a limit".to_owned()),
        Err(error) => return Err(error.what),
    }
    Ok(())
}

/// A site file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {what}\n  help: {help}", path.display(), line.map_or_else(String::new, |l| format!(", line {l}")))]
pub struct Error {
    /// Path of the site file.
    pub path: PathBuf,
    /// The line, counted from 1, where the error has one.
    pub line: Option<usize>,
    /// What is wrong, without the place.
    pub what: String,
    /// What the user should do, as an instruction.
    pub help: String,
}

impl Site {
    /// Reads the file's text; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let error = |at: usize, what: String, help: String| Error {
            path: path.to_owned(),
            line: Some(1 + text.bytes().take(at).filter(|b| *b == b'\n').count()),
            what,
            help,
        };
        let document = DeTable::parse(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            error(
                at,
                e.message().to_owned(),
                "the file is TOML: lines like partition = \"gpu\"".to_owned(),
            )
        })?;
        // Keys come in alphabetical order; the error to show is the first one in the file.
        let mut entries: Vec<_> = document.get_ref().iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut site = Self::default();
        for (name, value) in entries {
            let at = name.span().start;
            let given = name.get_ref().as_ref();
            let Some(key) = KEYS.iter().find(|key| key.name == given) else {
                return Err(error(at, format!("unknown key {given:?}"), nearest(given)));
            };
            (key.take)(&mut site, value.get_ref()).map_err(|what| {
                let written = text.get(value.span()).unwrap_or_default();
                error(
                    at,
                    format!("{given} = {written}: {what}"),
                    format!("write {given} = {}", key.example),
                )
            })?;
        }
        Ok(site)
    }

    /// The site file of this user, or the default where there is none.
    pub fn load() -> Result<Self, Error> {
        let lookup = |name: &str| std::env::var(name).ok();
        match Self::location(lookup) {
            Some((path, named)) => Self::read(&path, named),
            None => Ok(Self::default()),
        }
    }

    /// Where the file is looked for, and whether the user has named it: `$FOVEA_SITE`, else
    /// `$XDG_CONFIG_HOME/fovea/site.toml`, else `~/.config/fovea/site.toml`.
    pub fn location(lookup: impl Fn(&str) -> Option<String>) -> Option<(PathBuf, bool)> {
        let path = |name: &str| lookup(name).filter(|p| !p.is_empty()).map(PathBuf::from);
        if let Some(named) = path("FOVEA_SITE") {
            return Some((named, true));
        }
        let config = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")))?;
        Some((config.join("fovea/site.toml"), false))
    }

    /// Reads a file; one that is missing is the default, unless it was `named`.
    pub fn read(path: &Path, named: bool) -> Result<Self, Error> {
        use std::io::Read as _;

        let failed = |e: std::io::Error, help: &str| Error {
            path: path.to_owned(),
            line: None,
            what: e.to_string(),
            help: help.to_owned(),
        };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => {
                return Ok(Self::default());
            }
            Err(e) => {
                return Err(failed(
                    e,
                    "FOVEA_SITE names this file; correct it or unset it",
                ));
            }
        };
        let mut text = String::new();
        file.take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(|e| failed(e, "make it a readable text file"))?;
        Self::parse(&text, path)
    }
}

fn nearest(given: &str) -> String {
    let close = KEYS
        .iter()
        .map(|key| (strsim::damerau_levenshtein(given, key.name), key.name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(given.len()) / 2);
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    match close {
        Some((_, name)) => format!("did you mean {name}?"),
        None => format!("the keys are {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
