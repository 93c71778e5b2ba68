//! Multi-label binary cross-entropy with logits, as PyTorch's `BCEWithLogitsLoss`.

use std::sync::Arc;

use fovea_task::{Kind, Label};

use super::sigmoid::Sigmoid;
use super::{Loss, LossAt, LossEntry, LossSettings};
use crate::cuda::Op;
use crate::cuda::source::{Source, SourceFile};
use crate::error::Result;

/// The row of [`super::LOSSES`].
pub(super) static ENTRY: LossEntry = LossEntry {
    name: "bce",
    kind: Kind::AnyOf,
    reads: &["alpha", "pos_weight"],
    build: |settings| Ok(Arc::new(Bce::new(settings)?)),
    source: Source {
        file: SourceFile {
            name: "bce.cu",
            text: include_str!("bce.cu"),
        },
        kernels: &["fovea_bce_loss"],
    },
};

/// Sum over rows and classes of `alpha_c * (pos_weight_c * y * softplus(-z) + (1 - y) * softplus(z))`: bit c of a label
/// is class c. PyTorch calls `alpha` `weight`; this is its `reduction="sum"`.
#[derive(Debug)]
struct Bce(Sigmoid);

impl Bce {
    /// Returns an error for settings without a meaning, such as negative weights.
    fn new(settings: &LossSettings) -> Result<Self> {
        settings.check()?;
        let pos_weight = &settings.pos_weight;
        Sigmoid::new("fovea_bce_loss", settings, 0.0, &settings.alpha, |class| {
            [1.0, pos_weight[class]]
        })
        .map(Self)
    }
}

impl Loss for Bce {
    fn entry(&self) -> &'static LossEntry {
        &ENTRY
    }

    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn host(
        &self,
        logits: &[f32],
        labels: &[Label],
        scale: f32,
        dlogits: &mut [f32],
    ) -> Result<f64> {
        self.0.host(logits, labels, scale, dlogits)
    }

    fn record(&self) -> &[u8] {
        self.0.record()
    }

    fn scratch_bytes(&self, n: usize) -> usize {
        self.0.scratch_bytes(n)
    }

    fn op(&self, at: LossAt) -> Box<dyn Op> {
        self.0.op(at)
    }
}

#[cfg(test)]
mod tests;
