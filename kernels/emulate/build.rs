//! Compiles the same `.cu` files that a GPU runs, as C++ for the CPU: into this crate, and into a library that
//! replaces the CUDA driver.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=../cuda");
    println!("cargo:rerun-if-changed=cpp");
    let emulator = compiler()
        .file("cpp/broken.cpp")
        .file("cpp/kernels.cpp")
        .file("cpp/scheduler.cpp")
        .compile_intermediates();
    let driver = compiler()
        .file("cpp/driver/driver.cpp")
        .file("cpp/driver/graph.cpp")
        .file("cpp/driver/memory.cpp")
        .file("cpp/driver/stream.cpp")
        .compile_intermediates();
    let folder = folder("driver");
    let standin = folder.join("libcuda.so.1");
    share("libcuda.so.1", &standin, &[&emulator[..], &driver].concat());
    // The driver's other name, by which cudarc looks for it first: nothing but a reference to the stand-in.
    share("libcuda.so", &folder.join("libcuda.so"), &[standin]);
    println!("cargo:rustc-env=FOVEA_STANDIN={}", folder.display());
    nccl();
    // Last, as it tells cargo what to link.
    compiler().objects(&emulator).compile("fovea_emulate");
}

/// A library that takes the place of NCCL. It finds the stand-in for the driver in the process.
fn nccl() {
    let parts = compiler().file("cpp/nccl/nccl.cpp").compile_intermediates();
    let standin = folder("nccl").join("libnccl.so.2");
    share("libnccl.so.2", &standin, &parts);
    println!("cargo:rustc-env=FOVEA_STANDIN_NCCL={}", standin.display());
}

/// A folder for libraries. Not OUT_DIR itself: cargo has the loader look there, and every test would find a driver.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(name);
    std::fs::create_dir_all(&folder).expect("OUT_DIR can be written");
    folder
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include("../cuda")
        .include("cpp")
        // As NVRTC is told: no multiply is fused with an add behind the source's back.
        .flag("-ffp-contract=off")
        // Kernels read bytes, words and vectors of one buffer.
        .flag("-fno-strict-aliasing")
        // A checked longjmp refuses to leave a fiber's stack.
        .flag("-U_FORTIFY_SOURCE")
        // The emulator in the stand-in must not be that of the program which loads it.
        .flag("-fvisibility=hidden")
        .pic(true)
        .warnings(true)
        .flag_if_supported("-Wno-unknown-pragmas");
    build
}

/// Links `parts` into the shared library `path`, found as `name` once it is loaded.
fn share(name: &str, path: &Path, parts: &[PathBuf]) {
    let mut command = compiler().get_compiler().to_command();
    command
        .arg("-shared")
        .arg(format!("-Wl,-soname,{name},--no-as-needed,-z,defs"))
        .arg("-o")
        .arg(path)
        .args(parts);
    let status = command.status().expect("the C++ compiler can be run");
    assert!(status.success(), "{command:?}: {status}");
}
