//! Normalisation, ReLU and max pooling of the stem in one: it writes neither the full-size activation after the
//! normalisation nor its gradient.
//!
//! Per channel the normalised value is monotone in `x`, so each window's maximum is decided on `x`
//! and the winning `x` is kept. Only winners get a gradient, so the two sums of the backward pass run
//! over the pooled size, a quarter.

use super::backward::{BlockGate, Factors, reduce};
use super::pool::{self, NormRelu, PoolShape, Pooled, ThroughNorm};
use super::scale_shift;
use super::workers::Exec;
use super::{BatchStats, Element, affine_gradients, check_train_rows, forward, running_invstd};
use crate::error::{Result, check_len};

/// Input of the fused stem.
#[derive(Clone, Copy, Debug)]
pub struct StemForward<'a, T> {
    /// Shape of `x`, the input of the pooling.
    pub shape: PoolShape,
    /// Output of the convolution, `[n, h, w, channels]`.
    pub x: &'a [T],
    /// Learned affine factor (gamma), `[channels]`.
    pub weight: &'a [f32],
    /// Learned affine offset (beta), `[channels]`.
    pub bias: &'a [f32],
    /// Added to the variance before the square root.
    pub eps: f32,
}

impl<T: Element> StemForward<'_, T> {
    fn check(&self, y: &[T]) -> Result<()> {
        self.shape.check_in("x", self.x.len())?;
        self.shape.check_out("y", y.len())?;
        check_len(
            "weight",
            "[channels]",
            self.weight.len(),
            self.shape.channels,
        )?;
        check_len("bias", "[channels]", self.bias.len(), self.shape.channels)
    }

    fn pool(&self, exec: Exec, mean: &[f32], invstd: &[f32], out: Pooled<'_, T>) {
        let (scale, shift) = scale_shift(self.weight, self.bias, mean, invstd);
        let affine = NormRelu {
            scale: &scale,
            shift: &shift,
        };
        pool::forward(exec, self.shape, self.x, Some(affine), out);
    }
}

/// Buffers that a training forward pass of the stem writes, each `[n, ceil(h / 2), ceil(w / 2), channels]`.
#[derive(Debug)]
pub struct StemOutput<'a, T> {
    /// The stem's output, `maxpool(relu(norm(x)))`.
    pub y: &'a mut [T],
    /// The element of `x` that won each window; the backward pass needs it.
    pub winner: &'a mut [T],
    /// The winner's position, 1..=9, or 0 where the ReLU is closed; the backward pass needs it.
    pub codes: &'a mut [u8],
}

/// `y = maxpool3x3s2(relu(weight * (x - mean) * invstd + bias))` with the statistics of this batch.
///
/// # Errors
/// When a buffer does not have its shape's length, or there are fewer than two pixels.
pub fn stem_train_forward<T: Element>(
    input: &StemForward<'_, T>,
    out: StemOutput<'_, T>,
    stats: &mut BatchStats<'_>,
) -> Result<()> {
    train_forward(Exec::current(), input, out, stats)
}

pub(super) fn train_forward<T: Element>(
    exec: Exec,
    input: &StemForward<'_, T>,
    out: StemOutput<'_, T>,
    stats: &mut BatchStats<'_>,
) -> Result<()> {
    let shape = input.shape;
    input.check(out.y)?;
    shape.check_out("winner", out.winner.len())?;
    shape.check_out("codes", out.codes.len())?;
    stats.check(shape.channels)?;
    let rows = shape.n * shape.h * shape.w;
    check_train_rows(rows)?;
    if shape.channels == 0 {
        return Ok(());
    }
    let moment = forward::moments(exec, input.x, shape.channels);
    stats.fill(&moment, rows, input.eps);
    let StemOutput { y, winner, codes } = out;
    let pooled = Pooled { winner, codes, y };
    input.pool(exec, stats.mean, stats.invstd, pooled);
    Ok(())
}

/// As [`stem_train_forward`], with given statistics: one pass, without outputs for a backward pass.
///
/// # Errors
/// When a buffer does not have its shape's length.
pub fn stem_eval_forward<T: Element>(
    input: &StemForward<'_, T>,
    running_mean: &[f32],
    running_var: &[f32],
    y: &mut [T],
) -> Result<()> {
    eval_forward(Exec::current(), input, running_mean, running_var, y)
}

pub(super) fn eval_forward<T: Element>(
    exec: Exec,
    input: &StemForward<'_, T>,
    running_mean: &[f32],
    running_var: &[f32],
    y: &mut [T],
) -> Result<()> {
    input.check(y)?;
    let c = input.shape.channels;
    check_len("running_mean", "[channels]", running_mean.len(), c)?;
    check_len("running_var", "[channels]", running_var.len(), c)?;
    if input.x.is_empty() {
        return Ok(());
    }
    let invstd = running_invstd(running_var, input.eps);
    let (winner, codes): (&mut [T], &mut [u8]) = (&mut [], &mut []);
    input.pool(exec, running_mean, &invstd, Pooled { winner, codes, y });
    Ok(())
}

/// Input of the stem's backward pass.
#[derive(Clone, Copy, Debug)]
pub struct StemBackward<'a, T> {
    /// Shape of `x`, as in the forward pass.
    pub shape: PoolShape,
    /// Input of the forward pass, `[n, h, w, channels]`.
    pub x: &'a [T],
    /// [`StemOutput::winner`] of the forward pass.
    pub winner: &'a [T],
    /// [`StemOutput::codes`] of the forward pass.
    pub codes: &'a [u8],
    /// Gradient of `y`, `[n, ceil(h / 2), ceil(w / 2), channels]`.
    pub dy: &'a [T],
    /// Learned affine factor (gamma), `[channels]`.
    pub weight: &'a [f32],
    /// Learned affine offset (beta), `[channels]`.
    pub bias: &'a [f32],
    /// Batch mean from the forward pass, `[channels]`.
    pub mean: &'a [f32],
    /// `1 / sqrt(biased variance + eps)` from the forward pass, `[channels]`.
    pub invstd: &'a [f32],
}

/// Gradients of [`stem_train_forward`]: `dx` `[n, h, w, channels]`, `dweight` and `dbias`
/// `[channels]`.
///
/// # Errors
/// When a buffer does not have its shape's length, or there are fewer than two pixels.
pub fn stem_train_backward<T: Element>(
    input: &StemBackward<'_, T>,
    dx: &mut [T],
    dweight: &mut [f32],
    dbias: &mut [f32],
) -> Result<()> {
    train_backward(Exec::current(), input, dx, dweight, dbias)
}

pub(super) fn train_backward<T: Element>(
    exec: Exec,
    input: &StemBackward<'_, T>,
    dx: &mut [T],
    dweight: &mut [f32],
    dbias: &mut [f32],
) -> Result<()> {
    let StemBackward {
        shape,
        x,
        winner,
        codes,
        dy,
        weight,
        bias,
        mean,
        invstd,
    } = *input;
    shape.check_in("x", x.len())?;
    shape.check_in("dx", dx.len())?;
    shape.check_out("winner", winner.len())?;
    shape.check_out("codes", codes.len())?;
    shape.check_out("dy", dy.len())?;
    let c = shape.channels;
    for (what, len) in [
        ("weight", weight.len()),
        ("bias", bias.len()),
        ("mean", mean.len()),
        ("invstd", invstd.len()),
        ("dweight", dweight.len()),
        ("dbias", dbias.len()),
    ] {
        check_len(what, "[channels]", len, c)?;
    }
    let rows = shape.n * shape.h * shape.w;
    check_train_rows(rows)?;
    if c == 0 {
        return Ok(());
    }
    let (scale, shift) = scale_shift(weight, bias, mean, invstd);
    let gate = BlockGate::Input(&scale, &shift);
    let sums = reduce(exec, winner, (dy, None), gate, mean, None);
    affine_gradients(&sums, invstd, dweight, dbias);
    let factors = Factors::new(weight, mean, invstd, &sums, rows);
    let norm = ThroughNorm {
        x,
        factors: &factors,
    };
    pool::backward(exec, shape, dy, codes, Some(norm), dx);
    Ok(())
}
