//! Every source compiles for every architecture, to its kernels.

use fovea_kernels::cuda::nvrtc::{Nvrtc, Search};
use fovea_kernels::cuda::source::SOURCES;
use fovea_kernels::cuda::{Arch, Target};

fn nvrtc() -> Nvrtc {
    Nvrtc::open(&Search::from_env()).unwrap_or_else(|error| panic!("{error}"))
}

fn compiles(file: &str) {
    let nvrtc = nvrtc();
    let source = SOURCES.iter().find(|s| s.file.name == file).unwrap();
    for arch in Arch::TESTED {
        let code = nvrtc
            .compile(source, Target::Cubin(arch))
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(code.starts_with(b"\x7FELF"), "{file} for {arch}");
        for kernel in source.kernels {
            let found = code.windows(kernel.len()).any(|w| w == kernel.as_bytes());
            assert!(found, "{kernel} is not in {file} for {arch}");
        }
    }
}

macro_rules! compile_tests {
    ($($test:ident: $file:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                compiles($file);
            }
        )*

        #[test]
        fn every_source_has_its_test() {
            let tested = [$($file),*];
            assert_eq!(SOURCES.map(|s| s.file.name), tested);
        }
    };
}

compile_tests! {
    patch_crop_compiles: "patch_crop.cu",
    resize_compiles: "resize.cu",
    global_view_compiles: "global_view.cu",
    focal_loss_compiles: "focal_loss.cu",
    fused_adam_compiles: "fused_adam.cu",
    flat_compiles: "flat.cu",
}

/// A fused or approximate operation would give other bits than the twin's. focal_loss.cu fuses by name.
#[test]
fn nothing_is_fused_or_approximated() {
    let nvrtc = nvrtc();
    for source in &SOURCES {
        let ptx = nvrtc.compile(source, Target::Ptx(Arch(80))).unwrap();
        let ptx = String::from_utf8_lossy(&ptx);
        for word in ["fma.rn", ".approx", ".ftz", "mad.f", ".full."] {
            let by_name = source.file.name == "focal_loss.cu" && word == "fma.rn";
            assert!(
                by_name || !ptx.contains(word),
                "{} has {word}",
                source.file.name
            );
        }
    }
}

#[test]
fn the_emulator_has_the_same_kernels() {
    let ours: Vec<&str> = SOURCES.iter().flat_map(|s| s.kernels).copied().collect();
    assert_eq!(fovea_emulate::names(), ours);
}

#[test]
fn the_tested_architectures_are_among_those_of_nvrtc() {
    let supported = nvrtc().supported().unwrap();
    assert!(
        Arch::TESTED.iter().all(|arch| supported.contains(arch)),
        "{supported:?}"
    );
}
