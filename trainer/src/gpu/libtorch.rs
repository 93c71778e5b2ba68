//! Loads libtorch's CUDA side when the user asks for a GPU: the program starts without it.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};

const NAME: &str = "libtorch_cuda.so";

/// Loads the CUDA side from the folder of the process's libtorch. Call this before anything asks libtorch about GPUs,
/// because libtorch remembers the answer.
pub fn load_cuda() -> Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let folder = folder_of("libtorch_cpu.so", &maps);
    let path = folder.map_or_else(|| PathBuf::from(NAME), |folder| folder.join(NAME));
    // SAFETY: the library that belongs to the libtorch of this process; loading registers its operations.
    let loaded = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = loaded.map_err(|e| missing(&path, &e.to_string()))?;
    // Its registrations cannot be undone, so the library stays loaded.
    std::mem::forget(library);
    if tch::Cuda::is_available() {
        Ok(())
    } else {
        Err(Error::Usage {
            what: format!("{}: libtorch finds no GPU that it can use", path.display()),
            help: "its CUDA version must not be newer than the driver's (nvidia-smi shows that): update the driver, or \
                   install the libtorch build for an older CUDA as docs/gpu.md says; or train with --device cpu"
                .to_owned(),
        })
    }
}

fn missing(path: &Path, why: &str) -> Error {
    Error::Usage {
        what: format!(
            "libtorch's CUDA side cannot be loaded: {}: {why}",
            path.display()
        ),
        help: "`make setup GPU=1` fetches the libraries that it needs (cuDNN, cuBLAS, NCCL, ...); or train with --device cpu"
            .to_owned(),
    }
}

/// The folder of a library among the mappings of a process.
fn folder_of(name: &str, maps: &str) -> Option<PathBuf> {
    let line = maps
        .lines()
        .find(|line| line.rsplit('/').next() == Some(name))?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_that_of_the_loaded_library() {
        let maps = "7f00-7f01 r-xp 00000000 fe:00 12  /lib/libc.so.6\n\
                    7f10-7f20 r-xp 00000000 fe:00 42  /opt/a b/torch/lib/libtorch_cpu.so\n";
        assert_eq!(
            folder_of("libtorch_cpu.so", maps),
            Some(PathBuf::from("/opt/a b/torch/lib"))
        );
        assert_eq!(folder_of("libtorch_cuda.so", maps), None);
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let text = missing(
            Path::new("/x/libtorch_cuda.so"),
            "libcudnn.so.9: cannot open",
        )
        .to_string();
        assert!(
            text.contains("libcudnn.so.9") && text.contains("make setup GPU=1"),
            "{text}"
        );
    }
}
