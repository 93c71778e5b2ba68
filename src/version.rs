//! What `fovea --version` prints: the release, its commit, and the libtorch in this process.

use std::sync::OnceLock;

use crate::libtorch::libtorch;

/// The release and its commit, such as `0.1.0 (0123456789ab)`; `-V` prints it.
pub const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FOVEA_COMMIT"), ")");

/// [`SHORT`], then the libtorch that the loader has found and the version that this binary was built for.
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
