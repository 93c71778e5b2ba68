//! The choice of the machine code to ask NVRTC for.

use std::fmt;

/// A compute capability, as in `sm_90`: 10 * major + minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch(pub u32);

impl Arch {
    /// Architectures that every release is compiled for in the tests: Turing, A100, Ampere, Ada, Hopper, Blackwell.
    pub const TESTED: [Self; 6] = [Self(75), Self(80), Self(86), Self(89), Self(90), Self(100)];
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

/// The kind of code that the compiler makes for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompileTarget {
    /// Machine code of exactly this architecture.
    Cubin(Arch),
    /// PTX for this, older, architecture, which the driver translates.
    Ptx(Arch),
}

impl CompileTarget {
    /// The best target for a device of `arch` among those that the compiler supports; none if all are newer than the
    /// device.
    #[must_use]
    pub fn choose(arch: Arch, supported: &[Arch]) -> Option<Self> {
        if supported.contains(&arch) {
            return Some(Self::Cubin(arch));
        }
        let older = supported.iter().copied().filter(|&known| known < arch);
        older.max().map(Self::Ptx)
    }

    /// The architecture that the code is compiled for.
    #[must_use]
    pub fn arch(self) -> Arch {
        match self {
            Self::Cubin(arch) | Self::Ptx(arch) => arch,
        }
    }

    /// The compiler's option for the target.
    pub(super) fn option(self) -> String {
        match self {
            Self::Cubin(arch) => format!("--gpu-architecture=sm_{}", arch.0),
            Self::Ptx(arch) => format!("--gpu-architecture=compute_{}", arch.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_newer_than_the_compiler_get_ptx_and_older_ones_nothing() {
        let known = [Arch(75), Arch(90), Arch(100)];
        assert_eq!(
            CompileTarget::choose(Arch(90), &known),
            Some(CompileTarget::Cubin(Arch(90)))
        );
        assert_eq!(
            CompileTarget::choose(Arch(89), &known),
            Some(CompileTarget::Ptx(Arch(75)))
        );
        assert_eq!(
            CompileTarget::choose(Arch(130), &known),
            Some(CompileTarget::Ptx(Arch(100)))
        );
        assert_eq!(CompileTarget::choose(Arch(70), &known), None);
        let ptx = CompileTarget::Ptx(Arch(75));
        assert_eq!(
            (ptx.arch(), Arch(75).to_string()),
            (Arch(75), "sm_75".into())
        );
        assert_eq!(ptx.option(), "--gpu-architecture=compute_75");
    }
}
