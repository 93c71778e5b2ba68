//! The layouts that `prepare` knows, one file each.

pub(super) mod boxes;
pub(super) mod classes;
pub(super) mod csv;
pub(super) mod ddr;
pub(super) mod fgadr;
pub(super) mod folder;
pub(super) mod idrid;
mod labels;
mod named;
