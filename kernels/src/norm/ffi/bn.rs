//! Batch normalisation.

use super::{activation, answer, arguments, by_dtype, extent, input, on, optional, output};
use crate::error::{Result, checked_elements};
use crate::norm::workers::ParallelFor;
use crate::norm::{
    self, Activation, ActivationGate, Backward, BatchStats, Element, Forward, Gradients,
};
use std::ffi::c_void;

/// Mirrors `fovea_bn_forward` of `fovea_norm.h`, which describes the fields.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "described in fovea_norm.h")]
pub struct BnForwardArgs {
    pub size: i64,
    pub dtype: i32,
    pub activation: i32,
    pub rows: i64,
    pub channels: i64,
    pub x: *const c_void,
    pub residual: *const c_void,
    pub weight: *const f32,
    pub bias: *const f32,
    pub running_mean: *const f32,
    pub running_var: *const f32,
    pub out: *mut c_void,
    pub mean: *mut f32,
    pub invstd: *mut f32,
    pub var_unbiased: *mut f32,
    pub parallel_for: Option<ParallelFor>,
    pub threads: i32,
    pub eps: f32,
}

/// Mirrors `fovea_bn_backward` of `fovea_norm.h`, which describes the fields.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "described in fovea_norm.h")]
pub struct BnBackwardArgs {
    pub size: i64,
    pub dtype: i32,
    pub activation: i32,
    pub rows: i64,
    pub channels: i64,
    pub x: *const c_void,
    pub y: *const c_void,
    pub dy: *const c_void,
    pub second_dy: *const c_void,
    pub weight: *const f32,
    pub bias: *const f32,
    pub mean: *const f32,
    pub invstd: *const f32,
    pub dx: *mut c_void,
    pub dresidual: *mut c_void,
    pub dweight: *mut f32,
    pub dbias: *mut f32,
    pub parallel_for: Option<ParallelFor>,
    pub threads: i32,
}

/// `out = activation(batch_norm(x) (+ residual))` with the statistics of this batch.
///
/// # Safety
/// `args` is null or points to a `fovea_bn_forward`. Each pointer in it is null or valid for the
/// elements that `fovea_norm.h` states, for the whole call; outputs overlap no other buffer.
/// `parallel_for` is null or keeps the contract stated there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_bn_train_forward(args: *const BnForwardArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, bn_forward(args, true)) }
    })
}

/// As [`fovea_bn_train_forward`], with running statistics.
///
/// # Safety
/// As [`fovea_bn_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_bn_eval_forward(args: *const BnForwardArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, bn_forward(args, false)) }
    })
}

/// # Safety
/// As [`fovea_bn_train_forward`].
unsafe fn bn_forward<T: Element>(args: &BnForwardArgs, train: bool) -> Result<()> {
    let (rows, c) = (
        extent("rows", args.rows)?,
        extent("channels", args.channels)?,
    );
    let elements = checked_elements("x", &[rows, c])?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let forward = Forward {
            x: input("x", args.x.cast::<T>(), elements)?,
            rows,
            channels: c,
            weight: input("weight", args.weight, c)?,
            bias: input("bias", args.bias, c)?,
            residual: optional("residual", args.residual.cast::<T>(), elements)?,
            activation: activation(args.activation)?,
            eps: args.eps,
        };
        let out = output("out", args.out.cast::<T>(), elements)?;
        if !train {
            let mean = input("running_mean", args.running_mean, c)?;
            let var = input("running_var", args.running_var, c)?;
            return on(args.threads, args.parallel_for, |exec| {
                norm::eval_forward(exec, &forward, mean, var, out)
            });
        }
        let mut stats = BatchStats {
            mean: output("mean", args.mean, c)?,
            invstd: output("invstd", args.invstd, c)?,
            var_unbiased: output("var_unbiased", args.var_unbiased, c)?,
        };
        on(args.threads, args.parallel_for, move |exec| {
            norm::train_forward(exec, &forward, out, &mut stats)
        })
    }
}

/// Gradients of [`fovea_bn_train_forward`].
///
/// # Safety
/// As [`fovea_bn_train_forward`], for a `fovea_bn_backward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_bn_train_backward(args: *const BnBackwardArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, bn_backward(args)) }
    })
}

/// # Safety
/// As [`fovea_bn_train_backward`].
unsafe fn bn_backward<T: Element>(args: &BnBackwardArgs) -> Result<()> {
    let (rows, c) = (
        extent("rows", args.rows)?,
        extent("channels", args.channels)?,
    );
    let elements = checked_elements("x", &[rows, c])?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let y = optional("y", args.y.cast::<T>(), elements)?;
        let gate = match (activation(args.activation)?, y) {
            (Activation::None, _) => ActivationGate::Open,
            (Activation::Relu, Some(y)) => ActivationGate::Output(y),
            (Activation::Relu, None) => ActivationGate::Input {
                bias: input("bias", args.bias, c)?,
            },
            (Activation::Silu, _) => ActivationGate::Silu {
                bias: input("bias", args.bias, c)?,
            },
        };
        let backward = Backward {
            x: input("x", args.x.cast::<T>(), elements)?,
            rows,
            channels: c,
            dy: input("dy", args.dy.cast::<T>(), elements)?,
            second_dy: optional("second_dy", args.second_dy.cast::<T>(), elements)?,
            gate,
            weight: input("weight", args.weight, c)?,
            mean: input("mean", args.mean, c)?,
            invstd: input("invstd", args.invstd, c)?,
        };
        let dresidual = if args.dresidual.is_null() {
            None
        } else {
            Some(output("dresidual", args.dresidual.cast::<T>(), elements)?)
        };
        let mut grads = Gradients {
            dx: output("dx", args.dx.cast::<T>(), elements)?,
            dresidual,
            dweight: output("dweight", args.dweight, c)?,
            dbias: output("dbias", args.dbias, c)?,
        };
        on(args.threads, args.parallel_for, move |exec| {
            norm::train_backward(exec, &backward, &mut grads)
        })
    }
}
