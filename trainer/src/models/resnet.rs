//! ResNet18 without its classifier (He et al., CVPR 2016), with torchvision's parameter names.

use tch::Tensor;

use super::convolution::{ConvNorm, ConvolutionWindow};
use super::{Backbone, Blueprint, Macs, Pass};
use crate::error::Result;
use crate::ops::{self, Activation};

/// Two 3 x 3 convolutions and a shortcut.
struct BasicBlock {
    first: ConvNorm,
    second: ConvNorm,
    downsample: Option<ConvNorm>,
}

impl BasicBlock {
    fn declare(b: &mut Blueprint, name: &str, inputs: i64, outputs: i64, stride: i64) -> Self {
        let three = |stride| ConvolutionWindow { kernel: 3, stride };
        let first = ConvNorm::declare(
            b,
            (&format!("{name}.conv1"), &format!("{name}.bn1")),
            (inputs, outputs),
            three(stride),
        );
        let second = ConvNorm::declare(
            b,
            (&format!("{name}.conv2"), &format!("{name}.bn2")),
            (outputs, outputs),
            three(1),
        );
        let downsample = (stride != 1 || inputs != outputs).then(|| {
            let one = ConvolutionWindow { kernel: 1, stride };
            ConvNorm::declare(
                b,
                (
                    &format!("{name}.downsample.0"),
                    &format!("{name}.downsample.1"),
                ),
                (inputs, outputs),
                one,
            )
        });
        Self {
            first,
            second,
            downsample,
        }
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> (Macs, u64) {
        let (first, out) = self.first.macs(b, n, side);
        let shortcut = self.downsample.as_ref().map(|d| d.macs(b, n, side).0);
        let (second, out) = self.second.macs(b, n, out);
        (first + second + shortcut.unwrap_or_default(), out)
    }

    /// Takes its input twice and returns its output twice: for the convolutions and for the shortcut.
    fn forward(
        &self,
        pass: &Pass<'_>,
        (x, shortcut): (Tensor, Tensor),
    ) -> Result<(Tensor, Tensor)> {
        let y = self.first.forward(pass, &x, Activation::Relu)?;
        let shortcut = match &self.downsample {
            Some(downsample) => downsample.forward(pass, &shortcut, Activation::None)?,
            None => shortcut,
        };
        let y = self.second.conv.forward(pass, &y)?;
        ops::batch_norm_add_relu(
            pass.engine,
            &y,
            &self.second.norm.affine(pass),
            &shortcut,
            &pass.mode,
        )
    }
}

/// ResNet18 up to its global average pooling.
pub struct ResNet18 {
    stem: ConvNorm,
    blocks: Vec<BasicBlock>,
}

impl ResNet18 {
    /// Width of the feature vector.
    pub const FEATURES: i64 = 512;

    /// Declares the network under `prefix` (for example `local_branch.`).
    pub fn declare(b: &mut Blueprint, prefix: &str) -> Self {
        let seven = ConvolutionWindow {
            kernel: 7,
            stride: 2,
        };
        let stem = ConvNorm::declare(
            b,
            (&format!("{prefix}conv1"), &format!("{prefix}bn1")),
            (3, 64),
            seven,
        );
        let mut blocks = Vec::with_capacity(8);
        let mut inputs = 64;
        for (layer, outputs) in [64, 128, 256, 512].into_iter().enumerate() {
            for index in 0..2 {
                let stride = if layer > 0 && index == 0 { 2 } else { 1 };
                let name = format!("{prefix}layer{}.{index}", layer + 1);
                blocks.push(BasicBlock::declare(b, &name, inputs, outputs, stride));
                inputs = outputs;
            }
        }
        Self { stem, blocks }
    }
}

impl Backbone for ResNet18 {
    fn width(&self) -> i64 {
        Self::FEATURES
    }

    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let stem = ops::stem(
            pass.engine,
            &self.stem.conv.forward(pass, x)?,
            &self.stem.norm.affine(pass),
            &pass.mode,
        )?;
        let mut x = (stem.shallow_clone(), stem);
        for block in &self.blocks {
            x = block.forward(pass, x)?;
        }
        Ok(x.0)
    }

    /// The sides are at least 32.
    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        let (stem, side) = self.stem.macs(b, n, side);
        let mut side = (side - 1) / 2 + 1; // max pooling: window 3, stride 2, padding 1
        let blocks = self.blocks.iter().map(|block| {
            let (macs, out) = block.macs(b, n, side);
            side = out;
            macs
        });
        Macs::first(stem.forward) + blocks.sum::<Macs>()
    }
}
