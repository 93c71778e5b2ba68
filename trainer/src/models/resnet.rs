//! ResNets without their classifier (He et al., CVPR 2016), with torchvision's parameter names and initial values. The
//! stride of a bottleneck is in its 3 x 3 convolution, as torchvision's.

use fovea_run::config::MapAttention;
use fovea_task::Level;
use tch::Tensor;

use super::convolution::{ConvNorm, ConvolutionWindow};
use super::{AttentionSite, Backbone, Blueprint, Macs, MapAttentionLayer, Pass};
use crate::error::Result;
use crate::ops::{self, Activation};

/// The shape of a ResNet, a column of the paper's table 1.
#[derive(Clone, Copy, Debug)]
pub struct ResNetShape {
    /// Number of blocks of `layer1` to `layer4`.
    blocks: [usize; 4],
    /// Whether a block has three convolutions (1 x 1, 3 x 3, 1 x 1), the last four times as wide.
    bottleneck: bool,
}

impl ResNetShape {
    /// Two basic blocks in each layer.
    pub const RESNET18: Self = Self {
        blocks: [2, 2, 2, 2],
        bottleneck: false,
    };
    /// Bottlenecks.
    pub const RESNET50: Self = Self {
        blocks: [3, 4, 6, 3],
        bottleneck: true,
    };

    /// Channels of the result per channel of the block's 3 x 3 convolution.
    const fn expansion(self) -> i64 {
        if self.bottleneck { 4 } else { 1 }
    }

    /// Width of the feature vector.
    pub const fn features(self) -> i64 {
        512 * self.expansion()
    }
}

/// Convolutions and a shortcut.
struct Block {
    /// All but the last convolution, each followed by ReLU.
    first: Vec<ConvNorm>,
    /// The convolution to whose result the shortcut is added.
    last: ConvNorm,
    downsample: Option<ConvNorm>,
}

impl Block {
    /// Declares block `name` from `inputs` channels to `width` times the shape's expansion.
    fn declare(
        b: &mut Blueprint,
        name: &str,
        shape: ResNetShape,
        (inputs, width): (i64, i64),
        stride: i64,
    ) -> Self {
        let outputs = width * shape.expansion();
        let three = |stride| ConvolutionWindow { kernel: 3, stride };
        let one = ConvolutionWindow::of(1);
        let layers = match shape.bottleneck {
            false => vec![(width, three(stride)), (outputs, three(1))],
            true => vec![(width, one), (width, three(stride)), (outputs, one)],
        };
        let (mut convolutions, mut channels) = (Vec::new(), inputs);
        for (index, (width, window)) in layers.into_iter().enumerate() {
            let (conv, norm) = (
                format!("{name}.conv{}", index + 1),
                format!("{name}.bn{}", index + 1),
            );
            convolutions.push(ConvNorm::declare(
                b,
                (&conv, &norm),
                (channels, width),
                window,
            ));
            channels = width;
        }
        let downsample = (stride != 1 || inputs != outputs).then(|| {
            let (conv, norm) = (
                format!("{name}.downsample.0"),
                format!("{name}.downsample.1"),
            );
            let window = ConvolutionWindow { kernel: 1, stride };
            ConvNorm::declare(b, (&conv, &norm), (inputs, outputs), window)
        });
        let last = convolutions.remove(convolutions.len() - 1);
        Self {
            first: convolutions,
            last,
            downsample,
        }
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> (Macs, u64) {
        let shortcut = self.downsample.as_ref().map(|d| d.macs(b, n, side).0);
        let (mut macs, mut side) = (shortcut.unwrap_or_default(), side);
        for conv in self.first.iter().chain([&self.last]) {
            let (more, out) = conv.macs(b, n, side);
            (macs, side) = (macs + more, out);
        }
        (macs, side)
    }

    /// Takes its input twice and returns its output twice: for the convolutions and for the shortcut.
    fn forward(
        &self,
        pass: &Pass<'_>,
        (x, shortcut): (Tensor, Tensor),
    ) -> Result<(Tensor, Tensor)> {
        let mut y = x;
        for conv in &self.first {
            y = conv.forward(pass, &y, Activation::Relu)?;
        }
        let shortcut = match &self.downsample {
            Some(downsample) => downsample.forward(pass, &shortcut, Activation::None)?,
            None => shortcut,
        };
        let y = self.last.conv.forward(pass, &y)?;
        ops::batch_norm_add_relu(
            pass.engine,
            &y,
            &self.last.norm.affine(pass),
            &shortcut,
            &pass.mode,
        )
    }
}

/// `layer1` to `layer4`: blocks, and attention over their result.
struct Layer {
    blocks: Vec<Block>,
    attention: Option<MapAttentionLayer>,
}

/// A ResNet up to its global average pooling.
pub struct ResNet {
    stem: ConvNorm,
    layers: Vec<Layer>,
    features: i64,
}

impl ResNet {
    /// Declares the network under `prefix` (for example `local_branch.`), without attention. `level` is as
    /// [`BackboneEntry::declare`](super::BackboneEntry::declare) has it.
    pub fn declare(b: &mut Blueprint, prefix: &str, shape: ResNetShape, level: Level) -> Self {
        Self::with_attention(b, prefix, shape, (level, MapAttention::None))
    }

    /// Declares the network with attention after its layers: squeeze and excitation after each (`attn1` to `attn4`),
    /// self-attention after the last two (`attn3`, `attn4`), where there are few places.
    pub fn with_attention(
        b: &mut Blueprint,
        prefix: &str,
        shape: ResNetShape,
        (level, kind): (Level, MapAttention),
    ) -> Self {
        let seven = ConvolutionWindow {
            kernel: 7,
            stride: 2,
        };
        let stem = (&*format!("{prefix}conv1"), &*format!("{prefix}bn1"));
        let stem = ConvNorm::declare(b, stem, (3, 64), seven);
        let (mut layers, mut channels) = (Vec::with_capacity(4), 64);
        for (index, width) in [64, 128, 256, 512].into_iter().enumerate() {
            let number = index + 1;
            let mut blocks = Vec::with_capacity(shape.blocks[index]);
            for block in 0..shape.blocks[index] {
                let stride = if index > 0 && block == 0 { 2 } else { 1 };
                let name = format!("{prefix}layer{number}.{block}");
                blocks.push(Block::declare(b, &name, shape, (channels, width), stride));
                channels = width * shape.expansion();
            }
            let attends = kind == MapAttention::Se || (kind == MapAttention::Mha && number >= 3);
            let site = AttentionSite {
                name: format!("{prefix}attn{number}"),
                channels,
                level,
                stream: u32::from_be_bytes(*b"\0AT\0") + number as u32,
            };
            let attention = attends.then(|| MapAttentionLayer::declare(b, kind, &site));
            layers.push(Layer {
                blocks,
                attention: attention.flatten(),
            });
        }
        Self {
            stem,
            layers,
            features: shape.features(),
        }
    }
}

impl Backbone for ResNet {
    fn width(&self) -> i64 {
        self.features
    }

    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let stem = ops::stem(
            pass.engine,
            &self.stem.conv.forward(pass, x)?,
            &self.stem.norm.affine(pass),
            &pass.mode,
        )?;
        let mut x = (stem.shallow_clone(), stem);
        for layer in &self.layers {
            for block in &layer.blocks {
                x = block.forward(pass, x)?;
            }
            if let Some(attention) = &layer.attention {
                let y = attention.forward(pass, &x.0)?;
                x = (y.shallow_clone(), y);
            }
        }
        Ok(x.0)
    }

    /// The sides are at least 32.
    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        let (stem, side) = self.stem.macs(b, n, side);
        let mut side = (side - 1) / 2 + 1; // max pooling: window 3, stride 2, padding 1
        let mut macs = Macs::first(stem.forward);
        for layer in &self.layers {
            for block in &layer.blocks {
                let (more, out) = block.macs(b, n, side);
                (macs, side) = (macs + more, out);
            }
            if let Some(attention) = &layer.attention {
                macs = macs + attention.macs(b, n, side);
            }
        }
        macs
    }
}
