//! Compiles the very `.cu` files that a GPU runs, as C++ for the CPU.

fn main() {
    println!("cargo:rerun-if-changed=../cuda");
    println!("cargo:rerun-if-changed=cpp");
    cc::Build::new()
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
        .warnings(true)
        .flag_if_supported("-Wno-unknown-pragmas")
        .file("cpp/broken.cpp")
        .file("cpp/kernels.cpp")
        .file("cpp/scheduler.cpp")
        .compile("fovea_emulate");
}
