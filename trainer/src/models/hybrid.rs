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

use super::{Blueprint, Input, LayerNorm, Linear, Model, Output, Pass, ResNet18, SelfAttention};
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

/// Where each token of the padded sequence comes from, and where the patches end up in it.
struct TokenLayout {
    /// `[b * t]` rows of `cat([images, patches, one row of zeros])`.
    gather: Vec<i64>,
    /// `[n]` rows of the flattened `[b * t, width]` sequence that hold patches.
    patches: Vec<i64>,
    /// `[b, 1, 1, t]`: 0 for tokens, -inf for padding; none when no sequence is padded.
    padding: Option<Vec<f32>>,
    /// Tokens per sequence, the image token included.
    tokens: usize,
}

impl TokenLayout {
    fn new(counts: &[usize]) -> Self {
        let images = counts.len();
        let tokens = 1 + counts.iter().copied().max().unwrap_or(0);
        let total: usize = counts.iter().sum();
        let zeros = (images + total) as i64;
        let mut layout = Self {
            gather: Vec::with_capacity(images * tokens),
            patches: Vec::with_capacity(total),
            padding: None,
            tokens,
        };
        let mut mask = Vec::with_capacity(images * tokens);
        let mut next = images as i64;
        for (image, &count) in counts.iter().enumerate() {
            layout.gather.push(image as i64);
            layout.gather.extend(next..next + count as i64);
            layout
                .gather
                .extend(std::iter::repeat_n(zeros, tokens - 1 - count));
            let first = (image * tokens + 1) as i64;
            layout.patches.extend(first..first + count as i64);
            mask.extend(std::iter::repeat_n(0.0, 1 + count));
            mask.extend(std::iter::repeat_n(f32::NEG_INFINITY, tokens - 1 - count));
            next += count as i64;
        }
        if mask.iter().any(|&m| m != 0.0) {
            layout.padding = Some(mask);
        }
        layout
    }
}

impl Model for Hybrid {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Output> {
        let images = input.counts.len() as i64;
        let layout = TokenLayout::new(input.counts);
        let tokens = layout.tokens as i64;

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
        let gather = Tensor::from_slice(&layout.gather).f_to_device(rows.device())?;
        let x = rows
            .f_index_select(0, &gather)?
            .f_view([images, tokens, WIDTH])?;
        let padding = match &layout.padding {
            Some(mask) => Some(
                Tensor::from_slice(mask)
                    .f_view([images, 1, 1, tokens])?
                    .f_to_device(rows.device())?,
            ),
            None => None,
        };
        let mixed = self.attn.forward(pass, &x, padding.as_ref())?;
        let x = self.norm.forward(pass, &x.f_add(&mixed)?)?; // [b, 1 + P, 256]

        let image = x.f_select(1, 0)?; // [b, 256]
        let patches = Tensor::from_slice(&layout.patches).f_to_device(rows.device())?;
        let patch = x
            .f_reshape([images * tokens, WIDTH])?
            .f_index_select(0, &patches)?; // [n, 256]
        let (image_mask, patch_mask) = input
            .dropout
            .map_or((None, None), |(i, p)| (Some(i), Some(p)));
        Ok(Output {
            image: self.image_head.forward(pass, &image, image_mask)?,
            patch: self.patch_head.forward(pass, &patch, patch_mask)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_images_are_padded_and_masked() {
        let layout = TokenLayout::new(&[2, 1]);
        assert_eq!(layout.tokens, 3);
        assert_eq!(layout.gather, [0, 2, 3, 1, 4, 5]); // 5 is the row of zeros
        assert_eq!(layout.patches, [1, 2, 4]);
        let padding = layout.padding.expect("the second image is shorter");
        assert_eq!(padding.iter().filter(|m| m.is_infinite()).count(), 1);
        assert!(padding[5].is_infinite());
    }

    #[test]
    fn even_images_need_no_mask() {
        let layout = TokenLayout::new(&[3, 3]);
        assert!(layout.padding.is_none());
        assert_eq!(layout.gather, [0, 2, 3, 4, 1, 5, 6, 7]);
    }
}
