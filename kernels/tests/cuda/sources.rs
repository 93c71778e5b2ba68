//! Every source compiles for every architecture, to its kernels.

use fovea_kernels::cuda::nvrtc::{Nvrtc, Search};
use fovea_kernels::cuda::source::{HEADERS, SourceFile, sources};
use fovea_kernels::cuda::{Arch, CompileTarget};
use rayon::prelude::*;

fn nvrtc() -> Nvrtc {
    Nvrtc::open(&Search::from_env()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_source_compiles() {
    sources().collect::<Vec<_>>().par_iter().for_each(|source| {
        let nvrtc = nvrtc();
        let file = source.file.name;
        for arch in Arch::TESTED {
            let code = nvrtc
                .compile(source, CompileTarget::Cubin(arch))
                .unwrap_or_else(|error| panic!("{error}"));
            assert!(code.starts_with(b"\x7FELF"), "{file} for {arch}");
            for kernel in source.kernels {
                let found = code.windows(kernel.len()).any(|w| w == kernel.as_bytes());
                assert!(found, "{kernel} is not in {file} for {arch}");
            }
        }
    });
}

/// A fused or approximate operation would give other bits than the twin's. Some sources fuse by name.
#[test]
fn nothing_is_fused_or_approximated() {
    let nvrtc = nvrtc();
    for source in sources() {
        let ptx = nvrtc.compile(source, CompileTarget::Ptx(Arch(80))).unwrap();
        let ptx = String::from_utf8_lossy(&ptx);
        for word in ["fma.rn", ".approx", ".ftz", "mad.f", ".full."] {
            let by_name = word == "fma.rn" && fuses(&source.file);
            assert!(
                by_name || !ptx.contains(word),
                "{} has {word}",
                source.file.name
            );
        }
    }
}

/// Whether the file, or a header that it includes, fuses by name.
fn fuses(file: &SourceFile) -> bool {
    let include =
        |header: &&SourceFile| file.text.contains(&format!("#include \"{}\"", header.name));
    file.text.contains("fmaf(") || HEADERS.iter().filter(include).any(fuses)
}

#[test]
fn the_emulator_has_the_same_kernels() {
    let mut ours: Vec<&str> = sources().flat_map(|s| s.kernels).copied().collect();
    let mut emulated = fovea_emulate::names();
    ours.sort_unstable();
    emulated.sort_unstable();
    assert_eq!(emulated, ours);
}

#[test]
fn the_tested_architectures_are_among_those_of_nvrtc() {
    let supported = nvrtc().supported().unwrap();
    assert!(
        Arch::TESTED.iter().all(|arch| supported.contains(arch)),
        "{supported:?}"
    );
}
