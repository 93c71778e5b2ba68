//! Device memory, host memory that both sides can reach, and copies between them. Fovea's device memory holds tables,
//! records, tests and measurements; tensors are libtorch's.

use std::ffi::c_void;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys;

use super::error::{Result, check};
use super::kernels::Kernels;
use crate::error::check_len;

/// A piece of device memory, freed when dropped. No work that was started may still use it then.
#[derive(Debug)]
pub struct DeviceBuffer {
    kernels: Arc<Kernels>,
    address: u64,
    bytes: usize,
}

impl DeviceBuffer {
    /// `bytes` bytes of any content; for 0 bytes no memory is allocated (address 0).
    ///
    /// # Errors
    ///
    /// No memory is left; the error of earlier work on the device.
    pub fn uninit(kernels: &Arc<Kernels>, bytes: usize) -> Result<Self> {
        let mut address = 0;
        if bytes > 0 {
            let _current = kernels.enter()?;
            // SAFETY: the context is current; freed once, in drop.
            check("cuMemAlloc", unsafe {
                sys::cuMemAlloc_v2(&mut address, bytes)
            })?;
        }
        Ok(Self {
            kernels: Arc::clone(kernels),
            address,
            bytes,
        })
    }

    /// A copy of `values`; without values no memory is allocated (address 0). Waits for the copy.
    ///
    /// # Errors
    ///
    /// As [`Self::uninit`].
    pub fn new<T: Pod>(kernels: &Arc<Kernels>, values: &[T]) -> Result<Self> {
        let mut buffer = Self::uninit(kernels, size_of_val(values))?;
        buffer.upload(values)?;
        Ok(buffer)
    }

    /// Its address: 256-byte aligned, or 0 if it is empty.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length of the buffer, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Overwrites the whole buffer. Waits for the copy, so every stream sees it.
    ///
    /// # Errors
    ///
    /// The length of `values` is not [`Self::bytes`]; the error of earlier work on the device.
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.copy(bytes.len(), |address| {
            // SAFETY: both sides have this many bytes.
            check("cuMemcpyHtoD", unsafe {
                sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len())
            })?;
            // The copy above may return while the last bytes are still on their way.
            // SAFETY: the default stream always lives.
            check("cuStreamSynchronize", unsafe {
                sys::cuStreamSynchronize(std::ptr::null_mut())
            })
        })
    }

    /// Copies the whole buffer to `values`. Waits for the default stream and the copy, not for other streams.
    ///
    /// # Errors
    ///
    /// As [`Self::upload`].
    pub fn download<T: Pod>(&self, values: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        self.copy(bytes.len(), |address| {
            // SAFETY: both sides have this many bytes.
            check("cuMemcpyDtoH", unsafe {
                sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, bytes.len())
            })
        })
    }

    /// Runs `copy` with the context current, if `bytes` is the length of the buffer and not 0.
    fn copy(&self, bytes: usize, copy: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        let expected = "as many bytes as the device buffer";
        check_len("values", expected, bytes, self.bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.kernels.enter()?;
        copy(self.address)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.address != 0
            && let Ok(_current) = self.kernels.enter()
        {
            // SAFETY: allocated once in `uninit`. An error leaves nothing to do.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Page-locked host memory: asynchronous copies need it to run at the same time as other work. Zero at first, freed
/// when dropped: no copy that was started may still use it then.
#[derive(Debug)]
pub struct PinnedBuffer {
    kernels: Arc<Kernels>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its memory, which is reached from any thread; &self only reads.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `bytes` zeros; for 0 bytes no memory is allocated.
    ///
    /// # Errors
    ///
    /// The host has no memory left that can be locked.
    pub fn new(kernels: &Arc<Kernels>, bytes: usize) -> Result<Self> {
        let mut start = std::ptr::null_mut();
        if bytes > 0 {
            let _current = kernels.enter()?;
            // SAFETY: the context is current; freed once, in drop.
            check("cuMemHostAlloc", unsafe {
                sys::cuMemHostAlloc(&mut start, bytes, sys::CU_MEMHOSTALLOC_PORTABLE)
            })?;
            // SAFETY: a new allocation of this many bytes.
            unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        }
        Ok(Self {
            kernels: Arc::clone(kernels),
            start: start.cast(),
            bytes,
        })
    }

    /// Length of the buffer, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its address, the same on the host and on the device; page aligned, or 0 if it is empty.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Its start, for the asynchronous copies.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// All whole `T` that fit.
    #[must_use]
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        match self.elements::<T>() {
            0 => &[],
            // SAFETY: initialised memory of at least this many T, page aligned, and any bytes are a T. The caller that
            // starts a copy has promised that nobody reads the memory until the copy is done.
            count => unsafe { std::slice::from_raw_parts(self.start.cast(), count) },
        }
    }

    /// All whole `T` that fit.
    #[must_use]
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        match self.elements::<T>() {
            0 => &mut [],
            // SAFETY: as in `as_slice`; self is borrowed mutably.
            count => unsafe { std::slice::from_raw_parts_mut(self.start.cast(), count) },
        }
    }

    fn elements<T>(&self) -> usize {
        const { assert!(align_of::<T>() <= 4096, "memory is page aligned, no more") };
        self.bytes.checked_div(size_of::<T>()).unwrap_or(0)
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if !self.start.is_null()
            && let Ok(_current) = self.kernels.enter()
        {
            // SAFETY: allocated once in `new`. An error leaves nothing to do.
            unsafe { sys::cuMemFreeHost(self.start.cast()) };
        }
    }
}

/// Copies that a stream runs in its order. They return at once, except with pageable host memory, for which the driver
/// may wait. 0 bytes do nothing.
impl Kernels {
    /// Copies `bytes` bytes from the host to the device.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU. Until the copy is done, `device` must be device memory and `host`
    /// initialised host memory of at least this many bytes; nobody may write the host's or use the device's.
    pub unsafe fn copy_to_device_async(
        &self,
        stream: usize,
        device: u64,
        host: *const u8,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: as promised by the caller.
        self.started("cuMemcpyHtoDAsync", bytes, || unsafe {
            sys::cuMemcpyHtoDAsync_v2(device, host.cast(), bytes, stream as sys::CUstream)
        })
    }

    /// Copies `bytes` bytes from the device to the host.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// As for [`Self::copy_to_device_async`], but until the copy is done nobody may write the device's memory or use
    /// the host's, not even to read it.
    pub unsafe fn copy_to_host_async(
        &self,
        stream: usize,
        host: *mut u8,
        device: u64,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: as promised by the caller.
        self.started("cuMemcpyDtoHAsync", bytes, || unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                host.cast::<c_void>(),
                device,
                bytes,
                stream as sys::CUstream,
            )
        })
    }

    /// Copies `bytes` bytes from `source` to `target`, both on this GPU.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU. Until the copy is done, both addresses must be of device memory of
    /// at least this many bytes, which do not overlap, and no other stream may write the source's or use the target's.
    pub unsafe fn copy_on_device_async(
        &self,
        stream: usize,
        target: u64,
        source: u64,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: as promised by the caller.
        self.started("cuMemcpyDtoDAsync", bytes, || unsafe {
            sys::cuMemcpyDtoDAsync_v2(target, source, bytes, stream as sys::CUstream)
        })
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Errors
    ///
    /// The driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU. Until it is done, `device` must be device memory of at least this
    /// many bytes, which no other stream uses.
    pub unsafe fn fill_async(
        &self,
        stream: usize,
        device: u64,
        value: u8,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: as promised by the caller.
        self.started("cuMemsetD8Async", bytes, || unsafe {
            sys::cuMemsetD8Async(device, value, bytes, stream as sys::CUstream)
        })
    }

    fn started(
        &self,
        call: &'static str,
        bytes: usize,
        start: impl FnOnce() -> sys::CUresult,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        check(call, start())
    }
}
