//! How the ranks of a measurement meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_collectives::{
    self as collectives, AbortHandle, BACKENDS, BackendChoice, BackendEntry, BackendOptions, Board,
    Collective, Lookup, Meeting, Surroundings,
};
use fovea_kernels::cuda::{Kernels, nvrtc};

use fovea_trainer::gpu::{VisibleGpus, cache_folder};
use fovea_trainer::{Error, Result};

/// How long a rank waits for the others before it fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// A rank's place in a measurement, and where the ranks meet.
#[derive(Clone, Debug)]
pub struct MeetingSeat {
    /// Name of the measurement: the same for all its ranks, and used by no other.
    pub meeting: String,
    /// This rank's number, from 0.
    pub rank: usize,
    /// World size: the number of ranks that meet.
    pub world: usize,
}

const ENVIRONMENT: &Lookup<'static> = &|name| std::env::var(name).ok();

/// The backend whose launcher has started this process and all other ranks, with the world size. None if no launcher
/// did, or if this program was built without that backend.
pub fn launched() -> Option<(&'static BackendEntry, usize)> {
    BACKENDS.iter().filter(|row| row.is_built).find_map(|row| {
        let world = (row.world_launcher.as_ref()?.launched)(ENVIRONMENT)?;
        Some((row, world))
    })
}

/// Joins the other ranks: those that a launcher has started together with this one, or else ranks of this machine.
///
/// # Errors
/// The others do not come in time, or there is no room for shared memory.
pub fn join(seat: &MeetingSeat) -> Result<Box<dyn Collective>> {
    let (row, world) = launched().unwrap_or_else(|| {
        let here = Surroundings {
            gpu: false,
            variable: &|_| None,
        };
        (BackendChoice::Auto.resolve(&here), seat.world)
    });
    let abort = AbortHandle::new();
    let mut backend = row.open_run(&options(world, None, &abort))?;
    let rank = backend.rank().map_or(seat.rank, |rank| rank as usize);
    let mut board = Named(&seat.meeting);
    let until = Instant::now() + PATIENCE;
    Ok(backend.meet(&meeting(rank, world), &mut board, &abort, until)?)
}

fn options<'a>(
    ranks: usize,
    kernels: Option<&'a Arc<Kernels>>,
    abort: &'a AbortHandle,
) -> BackendOptions<'a> {
    BackendOptions {
        ranks,
        patience: PATIENCE,
        kernels,
        abort,
    }
}

/// The only meeting of a measurement.
fn meeting(rank: usize, world: usize) -> Meeting {
    Meeting {
        generation: 1,
        rank,
        world,
        machines: Vec::new(),
    }
}

/// A board that offers only the name of the measurement.
struct Named<'a>(&'a str);

impl Board for Named<'_> {
    fn run_id(&mut self) -> collectives::Result<String> {
        Ok(self.0.to_owned())
    }

    fn publish(&mut self, _: Vec<u8>) -> collectives::Result<()> {
        Err(nobody_to_tell())
    }

    fn published(&mut self, _: Instant) -> collectives::Result<Vec<u8>> {
        Err(nobody_to_tell())
    }
}

fn nobody_to_tell() -> collectives::Error {
    collectives::Error::Internal(
        "ranks that have not met cannot tell each other anything".to_owned(),
    )
}

/// A board over ranks that have already met, by which they meet again through another backend.
struct Met(Box<dyn Collective>);

impl Met {
    /// Gives all ranks what rank 0 passed in.
    fn of_first(&mut self, mine: &[u8], deadline: Instant) -> collectives::Result<Vec<u8>> {
        Ok(self.0.all_gather(mine, deadline)?.swap_remove(0))
    }
}

impl Board for Met {
    fn run_id(&mut self) -> collectives::Result<String> {
        let mine = format!("bench-{}", std::process::id());
        let name = self.of_first(mine.as_bytes(), Instant::now() + PATIENCE)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    fn publish(&mut self, message: Vec<u8>) -> collectives::Result<()> {
        self.of_first(&message, Instant::now() + PATIENCE).map(drop)
    }

    fn published(&mut self, deadline: Instant) -> collectives::Result<Vec<u8>> {
        self.of_first(&[], deadline)
    }
}

/// Joins the ranks that have met through `ranks` once more, by the backend of `choice`. On a GPU, `kernels` are those
/// of this rank's GPU. Keeps `ranks` where they use that backend already, where only a launcher can start its world,
/// and where there is no GPU for it.
///
/// # Errors
/// The backend's library is missing, or a rank is lost.
pub fn join_by(
    choice: BackendChoice,
    ranks: Box<dyn Collective>,
    kernels: Option<&Arc<Kernels>>,
) -> Result<Box<dyn Collective>> {
    let row = choice.resolve(&Surroundings {
        gpu: kernels.is_some(),
        variable: ENVIRONMENT,
    });
    let there_already = row.name == ranks.name() || row.world_launcher.is_some();
    if there_already || (row.on_gpus && kernels.is_none()) {
        return Ok(ranks);
    }
    let (abort, until) = (AbortHandle::new(), Instant::now() + PATIENCE);
    let meeting = meeting(ranks.rank(), ranks.world());
    let mut backend = (row.open)(&options(meeting.world, kernels, &abort))?;
    let mut board = Met(ranks);
    let joined = backend.meet(&meeting, &mut board, &abort, until)?;
    // All ranks are in the new world and need the old one no more.
    board.0.barrier(until)?;
    Ok(joined)
}

/// The kernels of the GPU of process `rank`; more processes than GPUs share them.
///
/// # Errors
/// There is no GPU, or no compiler for its kernels.
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

/// Number of GPUs that this process may use.
pub fn gpus() -> usize {
    VisibleGpus::here().count() as usize
}

/// For each measured time, that of the slowest rank. All ranks call it, with as many values.
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
