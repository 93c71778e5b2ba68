//! Multi-label binary cross-entropy with logits, as PyTorch's `BCEWithLogitsLoss`.

use std::sync::Arc;

use fovea_task::Kind;

use super::sigmoid::Sigmoid;
use super::{LossEntry, LossSettings};
use crate::cuda::source::{Source, SourceFile};
use crate::error::Result;

/// The row of [`super::LOSSES`].
pub(super) static ENTRY: LossEntry = LossEntry {
    name: "bce",
    kind: Kind::AnyOf,
    reads: &["alpha", "pos_weight"],
    build: |settings| Ok(Arc::new(build(settings)?)),
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
///
/// Returns an error for settings without a meaning, such as negative weights.
fn build(settings: &LossSettings) -> Result<Sigmoid> {
    let pos_weight = &settings.pos_weight;
    Sigmoid::new(&ENTRY, settings, 0.0, &settings.alpha, |class| {
        [1.0, pos_weight[class]]
    })
}

#[cfg(test)]
mod tests;
