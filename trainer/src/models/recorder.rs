//! What a pass leaves behind for pictures of where a model looks: the last feature maps of each branch, and attention.

use std::cell::{Cell, RefCell};

use fovea_task::Level;
use tch::{Kind, Tensor};

use crate::error::Result;

/// A part of a model that reads pictures, and what each of its pictures is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its name, as in the names of its parameters.
    pub name: &'static str,
    /// Whether its pictures are whole images or cells.
    pub level: Level,
}

impl Default for Branch {
    /// The one branch of a model that has no others.
    fn default() -> Self {
        Self {
            name: "backbone",
            level: Level::Image,
        }
    }
}

/// The last feature maps of a branch.
#[derive(Debug)]
pub struct BranchMaps {
    /// The branch.
    pub branch: Branch,
    /// `[n, channels, h, w]`; a leaf of autograd, from which the graph to the logits begins.
    pub maps: Tensor,
}

/// Keeps maps and attention of one pass. Autograd knows nothing of what lies before the maps, so no graph of a whole
/// network is kept.
#[derive(Debug, Default)]
pub struct Recorder {
    maps: RefCell<Vec<BranchMaps>>,
    attention: RefCell<Option<Tensor>>,
    /// Whether a branch runs, whose attention between pixels is not that between tokens.
    in_branch: Cell<bool>,
}

impl Recorder {
    /// Computes maps without a graph, keeps them, and returns the leaf that the model continues with.
    pub(super) fn maps(
        &self,
        branch: Branch,
        compute: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.in_branch.set(true);
        let computed = tch::no_grad(compute);
        self.in_branch.set(false);
        let maps = computed?.f_detach()?.f_set_requires_grad(true)?;
        let leaf = maps.shallow_clone();
        self.maps.borrow_mut().push(BranchMaps { branch, maps });
        Ok(leaf)
    }

    /// Keeps the attention weights `[b, heads, t, t]` between tokens, averaged over heads as
    /// `torch.nn.MultiheadAttention` returns them.
    pub(super) fn attention(&self, weights: &Tensor) -> Result<()> {
        if !self.in_branch.get() {
            let mean = weights
                .f_detach()?
                .f_mean_dim([1i64].as_slice(), false, Kind::Float)?;
            *self.attention.borrow_mut() = Some(mean);
        }
        Ok(())
    }

    /// The maps, in the order in which the branches ran, and the weights of the last attention between tokens,
    /// `[b, t, t]`: the share of each column's token in each row's.
    #[must_use]
    pub fn into_parts(self) -> (Vec<BranchMaps>, Option<Tensor>) {
        (self.maps.into_inner(), self.attention.into_inner())
    }
}
