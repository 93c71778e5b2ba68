//! Models: what parameters they have and how a microbatch flows through them.
//!
//! A model is declared once against a [`Blueprint`] (names, shapes, initialisation) and keeps only
//! the ids it was given. [`crate::params`] decides where the numbers live (one flat buffer, master and
//! working precision); a model never owns a tensor. To add a model: one file here that
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

pub use crate::blueprint::{Blueprint, Init, NormId, NormSpec, ParamId, ParamSpec};
use crate::error::Result;
use crate::ops::{NormEngine, NormMode};

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
