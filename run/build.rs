//! Makes the list of presets from the files in `src/config/presets`: to add one, put its file there.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let presets =
        Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("src/config/presets");
    println!("cargo::rerun-if-changed={}", presets.display());
    let files = fs::read_dir(&presets)?.collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = files.into_iter().map(|file| file.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "toml"));
    files.sort();
    let row = |file: &Path| {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        format!("    ({name:?}, include_str!({file:?})),\n")
    };
    let rows: String = files.iter().map(|file| row(file)).collect();
    let target = Path::new(&env::var("OUT_DIR").unwrap_or_default()).join("presets.rs");
    fs::write(target, format!("&[\n{rows}]\n"))
}
