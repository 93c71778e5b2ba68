//! What can go wrong between this crate and CUDA.

use super::arch::Arch;

/// A call that CUDA or this crate refused. The first line says what, the second, starting with
/// `  help: `, what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An operation does not fit together.
    #[error(transparent)]
    Argument(#[from] crate::Error),
    /// No libnvrtc was found, or none that can be used.
    #[error(
        "no NVRTC library that can be loaded; tried {tried}\n  help: make setup fetches it beside \
         libtorch; elsewhere: python3 -m pip install 'nvidia-cuda-nvrtc==13.0.*', and set FOVEA_NVRTC \
         to its libnvrtc.so.13 (or the folder that holds it)"
    )]
    NvrtcMissing {
        /// Each place and what the loader said.
        tried: String,
    },
    /// NVRTC failed other than by refusing the source.
    #[error(
        "NVRTC {version}: {call} failed with {code} ({text})\n  help: check that libnvrtc and \
         libnvrtc-builtins are of one version and lie in one folder"
    )]
    Nvrtc {
        /// Version of the library.
        version: String,
        /// The function that failed.
        call: &'static str,
        /// Its nvrtcResult.
        code: i32,
        /// NVRTC's words for the code.
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
        /// Version of NVRTC.
        version: String,
        /// The compiler's messages.
        log: String,
    },
    /// No CUDA driver on this machine.
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
        /// Its CUresult.
        code: u32,
        /// The driver's name and words for the code.
        text: String,
        /// What the user can do.
        help: &'static str,
    },
    /// A GPU, or an NVRTC, of another time.
    #[error(
        "{what} is {arch}, and the oldest that {who} compiles for is {oldest}\n  help: use a GPU of that \
         compute capability or newer, or an older NVRTC (FOVEA_NVRTC)"
    )]
    TooOld {
        /// The device.
        what: String,
        /// Its architecture.
        arch: Arch,
        /// The compiler.
        who: String,
        /// Its oldest target.
        oldest: Arch,
    },
}

/// Result of a call into [`crate::cuda`].
pub type Result<T> = std::result::Result<T, Error>;
