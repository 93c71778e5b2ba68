//! Errors between this crate and CUDA.

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult as Code};

use super::arch::Arch;

/// A call that CUDA or this crate refused. The first line gives the problem; the second, which starts with `  help: `,
/// says what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The arguments of an operation do not fit together.
    #[error(transparent)]
    Argument(#[from] crate::Error),
    /// No usable libnvrtc was found.
    #[error(
        "no NVRTC library that can be loaded; tried {tried}\n  help: make setup fetches it beside \
         libtorch; elsewhere: python3 -m pip install 'nvidia-cuda-nvrtc==13.0.*', and set FOVEA_NVRTC \
         to its libnvrtc.so.13 (or the folder that holds it)"
    )]
    NvrtcMissing {
        /// Each place that was tried, with the loader's message.
        tried: String,
    },
    /// NVRTC failed for another reason than an error in the source.
    #[error(
        "NVRTC {version}: {call} failed with {code} ({text})\n  help: check that libnvrtc and \
         libnvrtc-builtins are of one version and lie in one folder"
    )]
    Nvrtc {
        /// NVRTC's version, e.g. `13.0`.
        version: String,
        /// The function that failed.
        call: &'static str,
        /// The `nvrtcResult` that it returned.
        code: i32,
        /// NVRTC's description of the code.
        text: String,
    },
    /// A kernel source does not compile.
    #[error(
        "{file} does not compile for {arch} with NVRTC {version}:\n{log}\n  help: use the NVRTC that make \
         setup fetches (FOVEA_NVRTC chooses another); if it is that one, report it"
    )]
    Compile {
        /// Name of the source.
        file: &'static str,
        /// The architecture it was compiled for.
        arch: Arch,
        /// NVRTC's version, e.g. `13.0`.
        version: String,
        /// The compiler's messages, with line numbers.
        log: String,
    },
    /// This machine has no CUDA driver.
    #[error(
        "no CUDA driver on this machine: libcuda.so.1 cannot be loaded\n  help: install the NVIDIA \
         driver (nvidia-smi shows whether it works), in a container pass --gpus all (Docker) or --nv \
         (Apptainer); or train on the CPU"
    )]
    DriverMissing,
    /// The driver refused a call.
    #[error("CUDA: {call} failed with {code} ({text})\n  help: {help}")]
    Driver {
        /// The function that failed.
        call: &'static str,
        /// The `CUresult` that it returned.
        code: u32,
        /// The driver's name and description of the code.
        text: String,
        /// What the user can do.
        help: &'static str,
    },
    /// The GPU is older than the oldest architecture that this NVRTC compiles for.
    #[error(
        "{what} is {arch}, and the oldest that {who} compiles for is {oldest}\n  help: use a GPU of that \
         compute capability or newer, or an older NVRTC (FOVEA_NVRTC)"
    )]
    TooOld {
        /// The GPU's number and name.
        what: String,
        /// The GPU's architecture (compute capability).
        arch: Arch,
        /// The compiler: NVRTC with its version.
        who: String,
        /// The oldest architecture that the compiler supports.
        oldest: Arch,
    },
}

/// Result of a call into [`crate::cuda`].
pub type Result<T> = std::result::Result<T, Error>;

/// The driver's answer as a result.
pub(super) fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    if code == Code::CUDA_SUCCESS {
        return Ok(());
    }
    let error = DriverError(code);
    let words = |text: std::result::Result<&std::ffi::CStr, DriverError>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => "unknown".to_owned(),
    };
    Err(Error::Driver {
        call,
        code: code as u32,
        text: format!(
            "{}: {}",
            words(error.error_name()),
            words(error.error_string())
        ),
        help: match code {
            Code::CUDA_ERROR_NO_DEVICE | Code::CUDA_ERROR_INVALID_DEVICE => {
                "nvidia-smi -L lists the GPUs, CUDA_VISIBLE_DEVICES may hide some; in a batch job ask for one"
            }
            Code::CUDA_ERROR_OUT_OF_MEMORY if call == "cuMemHostAlloc" => {
                "the host has not that much memory that can be locked: use a smaller batch or fewer ranks per host, or \
                 ask for more memory in a batch job"
            }
            Code::CUDA_ERROR_OUT_OF_MEMORY => {
                "use a smaller batch, or end what else is on this GPU (nvidia-smi shows it)"
            }
            Code::CUDA_ERROR_NO_BINARY_FOR_GPU
            | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | Code::CUDA_ERROR_INVALID_PTX => {
                "the driver is older than NVRTC: update it, or set FOVEA_NVRTC to an NVRTC of the \
                 driver's CUDA version (nvidia-smi shows it)"
            }
            Code::CUDA_ERROR_NOT_READY => "wait for the event first",
            Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => {
                "something waited for a stream that was being captured, or captured the default stream: wait before, \
                 and capture a stream of its own"
            }
            _ => "the work on this GPU is lost; nvidia-smi and dmesg say whether the GPU is well",
        },
    })
}
