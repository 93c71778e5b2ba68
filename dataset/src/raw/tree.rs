//! The folders of a raw dataset: what lies directly in each.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::Entry;
use super::names::folder_key;

/// Folders by their path without a final `/`; the top has the empty path.
pub(super) struct Tree<'a> {
    files: BTreeMap<&'a str, Vec<usize>>,
    children: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Tree<'a> {
    pub fn new(entries: &'a [Entry]) -> Self {
        let mut tree = Self {
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

    /// All folders that hold something, the top first.
    pub fn folders(&self) -> impl Iterator<Item = &'a str> {
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

    /// Folders directly in `folder` whose name means one of `keys`.
    pub fn named(&self, folder: &str, keys: &[&str]) -> Vec<&'a str> {
        let wanted = |child: &&str| keys.contains(&folder_key(last(child)).as_str());
        self.children(folder).filter(wanted).collect()
    }
}

/// The folder that holds `path`.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The last part of `path`.
pub(super) fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

/// Whether `path` lies in `folder`, at any depth.
pub(super) fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty()
        || path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// `name` in `folder`.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
