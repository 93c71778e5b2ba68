//! Opening the backend, and what its ranks tell each other before they have met.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_coordinator::host::hostname;
use fovea_kernels::cuda::Kernels;

use super::{Library, NcclCollective, NcclOptions, NcclSearch, UniqueId};
use crate::{
    AbortHandle, Backend, BackendEntry, BackendOptions, Board, Collective, Error, Meeting, Result,
};

pub(crate) const ENTRY: BackendEntry = BackendEntry {
    name: "nccl",
    suits: |here| here.gpu,
    is_built: true,
    is_elastic: true,
    one_machine: false,
    on_gpus: true,
    world_launcher: None,
    variable,
    open,
};

/// NCCL's name for the host of a rank.
const HOST_ID: &str = "NCCL_HOSTID";

/// What all generations have in common.
struct NcclBackend {
    library: Arc<Library>,
    kernels: Arc<Kernels>,
    patience: Duration,
}

/// Finds NCCL first, so that a machine without it says so at the start.
fn open(options: &BackendOptions<'_>) -> Result<Box<dyn Backend>> {
    let kernels = options.kernels.ok_or_else(|| Error::Usage {
        what: "backend nccl joins GPUs, and this rank computes on the CPU".to_owned(),
        help: "train with --device cuda, or leave train.backend at \"auto\"".to_owned(),
    })?;
    let library = Library::open(&NcclSearch::from_env())?;
    tracing::info!("NCCL {} ({})", library.version(), library.path().display());
    Ok(Box::new(NcclBackend {
        library: Arc::new(library),
        kernels: Arc::clone(kernels),
        patience: options.patience,
    }))
}

impl Backend for NcclBackend {
    fn meet(
        &mut self,
        meeting: &Meeting,
        board: &mut dyn Board,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Box<dyn Collective>> {
        let id = if meeting.rank == 0 {
            let id = self.library.unique_id()?;
            board.publish(id.0.to_vec())?;
            id
        } else {
            let bytes = board.published(deadline)?;
            let length = bytes.len();
            UniqueId(bytes.try_into().map_err(|_| {
                Error::Internal(format!(
                    "rank 0 published {length} bytes, an NCCL id has 128"
                ))
            })?)
        };
        let options = NcclOptions {
            id,
            rank: meeting.rank,
            world: meeting.world,
            patience: self.patience,
        };
        let joined = NcclCollective::join(&self.library, &self.kernels, &options, abort, deadline)?;
        Ok(Box::new(joined))
    }
}

/// [`HOST_ID`] for a rank that shares its GPU with another, unless the user has set it.
fn variable(ranks: usize, gpus: usize, rank: usize) -> Option<(&'static str, String)> {
    if gpus == 0 || std::env::var_os(HOST_ID).is_some() {
        return None;
    }
    let devices: Vec<String> = (0..ranks).map(|r| (r % gpus).to_string()).collect();
    Some((HOST_ID, host_id(&hostname(), rank, &devices)?))
}

/// What `NCCL_HOSTID` has to be for process `rank` of this machine, whose processes use the GPUs `devices` (UUIDs, by
/// process): NCCL refuses two ranks on one GPU unless it takes them to be on different hosts. `None`: leave it
/// alone, as the ranks that NCCL takes to be on different hosts do without NVLink and shared memory.
///
/// For trying things out; ranks that share a GPU are slower than one rank that has it alone.
fn host_id(host: &str, rank: usize, devices: &[String]) -> Option<String> {
    let mine = devices.get(rank)?;
    let sharing = devices.iter().filter(|device| *device == mine).count();
    (sharing > 1).then(|| format!("{host}-rank-{rank}"))
}

#[cfg(test)]
mod tests {
    use super::host_id;

    #[test]
    fn only_ranks_that_share_a_gpu_get_an_id_and_all_ids_differ() {
        let devices = ["GPU-a", "GPU-b", "GPU-a", "GPU-c"].map(String::from);
        let ids: Vec<_> = (0..4).map(|rank| host_id("n1", rank, &devices)).collect();
        let of = |rank: usize| Some(format!("n1-rank-{rank}"));
        assert_eq!(ids, [of(0), None, of(2), None]);
        assert_eq!(host_id("n1", 4, &devices), None);
    }
}
