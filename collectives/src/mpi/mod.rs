//! Backend `mpi`: the ranks of one MPI job, on any hosts. Cargo feature `mpi` builds it.

#[cfg(feature = "mpi")]
mod collective;

use std::process::Command;

#[cfg(feature = "mpi")]
pub use self::collective::MpiCollective;
#[cfg(feature = "mpi")]
use super::{AbortHandle, Board, Collective, Meeting};
use super::{Backend, BackendEntry, BackendOptions, Lookup, Result, WorldLauncher};
use crate::Error;

pub(super) const ENTRY: BackendEntry = BackendEntry {
    name: "mpi",
    suits: |here| launched(here.variable).is_some_and(|size| size > 1),
    is_built: cfg!(feature = "mpi"),
    is_elastic: false,
    one_machine: false,
    on_gpus: false,
    world_launcher: Some(WorldLauncher {
        program: "mpirun",
        world: "MPI world",
        prepare,
        launched,
    }),
    variable: |_, _, _| None,
    open,
};

#[cfg(feature = "mpi")]
fn open(options: &BackendOptions<'_>) -> Result<Box<dyn Backend>> {
    let world = MpiCollective::init(options.abort)?;
    Ok(Box::new(MpiBackend {
        rank: world.rank() as u32,
        world: Some(world),
    }))
}

#[cfg(not(feature = "mpi"))]
fn open(_: &BackendOptions<'_>) -> Result<Box<dyn Backend>> {
    Err(Error::Usage {
        what: "this build of fovea has no backend mpi".to_owned(),
        help:
            "install an MPI with its headers (Debian: libopenmpi-dev) and build with `make build`"
                .to_owned(),
    })
}

/// The world that MPI started; good for one generation.
#[cfg(feature = "mpi")]
struct MpiBackend {
    /// Taken by the first generation.
    world: Option<MpiCollective>,
    rank: u32,
}

#[cfg(feature = "mpi")]
impl Backend for MpiBackend {
    fn rank(&self) -> Option<u32> {
        Some(self.rank)
    }

    fn meet(
        &mut self,
        meeting: &Meeting,
        _: &mut dyn Board,
        abort: &AbortHandle,
        _: std::time::Instant,
    ) -> Result<Box<dyn Collective>> {
        let Some(world) = self.world.take() else {
            let what = "an MPI world has one generation only".to_owned();
            return Err(Error::Internal(what));
        };
        // The handle that it was made with cannot be changed: pass the new one on.
        let own = world.abort_handle();
        abort.on_abort(Box::new(move |reason| own.abort(reason)));
        if (world.rank(), world.world()) != (meeting.rank, meeting.world) {
            return Err(Error::Usage {
                what: format!(
                    "MPI started this process as rank {} of {}, but the run has it as rank {} of {}",
                    world.rank(),
                    world.world(),
                    meeting.rank,
                    meeting.world
                ),
                help: "start as many MPI processes as train.ranks says".to_owned(),
            });
        }
        Ok(Box::new(world))
    }
}

/// More ranks than processors are fine, and none is bound to one: a rank has threads.
fn prepare(mpirun: &mut Command, ranks: usize) {
    mpirun.args([
        "-n",
        &ranks.to_string(),
        "--oversubscribe",
        "--bind-to",
        "none",
    ]);
    mpirun.env("OMPI_MCA_mpi_yield_when_idle", "1");
    if rustix::process::geteuid().is_root() {
        // Containers run as root; Open MPI wants to be told that this is meant.
        mpirun
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
}

/// The variables by which the common launchers tell a process the size of its MPI world: Open MPI,
/// MPICH and Intel MPI (hydra), MVAPICH.
const WORLD_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];

/// The world size an MPI launcher (`mpirun`, `srun --mpi=...`) gave this process, if one did. `env`
/// looks a variable up, so that the environment is read where the settings are resolved.
fn launched(env: &Lookup<'_>) -> Option<usize> {
    let sizes = WORLD_VARIABLES.iter().filter_map(|name| env(name));
    if let Some(size) = sizes.filter_map(|size| size.trim().parse().ok()).next() {
        return Some(size);
    }
    // srun's PMIx plugin sets the rank but no size of its own; Slurm's task count is the size.
    env("PMIX_RANK").and_then(|_| env("SLURM_NTASKS")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::launched;

    #[test]
    fn mpi_launchers_are_recognised() {
        let size = |pairs: &'static [(&str, &str)]| {
            launched(&|name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_string())
            })
        };
        assert_eq!(size(&[("OMPI_COMM_WORLD_SIZE", "4")]), Some(4));
        assert_eq!(size(&[("PMI_SIZE", " 2 ")]), Some(2));
        assert_eq!(size(&[("PMIX_RANK", "0"), ("SLURM_NTASKS", "8")]), Some(8));
        assert_eq!(
            size(&[("SLURM_NTASKS", "8")]),
            None,
            "Slurm alone is no MPI launch"
        );
        assert_eq!(size(&[("PMI_SIZE", "many")]), None);
    }
}
