//! Compiles the C++ autograd nodes against the libtorch that tch links, and stores libtorch's location in this crate's
//! test binaries.

use std::path::PathBuf;

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
        // libtorch's headers make far more debug information than anyone needs.
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("../kernels/src/norm")
        .file("cpp/graph.cpp")
        .file("cpp/ops.cpp")
        .compile("fovea_ops");
}
