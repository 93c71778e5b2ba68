//! What `fovea --version` prints: the release, its commit, and the libtorch in this process.

use std::sync::OnceLock;

use crate::libtorch::libtorch;

/// `0.1.0 (0123456789ab)`.
pub const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FOVEA_COMMIT"), ")");

/// With the libtorch that this binary was built for, and the one that the loader has found.
pub fn long() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(text)
}

fn text() -> String {
    let torch = libtorch();
    let (version, place) = (torch.version, torch.dir);
    let version = version.map_or_else(
        || "of a version that its folder does not say".to_owned(),
        |version| version.to_string(),
    );
    let place = place.map_or_else(String::new, |place| format!(" in {}", place.display()));
    format!(
        "{SHORT}\nlibtorch {version}{place}, built for {}",
        torch.wanted
    )
}
