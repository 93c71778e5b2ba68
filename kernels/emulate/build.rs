//! Compiles the `.cu` files that a GPU runs as C++ for the CPU: into this crate, and into a library that replaces the
//! CUDA driver.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=../cuda");
    println!("cargo:rerun-if-changed=cpp");
    // The list of losses, because a new loss adds a row to it.
    println!("cargo:rerun-if-changed=../src/loss/mod.rs");
    let generated = folder("kernels");
    modules(&generated);
    let emulator = compiler()
        .include(&generated)
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
    // The driver's other name, which cudarc tries first: this library only refers to the stand-in.
    share("libcuda.so", &folder.join("libcuda.so"), &[standin]);
    println!("cargo:rustc-env=FOVEA_STANDIN={}", folder.display());
    nccl();
    // This comes last because it tells cargo what to link.
    compiler().objects(&emulator).compile("fovea_emulate");
}

/// Writes the files that `cpp/kernels.cpp` includes: each `.cu` file in a namespace of its own, and a row for each of
/// its kernels.
fn modules(out: &Path) {
    let losses = entries(Path::new("../src/loss"));
    let folders = losses.into_iter().filter(|path| path.is_dir());
    let (mut modules, mut table) = (String::new(), String::new());
    for folder in std::iter::once(PathBuf::from("../cuda")).chain(folders) {
        for file in entries(&folder) {
            if file.extension().is_some_and(|ext| ext == "cu") {
                println!("cargo:rerun-if-changed={}", file.display());
                module(&file, &mut modules, &mut table);
            }
        }
    }
    let write = |name, text| std::fs::write(out.join(name), text).expect("OUT_DIR can be written");
    write("modules.inc", modules);
    write("table.inc", table);
}

/// Adds the file's namespace to `modules` and its kernels to `table`.
fn module(file: &Path, modules: &mut String, table: &mut String) {
    let text = std::fs::read_to_string(file).expect("a kernel's source can be read");
    let path = file.canonicalize().expect("it exists");
    let stem = file.file_stem().expect("it has a name").display();
    *modules += &format!(
        "namespace {stem}_module {{\n#include \"{}\"\n",
        path.display()
    );
    // Namespaces do not scope macros, so each file's are undefined after it.
    let defines = text
        .lines()
        .filter_map(|line| line.strip_prefix("#define "));
    for name in defines.filter_map(|line| line.split([' ', '(']).next()) {
        *modules += &format!("#undef {name}\n");
    }
    *modules += "}\n";
    for declaration in text.split("extern \"C\" __global__").skip(1) {
        let start = declaration
            .find("fovea_")
            .expect("a kernel's name begins with fovea_");
        let name = declaration[start..]
            .split('(')
            .next()
            .expect("a split has a first part");
        *table += &format!("KERNEL({stem}_module, {name}),\n");
    }
}

/// The entries of a folder, sorted by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of kernels can be read");
    let path = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|entry| entry.path());
    let mut paths: Vec<_> = entries
        .map(|entry| path(entry).expect("a folder of kernels can be read"))
        .collect();
    paths.sort();
    paths
}

/// Builds a library that takes the place of NCCL. It finds the stand-in for the driver in the process.
fn nccl() {
    let parts = compiler().file("cpp/nccl/nccl.cpp").compile_intermediates();
    let standin = folder("nccl").join("libnccl.so.2");
    share("libnccl.so.2", &standin, &parts);
    println!("cargo:rustc-env=FOVEA_STANDIN_NCCL={}", standin.display());
}

/// A folder for libraries. It is not OUT_DIR itself: cargo puts that on the loader's path, and every test would find a
/// driver.
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
        // NVRTC gets the same rule: no multiply is fused with an add unless the source says so.
        .flag("-ffp-contract=off")
        // Kernels read bytes, words and vectors of one buffer.
        .flag("-fno-strict-aliasing")
        // A checked longjmp refuses to leave a fiber's stack.
        .flag("-U_FORTIFY_SOURCE")
        // A program that loads the stand-in may have an emulator of its own; the two must stay apart.
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
