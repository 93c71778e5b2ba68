//! Backend `local`: ranks on one machine, through shared memory.
//!
//! Every rank copies a chunk of its buffer into its slot, adds its stripe of the chunk over all slots
//! in the fixed tree, and copies the whole sum out. Chunks are small enough to stay in the cache and
//! are pipelined through two halves, with one barrier per chunk; `segment.rs` states the rule that
//! separates readers from writers. So the segment's size does not depend on the model's.
//!
//! Ranks spin for a moment and then sleep on a futex, so that more ranks than
//! processors do not crawl. An abort changes the word under every such wait.
//!
//! Any error, even a passed deadline, aborts the segment for all ranks: a rank that gave up may write
//! to its slot again, so nobody may keep reading it.

mod rendezvous;
mod segment;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use fovea_coordinator::host::same_machine;
use fovea_coordinator::protocol::Seated;
use rustix::fd::AsFd;

use self::segment::{Seen, Segment, SegmentLayout};
use super::note::{CollectiveOperation, Note};
use super::tree::{stripe, tree_sum_into};
use super::{
    AbortHandle, Absent, Backend, BackendEntry, Board, Collective, Error, Meeting, Result,
};

/// The largest world size; one machine has no use for more.
pub const MAX_WORLD: usize = 1024;

/// f32 per chunk unless told otherwise: 1 MiB, so that the chunks of a few ranks share the cache.
pub const DEFAULT_CHUNK_F32: usize = 256 * 1024;

pub(super) const ENTRY: BackendEntry = BackendEntry {
    name: "local",
    suits: |_| true,
    is_built: true,
    is_elastic: true,
    one_machine: true,
    on_gpus: false,
    world_launcher: None,
    variable: |_, _, _| None,
    open: |_| Ok(Box::new(LocalBackend)),
};

/// Needs nothing that lasts longer than a generation.
struct LocalBackend;

impl Backend for LocalBackend {
    fn meet(
        &mut self,
        meeting: &Meeting,
        board: &mut dyn Board,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Box<dyn Collective>> {
        let options = LocalOptions {
            run_id: board.run_id()?,
            generation: meeting.generation,
            rank: meeting.rank,
            world: meeting.world,
            machines: meeting.machines.clone(),
            chunk_f32: DEFAULT_CHUNK_F32,
        };
        Ok(Box::new(LocalCollective::join(&options, abort, deadline)?))
    }
}

/// A seat in a generation. All ranks must agree on everything but `rank`.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Tells runs on one machine apart. Best something others cannot guess, such as the run's token:
    /// it is hashed before it is used as a name.
    pub run_id: String,
    /// The generation to join; never reused within a run.
    pub generation: u64,
    /// This process's seat, `0..world`.
    pub rank: usize,
    /// How many ranks take part, 1 to [`MAX_WORLD`].
    pub world: usize,
    /// Where ranks run, at least one of each machine; empty if not known.
    pub machines: Vec<Seated>,
    /// f32 per chunk, [`DEFAULT_CHUNK_F32`] unless measured otherwise.
    pub chunk_f32: usize,
}

/// One rank's end of the shared memory.
pub struct LocalCollective {
    segment: Arc<Segment>,
    abort: AbortHandle,
    rank: usize,
    /// Number of the last arrival; joining is 1.
    arrival: u32,
    spins: u32,
}

impl LocalCollective {
    /// Takes the seat and returns when all ranks have taken theirs. Ranks may come in any order; until
    /// rank 0 is there the others wait.
    pub fn join(options: &LocalOptions, abort: &AbortHandle, deadline: Instant) -> Result<Self> {
        let LocalOptions { rank, world, .. } = *options;
        let layout = (rank < world && world <= MAX_WORLD)
            .then(|| SegmentLayout::new(world, options.chunk_f32))
            .flatten()
            .ok_or(Error::BadSeat {
                rank,
                world,
                max_world: MAX_WORLD,
            })?;
        same_host(&options.machines)?;
        let (fd, segment) = rendezvous::meet(options, layout, abort, deadline)?;
        segment.set_pid(rank, std::process::id());
        if let Err(source) = segment.reserve(fd.as_fd(), rank) {
            segment.abort(
                rank,
                &format!("rank {rank}: no room for shared memory: {source}"),
            );
            return Err(Error::NoRoom {
                world,
                needed_bytes: layout.bytes as u64,
                available_bytes: available_memory(),
                source,
            });
        }
        let segment = Arc::new(segment);
        let weak = Arc::downgrade(&segment);
        abort.on_abort(Box::new(move |reason| {
            if let Some(segment) = weak.upgrade() {
                segment.abort(rank, reason);
            }
        }));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut joined = Self {
            segment,
            abort: abort.clone(),
            rank,
            arrival: 0,
            // About 20 us where every rank can have a core; else give the core up almost at once.
            spins: if world <= cores { 1000 } else { 20 },
        };
        joined.cross(Note::new(CollectiveOperation::Join, 0, 0), deadline)?;
        Ok(joined)
    }

    /// Arrives with `note` and waits for all the others: a barrier at which everybody says what it is
    /// for. Returns the arrival's number.
    fn cross(&mut self, note: Note, deadline: Instant) -> Result<u32> {
        let started = Instant::now();
        self.arrival = self.arrival.wrapping_add(1);
        let (rank, arrival) = (self.rank, self.arrival);
        self.segment.set_note(rank, arrival, note.words());
        if !self.segment.arrive(rank) {
            return Err(self.aborted(note));
        }
        for other in 0..self.world() {
            while !self.look(other, note)? {
                let now = Instant::now();
                if now >= deadline {
                    return Err(self.give_up(note, started));
                }
                self.segment.sleep(other, arrival, deadline - now);
            }
        }
        self.agree(note)?;
        Ok(arrival)
    }

    /// Whether `other` is there, spinning for a moment.
    fn look(&self, other: usize, note: Note) -> Result<bool> {
        for _ in 0..self.spins {
            match self.segment.seen(other, self.arrival) {
                Seen::Arrived => return Ok(true),
                Seen::Aborted => return Err(self.aborted(note)),
                Seen::NotYet => std::hint::spin_loop(),
            }
        }
        Ok(false)
    }

    /// Everybody is here; are all here for the same thing?
    fn agree(&self, note: Note) -> Result<()> {
        let said = |other| Note::from_words(self.segment.note(other, self.arrival));
        note.agree(self.rank, (0..self.world()).map(said))
            .inspect_err(|error| self.segment.abort(self.rank, &error.headline()))
    }

    fn aborted(&self, note: Note) -> Error {
        let (by, reason) = self.segment.aborted_by();
        Error::aborted(note.op_name(), self.rank, by, &reason)
    }

    fn give_up(&self, note: Note, started: Instant) -> Error {
        let absent = (0..self.world())
            .filter(|other| self.segment.seen(*other, self.arrival) != Seen::Arrived)
            .map(|other| {
                let pid = self.segment.pid(other);
                let process = (pid != 0).then(|| (pid, process_state(pid)));
                Absent {
                    rank: other,
                    process,
                }
            })
            .collect();
        let seat = (self.rank, self.world());
        let error = Error::deadline(note.op_name(), seat, started.elapsed(), absent);
        self.segment.abort(self.rank, &error.headline());
        error
    }

    /// To be called before an operation touches the shared floats: after an error the rule that keeps
    /// ranks apart no longer holds.
    fn begin(&self, note: Note) -> Result<()> {
        match self.segment.seen(self.rank, self.arrival) {
            Seen::Aborted => Err(self.aborted(note)),
            Seen::Arrived | Seen::NotYet => Ok(()),
        }
    }

    /// Puts floats into this rank's slot for the next arrival.
    fn offer(&mut self, floats: &[f32]) {
        let next = self.arrival.wrapping_add(1);
        // SAFETY: we are `rank`, and our last wait, number `arrival`, was completed: an operation
        // whose wait failed aborted the segment, and `begin` lets none start after that.
        let slot = unsafe { self.segment.slot_mut(self.rank, next, floats.len()) };
        slot.copy_from_slice(floats);
    }

    /// Like [`Self::offer`], with at most a chunk of bytes.
    fn offer_bytes(&mut self, bytes: &[u8]) {
        let next = self.arrival.wrapping_add(1);
        // SAFETY: as in `offer`.
        let slot = unsafe {
            self.segment
                .slot_mut(self.rank, next, bytes.len().div_ceil(4))
        };
        bytemuck::cast_slice_mut(slot)[..bytes.len()].copy_from_slice(bytes);
    }

    /// What `rank` offered in bytes for the arrival just waited for.
    fn offered_bytes(&mut self, rank: usize, len: usize) -> &[u8] {
        // SAFETY: our last wait was for `arrival`, and `&mut self` keeps us from arriving again while
        // the slice lives.
        let slot = unsafe { self.segment.slot(rank, self.arrival, 0, len.div_ceil(4)) };
        &bytemuck::cast_slice(slot)[..len]
    }

    /// Sums this rank's stripe of the chunk that all have offered, into the result of the next arrival.
    fn reduce_stripe(&mut self, chunk_len: usize) {
        let (start, end) = stripe(chunk_len, self.rank, self.world());
        let len = end - start;
        let parts: Vec<&[f32]> = (0..self.world())
            // SAFETY: our last wait was for `arrival`, and `&mut self` keeps us from arriving again.
            .map(|rank| unsafe { self.segment.slot(rank, self.arrival, start, len) })
            .collect();
        let next = self.arrival.wrapping_add(1);
        // SAFETY: our last wait was `next - 1`, and `stripe` gives no float to two ranks.
        let out = unsafe { self.segment.result_mut(next, start, len) };
        tree_sum_into(out, &parts);
    }

    /// Copies the sum out that the stripes of the arrival just waited for make up.
    fn take_result(&mut self, into: &mut [f32]) {
        // SAFETY: our last wait was for `arrival`, and `&mut self` keeps us from arriving again.
        let result = unsafe { self.segment.result(self.arrival, into.len()) };
        into.copy_from_slice(result);
    }

    fn chunk_bytes(&self) -> usize {
        4 * self.segment.layout().chunk
    }
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.segment.layout().world
    }

    fn name(&self) -> &'static str {
        "local"
    }

    fn all_reduce(&mut self, buf: &mut [f32], deadline: Instant) -> Result<()> {
        let note = Note::new(CollectiveOperation::AllReduce, buf.len(), 0);
        self.begin(note)?;
        let (chunk, len) = (self.segment.layout().chunk, buf.len());
        let piece = |i: usize| i * chunk..((i + 1) * chunk).min(len);
        let pieces: Vec<_> = (0..len.div_ceil(chunk)).map(piece).collect();
        if let Some(first) = pieces.first() {
            self.offer(&buf[first.clone()]);
        }
        // At crossing i the inputs of piece i and the sums of piece i - 1 are handed over.
        for i in 0..=pieces.len() {
            self.cross(note, deadline)?;
            if let Some(piece) = pieces.get(i) {
                self.reduce_stripe(piece.len());
            }
            if let Some(next) = pieces.get(i + 1) {
                self.offer(&buf[next.clone()]);
            }
            if let Some(done) = i.checked_sub(1).and_then(|i| pieces.get(i)) {
                self.take_result(&mut buf[done.clone()]);
            }
        }
        Ok(())
    }

    fn broadcast(&mut self, buf: &mut [u8], root: usize, deadline: Instant) -> Result<()> {
        let note = Note::broadcast(buf.len(), root, self.world())?;
        self.begin(note)?;
        let chunk = self.chunk_bytes();
        if buf.is_empty() {
            self.cross(note, deadline)?;
        }
        for piece in buf.chunks_mut(chunk) {
            if self.rank == root {
                self.offer_bytes(piece);
            }
            self.cross(note, deadline)?;
            if self.rank != root {
                piece.copy_from_slice(self.offered_bytes(root, piece.len()));
            }
        }
        Ok(())
    }

    fn all_gather(&mut self, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>> {
        let note = Note::new(CollectiveOperation::AllGather, mine.len(), 0);
        self.begin(note)?;
        let chunk = self.chunk_bytes();
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut lens = vec![usize::MAX]; // the first crossing tells
        let mut start = 0;
        while start == 0 || lens.iter().any(|len| start < *len) {
            let rest = mine.get(start..).unwrap_or_default();
            self.offer_bytes(&rest[..rest.len().min(chunk)]);
            let arrival = self.cross(note, deadline)?;
            if start == 0 {
                let note = |rank| Note::from_words(self.segment.note(rank, arrival));
                lens = (0..self.world())
                    .map(|rank| note(rank).len as usize)
                    .collect();
                all = lens.iter().map(|len| Vec::with_capacity(*len)).collect();
            }
            for (rank, got) in all.iter_mut().enumerate() {
                let len = lens[rank].saturating_sub(start).min(chunk);
                got.extend_from_slice(self.offered_bytes(rank, len));
            }
            start += chunk;
        }
        Ok(all)
    }

    fn barrier(&mut self, deadline: Instant) -> Result<()> {
        self.cross(Note::new(CollectiveOperation::Barrier, 0, 0), deadline)?;
        Ok(())
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

/// [`Error::DifferentHosts`] unless all ranks are on one machine.
pub fn same_host(machines: &[Seated]) -> Result<()> {
    let Some((first, others)) = machines.split_first() else {
        return Ok(());
    };
    match others
        .iter()
        .find(|seat| !same_machine(&seat.machine, &first.machine))
    {
        None => Ok(()),
        Some(other) => Err(Error::DifferentHosts {
            rank: first.rank,
            host: first.machine.clone(),
            other: other.rank,
            other_host: other.machine.clone(),
        }),
    }
}

/// "alive", "stopped" or "gone", as far as this process can see.
fn process_state(pid: u32) -> &'static str {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command, which is in parentheses and may contain some itself.
    match stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()) {
        None | Some([] | [b'Z' | b'X', ..]) => "gone",
        Some([b'T' | b't', ..]) => "stopped",
        Some(_) => "alive",
    }
}

/// `MemAvailable` of /proc/meminfo in bytes; 0 if it cannot be read.
fn available_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0_u64) * 1024
}
