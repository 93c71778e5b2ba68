//! One rank of an MPI job.
//!
//! A chunk at a time: every rank sends every other its stripe of the chunk, adds its own stripe in the
//! fixed tree, and sends the sum to everybody. No MPI reduction is used, since none promises an order,
//! so the bits are those of backend `local`.
//!
//! Nothing here waits inside MPI: this backend starts messages, then tests them in a loop that also checks
//! the deadline and aborts, local and sent. All messages go through this backend's own buffers,
//! which it leaks if an operation fails: MPI may write to them at any later time, and there is no
//! dependable way to stop it.
//!
//! MPI gives speed, not elasticity: after an error the process must end, and the launcher restarts
//! the job from the last checkpoint. A broadcast sends `world - 1` copies from the root, which is
//! right for the few ranks that virtual shards allow and would not be for hundreds.

mod link;
#[cfg(test)]
mod tests;

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use self::link::{Link, Tag};
use crate::note::Note;
use crate::pieces::{EngineEnd, InPieces};
use crate::tree::{stripe, tree_sum_into};
use crate::{AbortHandle, Absent, Error, Result};

/// f32 per chunk over all stripes: 4 MiB, enough for a network to be busy and far below the 2^31
/// elements that an MPI call can count.
const CHUNK_F32: usize = 1024 * 1024;

/// A wait without progress this long sleeps between looks instead of yielding only.
const PATIENCE: Duration = Duration::from_millis(1);
const NAP: Duration = Duration::from_micros(50);

/// One rank of an MPI job.
pub struct MpiCollective {
    link: Link,
    abort: AbortHandle,
    /// In a box, so that they stay in place whatever happens to this value.
    buffers: ManuallyDrop<Box<Buffers>>,
    /// f32 per stripe of a full chunk.
    piece: usize,
    ended: Option<EngineEnd>,
}

/// What messages are sent from and received into.
struct Buffers {
    my_note: [u64; 3],
    /// By rank: the words of each rank's newest note.
    notes: Vec<[u64; 3]>,
    /// A chunk, `world` pieces.
    chunk: Vec<f32>,
    /// A piece per rank.
    pieces: Vec<f32>,
    /// This rank's stripe of the sum.
    sum: Vec<f32>,
}

impl MpiCollective {
    /// Starts MPI; rank and world size are the job's. Once per process, on a thread that lives until
    /// the value is dropped: dropping it finalizes MPI, and waits for the other ranks to do the same.
    pub fn init(abort: &AbortHandle) -> Result<Self> {
        let link = Link::open()?;
        let world = link.world;
        let piece = (CHUNK_F32 / world).max(1).next_multiple_of(16);
        let buffers = Buffers {
            my_note: [0; 3],
            notes: vec![[0; 3]; world],
            chunk: vec![0.0; piece * world],
            pieces: vec![0.0; piece * world],
            sum: vec![0.0; piece],
        };
        Ok(Self {
            link,
            abort: abort.clone(),
            buffers: ManuallyDrop::new(Box::new(buffers)),
            piece,
            ended: None,
        })
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.link.rank;
        (0..self.link.world).filter(move |other| *other != rank)
    }

    /// Waits until no message is under way.
    fn complete(&mut self, note: Note, deadline: Instant) -> Result<()> {
        let rank = self.link.rank;
        let started = Instant::now();
        let mut moved = started;
        loop {
            let (done, left) = self.link.progress()?;
            if left == 0 {
                return Ok(());
            }
            let now = Instant::now();
            if let Some(reason) = self.abort.reason() {
                return Err(Error::aborted(note.op_name(), rank, Some(rank), reason));
            }
            if let Some((by, reason)) = self.link.hear_abort()? {
                return Err(Error::aborted(note.op_name(), rank, Some(by), &reason));
            }
            if now >= deadline {
                let absent = self.link.waiting_for().into_iter().map(Absent::unseen);
                let (op, absent) = (note.op_name(), absent.collect());
                return Err(Error::deadline(op, self.seat(), now - started, absent));
            }
            if done > 0 {
                moved = now;
            } else if now - moved < PATIENCE {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    /// Starts sending from one of our buffers, from f32 `start` on.
    fn send(
        &mut self,
        buffer: StagingBuffer,
        start: usize,
        bytes: usize,
        peer: usize,
    ) -> Result<()> {
        let data: *mut [u8] = &raw mut self.buffers.bytes(buffer, start)[..bytes];
        // SAFETY: in `buffers`, which nobody writes to until `complete` is through and which are leaked
        // if it fails.
        unsafe { self.link.send(data, peer, Tag::Data) }
    }

    /// Starts receiving into one of our buffers, from f32 `start` on.
    fn receive(
        &mut self,
        buffer: StagingBuffer,
        start: usize,
        bytes: usize,
        peer: usize,
    ) -> Result<()> {
        let data: *mut [u8] = &raw mut self.buffers.bytes(buffer, start)[..bytes];
        // SAFETY: in `buffers`, which nobody touches until `complete` is through and which are leaked
        // if it fails; the callers receive to places that do not overlap.
        unsafe { self.link.receive(data, peer, Tag::Data) }
    }
}

#[derive(Debug, Clone, Copy)]
enum StagingBuffer {
    Chunk,
    Pieces,
    Sum,
}

impl Buffers {
    /// A buffer's bytes from f32 `start` on.
    fn bytes(&mut self, buffer: StagingBuffer, start: usize) -> &mut [u8] {
        let floats = match buffer {
            StagingBuffer::Chunk => &mut self.chunk,
            StagingBuffer::Pieces => &mut self.pieces,
            StagingBuffer::Sum => &mut self.sum,
        };
        bytemuck::cast_slice_mut(&mut floats[start..])
    }
}

impl Drop for MpiCollective {
    fn drop(&mut self) {
        // An abort that came between two operations: the others may be waiting in the next one.
        if let Some(reason) = self.abort.reason() {
            self.link.abort(Some(reason));
        }
        if !self.link.is_broken() {
            // SAFETY: dropped once, here; no message is under way, since no operation has failed.
            unsafe { ManuallyDrop::drop(&mut self.buffers) };
        }
    }
}

impl InPieces for MpiCollective {
    const NAME: &'static str = "mpi";

    fn seat(&self) -> (usize, usize) {
        (self.link.rank, self.link.world)
    }

    fn abort(&self) -> &AbortHandle {
        &self.abort
    }

    fn ended(&mut self) -> &mut Option<EngineEnd> {
        &mut self.ended
    }

    fn stop(&mut self, end: &EngineEnd) {
        // What came from another rank was told to everybody by that one.
        let news = end.by == Some(self.link.rank);
        self.link.abort(news.then_some(&end.reason));
    }

    fn exchange(&mut self, note: Note, deadline: Instant) -> Result<Vec<Note>> {
        self.buffers.my_note = note.words();
        for other in self.others() {
            let mine: *const [u8] = bytemuck::bytes_of(&self.buffers.my_note);
            let theirs: *mut [u8] = bytemuck::bytes_of_mut(&mut self.buffers.notes[other]);
            // SAFETY: both are in `buffers`, which stay untouched until `complete` is through and are
            // leaked if it fails; each rank's note has its own place.
            unsafe {
                self.link.receive(theirs, other, Tag::Note)?;
                self.link.send(mine, other, Tag::Note)?;
            }
        }
        self.complete(note, deadline)?;
        self.buffers.notes[self.link.rank] = note.words();
        let notes = self.buffers.notes.iter();
        Ok(notes.map(|words| Note::from_words(*words)).collect())
    }

    fn sum_len(&self) -> usize {
        self.buffers.chunk.len()
    }

    fn sum(&mut self, buf: &mut [f32], note: Note, deadline: Instant) -> Result<()> {
        let ((rank, world), piece) = (self.seat(), self.piece);
        let part = |rank| stripe(buf.len(), rank, world);
        let (start, end) = part(rank);
        let mine = 4 * (end - start);
        self.buffers.chunk[..buf.len()].copy_from_slice(buf);
        for other in self.others() {
            let (from, to) = part(other);
            self.receive(StagingBuffer::Pieces, other * piece, mine, other)?;
            self.send(StagingBuffer::Chunk, from, 4 * (to - from), other)?;
        }
        self.complete(note, deadline)?;
        let Buffers {
            chunk, pieces, sum, ..
        } = &mut **self.buffers;
        let given = |other: usize| match other == rank {
            true => &chunk[start..end],
            false => &pieces[other * piece..][..end - start],
        };
        let parts: Vec<&[f32]> = (0..world).map(given).collect();
        tree_sum_into(&mut sum[..end - start], &parts);
        for other in self.others() {
            let (from, to) = part(other);
            self.receive(StagingBuffer::Chunk, from, 4 * (to - from), other)?;
            self.send(StagingBuffer::Sum, 0, mine, other)?;
        }
        self.complete(note, deadline)?;
        let Buffers { chunk, sum, .. } = &mut **self.buffers;
        chunk[start..end].copy_from_slice(&sum[..end - start]);
        buf.copy_from_slice(&chunk[..buf.len()]);
        Ok(())
    }

    fn spread_len(&self) -> usize {
        4 * self.buffers.chunk.len()
    }

    fn spread(&mut self, buf: &mut [u8], root: usize, note: Note, deadline: Instant) -> Result<()> {
        let len = buf.len();
        if self.link.rank == root {
            self.buffers.bytes(StagingBuffer::Chunk, 0)[..len].copy_from_slice(buf);
            for other in self.others() {
                self.send(StagingBuffer::Chunk, 0, len, other)?;
            }
            return self.complete(note, deadline);
        }
        self.receive(StagingBuffer::Chunk, 0, len, root)?;
        self.complete(note, deadline)?;
        buf.copy_from_slice(&self.buffers.bytes(StagingBuffer::Chunk, 0)[..len]);
        Ok(())
    }

    fn gather_len(&self) -> usize {
        4 * self.piece
    }

    fn gather(
        &mut self,
        mine: &[u8],
        lens: &[usize],
        all: &mut [Vec<u8>],
        note: Note,
        deadline: Instant,
    ) -> Result<()> {
        let (rank, piece) = (self.link.rank, self.piece);
        self.buffers.bytes(StagingBuffer::Chunk, 0)[..mine.len()].copy_from_slice(mine);
        for other in self.others() {
            if lens[other] > 0 {
                self.receive(StagingBuffer::Pieces, other * piece, lens[other], other)?;
            }
            if !mine.is_empty() {
                self.send(StagingBuffer::Chunk, 0, mine.len(), other)?;
            }
        }
        self.complete(note, deadline)?;
        for (other, got) in all.iter_mut().enumerate() {
            let (buffer, at) = match other == rank {
                true => (StagingBuffer::Chunk, 0),
                false => (StagingBuffer::Pieces, other * piece),
            };
            got.extend_from_slice(&self.buffers.bytes(buffer, at)[..lens[other]]);
        }
        Ok(())
    }
}
