//! The kernel sources, which the binary contains.

use crate::loss::LOSSES;

/// A file of `kernels/cuda/` or of a loss's folder.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile {
    /// File name, as in `#include` and in the compiler's messages.
    pub name: &'static str,
    /// Content of the file at build time.
    pub text: &'static str,
}

/// A file that NVRTC compiles by itself, and the kernels in it.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The `.cu` file with the kernels.
    pub file: SourceFile,
    /// Names of its `extern "C" __global__` functions.
    pub kernels: &'static [&'static str],
}

macro_rules! file {
    ($name:literal) => {
        SourceFile {
            name: $name,
            text: include_str!(concat!("../../cuda/", $name)),
        }
    };
}

/// The headers that a source may include.
pub const HEADERS: [SourceFile; 6] = [
    file!("affine.cuh"),
    file!("common.cuh"),
    file!("draw.cuh"),
    file!("shade.cuh"),
    file!("sigmoid.cuh"),
    file!("tile.cuh"),
];

/// Every source that is compiled: the files of `kernels/cuda/`, then those of the losses.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    SOURCES
        .iter()
        .chain(LOSSES.iter().map(|entry| &entry.source))
}

/// The files of `kernels/cuda/`.
static SOURCES: [Source; 6] = [
    Source {
        file: file!("patch_crop.cu"),
        kernels: &[
            "fovea_patch_crop_f32",
            "fovea_patch_crop_bf16",
            "fovea_patch_show_f32",
            "fovea_patch_show_bf16",
        ],
    },
    Source {
        file: file!("resize.cu"),
        kernels: &["fovea_resize"],
    },
    Source {
        file: file!("global_view.cu"),
        kernels: &[
            "fovea_view_rows",
            "fovea_view_mean",
            "fovea_view_f32",
            "fovea_view_bf16",
            "fovea_view_show_f32",
            "fovea_view_show_bf16",
        ],
    },
    Source {
        file: file!("fused_adam.cu"),
        kernels: &["fovea_fused_adam"],
    },
    Source {
        file: file!("flat.cu"),
        kernels: &[
            "fovea_to_bf16",
            "fovea_accumulate_bf16",
            "fovea_sum_squares",
            "fovea_sum",
        ],
    },
    Source {
        file: file!("confusion.cu"),
        kernels: &["fovea_confusion_counts"],
    },
];

/// Options of every compilation in addition to the architecture. They demand IEEE 754 arithmetic, which lets a kernel
/// give the bits of its twin: no multiply fused with an add unless the source says so, no flush of subnormals,
/// correctly rounded division and square root.
pub const OPTIONS: [&str; 5] = [
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
];
