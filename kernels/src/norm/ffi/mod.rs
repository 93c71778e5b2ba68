//! C entry points, for an autograd function on the C++ side. The header `fovea_norm.h`, one folder up, describes each
//! field; the structures here mirror it.
//!
//! Each function takes one structure of arguments whose first field is its size in bytes: a caller that was compiled
//! against another header gets an error and is not misread. They return [`OK`], [`BAD_ARGUMENT`] or [`INTERNAL`] and
//! never unwind; [`fovea_norm_last_error`] returns the message.

mod bn;
mod pool;

pub use super::workers::{LoopTask, ParallelFor};
pub use bn::{
    BnBackwardArgs, BnForwardArgs, fovea_bn_eval_forward, fovea_bn_train_backward,
    fovea_bn_train_forward,
};
pub use pool::{
    PoolArgs, fovea_avgpool_backward, fovea_avgpool_forward, fovea_maxpool_backward,
    fovea_maxpool_forward, fovea_stem_eval_forward, fovea_stem_train_backward,
    fovea_stem_train_forward,
};

use super::Activation;
use super::lanes::Isa;
use super::workers::{Exec, Workers};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// The call succeeded and wrote its outputs.
pub const OK: i32 = 0;
/// An argument was refused; no buffer was written.
pub const BAD_ARGUMENT: i32 = 1;
/// A defect of this library; the content of the outputs is undefined.
pub const INTERNAL: i32 = 2;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Message of this thread's last call that did not return [`OK`]; valid until the next such call.
#[unsafe(no_mangle)]
pub extern "C" fn fovea_norm_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|message| message.as_ptr())
}

fn remember(message: &str) {
    // Our messages contain no zero byte; if one did, the text before it would be kept.
    let until = message.find('\0').unwrap_or(message.len());
    let message = CString::new(&message[..until]).unwrap_or_default();
    LAST_ERROR.with_borrow_mut(|last| *last = message);
}

/// Runs a call and turns its outcome into a code.
fn answer(call: impl FnOnce() -> Result<()>) -> i32 {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => OK,
        Ok(Err(error)) => {
            remember(&error.to_string());
            BAD_ARGUMENT
        }
        Err(_) => {
            remember("a pass panicked\n  help: this is a defect; please report it");
            INTERNAL
        }
    }
}

fn refuse(what: &'static str, limit: &'static str, actual: String, help: &'static str) -> Error {
    Error::Argument {
        what,
        limit,
        actual,
        help,
    }
}

const NULL_HELP: &str = "pass a buffer; fovea_norm.h says which ones a call needs";

/// Checks the pointer before it becomes a slice.
fn check_pointer<T>(what: &'static str, pointer: *const T, elements: usize) -> Result<()> {
    if pointer.is_null() {
        return Err(refuse(what, "not null", "null".into(), NULL_HELP));
    }
    if !pointer.is_aligned() {
        let limit = "aligned to its element";
        let help = "pass the address of the first element of a contiguous tensor";
        return Err(refuse(what, limit, format!("{pointer:p}"), help));
    }
    match elements.checked_mul(size_of::<T>()) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => Err(Error::Overflow {
            what,
            shape: format!("{elements} elements"),
        }),
    }
}

/// # Safety
/// Unless null, `pointer` is valid for reads of `elements` while the result lives.
unsafe fn input<'a, T>(what: &'static str, pointer: *const T, elements: usize) -> Result<&'a [T]> {
    if elements == 0 {
        return Ok(&[]);
    }
    check_pointer(what, pointer, elements)?;
    // SAFETY: not null, aligned, of a possible size; the caller promises validity.
    Ok(unsafe { std::slice::from_raw_parts(pointer, elements) })
}

/// # Safety
/// As [`input`]; a null pointer gives none.
unsafe fn optional<'a, T>(
    what: &'static str,
    pointer: *const T,
    elements: usize,
) -> Result<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    unsafe { input(what, pointer, elements) }.map(Some)
}

/// # Safety
/// Unless null, `pointer` is valid for writes of `elements`, and nothing else uses them, while the
/// result lives.
unsafe fn output<'a, T>(
    what: &'static str,
    pointer: *mut T,
    elements: usize,
) -> Result<&'a mut [T]> {
    if elements == 0 {
        return Ok(&mut []);
    }
    check_pointer(what, pointer, elements)?;
    // SAFETY: not null, aligned, of a possible size; the caller promises validity.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, elements) })
}

/// # Safety
/// `pointer` is null or points to an argument structure that starts with its size.
unsafe fn arguments<'a, A>(pointer: *const A) -> Result<&'a A> {
    check_pointer("the argument structure", pointer, 1)?;
    // SAFETY: not null and aligned; every argument structure starts with this field.
    let size = unsafe { pointer.cast::<i64>().read() };
    if usize::try_from(size) != Ok(size_of::<A>()) {
        let help =
            "set size to sizeof of the structure; compile against this library's fovea_norm.h";
        let limit = "the size of the structure that this library was built with";
        return Err(refuse("size", limit, size.to_string(), help));
    }
    // SAFETY: not null, aligned, of the agreed size; the caller promises that its pointers are valid.
    Ok(unsafe { &*pointer })
}

fn extent(what: &'static str, value: i64) -> Result<usize> {
    usize::try_from(value).map_err(|_| {
        let help = "pass the tensor's own sizes";
        refuse(what, "0 or more", value.to_string(), help)
    })
}

/// Calls a function for the element type of this number: 0 is f32, 1 is bf16.
macro_rules! by_dtype {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            0 => $function::<f32>($($argument),*),
            1 => $function::<half::bf16>($($argument),*),
            other => Err(super::unknown_dtype(other)),
        }
    };
}
use by_dtype;

fn unknown_dtype(value: i32) -> Error {
    let help = "use FOVEA_F32 or FOVEA_BF16";
    refuse("dtype", "0 (f32) or 1 (bf16)", value.to_string(), help)
}

/// The activation of this number: 0 none, 1 ReLU, 2 SiLU.
fn activation(value: i32) -> Result<Activation> {
    match value {
        0 => Ok(Activation::None),
        1 => Ok(Activation::Relu),
        2 => Ok(Activation::Silu),
        other => {
            let help = "use FOVEA_NO_ACTIVATION, FOVEA_RELU or FOVEA_SILU";
            let limit = "0 (none), 1 (ReLU) or 2 (SiLU)";
            Err(refuse("activation", limit, other.to_string(), help))
        }
    }
}

/// Rayon pools for calls without a loop of their own, one per thread count. They are kept because starting threads
/// costs more than a pass.
static POOLS: Mutex<Vec<Arc<rayon::ThreadPool>>> = Mutex::new(Vec::new());

fn pool_of(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.iter().find(|p| p.current_num_threads() == threads) {
        return Ok(Arc::clone(pool));
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("fovea-norm-{i}"))
        .build()
        .map_err(|error| {
            let help = "use fewer threads, or raise the limit on processes";
            refuse(
                "threads",
                "what the system can start",
                error.to_string(),
                help,
            )
        })?;
    let pool = Arc::new(pool);
    pools.push(Arc::clone(&pool));
    Ok(pool)
}

/// Runs `pass` on the threads that the caller asked for.
fn on(
    threads: i32,
    parallel_for: Option<ParallelFor>,
    pass: impl FnOnce(Exec) -> Result<()> + Send,
) -> Result<()> {
    let isa = Isa::detect();
    let exec = |workers| Exec { workers, isa };
    match (usize::try_from(threads).unwrap_or(0), parallel_for) {
        (0 | 1, _) => pass(exec(Workers::Inline)),
        (_, Some(run)) => pass(exec(Workers::Foreign(run))),
        (count, None) => pool_of(count)?.install(|| pass(exec(Workers::Rayon))),
    }
}
