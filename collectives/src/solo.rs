//! The collective of a world of one: nothing to add, nobody to wait for.

use std::time::Instant;

use super::note::Note;
use super::{AbortHandle, Backend, Board, Collective, Error, Meeting, Result};

/// One rank on its own. Every operation leaves the data as they are; an abort still ends the run's
/// step, so that a single rank leaves in the same way as many.
#[derive(Debug, Clone, Default)]
pub struct Solo {
    abort: AbortHandle,
}

impl Solo {
    /// A world of one that listens to `abort`.
    pub fn new(abort: &AbortHandle) -> Self {
        Self {
            abort: abort.clone(),
        }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        match self.abort.reason() {
            None => Ok(()),
            Some(reason) => Err(Error::aborted(op, 0, Some(0), reason)),
        }
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "solo"
    }

    fn all_reduce(&mut self, _buf: &mut [f32], _deadline: Instant) -> Result<()> {
        self.check("all_reduce")
    }

    fn broadcast(&mut self, buf: &mut [u8], root: usize, _deadline: Instant) -> Result<()> {
        self.check(Note::broadcast(buf.len(), root, 1)?.op_name())
    }

    fn all_gather(&mut self, mine: &[u8], _deadline: Instant) -> Result<Vec<Vec<u8>>> {
        self.check("all_gather")?;
        Ok(vec![mine.to_vec()])
    }

    fn barrier(&mut self, _deadline: Instant) -> Result<()> {
        self.check("barrier")
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

/// An elastic backend, of which a generation of one rank needs nothing.
pub(super) struct Alone {
    /// The backend of several ranks; `None` in a run that never has a second one.
    pub others: Option<Box<dyn Backend>>,
}

impl Backend for Alone {
    fn meet(
        &mut self,
        meeting: &Meeting,
        board: &mut dyn Board,
        abort: &AbortHandle,
        deadline: Instant,
    ) -> Result<Box<dyn Collective>> {
        match (&mut self.others, meeting.world) {
            (_, 1) => Ok(Box::new(Solo::new(abort))),
            (Some(others), _) => others.meet(meeting, board, abort, deadline),
            (None, world) => Err(Error::BadSeat {
                rank: meeting.rank,
                world,
                max_world: 1,
            }),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn data_stay_as_they_are_until_an_abort() {
        let abort = AbortHandle::new();
        let mut solo = Solo::new(&abort);
        let now = Instant::now();
        let mut buf = [1.0, f32::NAN];
        solo.all_reduce(&mut buf, now).unwrap();
        assert_eq!(buf[0], 1.0);
        assert_eq!(solo.all_gather(b"xy", now).unwrap(), [b"xy"]);
        assert!(matches!(
            solo.broadcast(&mut [], 1, now),
            Err(Error::BadRoot { root: 1, world: 1 })
        ));
        solo.abort_handle().abort("drain");
        let error = solo.barrier(now).unwrap_err();
        assert!(matches!(&error, Error::Aborted { reason, .. } if reason == "drain"));
    }
}
