//! The choice of an instruction set at run time.
//!
//! A kernel's inner loop is written once, as plain Rust that the compiler can vectorise, and compiled three times: for
//! AVX-512, for AVX2 and for the baseline. Rust neither fuses a multiply with an add nor reorders floating-point
//! operations, so the three give the same bits; the tests check every kernel.

/// An instruction set that this machine was found to have.
///
/// Values come from [`SimdLevel::detect`] and [`SimdLevel::available`] only; this makes calling the specialised code
/// sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SimdLevel(InstructionSet);

/// The instruction sets that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// The instruction set that the build targets.
    Portable,
    /// AVX2, with 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl SimdLevel {
    /// The widest instruction set of this machine.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return Self(InstructionSet::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(InstructionSet::Avx2);
            }
        }
        Self(InstructionSet::Portable)
    }

    /// Which of the compiled versions to call.
    pub(crate) fn isa(self) -> InstructionSet {
        self.0
    }

    /// Every instruction set that this machine can run, the portable one first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        match Self::detect().0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => vec![
                Self(InstructionSet::Portable),
                Self(InstructionSet::Avx2),
                Self(InstructionSet::Avx512),
            ],
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => {
                vec![Self(InstructionSet::Portable), Self(InstructionSet::Avx2)]
            }
            InstructionSet::Portable => vec![Self(InstructionSet::Portable)],
        }
    }
}

/// Defines a function that takes a [`SimdLevel`] before its own arguments and runs its body compiled for that
/// instruction set. Functions that the body calls must be `#[inline(always)]` to be compiled along.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::simd::SimdLevel, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            match level.isa() {
                // SAFETY: a SimdLevel of this kind exists only where detection found the features.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::InstructionSet::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::InstructionSet::Avx2 => unsafe { avx2($($arg),*) },
                $crate::simd::InstructionSet::Portable => portable($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
