//! The launcher of the ranks of an MPI world: `srun` with the plugin that the site's MPI understands, or else MPI's own
//! `mpirun` inside the allocation.

/// The program's name, and the value of `mpi` in site.toml that asks for it.
pub const MPIRUN: &str = "mpirun";

/// A way to start MPI ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// `srun` with this value of `--mpi`, such as `pmix_v4`.
    Srun(String),
    /// The `mpirun` of this MPI, inside the allocation.
    Mpirun(Mpirun),
}

/// Whose `mpirun` it is: the options differ between the families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpirun {
    /// Open MPI: `--host n1:2,n2:2`.
    OpenMpi,
    /// MPICH and its relatives Intel MPI and MVAPICH: `-hosts n1:2,n2:2`.
    Hydra,
}

impl Mpirun {
    /// Recognises the family by the output of `mpirun --version`; `None` for another one.
    pub fn of(version: &str) -> Option<Self> {
        let version = version.to_lowercase();
        if version.contains("open mpi") || version.contains("openrte") {
            Some(Self::OpenMpi)
        } else if version.contains("hydra") || version.contains("intel(r) mpi") {
            Some(Self::Hydra)
        } else {
            None
        }
    }

    /// The command that starts this many ranks on each of these nodes; the words of the program follow it.
    pub fn words(self, places: &[(&str, usize)]) -> Vec<String> {
        let world: usize = places.iter().map(|(_, ranks)| ranks).sum();
        let hosts: Vec<String> = places
            .iter()
            .map(|(node, ranks)| format!("{node}:{ranks}"))
            .collect();
        let hosts = hosts.join(",");
        let world = world.to_string();
        let words: &[&str] = match self {
            // Ranks have several threads, so a rank must not be bound to one core.
            Self::OpenMpi => &[MPIRUN, "-n", &world, "--host", &hosts, "--bind-to", "none"],
            Self::Hydra => &[MPIRUN, "-n", &world, "-hosts", &hosts],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}

/// Chooses a launcher from the plugins of `srun`, the output of `mpirun --version` (empty without mpirun), and the site
/// file's wish. Prefers `srun`: Slurm then knows which processes belong to the job, and ends them with it.
///
/// # Errors
/// When no launcher can start MPI ranks, or the one that the site file names cannot.
pub fn choose(plugins: &[String], version: &str, wish: Option<&str>) -> Result<Launcher, String> {
    let own = Mpirun::of(version);
    match wish {
        Some(MPIRUN) => own.map(Launcher::Mpirun).ok_or_else(|| {
            format!(
                "the site file wants mpirun, and `mpirun --version` says {:?}: neither Open MPI nor MPICH or Intel MPI\n  help: load the module of the MPI that fovea was built with (modules in site.toml), or remove `mpi` there",
                version.lines().next().unwrap_or_default()
            )
        }),
        Some(wish) if plugins.is_empty() || plugins.iter().any(|have| have == wish) => {
            Ok(Launcher::Srun(wish.to_owned()))
        }
        Some(wish) => Err(format!(
            "the site file wants --mpi={wish}, srun knows {plugins:?}\n  help: correct `mpi` in site.toml (one of these, or mpirun)"
        )),
        None => match (plugin(plugins, version), own) {
            (Some(plugin), _) => Ok(Launcher::Srun(plugin.to_owned())),
            (None, Some(own)) => Ok(Launcher::Mpirun(own)),
            (None, None) => Err(format!(
                "ranks on several nodes need MPI, and srun can start none: it knows {plugins:?}; nor is there an mpirun\n  help: load the module of an MPI that has mpirun (modules in site.toml), ask an administrator for Slurm's PMIx plugin (Debian: libpmix2), use one node, or name another type as `mpi` in site.toml"
            )),
        },
    }
}

/// The plugin of `srun` that starts ranks of the MPI whose `mpirun --version` this is.
///
/// Open MPI 5 knows only PMIx, and Open MPI 4 is seldom built with PMI-2. MPICH and Intel MPI speak PMI-2 at least.
pub fn plugin<'a>(plugins: &'a [String], version: &str) -> Option<&'a str> {
    let find = |name: &str| {
        let exact = plugins.iter().find(|plugin| *plugin == name);
        // Names end with a version, so the greatest is the newest (up to version 9).
        let of_version = || {
            plugins
                .iter()
                .filter(|plugin| plugin.starts_with(name))
                .max()
        };
        exact.or_else(of_version).map(String::as_str)
    };
    match Mpirun::of(version) {
        Some(Mpirun::Hydra) => find("pmi2").or_else(|| find("pmix")),
        Some(Mpirun::OpenMpi) | None => find("pmix"),
    }
}

/// The names in the output of `srun --mpi=list`, which is indented and whose wording differs between versions.
pub fn plugins(text: &str) -> Vec<String> {
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
    use super::*;

    const OPEN: &str = "mpirun (Open MPI) 4.1.4\n\nReport bugs to ...";
    const HYDRA: &str = "HYDRA build details:\n    Version: 4.1";

    fn names(plugins: &[&str]) -> Vec<String> {
        plugins.iter().map(|p| (*p).to_owned()).collect()
    }

    #[test]
    fn lists_of_several_versions_are_read() {
        let of_22_05 = "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n";
        assert_eq!(
            plugins(of_22_05),
            ["pmix", "none", "cray_shasta", "pmi2", "pmix_v4"]
        );
        let of_20_11 = "srun: MPI types are...\nsrun: none\nsrun: pmi2\n";
        assert_eq!(plugins(of_20_11), ["none", "pmi2"]);
        assert_eq!(
            plugins("srun: error: no configuration\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn srun_is_first_and_mpirun_next() {
        let all = names(&["none", "pmi2", "pmix", "pmix_v3", "pmix_v4"]);
        let srun = |plugin: &str| Ok(Launcher::Srun(plugin.to_owned()));
        assert_eq!(choose(&all, OPEN, None), srun("pmix"));
        assert_eq!(choose(&all, "", None), srun("pmix"));
        assert_eq!(choose(&all, HYDRA, None), srun("pmi2"));
        assert_eq!(choose(&all[3..], OPEN, None), srun("pmix_v4"));
        let bare = names(&["none", "pmi2"]);
        let own = choose(&bare, OPEN, None);
        assert_eq!(own, Ok(Launcher::Mpirun(Mpirun::OpenMpi)));
        let error = choose(&bare, "", None).unwrap_err();
        assert!(
            error.contains("pmi2") && error.contains("\n  help: "),
            "{error}"
        );
    }

    #[test]
    fn the_site_has_the_last_word() {
        let all = names(&["none", "pmi2", "pmix"]);
        let wish = Some("pmi2");
        assert_eq!(
            choose(&all, OPEN, wish),
            Ok(Launcher::Srun("pmi2".to_owned()))
        );
        let error = choose(&all, OPEN, Some("pmix_v9")).unwrap_err();
        assert!(error.contains("pmix_v9"), "{error}");
        let own = choose(&all, "mpirun.real (OpenRTE) 2.1.1", Some(MPIRUN));
        assert_eq!(own, Ok(Launcher::Mpirun(Mpirun::OpenMpi)));
        let error = choose(&all, "", Some(MPIRUN)).unwrap_err();
        assert!(error.contains("mpirun --version"), "{error}");
    }

    #[test]
    fn every_mpirun_gets_its_own_words() {
        let places = [("n1", 1), ("n2", 3)];
        let words = |of: Mpirun| of.words(&places).join(" ");
        assert_eq!(
            words(Mpirun::OpenMpi),
            "mpirun -n 4 --host n1:1,n2:3 --bind-to none"
        );
        assert_eq!(words(Mpirun::Hydra), "mpirun -n 4 -hosts n1:1,n2:3");
    }
}
