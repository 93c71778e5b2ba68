//! How the ranks of a measurement meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_collectives::nccl::{Library, NcclCollective, NcclOptions, NcclSearch, UniqueId};
use fovea_collectives::{AbortHandle, Collective, Solo, local, mpi_launch_size};
use fovea_kernels::cuda::{Kernels, nvrtc};

use fovea_trainer::gpu::{VisibleGpus, cache_folder};
use fovea_trainer::{Error, Result};

/// How long ranks wait for each other.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// Where the ranks meet.
#[derive(Clone, Debug)]
pub struct MeetingSeat {
    /// The same for all ranks of a measurement, and for no other.
    pub meeting: String,
    /// `0..world`.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
}

/// The number of ranks that an MPI launcher has started, if one did and this program can use it.
pub fn mpi_world() -> Option<usize> {
    mpi_launch_size(|name| std::env::var(name).ok()).filter(|_| cfg!(feature = "mpi"))
}

/// Joins the other ranks: those of the MPI job, else of this machine.
///
/// # Errors
/// When they do not come, or there is no room for shared memory.
pub fn join(seat: &MeetingSeat) -> Result<Box<dyn Collective>> {
    let abort = AbortHandle::new();
    #[cfg(feature = "mpi")]
    if mpi_world().is_some() {
        use fovea_collectives::mpi::MpiCollective;
        return Ok(Box::new(MpiCollective::init(&abort)?));
    }
    if seat.world == 1 {
        return Ok(Box::new(Solo::new(&abort)));
    }
    let options = local::LocalOptions {
        run_id: seat.meeting.clone(),
        generation: 1,
        rank: seat.rank,
        world: seat.world,
        machines: Vec::new(),
        chunk_f32: local::DEFAULT_CHUNK_F32,
    };
    let joined = local::LocalCollective::join(&options, &abort, Instant::now() + PATIENCE)?;
    Ok(Box::new(joined))
}

/// Joins ranks that have met through their GPUs as well: rank 0 tells them where NCCL's ranks meet.
///
/// # Errors
/// No NCCL; what it says; a rank that is lost.
pub fn join_on_gpus(
    mut ranks: Box<dyn Collective>,
    kernels: &Arc<Kernels>,
) -> Result<Box<dyn Collective>> {
    let library = Arc::new(Library::open(&NcclSearch::from_env())?);
    let mut id = UniqueId([0; 128]);
    if ranks.rank() == 0 {
        id = library.unique_id()?;
    }
    ranks.broadcast(&mut id.0, 0, Instant::now() + PATIENCE)?;
    let options = NcclOptions {
        id,
        rank: ranks.rank(),
        world: ranks.world(),
        patience: PATIENCE,
    };
    let until = Instant::now() + PATIENCE;
    let joined = NcclCollective::join(&library, kernels, &options, &AbortHandle::new(), until)?;
    // Everybody is in: nobody needs the way there any more.
    ranks.barrier(until)?;
    Ok(Box::new(joined))
}

/// The kernels of process `rank`'s GPU: more processes than GPUs share them.
///
/// # Errors
/// There is no GPU, or no compiler of kernels for it.
pub fn open_gpu(rank: usize) -> Result<Arc<Kernels>> {
    let gpus = gpus();
    if gpus == 0 {
        return Err(Error::Usage {
            what: "backend nccl joins GPUs, and there is none here that this process may use"
                .to_owned(),
            help: "nvidia-smi -L lists the GPUs; without --backend, memory of this machine is measured".to_owned(),
        });
    }
    let ordinal = (rank % gpus) as u32;
    Ok(Kernels::load(
        ordinal,
        &nvrtc::Search::from_env(),
        cache_folder().as_deref(),
    )?)
}

/// GPUs that this process may use.
pub fn gpus() -> usize {
    VisibleGpus::here().count() as usize
}

/// For each measured time, that of the slowest rank. All ranks call it, with as many times.
pub(super) fn slowest(collective: &mut dyn Collective, mine: &[f64]) -> Result<Vec<f64>> {
    let bytes: Vec<u8> = mine.iter().flat_map(|time| time.to_le_bytes()).collect();
    let all = collective.all_gather(&bytes, Instant::now() + PATIENCE)?;
    let mut slowest = vec![0.0f64; mine.len()];
    for times in &all {
        let (times, _) = times.as_chunks::<8>();
        for (slowest, time) in slowest.iter_mut().zip(times) {
            *slowest = slowest.max(f64::from_le_bytes(*time));
        }
    }
    Ok(slowest)
}
