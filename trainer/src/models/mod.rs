//! Models: their parameters, and how a microbatch flows through them.
//!
//! A model is declared once against a [`Blueprint`] (names, shapes, initialisation) and keeps only the ids that it got.
//! [`crate::params`] decides where the numbers live (one flat buffer, master and working precision); a model never owns
//! a tensor. To add a model, write one file here that implements [`Model`], its row in [`MODELS`], and a preset.

mod backbone;
#[cfg(test)]
mod golden;
mod hybrid;
mod layers;
mod macs;
mod recorder;
mod resnet;
mod tokens;

pub use backbone::{BACKBONES, Backbone, BackboneEntry};
pub use hybrid::Hybrid;
pub use layers::{LayerNorm, Linear, SelfAttention};
pub use macs::{Macs, Sizes};
pub use recorder::{Branch, BranchMaps, Recorder};
pub use resnet::ResNet18;
pub use tokens::Tokens;

use fovea_coordinator::order::Grain;
use fovea_run::config::ModelConfig;
use fovea_task::{Level, Task};
use tch::Tensor;

pub use crate::blueprint::{
    Blueprint, DropoutId, DropoutSpec, Init, NormId, NormSpec, ParamId, ParamSpec,
};
use crate::error::{Error, Result};
use crate::ops::{NormEngine, NormMode};

/// One pass through a model: the parameters to use and the mode of batch normalisation.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Forward copies, indexed by [`ParamId`].
    pub params: &'a [Tensor],
    /// Batch normalisation layers, indexed by [`NormId`].
    pub norms: &'a [NormSpec],
    /// Batch statistics (training) or running statistics (evaluation).
    pub mode: NormMode<'a>,
    /// How normalisation layers are computed.
    pub engine: NormEngine,
    /// The branch that runs.
    pub branch: Branch,
    /// Keeps maps and attention, for pictures of where a model looks; none in training and evaluation.
    pub recorder: Option<&'a Recorder>,
}

impl Pass<'_> {
    /// The forward copy of a parameter.
    pub fn param(&self, id: ParamId) -> &Tensor {
        &self.params[id.0]
    }

    /// The same pass for a branch of a model that has several: `name` as in the names of its parameters, `level` what
    /// each of its pictures is.
    #[must_use]
    pub fn in_branch(&self, name: &'static str, level: Level) -> Self {
        Self {
            branch: Branch { name, level },
            ..*self
        }
    }

    /// Runs `compute`, which gives the last feature maps of a branch, `[n, channels, h, w]`; a recorder keeps them. Every
    /// model pools what this returns, not what `compute` does.
    pub fn maps(&self, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        match self.recorder {
            None => compute(),
            Some(recorder) => recorder.maps(self.branch, compute),
        }
    }

    /// Lets a recorder keep attention weights `[b, heads, t, t]` between tokens.
    pub fn attended(&self, weights: &Tensor) -> Result<()> {
        match self.recorder {
            None => Ok(()),
            Some(recorder) => recorder.attention(weights),
        }
    }
}

/// The inputs of a model: `b` images and `n` of their patches.
pub struct Input<'a> {
    /// Whole images, `[b, 3, S, S]`, working dtype, channels-last.
    pub globals: &'a Tensor,
    /// Patches of all images one after the other, `[n, 3, patch, patch]`, working dtype, channels-last; n is 0 for a
    /// model of [`Grain::Image`].
    pub patches: &'a Tensor,
    /// Where the tokens of each image come from, in the padded sequences.
    pub tokens: &'a Tokens,
    /// The mask of each dropout site, indexed by [`DropoutId`], `[rows, width]` f32, scaled by `1 / (1 - p)`; none
    /// outside training.
    pub dropout: Option<&'a [Tensor]>,
}

impl Input<'_> {
    /// `x` `[rows, width]` with its site's mask applied; outside training, `x` itself.
    pub fn dropped(&self, x: Tensor, site: DropoutId) -> Result<Tensor> {
        match self.dropout {
            Some(masks) => Ok(x.f_mul(&masks[site.0])?),
            None => Ok(x),
        }
    }
}

/// A network of this project: takes images and their patches, gives one set of logits per target of the task.
pub trait Model: Send + Sync {
    /// Forward pass of one virtual shard (training) or of one image (evaluation).
    ///
    /// Returns the logits of each target in the task's order, f32 `[rows, classes]`: a row per image, `b`, or per
    /// patch, `n`, in the order of [`Input::patches`]. They must be finite, and every parameter must take part in one
    /// of them: backward starts from the sum of `logits * dlogits`.
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>>;

    /// Multiplications of a training step; `blueprint` is the one that the model was declared in.
    fn macs(&self, blueprint: &Blueprint, sizes: &Sizes) -> Macs;
}

/// A row of [`MODELS`], a model that a configuration can choose.
pub struct ModelEntry {
    /// The model's value of `model.name`.
    pub name: &'static str,
    /// The unit of its samples: grid cells or whole images.
    pub grain: Grain,
    /// Declares the model's parameters for a task, with the options of `[model]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the model cannot answer the task's questions, or lacks one of the options.
    pub declare: fn(&mut Blueprint, &Task, &ModelConfig) -> Result<Box<dyn Model>>,
}

/// Every model that `model.name` can choose, one row each.
pub static MODELS: &[ModelEntry] = &[ModelEntry {
    name: "hybrid",
    grain: Grain::Cell,
    declare: Hybrid::declare,
}];

/// The model that a configuration names.
///
/// # Errors
/// [`Error::Usage`] with the known names when there is none.
pub fn find(name: &str) -> Result<&'static ModelEntry> {
    MODELS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = MODELS.iter().map(|entry| entry.name).collect();
            Error::Usage {
                what: format!("model.name = {name:?}: there is no such model"),
                help: format!("known are: {}", known.join(", ")),
            }
        })
}

impl ModelEntry {
    /// Builds the model for a task; also returns the blueprint that it declared.
    ///
    /// # Errors
    /// As [`ModelEntry::declare`].
    pub fn build(&self, task: &Task, options: &ModelConfig) -> Result<(Box<dyn Model>, Blueprint)> {
        let mut blueprint = Blueprint::default();
        let model = (self.declare)(&mut blueprint, task, options)?;
        Ok((model, blueprint))
    }
}

/// The model and blueprint that most tests of parameters use.
#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test fails here")]
pub(crate) fn hybrid_for_lesions() -> (Box<dyn Model>, Blueprint) {
    find("hybrid")
        .and_then(|entry| entry.build(&Task::lesions(), &ModelConfig::default()))
        .expect("hybrid answers the lesion task")
}
