//! Adam and AdamW in one pass over the flat buffers.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;

use super::{CHUNK, round_bf16};
use crate::error::{Error, Result, check_len};
use crate::simd::{SimdLevel, multiversion};

/// Hyperparameters of one optimizer step. They are f64, as PyTorch keeps them: `1 - beta2` of an f32 `beta2` would be
/// off in its fifth digit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamParams {
    /// Learning rate of this step, 0 or more.
    pub lr: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the denominator, 0 or more.
    pub eps: f64,
    /// Weight decay, 0 or more.
    pub weight_decay: f64,
    /// `true`: the decay shrinks the parameter (AdamW). `false`: it is an L2 term in the gradient
    /// (Adam).
    pub decoupled: bool,
    /// Number of this step, from 1: how many updates the moments have had after it.
    pub step: u64,
    /// Factor on every gradient, applied first: the factor of norm clipping, see [`super::clip_scale`].
    pub grad_scale: f64,
}

impl AdamParams {
    /// Returns an error for numbers with which the update is undefined.
    fn check(&self) -> Result<()> {
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let numbers = [
            (
                "AdamParams::lr",
                self.lr,
                not_negative(self.lr),
                "0 or more, finite",
            ),
            (
                "AdamParams::beta1",
                self.beta1,
                below_one(self.beta1),
                "0 to below 1",
            ),
            (
                "AdamParams::beta2",
                self.beta2,
                below_one(self.beta2),
                "0 to below 1",
            ),
            (
                "AdamParams::eps",
                self.eps,
                not_negative(self.eps),
                "0 or more, finite",
            ),
            (
                "AdamParams::weight_decay",
                self.weight_decay,
                not_negative(self.weight_decay),
                "0 or more, finite",
            ),
            (
                "AdamParams::grad_scale",
                self.grad_scale,
                self.grad_scale.is_finite(),
                "a finite number",
            ),
        ];
        if let Some(&(what, value, _, limit)) = numbers.iter().find(|(_, _, ok, _)| !ok) {
            return Err(Error::Argument {
                what,
                limit,
                actual: value.to_string(),
                help: "check the optimizer settings and the learning-rate schedule",
            });
        }
        if self.step == 0 {
            return Err(Error::Argument {
                what: "AdamParams::step",
                limit: "1 or more",
                actual: "0".into(),
                help: "steps count from 1; the bias correction of step 0 divides by zero",
            });
        }
        Ok(())
    }
}

/// [`AdamParams`] in the form of the inner loop, rounded to f32 once, as PyTorch rounds its Python scalars. The GPU
/// kernel reads them in this layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AdamScalars {
    grad_scale: f32,
    /// L2 term in the gradient; 0 for AdamW.
    l2: f32,
    /// Factor on the parameter; 1 for Adam.
    keep: f32,
    one_minus_beta1: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    sqrt_correction2: f32,
    eps: f32,
    minus_step_size: f32,
}

impl AdamScalars {
    /// The scalars of one step.
    ///
    /// # Errors
    ///
    /// Numbers with which the update is undefined.
    pub fn new(p: &AdamParams) -> Result<Self> {
        p.check()?;
        let correction1 = 1.0 - power(p.beta1, p.step);
        let correction2 = 1.0 - power(p.beta2, p.step);
        Ok(Self {
            grad_scale: p.grad_scale as f32,
            l2: if p.decoupled {
                0.0
            } else {
                p.weight_decay as f32
            },
            keep: if p.decoupled {
                (1.0 - p.lr * p.weight_decay) as f32
            } else {
                1.0
            },
            one_minus_beta1: (1.0 - p.beta1) as f32,
            beta1: p.beta1 as f32,
            beta2: p.beta2 as f32,
            one_minus_beta2: (1.0 - p.beta2) as f32,
            sqrt_correction2: correction2.sqrt() as f32,
            eps: p.eps as f32,
            minus_step_size: (-p.lr / correction1) as f32,
        })
    }
}

/// `base^exponent` by squaring: the same bits on every machine, which libm's pow does not guarantee.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

/// One optimizer step over `[n]` parameters in a single pass: unscale the gradient, weight decay,
/// both moments, update, and the bf16 `working` copy of the parameters if there is one.
///
/// The order of operations is that of `torch.optim.Adam` / `AdamW` (PyTorch 2.11, one tensor, not
/// capturable): `step_size = lr / (1 - beta1^step)`, `denom = sqrt(v) / sqrt(1 - beta2^step) + eps`.
/// A gradient that is not finite makes its parameter NaN or infinite: check [`super::sum_squares`] first.
pub fn adam(
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    working: Option<&mut [bf16]>,
    p: &AdamParams,
) -> Result<()> {
    const SHAPE: &str = "[n], as many as params";
    let scalars = AdamScalars::new(p)?;
    let n = params.len();
    check_len("grads", SHAPE, grads.len(), n)?;
    check_len("m", SHAPE, m.len(), n)?;
    check_len("v", SHAPE, v.len(), n)?;
    if let Some(working) = &working {
        check_len("working", SHAPE, working.len(), n)?;
    }
    let level = SimdLevel::detect();
    let chunks = params
        .par_chunks_mut(CHUNK)
        .zip(grads.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)));
    match working {
        None => chunks.for_each(|((params, grads), (m, v))| {
            adam_chunk(level, params, grads, m, v, scalars);
        }),
        Some(working) => chunks.zip(working.par_chunks_mut(CHUNK)).for_each(
            |(((params, grads), (m, v)), working)| {
                adam_chunk_with_copy(level, params, grads, m, v, working, scalars);
            },
        ),
    }
    Ok(())
}

/// The update of one element: new parameter, first and second moment.
#[inline(always)]
fn update(param: f32, grad: f32, m: f32, v: f32, s: &AdamScalars) -> (f32, f32, f32) {
    let grad = grad * s.grad_scale + s.l2 * param;
    let param = param * s.keep;
    let difference = grad - m;
    // torch.lerp switches its formula at weight 1/2 to be exact at both ends.
    let m = if s.one_minus_beta1 < 0.5 {
        m + s.one_minus_beta1 * difference
    } else {
        grad - difference * s.beta1
    };
    let v = v * s.beta2 + (s.one_minus_beta2 * grad) * grad;
    let denominator = v.sqrt() / s.sqrt_correction2 + s.eps;
    (param + (s.minus_step_size * m) / denominator, m, v)
}

multiversion! {
    fn adam_chunk(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], s: AdamScalars) {
        for (((param, &grad), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            (*param, *m, *v) = update(*param, grad, *m, *v, &s);
        }
    }
}

multiversion! {
    fn adam_chunk_with_copy(
        params: &mut [f32],
        grads: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        working: &mut [bf16],
        s: AdamScalars,
    ) {
        let elements = params.iter_mut().zip(grads).zip(m).zip(v).zip(working);
        for ((((param, &grad), m), v), working) in elements {
            (*param, *m, *v) = update(*param, grad, *m, *v, &s);
            *working = round_bf16(*param);
        }
    }
}

#[cfg(test)]
mod tests;
