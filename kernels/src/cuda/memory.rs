//! Device memory for what libtorch does not hold: tables, records, tests, measurements.

use bytemuck::Pod;
use cudarc::driver::sys;

use super::device::{Kernels, check};
use super::error::Result;
use crate::error::check_len;

/// A piece of device memory, freed when dropped.
#[derive(Debug)]
pub struct DeviceBuffer<'a> {
    kernels: &'a Kernels,
    address: u64,
    bytes: usize,
}

impl<'a> DeviceBuffer<'a> {
    /// A copy of `values`; no values give no memory (address 0). Waits for the copy.
    pub fn new<T: Pod>(kernels: &'a Kernels, values: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut address = 0;
        if !bytes.is_empty() {
            let _current = kernels.enter()?;
            // SAFETY: the context is current; freed once, in drop.
            check("cuMemAlloc", unsafe {
                sys::cuMemAlloc_v2(&mut address, bytes.len())
            })?;
        }
        let mut buffer = Self {
            kernels,
            address,
            bytes: bytes.len(),
        };
        buffer.upload(values)?;
        Ok(buffer)
    }

    /// Its address: 256-byte aligned, or 0 if it is empty.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Overwrites all of it. Waits for the copy.
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        check_len(
            "values",
            "as many bytes as the device buffer",
            bytes.len(),
            self.bytes,
        )?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _current = self.kernels.enter()?;
        // SAFETY: both sides have this many bytes.
        check("cuMemcpyHtoD", unsafe {
            sys::cuMemcpyHtoD_v2(self.address, bytes.as_ptr().cast(), bytes.len())
        })
    }

    /// Copies all of it out. Waits for the default stream and the copy.
    pub fn download<T: Pod>(&self, values: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        check_len(
            "values",
            "as many bytes as the device buffer",
            bytes.len(),
            self.bytes,
        )?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _current = self.kernels.enter()?;
        // SAFETY: both sides have this many bytes.
        check("cuMemcpyDtoH", unsafe {
            sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.address, bytes.len())
        })
    }
}

impl Drop for DeviceBuffer<'_> {
    fn drop(&mut self) {
        if self.address != 0
            && let Ok(_current) = self.kernels.enter()
        {
            // SAFETY: allocated once in `new`. An error leaves nothing to do.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}
