//! `hybrid`: a ResNet18 over the whole image and one over its patches, fused by self-attention.
//!
//! | part | in -> out |
//! |---|---|
//! | `global_branch` | `[b, 3, S, S]` -> `[b, 512]` |
//! | `local_branch` | `[n, 3, 128, 128]` -> `[n, 512]` |
//! | `global_proj`, `local_proj` | 512 -> 256 |
//! | `attn`, residual, `norm` | `[b, 1 + P, 256]`, token 0 is the image |
//! | `image_head` | token 0 -> `[b, C]` |
//! | `patch_head` | tokens 1.. -> `[n, C]` |
//!
//! Each target of the task has one head, which has its name: `NAME_head`. The table shows targets `image` and `patch`.

use fovea_run::config::ModelConfig;
use fovea_task::{Level, Target, Task};
use tch::{Kind, Tensor};

use super::{
    Backbone, Blueprint, DropoutId, DropoutSpec, Input, LayerNorm, Linear, Macs, Model, Pass,
    ResNet18, SelfAttention, Sizes, Tokens,
};
use crate::error::{Error, Result};

const WIDTH: i64 = 256;
const HIDDEN: i64 = 128;
const ATTENTION_HEADS: i64 = 4;
/// Dropout probability in a head.
const DROPOUT: f32 = 0.3;

/// One target's head, `Linear 256->128, ReLU, Dropout, Linear 128->C`; its layers have the names `.0` and `.3` of a
/// PyTorch `Sequential`.
struct Head {
    level: Level,
    hidden: Linear,
    dropout: DropoutId,
    logits: Linear,
}

impl Head {
    fn declare(b: &mut Blueprint, target: &Target) -> Self {
        let name = format!("{}_head", target.name);
        let site = DropoutSpec {
            level: target.level,
            width: HIDDEN as usize,
            p: DROPOUT,
            stream: match target.level {
                Level::Image => u32::from_be_bytes(*b"\0IMG"),
                Level::Patch => u32::from_be_bytes(*b"\0PAT"),
            },
        };
        Self {
            level: target.level,
            hidden: Linear::declare(b, &format!("{name}.0"), WIDTH, HIDDEN),
            dropout: b.dropout(site),
            logits: Linear::declare(b, &format!("{name}.3"), HIDDEN, target.classes.len() as i64),
        }
    }

    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>, x: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden.forward(pass, x)?.f_relu()?;
        let hidden = input.dropped(hidden, self.dropout)?;
        self.logits.forward(pass, &hidden)
    }

    fn macs(&self, b: &Blueprint, rows: u64) -> Macs {
        self.hidden.macs(b, rows) + self.logits.macs(b, rows)
    }
}

/// The dual-branch model with attention fusion.
pub struct Hybrid {
    global_branch: ResNet18,
    local_branch: ResNet18,
    global_proj: Linear,
    local_proj: Linear,
    attn: SelfAttention,
    norm: LayerNorm,
    heads: Vec<Head>,
}

impl Hybrid {
    /// Declares all parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] unless the task has a question about patches, and at most one about whole images.
    pub fn declare(b: &mut Blueprint, task: &Task, _: &ModelConfig) -> Result<Box<dyn Model>> {
        let images = task.at(Level::Image).count();
        if task.cells().is_none() || images > 1 {
            return Err(Error::Usage {
                what: format!(
                    "model.name = \"hybrid\": this dataset has {images} targets at image level and {} at patch level",
                    task.at(Level::Patch).count()
                ),
                help: "hybrid learns one target at patch level, and one or none at image level: choose another model, or prepare a dataset with masks".to_owned(),
            });
        }
        Ok(Box::new(Self {
            global_branch: ResNet18::declare(b, "global_branch."),
            local_branch: ResNet18::declare(b, "local_branch."),
            global_proj: Linear::declare(b, "global_proj", ResNet18::FEATURES, WIDTH),
            local_proj: Linear::declare(b, "local_proj", ResNet18::FEATURES, WIDTH),
            attn: SelfAttention::declare(b, "attn", WIDTH, ATTENTION_HEADS),
            norm: LayerNorm::declare(b, "norm", WIDTH),
            heads: task.targets().iter().map(|t| Head::declare(b, t)).collect(),
        }))
    }
}

impl Model for Hybrid {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        let Tokens {
            images,
            per_image: tokens,
            ..
        } = *input.tokens;

        let whole = pass.in_branch("global_branch", Level::Image);
        let global = self.global_branch.features(&whole, input.globals)?; // [b, 512]
        let global = self.global_proj.forward(pass, &global)?; // [b, 256]
        // [n, 512]; n is 0 for an all-black photograph
        let cells = pass.in_branch("local_branch", Level::Patch);
        let local = self.local_branch.features(&cells, input.patches)?;
        let local = self.local_proj.forward(pass, &local)?; // [n, 256]

        let zeros = Tensor::f_zeros([1, WIDTH], (Kind::Float, global.device()))?;
        let rows = Tensor::f_cat(&[&global, &local, &zeros], 0)?; // [b + n + 1, 256]
        let x = rows
            .f_index_select(0, &input.tokens.gather)?
            .f_view([images, tokens, WIDTH])?;
        let mixed = self.attn.forward(pass, &x, input.tokens.padding.as_ref())?;
        let x = self.norm.forward(pass, &x.f_add(&mixed)?)?; // [b, 1 + P, 256]

        let image = x.f_select(1, 0)?; // [b, 256]
        let patch = x
            .f_reshape([images * tokens, WIDTH])?
            .f_index_select(0, &input.tokens.patches)?; // [n, 256]
        let answer = |head: &Head| match head.level {
            Level::Image => head.forward(pass, input, &image),
            Level::Patch => head.forward(pass, input, &patch),
        };
        self.heads.iter().map(answer).collect()
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        let (images, patches) = (sizes.images, sizes.images * sizes.patches);
        self.global_branch.macs(b, images, sizes.global)
            + self.local_branch.macs(b, patches, sizes.patch)
            + self.global_proj.macs(b, images)
            + self.local_proj.macs(b, patches)
            + self.attn.macs(b, images, 1 + sizes.patches)
            + self
                .heads
                .iter()
                .map(|head| match head.level {
                    Level::Image => head.macs(b, images),
                    Level::Patch => head.macs(b, patches),
                })
                .sum()
    }
}
