//! Compiled kernels on disk: with them a process starts in milliseconds rather than seconds.
//!
//! An entry is one file, named after its inputs: the hash of sources, options and NVRTC's version,
//! and the architecture. Its content is magic, length, BLAKE3 hash, code. An entry that does not fit is compiled again
//! and replaced; an unwritable folder costs only time.

use std::io::{self, Read};
use std::path::Path;

use fovea_files::{Durability, Mode};

use super::arch::CompileTarget;
use super::error::Result;
use super::source::{HEADERS, OPTIONS, Source};

const MAGIC: &[u8; 8] = b"FOVEAKC1";
const HASH_BYTES: usize = 32;
/// Bytes of an entry before its code: magic, the code's length as 8 bytes, the code's BLAKE3 hash.
const HEADER_BYTES: usize = MAGIC.len() + 8 + HASH_BYTES;
/// Longest code that is read, bytes: a hundred times the length of a kernel.
const LONGEST_BYTES: u64 = 64 << 20;

/// How a request was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// The entry was in the folder.
    Hit,
    /// There was no entry: the code was compiled and stored.
    Stored,
    /// The entry was unusable, for the reason that the text gives: the code was compiled and stored again.
    Replaced(String),
    /// The code was compiled but not stored, for the reason that the text gives.
    NotStored(String),
}

/// Name of the entry for `source`, compiled by NVRTC of `version` for `target`.
#[must_use]
pub fn entry_name(source: &Source, target: CompileTarget, version: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        // The length comes first, else two lists of parts could give the same bytes.
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

/// Returns the code of entry `name` in `folder`; without a usable entry, the code that `compile` makes, which it then
/// stores there.
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
