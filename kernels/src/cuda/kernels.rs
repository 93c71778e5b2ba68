//! Compiles, loads and launches the kernels of one GPU.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys;

use super::arch::CompileTarget;
use super::cache::{CacheOutcome, entry_name, get_or_compile};
use super::device::Device;
use super::error::{Error, Result, check};
use super::launch::{Launch, Op};
use super::nvrtc::{Nvrtc, Search};
use super::source::sources;

/// Driver version from which functions can be loaded before their first launch.
const WITH_FUNC_LOAD: u32 = 12_040;

/// All kernels, loaded into the primary context of one GPU (the one libtorch uses).
#[derive(Debug)]
pub struct Kernels {
    device: Device,
    context: sys::CUcontext,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: contexts, modules and functions may be used from any thread (CUDA driver API, "Context
// Management"); every call makes the context current in its thread first.
unsafe impl Send for Kernels {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Compiles all kernels for GPU `ordinal` (counted after `CUDA_VISIBLE_DEVICES`), or takes them from the folder
    /// `cache`, and loads them. An unusable cache costs a warning in the log and the compilation.
    ///
    /// # Errors
    ///
    /// No driver, no such GPU, no NVRTC, or a GPU too old for it; the message says what to install.
    pub fn load(ordinal: u32, search: &Search, cache: Option<&Path>) -> Result<Arc<Self>> {
        let device = Device::open(ordinal)?;
        let nvrtc = Nvrtc::open(search)?;
        let target = target(&nvrtc, &device)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: released once, in drop.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, device.handle)
        })?;
        // From here on, drop cleans up.
        let mut kernels = Self {
            device,
            context,
            modules: Vec::new(),
            functions: HashMap::new(),
        };
        for source in sources() {
            let compile = || nvrtc.compile(source, target);
            let code = match cache {
                None => compile()?,
                Some(folder) => {
                    let name = entry_name(source, target, nvrtc.version());
                    let (code, outcome) = get_or_compile(folder, &name, compile)?;
                    match outcome {
                        CacheOutcome::Hit | CacheOutcome::Stored => {}
                        CacheOutcome::Replaced(why) => {
                            tracing::warn!("compiled a GPU kernel again: {why}");
                        }
                        CacheOutcome::NotStored(why) => tracing::warn!(
                            "compiled GPU kernels cannot be kept, every start compiles them: {why}"
                        ),
                    }
                    code
                }
            };
            kernels.load_module(code, source.kernels)?;
        }
        Ok(Arc::new(kernels))
    }

    fn load_module(&mut self, mut code: Vec<u8>, names: &[&'static str]) -> Result<()> {
        let current = self.enter()?;
        let mut module = std::ptr::null_mut();
        code.push(0); // PTX has to end in NUL; machine code does not mind
        // SAFETY: complete machine code or PTX in memory, which the call copies.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut module, code.as_ptr().cast())
        })?;
        let mut functions = Vec::new();
        for &name in names {
            let text = std::ffi::CString::new(name).map_err(|_| crate::Error::Argument {
                what: "the name of a kernel",
                limit: "text without NUL",
                actual: name.into(),
                help: "rename it in kernels/cuda",
            })?;
            let mut function = std::ptr::null_mut();
            // SAFETY: a live module and a name that ends in NUL.
            check("cuModuleGetFunction", unsafe {
                sys::cuModuleGetFunction(&mut function, module, text.as_ptr())
            })?;
            if self.device.driver >= WITH_FUNC_LOAD {
                // Loading at the first launch would synchronise, which a stream capture forbids.
                // SAFETY: a live function; drivers have the call from this version on.
                check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) })?;
            }
            functions.push((name, function));
        }
        drop(current);
        self.modules.push(module);
        self.functions.extend(functions);
        Ok(())
    }

    /// The GPU that the kernels are loaded on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Memory of the GPU that no process has taken, bytes.
    ///
    /// # Errors
    ///
    /// The error of earlier work on the device.
    pub fn free_bytes(&self) -> Result<usize> {
        let (mut free, mut total) = (0, 0);
        let _current = self.enter()?;
        // SAFETY: writes two sizes.
        check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        })?;
        Ok(free)
    }

    /// Checks `op` and launches it on `stream`: a `CUstream`, or the handle that `cudaStream_t` and
    /// `c10::cuda::CUDAStream` hold; 0 is the legacy default stream. Returns at once.
    ///
    /// # Errors
    ///
    /// The arguments of `op` do not fit together; the driver's error.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU, and the addresses in `op` must be of device memory of
    /// the lengths that it documents, valid until the work on the stream is done.
    pub unsafe fn run(&self, stream: usize, op: &(impl Op + ?Sized)) -> Result<()> {
        let launches = op.launches()?;
        let _current = self.enter()?;
        for launch in &launches {
            // SAFETY: as promised by the caller.
            unsafe { self.launch(stream, launch)? };
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Self::run`], with the context current.
    unsafe fn launch(&self, stream: usize, launch: &Launch) -> Result<()> {
        let mut values = launch.values().to_vec();
        let mut arguments: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| std::ptr::from_mut(value).cast())
            .collect();
        let Some(&function) = self.functions.get(launch.kernel()) else {
            return Err(crate::Error::Argument {
                what: "a launch's kernel",
                limit: "those of cuda::source::sources",
                actual: launch.kernel().into(),
                help: "list the kernel with its source",
            }
            .into());
        };
        let [x, y, z] = launch.grid();
        // SAFETY: the arguments are those of the kernel (the emulator's tests compare number and sizes),
        // lowest byte first, and are copied by the call.
        let code = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads(),
                1,
                1,
                0,
                stream as sys::CUstream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", code)
    }

    /// Waits until all work on `stream` is done. For tests and measurements.
    ///
    /// # Errors
    ///
    /// The error of work on the device since.
    ///
    /// # Safety
    ///
    /// `stream` must be a live stream of this GPU.
    pub unsafe fn synchronize(&self, stream: usize) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: as promised by the caller.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(stream as sys::CUstream)
        })
    }

    /// Makes the context current in this thread until the result is dropped, for libraries that use the current
    /// context, such as NCCL.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn enter(&self) -> Result<Current> {
        // SAFETY: the context lives as long as self, and Current is dropped in this thread.
        check("cuCtxPushCurrent", unsafe {
            sys::cuCtxPushCurrent_v2(self.context)
        })?;
        Ok(Current {
            _this_thread: std::marker::PhantomData,
        })
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            for &module in &self.modules {
                // SAFETY: loaded once, unloaded once. An error, as at the end of the process when the
                // driver is already gone, leaves nothing to do.
                unsafe { sys::cuModuleUnload(module) };
            }
        }
        // SAFETY: retained once in `load`.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device.handle) };
    }
}

/// A context that is current in this thread, until it is dropped. See [`Kernels::enter`].
#[derive(Debug)]
#[must_use]
pub struct Current {
    /// Contexts are current per thread: this must not move to another.
    _this_thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut old = std::ptr::null_mut();
        // SAFETY: undoes the push of `enter` in the same thread.
        unsafe { sys::cuCtxPopCurrent_v2(&mut old) };
    }
}

fn target(nvrtc: &Nvrtc, device: &Device) -> Result<CompileTarget> {
    let supported = nvrtc.supported()?;
    let arch = device.arch;
    CompileTarget::choose(arch, &supported).ok_or_else(|| Error::TooOld {
        what: format!("GPU {} ({})", device.ordinal, device.name),
        arch,
        who: format!("NVRTC {}", nvrtc.version()),
        oldest: supported.iter().copied().min().unwrap_or(arch),
    })
}
