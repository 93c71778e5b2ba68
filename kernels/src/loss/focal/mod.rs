//! Multi-label focal loss (Lin et al., "Focal loss for dense object detection", ICCV 2017), with a sigmoid per class.

use std::sync::Arc;

use fovea_task::Kind;

use super::sigmoid::Sigmoid;
use super::{LossEntry, LossSettings};
use crate::cuda::source::{Source, SourceFile};
use crate::error::Result;

/// The row of [`super::LOSSES`].
pub(super) static ENTRY: LossEntry = LossEntry {
    name: "focal",
    kind: Kind::AnyOf,
    reads: &[
        "gamma",
        "alpha",
        "balance",
        "positive_weight",
        "negative_weight",
    ],
    build: |settings| Ok(Arc::new(build(settings)?)),
    source: Source {
        file: SourceFile {
            name: "focal.cu",
            text: include_str!("focal.cu"),
        },
        kernels: &["fovea_focal_loss"],
    },
};

/// Sum over rows and classes of `alpha_c * w(y) * (1 - p_t)^gamma * BCE(z, y)`: bit c of a label is class c, `w` is
/// [`LossSettings::positive_weight`] or [`LossSettings::negative_weight`].
///
/// Returns an error for settings without a meaning, such as negative weights.
fn build(settings: &LossSettings) -> Result<Sigmoid> {
    let signs = [settings.negative_weight, settings.positive_weight];
    Sigmoid::new(&ENTRY, settings, settings.gamma, &settings.alpha, |_| signs)
}
