//! Compiles the C++ autograd nodes against the libtorch that tch links, and bakes libtorch's
//! location into this crate's test binaries. With feature `mpi`, compiles the MPI calls against the MPI of this machine.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=../kernels/src/norm/fovea_norm.h");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        panic!(
            "LIBTORCH is not set: .cargo/config.toml sets it to .libtorch/torch; run cargo inside the project after `make setup`"
        );
    };
    let include = libtorch.join("include");
    assert!(
        include.is_dir(),
        "{}: no libtorch here; run `make setup` first",
        include.display()
    );
    println!("cargo:rustc-env=FOVEA_LIBTORCH={}", libtorch.display());
    println!(
        "cargo:rustc-link-arg=-Wl,-rpath,{}",
        libtorch.join("lib").display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .opt_level(2)
        // libtorch's headers make more debug information than anybody reads.
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("../kernels/src/norm")
        .file("cpp/graph.cpp")
        .file("cpp/ops.cpp")
        .compile("fovea_ops");
    if std::env::var_os("CARGO_FEATURE_MPI").is_some() {
        mpi();
    }
}

/// Compiles `mpi/link.c` and links MPI, with the flags that MPI itself names.
fn mpi() {
    println!("cargo:rerun-if-changed=mpi");
    println!("cargo:rerun-if-changed=../scripts/mpi-flags.sh");
    for name in ["MPICC", "MPI_PKG_CONFIG", "CRAY_MPICH_DIR", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let asked = Command::new("../scripts/mpi-flags.sh").output();
    let output = asked.unwrap_or_else(|e| panic!("scripts/mpi-flags.sh: {e}"));
    assert!(
        output.status.success(),
        "feature mpi: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // One flag a line, so that a path may hold spaces.
    let text = String::from_utf8_lossy(&output.stdout);
    let mut build = cc::Build::new();
    for flag in text.lines().filter(|flag| flag.starts_with("-I")) {
        build.flag(flag);
    }
    build.pic(true).opt_level(2).file("mpi/link.c").compile("fovea_mpi");
    for flag in text.lines() {
        if let Some(directory) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={directory}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}
