//! DenseNet121 without its classifier (Huang et al., CVPR 2017), with torchvision's parameter names.

use tch::Tensor;

use super::convolution::{BatchNorm, ConvNorm, Convolution, ConvolutionWindow};
use super::{Backbone, Blueprint, Init, Macs, Pass};
use crate::error::Result;
use crate::ops::{self, Activation};

/// Channels that each layer adds.
const GROWTH: i64 = 32;
/// Channels between the two convolutions of a layer.
const BOTTLENECK: i64 = 4 * GROWTH;
/// Layers of each block.
const BLOCKS: [usize; 4] = [6, 12, 24, 16];
/// Width after the stem.
const STEM: i64 = 64;

/// norm, ReLU, 1 x 1 convolution, norm, ReLU, 3 x 3 convolution: reads all maps before it, adds [`GROWTH`].
struct DenseLayer {
    first: (BatchNorm, Convolution),
    second: (BatchNorm, Convolution),
}

impl DenseLayer {
    fn declare(b: &mut Blueprint, name: &str, inputs: i64) -> Self {
        let mut half = |number: usize, channels: (i64, i64), kernel: i64| {
            let norm = BatchNorm::declare(b, &format!("{name}.norm{number}"), channels.0);
            let window = ConvolutionWindow::of(kernel);
            let conv = format!("{name}.conv{number}");
            let init = Init::KaimingFanIn;
            (norm, Convolution::declare(b, &conv, channels, window, init))
        };
        Self {
            first: half(1, (inputs, BOTTLENECK), 1),
            second: half(2, (BOTTLENECK, GROWTH), 3),
        }
    }

    /// `x` is the concatenation of all maps before this layer; returns the new ones.
    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let y = self.first.0.forward(pass, x, Activation::Relu)?;
        let y = self.first.1.forward(pass, &y)?;
        let y = self.second.0.forward(pass, &y, Activation::Relu)?;
        self.second.1.forward(pass, &y)
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        self.first.1.macs(b, n, side).0 + self.second.1.macs(b, n, side).0
    }
}

/// norm, ReLU, 1 x 1 convolution to half the width, average pooling to half the side.
struct Transition {
    norm: BatchNorm,
    conv: Convolution,
}

impl Transition {
    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let y = self.norm.forward(pass, x, Activation::Relu)?;
        let y = self.conv.forward(pass, &y)?;
        Ok(y.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)?)
    }
}

/// A dense block, and the transition to the next one; none after the last.
struct DenseBlock {
    layers: Vec<DenseLayer>,
    transition: Option<Transition>,
}

/// DenseNet121 up to its global average pooling.
pub struct DenseNet121 {
    stem: ConvNorm,
    blocks: Vec<DenseBlock>,
    last: BatchNorm,
}

impl DenseNet121 {
    /// Width of the feature vector.
    pub const FEATURES: i64 = 1024;

    /// Declares `features.*` under `prefix`.
    pub fn declare(b: &mut Blueprint, prefix: &str) -> Self {
        let name = |part: &str| format!("{prefix}features.{part}");
        let seven = ConvolutionWindow {
            kernel: 7,
            stride: 2,
        };
        let (kaiming, one) = (Init::KaimingFanIn, ConvolutionWindow::of(1));
        let stem = ConvNorm {
            conv: Convolution::declare(b, &name("conv0"), (3, STEM), seven, kaiming),
            norm: BatchNorm::declare(b, &name("norm0"), STEM),
        };
        let (mut blocks, mut width) = (Vec::new(), STEM);
        for (index, count) in BLOCKS.into_iter().enumerate() {
            let number = index + 1;
            let mut layers = Vec::with_capacity(count);
            for layer in 1..=count {
                let layer = name(&format!("denseblock{number}.denselayer{layer}"));
                layers.push(DenseLayer::declare(b, &layer, width));
                width += GROWTH;
            }
            let transition = (number < BLOCKS.len()).then(|| {
                let part = name(&format!("transition{number}"));
                let norm = BatchNorm::declare(b, &format!("{part}.norm"), width);
                let (conv, channels) = (format!("{part}.conv"), (width, width / 2));
                width /= 2;
                let conv = Convolution::declare(b, &conv, channels, one, kaiming);
                Transition { norm, conv }
            });
            blocks.push(DenseBlock { layers, transition });
        }
        let last = BatchNorm::declare(b, &name("norm5"), width);
        Self { stem, blocks, last }
    }
}

impl Backbone for DenseNet121 {
    fn width(&self) -> i64 {
        Self::FEATURES
    }

    /// After the last normalisation and its ReLU, which torchvision's `features` lack.
    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let mut x = ops::stem(
            pass.engine,
            &self.stem.conv.forward(pass, x)?,
            &self.stem.norm.affine(pass),
            &pass.mode,
        )?;
        for block in &self.blocks {
            for layer in &block.layers {
                let new = layer.forward(pass, &x)?;
                x = Tensor::f_cat(&[&x, &new], 1)?;
            }
            if let Some(transition) = &block.transition {
                x = transition.forward(pass, &x)?;
            }
        }
        self.last.forward(pass, &x, Activation::Relu)
    }

    /// The sides are at least 32.
    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        let (stem, side) = self.stem.macs(b, n, side);
        let mut side = (side - 1) / 2 + 1; // max pooling: window 3, stride 2, padding 1
        let mut macs = Macs::first(stem.forward);
        for block in &self.blocks {
            for layer in &block.layers {
                macs = macs + layer.macs(b, n, side);
            }
            if let Some(transition) = &block.transition {
                macs = macs + transition.conv.macs(b, n, side).0;
                side /= 2;
            }
        }
        macs
    }
}
