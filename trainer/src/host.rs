//! The memory of CPU tensors: how this process allocates it, and slices over it. This is the only module where kernels
//! and libtorch share bytes.
//!
//! libtorch allocates; this project's kernels read and write the same memory as Rust slices. Every function checks
//! device, dtype and contiguity, so a wrong tensor is an error and not undefined behaviour. Aliasing cannot be checked:
//! the caller must not hold two mutable slices over one tensor, nor run a libtorch operation on it while a slice is
//! alive.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Makes the C library keep freed memory for the next step instead of returning it to the kernel.
///
/// A step allocates the same tensors as the step before it. By default glibc maps each large one anew, and the kernel
/// zeroes it page by page: 25,000 page faults per step and rank of `hybrid`, 6 to 10 % of its time. The process keeps its
/// peak memory until it ends. Other C libraries ignore this.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        /// How much the heap grows at a time, bytes.
        const GROWTH: libc::c_int = 64 << 20;
        // SAFETY: sets three parameters of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
    }
}

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

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the message")]

    use super::*;

    /// Page faults of this thread since it began (field 10 of `stat`, the eighth after the name).
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn freed_tensors_are_allocated_again_without_page_faults() {
        keep_freed_memory();
        let write = || Tensor::ones([10 << 20], (Kind::Float, Device::Cpu)); // 40 MiB, 10,240 pages
        // glibc's aligned allocations leave small gaps at first, which it joins later.
        (0..20).for_each(|_| drop(write()));
        let before = page_faults();
        (0..20).for_each(|_| drop(write()));
        let faults = page_faults() - before;
        assert!(faults < 30_000, "{faults} page faults over 20 tensors");
    }
}
