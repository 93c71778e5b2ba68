//! Slices over the memory of CPU tensors: the only module where kernels and libtorch share bytes.
//!
//! libtorch allocates; this project's kernels read and write the same memory as Rust slices. Every function checks
//! device, dtype and contiguity, so a wrong tensor is an error and not undefined behaviour. Aliasing cannot be checked:
//! the caller must not hold two mutable slices over one tensor, nor run a libtorch operation on it while a slice is
//! alive.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// An element type that both libtorch and the kernels know.
pub trait HostElement: Copy {
    /// libtorch's name of the type.
    const KIND: Kind;
}

impl HostElement for f32 {
    const KIND: Kind = Kind::Float;
}
impl HostElement for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

fn check<T: HostElement>(tensor: &Tensor) -> Result<()> {
    if tensor.device() != Device::Cpu || tensor.kind() != T::KIND || !tensor.is_contiguous() {
        return Err(Error::Internal(format!(
            "expected a contiguous {:?} tensor on the CPU, got {:?} on {:?}, shape {:?}, strides {:?}",
            T::KIND,
            tensor.kind(),
            tensor.device(),
            tensor.size(),
            tensor.stride()
        )));
    }
    Ok(())
}

/// All elements of a contiguous CPU tensor.
pub fn slice<T: HostElement>(tensor: &Tensor) -> Result<&[T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: dtype, device and contiguity were checked, so `numel` elements of T start at data_ptr,
    // and the storage lives at least as long as the borrow of the tensor.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}

/// All elements of a contiguous CPU tensor, for writing.
pub fn slice_mut<T: HostElement>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice`; the exclusive borrow of the handle prevents other slices through it. Views of the same
    // storage exist (parameters are views of one flat buffer), but no libtorch call runs while the slice is alive: the
    // thread that holds it makes all of them.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}
