//! The folders of a raw dataset: what lies directly in each.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::Entry;
use super::names::folder_key;

/// The folders of a raw dataset that hold something, by their path without a final `/`; the top has the empty path. Files
/// are given by their position in the list of all files.
pub struct Folders<'a> {
    entries: &'a [Entry],
    files: BTreeMap<&'a str, Vec<usize>>,
    children: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Folders<'a> {
    pub(crate) fn new(entries: &'a [Entry]) -> Self {
        let mut tree = Self {
            entries,
            files: BTreeMap::new(),
            children: BTreeMap::from([("", BTreeSet::new())]),
        };
        for (position, entry) in entries.iter().enumerate() {
            let mut folder = parent(&entry.name);
            tree.files.entry(folder).or_default().push(position);
            while !folder.is_empty()
                && tree
                    .children
                    .entry(parent(folder))
                    .or_default()
                    .insert(folder)
            {
                tree.children.entry(folder).or_default();
                folder = parent(folder);
            }
        }
        tree
    }

    /// The path of a file.
    pub fn name(&self, position: usize) -> &'a str {
        &self.entries[position].name
    }

    /// The paths of all, the top first.
    pub fn all(&self) -> impl Iterator<Item = &'a str> {
        self.children.keys().copied()
    }

    /// Positions of the files directly in `folder`.
    pub fn files(&self, folder: &str) -> &[usize] {
        self.files.get(folder).map_or(&[], Vec::as_slice)
    }

    /// Folders directly in `folder`.
    pub fn children(&self, folder: &str) -> impl Iterator<Item = &'a str> {
        self.children.get(folder).into_iter().flatten().copied()
    }

    /// Folders directly in `folder` whose name means one of `keys` (see [`folder_key`]).
    pub fn named(&self, folder: &str, keys: &[&str]) -> Vec<&'a str> {
        let wanted = |child: &&str| keys.contains(&folder_key(last(child)).as_str());
        self.children(folder).filter(wanted).collect()
    }
}

/// The folder that holds the file or folder `path`; empty at the top.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The last part of `path`: the name of a file or folder in its own.
pub fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

/// Whether `path` lies in `folder`, at any depth.
pub(super) fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty()
        || path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// The path of `name` in `folder`, which is empty for the top.
pub fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
