//! Raw layouts: which files belong to which image, and what labels them.
//!
//! Detection looks at names only. It finds a layout at the top of the source or below, so an archive with or
//! without its outer folder works the same.

mod archive;
mod entry;
mod grade_table;
mod layout;
mod layouts;
mod lesions;
pub(crate) mod names;
pub(crate) mod passed;
mod scan;
mod set;
mod store;
mod text_table;
mod tree;
mod walk;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use fovea_task::Task;

pub(crate) use entry::Entry;
pub use layout::Layout;
pub use names::{ByStem, folder_key, is_picture, stem};
pub(crate) use scan::why_no_picture;
pub use scan::{PictureName, Scan};
pub use set::{Evidence, MaskRule, RawImage, RawSet};
pub(crate) use store::{Reader, Store, content_of};
pub use tree::{Folders, join, last, parent};
pub(crate) use walk::{Walked, walk};

use crate::manifest::too_wide;
use crate::{Error, Result};
use names::first_few;
use tree::is_below;

/// All layouts that are looked for, in this order.
pub static LAYOUTS: &[&dyn Layout] = &[
    &layouts::fgadr::Fgadr,
    &layouts::folder::Folder,
    &layouts::idrid::Idrid,
    &layouts::ddr::Ddr,
    &layouts::csv::Csv,
    &layouts::boxes::Boxes,
    &layouts::classes::Classes,
];

/// What the user says of the tables of a raw dataset, for the layouts that read labels from some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Heading of the column that names the pictures; `None`: the one whose values do.
    pub image_column: Option<String>,
    /// Headings of the columns of labels; none given: all of 0 and 1, or one of class names.
    pub labels: Vec<String>,
    /// Boxes of a picture that become columns, those with the highest scores.
    pub max_boxes: u32,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            image_column: None,
            labels: Vec::new(),
            max_boxes: 10,
        }
    }
}

/// The layout asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayoutChoice {
    /// The one of [`LAYOUTS`] that the source has.
    #[default]
    Auto,
    /// This one, which need not be among [`LAYOUTS`]; a source without it is an error.
    Given(&'static dyn Layout),
}

impl LayoutChoice {
    /// What it is parsed from: `auto`, then the names of [`LAYOUTS`].
    pub fn names() -> Vec<&'static str> {
        let layouts = LAYOUTS.iter().map(|layout| layout.name());
        std::iter::once("auto").chain(layouts).collect()
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
        let layout = LAYOUTS.iter().find(|layout| layout.name() == text);
        layout.map(|layout| Self::Given(*layout)).ok_or_else(|| {
            let names = Self::names();
            let (last, others) = names.split_last().unwrap_or((&"auto", &[]));
            format!(
                "`{text}` is no layout\n  help: use {} or {last}",
                others.join(", ")
            )
        })
    }
}

/// A raw dataset: its files and what they are.
pub(crate) struct Raw {
    pub store: Store,
    pub layout: &'static dyn Layout,
    pub task: Task,
    /// Ordered by id, which no two share.
    pub images: Vec<RawImage>,
    /// What the user should know: files that are skipped, rows of tables without an image.
    pub words: Vec<String>,
}

impl Raw {
    /// Opens `path` and finds its images.
    pub fn open(path: &Path, choice: LayoutChoice, options: &TableOptions) -> Result<Self> {
        let store = Store::open(path)?;
        if store.entries().is_empty() {
            return Err(Error::Empty {
                path: path.to_owned(),
                looked_for: format!(
                    "files{}; looked for{}",
                    obstacles(&store),
                    described(LAYOUTS)
                ),
                help: "put a raw dataset there, or give the folder that holds one".to_owned(),
            });
        }
        let folders = Folders::new(store.entries());
        let (layout, root) = detect(&store, &folders, choice, options)?;
        if store.is_archive() {
            let below = store.entries().iter().filter(|e| is_below(&e.name, root));
            archive::refuse_locked(path, below.filter(|e| names::is_picture(&e.name)))?;
        }
        let mut scan = Scan::new(&store, &folders, options);
        refuse_obstructed(&scan, layout, root)?;
        let RawSet { task, mut images } = layout.read(&mut scan, root)?;
        refuse_misfits(&scan, layout, &task, &images)?;
        images.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = images.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(scan.same_name(pair[0].image, pair[1].image));
        }
        let words = words(&scan, layout, &images);
        Ok(Self {
            store,
            layout,
            task,
            images,
            words,
        })
    }

    /// The files of an image: the picture first, then its masks in class order.
    pub fn files<'a>(&'a self, raw: &'a RawImage) -> impl Iterator<Item = &'a Entry> {
        raw.files().map(|number| &self.store.entries()[number])
    }

    /// blake3 over ids, grades, labels, lengths, and with `stamps` over modification times or checksums too.
    pub fn fingerprint(&self, images: &[RawImage], stamps: bool) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("fovea raw dataset v1");
        for raw in images {
            hasher
                .update(&(raw.id.len() as u64).to_le_bytes())
                .update(raw.id.as_bytes());
            hasher.update(&[raw.grade.unwrap_or(u8::MAX)]);
            let has_mask = raw.masks().iter().map(|mask| u8::from(mask.is_some()));
            hasher.update(&has_mask.collect::<Vec<u8>>());
            for (target, label) in &raw.labels {
                hasher
                    .update(&(*target as u64).to_le_bytes())
                    .update(&label.0.to_le_bytes());
            }
            // Absent from older datasets, whose fingerprints stay.
            if let Some(group) = &raw.group {
                hasher
                    .update(b"group")
                    .update(&(group.len() as u64).to_le_bytes());
                hasher.update(group.as_bytes());
            }
            if !raw.columns.is_empty() {
                hasher.update(b"columns");
                raw.columns.iter().for_each(|number| {
                    hasher.update(&number.to_le_bytes());
                });
            }
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

/// Refuses what no dataset can hold: a mistake in the layout's code. The error names the image that shows it.
fn refuse_misfits(
    scan: &Scan,
    layout: &dyn Layout,
    task: &Task,
    images: &[RawImage],
) -> Result<()> {
    let help = "this is a mistake of the layout, not of your files: correct its `read`";
    if images.is_empty() {
        return Err(scan.empty("", "pictures".to_owned(), "put the photographs there"));
    }
    if let Some(reason) = too_wide(task) {
        return Err(scan.error(format!("layout {layout}: {reason}"), help));
    }
    let mut misfits = images
        .iter()
        .filter_map(|image| Some((image, image.misfit(task)?)));
    match misfits.next() {
        Some((RawImage { id, .. }, reason)) => {
            Err(scan.error(format!("layout {layout}: image {id} has {reason}"), help))
        }
        None => Ok(()),
    }
}

/// Refuses files and folders of the layout's own that cannot be read.
fn refuse_obstructed(scan: &Scan, layout: &dyn Layout, root: &str) -> Result<()> {
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
        .store()
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

/// The layout's own warnings, and one for every group of files that are skipped.
fn words(scan: &Scan, layout: &dyn Layout, images: &[RawImage]) -> Vec<String> {
    let used: HashSet<usize> = images.iter().flat_map(RawImage::files).collect();
    let entries = scan.store().entries();
    let mut passed: Vec<(&str, String)> = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        match scan.noted(position) {
            _ if used.contains(&position) => {}
            // Read, though no image.
            Some("") => {}
            Some(note) => passed.push((&entry.name, note.to_owned())),
            None => passed.push((&entry.name, format!("no part of layout {layout}"))),
        }
    }
    let obstructed = scan.store().obstructed().iter();
    passed.extend(obstructed.map(|o| (o.name.as_str(), o.reason.clone())));
    let used = used.iter().map(|position| entries[*position].name.as_str());
    let mut words = scan.words().to_vec();
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

fn detect<'a>(
    store: &Store,
    folders: &Folders<'a>,
    choice: LayoutChoice,
    options: &TableOptions,
) -> Result<(&'static dyn Layout, &'a str)> {
    let candidates: &[&'static dyn Layout] = match &choice {
        LayoutChoice::Auto => LAYOUTS,
        LayoutChoice::Given(layout) => std::slice::from_ref(layout),
    };
    let mut found: Vec<(&dyn Layout, &str)> = candidates
        .iter()
        .flat_map(|layout| roots(*layout, folders).map(|root| (*layout, root)))
        .collect();
    // Layouts that are known by less are there only where no other is, and where two lie in one place, the content decides.
    let first = found.iter().map(|(layout, _)| layout.turn()).min();
    found.retain(|(layout, _)| Some(layout.turn()) == first);
    let is_shared = found.len() > 1 && found.iter().all(|(_, root)| *root == found[0].1);
    if is_shared {
        let mut scan = Scan::new(store, folders, options);
        found.retain(|(layout, root)| layout.confirms(&mut scan, root));
    }
    let layout_error = |problem: String, help: String| Error::Layout {
        path: store.path().to_owned(),
        problem,
        help,
    };
    match &found[..] {
        [one] => Ok(*one),
        [] => {
            let looked_for = described(candidates);
            let near_miss = |layout: &&dyn Layout| layout.near_miss(folders);
            if let Some((problem, help)) = candidates.iter().find_map(near_miss) {
                return Err(layout_error(problem, help));
            }
            let mut top: Vec<&str> = folders.all().filter(|path| !path.is_empty()).collect();
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
            let choose = match several.iter().all(|(layout, _)| layout == &several[0].0) {
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

/// The folders in which `layout` lies.
fn roots<'a>(layout: &dyn Layout, folders: &Folders<'a>) -> impl Iterator<Item = &'a str> {
    folders.all().filter(|folder| layout.is_at(folders, folder))
}

fn shown(root: &str) -> String {
    match root {
        "" => "the given folder itself".to_owned(),
        root => format!("{root}/"),
    }
}

fn described(layouts: &[&dyn Layout]) -> String {
    layouts
        .iter()
        .map(|layout| format!("\n    {layout}: {}", layout.looks_like()))
        .collect()
}

/// The layout of the raw dataset that a list of files is, and the folder of its photographs, if other pictures lie beside
/// that: a folder of photographs is none.
pub(crate) fn images_of_dataset(
    names: impl Iterator<Item = String>,
) -> Option<(&'static dyn Layout, String)> {
    let entries: Vec<Entry> = names.map(Entry::named).collect();
    let folders = Folders::new(&entries);
    LAYOUTS.iter().find_map(|layout| {
        let photographs = layout.photographs()?;
        let root = roots(*layout, &folders).next()?;
        let images = folders.named(root, &[photographs]).into_iter().next()?;
        Some((*layout, images.to_owned()))
    })
}
