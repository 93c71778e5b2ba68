//! The run's shared secret and the proof of knowing it.
//!
//! The coordinator first sends a random nonce; the peer answers with the BLAKE3 keyed hash of
//! nonce and role under the token. The token itself never travels and a proof is good for one
//! connection only. The connection is not encrypted: `docs/protocol.md` says what that means.

use std::fmt;
use std::path::Path;

use fovea_files::{Durability, Mode};

use crate::error::{Error, Result};
use crate::files;

/// File name in the run directory, mode `0600`.
pub const TOKEN_FILE: &str = "token";

/// The run's secret, 32 random bytes; `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// 32 bytes from the system.
pub(crate) fn random32() -> Result<[u8; 32]> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random {
        detail: error.to_string(),
    })?;
    Ok(bytes)
}

impl Token {
    /// Reads 64 hexadecimal digits, white space around them allowed. `origin` is for the message.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let hash = blake3::Hash::from_hex(text.trim()).map_err(|error| Error::Token {
            origin: origin.to_owned(),
            detail: error.to_string(),
        })?;
        Ok(Self(*hash.as_bytes()))
    }

    /// The token of a run directory.
    pub fn load(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(TOKEN_FILE);
        let bytes = files::read_small(&path)?;
        let origin = format!("in {}", path.display());
        Self::parse(&String::from_utf8_lossy(&bytes), &origin)
    }

    /// The run directory's token, made on first use. It stays the same over restarts of the
    /// coordinator, so that its trainers can come back; one that others could have read is replaced.
    pub fn load_or_create(run_dir: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;

        let path = run_dir.join(TOKEN_FILE);
        if let Ok(meta) = std::fs::metadata(&path) {
            let mode = meta.permissions().mode() & 0o777;
            match Self::load(run_dir) {
                Ok(token) if mode & 0o077 == 0 => return Ok(token),
                Ok(_) => tracing::warn!(
                    "{} had mode {mode:04o}, others could read it: made a new token",
                    path.display()
                ),
                Err(error) => tracing::warn!("made a new token: {error}"),
            }
        }
        let token = Self(random32()?);
        token.store(run_dir)?;
        Ok(token)
    }

    /// Writes the file, which only its owner may read.
    pub(crate) fn store(&self, run_dir: &Path) -> Result<()> {
        let path = run_dir.join(TOKEN_FILE);
        let text = format!("{}\n", self.to_hex());
        fovea_files::replace(&path, text.as_bytes(), Durability::Synced, Mode::Private)?;
        Ok(())
    }

    /// 64 hexadecimal digits: the secret itself.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Proof of knowing the token, for this nonce and this encoded role.
    pub fn proof(&self, nonce: &[u8; 32], role: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(nonce);
        hasher.update(role);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn token_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(TOKEN_FILE);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Token::load_or_create(dir.path()).unwrap(), token);
        assert_eq!(Token::load(dir.path()).unwrap(), token);
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn readable_or_broken_tokens_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKEN_FILE);
        let first = Token::load_or_create(dir.path()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let second = Token::load_or_create(dir.path()).unwrap();
        assert_ne!(first, second);
        std::fs::write(&path, "not a token").unwrap();
        let error = Token::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal digits"), "{error}");
        let third = Token::load_or_create(dir.path()).unwrap();
        assert_ne!(second, third);
    }

    #[test]
    fn proof_covers_nonce_role_and_token() {
        let token = Token::parse(&"ab".repeat(32), "argument").unwrap();
        let other = Token::parse(&"ac".repeat(32), "argument").unwrap();
        let proof = token.proof(&[1; 32], b"role");
        assert_eq!(proof, token.proof(&[1; 32], b"role"));
        assert_ne!(proof, token.proof(&[2; 32], b"role"));
        assert_ne!(proof, token.proof(&[1; 32], b"rolf"));
        assert_ne!(proof, other.proof(&[1; 32], b"role"));
        assert!(Token::parse("abcd", "argument").is_err());
    }
}
