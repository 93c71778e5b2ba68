//! Attention over feature maps: squeeze and excitation, and self-attention over places.

use fovea_run::config::MapAttention;
use fovea_task::Level;
use tch::{Kind, Tensor};

use super::{
    Backbone, Blueprint, DropoutId, DropoutSpec, LayerNorm, Linear, Macs, Pass, SelfAttention,
};
use crate::error::Result;
use crate::ops;

/// Channels per channel of the squeezed vector (Hu et al., CVPR 2018).
const REDUCTION: i64 = 16;
/// Heads of self-attention over places.
const HEADS: i64 = 4;
/// Probability that a channel of self-attention's result is dropped, for all places of an image together.
const DROPOUT: f32 = 0.1;

/// Where attention is added to a network.
pub struct AttentionSite {
    /// Name of its parameters.
    pub name: String,
    /// Channels of the maps, a multiple of 16.
    pub channels: i64,
    /// Whether the network reads whole images or patches, whose ids the dropout masks follow.
    pub level: Level,
    /// Part of the hash key of its dropout masks; another one for each site of a model.
    pub stream: u32,
}

/// Attention over maps `[n, c, h, w]`, which keeps their shape. All but squeeze and excitation's product is in f32.
pub enum MapAttentionLayer {
    /// `x * sigmoid(W2 relu(W1 mean(x)))`, a factor per image and channel.
    SqueezeExcitation {
        /// `name.fc.0`, c -> c / 16, without bias.
        squeeze: Linear,
        /// `name.fc.2`, c / 16 -> c, without bias.
        excite: Linear,
    },
    /// `x + dropout(attention(norm(x)))` over the h * w places of an image; dropout takes whole channels.
    Places {
        /// `name.norm`.
        norm: LayerNorm,
        /// `name.attn`, four heads.
        attention: SelfAttention,
        /// One mask per image, `[n, c]`.
        dropout: DropoutId,
    },
}

impl MapAttentionLayer {
    /// Declares the layer; none without attention.
    pub fn declare(b: &mut Blueprint, kind: MapAttention, site: &AttentionSite) -> Option<Self> {
        let AttentionSite { name, channels, .. } = site;
        let squeezed = channels / REDUCTION;
        match kind {
            MapAttention::None => None,
            MapAttention::Se => Some(Self::SqueezeExcitation {
                squeeze: Linear::without_bias(b, &format!("{name}.fc.0"), *channels, squeezed),
                excite: Linear::without_bias(b, &format!("{name}.fc.2"), squeezed, *channels),
            }),
            MapAttention::Mha => Some(Self::Places {
                norm: LayerNorm::declare(b, &format!("{name}.norm"), *channels),
                attention: SelfAttention::declare(b, &format!("{name}.attn"), *channels, HEADS),
                dropout: b.dropout(DropoutSpec {
                    level: site.level,
                    width: *channels as usize,
                    p: DROPOUT,
                    stream: site.stream,
                }),
            }),
        }
    }

    /// `[n, c, h, w]`, channels-last, n > 0 -> the same shape, dtype and layout.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let (n, c) = (x.size()[0], x.size()[1]);
        match self {
            Self::SqueezeExcitation { squeeze, excite } => {
                let means = ops::global_avg_pool(x)?; // [n, c]
                let hidden = squeeze.forward(pass, &means)?.f_relu()?;
                let scale = excite.forward(pass, &hidden)?.f_sigmoid()?;
                Ok(x.f_mul(&scale.f_view([n, c, 1, 1])?.f_to_kind(x.kind())?)?)
            }
            Self::Places {
                norm,
                attention,
                dropout,
            } => {
                let (h, w) = (x.size()[2], x.size()[3]);
                let places = places(x)?; // [n, h * w, c]
                let mixed = attention.forward(pass, &norm.forward(pass, &places)?, None)?;
                let mixed = match pass.dropout {
                    Some(masks) => mixed.f_mul(&masks[dropout.0].f_view([n, 1, c])?)?,
                    None => mixed,
                };
                let sum = places.f_add(&mixed)?.f_view([n, h, w, c])?;
                Ok(sum.f_permute([0, 3, 1, 2])?.f_to_kind(x.kind())?)
            }
        }
    }

    /// Multiplications on `n` maps of `side` x `side` places.
    pub fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        match self {
            Self::SqueezeExcitation { squeeze, excite } => squeeze.macs(b, n) + excite.macs(b, n),
            Self::Places { attention, .. } => attention.macs(b, n, side * side),
        }
    }
}

/// The places of maps `[n, c, h, w]` as a sequence, `[n, h * w, c]` in f32.
pub fn places(maps: &Tensor) -> Result<Tensor> {
    let (n, c) = (maps.size()[0], maps.size()[1]);
    let rows = maps.f_permute([0, 2, 3, 1])?.f_reshape([n, -1, c])?;
    Ok(rows.f_to_kind(Kind::Float)?)
}

/// A network with attention after its last maps, `attn`.
pub struct Attended {
    network: Box<dyn Backbone>,
    attention: Option<MapAttentionLayer>,
    /// Pixels along a side of an image per place along a side of the last maps.
    stride: u64,
}

impl Attended {
    /// Declares `PREFIXattn` after a network whose last maps have one place per `stride` pixels along a side.
    pub fn declare(
        b: &mut Blueprint,
        prefix: &str,
        network: Box<dyn Backbone>,
        stride: u64,
        (level, kind): (Level, MapAttention),
    ) -> Self {
        let site = AttentionSite {
            name: format!("{prefix}attn"),
            channels: network.width(),
            level,
            stream: u32::from_be_bytes(*b"\0AT\0"),
        };
        Self {
            attention: MapAttentionLayer::declare(b, kind, &site),
            network,
            stride,
        }
    }
}

impl Backbone for Attended {
    fn width(&self) -> i64 {
        self.network.width()
    }

    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let maps = self.network.maps(pass, x)?;
        match &self.attention {
            Some(attention) => attention.forward(pass, &maps),
            None => Ok(maps),
        }
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        let places = side.div_ceil(self.stride);
        let attention = self.attention.as_ref().map(|a| a.macs(b, n, places));
        self.network.macs(b, n, side) + attention.unwrap_or_default()
    }
}
