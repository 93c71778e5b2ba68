//! Convolutions without bias and batch normalisation, the layers of every backbone.

use tch::Tensor;

use super::{Blueprint, Init, Macs, NormId, ParamId, Pass};
use crate::error::Result;
use crate::ops::{self, Activation};

/// Kernel size and stride of a convolution; it is padded by half the kernel.
#[derive(Clone, Copy)]
pub(super) struct ConvolutionWindow {
    pub(super) kernel: i64,
    pub(super) stride: i64,
}

impl ConvolutionWindow {
    /// A square window with stride 1.
    pub(super) fn of(kernel: i64) -> Self {
        Self { kernel, stride: 1 }
    }
}

/// A convolution without bias.
pub(super) struct Convolution {
    weight: ParamId,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl Convolution {
    /// Declares `name.weight` `[outputs, inputs, kernel, kernel]`.
    pub(super) fn declare(
        b: &mut Blueprint,
        name: &str,
        (inputs, outputs): (i64, i64),
        window: ConvolutionWindow,
        init: Init,
    ) -> Self {
        Self::grouped(b, name, (inputs, outputs), window, 1, init)
    }

    /// Declares a depthwise convolution, which has one kernel for each channel: `name.weight` `[channels, 1, kernel,
    /// kernel]`. As torchvision counts them, its fan_out is the channels times the kernel's area.
    pub(super) fn depthwise(
        b: &mut Blueprint,
        name: &str,
        channels: i64,
        window: ConvolutionWindow,
        init: Init,
    ) -> Self {
        Self::grouped(b, name, (channels, channels), window, channels, init)
    }

    fn grouped(
        b: &mut Blueprint,
        name: &str,
        (inputs, outputs): (i64, i64),
        ConvolutionWindow { kernel, stride }: ConvolutionWindow,
        groups: i64,
        init: Init,
    ) -> Self {
        let shape = [outputs, inputs / groups, kernel, kernel];
        Self {
            weight: b.param(format!("{name}.weight"), &shape, true, init),
            stride,
            padding: kernel / 2,
            groups,
        }
    }

    /// `[n, inputs, h, w]` -> `[n, outputs, h', w']`, channels-last, in the dtype of `x`.
    pub(super) fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(
            pass.param(self.weight),
            None::<&Tensor>,
            stride,
            padding,
            [1, 1],
            self.groups,
        )?)
    }

    /// Multiplications on `n` inputs of `side` x `side` pixels, and the side of the result.
    pub(super) fn macs(&self, b: &Blueprint, n: u64, side: u64) -> (Macs, u64) {
        let kernel = b.params[self.weight.0].shape[3] as u64;
        let side = (side + 2 * self.padding as u64 - kernel) / self.stride as u64 + 1;
        (b.macs_at(self.weight, n * side * side), side)
    }
}

/// Batch normalisation (Ioffe & Szegedy 2015), eps 1e-5, momentum 0.1.
pub(super) struct BatchNorm {
    scale: ParamId,
    shift: ParamId,
    norm: NormId,
}

impl BatchNorm {
    /// Declares `name.weight` (1) and `name.bias` (0), `[channels]`, and the running statistics.
    pub(super) fn declare(b: &mut Blueprint, name: &str, channels: i64) -> Self {
        let (one, zero) = (Init::Constant(1.0), Init::Constant(0.0));
        Self {
            scale: b.param(format!("{name}.weight"), &[channels], false, one),
            shift: b.param(format!("{name}.bias"), &[channels], false, zero),
            norm: b.norm(name.to_owned(), channels as usize),
        }
    }

    /// The learned parameters in this pass.
    pub(super) fn affine<'a>(&self, pass: &'a Pass<'_>) -> ops::Affine<'a> {
        ops::Affine {
            weight: pass.param(self.scale),
            bias: pass.param(self.shift),
            spec: &pass.norms[self.norm.0],
        }
    }

    /// `activation(norm(x))`, `[n, channels, h, w]`.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        ops::batch_norm(pass.engine, x, &self.affine(pass), activation, &pass.mode)
    }
}

/// A convolution followed by batch normalisation.
pub(super) struct ConvNorm {
    pub(super) conv: Convolution,
    pub(super) norm: BatchNorm,
}

impl ConvNorm {
    /// Declares both layers by their names, the weights as [`Init::KaimingFanOut`].
    pub(super) fn declare(
        b: &mut Blueprint,
        (conv, norm): (&str, &str),
        channels: (i64, i64),
        window: ConvolutionWindow,
    ) -> Self {
        Self {
            conv: Convolution::declare(b, conv, channels, window, Init::KaimingFanOut),
            norm: BatchNorm::declare(b, norm, channels.1),
        }
    }

    /// [`ConvNorm::declare`] with a depthwise convolution.
    pub(super) fn depthwise(
        b: &mut Blueprint,
        (conv, norm): (&str, &str),
        channels: i64,
        window: ConvolutionWindow,
    ) -> Self {
        Self {
            conv: Convolution::depthwise(b, conv, channels, window, Init::KaimingFanOut),
            norm: BatchNorm::declare(b, norm, channels),
        }
    }

    /// `activation(norm(conv(x)))`.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        let y = self.conv.forward(pass, x)?;
        self.norm.forward(pass, &y, activation)
    }

    /// As [`Convolution::macs`].
    pub(super) fn macs(&self, b: &Blueprint, n: u64, side: u64) -> (Macs, u64) {
        self.conv.macs(b, n, side)
    }
}
