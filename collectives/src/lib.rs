//! Sums, broadcasts and gathers between the ranks of one generation.
//!
//! One trait, [`Collective`], and four engines behind it: [`Solo`] (one rank), [`local`] (ranks on
//! one machine, shared memory), [`mpi`] (cargo feature `mpi`) and [`nccl`] (ranks with GPUs).
//! [`BACKENDS`] lists how the ranks of a run can meet; an open [`Backend`] makes one engine per generation. All
//! multi-rank engines add in the order that [`tree_sum`] defines, so they give the same bits. Gradients on
//! GPUs go another way, [`DeviceCollective`]: only `nccl` has it, and it adds in NCCL's order.
//!
//! What every engine promises:
//! * **Lockstep.** All ranks call the same operations in the same order, even with zero samples. Each
//!   call announces itself; a rank that calls something else, or with another length, gets
//!   [`Error::Mismatch`] instead of another's data.
//! * **A deadline on every wait.** It is an instant, so that one deadline can cover a whole step.
//! * **Abort.** [`AbortHandle::abort`] from any thread of any rank ends the wait of every rank within
//!   about a millisecond with [`Error::Aborted`].
//!   With `nccl` it ends the waits of its own rank only: the coordinator tells
//!   every rank of a generation when one has left it.
//! * **One error ends it.** After any error the engine is poisoned for all ranks: they abandon the
//!   attempt, and the next generation makes a new engine. After an error a buffer under reduction
//!   holds nothing useful.
//!
//! This module must not decide who is a member, when to give up on a rank, or what happens
//! after an abort. The coordinator does.

mod abort;
mod backend;
mod device;
mod error;
pub mod local;
pub mod mpi;
pub mod nccl;
mod note;
mod pieces;
mod solo;
#[cfg(test)]
pub(crate) mod testing;
mod tree;

use std::time::Instant;

pub use abort::AbortHandle;
pub use backend::{
    BACKENDS, Backend, BackendChoice, BackendEntry, BackendOptions, Board, Lookup, Meeting,
    Surroundings, WorldLauncher,
};
pub use device::DeviceCollective;
pub use error::{Absent, Error, Result};
pub use solo::Solo;
pub use tree::tree_sum;

/// What the ranks of one generation can do together.
pub trait Collective: Send {
    /// This process's seat, `0..world()`.
    fn rank(&self) -> usize;

    /// How many ranks take part.
    fn world(&self) -> usize;

    /// The backend's name as `--backend` spells it.
    fn name(&self) -> &'static str;

    /// Sums `buf` element by element over all ranks, in the order of [`tree_sum`]; afterwards every
    /// rank holds the same bits. Any length, the same on all ranks.
    fn all_reduce(&mut self, buf: &mut [f32], deadline: Instant) -> Result<()>;

    /// Copies `root`'s `buf` to every rank. Any length, the same on all ranks.
    fn broadcast(&mut self, buf: &mut [u8], root: usize, deadline: Instant) -> Result<()>;

    /// Gives every rank everybody's bytes, in rank order. The length may differ from rank to rank.
    fn all_gather(&mut self, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>>;

    /// Returns when all ranks have called it.
    fn barrier(&mut self, deadline: Instant) -> Result<()>;

    /// The handle that ends the waits of this engine on every rank.
    fn abort_handle(&self) -> AbortHandle;

    /// The engine's operations on GPU memory, if it has them.
    fn device(&mut self) -> Option<&mut dyn DeviceCollective> {
        None
    }
}
