//! Finds out which libtorch this process has loaded.

use std::fs;
use std::path::Path;

use fovea_slurm::doctor::{Libtorch, Version};

/// The libtorch that tch is made for; the same version as in scripts/setup.sh.
const LIBTORCH: Version = Version(2, 11, 0);

/// The libtorch in this process. The program is linked to it, so it is always loaded.
pub fn libtorch() -> Libtorch {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded = |name: &str| {
        maps.lines()
            .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
            .find(|path| path.file_name().is_some_and(|file| file == name))
    };
    let dir = loaded("libtorch_cpu.so").and_then(Path::parent);
    let (version, cuda) = dir.and_then(Path::parent).map_or((None, None), versions);
    Libtorch {
        dir: dir.map(Path::to_owned),
        version,
        wanted: LIBTORCH,
        cuda,
        cuda_side: loaded("libtorch_cuda.so").is_some(),
    }
}

/// Version and CUDA version of the libtorch in `root`. An unpacked archive has "2.11.0+cu130" in `build-version`; a
/// wheel has the same in quotes in `version.py`.
fn versions(root: &Path) -> (Option<Version>, Option<Version>) {
    let full = fs::read_to_string(root.join("build-version")).or_else(|_| {
        fs::read_to_string(root.join("version.py")).map(|text| {
            let line = text.lines().find(|line| line.starts_with("__version__"));
            let quoted = line.and_then(|line| line.split('\'').nth(1));
            quoted.unwrap_or_default().to_owned()
        })
    });
    let full = full.unwrap_or_default();
    // cu130 is 13.0, cu92 would be 9.2.
    let cuda = full.split_once("+cu").and_then(|(_, digits)| {
        let digits: u32 = digits.trim().parse().ok()?;
        Some(Version(digits / 10, digits % 10, 0))
    });
    (full.trim().parse().ok(), cuda)
}
