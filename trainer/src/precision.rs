//! The dtype of convolutions.

use tch::Kind;

use fovea_run::config::Precision as PrecisionChoice;

/// Dtype of convolutions and their activations. Everything else (statistics, fusion, loss,
/// reduction, optimizer, master weights) is f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 for everything, convolutions included.
    F32,
    /// bfloat16 convolutions and activations with f32 master weights.
    Bf16,
}

impl Precision {
    /// Resolves the configured choice for a device; `native` says whether it multiplies bf16 natively.
    pub fn resolve(choice: PrecisionChoice, native: bool) -> Self {
        match choice {
            PrecisionChoice::F32 => Self::F32,
            PrecisionChoice::Bf16 => Self::Bf16,
            PrecisionChoice::Auto if native => Self::Bf16,
            PrecisionChoice::Auto => Self::F32,
        }
    }

    /// libtorch's name of the dtype.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// The dtype's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Whether this processor multiplies bf16 natively (AVX512-BF16, which AMX processors have too).
pub fn native_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
