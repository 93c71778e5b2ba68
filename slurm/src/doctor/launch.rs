//! MPI, and how its processes are started under Slurm.

use serde::Serialize;

use super::{Line, Scheduler};

/// MPI as it is on this node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Mpi {
    /// Whether this program was built with it.
    pub compiled: bool,
    /// First line of `mpirun --version`; none without mpirun.
    pub mpirun: Option<String>,
    /// What `srun --mpi=list` offers; none without srun.
    pub plugins: Option<Vec<String>>,
}

/// The plugin of srun that can start this MPI's processes.
fn plugin(mpi: &Mpi) -> Option<&str> {
    let plugins = mpi.plugins.as_deref().unwrap_or_default();
    let find = |name: &str| {
        let exact = plugins.iter().find(|plugin| plugin.as_str() == name);
        exact.or_else(|| plugins.iter().find(|plugin| plugin.starts_with(name)))
    };
    // Open MPI 5 knows PMIx alone, and 4 is seldom built with PMI-2. MPICH and Intel's speak PMI-2 at least.
    let open_mpi = mpi.mpirun.as_ref().is_none_or(|v| v.contains("Open MPI"));
    let found = if open_mpi {
        find("pmix")
    } else {
        find("pmi2").or_else(|| find("pmix"))
    };
    found.map(String::as_str)
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

/// The names in the output of `srun --mpi=list`, which is indented and whose wording differs between versions.
pub(super) fn parse_plugins(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        let name = name.trim().trim_start_matches("srun:").trim();
        let word = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if word && !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    };
    for line in text.lines() {
        match line.split_once("versions available:") {
            Some((_, versions)) => versions.split(',').for_each(&mut add),
            None => add(line),
        }
    }
    names
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
    fn lists_of_several_versions_are_read() {
        let of_22_05 = "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n";
        assert_eq!(
            parse_plugins(of_22_05),
            ["pmix", "none", "cray_shasta", "pmi2", "pmix_v4"]
        );
        let of_20_11 = "srun: MPI types are...\nsrun: none\nsrun: pmi2\n";
        assert_eq!(parse_plugins(of_20_11), ["none", "pmi2"]);
        assert_eq!(
            parse_plugins("srun: error: no configuration\n"),
            Vec::<String>::new()
        );
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
