//! The passes around the convolutions of a network in training: batch normalisation including the residual
//! add and the activation, the pooling of a ResNet's stem, the global average.
//!
//! Data is channels-last: an activation `[N, C, H, W]` lies in memory as `[rows, channels]` with
//! `rows = N * H * W`. Elements are f32 or bf16; statistics and affine parameters are f32; sums over
//! rows are f32 within a block of fixed size and f64 across blocks, in order. So the bits depend
//! neither on the number of threads nor on the instruction set.
//!
//! A pass runs on the current rayon pool; with one thread, everything runs on the caller's. The formulas are those of
//! Ioffe and Szegedy 2015, as PyTorch's `batch_norm` computes them (biased variance for the normalisation).
//!
//! This module must not know about tensors, autograd or running buffers: the caller updates the running averages.

mod average;
mod backward;
mod element;
pub mod ffi;
mod forward;
mod lanes;
mod pool;
mod silu;
mod stem;
#[cfg(test)]
mod tests;
mod workers;

pub use average::{avgpool_backward, avgpool_forward};
pub use element::Element;
pub use pool::{PoolShape, maxpool3x3s2_backward, maxpool3x3s2_forward};
pub use stem::{
    StemBackward, StemForward, StemOutput, stem_eval_forward, stem_train_backward,
    stem_train_forward,
};

use crate::error::{Error, Result, check_len, checked_elements};
use backward::{BlockGate, Factors, GradientSums};
use workers::Exec;

/// Rows of a block, about 32,768 elements (64 KB in bf16). They depend on the shape alone, because they fix the order
/// of the sums.
fn block_rows(channels: usize) -> usize {
    (32 * 1024 / channels.max(1)).clamp(16, 1024)
}

/// The function that a normalising pass ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// `max(z, 0)`.
    Relu,
    /// `z * sigmoid(z)`.
    Silu,
}

/// Input of a normalising forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, T> {
    /// Input of the layer, `[rows, channels]`.
    pub x: &'a [T],
    /// Number of rows, `N * H * W`.
    pub rows: usize,
    /// Number of channels, C.
    pub channels: usize,
    /// Learned affine factor (gamma), `[channels]`.
    pub weight: &'a [f32],
    /// Learned affine offset (beta), `[channels]`.
    pub bias: &'a [f32],
    /// Residual branch, `[rows, channels]`, added before the activation; none if the layer has no residual.
    pub residual: Option<&'a [T]>,
    /// The function that the result passes.
    pub activation: Activation,
    /// Added to the variance before the square root.
    pub eps: f32,
}

impl<T> Forward<'_, T> {
    fn check(&self, out: &[T]) -> Result<()> {
        let Self {
            rows, channels: c, ..
        } = *self;
        let elements = checked_elements("x", &[rows, c])?;
        check_len("x", "[rows, channels]", self.x.len(), elements)?;
        check_len("out", "[rows, channels]", out.len(), elements)?;
        if let Some(residual) = self.residual {
            check_len("residual", "[rows, channels]", residual.len(), elements)?;
            check_no_silu("residual", self.activation == Activation::Silu)?;
        }
        check_len("weight", "[channels]", self.weight.len(), c)?;
        check_len("bias", "[channels]", self.bias.len(), c)
    }
}

/// Batch statistics that a training forward pass writes, each `[channels]`.
#[derive(Debug)]
pub struct BatchStats<'a> {
    /// Mean over the rows.
    pub mean: &'a mut [f32],
    /// `1 / sqrt(biased variance + eps)`.
    pub invstd: &'a mut [f32],
    /// Unbiased variance, for the running buffer.
    pub var_unbiased: &'a mut [f32],
}

impl BatchStats<'_> {
    fn check(&self, channels: usize) -> Result<()> {
        check_len("mean", "[channels]", self.mean.len(), channels)?;
        check_len("invstd", "[channels]", self.invstd.len(), channels)?;
        check_len(
            "var_unbiased",
            "[channels]",
            self.var_unbiased.len(),
            channels,
        )
    }

    fn fill(&mut self, moment: &forward::ChannelMoments, rows: usize, eps: f32) {
        let n = rows as f64;
        for (i, (mean, m2)) in moment.mean.iter().zip(&moment.m2).enumerate() {
            self.mean[i] = *mean as f32;
            self.invstd[i] = (1.0 / (m2 / n + f64::from(eps)).sqrt()) as f32;
            self.var_unbiased[i] = (m2 / (n - 1.0)) as f32;
        }
    }
}

/// `(scale, shift)`, with which the normalised value is `x * scale + shift`. Forward and backward both call this with
/// the same f32 numbers, so a gate that is computed again opens on the same bits.
fn scale_shift(weight: &[f32], bias: &[f32], mean: &[f32], invstd: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut pair = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    for i in 0..weight.len() {
        let scale = f64::from(weight[i]) * f64::from(invstd[i]);
        pair.0[i] = scale as f32;
        pair.1[i] = (f64::from(bias[i]) - f64::from(mean[i]) * scale) as f32;
    }
    pair
}

fn check_train_rows(rows: usize) -> Result<()> {
    if rows >= 2 {
        return Ok(());
    }
    Err(Error::Argument {
        what: "rows",
        limit: "2 or more: one value per channel has no variance",
        actual: rows.to_string(),
        help: "use a larger batch or image, or the evaluation pass with running statistics",
    })
}

/// Refuses a residual before SiLU: the backward pass computes its derivative from `x` alone.
fn check_no_silu(what: &'static str, silu: bool) -> Result<()> {
    if !silu {
        return Ok(());
    }
    Err(Error::Argument {
        what,
        limit: "none for a layer with SiLU",
        actual: "given".into(),
        help: "add the residual to the layer's output",
    })
}

/// `out = activation(weight * (x - mean) * invstd + bias (+ residual))` with the statistics of this batch, which it also
/// writes. Two passes: one reads `x`, one reads it again and writes `out`.
///
/// # Errors
/// When a buffer does not have its shape's length, or `rows < 2`.
pub fn bn_train_forward<T: Element>(
    input: &Forward<'_, T>,
    out: &mut [T],
    stats: &mut BatchStats<'_>,
) -> Result<()> {
    train_forward(Exec::current(), input, out, stats)
}

fn train_forward<T: Element>(
    exec: Exec,
    input: &Forward<'_, T>,
    out: &mut [T],
    stats: &mut BatchStats<'_>,
) -> Result<()> {
    input.check(out)?;
    stats.check(input.channels)?;
    check_train_rows(input.rows)?;
    if input.channels == 0 {
        return Ok(());
    }
    let moment = forward::moments(exec, input.x, input.channels);
    stats.fill(&moment, input.rows, input.eps);
    let (scale, shift) = scale_shift(input.weight, input.bias, stats.mean, stats.invstd);
    let (residual, activation) = (input.residual, input.activation);
    forward::apply(exec, input.x, residual, activation, (&scale, &shift), out);
    Ok(())
}

/// As [`bn_train_forward`], with given statistics (`[channels]` each, `running_var` unbiased as
/// PyTorch keeps it): one pass.
///
/// # Errors
/// When a buffer does not have its shape's length.
pub fn bn_eval_forward<T: Element>(
    input: &Forward<'_, T>,
    running_mean: &[f32],
    running_var: &[f32],
    out: &mut [T],
) -> Result<()> {
    eval_forward(Exec::current(), input, running_mean, running_var, out)
}

fn eval_forward<T: Element>(
    exec: Exec,
    input: &Forward<'_, T>,
    running_mean: &[f32],
    running_var: &[f32],
    out: &mut [T],
) -> Result<()> {
    input.check(out)?;
    let c = input.channels;
    check_len("running_mean", "[channels]", running_mean.len(), c)?;
    check_len("running_var", "[channels]", running_var.len(), c)?;
    if input.x.is_empty() {
        return Ok(());
    }
    let invstd = running_invstd(running_var, input.eps);
    let (scale, shift) = scale_shift(input.weight, input.bias, running_mean, &invstd);
    let (residual, activation) = (input.residual, input.activation);
    forward::apply(exec, input.x, residual, activation, (&scale, &shift), out);
    Ok(())
}

fn running_invstd(running_var: &[f32], eps: f32) -> Vec<f32> {
    let invstd = |v: &f32| (1.0 / (f64::from(*v) + f64::from(eps)).sqrt()) as f32;
    running_var.iter().map(invstd).collect()
}

/// How the gradient gets back through the activation: for ReLU, where it let values through.
#[derive(Clone, Copy, Debug)]
pub enum ActivationGate<'a, T> {
    /// Unchanged: the layer has no activation.
    Open,
    /// Where the output `[rows, channels]` of the forward pass, a ReLU's, is positive.
    Output(&'a [T]),
    /// ReLU's gate: where the normalised value, computed again from `x`, is positive. Only possible without a residual; saves
    /// reading the output.
    Input {
        /// Affine offset of the forward pass, `[channels]`.
        bias: &'a [f32],
    },
    /// Times the derivative of SiLU at the normalised value, computed again from `x`. Only possible without a
    /// residual.
    Silu {
        /// Affine offset of the forward pass, `[channels]`.
        bias: &'a [f32],
    },
}

/// Input of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a, T> {
    /// Input of the forward pass, `[rows, channels]`.
    pub x: &'a [T],
    /// Number of rows, `N * H * W`.
    pub rows: usize,
    /// Number of channels, C.
    pub channels: usize,
    /// Gradient of the output, `[rows, channels]`.
    pub dy: &'a [T],
    /// A second gradient of the same output, added to the first; none if one layer reads the output. (Each of two
    /// layers that read it gives a gradient; adding them here saves a pass.) Needs [`Gradients::dresidual`].
    pub second_dy: Option<&'a [T]>,
    /// The activation of the forward pass.
    pub gate: ActivationGate<'a, T>,
    /// Learned affine factor (gamma), `[channels]`.
    pub weight: &'a [f32],
    /// Batch mean from the forward pass, `[channels]`.
    pub mean: &'a [f32],
    /// `1 / sqrt(biased variance + eps)` from the forward pass, `[channels]`.
    pub invstd: &'a [f32],
}

/// Buffers that the backward pass writes.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// Gradient of `x`, `[rows, channels]`.
    pub dx: &'a mut [T],
    /// Gradient of the residual, `[rows, channels]`: `dy` behind the activation. None if it is not needed.
    pub dresidual: Option<&'a mut [T]>,
    /// Gradient of the affine factor, `[channels]`.
    pub dweight: &'a mut [f32],
    /// Gradient of the affine offset, `[channels]`.
    pub dbias: &'a mut [f32],
}

impl<T> Backward<'_, T> {
    fn check(&self, grads: &Gradients<'_, T>) -> Result<()> {
        let Self {
            rows, channels: c, ..
        } = *self;
        let elements = checked_elements("x", &[rows, c])?;
        let full = |what, len| check_len(what, "[rows, channels]", len, elements);
        full("x", self.x.len())?;
        full("dy", self.dy.len())?;
        full("dx", grads.dx.len())?;
        if let Some(dresidual) = &grads.dresidual {
            full("dresidual", dresidual.len())?;
            check_no_silu(
                "dresidual",
                matches!(self.gate, ActivationGate::Silu { .. }),
            )?;
        }
        match (self.second_dy, &grads.dresidual) {
            (Some(second), Some(_)) => full("second_dy", second.len())?,
            (Some(_), None) => {
                return Err(Error::Argument {
                    what: "second_dy",
                    limit: "allowed only together with dresidual",
                    actual: "given without it".into(),
                    help: "pass a dresidual buffer: it holds the sum of the two gradients",
                });
            }
            (None, _) => {}
        }
        match self.gate {
            ActivationGate::Open => {}
            ActivationGate::Output(y) => full("gate output", y.len())?,
            ActivationGate::Input { bias } | ActivationGate::Silu { bias } => {
                check_len("gate bias", "[channels]", bias.len(), c)?
            }
        }
        check_len("weight", "[channels]", self.weight.len(), c)?;
        check_len("mean", "[channels]", self.mean.len(), c)?;
        check_len("invstd", "[channels]", self.invstd.len(), c)?;
        check_len("dweight", "[channels]", grads.dweight.len(), c)?;
        check_len("dbias", "[channels]", grads.dbias.len(), c)
    }
}

/// Gradients of [`bn_train_forward`]. Two passes: one sums (and writes `dresidual`), one writes `dx`.
///
/// # Errors
/// When a buffer does not have its shape's length, `rows < 2`, or `second_dy` comes without
/// `dresidual`.
pub fn bn_train_backward<T: Element>(
    input: &Backward<'_, T>,
    grads: &mut Gradients<'_, T>,
) -> Result<()> {
    train_backward(Exec::current(), input, grads)
}

fn train_backward<T: Element>(
    exec: Exec,
    input: &Backward<'_, T>,
    grads: &mut Gradients<'_, T>,
) -> Result<()> {
    input.check(grads)?;
    check_train_rows(input.rows)?;
    if input.channels == 0 {
        return Ok(());
    }
    let (scale, shift) = match input.gate {
        ActivationGate::Input { bias } | ActivationGate::Silu { bias } => {
            scale_shift(input.weight, bias, input.mean, input.invstd)
        }
        _ => (Vec::new(), Vec::new()),
    };
    let gate = BlockGate::new(input.gate, &scale, &shift);
    let (x, mean) = (input.x, input.mean);
    let dy = (input.dy, input.second_dy);
    let sums = backward::reduce(exec, x, dy, gate, mean, grads.dresidual.as_deref_mut());
    affine_gradients(&sums, input.invstd, grads.dweight, grads.dbias);
    let factors = Factors::new(input.weight, mean, input.invstd, &sums, input.rows);
    // The first pass wrote the gradient behind the gate: one stream to read instead of two or three.
    let (dy, gate) = match grads.dresidual.as_deref() {
        Some(gated) => (gated, BlockGate::Open),
        None => (input.dy, gate),
    };
    backward::input_gradient(exec, x, dy, gate, &factors, grads.dx);
    Ok(())
}

fn affine_gradients(sums: &GradientSums, invstd: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    for i in 0..invstd.len() {
        dbias[i] = sums.sum[i] as f32;
        dweight[i] = (sums.dot[i] * f64::from(invstd[i])) as f32;
    }
}
