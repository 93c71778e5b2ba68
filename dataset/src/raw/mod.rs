//! Raw layouts: which files belong to which image.
//!
//! Detection looks at names only. A layout is found at the top of the source or below it, so that an archive with or
//! without its outer folder works the same.

mod fgadr;
mod folder;
mod store;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub(crate) use store::{Entry, Reader, Store};

use crate::{CLASSES, Error, Result};

/// How raw files are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// FGADR Seg-set.
    Fgadr,
    /// `images/` and `masks/{MA,HE,EX,SE}/`.
    Folder,
}

/// The layout asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayoutChoice {
    /// Find out.
    #[default]
    Auto,
    /// This one; anything else is an error.
    Given(Layout),
}

impl Layout {
    /// All layouts, in the order in which they are looked for.
    pub const ALL: [Self; 2] = [Self::Fgadr, Self::Folder];

    /// The name on command lines and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fgadr => "fgadr",
            Self::Folder => "folder",
        }
    }

    /// The folders it is known by.
    fn looks_like(self) -> &'static str {
        match self {
            Self::Fgadr => fgadr::LOOKS_LIKE,
            Self::Folder => folder::LOOKS_LIKE,
        }
    }

    /// The folder (with a final `/`, or empty) below which the layout lies.
    fn roots(self, folders: &BTreeSet<&str>) -> Vec<String> {
        let marker = match self {
            Self::Fgadr => fgadr::IMAGES,
            Self::Folder => folder::IMAGES,
        };
        let beside = |root: &str| match self {
            Self::Fgadr => fgadr::MASKS
                .concat()
                .iter()
                .any(|masks| folders.contains(&*format!("{root}{masks}"))),
            Self::Folder => CLASSES
                .iter()
                .any(|class| folders.contains(&*format!("{root}{}/{class}", folder::MASKS))),
        };
        let roots = folders.iter().filter_map(|name| name.strip_suffix(marker));
        roots
            .filter(|root| (root.is_empty() || root.ends_with('/')) && beside(root))
            .map(str::to_owned)
            .collect()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for LayoutChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Given(layout) => layout.fmt(f),
        }
    }
}

impl FromStr for LayoutChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let layout = Layout::ALL.into_iter().find(|layout| layout.name() == text);
        layout
            .map(Self::Given)
            .ok_or_else(|| format!("`{text}` is no layout\n  help: use auto, fgadr or folder"))
    }
}

/// When a pixel of a mask belongs to the lesion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaskRule {
    /// Value 128 or more; edges are anti-aliased.
    Half,
    /// 128 or more, except in a mask that holds only 0 and one other value: there, that value.
    HalfOrTwoValued,
}

/// One image of a raw dataset; numbers are positions in [`Store::entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawImage {
    pub id: String,
    pub image: usize,
    /// By class; `None`: this lesion is absent.
    pub masks: [Option<usize>; 4],
    pub grade: Option<u8>,
}

/// A raw dataset: its files and what they are.
pub(crate) struct Raw {
    pub store: Store,
    pub layout: Layout,
    /// By id, ascending.
    pub images: Vec<RawImage>,
}

impl Raw {
    /// Opens `path` and finds its images.
    pub fn open(path: &Path, choice: LayoutChoice) -> Result<Self> {
        let store = Store::open(path)?;
        if store.entries().is_empty() {
            return Err(Error::Empty {
                path: path.to_owned(),
                looked_for: format!("files; looked for{}", described(&Layout::ALL)),
                help: "put a raw dataset there, or give the folder that holds one".to_owned(),
            });
        }
        let (layout, root) = detect(&store, choice)?;
        let mut images = match layout {
            Layout::Fgadr => fgadr::images(&store, &root)?,
            Layout::Folder => folder::images(&store, &root)?,
        };
        images.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = images.windows(2).find(|pair| pair[0].id == pair[1].id) {
            let names = [&pair[0], &pair[1]].map(|raw| store.entries()[raw.image].name.clone());
            return Err(Error::Layout {
                path: path.to_owned(),
                problem: format!("{} and {} have the same name but for the extension", names[0], names[1]),
                help: "rename one of them and its masks: masks are found by the name without extension".to_owned(),
            });
        }
        Ok(Self {
            store,
            layout,
            images,
        })
    }

    pub fn mask_rule(&self) -> MaskRule {
        match self.layout {
            Layout::Fgadr => MaskRule::Half,
            Layout::Folder => MaskRule::HalfOrTwoValued,
        }
    }

    /// Whether square pictures are taken as they are. FGADR's are cut already, and its published figures count on it.
    pub fn keeps_squares(&self) -> bool {
        self.layout == Layout::Fgadr
    }

    /// The files of an image: the picture first, then its masks in class order.
    pub fn files<'a>(&'a self, raw: &'a RawImage) -> impl Iterator<Item = &'a Entry> {
        let numbers = std::iter::once(raw.image).chain(raw.masks.iter().flatten().copied());
        numbers.map(|number| &self.store.entries()[number])
    }

    /// blake3 over ids, grades, lengths, and with `stamps` over modification times or checksums too.
    pub fn fingerprint(&self, images: &[RawImage], stamps: bool) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("fovea raw dataset v1");
        for raw in images {
            hasher
                .update(&(raw.id.len() as u64).to_le_bytes())
                .update(raw.id.as_bytes());
            hasher.update(&[raw.grade.unwrap_or(u8::MAX)]);
            hasher.update(&raw.masks.map(|mask| u8::from(mask.is_some())));
            for entry in self.files(raw) {
                hasher.update(&entry.bytes.to_le_bytes());
                if stamps {
                    hasher.update(&entry.stamp.to_le_bytes());
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn detect(store: &Store, choice: LayoutChoice) -> Result<(Layout, String)> {
    let folders = folders(store.entries());
    let candidates: &[Layout] = match &choice {
        LayoutChoice::Auto => &Layout::ALL,
        LayoutChoice::Given(layout) => std::slice::from_ref(layout),
    };
    let found: Vec<(Layout, String)> = candidates
        .iter()
        .flat_map(|layout| {
            layout
                .roots(&folders)
                .into_iter()
                .map(|root| (*layout, root))
        })
        .collect();
    let layout_error = |problem: String, help: String| Error::Layout {
        path: store.path().to_owned(),
        problem,
        help,
    };
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => {
            let looked_for = described(candidates);
            if candidates.contains(&Layout::Folder)
                && let Some(problem) = folder::without_masks(&folders)
            {
                return Err(layout_error(problem, folder::WITHOUT_MASKS_HELP.to_owned()));
            }
            let top: Vec<&str> = folders.iter().copied().take(8).collect();
            let top = if top.is_empty() {
                "no folders, only files".to_owned()
            } else {
                top.join(", ")
            };
            Err(layout_error(
                format!("its layout is not known; looked for{looked_for}\n    and found: {top}"),
                "give the folder that holds these folders, or rename yours".to_owned(),
            ))
        }
        several => {
            let places: String = several
                .iter()
                .map(|(layout, root)| format!("\n    {layout} in {}", shown(root)))
                .collect();
            Err(layout_error(
                format!("holds {} raw datasets:{places}", several.len()),
                "give the folder of one of them, or choose with --layout".to_owned(),
            ))
        }
    }
}

fn shown(root: &str) -> &str {
    if root.is_empty() {
        "the given folder itself"
    } else {
        root
    }
}

fn described(layouts: &[Layout]) -> String {
    layouts
        .iter()
        .map(|layout| format!("\n    {layout}: {}", layout.looks_like()))
        .collect()
}

/// All folders that hold something, by name.
fn folders(entries: &[Entry]) -> BTreeSet<&str> {
    let parents = |entry| std::iter::successors(parent(entry), |folder| parent(folder));
    entries
        .iter()
        .flat_map(|entry| parents(&entry.name))
        .collect()
}

fn parent(name: &str) -> Option<&str> {
    name.rsplit_once('/').map(|(parent, _)| parent)
}

/// Files directly in `folder` with one of `extensions` (lower case), as (stem, position).
fn pictures<'a>(store: &'a Store, folder: &str, extensions: &[&str]) -> Vec<(&'a str, usize)> {
    let wanted = |entry: &'a Entry| {
        let name = entry.name.strip_prefix(folder)?.strip_prefix('/')?;
        let (stem, extension) = name.rsplit_once('.')?;
        let known = extensions.iter().any(|e| extension.eq_ignore_ascii_case(e));
        (known && !stem.is_empty() && !stem.contains('/')).then_some(stem)
    };
    let entries = store.entries().iter().enumerate();
    entries
        .filter_map(|(position, entry)| wanted(entry).map(|stem| (stem, position)))
        .collect()
}
