//! Models: what parameters they have and how a microbatch flows through them.
//!
//! A model is declared once against a [`Blueprint`] (names, shapes, initialisation) and keeps only
//! the ids it was given. Where the numbers live (one flat buffer, master and working precision) is
//! decided in [`crate::params`]; a model never owns a tensor. To add a model: one file here that
//! implements [`Model`], one arm in [`build`], one preset.

#[cfg(test)]
mod golden;
mod hybrid;
mod layers;
mod macs;
mod resnet;
mod tokens;

pub use hybrid::{Hybrid, IMAGE_DROPOUT, PATCH_DROPOUT};
pub use layers::{LayerNorm, Linear, SelfAttention};
pub use macs::{Macs, Sizes};
pub use resnet::ResNet18;
pub use tokens::Tokens;

use fovea_run::config::ModelName;
use tch::Tensor;

use crate::error::Result;
use crate::ops::{NormEngine, NormMode};

/// Index of a parameter in its [`Blueprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub usize);

/// Index of a batch normalisation layer in its [`Blueprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub usize);

/// How a parameter is drawn before the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with std `sqrt(2 / fan_out)` (He et al. 2015, mode fan_out), as torchvision's ResNets.
    KaimingFanOut,
    /// Uniform in `[-bound, bound]`.
    Uniform(f64),
    /// All elements the same.
    Constant(f32),
}

/// One parameter: its PyTorch name, its shape and where its forward copy lives.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Name in PyTorch's state dict, for example `local_branch.layer1.0.conv1.weight`.
    pub name: String,
    /// Shape as PyTorch has it (convolutions `[out, in, kh, kw]`).
    pub shape: Vec<i64>,
    /// True for convolution weights: stored channels-last and, in bf16 runs, multiplied in bf16.
    pub working: bool,
    /// Initial values.
    pub init: Init,
}

impl ParamSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

/// One batch normalisation layer and where its statistics start in the flat statistics buffer:
/// `channels` means at `offset`, then `channels` variances.
#[derive(Clone, Debug)]
pub struct NormSpec {
    /// Name without suffix, for example `local_branch.bn1`.
    pub name: String,
    /// Number of channels.
    pub channels: usize,
    /// First element in the flat statistics buffer.
    pub offset: usize,
}

/// Every parameter and buffer of a model, in declaration order.
#[derive(Clone, Debug, Default)]
pub struct Blueprint {
    /// Parameters.
    pub params: Vec<ParamSpec>,
    /// Batch normalisation layers.
    pub norms: Vec<NormSpec>,
}

impl Blueprint {
    /// Declares a parameter.
    pub fn param(&mut self, name: String, shape: &[i64], working: bool, init: Init) -> ParamId {
        self.params.push(ParamSpec {
            name,
            shape: shape.to_vec(),
            working,
            init,
        });
        ParamId(self.params.len() - 1)
    }

    /// Declares a batch normalisation layer's running statistics.
    pub fn norm(&mut self, name: String, channels: usize) -> NormId {
        let offset = self.stats_len();
        self.norms.push(NormSpec {
            name,
            channels,
            offset,
        });
        NormId(self.norms.len() - 1)
    }

    /// Elements of the flat statistics buffer (a mean and a variance per channel).
    pub fn stats_len(&self) -> usize {
        self.norms.last().map_or(0, |n| n.offset + 2 * n.channels)
    }
}

/// One pass through a model: the parameters to use and what batch normalisation does.
pub struct Pass<'a> {
    /// Forward copies, indexed by [`ParamId`].
    pub params: &'a [Tensor],
    /// Batch normalisation layers, indexed by [`NormId`].
    pub norms: &'a [NormSpec],
    /// Batch statistics (training) or running ones (evaluation).
    pub mode: NormMode<'a>,
    /// What normalisation layers are computed by.
    pub engine: NormEngine,
}

impl Pass<'_> {
    /// The forward copy of a parameter.
    pub fn param(&self, id: ParamId) -> &Tensor {
        &self.params[id.0]
    }
}

/// What a model reads: `b` images, each with some of its patches.
pub struct Input<'a> {
    /// Whole images, `[b, 3, S, S]`, working dtype, channels-last.
    pub globals: &'a Tensor,
    /// Patches of all images one after the other, `[n, 3, patch, patch]`, working dtype, channels-last.
    pub patches: &'a Tensor,
    /// Where the tokens of each image come from.
    pub tokens: &'a Tokens,
    /// Dropout masks, already scaled by `1 / (1 - p)`: `[b, 128]` and `[n, 128]` f32; none outside training.
    pub dropout: Option<(&'a Tensor, &'a Tensor)>,
}

/// What a model answers, in f32.
pub struct Output {
    /// Image-level logits `[b, 4]`.
    pub image: Tensor,
    /// Patch-level logits `[n, 4]`, in the order of [`Input::patches`].
    pub patch: Tensor,
}

/// A network of this project: images and patches in, lesion logits out.
pub trait Model: Send + Sync {
    /// Forward pass of one virtual shard (training) or of one image (evaluation).
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Output>;

    /// The arithmetic of a training step; `blueprint` is the one that the model was declared in.
    fn macs(&self, blueprint: &Blueprint, sizes: &Sizes) -> Macs;
}

/// Declares the named model.
pub fn build(name: ModelName) -> (Box<dyn Model>, Blueprint) {
    let mut blueprint = Blueprint::default();
    let model: Box<dyn Model> = match name {
        ModelName::Hybrid => Box::new(Hybrid::declare(&mut blueprint)),
    };
    (model, blueprint)
}
