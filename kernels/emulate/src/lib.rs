//! Runs the CUDA kernels of `fovea-kernels` on the CPU, for their tests.
//!
//! `build.rs` compiles the `.cu` files as C++ against a header that supplies CUDA's part (`cpp/cuda_on_cpu.h`), and a
//! scheduler of fibers runs them (`cpp/scheduler.cpp`). It finds threads that leave while others wait for them,
//! barriers that not all threads reach, 16-byte accesses that are misaligned or leave their buffer, and arguments of
//! the wrong size. A missing barrier shows as a result that depends on the seed. The caller must find narrower writes
//! out of bounds, with guard zones.

pub mod driver;
pub mod nccl;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

// SAFETY: the declarations are those of cpp/scheduler.cpp.
unsafe extern "C" {
    fn fovea_emulate(
        name: *const c_char,
        grid: *const c_uint,
        threads: c_uint,
        values: *const *mut c_void,
        sizes: *const u8,
        count: usize,
        seed: u64,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
    fn fovea_emulated_buffer(address: usize, bytes: usize);
    fn fovea_emulated_kernel(index: usize) -> *const c_char;
}

/// Runs kernel `name` on a `grid` of blocks of `threads` threads, in an order that `seed` draws. Each of `values` holds
/// an argument's bytes, lowest first; the kernel takes as many as `sizes` says.
///
/// # Errors
///
/// A launch that CUDA would refuse, or a fault of the kernel, with its place.
///
/// # Safety
///
/// Pointers among the values must be valid for the accesses of the kernel.
pub unsafe fn run(
    name: &str,
    grid: [u32; 3],
    threads: u32,
    values: &[u64],
    sizes: &[u8],
    seed: u64,
) -> Result<(), String> {
    let mut values = values.to_vec();
    if values.len() != sizes.len() {
        return Err(format!("{} values, {} sizes", values.len(), sizes.len()));
    }
    let name = CString::new(name).map_err(|e| e.to_string())?;
    let pointers: Vec<*mut c_void> = values
        .iter_mut()
        .map(|value| std::ptr::from_mut(value).cast())
        .collect();
    let mut error = [0u8; 512];
    // SAFETY: all pointers are to live buffers of the stated lengths; what the kernel does with its
    // arguments is the caller's promise.
    let failed = unsafe {
        fovea_emulate(
            name.as_ptr(),
            grid.as_ptr(),
            threads,
            pointers.as_ptr(),
            sizes.as_ptr(),
            sizes.len(),
            seed,
            error.as_mut_ptr().cast(),
            error.len(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&error).map_err(|e| e.to_string())?;
    Err(text.to_string_lossy().into_owned())
}

/// A buffer that kernels may access until it is dropped. A 16-byte access outside of all buffers is an error; narrower
/// ones are not checked.
#[derive(Debug)]
pub struct Buffer {
    address: u64,
}

impl Buffer {
    /// `bytes` bytes from `address` on.
    #[must_use]
    pub fn new(address: u64, bytes: usize) -> Self {
        // SAFETY: only remembers the numbers.
        unsafe { fovea_emulated_buffer(address as usize, bytes) };
        Self { address }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { fovea_emulated_buffer(self.address as usize, 0) };
    }
}

/// Names of the compiled kernels.
#[must_use]
pub fn names() -> Vec<String> {
    let name = |index| {
        // SAFETY: any index is allowed.
        let name = unsafe { fovea_emulated_kernel(index) };
        // SAFETY: if it is not null, it is a string literal of cpp/kernels.cpp.
        let text = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) });
        text.map(|text| text.to_string_lossy().into_owned())
    };
    (0..).map_while(name).collect()
}

#[cfg(test)]
mod tests;
