//! Backends: the ways in which the ranks of a run can meet, one row each in [`BACKENDS`].
//!
//! A new backend is a folder beside the others and a row here. The configuration takes the accepted spellings from the
//! rows; the launcher, the jobs and the measurements ask a row for what they need to know, and never for its name.

use std::fmt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_coordinator::protocol::Seated;
use fovea_kernels::cuda::{Device, Kernels};
use serde::{Deserialize, Serialize};

use super::solo::Alone;
use super::{AbortHandle, Collective, Error, Result, local, mpi, nccl};

/// Every backend, in the order in which messages and the documentation list them.
pub static BACKENDS: &[BackendEntry] = &[local::ENTRY, mpi::ENTRY, nccl::ENTRY];

/// What a program must know of a backend before it opens it.
#[derive(Debug)]
pub struct BackendEntry {
    /// The spelling of `train.backend` and `--backend`.
    pub name: &'static str,
    /// Whether `auto` may take it here; it takes the last row that says so.
    pub suits: fn(&Surroundings<'_>) -> bool,
    /// Whether this build contains it. Opening it tells the user how to build it if not.
    pub is_built: bool,
    /// Whether the surviving ranks can meet again after they have lost one.
    pub is_elastic: bool,
    /// Whether all ranks must be on one machine.
    pub one_machine: bool,
    /// Whether the ranks meet on their GPUs, so that each must have one.
    pub on_gpus: bool,
    /// The program that starts all ranks at once; `None` where each rank is started on its own.
    pub world_launcher: Option<WorldLauncher>,
    /// The environment variable that a rank needs, by `(ranks, gpus, rank)` of one machine; rank `r` uses GPU `r`
    /// modulo their number.
    pub variable: fn(usize, usize, usize) -> Option<(&'static str, String)>,
    /// Opens the backend itself, for a world of one too; a run opens it with [`Self::open_run`].
    pub open: fn(&BackendOptions<'_>) -> Result<Box<dyn Backend>>,
}

/// A program that starts all ranks of a world, and ends them together.
#[derive(Debug)]
pub struct WorldLauncher {
    /// Its name, which is also that of the log of its output.
    pub program: &'static str,
    /// What its ranks are called together, in messages.
    pub world: &'static str,
    /// Adds the arguments and variables by which it starts this many ranks of the command that follows them.
    pub prepare: fn(&mut Command, usize),
    /// The size of the world in which it, or one of its kind, has started this process, if one did. The argument
    /// looks an environment variable up.
    pub launched: fn(&Lookup<'_>) -> Option<usize>,
}

/// Looks an environment variable up, so that the environment is read where the settings are resolved.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What `auto` goes by.
pub struct Surroundings<'a> {
    /// Whether the ranks compute on GPUs.
    pub gpu: bool,
    /// Looks an environment variable up.
    pub variable: &'a Lookup<'a>,
}

/// What a backend is opened with, once per process.
pub struct BackendOptions<'a> {
    /// Number of ranks of the run, at most.
    pub ranks: usize,
    /// How long one rank waits for the others in an operation that has no deadline of its own.
    pub patience: Duration,
    /// This rank's GPU, if it computes on one.
    pub kernels: Option<&'a Arc<Kernels>>,
    /// Ends the waits of a world that exists from the start.
    pub abort: &'a AbortHandle,
}

/// A rank's place in one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// Number of the generation; never reused within a run.
    pub generation: u64,
    /// This process's rank, `0..world`.
    pub rank: usize,
    /// How many ranks take part.
    pub world: usize,
    /// Where ranks run, at least one of each machine; empty if not known.
    pub machines: Vec<Seated>,
}

/// Where the ranks of a generation leave what they need to find each other. All ranks can read it, and nobody else.
pub trait Board {
    /// A name for the run that all its ranks have, and that others cannot guess. All ranks call it, or none.
    ///
    /// # Errors
    ///
    /// The run's secret cannot be read, or the way to the other ranks is lost.
    fn run_id(&mut self) -> Result<String>;

    /// Shows a small message to all other ranks of the generation. Rank 0 calls it, once.
    ///
    /// # Errors
    ///
    /// The way to the other ranks is lost.
    fn publish(&mut self, message: Vec<u8>) -> Result<()>;

    /// Waits for the message of rank 0. Every other rank calls it, once.
    ///
    /// # Errors
    ///
    /// The deadline, the end of the generation, or that the way to rank 0 is lost.
    fn published(&mut self, deadline: Instant) -> Result<Vec<u8>>;
}

/// An open backend: it makes a [`Collective`] for each generation.
pub trait Backend: Send {
    /// The rank that a launcher has given to this process, where it did.
    fn rank(&self) -> Option<u32> {
        None
    }

    /// Meets the other ranks of a generation. Returns when all are there.
    ///
    /// # Errors
    ///
    /// As the joining of the backend's collective: the deadline, an abort, a seat that does not exist.
    fn meet(
        &mut self,
        meeting: &Meeting,
        board: &mut dyn Board,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Box<dyn Collective>>;
}

impl BackendEntry {
    /// Opens the backend in one process of a run.
    ///
    /// # Errors
    ///
    /// This build or this machine lacks what it needs; see [`Error::is_usage`].
    pub fn open_run(&self, options: &BackendOptions<'_>) -> Result<Box<dyn Backend>> {
        if !self.is_elastic {
            return (self.open)(options);
        }
        // A world of one has nobody to meet, so a run of one rank needs nothing of the backend.
        let several = options.ranks > 1;
        let others = several.then(|| (self.open)(options)).transpose()?;
        Ok(Box::new(Alone { others }))
    }

    /// GPUs of this machine that `ranks` ranks share, at least 1; `None` where the ranks do not meet on GPUs.
    ///
    /// # Errors
    ///
    /// They do, and there is no driver.
    pub fn shared_gpus(&self, ranks: usize) -> Result<Option<usize>> {
        if !self.on_gpus || ranks == 1 {
            return Ok(None);
        }
        Ok(Some(Device::count()?.max(1) as usize))
    }
}

/// The value of `train.backend`: a row of [`BACKENDS`], or `auto`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum BackendChoice {
    /// The last row that suits the surroundings.
    #[default]
    Auto,
    /// This row, wherever the ranks run.
    Named(&'static BackendEntry),
}

const AUTO: &str = "auto";

const fn names() -> [&'static str; 1 + BACKENDS.len()] {
    let mut names = [AUTO; 1 + BACKENDS.len()];
    let mut row = 0;
    while row < BACKENDS.len() {
        names[1 + row] = BACKENDS[row].name;
        row += 1;
    }
    names
}

impl BackendChoice {
    /// Every accepted spelling: `auto`, then the rows' names.
    pub const NAMES: &'static [&'static str] = &names();

    /// The choice that is spelled like this.
    pub fn named(name: &str) -> Option<Self> {
        let row = BACKENDS.iter().find(|row| row.name == name);
        row.map(Self::Named)
            .or_else(|| (name == AUTO).then_some(Self::Auto))
    }

    /// The spelling used in configuration files.
    pub fn name(self) -> &'static str {
        self.entry().map_or(AUTO, |row| row.name)
    }

    /// The chosen row; `None` for `auto`.
    pub fn entry(self) -> Option<&'static BackendEntry> {
        match self {
            Self::Auto => None,
            Self::Named(row) => Some(row),
        }
    }

    /// The chosen row, and for `auto` the one that suits the surroundings.
    pub fn resolve(self, surroundings: &Surroundings<'_>) -> &'static BackendEntry {
        let suiting = || BACKENDS.iter().rfind(|row| (row.suits)(surroundings));
        self.entry().or_else(suiting).unwrap_or(&BACKENDS[0])
    }
}

impl PartialEq for BackendChoice {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<BackendChoice> for &'static str {
    fn from(choice: BackendChoice) -> Self {
        choice.name()
    }
}

impl TryFrom<String> for BackendChoice {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::named(&name).ok_or_else(|| Error::Usage {
            what: format!("there is no backend {name:?}"),
            help: format!("the backends are {}", Self::NAMES.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_follows_the_device_then_the_launcher() {
        for (choice, gpu, mpi, expected) in [
            ("auto", false, None, "local"),
            ("auto", false, Some("1"), "local"),
            ("auto", false, Some("4"), "mpi"),
            ("auto", true, None, "nccl"),
            ("auto", true, Some("4"), "nccl"),
            ("local", true, Some("4"), "local"),
            ("mpi", true, None, "mpi"),
            ("nccl", false, Some("4"), "nccl"),
        ] {
            let variable = |name: &str| mpi.filter(|_| name == "PMI_SIZE").map(str::to_owned);
            let surroundings = Surroundings {
                gpu,
                variable: &variable,
            };
            let choice = BackendChoice::named(choice).expect("a spelling");
            let row = choice.resolve(&surroundings);
            assert_eq!(row.name, expected, "{choice} {gpu} {mpi:?}");
        }
    }

    #[test]
    fn spellings_are_auto_and_the_rows_and_each_is_its_own() {
        assert_eq!(BackendChoice::NAMES, ["auto", "local", "mpi", "nccl"]);
        for name in BackendChoice::NAMES {
            let choice = BackendChoice::named(name).expect("a spelling");
            assert_eq!(choice.to_string(), *name);
        }
        assert_eq!(BackendChoice::named("gloo"), None);
        let error = BackendChoice::try_from("gloo".to_owned()).expect_err("no row");
        assert!(error.is_usage() && error.to_string().contains("auto, local, mpi, nccl"));
    }

    #[test]
    fn gpus_are_counted_only_where_ranks_meet_on_them() {
        let row = |name| BackendChoice::named(name).and_then(BackendChoice::entry);
        let [local, nccl] = ["local", "nccl"].map(|name| row(name).expect("a row"));
        assert!(matches!(local.shared_gpus(4), Ok(None)));
        assert!(
            matches!(nccl.shared_gpus(1), Ok(None)),
            "one rank meets nobody"
        );
    }
}
