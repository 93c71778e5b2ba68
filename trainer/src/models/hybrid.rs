//! `hybrid`: a network over the whole image and one over its patches, fused by attention. ResNet18s and self-attention
//! by default.
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
//! `model.fusion = "cross"` adds `cross_attn` and `cross_norm` before `attn`: patches ask the places of the image's maps.
//! `model.pooling = "attention"` adds `pool`, which makes the answer about an image of its patches in place of token 0.
//!
//! Each target of the task has one head, which has its name: `NAME_head`. The table shows targets `image` and `patch`.

use fovea_run::config::{Fusion, ModelConfig, Pooling};
use fovea_task::{Level, Target, Task};
use tch::{Kind, Tensor};

use super::attention::places;
use super::backbone::backbone;
use super::{
    Backbone, BackboneOptions, Blueprint, DropoutSpec, GatedPooling, Input, LayerNorm, Linear,
    Macs, Mlp, Model, Pass, SelfAttention, Sizes, Tokens,
};
use crate::error::{Error, Result};
use crate::ops;

/// Pixels along a side of an image per place along a side of a backbone's maps.
const STRIDE: u64 = 32;
const WIDTH: i64 = 256;
const HIDDEN: i64 = 128;
const ATTENTION_HEADS: i64 = 4;
/// Dropout probability in a head.
const DROPOUT: f32 = 0.3;

/// One target's head, `Linear 256->128, ReLU, Dropout, Linear 128->C`.
struct Head {
    level: Level,
    layers: Mlp,
}

impl Head {
    fn declare(b: &mut Blueprint, target: &Target) -> Self {
        let site = DropoutSpec {
            level: target.level,
            width: HIDDEN as usize,
            p: DROPOUT,
            stream: match target.level {
                Level::Image => u32::from_be_bytes(*b"\0IMG"),
                Level::Patch => u32::from_be_bytes(*b"\0PAT"),
            },
        };
        let channels = (WIDTH, target.classes.len() as i64);
        Self {
            level: target.level,
            layers: Mlp::declare(b, &format!("{}_head", target.name), channels, site),
        }
    }
}

/// Cross-attention: patches ask the whole image.
struct Cross {
    attn: SelfAttention,
    norm: LayerNorm,
}

/// The dual-branch model with attention fusion.
pub struct Hybrid {
    global_branch: Box<dyn Backbone>,
    local_branch: Box<dyn Backbone>,
    global_proj: Linear,
    local_proj: Linear,
    attn: SelfAttention,
    norm: LayerNorm,
    heads: Vec<Head>,
    /// With `model.fusion = "cross"`.
    cross: Option<Cross>,
    /// With `model.pooling = "attention"`.
    pool: Option<GatedPooling>,
}

impl Hybrid {
    /// Declares all parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] unless the task has a question about patches, and at most one about whole images; for a backbone
    /// that does not exist, and for pooling without a question about images.
    pub fn declare(
        b: &mut Blueprint,
        task: &Task,
        options: &ModelConfig,
    ) -> Result<Box<dyn Model>> {
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
        if options.pooling == Pooling::Attention && images == 0 {
            return Err(Error::Usage {
                what: "model.pooling = \"attention\": this dataset has no target at image level, so nothing reads what is pooled".to_owned(),
                help: "set model.pooling = \"token\"".to_owned(),
            });
        }
        let branch = |b: &mut Blueprint, key: &str, name: &str, prefix: &str, level| {
            let entry = backbone(key, name)?;
            Ok::<_, Error>((entry.declare)(b, prefix, BackboneOptions::plain(level)))
        };
        let (global, local) = (&options.global_backbone, &options.local_backbone);
        let global = branch(b, "global_backbone", global, "global_branch.", Level::Image)?;
        let local = branch(b, "local_backbone", local, "local_branch.", Level::Patch)?;
        Ok(Box::new(Self {
            global_proj: Linear::declare(b, "global_proj", global.width(), WIDTH),
            local_proj: Linear::declare(b, "local_proj", local.width(), WIDTH),
            global_branch: global,
            local_branch: local,
            attn: SelfAttention::declare(b, "attn", WIDTH, ATTENTION_HEADS),
            norm: LayerNorm::declare(b, "norm", WIDTH),
            heads: task.targets().iter().map(|t| Head::declare(b, t)).collect(),
            cross: (options.fusion == Fusion::Cross).then(|| Cross {
                attn: SelfAttention::declare(b, "cross_attn", WIDTH, ATTENTION_HEADS),
                norm: LayerNorm::declare(b, "cross_norm", WIDTH),
            }),
            pool: (options.pooling == Pooling::Attention)
                .then(|| GatedPooling::declare(b, "pool", WIDTH, HIDDEN)),
        }))
    }

    /// Token 0 of each image, `[b, 256]`, and for cross-attention the places of its maps, `[b, h * w, 256]`.
    fn whole(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<(Tensor, Option<Tensor>)> {
        if self.cross.is_none() {
            let features = self.global_branch.features(pass, input.globals)?; // [b, 512]
            return Ok((self.global_proj.forward(pass, &features)?, None));
        }
        let maps = self.global_branch.maps(pass, input.globals)?;
        let token = self
            .global_proj
            .forward(pass, &ops::global_avg_pool(&maps)?)?;
        let places = self.global_proj.forward(pass, &places(&maps)?)?;
        Ok((token, Some(places)))
    }
}

impl Cross {
    /// `x` `[b, 1 + P, 256]` with its patches, not token 0, after they have attended to `places`.
    fn forward(&self, pass: &Pass<'_>, x: &Tensor, places: &Tensor) -> Result<Tensor> {
        let patches = x.size()[1] - 1;
        if patches == 0 {
            return Ok(x.shallow_clone());
        }
        let (image, asking) = (x.f_narrow(1, 0, 1)?, x.f_narrow(1, 1, patches)?);
        let answer = self.attn.between(pass, &asking, places)?;
        let asking = self.norm.forward(pass, &asking.f_add(&answer)?)?;
        Ok(Tensor::f_cat(&[&image, &asking], 1)?)
    }
}

impl Model for Hybrid {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        let Tokens {
            images,
            per_image: tokens,
            ..
        } = *input.tokens;

        let (global, places) = self.whole(pass, input)?; // [b, 256]
        // [n, 512]; n is 0 for an all-black photograph
        let local = self.local_branch.features(pass, input.patches)?;
        let local = self.local_proj.forward(pass, &local)?; // [n, 256]

        let zeros = Tensor::f_zeros([1, WIDTH], (Kind::Float, global.device()))?;
        let rows = Tensor::f_cat(&[&global, &local, &zeros], 0)?; // [b + n + 1, 256]
        let x = rows
            .f_index_select(0, &input.tokens.gather)?
            .f_view([images, tokens, WIDTH])?;
        let x = match (&self.cross, &places) {
            (Some(cross), Some(places)) => cross.forward(pass, &x, places)?,
            _ => x,
        };
        let mixed = self.attn.forward(pass, &x, input.tokens.padding.as_ref())?;
        let x = self.norm.forward(pass, &x.f_add(&mixed)?)?; // [b, 1 + P, 256]

        let image = match &self.pool {
            None => x.f_select(1, 0)?, // [b, 256]
            Some(pool) => pool.forward(pass, &x, &input.tokens.bag)?,
        };
        let patch = x
            .f_reshape([images * tokens, WIDTH])?
            .f_index_select(0, &input.tokens.patches)?; // [n, 256]
        let answer = |head: &Head| match head.level {
            Level::Image => head.layers.forward(pass, &image),
            Level::Patch => head.layers.forward(pass, &patch),
        };
        self.heads.iter().map(answer).collect()
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        let (images, patches) = (sizes.images, sizes.images * sizes.patches);
        let cross = self.cross.as_ref().map(|cross| {
            let places = sizes.global.div_ceil(STRIDE).pow(2);
            self.global_proj.macs(b, images * places)
                + cross.attn.macs_between(b, images, sizes.patches, places)
        });
        let pool = self.pool.as_ref();
        let pool = pool.map(|pool| pool.macs(b, images * (1 + sizes.patches)));
        self.global_branch.macs(b, images, sizes.global)
            + self.local_branch.macs(b, patches, sizes.patch)
            + self.global_proj.macs(b, images)
            + self.local_proj.macs(b, patches)
            + self.attn.macs(b, images, 1 + sizes.patches)
            + cross.unwrap_or_default()
            + pool.unwrap_or_default()
            + self
                .heads
                .iter()
                .map(|head| match head.level {
                    Level::Image => head.layers.macs(b, images),
                    Level::Patch => head.layers.macs(b, patches),
                })
                .sum()
    }
}
