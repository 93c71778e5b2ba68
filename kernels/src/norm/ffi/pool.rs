//! C entry points of the stem and the poolings.

use super::{answer, arguments, by_dtype, extent, input, on, output};
use crate::error::Result;
use crate::norm::workers::ParallelFor;
use crate::norm::{self, BatchStats, Element, PoolShape, StemBackward, StemForward, StemOutput};
use std::ffi::c_void;

/// Mirrors `fovea_pool` of `fovea_norm.h`, which describes the fields: the stem and the two poolings.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "described in fovea_norm.h")]
pub struct PoolArgs {
    pub size: i64,
    pub dtype: i32,
    pub threads: i32,
    pub n: i64,
    pub h: i64,
    pub w: i64,
    pub channels: i64,
    pub x: *const c_void,
    pub y: *mut c_void,
    pub winner: *mut c_void,
    pub codes: *mut u8,
    pub weight: *const f32,
    pub bias: *const f32,
    pub running_mean: *const f32,
    pub running_var: *const f32,
    pub mean: *mut f32,
    pub invstd: *mut f32,
    pub var_unbiased: *mut f32,
    pub dy: *const c_void,
    pub dx: *mut c_void,
    pub dweight: *mut f32,
    pub dbias: *mut f32,
    pub parallel_for: Option<ParallelFor>,
    pub eps: f32,
}

impl PoolArgs {
    fn shape(&self) -> Result<PoolShape> {
        let shape = PoolShape {
            n: extent("n", self.n)?,
            h: extent("h", self.h)?,
            w: extent("w", self.w)?,
            channels: extent("channels", self.channels)?,
        };
        // Returns an error for a product that does not fit; the output's is smaller.
        shape.inputs().map(|_| shape)
    }
}

/// `y = maxpool(relu(batch_norm(x)))` with the statistics of this batch.
///
/// # Safety
/// `args` is null or points to a `fovea_pool`. Each pointer in it is null or valid for the elements
/// that `fovea_norm.h` states, for the whole call; outputs overlap no other buffer. `parallel_for` is
/// null or keeps the contract stated there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_stem_train_forward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, stem_train_forward(args)) }
    })
}

/// # Safety
/// As [`fovea_stem_train_forward`].
unsafe fn stem_train_forward<T: Element>(args: &PoolArgs) -> Result<()> {
    let shape = args.shape()?;
    let (inputs, outputs, c) = (shape.inputs()?, shape.outputs(), shape.channels);
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let forward = StemForward {
            shape,
            x: input("x", args.x.cast::<T>(), inputs)?,
            weight: input("weight", args.weight, c)?,
            bias: input("bias", args.bias, c)?,
            eps: args.eps,
        };
        let out = StemOutput {
            y: output("y", args.y.cast::<T>(), outputs)?,
            winner: output("winner", args.winner.cast::<T>(), outputs)?,
            codes: output("codes", args.codes, outputs)?,
        };
        let mut stats = BatchStats {
            mean: output("mean", args.mean, c)?,
            invstd: output("invstd", args.invstd, c)?,
            var_unbiased: output("var_unbiased", args.var_unbiased, c)?,
        };
        on(args.threads, args.parallel_for, move |exec| {
            norm::stem::train_forward(exec, &forward, out, &mut stats)
        })
    }
}

/// As [`fovea_stem_train_forward`], with running statistics.
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_stem_eval_forward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, stem_eval_forward(args)) }
    })
}

/// # Safety
/// As [`fovea_stem_eval_forward`].
unsafe fn stem_eval_forward<T: Element>(args: &PoolArgs) -> Result<()> {
    let shape = args.shape()?;
    let c = shape.channels;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let forward = StemForward {
            shape,
            x: input("x", args.x.cast::<T>(), shape.inputs()?)?,
            weight: input("weight", args.weight, c)?,
            bias: input("bias", args.bias, c)?,
            eps: args.eps,
        };
        let mean = input("running_mean", args.running_mean, c)?;
        let var = input("running_var", args.running_var, c)?;
        let y = output("y", args.y.cast::<T>(), shape.outputs())?;
        on(args.threads, args.parallel_for, |exec| {
            norm::stem::eval_forward(exec, &forward, mean, var, y)
        })
    }
}

/// Gradients of [`fovea_stem_train_forward`].
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_stem_train_backward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, stem_train_backward(args)) }
    })
}

/// # Safety
/// As [`fovea_stem_train_backward`].
unsafe fn stem_train_backward<T: Element>(args: &PoolArgs) -> Result<()> {
    let shape = args.shape()?;
    let (inputs, outputs, c) = (shape.inputs()?, shape.outputs(), shape.channels);
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let backward = StemBackward {
            shape,
            x: input("x", args.x.cast::<T>(), inputs)?,
            winner: input("winner", args.winner.cast::<T>().cast_const(), outputs)?,
            codes: input("codes", args.codes.cast_const(), outputs)?,
            dy: input("dy", args.dy.cast::<T>(), outputs)?,
            weight: input("weight", args.weight, c)?,
            bias: input("bias", args.bias, c)?,
            mean: input("mean", args.mean.cast_const(), c)?,
            invstd: input("invstd", args.invstd.cast_const(), c)?,
        };
        let dx = output("dx", args.dx.cast::<T>(), inputs)?;
        let dweight = output("dweight", args.dweight, c)?;
        let dbias = output("dbias", args.dbias, c)?;
        on(args.threads, args.parallel_for, |exec| {
            norm::stem::train_backward(exec, &backward, dx, dweight, dbias)
        })
    }
}

/// Max pooling alone.
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_maxpool_forward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, maxpool_forward(args)) }
    })
}

/// # Safety
/// As [`fovea_maxpool_forward`].
unsafe fn maxpool_forward<T: Element>(args: &PoolArgs) -> Result<()> {
    let shape = args.shape()?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let x = input("x", args.x.cast::<T>(), shape.inputs()?)?;
        let y = output("y", args.y.cast::<T>(), shape.outputs())?;
        let codes = output("codes", args.codes, shape.outputs())?;
        on(args.threads, args.parallel_for, |exec| {
            norm::pool::maxpool_forward(exec, shape, x, y, codes)
        })
    }
}

/// Gradient of [`fovea_maxpool_forward`].
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_maxpool_backward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, maxpool_backward(args)) }
    })
}

/// # Safety
/// As [`fovea_maxpool_backward`].
unsafe fn maxpool_backward<T: Element>(args: &PoolArgs) -> Result<()> {
    let shape = args.shape()?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let dy = input("dy", args.dy.cast::<T>(), shape.outputs())?;
        let codes = input("codes", args.codes.cast_const(), shape.outputs())?;
        let dx = output("dx", args.dx.cast::<T>(), shape.inputs()?)?;
        on(args.threads, args.parallel_for, |exec| {
            norm::pool::maxpool_backward(exec, shape, dy, codes, dx)
        })
    }
}

/// Mean over the pixels of each image and channel.
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_avgpool_forward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, avgpool_forward(args)) }
    })
}

/// # Safety
/// As [`fovea_avgpool_forward`].
unsafe fn avgpool_forward<T: Element>(args: &PoolArgs) -> Result<()> {
    let PoolShape { n, h, w, channels } = args.shape()?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let x = input("x", args.x.cast::<T>(), n * h * w * channels)?;
        let y = output("y", args.y.cast::<T>(), n * channels)?;
        on(args.threads, args.parallel_for, |exec| {
            norm::average::forward(exec, (n, h * w, channels), x, y)
        })
    }
}

/// Gradient of [`fovea_avgpool_forward`].
///
/// # Safety
/// As [`fovea_stem_train_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fovea_avgpool_backward(args: *const PoolArgs) -> i32 {
    answer(|| {
        // SAFETY: as promised by the caller.
        let args = unsafe { arguments(args)? };
        // SAFETY: the caller's promise, which covers the element type too.
        unsafe { by_dtype!(args.dtype, avgpool_backward(args)) }
    })
}

/// # Safety
/// As [`fovea_avgpool_backward`].
unsafe fn avgpool_backward<T: Element>(args: &PoolArgs) -> Result<()> {
    let PoolShape { n, h, w, channels } = args.shape()?;
    // SAFETY: lengths as the header states them; the caller promises validity.
    unsafe {
        let dy = input("dy", args.dy.cast::<T>(), n * channels)?;
        let dx = output("dx", args.dx.cast::<T>(), n * h * w * channels)?;
        on(args.threads, args.parallel_for, |exec| {
            norm::average::backward(exec, (n, h * w, channels), dy, dx)
        })
    }
}
