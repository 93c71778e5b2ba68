//! `hybrid`: a ResNet18 over the whole image and one over its patches, fused by self-attention.
//!
//! | part | in -> out |
//! |---|---|
//! | `global_branch` | `[b, 3, S, S]` -> `[b, 512]` |
//! | `local_branch` | `[n, 3, 128, 128]` -> `[n, 512]` |
//! | `global_proj`, `local_proj` | 512 -> 256 |
//! | `attn`, residual, `norm` | `[b, 1 + P, 256]`, token 0 is the image |
//! | `image_head` | token 0 -> `[b, 4]` |
//! | `patch_head` | tokens 1.. -> `[n, 4]` |

use tch::{Kind, Tensor};

use super::{
    Blueprint, Input, LayerNorm, Linear, Macs, Model, Output, Pass, ResNet18, SelfAttention, Sizes,
    Tokens,
};
use crate::error::Result;

const WIDTH: i64 = 256;
const HIDDEN: i64 = 128;
const HEADS: i64 = 4;
const CLASSES: i64 = 4;
/// Dropout probability in the image head.
pub const IMAGE_DROPOUT: f32 = 0.3;
/// Dropout probability in the patch head.
pub const PATCH_DROPOUT: f32 = 0.3;

/// `Linear 256->128, ReLU, Dropout, Linear 128->4`, named `.0` and `.3` as in a PyTorch `Sequential`.
struct Head {
    hidden: Linear,
    logits: Linear,
}

impl Head {
    fn declare(b: &mut Blueprint, name: &str) -> Self {
        Self {
            hidden: Linear::declare(b, &format!("{name}.0"), WIDTH, HIDDEN),
            logits: Linear::declare(b, &format!("{name}.3"), HIDDEN, CLASSES),
        }
    }

    fn forward(&self, pass: &Pass<'_>, x: &Tensor, dropout: Option<&Tensor>) -> Result<Tensor> {
        let mut hidden = self.hidden.forward(pass, x)?.f_relu()?;
        if let Some(mask) = dropout {
            hidden = hidden.f_mul(mask)?;
        }
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
    image_head: Head,
    patch_head: Head,
}

impl Hybrid {
    /// Declares all parameters.
    pub fn declare(b: &mut Blueprint) -> Self {
        Self {
            global_branch: ResNet18::declare(b, "global_branch"),
            local_branch: ResNet18::declare(b, "local_branch"),
            global_proj: Linear::declare(b, "global_proj", ResNet18::FEATURES, WIDTH),
            local_proj: Linear::declare(b, "local_proj", ResNet18::FEATURES, WIDTH),
            attn: SelfAttention::declare(b, "attn", WIDTH, HEADS),
            norm: LayerNorm::declare(b, "norm", WIDTH),
            image_head: Head::declare(b, "image_head"),
            patch_head: Head::declare(b, "patch_head"),
        }
    }
}

impl Model for Hybrid {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Output> {
        let Tokens {
            images,
            per_image: tokens,
            ..
        } = *input.tokens;

        let global = self.global_branch.forward(pass, input.globals)?; // [b, 512]
        let global = self.global_proj.forward(pass, &global)?; // [b, 256]
        let local = if input.patches.size()[0] > 0 {
            self.local_branch.forward(pass, input.patches)? // [n, 512]
        } else {
            Tensor::f_zeros([0, ResNet18::FEATURES], (Kind::Float, global.device()))? // an all-black photograph
        };
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
        let (image_mask, patch_mask) = input
            .dropout
            .map_or((None, None), |(i, p)| (Some(i), Some(p)));
        Ok(Output {
            image: self.image_head.forward(pass, &image, image_mask)?,
            patch: self.patch_head.forward(pass, &patch, patch_mask)?,
        })
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        let (images, patches) = (sizes.images, sizes.images * sizes.patches);
        self.global_branch.macs(b, images, sizes.global)
            + self.local_branch.macs(b, patches, sizes.patch)
            + self.global_proj.macs(b, images)
            + self.local_proj.macs(b, patches)
            + self.attn.macs(b, images, 1 + sizes.patches)
            + self.image_head.macs(b, images)
            + self.patch_head.macs(b, patches)
    }
}
