//! Which backend joins the ranks, and how they meet in each generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_collectives::nccl::{self, NcclCollective, NcclOptions, UniqueId};
use fovea_collectives::{AbortHandle, Collective, Solo, local, mpi_launch_size};
use fovea_coordinator::client::Client;
use fovea_coordinator::protocol::Assignment;
use fovea_coordinator::rundir::directory_id;
use fovea_coordinator::token::Token;
use fovea_kernels::cuda::{Device, Kernels};
use fovea_run::config::{Backend, TrainConfig};
use fovea_run::run_dir::RunDir;

use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// The backend that `choice` stands for: `auto` is `nccl` where training is on GPUs, `mpi` in a world that an MPI
/// launcher started (of more than one rank), and else `local`.
#[must_use]
pub fn backend(choice: Backend, device_is_gpu: bool, mpi_world: Option<usize>) -> Backend {
    match choice {
        Backend::Auto if device_is_gpu => Backend::Nccl,
        Backend::Auto if mpi_world.is_some_and(|size| size > 1) => Backend::Mpi,
        Backend::Auto => Backend::Local,
        chosen => chosen,
    }
}

/// GPUs of this machine, if the ranks meet on them.
///
/// # Errors
///
/// They do, and there is no driver or no GPU.
pub fn gpus(config: &TrainConfig) -> Result<Option<usize>> {
    if config.backend != Backend::Nccl || config.ranks == 1 {
        return Ok(None);
    }
    Ok(Some(count()?.max(1) as usize))
}

fn count() -> Result<u32> {
    Ok(Device::count().map_err(fovea_collectives::Error::from)?)
}

/// The configured backend: it makes a collective for each generation.
pub(super) enum Engine {
    /// Shared memory.
    Local,
    /// GPUs.
    Nccl(NcclEngine),
    /// The world that MPI started; good for one generation.
    #[cfg(feature = "mpi")]
    Mpi {
        world: Option<Box<fovea_collectives::mpi::MpiCollective>>,
        rank: u32,
    },
}

/// What all generations have in common.
pub(super) struct NcclEngine {
    library: Arc<nccl::Library>,
    kernels: Arc<Kernels>,
    patience: Duration,
}

impl Engine {
    #[cfg_attr(
        not(feature = "mpi"),
        expect(unused_variables, reason = "only MPI needs it this early")
    )]
    pub(super) fn new(
        config: &TrainConfig,
        gpu: Option<&Gpu>,
        abort: &AbortHandle,
    ) -> Result<Self> {
        let launched = mpi_launch_size(|name| std::env::var(name).ok());
        match backend(config.backend, gpu.is_some(), launched) {
            // It never has anybody to meet.
            Backend::Nccl if config.ranks == 1 => Ok(Self::Local),
            Backend::Nccl => NcclEngine::open(config, gpu).map(Self::Nccl),
            Backend::Local | Backend::Auto => Ok(Self::Local),
            #[cfg(feature = "mpi")]
            Backend::Mpi => {
                let world = fovea_collectives::mpi::MpiCollective::init(abort)?;
                let rank = world.rank() as u32;
                Ok(Self::Mpi {
                    world: Some(Box::new(world)),
                    rank,
                })
            }
            #[cfg(not(feature = "mpi"))]
            Backend::Mpi => Err(Error::Usage {
                what: "this build of fovea has no backend mpi".to_owned(),
                help: "install an MPI with its headers (Debian: libopenmpi-dev) and build with `make build`".to_owned(),
            }),
        }
    }

    pub(super) fn rank(&self) -> Option<u32> {
        match self {
            Self::Local | Self::Nccl(_) => None,
            #[cfg(feature = "mpi")]
            Self::Mpi { rank, .. } => Some(*rank),
        }
    }

    /// Whether the ranks can form anew while they live.
    pub(super) fn is_elastic(&self) -> bool {
        matches!(self, Self::Local | Self::Nccl(_))
    }

    /// Meets the ranks of a generation.
    pub(super) fn meet(
        &mut self,
        run: &RunDir,
        seat: &Assignment,
        client: &mut Client,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Box<dyn Collective>> {
        match self {
            Self::Local | Self::Nccl(_) if seat.world == 1 => Ok(Box::new(Solo::new(abort))),
            Self::Local => {
                let options = local::LocalOptions {
                    // A copy of the directory has the same token.
                    run_id: format!(
                        "{}-{}",
                        Token::load(run.path())?.to_hex(),
                        directory_id(run.path())
                    ),
                    generation: seat.generation,
                    rank: seat.rank,
                    world: seat.world,
                    machines: seat.machines.clone(),
                    chunk_f32: local::DEFAULT_CHUNK_F32,
                };
                Ok(Box::new(local::LocalCollective::join(
                    &options, abort, deadline,
                )?))
            }
            Self::Nccl(engine) => Ok(Box::new(engine.meet(seat, client, abort, deadline)?)),
            #[cfg(feature = "mpi")]
            Self::Mpi { world, .. } => {
                let Some(world) = world.take() else {
                    let what = "an MPI world has one generation only".to_owned();
                    return Err(Error::Internal(what));
                };
                // The handle that it was made with cannot be changed: pass the new one on.
                let own = world.abort_handle();
                abort.on_abort(Box::new(move |reason| own.abort(reason)));
                if (world.rank(), world.world()) != (seat.rank, seat.world) {
                    return Err(Error::Usage {
                        what: format!(
                            "MPI started this process as rank {} of {}, but the run has it as rank {} of {}",
                            world.rank(),
                            world.world(),
                            seat.rank,
                            seat.world
                        ),
                        help: "start as many MPI processes as train.ranks says".to_owned(),
                    });
                }
                Ok(world)
            }
        }
    }
}

impl NcclEngine {
    /// Finds NCCL first, so that a machine without it says so at the start.
    fn open(config: &TrainConfig, gpu: Option<&Gpu>) -> Result<Self> {
        let gpu = gpu.ok_or_else(|| Error::Usage {
            what: "backend nccl joins GPUs, and this rank computes on the CPU".to_owned(),
            help: "train with --device cuda, or leave train.backend at \"auto\"".to_owned(),
        })?;
        let library = nccl::Library::open(&nccl::NcclSearch::from_env())?;
        tracing::info!("NCCL {} ({})", library.version(), library.path().display());
        Ok(Self {
            library: Arc::new(library),
            kernels: Arc::clone(gpu.kernels()),
            patience: Duration::from_secs(config.step_timeout_s.into()),
        })
    }

    fn meet(
        &self,
        seat: &Assignment,
        client: &mut Client,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<NcclCollective> {
        let id = if seat.rank == 0 {
            let id = self.library.unique_id()?;
            client.publish(seat.generation, id.0.to_vec())?;
            id
        } else {
            let bytes = client.published(seat.generation, deadline)?;
            let length = bytes.len();
            UniqueId(bytes.try_into().map_err(|_| {
                Error::Internal(format!(
                    "rank 0 published {length} bytes, an NCCL id has 128"
                ))
            })?)
        };
        let options = NcclOptions {
            id,
            rank: seat.rank,
            world: seat.world,
            patience: self.patience,
        };
        let joined = NcclCollective::join(&self.library, &self.kernels, &options, abort, deadline)?;
        Ok(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_follows_the_device_then_the_launcher() {
        for (choice, gpu, mpi, expected) in [
            (Backend::Auto, false, None, Backend::Local),
            (Backend::Auto, false, Some(1), Backend::Local),
            (Backend::Auto, false, Some(4), Backend::Mpi),
            (Backend::Auto, true, None, Backend::Nccl),
            (Backend::Auto, true, Some(4), Backend::Nccl),
            (Backend::Local, true, Some(4), Backend::Local),
            (Backend::Mpi, true, None, Backend::Mpi),
            (Backend::Nccl, false, Some(4), Backend::Nccl),
        ] {
            assert_eq!(
                backend(choice, gpu, mpi),
                expected,
                "{choice} {gpu} {mpi:?}"
            );
        }
    }

    #[test]
    fn gpus_are_counted_only_where_ranks_meet_on_them() {
        let mut config = TrainConfig::default();
        assert_eq!(gpus(&config).ok(), Some(None));
        config.backend = Backend::Nccl;
        assert_eq!(gpus(&config).ok(), Some(None), "one rank meets nobody");
    }
}
