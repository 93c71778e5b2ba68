//! Judges MPI, and how Slurm starts its processes.

use serde::Serialize;

use super::{Line, Scheduler};
use crate::launcher;

/// The facts about MPI on this node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Mpi {
    /// Whether this program was built with MPI.
    pub compiled: bool,
    /// First line of `mpirun --version`; none without mpirun.
    pub mpirun: Option<String>,
    /// The plugins that `srun --mpi=list` offers; none without srun.
    pub plugins: Option<Vec<String>>,
}

fn plugin(mpi: &Mpi) -> Option<&str> {
    let plugins = mpi.plugins.as_deref().unwrap_or_default();
    launcher::plugin(plugins, mpi.mpirun.as_deref().unwrap_or_default())
}

pub(super) fn mpi(mpi: &Mpi, scheduler: Option<&Scheduler>) -> Vec<Line> {
    const TOPIC: &str = "MPI";
    if !mpi.compiled {
        let text = "not built in: CPU ranks work within one node, not across nodes";
        let remedy = "load your site's MPI module and build again: `make` adds MPI where it finds mpicc (backends local and nccl need none)";
        return vec![Line::warn(TOPIC, text, remedy)];
    }
    let name = mpi.mpirun.clone();
    let first = match &name {
        Some(version) => Line::ok(TOPIC, format!("built in; {version}")),
        None if scheduler.is_some() => {
            Line::ok(TOPIC, "built in; no mpirun, srun starts the ranks")
        }
        None => Line::warn(
            TOPIC,
            "built in, but there is no mpirun to start it",
            "install openmpi-bin, or load the module of the MPI that this program was built with",
        ),
    };
    let mut lines = vec![first];
    if scheduler.is_some() {
        lines.push(pmi(mpi));
    }
    lines
}

fn pmi(mpi: &Mpi) -> Line {
    const TOPIC: &str = "MPI in Slurm";
    let offered = match &mpi.plugins {
        Some(plugins) if !plugins.is_empty() => plugins.join(", "),
        _ => "nothing".to_owned(),
    };
    match (plugin(mpi), &mpi.mpirun) {
        (Some(plugin), _) => Line::ok(
            TOPIC,
            format!("srun --mpi={plugin} (srun offers {offered})"),
        ),
        (None, Some(_)) => Line::warn(
            TOPIC,
            format!("srun cannot start this MPI: it offers {offered}"),
            "jobs use mpirun inside the allocation; ask the administrator for Slurm's PMIx plugin (package libpmix2)",
        ),
        (None, None) => Line::fail(
            TOPIC,
            format!("srun cannot start this MPI (it offers {offered}), and there is no mpirun"),
            "ask the administrator for Slurm's PMIx plugin, or load a module with mpirun (`--module` of fovea submit)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Ok as Good, Warn};
    use super::super::tests::about;
    use super::*;

    const OPEN: &str = "mpirun (Open MPI) 4.1.4";
    const HYDRA: &str = "HYDRA build details:";

    fn built(mpirun: Option<&str>, plugins: &[&str]) -> Mpi {
        Mpi {
            compiled: true,
            mpirun: mpirun.map(str::to_owned),
            plugins: Some(plugins.iter().map(|p| (*p).to_owned()).collect()),
        }
    }

    #[test]
    fn srun_or_mpirun_must_be_able_to_start_ranks() {
        let slurm = Scheduler::default();
        let judged = |m: &Mpi| mpi(m, Some(&slurm));
        let line = judged(&built(Some(OPEN), &["none", "pmi2", "pmix"]));
        let (verdict, text) = about(&line, "MPI in Slurm");
        assert_eq!(
            (verdict, text),
            (Good, "srun --mpi=pmix (srun offers none, pmi2, pmix)")
        );
        assert!(
            about(&judged(&built(Some(OPEN), &["pmix_v4"])), "MPI in Slurm")
                .1
                .contains("--mpi=pmix_v4")
        );
        assert_eq!(
            about(
                &judged(&built(Some(OPEN), &["none", "pmi2"])),
                "MPI in Slurm"
            )
            .0,
            Warn
        );
        assert_eq!(
            about(
                &judged(&built(Some(HYDRA), &["none", "pmi2"])),
                "MPI in Slurm"
            )
            .0,
            Good
        );
        assert_eq!(
            about(&judged(&built(None, &["none"])), "MPI in Slurm").0,
            Fail
        );
        assert_eq!(about(&judged(&built(None, &["pmix"])), "MPI").0, Good);
    }

    #[test]
    fn without_slurm_mpirun_is_enough() {
        assert_eq!(mpi(&built(Some(OPEN), &[]), None).len(), 1);
        assert_eq!(about(&mpi(&built(Some(OPEN), &[]), None), "MPI").0, Good);
        assert_eq!(about(&mpi(&built(None, &[]), None), "MPI").0, Warn);
        let not = Mpi {
            compiled: false,
            ..built(Some(OPEN), &["pmix"])
        };
        assert_eq!(
            about(&mpi(&not, Some(&Scheduler::default())), "MPI").0,
            Warn
        );
    }
}
