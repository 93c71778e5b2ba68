//! Bakes the location of libtorch into the `fovea` binary and its tests, so that they start with
//! nothing exported, and into the binary the commit that it was built from.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.commit");
    println!("cargo:rerun-if-env-changed=FOVEA_COMMIT");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let given = std::env::var("FOVEA_COMMIT").ok().and_then(hash);
    let commit = given
        .or_else(|| from_git(&root))
        .or_else(|| hash(fs::read_to_string(root.join(".commit")).ok()?));
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=FOVEA_COMMIT={commit}");
}

/// The commit that is checked out, from git's files: the machine that builds may have no git. Rebuilds come with
/// another commit only: every file that is watched exists, for cargo takes a missing one for a changed one.
fn from_git(root: &Path) -> Option<String> {
    let mut git = root.join(".git");
    if git.is_file() {
        // A work tree of its own: the file says where its part of the repository is.
        let text = fs::read_to_string(&git).ok()?;
        git = root.join(text.strip_prefix("gitdir:")?.trim());
    }
    let watch = |path: &Path| {
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    };
    watch(&git.join("HEAD"));
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else {
        return hash(head);
    };
    let common = fs::read_to_string(git.join("commondir"))
        .map_or_else(|_| git.clone(), |path| git.join(path.trim()));
    let reference = common.join(name);
    if reference.exists() {
        watch(&reference);
        return hash(fs::read_to_string(reference).ok()?);
    }
    // Until the next commit writes a file of its own: the log of HEAD tells of that.
    watch(&common.join("packed-refs"));
    watch(&git.join("logs/HEAD"));
    let packed = fs::read_to_string(common.join("packed-refs")).ok()?;
    let line = packed
        .lines()
        .find(|line| line.ends_with(&format!(" {name}")))?;
    hash(line.split(' ').next()?.to_owned())
}

/// The first twelve digits, if it is a commit's hash.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the end of a chain of options"
)]
fn hash(text: String) -> Option<String> {
    let text = text.trim();
    let is_hash = text.len() >= 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| text[..12].to_owned())
}
