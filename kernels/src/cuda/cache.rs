//! Compiled kernels on disk, so that a process starts in milliseconds rather than seconds.
//!
//! An entry is one file, named after its inputs: the hash of sources, options and NVRTC's version,
//! and the architecture. Content: magic, length, BLAKE3 hash, code. Anything that does not fit is
//! recompiled and replaced; an unwritable folder costs only time.

use std::io::{self, Read};
use std::path::Path;

use fovea_files::{Durability, Mode};

use super::arch::CompileTarget;
use super::error::Result;
use super::source::{HEADERS, OPTIONS, Source};

const MAGIC: &[u8; 8] = b"FOVEAKC1";
const HASH_BYTES: usize = 32;
/// Magic, length, hash.
const HEADER_BYTES: usize = MAGIC.len() + 8 + HASH_BYTES;
/// Longest code that is read: a hundred times what a kernel has.
const LONGEST_BYTES: u64 = 64 << 20;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// It was there.
    Hit,
    /// It was compiled and stored.
    Stored,
    /// It was there but unusable, as the text says; compiled and stored anew.
    Replaced(String),
    /// It was compiled, and could not be stored, as the text says.
    NotStored(String),
}

/// Name of the entry for `source`, compiled by NVRTC of `version` for `target`.
#[must_use]
pub fn entry_name(source: &Source, target: CompileTarget, version: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        // Length first, so that no two lists of parts give the same bytes.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    for file in HEADERS.iter().chain([&source.file]) {
        add(file.name);
        add(file.text);
    }
    OPTIONS.iter().for_each(|option| add(option));
    add(&target.option());
    add(version);
    let stem = source.file.name.trim_end_matches(".cu");
    let (kind, arch) = match target {
        CompileTarget::Cubin(arch) => ("cubin", arch),
        CompileTarget::Ptx(arch) => ("ptx", arch),
    };
    format!("{stem}-{arch}-{}.{kind}", &hasher.finalize().to_hex()[..32])
}

/// The code of entry `name` in `folder`, else what `compile` makes, which is then stored there.
pub fn get_or_compile(
    folder: &Path,
    name: &str,
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, CacheOutcome)> {
    let path = folder.join(name);
    let unusable = match read(&path) {
        Ok(code) => return Ok((code, CacheOutcome::Hit)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
    };
    let code = compile()?;
    let outcome = match (store(folder, &path, &code), unusable) {
        (Err(error), _) => CacheOutcome::NotStored(format!("{}: {error}", path.display())),
        (Ok(()), Some(why)) => CacheOutcome::Replaced(why),
        (Ok(()), None) => CacheOutcome::Stored,
    };
    Ok((code, outcome))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut file = std::fs::File::open(path)?;
    let actual = file.metadata()?.len();
    let mut header = [0u8; HEADER_BYTES];
    file.read_exact(&mut header)
        .map_err(|_| bad(format!("{actual} bytes are not even a header")))?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let (length, hash) = rest.split_at(8);
    if magic != MAGIC {
        return Err(bad("not a compiled kernel of this version".into()));
    }
    let length = length
        .iter()
        .rev()
        .fold(0u64, |all, &byte| all << 8 | u64::from(byte));
    if length > LONGEST_BYTES || actual != HEADER_BYTES as u64 + length {
        return Err(bad(format!(
            "the header says {length} bytes of code (at most {LONGEST_BYTES}), the file has {actual} in all"
        )));
    }
    let mut code = Vec::with_capacity(length as usize);
    file.read_to_end(&mut code)?;
    if blake3::hash(&code).as_bytes() != hash {
        return Err(bad("the code does not match its hash".into()));
    }
    Ok(code)
}

/// Several ranks may do so at once, and all have the same bytes.
fn store(folder: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let length = (code.len() as u64).to_le_bytes();
    let bytes = [&MAGIC[..], &length, blake3::hash(code).as_bytes(), code].concat();
    match fovea_files::replace(path, &bytes, Durability::Synced, Mode::Shared) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.source),
    }
}

#[cfg(test)]
mod tests;
