//! Multi-label focal loss (Lin et al., "Focal loss for dense object detection", ICCV 2017), with a sigmoid per class.

use std::sync::Arc;

use fovea_task::{Kind, Label};

use super::sigmoid::Sigmoid;
use super::{Loss, LossAt, LossEntry, LossSettings};
use crate::cuda::Op;
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
    build: |settings| Ok(Arc::new(Focal::new(settings)?)),
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
#[derive(Debug)]
struct Focal(Sigmoid);

impl Focal {
    /// Returns an error for settings without a meaning, such as negative weights.
    fn new(settings: &LossSettings) -> Result<Self> {
        let signs = [settings.negative_weight, settings.positive_weight];
        Sigmoid::new(
            "fovea_focal_loss",
            settings,
            settings.gamma,
            &settings.alpha,
            |_| signs,
        )
        .map(Self)
    }
}

impl Loss for Focal {
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
