//! Differentiable operations that libtorch lacks, or does in too many passes.
//!
//! The C++ side (`cpp/ops.cpp`) holds the autograd nodes; `fovea-kernels` does the arithmetic. On a GPU the same
//! operations are composed of libtorch's own ([`NormEngine::Composed`]).

use std::ffi::{CStr, c_char, c_int, c_void};

pub use fovea_kernels::norm::Activation;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::blueprint::NormSpec;
use crate::error::{Error, Result};

/// torchvision's batch normalisation epsilon.
pub const NORM_EPS: f64 = 1e-5;

type BatchNormCall = unsafe extern "C" fn(
    x: *const C_tensor,
    weight: *const C_tensor,
    bias: *const C_tensor,
    residual: *const C_tensor,
    mean: *const C_tensor,
    var: *const C_tensor,
    activation: c_int,
    eps: f64,
    out: *mut *mut C_tensor,
    second: *mut *mut C_tensor,
) -> *mut c_char;

type StemCall = unsafe extern "C" fn(
    x: *const C_tensor,
    weight: *const C_tensor,
    bias: *const C_tensor,
    mean: *const C_tensor,
    var: *const C_tensor,
    eps: f64,
    out: *mut *mut C_tensor,
) -> *mut c_char;

unsafe extern "C" {
    fn fovea_op_batch_norm_train(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        residual: *const C_tensor,
        mean: *const C_tensor,
        var: *const C_tensor,
        activation: c_int,
        eps: f64,
        out: *mut *mut C_tensor,
        second: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fovea_op_batch_norm_eval(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        residual: *const C_tensor,
        mean: *const C_tensor,
        var: *const C_tensor,
        activation: c_int,
        eps: f64,
        out: *mut *mut C_tensor,
        second: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fovea_op_stem_train(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        mean: *const C_tensor,
        var: *const C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fovea_op_stem_eval(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        mean: *const C_tensor,
        var: *const C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn fovea_op_watch(leaf: *const C_tensor, index: i64) -> *mut c_char;
    fn fovea_op_backward(
        root: *const C_tensor,
        leaves: *const *const C_tensor,
        count: i64,
        take: TakeGradient,
        state: *mut c_void,
    ) -> *mut c_char;
    fn fovea_op_own_stream(index: i32, handle: *mut *mut c_void) -> *mut c_char;
    fn fovea_op_no_tf32();
    fn fovea_op_measure(on: i32);
    fn fovea_op_free_message(message: *mut c_char);
}

type TakeGradient = extern "C" fn(state: *mut c_void, index: i64, grad: *mut C_tensor);

/// Receives the number of a leaf and its gradient.
type OnGradient<'a> = dyn Fn(usize, Tensor) + 'a;

/// Makes [`backward`] report when the gradient of this leaf is complete. Call it once per leaf.
pub fn watch(leaf: &Tensor, index: usize) -> Result<()> {
    // SAFETY: the tensor is alive during the call.
    succeeded(unsafe { fovea_op_watch(leaf.as_ptr(), index as i64) })
}

/// The scalar where backward starts: the sum over the heads of `logits * dlogits`, whose gradient with respect to each
/// head's logits is its dlogits. The heads are added in order.
pub fn root(logits: &[Tensor], dlogits: &[Tensor]) -> Result<Tensor> {
    let mut root = None::<Tensor>;
    for (logits, dlogits) in logits.iter().zip(dlogits) {
        let part = logits.f_mul(dlogits)?.f_sum(Kind::Float)?;
        root = Some(match root {
            Some(sum) => sum.f_add(&part)?,
            None => part,
        });
    }
    root.ok_or_else(|| Error::Internal("a model without heads".to_owned()))
}

/// Backward from the scalar `root` to `leaves`, each of which must have been given to [`watch`]. `on_gradient` gets
/// each gradient when it is complete, while the pass continues: on this thread, or for leaves on a GPU on one of
/// libtorch's while this one waits. A leaf that took no part has no gradient and is left out. `on_gradient` must not
/// panic.
pub fn backward(root: &Tensor, leaves: &[Tensor], on_gradient: &OnGradient<'_>) -> Result<()> {
    extern "C" fn take(state: *mut c_void, index: i64, grad: *mut C_tensor) {
        // SAFETY: `state` is the reference below, alive until `backward` returns; the gradient is ours from now on.
        let (on_gradient, grad) =
            unsafe { (*state.cast::<&OnGradient<'_>>(), Tensor::from_ptr(grad)) };
        if grad.defined() {
            on_gradient(index as usize, grad);
        }
    }
    let leaves: Vec<*const C_tensor> = leaves.iter().map(Tensor::as_ptr).collect();
    let state: *const &OnGradient<'_> = &on_gradient;
    // SAFETY: all tensors and the state are alive during the call, which keeps none of them.
    succeeded(unsafe {
        fovea_op_backward(
            root.as_ptr(),
            leaves.as_ptr(),
            leaves.len() as i64,
            take,
            state.cast_mut().cast(),
        )
    })
}

/// Gives GPU `ordinal` a new stream for all work that this thread asks libtorch for, backward passes included. Returns
/// the stream's handle, which stays valid.
pub fn own_stream(ordinal: u32) -> Result<usize> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: writes one pointer. libtorch's streams live as long as the process.
    succeeded(unsafe { fovea_op_own_stream(ordinal as i32, &mut handle) })?;
    Ok(handle as usize)
}

/// Makes f32 convolutions on GPUs run without TF32.
pub fn no_tf32() {
    // SAFETY: sets a global flag.
    unsafe { fovea_op_no_tf32() }
}

/// Whether cuDNN measures which of its algorithms is fastest for a convolution of a size that it has not seen; else it
/// guesses. It uses earlier measurements in either case.
pub fn measure_convolutions(on: bool) {
    // SAFETY: sets a global flag.
    unsafe { fovea_op_measure(i32::from(on)) }
}

/// How normalisation layers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormEngine {
    /// By the fused passes of `fovea-kernels`, on the CPU.
    Fused,
    /// By operations of libtorch, on any device.
    Composed,
}

/// The statistics with which batch normalisation normalises.
#[derive(Clone, Copy)]
pub enum NormMode<'a> {
    /// Statistics of the virtual shard; the pass writes the mean and the unbiased variance to `batch_stats`.
    Train {
        /// Written by the pass: `[stats_len]` f32, laid out as [`NormSpec`] says.
        batch_stats: &'a Tensor,
        /// Read where a layer is frozen ([`NormSpec::frozen`]): running statistics, `[stats_len]` f32.
        running: &'a Tensor,
    },
    /// Running statistics, for evaluation.
    Eval {
        /// Read by the pass: `[stats_len]` f32, laid out as [`NormSpec`] says.
        running: &'a Tensor,
    },
}

/// The learned parameters of a batch normalisation layer.
pub struct Affine<'a> {
    /// Learned factor (gamma), `[c]` f32.
    pub weight: &'a Tensor,
    /// Learned offset (beta), `[c]` f32.
    pub bias: &'a Tensor,
    /// The layer's place in the flat statistics.
    pub spec: &'a NormSpec,
}

/// Turns the C++ side's message into an error.
pub(crate) fn succeeded(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a NUL-terminated string allocated by the C++ side and freed once, here.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        fovea_op_free_message(message);
        text
    };
    Err(Error::Torch(tch::TchError::Torch(text)))
}

impl Affine<'_> {
    /// Views of this layer's means and variances, and whether the pass writes them (training).
    fn statistics(&self, mode: &NormMode<'_>) -> Result<(Tensor, Tensor, bool)> {
        let (flat, train) = match mode {
            NormMode::Train { running, .. } if self.spec.frozen => (*running, false),
            NormMode::Train { batch_stats, .. } => (*batch_stats, true),
            NormMode::Eval { running } => (*running, false),
        };
        let (offset, channels) = (self.spec.offset as i64, self.spec.channels as i64);
        Ok((
            flat.f_narrow(0, offset, channels)?,
            flat.f_narrow(0, offset + channels, channels)?,
            train,
        ))
    }
}

/// The engine for a layer: the fused passes have no backward with running statistics, so where a frozen layer lies
/// between parameters that move, libtorch computes it.
fn engine_for(engine: NormEngine, affine: &Affine<'_>, inputs: &[&Tensor]) -> NormEngine {
    let needs_backward = || inputs.iter().any(|input| input.requires_grad());
    match affine.spec.frozen && needs_backward() {
        true => NormEngine::Composed,
        false => engine,
    }
}

/// libtorch's `batch_norm`. In training it writes the batch's statistics as a running average of momentum 1, which is
/// their exact value.
fn composed_batch_norm(x: &Tensor, affine: &Affine<'_>, mode: &NormMode<'_>) -> Result<Tensor> {
    let (mean, var, train) = affine.statistics(mode)?;
    Ok(x.f_batch_norm(
        Some(affine.weight),
        Some(affine.bias),
        Some(&mean),
        Some(&var),
        train,
        1.0,
        NORM_EPS,
        true,
    )?)
}

fn call_batch_norm(
    x: &Tensor,
    affine: &Affine<'_>,
    residual: Option<&Tensor>,
    activation: Activation,
    mode: &NormMode<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    let (mean, var, train) = affine.statistics(mode)?;
    let call: BatchNormCall = if train {
        fovea_op_batch_norm_train
    } else {
        fovea_op_batch_norm_eval
    };
    let (mut out, mut second) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: all pointers come from live tensors (or are null where null is allowed); the C++ side
    // checks shapes and dtypes, catches every exception and writes the outputs when it succeeds.
    let message = unsafe {
        call(
            x.as_ptr(),
            affine.weight.as_ptr(),
            affine.bias.as_ptr(),
            residual.map_or(std::ptr::null(), Tensor::as_ptr),
            mean.as_ptr(),
            var.as_ptr(),
            number_of(activation),
            NORM_EPS,
            &mut out,
            &mut second,
        )
    };
    succeeded(message)?;
    // SAFETY: on success both are new tensors that nobody else owns; `second` may be null.
    Ok(unsafe {
        (
            Tensor::from_ptr(out),
            (!second.is_null()).then(|| Tensor::from_ptr(second)),
        )
    })
}

/// The number of an activation in `fovea_norm.h`.
fn number_of(activation: Activation) -> c_int {
    match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Silu => 2,
    }
}

/// `activation(weight * (x - mean) / sqrt(var + eps) + bias)` in two passes over memory.
///
/// `x` is `[n, c, h, w]`, channels-last, f32 or bf16; the result has its shape and dtype. Batch statistics are biased
/// for normalising and unbiased for the running average (Ioffe & Szegedy 2015).
pub fn batch_norm(
    engine: NormEngine,
    x: &Tensor,
    affine: &Affine<'_>,
    activation: Activation,
    mode: &NormMode<'_>,
) -> Result<Tensor> {
    match engine_for(engine, affine, &[x]) {
        NormEngine::Fused => Ok(call_batch_norm(x, affine, None, activation, mode)?.0),
        NormEngine::Composed => {
            let mut y = composed_batch_norm(x, affine, mode)?;
            Ok(match activation {
                Activation::None => y,
                Activation::Relu => y.f_relu_()?,
                // Not in place: its gradient needs its input.
                Activation::Silu => y.f_silu()?,
            })
        }
    }
}

/// `relu(batch_norm(x) + residual)`, the end of a residual block. Returns the result twice, once for each layer that
/// reads it: backward then adds their gradients inside its own pass.
pub fn batch_norm_add_relu(
    engine: NormEngine,
    x: &Tensor,
    affine: &Affine<'_>,
    residual: &Tensor,
    mode: &NormMode<'_>,
) -> Result<(Tensor, Tensor)> {
    let (first, second) = match engine_for(engine, affine, &[x, residual]) {
        NormEngine::Fused => call_batch_norm(x, affine, Some(residual), Activation::Relu, mode)?,
        NormEngine::Composed => {
            let mut y = composed_batch_norm(x, affine, mode)?;
            (y.f_add_(residual)?.f_relu_()?, None)
        }
    };
    let second = second.unwrap_or_else(|| first.shallow_clone());
    Ok((first, second))
}

/// `max_pool(relu(batch_norm(x)))`, window 3, stride 2, padding 1: `[n, c, h, w]` ->
/// `[n, c, ceil(h / 2), ceil(w / 2)]`. It never writes the full-size result of the normalisation.
pub fn stem(
    engine: NormEngine,
    x: &Tensor,
    affine: &Affine<'_>,
    mode: &NormMode<'_>,
) -> Result<Tensor> {
    if engine_for(engine, affine, &[x]) == NormEngine::Composed {
        let y = composed_batch_norm(x, affine, mode)?.f_relu_()?;
        return Ok(y.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?);
    }
    let (mean, var, train) = affine.statistics(mode)?;
    let call: StemCall = if train {
        fovea_op_stem_train
    } else {
        fovea_op_stem_eval
    };
    let mut out = std::ptr::null_mut();
    // SAFETY: as in `call_batch_norm`.
    let message = unsafe {
        call(
            x.as_ptr(),
            affine.weight.as_ptr(),
            affine.bias.as_ptr(),
            mean.as_ptr(),
            var.as_ptr(),
            NORM_EPS,
            &mut out,
        )
    };
    succeeded(message)?;
    // SAFETY: on success `out` is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Mean over height and width: `[n, c, h, w]` -> `[n, c]` in f32.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?)
}
