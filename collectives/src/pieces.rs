//! The operations of an engine that moves data through its own buffers, one piece after another.
//!
//! Before each operation all ranks exchange notes of what they are about to do. After an error the engine is over, for
//! this rank and for those that [`InPieces::stop`] reaches.

use std::time::Instant;

use super::note::{CollectiveOperation, Note};
use super::{AbortHandle, Collective, DeviceCollective, Error, Result};

/// Who ended an engine, where that is known, and why.
#[derive(Debug, Clone)]
pub(super) struct EngineEnd {
    pub by: Option<usize>,
    pub reason: String,
}

/// What such an engine does for one piece; [`Collective`] follows from it. The ranks make the same calls in the same
/// order, with pieces of the same length.
pub(super) trait InPieces: Send {
    /// As [`Collective::name`]: the spelling of `--backend`.
    const NAME: &'static str;

    /// This rank and the world size.
    fn seat(&self) -> (usize, usize);

    /// Ends the waits of this engine.
    fn abort(&self) -> &AbortHandle;

    /// How the engine was ended, once it is over; kept by the engine for [`Self::guard`].
    fn ended(&mut self) -> &mut Option<EngineEnd>;

    /// Ends the engine, and tells the other ranks as far as it can.
    fn stop(&mut self, end: &EngineEnd);

    /// Exchanges notes with all ranks, which is a barrier; all notes by rank.
    fn exchange(&mut self, note: Note, deadline: Instant) -> Result<Vec<Note>>;

    /// The most f32 that [`Self::sum`] takes.
    fn sum_len(&self) -> usize;

    /// Sums `part` over all ranks, in place.
    fn sum(&mut self, part: &mut [f32], note: Note, deadline: Instant) -> Result<()>;

    /// The most bytes that [`Self::spread`] takes.
    fn spread_len(&self) -> usize;

    /// Copies `root`'s `part` to all ranks.
    fn spread(&mut self, part: &mut [u8], root: usize, note: Note, deadline: Instant)
    -> Result<()>;

    /// The most bytes per rank that [`Self::gather`] takes.
    fn gather_len(&self) -> usize;

    /// Appends `lens[r]` bytes of each rank `r` to `all[r]`; `mine` are those of this rank.
    fn gather(
        &mut self,
        mine: &[u8],
        lens: &[usize],
        all: &mut [Vec<u8>],
        note: Note,
        deadline: Instant,
    ) -> Result<()>;

    /// As [`Collective::device`]: `None` for an engine of host memory only.
    fn on_device(&mut self) -> Option<&mut dyn DeviceCollective> {
        None
    }

    /// Runs `body` unless the engine is over; after an error it is.
    fn guard<T>(&mut self, op: &'static str, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T>
    where
        Self: Sized,
    {
        let (rank, _) = self.seat();
        if let Some(end) = self.ended() {
            return Err(Error::aborted(op, rank, end.by, &end.reason));
        }
        body(self).inspect_err(|error| {
            let (by, reason) = match error {
                Error::Aborted { by, reason, .. } => (*by, reason.clone()),
                other => (Some(rank), other.headline()),
            };
            let end = EngineEnd { by, reason };
            self.stop(&end);
            *self.ended() = Some(end);
        })
    }

    /// Runs the body of an operation after all ranks have said that they are in it. The body gets what every rank said.
    fn run(
        &mut self,
        note: Note,
        deadline: Instant,
        body: impl FnOnce(&mut Self, &[Note]) -> Result<()>,
    ) -> Result<()>
    where
        Self: Sized,
    {
        self.guard(note.op_name(), |this| {
            let notes = this.exchange(note, deadline)?;
            note.agree(this.seat().0, notes.iter().copied())?;
            body(this, &notes)
        })
    }
}

impl<E: InPieces> Collective for E {
    fn rank(&self) -> usize {
        self.seat().0
    }

    fn world(&self) -> usize {
        self.seat().1
    }

    fn name(&self) -> &'static str {
        E::NAME
    }

    fn all_reduce(&mut self, buf: &mut [f32], deadline: Instant) -> Result<()> {
        let note = Note::new(CollectiveOperation::AllReduce, buf.len(), 0);
        self.run(note, deadline, |this, _| {
            let piece = this.sum_len();
            buf.chunks_mut(piece)
                .try_for_each(|part| this.sum(part, note, deadline))
        })
    }

    fn broadcast(&mut self, buf: &mut [u8], root: usize, deadline: Instant) -> Result<()> {
        let note = Note::broadcast(buf.len(), root, self.world())?;
        self.run(note, deadline, |this, _| {
            let piece = this.spread_len();
            buf.chunks_mut(piece)
                .try_for_each(|part| this.spread(part, root, note, deadline))
        })
    }

    fn all_gather(&mut self, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>> {
        let note = Note::new(CollectiveOperation::AllGather, mine.len(), 0);
        let mut all = vec![Vec::new(); self.world()];
        self.run(note, deadline, |this, notes| {
            let piece = this.gather_len();
            let longest = notes.iter().map(|note| note.len as usize).max();
            for start in (0..longest.unwrap_or(0)).step_by(piece) {
                let now = |len: usize| len.saturating_sub(start).min(piece);
                let lens: Vec<usize> = notes.iter().map(|note| now(note.len as usize)).collect();
                let part = &mine.get(start..).unwrap_or_default()[..now(mine.len())];
                this.gather(part, &lens, &mut all, note, deadline)?;
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn barrier(&mut self, deadline: Instant) -> Result<()> {
        // Nobody gets all notes before all ranks have given theirs.
        let note = Note::new(CollectiveOperation::Barrier, 0, 0);
        self.run(note, deadline, |_, _| Ok(()))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort().clone()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceCollective> {
        self.on_device()
    }
}
