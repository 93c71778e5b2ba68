//! Raw layouts: which files belong to which image.
//!
//! Detection looks at names only. It finds a layout at the top of the source or below, so an archive with or
//! without its outer folder works the same.

mod archive;
mod entry;
mod fgadr;
mod folder;
mod grades;
mod idrid;
pub(crate) mod names;
pub(crate) mod passed;
mod scan;
mod store;
mod tree;
mod walk;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub(crate) use entry::Entry;
pub(crate) use scan::why_no_picture;
pub(crate) use store::{Reader, Store, content_of};
pub(crate) use walk::{Walked, walk};

use fovea_task::{Label, Task};

use crate::{Error, Result, Split};
use names::{first_few, folder_key};
use scan::Scan;
use tree::{Tree, is_below};

/// How raw files are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// FGADR Seg-set.
    Fgadr,
    /// `images/` and `masks/{MA,HE,EX,SE}/`.
    Folder,
    /// IDRiD segmentation, with the folders and names it is published with.
    Idrid,
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
    pub const ALL: [Self; 3] = [Self::Fgadr, Self::Folder, Self::Idrid];

    /// The name on command lines and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fgadr => "fgadr",
            Self::Folder => "folder",
            Self::Idrid => "idrid",
        }
    }

    /// The folders it is known by.
    fn looks_like(self) -> &'static str {
        match self {
            Self::Fgadr => fgadr::LOOKS_LIKE,
            Self::Folder => folder::LOOKS_LIKE,
            Self::Idrid => idrid::LOOKS_LIKE,
        }
    }

    /// The folders in which the layout lies.
    fn roots<'a>(self, tree: &Tree<'a>, entries: &[Entry]) -> Vec<&'a str> {
        let is_at = |folder: &&str| match self {
            Self::Fgadr => fgadr::is_at(tree, folder),
            Self::Folder => folder::is_at(tree, entries, folder),
            Self::Idrid => idrid::is_at(tree, folder),
        };
        tree.folders().filter(is_at).collect()
    }

    /// Keys of the folders in its root that it reads.
    fn folders(self) -> Vec<&'static str> {
        match self {
            Self::Fgadr => [&[fgadr::IMAGES], &*fgadr::MASKS.concat()].concat(),
            Self::Folder => vec![folder::IMAGES, folder::MASKS],
            Self::Idrid => [&[idrid::IMAGES], idrid::MASKS].concat(),
        }
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
        layout.map(Self::Given).ok_or_else(|| {
            format!("`{text}` is no layout\n  help: use auto, fgadr, folder or idrid")
        })
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
    /// By position of the target in the task.
    pub labels: Vec<(usize, Label)>,
    pub grade: Option<u8>,
    /// Where the raw dataset says which split it belongs to.
    pub split: Option<Split>,
}

/// A raw dataset: its files and what they are.
pub(crate) struct Raw {
    pub store: Store,
    pub layout: Layout,
    pub task: Task,
    /// By id, ascending.
    pub images: Vec<RawImage>,
    /// What the user should know: files that are passed over, rows of tables without an image.
    pub words: Vec<String>,
}

impl Raw {
    /// Opens `path` and finds its images.
    pub fn open(path: &Path, choice: LayoutChoice) -> Result<Self> {
        let store = Store::open(path)?;
        if store.entries().is_empty() {
            return Err(Error::Empty {
                path: path.to_owned(),
                looked_for: format!(
                    "files{}; looked for{}",
                    obstacles(&store),
                    described(&Layout::ALL)
                ),
                help: "put a raw dataset there, or give the folder that holds one".to_owned(),
            });
        }
        let tree = Tree::new(store.entries());
        let (layout, root) = detect(&store, &tree, choice)?;
        if store.is_archive() {
            let below = store.entries().iter().filter(|e| is_below(&e.name, root));
            archive::refuse_locked(path, below.filter(|e| names::is_picture(&e.name)))?;
        }
        let mut scan = Scan::new(&store, &tree);
        refuse_obstructed(&scan, layout, root)?;
        let mut images = match layout {
            Layout::Fgadr => fgadr::images(&mut scan, root)?,
            Layout::Folder => folder::images(&mut scan, root)?,
            Layout::Idrid => idrid::images(&mut scan, root)?,
        };
        images.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = images.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(scan.same_name(pair[0].image, pair[1].image));
        }
        let words = words(&scan, layout, &images);
        Ok(Self {
            store,
            layout,
            task: Task::lesions(),
            images,
            words,
        })
    }

    pub fn mask_rule(&self) -> MaskRule {
        match self.layout {
            Layout::Fgadr => MaskRule::Half,
            Layout::Folder | Layout::Idrid => MaskRule::HalfOrTwoValued,
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

/// Refuses files and folders of the layout's own that cannot be read.
fn refuse_obstructed(scan: &Scan, layout: Layout, root: &str) -> Result<()> {
    let own = layout.folders();
    let in_the_way = |path: &str| {
        let below = match root {
            "" => path,
            root if is_below(path, root) => &path[root.len() + 1..],
            _ => return false,
        };
        own.contains(&folder_key(below.split('/').next().unwrap_or(below)).as_str())
    };
    let found: Vec<String> = scan
        .store
        .obstructed()
        .iter()
        .filter(|o| o.matters && in_the_way(&o.name))
        .map(|o| format!("{} ({})", o.name, o.reason))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(scan.error(
        format!("{} of its files or folders cannot be used: {}", found.len(), first_few(&found, 5)),
        "mend the links and permissions, or move these elsewhere: a mask that is missing means that there is no lesion",
    ))
}

/// What a layout said, and every file that is passed over.
fn words(scan: &Scan, layout: Layout, images: &[RawImage]) -> Vec<String> {
    let used: HashSet<usize> = images
        .iter()
        .flat_map(|raw| {
            [raw.image]
                .into_iter()
                .chain(raw.masks.into_iter().flatten())
        })
        .collect();
    let entries = scan.store.entries();
    let mut passed: Vec<(&str, String)> = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        match scan.notes.get(&position) {
            _ if used.contains(&position) => {}
            // Read, though no image.
            Some(note) if note.is_empty() => {}
            Some(note) => passed.push((&entry.name, note.clone())),
            None => passed.push((&entry.name, format!("no part of layout {layout}"))),
        }
    }
    let obstructed = scan.store.obstructed().iter();
    passed.extend(obstructed.map(|o| (o.name.as_str(), o.reason.clone())));
    let used = used.iter().map(|position| entries[*position].name.as_str());
    let mut words = scan.words.clone();
    words.extend(passed::report(&passed, used));
    words
}

/// ` that can be read (masks: ...)`, when something stands in the way.
fn obstacles(store: &Store) -> String {
    let told: Vec<String> = store
        .obstructed()
        .iter()
        .map(|o| format!("{}: {}", o.name, o.reason))
        .collect();
    match told.is_empty() {
        true => String::new(),
        false => format!(" that can be used ({})", first_few(&told, 5)),
    }
}

fn detect<'a>(store: &Store, tree: &Tree<'a>, choice: LayoutChoice) -> Result<(Layout, &'a str)> {
    let candidates: &[Layout] = match &choice {
        LayoutChoice::Auto => &Layout::ALL,
        LayoutChoice::Given(layout) => std::slice::from_ref(layout),
    };
    let roots = |layout: &Layout| {
        let layout = *layout;
        let roots = layout.roots(tree, store.entries());
        roots.into_iter().map(move |root| (layout, root))
    };
    let found: Vec<(Layout, &str)> = candidates.iter().flat_map(roots).collect();
    let layout_error = |problem: String, help: String| Error::Layout {
        path: store.path().to_owned(),
        problem,
        help,
    };
    match &found[..] {
        [one] => Ok(*one),
        [] => {
            let looked_for = described(candidates);
            if candidates.contains(&Layout::Folder)
                && let Some(problem) = folder::without_masks(tree)
            {
                return Err(layout_error(problem, folder::WITHOUT_MASKS_HELP.to_owned()));
            }
            let mut top: Vec<&str> = tree.folders().filter(|path| !path.is_empty()).collect();
            let more = top.len().saturating_sub(8);
            top.truncate(8);
            let top = match (top.is_empty(), more) {
                (true, _) => "no folders, only files".to_owned(),
                (false, 0) => top.join(", "),
                (false, more) => format!("{} and {more} more", top.join(", ")),
            };
            let obstacles = obstacles(store);
            let packed: Vec<&str> = store
                .entries()
                .iter()
                .map(|entry| entry.name.as_str())
                .filter(|name| names::is_archive(name))
                .collect();
            let help = match packed.is_empty() {
                true => "give the folder that holds these folders, or rename yours".to_owned(),
                false => format!(
                    "unpack what is packed in it ({}), and give the folder that comes out",
                    first_few(&packed, 3)
                ),
            };
            Err(layout_error(
                format!(
                    "its layout is not known; looked for{looked_for}\n    and found{obstacles}: {top}"
                ),
                help,
            ))
        }
        several => {
            let places: String = several
                .iter()
                .map(|(layout, root)| format!("\n    {layout} in {}", shown(root)))
                .collect();
            let choose = match several.iter().all(|(layout, _)| *layout == several[0].0) {
                true => "",
                false => ", or choose with --layout",
            };
            Err(layout_error(
                format!("holds {} raw datasets:{places}", several.len()),
                format!("give the folder of one of them{choose}"),
            ))
        }
    }
}

fn shown(root: &str) -> String {
    match root {
        "" => "the given folder itself".to_owned(),
        root => format!("{root}/"),
    }
}

fn described(layouts: &[Layout]) -> String {
    layouts
        .iter()
        .map(|layout| format!("\n    {layout}: {}", layout.looks_like()))
        .collect()
}

/// Where masks of a raw dataset lie that a list of files is, if it is one: a folder of photographs is not.
pub(crate) fn images_of_dataset(names: impl Iterator<Item = String>) -> Option<(Layout, String)> {
    let entries: Vec<Entry> = names.map(Entry::named).collect();
    let tree = Tree::new(&entries);
    Layout::ALL.into_iter().find_map(|layout| {
        let root = layout.roots(&tree, &entries).into_iter().next()?;
        let images = match layout {
            Layout::Folder => folder::IMAGES,
            Layout::Fgadr => fgadr::IMAGES,
            Layout::Idrid => idrid::IMAGES,
        };
        let images = tree.named(root, &[images]).into_iter().next()?;
        Some((layout, images.to_owned()))
    })
}
