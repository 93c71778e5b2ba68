//! EfficientNet-B0 without its classifier (Tan & Le, ICML 2019), with torchvision's parameter names.

use fovea_task::Level;
use tch::Tensor;

use super::convolution::{ConvNorm, ConvolutionWindow};
use super::{Backbone, Blueprint, DropoutId, DropoutSpec, Init, Macs, ParamId, Pass};
use crate::error::Result;
use crate::ops::{self, Activation};

/// Blocks of the same shape, a row of the paper's table 1.
struct Stage {
    /// Factor by which a block widens its input.
    expand: i64,
    /// Side of the depthwise kernel.
    kernel: i64,
    /// Stride of the first block.
    stride: i64,
    outputs: i64,
    blocks: usize,
}

const fn stage(expand: i64, kernel: i64, stride: i64, outputs: i64, blocks: usize) -> Stage {
    Stage {
        expand,
        kernel,
        stride,
        outputs,
        blocks,
    }
}

/// `features.1` to `features.7`.
const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 16, 1),
    stage(6, 3, 2, 24, 2),
    stage(6, 5, 2, 40, 2),
    stage(6, 3, 2, 80, 3),
    stage(6, 5, 1, 112, 3),
    stage(6, 5, 2, 192, 4),
    stage(6, 3, 1, 320, 1),
];
/// Width after the stem.
const STEM: i64 = 32;
/// Probability that the last block's branch would be dropped; a block's grows linearly with its number.
const STOCHASTIC_DEPTH: f32 = 0.2;
/// Key of the first block's masks; each block has the next one.
const STREAM: u32 = u32::from_be_bytes(*b"\0SD\0");

/// Squeeze and excitation (Hu et al., CVPR 2018) with biases and SiLU: scales channels by what their means say.
/// Everything but the scaling is in f32.
struct Excitation {
    squeeze: (ParamId, ParamId),
    excite: (ParamId, ParamId),
    channels: i64,
    squeezed: i64,
}

impl Excitation {
    /// Declares `name.fc1` (channels -> squeezed) and `name.fc2`, convolutions of 1 x 1 with bias.
    fn declare(b: &mut Blueprint, name: &str, channels: i64, squeezed: i64) -> Self {
        let mut layer = |name: String, inputs: i64, outputs: i64| {
            let shape = [outputs, inputs, 1, 1];
            let weight = b.param(format!("{name}.weight"), &shape, false, Init::KaimingFanOut);
            let zero = Init::Constant(0.0);
            (
                weight,
                b.param(format!("{name}.bias"), &[outputs], false, zero),
            )
        };
        Self {
            squeeze: layer(format!("{name}.fc1"), channels, squeezed),
            excite: layer(format!("{name}.fc2"), squeezed, channels),
            channels,
            squeezed,
        }
    }

    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let linear = |x: &Tensor, (weight, bias): (ParamId, ParamId), shape: [i64; 2]| {
            let weight = pass.param(weight).f_view(shape)?;
            x.f_linear(&weight, Some(pass.param(bias)))
        };
        let means = ops::global_avg_pool(x)?; // [n, channels]
        let hidden = linear(&means, self.squeeze, [self.squeezed, self.channels])?.f_silu()?;
        let scale = linear(&hidden, self.excite, [self.channels, self.squeezed])?.f_sigmoid()?;
        let scale = scale
            .f_view([-1, self.channels, 1, 1])?
            .f_to_kind(x.kind())?;
        Ok(x.f_mul(&scale)?)
    }

    fn macs(&self, b: &Blueprint, n: u64) -> Macs {
        b.macs_at(self.squeeze.0, n) + b.macs_at(self.excite.0, n)
    }
}

/// Mobile inverted bottleneck: widen, convolve each channel, excite, narrow.
struct InvertedBottleneck {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    excitation: Excitation,
    project: ConvNorm,
    /// Where the branch is dropped; none without a shortcut.
    shortcut: Option<DropoutId>,
}

impl InvertedBottleneck {
    /// Declares block `name`, the network's block number `index`, which reads `inputs` channels.
    fn declare(
        b: &mut Blueprint,
        (name, index): (&str, usize),
        inputs: i64,
        (stage, stride): (&Stage, i64),
        level: Level,
    ) -> Self {
        let (mut part, wide) = (0, inputs * stage.expand);
        let mut next = || {
            part += 1;
            let name = format!("{name}.block.{}", part - 1);
            (format!("{name}.0"), format!("{name}.1"), name)
        };
        let one = ConvolutionWindow::of(1);
        let expand = (stage.expand != 1).then(|| {
            let (conv, norm, _) = next();
            ConvNorm::declare(b, (&conv, &norm), (inputs, wide), one)
        });
        let window = ConvolutionWindow {
            kernel: stage.kernel,
            stride,
        };
        let (conv, norm, _) = next();
        let depthwise = ConvNorm::depthwise(b, (&conv, &norm), wide, window);
        let excitation = Excitation::declare(b, &next().2, wide, inputs / 4);
        let (conv, norm, _) = next();
        let project = ConvNorm::declare(b, (&conv, &norm), (wide, stage.outputs), one);
        let shortcut = (stride == 1 && inputs == stage.outputs).then(|| {
            let blocks: usize = STAGES.iter().map(|stage| stage.blocks).sum();
            b.dropout(DropoutSpec {
                level,
                width: 4,
                p: STOCHASTIC_DEPTH * index as f32 / blocks as f32,
                stream: STREAM + index as u32,
            })
        });
        Self {
            expand,
            depthwise,
            excitation,
            project,
            shortcut,
        }
    }

    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let y = match &self.expand {
            Some(expand) => &expand.forward(pass, x, Activation::Silu)?,
            None => x,
        };
        let y = self.depthwise.forward(pass, y, Activation::Silu)?;
        let y = self.excitation.forward(pass, &y)?;
        let y = self.project.forward(pass, &y, Activation::None)?;
        match self.shortcut {
            Some(site) => pass.stochastic_depth(x, &y, site),
            None => Ok(y),
        }
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> (Macs, u64) {
        let expand = self.expand.as_ref().map(|e| e.macs(b, n, side).0);
        let (depthwise, side) = self.depthwise.macs(b, n, side);
        let (project, side) = self.project.macs(b, n, side);
        let macs = expand.unwrap_or_default() + depthwise + self.excitation.macs(b, n) + project;
        (macs, side)
    }
}

/// EfficientNet-B0 up to its global average pooling.
pub struct EfficientNetB0 {
    stem: ConvNorm,
    blocks: Vec<InvertedBottleneck>,
    last: ConvNorm,
}

impl EfficientNetB0 {
    /// Width of the feature vector.
    pub const FEATURES: i64 = 1280;

    /// Declares `features.*` under `prefix`. `level` says what has a row of the dropout masks, an image or a patch.
    pub fn declare(b: &mut Blueprint, prefix: &str, level: Level) -> Self {
        let names = |number: usize| {
            let name = format!("{prefix}features.{number}");
            (format!("{name}.0"), format!("{name}.1"))
        };
        let window = ConvolutionWindow {
            kernel: 3,
            stride: 2,
        };
        let (conv, norm) = names(0);
        let stem = ConvNorm::declare(b, (&conv, &norm), (3, STEM), window);
        let (mut blocks, mut inputs) = (Vec::new(), STEM);
        for (number, stage) in STAGES.iter().enumerate() {
            for index in 0..stage.blocks {
                let stride = if index == 0 { stage.stride } else { 1 };
                let name = format!("{prefix}features.{}.{index}", number + 1);
                let place = (name.as_str(), blocks.len());
                let shape = (stage, stride);
                blocks.push(InvertedBottleneck::declare(b, place, inputs, shape, level));
                inputs = stage.outputs;
            }
        }
        let (conv, norm) = names(STAGES.len() + 1);
        let channels = (inputs, Self::FEATURES);
        let last = ConvNorm::declare(b, (&conv, &norm), channels, ConvolutionWindow::of(1));
        Self { stem, blocks, last }
    }
}

impl Backbone for EfficientNetB0 {
    fn width(&self) -> i64 {
        Self::FEATURES
    }

    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward(pass, x, Activation::Silu)?;
        for block in &self.blocks {
            x = block.forward(pass, &x)?;
        }
        self.last.forward(pass, &x, Activation::Silu)
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        let (stem, mut side) = self.stem.macs(b, n, side);
        let blocks = self.blocks.iter().map(|block| {
            let (macs, out) = block.macs(b, n, side);
            side = out;
            macs
        });
        let blocks = blocks.sum::<Macs>();
        Macs::first(stem.forward) + blocks + self.last.macs(b, n, side).0
    }
}
