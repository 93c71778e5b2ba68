//! Where to look for NCCL, and which versions will do.

use std::fmt;
use std::path::PathBuf;

use fovea_kernels::cuda::nvrtc;

const NAME: &str = "libnccl.so.2";
/// Folder of the PyPI wheel, from libtorch's own.
const BESIDE_LIBTORCH: &str = "../../nvidia/nccl/lib";

/// Where to look for NCCL, in this order: `chosen` and nothing else if it is set; beside libtorch; the
/// system's loader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NcclSearch {
    /// The library, or the folder that holds it.
    pub chosen: Option<PathBuf>,
    /// The `lib` folder of libtorch.
    pub libtorch: Option<PathBuf>,
}

impl NcclSearch {
    /// From the environment: `FOVEA_NCCL`, and the folder of the libtorch that this process has loaded, else
    /// that of `LIBTORCH`.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            chosen: std::env::var_os("FOVEA_NCCL")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            libtorch: nvrtc::Search::from_env().libtorch,
        }
    }

    /// Paths (and, last, the bare name for the loader) to try in order.
    pub(super) fn candidates(&self) -> Vec<PathBuf> {
        if let Some(chosen) = &self.chosen {
            return vec![match chosen.is_dir() {
                true => chosen.join(NAME),
                false => chosen.clone(),
            }];
        }
        let beside = self.libtorch.as_ref();
        let beside = beside.map(|folder| folder.join(BESIDE_LIBTORCH).join(NAME));
        beside
            .filter(|path| path.exists())
            .into_iter()
            .chain([PathBuf::from(NAME)])
            .collect()
    }
}

/// A version as `ncclGetVersion` gives it: 10000 major + 100 minor + patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NcclVersion(pub i32);

impl NcclVersion {
    /// The first with communicators that do not block, which is what makes an abort possible at any time.
    pub const OLDEST: Self = Self(2_14_00);

    /// What to tell the user of a version that is known to hang or to damage data.
    pub(super) fn warning(self) -> Option<String> {
        (2_28_03..=2_28_08).contains(&self.0).then(|| {
            format!(
                "NCCL {self} is known to hang and to corrupt sums (2.28.3 to 2.28.8 are)\n  help: install NCCL 2.27 \
                 or 2.29 and set FOVEA_NCCL to its {NAME}"
            )
        })
    }
}

impl fmt::Display for NcclVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Up to 2.8 the number was 1000 major + 100 minor + patch.
        let unit = if self.0 < 10_000 { 1000 } else { 10_000 };
        let (major, minor) = (self.0 / unit, self.0 % unit / 100);
        write!(f, "{major}.{minor}.{}", self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        for (number, text) in [(2_27_03, "2.27.3"), (2_14_00, "2.14.0"), (2_708, "2.7.8")] {
            assert_eq!(NcclVersion(number).to_string(), text);
        }
        assert!(NcclVersion(2_13_04) < NcclVersion::OLDEST);
    }

    #[test]
    fn exactly_the_bad_versions_are_warned_of() {
        let bad: Vec<i32> = (2_14_00..2_31_00)
            .filter(|number| NcclVersion(*number).warning().is_some())
            .collect();
        assert_eq!(bad, (2_28_03..=2_28_08).collect::<Vec<_>>());
        let warning = NcclVersion(2_28_05).warning().unwrap_or_default();
        assert!(
            warning.contains("NCCL 2.28.5") && warning.contains("2.27 or 2.29"),
            "{warning}"
        );
    }

    #[test]
    fn a_chosen_library_is_the_only_candidate() {
        let folder = std::env::temp_dir();
        let of = |chosen: Option<&str>, libtorch: Option<PathBuf>| NcclSearch {
            chosen: chosen.map(PathBuf::from),
            libtorch,
        };
        let chosen = of(Some("/x/libnccl.so.2.27"), Some(folder.clone()));
        assert_eq!(chosen.candidates(), [PathBuf::from("/x/libnccl.so.2.27")]);
        let in_folder = of(folder.to_str(), None);
        assert_eq!(in_folder.candidates(), [folder.join(NAME)]);
        assert_eq!(
            of(None, Some("/nowhere".into())).candidates(),
            [PathBuf::from(NAME)]
        );
    }
}
