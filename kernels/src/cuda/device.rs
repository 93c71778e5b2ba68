//! The GPUs that the driver shows to this process.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::arch::Arch;
use super::error::{Error, Result, check};

/// Facts about one GPU that do not change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The driver's handle, from `cuDeviceGet`.
    pub(super) handle: sys::CUdevice,
    /// Its number, counted after `CUDA_VISIBLE_DEVICES`.
    pub ordinal: u32,
    /// The driver's name for it, e.g. `NVIDIA H200`.
    pub name: String,
    /// The architecture, its compute capability.
    pub arch: Arch,
    /// All of its memory, bytes.
    pub total_bytes: usize,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// The newest CUDA version that the driver supports, in the driver's form: 1000 * major + 10 * minor.
    pub driver: u32,
}

impl Device {
    /// Number of GPUs that this process may use.
    ///
    /// # Errors
    ///
    /// No driver on this machine, or none that starts; the driver's error where there is no GPU at all.
    pub fn count() -> Result<u32> {
        open_driver()?;
        let mut count = 0;
        // SAFETY: writes one int.
        check("cuDeviceGetCount", unsafe {
            sys::cuDeviceGetCount(&mut count)
        })?;
        Ok(count as u32)
    }

    /// Reads the facts about GPU `ordinal`. Makes no context and takes no memory there.
    ///
    /// # Errors
    ///
    /// No driver, no such GPU.
    pub fn open(ordinal: u32) -> Result<Self> {
        open_driver()?;
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut handle: sys::CUdevice = 0;
        // SAFETY: writes one handle.
        check("cuDeviceGet", unsafe {
            sys::cuDeviceGet(&mut handle, number)
        })?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: writes at most 255 characters and a NUL.
        check("cuDeviceGetName", unsafe {
            sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, handle)
        })?;
        // SAFETY: the array was zero and the call above leaves a NUL in it.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let mut total_bytes = 0;
        // SAFETY: writes one size.
        check("cuDeviceTotalMem", unsafe {
            sys::cuDeviceTotalMem_v2(&mut total_bytes, handle)
        })?;
        let mut driver: c_int = 0;
        // SAFETY: writes one int.
        check("cuDriverGetVersion", unsafe {
            sys::cuDriverGetVersion(&mut driver)
        })?;
        let major = attribute(
            handle,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        )?;
        let minor = attribute(
            handle,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )?;
        Ok(Self {
            handle,
            ordinal,
            name: name.to_string_lossy().into_owned(),
            arch: Arch(10 * major + minor),
            total_bytes,
            multiprocessors: attribute(
                handle,
                Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )?,
            driver: driver as u32,
        })
    }

    /// [`Self::driver`] in the usual form, e.g. `13.0`.
    #[must_use]
    pub fn driver_version(&self) -> String {
        format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10)
    }
}

/// Starts the driver; later calls do nothing.
fn open_driver() -> Result<()> {
    // SAFETY: only looks whether the library can be opened.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::DriverMissing);
    }
    // SAFETY: cuInit may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) })
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: writes one int; `device` came from cuDeviceGet.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&mut value, attribute, device)
    })?;
    Ok(value as u32)
}
