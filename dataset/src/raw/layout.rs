//! What a raw layout must say of itself.

use std::fmt;

use super::scan::Scan;
use super::set::{MaskRule, RawSet};
use super::tree::Folders;
use crate::{Crop, Result};

/// How the files of a raw dataset are arranged. Implement [`name`](Layout::name), [`looks_like`](Layout::looks_like),
/// [`is_at`](Layout::is_at) and [`read`](Layout::read), and add a row to [`LAYOUTS`](super::LAYOUTS), or hand it to
/// `prepare` as [`LayoutChoice::Given`](super::LayoutChoice).
pub trait Layout: Sync {
    /// The name on command lines and in manifests: one lower-case word, unlike those of other layouts.
    fn name(&self) -> &'static str;

    /// The folders that it is known by, as a user would write them; shown where no layout is found.
    fn looks_like(&self) -> &'static str;

    /// Whether the layout lies in `folder`, by names alone. It is asked of every folder of the source, the top among them
    /// (an empty path); more than one yes is an error.
    fn is_at(&self, folders: &Folders, folder: &str) -> bool;

    /// Reads the dataset in `root`, for which [`is_at`](Layout::is_at) said yes: which files are images, and what labels
    /// them. Files that it does not mention are reported as no part of the layout.
    ///
    /// # Errors
    /// [`Scan::error`], where files are missing, superfluous or ambiguous, with what the user must do.
    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet>;

    /// Keys (see [`folder_key`](super::folder_key)) of folders in its root of which no file may be unreadable, because one
    /// that is missing means something: no mask, no lesion.
    fn folders(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Key of the folder in its root that holds the photographs, where other pictures lie beside it that are none: whoever
    /// lists photographs in such a dataset is sent there.
    fn photographs(&self) -> Option<&'static str> {
        None
    }

    /// Which pixels of its masks belong to their class.
    fn mask_rule(&self) -> MaskRule {
        MaskRule::HalfOrTwoValued
    }

    /// What of its photographs is kept when the user does not say it.
    fn crop(&self) -> Crop {
        Crop::Fov
    }

    /// Layouts of a lower number are looked for first; this one only where none of them lies anywhere. 0 for those that are
    /// known by folders of their own.
    fn turn(&self) -> u8 {
        0
    }

    /// Whether the dataset in `root` is of this layout by its content too. Asked where several layouts of the same turn lie
    /// in one place.
    fn confirms(&self, _scan: &mut Scan, _root: &str) -> bool {
        true
    }

    /// Whether square pictures are taken whole, because its photographs are cropped to the eye already.
    fn keeps_squares(&self) -> bool {
        false
    }

    /// What is missing of this layout where none is found, and what to do: for a mistake so likely that it deserves its own
    /// words.
    fn near_miss(&self, _folders: &Folders) -> Option<(String, String)> {
        None
    }
}

impl fmt::Debug for dyn Layout + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for dyn Layout + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl PartialEq for dyn Layout + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Layout + '_ {}
