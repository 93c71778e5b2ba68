//! Backend `nccl`: ranks with GPUs, on any hosts, through NVIDIA's library.
//!
//! Two ways lead through one communicator. Gradients on the GPU are summed where they are
//! ([`DeviceCollective`]), in NCCL's order, on this engine's stream alongside the computation. Data on the
//! host (figures, checkpoint states, predictions: rare and small) goes through this engine's pinned and device memory,
//! and only ever as a gather or a broadcast: each rank adds it up itself in the fixed tree, so
//! the sums have the bits of the other backends.
//!
//! Before a host operation all ranks gather what they are about to do, as with the other engines. Device operations
//! send no such message.
//!
//! Nothing here blocks. NCCL's calls go to a non-blocking communicator (see `comm.rs`), and every wait polls
//! in turn an event, the library's state, the abort handle and the deadline. A lost rank shows as
//! a wait that does not end: the coordinator notices it and ends the generation, this raises the abort handle, the
//! communicator is aborted, and the next generation makes a new one.
//!
//! Memory that an operation may still write to is not freed before the communicator has ended. If that
//! hangs, the memory is given up.

mod backend;
mod comm;
mod library;
mod search;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_kernels::DType;
use fovea_kernels::cuda::{DeviceBuffer, Event, Kernels, PinnedBuffer, Stream, wait_event};

pub(super) use self::backend::ENTRY;
use self::comm::Communicator;
pub use self::library::{Library, UniqueId};
pub use self::search::{NcclSearch, NcclVersion};
use super::note::{CollectiveOperation, Note};
use super::pieces::{EngineEnd, InPieces};
use super::tree::tree_sum_into;
use super::{AbortHandle, DeviceCollective, Error, Result};

/// Bytes that go through the staging buffers at a time, over all ranks.
const STAGING: usize = 16 << 20;
/// Least bytes per rank of it: more than a note, and whole lines of NCCL's.
const LEAST_PIECE: usize = 512;
/// How long the device may need for what is left on it after the communicator has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// A seat in a generation. All ranks must agree on everything but `rank`.
#[derive(Debug, Clone)]
pub struct NcclOptions {
    /// The id that rank 0 made for this generation: [`Library::unique_id`].
    pub id: UniqueId,
    /// This process's seat, `0..world`.
    pub rank: usize,
    /// How many ranks take part.
    pub world: usize,
    /// How long the start of a sum may take to make its connections.
    pub patience: Duration,
}

/// One rank's end of the communicator.
pub struct NcclCollective {
    comm: Communicator,
    abort: AbortHandle,
    staging: ManuallyDrop<Staging>,
    patience: Duration,
    ended: Option<EngineEnd>,
}

/// What operations use on the device; freed when none can be under way any more.
struct Staging {
    kernels: Arc<Kernels>,
    stream: Stream,
    /// `world` pieces, the same on both sides.
    host: PinnedBuffer,
    device: DeviceBuffer,
    /// What a caller's stream held when a sum was started.
    ready: Event,
    /// What our stream holds.
    done: Event,
    /// Bytes of a piece.
    piece: usize,
}

impl Staging {
    fn new(kernels: &Arc<Kernels>, world: usize) -> Result<Self> {
        let piece = (STAGING / world / LEAST_PIECE * LEAST_PIECE).max(LEAST_PIECE);
        Ok(Self {
            kernels: Arc::clone(kernels),
            stream: Stream::with_high_priority(kernels)?,
            host: PinnedBuffer::new(kernels, piece * world)?,
            device: DeviceBuffer::uninit(kernels, piece * world)?,
            ready: Event::new(kernels)?,
            done: Event::new(kernels)?,
            piece,
        })
    }

    /// Starts copying `bytes` bytes from `at` on to the device.
    fn to_device(&self, at: usize, bytes: usize) -> Result<()> {
        let (stream, device) = (self.stream.handle(), self.device.address() + at as u64);
        assert!(
            at + bytes <= self.host.bytes(),
            "a copy within the staging buffers"
        );
        // SAFETY: within both buffers, which have one length. The host's bytes are not touched until the operation
        // has waited for the stream, and both are kept if that fails.
        unsafe {
            let host = self.host.as_ptr().add(at);
            self.kernels
                .copy_to_device_async(stream, device, host, bytes)?;
        }
        Ok(())
    }

    /// Starts copying the first `bytes` bytes to the host.
    fn to_host(&self, bytes: usize) -> Result<()> {
        let (stream, device) = (self.stream.handle(), self.device.address());
        assert!(
            bytes <= self.host.bytes(),
            "a copy within the staging buffers"
        );
        // SAFETY: as in `to_device`.
        unsafe {
            self.kernels
                .copy_to_host_async(stream, self.host.as_ptr(), device, bytes)?
        };
        Ok(())
    }

    fn record_done(&self) -> Result<()> {
        // SAFETY: our own stream.
        unsafe { self.done.record(self.stream.handle())? };
        Ok(())
    }

    /// Whether the stream comes to its end within a bound.
    fn is_drained(&self) -> bool {
        let until = Instant::now() + DRAIN;
        if self.record_done().is_err() {
            return false;
        }
        loop {
            match self.done.is_done() {
                Ok(true) => return true,
                Ok(false) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_micros(200))
                }
                Ok(false) | Err(_) => return false,
            }
        }
    }
}

impl NcclCollective {
    /// Takes the seat and returns when all ranks have taken theirs.
    ///
    /// # Errors
    ///
    /// A seat outside the world, NCCL's or the driver's error, the deadline, an abort.
    pub fn join(
        library: &Arc<Library>,
        kernels: &Arc<Kernels>,
        options: &NcclOptions,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Self> {
        let NcclOptions {
            id,
            rank,
            world,
            patience,
        } = *options;
        if rank >= world || world > i32::MAX as usize {
            return Err(Error::BadSeat {
                rank,
                world,
                max_world: i32::MAX as usize,
            });
        }
        // Freed in the ordinary way if the join fails: nothing uses it before.
        let staging = Staging::new(kernels, world)?;
        let comm = Communicator::join(library, kernels, id, (rank, world), abort, deadline)?;
        let mut joined = Self {
            comm,
            abort: abort.clone(),
            staging: ManuallyDrop::new(staging),
            patience,
            ended: None,
        };
        joined.run(
            Note::new(CollectiveOperation::Join, 0, 0),
            deadline,
            |_, _| Ok(()),
        )?;
        Ok(joined)
    }

    /// Gathers `len` bytes of every rank (at most a piece; `mine` may have less), for [`Self::gathered`].
    fn gather_padded(
        &mut self,
        mine: &[u8],
        len: usize,
        note: Note,
        deadline: Instant,
    ) -> Result<()> {
        let (rank, world) = (self.comm.rank, self.comm.world);
        let staging = &mut self.staging;
        staging.host.as_mut_slice()[rank * len..][..mine.len()].copy_from_slice(mine);
        staging.to_device(rank * len, len)?;
        let (address, stream) = (staging.device.address(), staging.stream.handle());
        self.comm.call(
            note.op_name(),
            "ncclAllGather",
            deadline,
            |library, handle| {
                // SAFETY: `call` gives a communicator as it is wanted. The buffer has `world` pieces, is used on this
                // stream alone, and is kept until the communicator has ended.
                unsafe { library.all_gather(handle, address, len, rank, stream) }
            },
        )?;
        self.staging.to_host(world * len)?;
        self.complete(note, "ncclAllGather", deadline)
    }

    /// What `rank` gave to the last [`Self::gather_padded`] of `len` bytes.
    fn gathered(&self, rank: usize, len: usize) -> &[u8] {
        &self.staging.host.as_slice()[rank * len..][..len]
    }

    /// Waits for everything on the stream.
    fn complete(&self, note: Note, name: &'static str, deadline: Instant) -> Result<()> {
        let staging = &self.staging;
        staging.record_done()?;
        self.comm.wait(note.op_name(), name, deadline, || {
            Ok(staging.done.is_done()?)
        })
    }
}

impl InPieces for NcclCollective {
    const NAME: &'static str = "nccl";

    fn seat(&self) -> (usize, usize) {
        (self.comm.rank, self.comm.world)
    }

    fn abort(&self) -> &AbortHandle {
        &self.abort
    }

    fn ended(&mut self) -> &mut Option<EngineEnd> {
        &mut self.ended
    }

    fn stop(&mut self, _: &EngineEnd) {
        self.comm.abort();
    }

    fn exchange(&mut self, note: Note, deadline: Instant) -> Result<Vec<Note>> {
        let words = note.words();
        let mine = bytemuck::bytes_of(&words);
        self.gather_padded(mine, mine.len(), note, deadline)?;
        let said = |other: usize| {
            let words = bytemuck::pod_read_unaligned(self.gathered(other, mine.len()));
            Note::from_words(words)
        };
        Ok((0..self.comm.world).map(said).collect())
    }

    fn sum_len(&self) -> usize {
        self.staging.piece / size_of::<f32>()
    }

    fn sum(&mut self, part: &mut [f32], note: Note, deadline: Instant) -> Result<()> {
        let bytes = size_of_val(part);
        self.gather_padded(bytemuck::cast_slice(part), bytes, note, deadline)?;
        let floats = self.staging.host.as_slice::<f32>();
        let parts: Vec<&[f32]> = floats
            .chunks_exact(part.len())
            .take(self.comm.world)
            .collect();
        tree_sum_into(part, &parts);
        Ok(())
    }

    fn spread_len(&self) -> usize {
        self.staging.host.bytes()
    }

    fn spread(
        &mut self,
        part: &mut [u8],
        root: usize,
        note: Note,
        deadline: Instant,
    ) -> Result<()> {
        let (len, rank) = (part.len(), self.comm.rank);
        if rank == root {
            self.staging.host.as_mut_slice()[..len].copy_from_slice(part);
            self.staging.to_device(0, len)?;
        }
        let (address, stream) = (self.staging.device.address(), self.staging.stream.handle());
        self.comm.call(
            note.op_name(),
            "ncclBroadcast",
            deadline,
            |library, handle| {
                // SAFETY: as in `gather_padded`.
                unsafe { library.broadcast(handle, address, len, root, stream) }
            },
        )?;
        if rank != root {
            self.staging.to_host(len)?;
        }
        self.complete(note, "ncclBroadcast", deadline)?;
        if rank != root {
            part.copy_from_slice(&self.staging.host.as_slice()[..len]);
        }
        Ok(())
    }

    fn gather_len(&self) -> usize {
        self.staging.piece
    }

    fn gather(
        &mut self,
        mine: &[u8],
        lens: &[usize],
        all: &mut [Vec<u8>],
        note: Note,
        deadline: Instant,
    ) -> Result<()> {
        let padded = lens.iter().copied().max().unwrap_or(0);
        self.gather_padded(mine, padded, note, deadline)?;
        for (rank, got) in all.iter_mut().enumerate() {
            got.extend_from_slice(&self.gathered(rank, padded)[..lens[rank]]);
        }
        Ok(())
    }

    fn on_device(&mut self) -> Option<&mut dyn DeviceCollective> {
        Some(self)
    }
}

/// The operation's name in errors.
const DEVICE_SUM: &str = "all_reduce on the device";

impl DeviceCollective for NcclCollective {
    unsafe fn all_reduce_start(
        &mut self,
        address: u64,
        len: usize,
        dtype: DType,
        stream: usize,
    ) -> Result<()> {
        self.guard(DEVICE_SUM, |this| {
            if len == 0 {
                return Ok(());
            }
            let staging = &this.staging;
            // SAFETY: the caller's stream is alive.
            unsafe { staging.ready.record(stream)? };
            staging.stream.wait(&staging.ready)?;
            let ours = staging.stream.handle();
            let deadline = Instant::now() + this.patience;
            this.comm
                .call(DEVICE_SUM, "ncclAllReduce", deadline, |library, handle| {
                    // SAFETY: `call` gives a communicator as it is wanted; the caller promises the memory, until the
                    // engine is dropped if need be.
                    unsafe { library.all_reduce(handle, address, len, dtype.into(), ours) }
                })
        })
    }

    unsafe fn join(&mut self, stream: usize) -> Result<()> {
        self.guard(DEVICE_SUM, |this| {
            this.staging.record_done()?;
            // SAFETY: the caller's stream is alive.
            unsafe { wait_event(stream, &this.staging.done)? };
            Ok(())
        })
    }

    fn wait(&mut self, done: &Event, deadline: Instant) -> Result<()> {
        self.guard(DEVICE_SUM, |this| {
            this.comm.wait(
                DEVICE_SUM,
                "ncclAllReduce",
                deadline,
                || Ok(done.is_done()?),
            )
        })
    }
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        if self.comm.end() && self.staging.is_drained() {
            // SAFETY: dropped once, here. The communicator has ended and the stream is through, so nothing uses
            // the buffers any more.
            unsafe { ManuallyDrop::drop(&mut self.staging) };
        } else {
            let rank = self.comm.rank;
            tracing::warn!(
                "rank {rank}: NCCL or the GPU does not come to an end; {} bytes of GPU memory stay taken until this \
                 process ends",
                self.staging.device.bytes()
            );
        }
    }
}
