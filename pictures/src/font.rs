//! The font of picture labels; it is part of the binary, so drawing needs no system fonts.

/// Ubuntu Light as TrueType bytes (Ubuntu Font Licence 1.0).
pub fn bytes() -> &'static [u8] {
    epaint_default_fonts::UBUNTU_LIGHT
}
