//! Losses over one head's logits: the summed loss and its gradient in one pass.
//!
//! A loss is a folder here, with its definition on the CPU (the twin), its kernel and its tests, and a row of
//! [`LOSSES`]. Training and evaluation use the trait alone.

mod bce;
mod class_balanced;
mod cross_entropy;
mod focal;
mod sigmoid;

pub use class_balanced::effective_number_weights;

use std::fmt::Debug;
use std::sync::Arc;

use fovea_task::{Kind, Label, MAX_CLASSES};

use crate::cuda::Op;
use crate::cuda::source::Source;
use crate::error::{Error, Result, check_len, checked_elements};

/// Every loss. A configuration chooses one by its name.
pub static LOSSES: &[&LossEntry] = &[
    &focal::ENTRY,
    &bce::ENTRY,
    &class_balanced::ENTRY,
    &cross_entropy::ENTRY,
];

/// A row of [`LOSSES`].
#[derive(Debug)]
pub struct LossEntry {
    /// The loss's name in configurations; unique.
    pub name: &'static str,
    /// The kind of target whose labels the loss reads.
    pub kind: Kind,
    /// Keys of the configuration's section `[loss]` that change the loss; it ignores those that only others read.
    pub reads: &'static [&'static str],
    /// Builds the loss from settings; returns an error for settings that it cannot compute with.
    pub build: fn(&LossSettings) -> Result<Arc<dyn Loss>>,
    /// The CUDA source of its kernel.
    pub source: Source,
}

/// Settings of a loss that come from the configuration and the dataset. Each loss uses the ones it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct LossSettings {
    /// Focusing exponent, 0 or more; 0 weighs easy and hard samples alike.
    pub gamma: f32,
    /// One weight per class, 0 or more; the length is the number of classes C, 1 to [`fovea_task::MAX_CLASSES`].
    pub alpha: Vec<f32>,
    /// Factor of `focal` where the label has the class, 0 or more.
    pub positive_weight: f32,
    /// Factor of `focal` where the label does not have the class, 0 or more.
    pub negative_weight: f32,
    /// Factor of `bce` per class where the label has the class, 0 or more; as long as `alpha`. PyTorch's `pos_weight`.
    pub pos_weight: Vec<f32>,
    /// The share of a label that `cross_entropy` spreads over all classes, 0 or more and below 1.
    pub label_smoothing: f32,
    /// How much further samples of a class add to the first ones in `class_balanced`: 0 weighs all classes alike, and
    /// towards 1 the weights become inverse frequencies. 0 or more and below 1.
    pub beta: f32,
    /// Samples with each class, for `class_balanced`; as long as `alpha`.
    pub positives: Vec<u64>,
}

impl LossSettings {
    /// Settings that weigh `classes` classes, their labels and all samples alike, without smoothing.
    #[must_use]
    pub fn plain(classes: usize) -> Self {
        Self {
            gamma: 0.0,
            alpha: vec![1.0; classes],
            positive_weight: 1.0,
            negative_weight: 1.0,
            pos_weight: vec![1.0; classes],
            label_smoothing: 0.0,
            beta: 0.0,
            positives: vec![1; classes],
        }
    }

    /// Returns an error for numbers without a meaning, and for lists of different lengths.
    fn check(&self) -> Result<()> {
        let classes = self.alpha.len();
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(Error::Argument {
                what: "LossSettings::alpha's length (the number of classes)",
                limit: "1 to 63",
                actual: classes.to_string(),
                help: "pass one weight per class; a label holds at most 63 classes",
            });
        }
        check_numbers("LossSettings::gamma", &[self.gamma])?;
        check_numbers("LossSettings::positive_weight", &[self.positive_weight])?;
        check_numbers("LossSettings::negative_weight", &[self.negative_weight])?;
        check_numbers("LossSettings::alpha", &self.alpha)?;
        check_numbers("LossSettings::pos_weight", &self.pos_weight)?;
        let lengths = [
            ("LossSettings::pos_weight", self.pos_weight.len()),
            ("LossSettings::positives", self.positives.len()),
        ];
        for (what, length) in lengths {
            check_len(
                what,
                "one number per class, as many as alpha",
                length,
                classes,
            )?;
        }
        let shares = [
            ("LossSettings::label_smoothing", self.label_smoothing),
            ("LossSettings::beta", self.beta),
        ];
        for (what, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::Argument {
                    what,
                    limit: "0 or more, below 1",
                    actual: value.to_string(),
                    help: "check the loss settings",
                });
            }
        }
        Ok(())
    }
}

/// Returns an error for a weight or an exponent that is negative or not finite.
fn check_numbers(what: &'static str, values: &[f32]) -> Result<()> {
    let bad = |value: &&f32| !(value.is_finite() && **value >= 0.0);
    match values.iter().find(bad) {
        None => Ok(()),
        Some(value) => Err(Error::Argument {
            what,
            limit: "0 or more, finite",
            actual: value.to_string(),
            help: "check the loss settings and the label counts the weights come from",
        }),
    }
}

/// One loss over one head's logits, with its settings.
pub trait Loss: Send + Sync + Debug {
    /// Its row of [`LOSSES`].
    fn entry(&self) -> &'static LossEntry;

    /// C, the number of classes.
    fn classes(&self) -> usize;

    /// Returns the loss summed over rows, and writes `scale` times its gradient to `dlogits`. This defines the loss.
    ///
    /// `logits` and `dlogits` are `[n, C]` row-major, `labels` is `[n]`. `scale` multiplies `dlogits`, not the loss. A
    /// row with [`Label::UNKNOWN`] has loss 0 and gradient 0, whatever its logits; NaN in other rows gives a NaN loss
    /// and gradient. No rows give 0. The bits depend neither on the number of threads nor on the processor.
    ///
    /// # Errors
    ///
    /// A buffer of another length; a label that a target with C classes does not allow.
    fn host(
        &self,
        logits: &[f32],
        labels: &[Label],
        scale: f32,
        dlogits: &mut [f32],
    ) -> Result<f64>;

    /// The settings that the kernel reads, as bytes for the device; they are the same in every step.
    fn record(&self) -> &[u8];

    /// Bytes of scratch memory that the kernel needs for `n` rows.
    fn scratch_bytes(&self, n: usize) -> usize;

    /// The operation that computes [`Loss::host`] on device memory. It does not check whether labels are allowed.
    fn op(&self, at: LossAt) -> Box<dyn Op>;

    /// The loss's name in configurations.
    fn name(&self) -> &'static str {
        self.entry().name
    }

    /// The kind of target whose labels the loss reads.
    fn kind(&self) -> Kind {
        self.entry().kind
    }
}

/// Addresses in device memory of a loss kernel's inputs and results, and the number of rows.
#[derive(Clone, Copy, Debug)]
pub struct LossAt {
    /// Address of the logits, `[n, C]` f32; only read.
    pub logits: u64,
    /// Address of the labels, `[n]` [`Label`], 8-byte aligned.
    pub labels: u64,
    /// Number of rows; `n * C` is at most 2147483647.
    pub n: usize,
    /// Address of the bytes of [`Loss::record`], 4-byte aligned.
    pub record: u64,
    /// Address of one f32: the factor on `dlogits`, not on the loss.
    pub scale: u64,
    /// Address of the scaled gradient, `[n, C]` f32; written.
    pub dlogits: u64,
    /// Address of the summed loss, one f64; written, 0 without rows.
    pub loss: u64,
    /// Address of [`Loss::scratch_bytes`] bytes, 8-byte aligned.
    pub scratch: u64,
}

/// Builds the loss called `name`.
///
/// # Errors
///
/// No loss has this name; the loss cannot compute with the settings.
pub fn build(name: &str, settings: &LossSettings) -> Result<Arc<dyn Loss>> {
    match LOSSES.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.build)(settings),
        None => Err(Error::Argument {
            what: "the name of a loss",
            limit: "those in loss::LOSSES",
            actual: name.to_owned(),
            help: "correct the name, or add its row to kernels/src/loss/mod.rs",
        }),
    }
}

/// Writes the probabilities of logits `[n, classes]` to `out` of the same shape: a sigmoid of each logit where a label
/// may have any number of classes, a softmax over each row where it has exactly one. Computed in f64, which cannot
/// overflow; NaN gives NaN.
///
/// # Errors
///
/// A buffer whose length is no multiple of `classes`, or two of different lengths.
pub fn probabilities(kind: Kind, classes: usize, logits: &[f32], out: &mut [f32]) -> Result<()> {
    let rows = logits.len().checked_div(classes).unwrap_or(0);
    check_len("logits", "[n, C]", logits.len(), rows * classes)?;
    check_len("out", "as many elements as logits", out.len(), logits.len())?;
    match kind {
        Kind::AnyOf => {
            for (out, &z) in out.iter_mut().zip(logits) {
                *out = sigmoid(z);
            }
        }
        Kind::OneOf => {
            let rows = logits.chunks(classes.max(1));
            for (out, logits) in out.chunks_mut(classes.max(1)).zip(rows) {
                out.copy_from_slice(&softmax(logits));
            }
        }
    }
    Ok(())
}

/// `1 / (1 + exp(-z))`, in f64 because it must never overflow.
#[must_use]
pub fn sigmoid(z: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(z)).exp())) as f32
}

/// `exp(z_c - max z) / sum over c of exp(z_c - max z)` of one row, in f64 because it must never overflow.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let power = |z: f32| (f64::from(z) - f64::from(highest)).exp();
    let sum: f64 = logits.iter().map(|&z| power(z)).sum();
    logits.iter().map(|&z| (power(z) / sum) as f32).collect()
}

/// Returns an error for buffers that are not `[n, classes]` for the `n` of `labels`.
fn check_shapes(classes: usize, logits: &[f32], labels: &[Label], dlogits: &[f32]) -> Result<()> {
    let elements = checked_elements("logits", &[labels.len(), classes])?;
    check_len("logits", "[labels.len(), C]", logits.len(), elements)?;
    check_len("dlogits", "[labels.len(), C]", dlogits.len(), elements)
}

#[cfg(test)]
mod tests;
