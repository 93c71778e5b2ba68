//! Small layers of the fusion part, all in f32: linear, layer normalisation, self-attention, head.

use tch::{Kind, Tensor};

use super::{Blueprint, Init, Macs, ParamId, Pass};
use crate::error::Result;

/// `y = x W^T + b`, initialised as `torch.nn.Linear`.
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// Declares `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`.
    pub fn declare(b: &mut Blueprint, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        Self {
            weight: b.param(
                format!("{name}.weight"),
                &[outputs, inputs],
                false,
                Init::Uniform(bound),
            ),
            bias: b.param(
                format!("{name}.bias"),
                &[outputs],
                false,
                Init::Uniform(bound),
            ),
        }
    }

    /// `[.., inputs]` -> `[.., outputs]`.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(pass.param(self.weight), Some(pass.param(self.bias)))?)
    }

    /// Multiplications over `[rows, inputs]`.
    pub fn macs(&self, b: &Blueprint, rows: u64) -> Macs {
        b.macs_at(self.weight, rows)
    }
}

/// Layer normalisation over the last dimension, eps 1e-5.
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    width: i64,
}

impl LayerNorm {
    /// Declares `name.weight` and `name.bias`, both `[width]`.
    pub fn declare(b: &mut Blueprint, name: &str, width: i64) -> Self {
        Self {
            weight: b.param(
                format!("{name}.weight"),
                &[width],
                false,
                Init::Constant(1.0),
            ),
            bias: b.param(format!("{name}.bias"), &[width], false, Init::Constant(0.0)),
            width,
        }
    }

    /// Normalises each row; the result has the shape of `x`.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (pass.param(self.weight), pass.param(self.bias));
        Ok(x.f_layer_norm([self.width], Some(weight), Some(bias), 1e-5, true)?)
    }
}

/// Multi-head self-attention with the parameters and arithmetic of `torch.nn.MultiheadAttention`
/// (batch first, no dropout; Vaswani et al. 2017).
pub struct SelfAttention {
    in_weight: ParamId,
    in_bias: ParamId,
    out_weight: ParamId,
    out_bias: ParamId,
    width: i64,
    heads: i64,
}

impl SelfAttention {
    /// Declares `name.in_proj_weight`, `name.in_proj_bias`, `name.out_proj.*`.
    pub fn declare(b: &mut Blueprint, name: &str, width: i64, heads: i64) -> Self {
        // Xavier uniform over the stacked [3 * width, width] matrix, as PyTorch does it.
        let xavier = (6.0 / (4 * width) as f64).sqrt();
        let out = 1.0 / (width as f64).sqrt();
        Self {
            in_weight: b.param(
                format!("{name}.in_proj_weight"),
                &[3 * width, width],
                false,
                Init::Uniform(xavier),
            ),
            in_bias: b.param(
                format!("{name}.in_proj_bias"),
                &[3 * width],
                false,
                Init::Constant(0.0),
            ),
            out_weight: b.param(
                format!("{name}.out_proj.weight"),
                &[width, width],
                false,
                Init::Uniform(out),
            ),
            out_bias: b.param(
                format!("{name}.out_proj.bias"),
                &[width],
                false,
                Init::Constant(0.0),
            ),
            width,
            heads,
        }
    }

    /// Attends within each sequence of `x`, `[b, t, width]`; `padding` is `[b, 1, 1, t]`, 0 for tokens and -inf for
    /// padding.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        let (b, t) = (x.size()[0], x.size()[1]);
        let head = self.width / self.heads;
        let qkv = x.f_linear(pass.param(self.in_weight), Some(pass.param(self.in_bias)))?;
        let qkv = qkv
            .f_view([b, t, 3, self.heads, head])?
            .f_permute([2, 0, 3, 1, 4])?;
        let (q, k, v) = (qkv.f_get(0)?, qkv.f_get(1)?, qkv.f_get(2)?);
        let mut scores = q
            .f_matmul(&k.f_transpose(-2, -1)?)?
            .f_mul_scalar(1.0 / (head as f64).sqrt())?;
        if let Some(padding) = padding {
            scores = scores.f_add(padding)?;
        }
        let weights = scores.f_softmax(-1, Kind::Float)?;
        pass.attended(&weights)?;
        let mixed = weights.f_matmul(&v)?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([b, t, self.width])?;
        Ok(mixed.f_linear(pass.param(self.out_weight), Some(pass.param(self.out_bias)))?)
    }

    /// Multiplications over `[sequences, tokens, width]`.
    pub fn macs(&self, b: &Blueprint, sequences: u64, tokens: u64) -> Macs {
        let rows = sequences * tokens;
        let scores = Macs::product(rows * tokens * self.width as u64);
        b.macs_at(self.in_weight, rows) + scores * 2 + b.macs_at(self.out_weight, rows)
    }
}
