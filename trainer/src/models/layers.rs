//! Small layers behind the networks, all in f32: linear, two of them, layer normalisation, attention, pooling.

use tch::{Kind, Tensor};

use super::{Blueprint, DropoutId, DropoutSpec, Init, Macs, ParamId, Pass};
use crate::error::Result;

/// `y = x W^T + b`, initialised as `torch.nn.Linear`.
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// Declares `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`.
    pub fn declare(b: &mut Blueprint, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = Init::Uniform(1.0 / (inputs as f64).sqrt());
        Self::initialised(b, name, (inputs, outputs), (bound, bound))
    }

    /// Declares `name.weight` `[outputs, inputs]` alone.
    pub fn without_bias(b: &mut Blueprint, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = Init::Uniform(1.0 / (inputs as f64).sqrt());
        Self {
            weight: b.param(format!("{name}.weight"), &[outputs, inputs], false, bound),
            bias: None,
        }
    }

    /// As [`Linear::declare`], with other initial values of weight and bias.
    pub fn initialised(
        b: &mut Blueprint,
        name: &str,
        (inputs, outputs): (i64, i64),
        (weight, bias): (Init, Init),
    ) -> Self {
        Self {
            weight: b.param(format!("{name}.weight"), &[outputs, inputs], false, weight),
            bias: Some(b.param(format!("{name}.bias"), &[outputs], false, bias)),
        }
    }

    /// `[.., inputs]` -> `[.., outputs]`.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.map(|bias| pass.param(bias));
        Ok(x.f_linear(pass.param(self.weight), bias)?)
    }

    /// Multiplications over `[rows, inputs]`.
    pub fn macs(&self, b: &Blueprint, rows: u64) -> Macs {
        b.macs_at(self.weight, rows)
    }
}

/// `Linear, ReLU, Dropout, Linear`, with the names `.0` and `.3` of a PyTorch `Sequential`.
pub struct Mlp {
    hidden: Linear,
    dropout: DropoutId,
    last: Linear,
}

impl Mlp {
    /// Declares `name.0` (inputs -> the dropout site's width) and `name.3` (that -> outputs).
    pub fn declare(
        b: &mut Blueprint,
        name: &str,
        (inputs, outputs): (i64, i64),
        dropout: DropoutSpec,
    ) -> Self {
        let width = dropout.width as i64;
        Self {
            hidden: Linear::declare(b, &format!("{name}.0"), inputs, width),
            dropout: b.dropout(dropout),
            last: Linear::declare(b, &format!("{name}.3"), width, outputs),
        }
    }

    /// `[rows, inputs]` -> `[rows, outputs]`; a row per image or patch, as the dropout site has it.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden.forward(pass, x)?.f_relu()?;
        let hidden = pass.dropped(hidden, self.dropout)?;
        self.last.forward(pass, &hidden)
    }

    /// Multiplications over `[rows, inputs]`.
    pub fn macs(&self, b: &Blueprint, rows: u64) -> Macs {
        self.hidden.macs(b, rows) + self.last.macs(b, rows)
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
        self.mix(pass, (&q, &k, &v), padding)
    }

    /// Each row of `x`, `[b, t, width]`, attends to the rows of its sequence of `memory`, `[b, s, width]`, t and s > 0.
    pub fn between(&self, pass: &Pass<'_>, x: &Tensor, memory: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (pass.param(self.in_weight), pass.param(self.in_bias));
        let project = |x: &Tensor, from: i64, parts: i64| -> Result<Tensor> {
            let weight = weight.f_narrow(0, from * self.width, parts * self.width)?;
            let bias = bias.f_narrow(0, from * self.width, parts * self.width)?;
            let (b, t, head) = (x.size()[0], x.size()[1], self.width / self.heads);
            let projected = x.f_linear(&weight, Some(&bias))?;
            let projected = projected.f_view([b, t, parts, self.heads, head])?;
            Ok(projected.f_permute([2, 0, 3, 1, 4])?)
        };
        let (q, kv) = (project(x, 0, 1)?.f_get(0)?, project(memory, 1, 2)?);
        self.mix(pass, (&q, &kv.f_get(0)?, &kv.f_get(1)?), None)
    }

    /// Attention of `q` `[b, heads, t, head]` to `k` and `v` `[b, heads, s, head]`, projected, `[b, t, width]`.
    fn mix(
        &self,
        pass: &Pass<'_>,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        padding: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (b, t) = (q.size()[0], q.size()[2]);
        let head = self.width / self.heads;
        let mut scores = q
            .f_matmul(&k.f_transpose(-2, -1)?)?
            .f_mul_scalar(1.0 / (head as f64).sqrt())?;
        if let Some(padding) = padding {
            scores = scores.f_add(padding)?;
        }
        let weights = scores.f_softmax(-1, Kind::Float)?;
        pass.attended(&weights)?;
        let mixed = weights.f_matmul(v)?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([b, t, self.width])?;
        Ok(mixed.f_linear(pass.param(self.out_weight), Some(pass.param(self.out_bias)))?)
    }

    /// Multiplications of [`SelfAttention::between`] with `tokens` rows of `x` and `memory` rows of the other per sequence.
    pub fn macs_between(&self, b: &Blueprint, sequences: u64, tokens: u64, memory: u64) -> Macs {
        let width = self.width as u64;
        let project = |rows: u64, parts: u64| Macs::product(rows * parts * width * width);
        project(sequences * tokens, 1)
            + project(sequences * memory, 2)
            + Macs::product(sequences * tokens * memory * width) * 2
            + b.macs_at(self.out_weight, sequences * tokens)
    }

    /// Multiplications over `[sequences, tokens, width]`.
    pub fn macs(&self, b: &Blueprint, sequences: u64, tokens: u64) -> Macs {
        let rows = sequences * tokens;
        let scores = Macs::product(rows * tokens * self.width as u64);
        b.macs_at(self.in_weight, rows) + scores * 2 + b.macs_at(self.out_weight, rows)
    }
}

/// Gated attention pooling over the rows of a sequence (Ilse et al., ICML 2018, equation 9), with the names of the
/// authors' program: `z = sum_k a_k x_k`, `a = softmax(w (tanh(V x_k) * sigmoid(U x_k)))`.
pub struct GatedPooling {
    v: Linear,
    u: Linear,
    w: Linear,
}

impl GatedPooling {
    /// Declares `name.attention_V.0`, `name.attention_U.0` (width -> hidden) and `name.attention_weights` (hidden -> 1).
    pub fn declare(b: &mut Blueprint, name: &str, width: i64, hidden: i64) -> Self {
        Self {
            v: Linear::declare(b, &format!("{name}.attention_V.0"), width, hidden),
            u: Linear::declare(b, &format!("{name}.attention_U.0"), width, hidden),
            w: Linear::declare(b, &format!("{name}.attention_weights"), hidden, 1),
        }
    }

    /// `[b, t, width]` -> `[b, width]`; `bag` `[b, t, 1]` is 0 for the rows that are pooled and -inf for the others, at
    /// least one row of each sequence being 0.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor, bag: &Tensor) -> Result<Tensor> {
        let gate = self.u.forward(pass, x)?.f_sigmoid()?;
        let hidden = self.v.forward(pass, x)?.f_tanh()?.f_mul(&gate)?;
        let scores = self.w.forward(pass, &hidden)?.f_add(bag)?; // [b, t, 1]
        let weighted = scores.f_softmax(1, Kind::Float)?.f_mul(x)?;
        Ok(weighted.f_sum_dim_intlist(1i64, false, Kind::Float)?)
    }

    /// Multiplications over `[rows, width]`.
    pub fn macs(&self, b: &Blueprint, rows: u64) -> Macs {
        self.v.macs(b, rows) + self.u.macs(b, rows) + self.w.macs(b, rows)
    }
}
