//! Pictures by the names that tables give them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::raw::names::{composed, folder_key, is_picture, stem};
use crate::raw::set::RawImage;
use crate::raw::tree::{Folders, is_below, last, parent};

/// The pictures below a folder, by the stems of their names; letter case does not count.
pub(super) struct NamedPictures<'a> {
    folders: &'a Folders<'a>,
    by_stem: HashMap<String, Vec<usize>>,
}

impl<'a> NamedPictures<'a> {
    /// The files in or below `root` whose extension says that they are pictures.
    pub fn below(folders: &'a Folders<'a>, root: &str) -> Self {
        let mut by_stem: HashMap<String, Vec<usize>> = HashMap::new();
        for folder in folders
            .all()
            .filter(|folder| *folder == root || is_below(folder, root))
        {
            for &position in folders.files(folder) {
                let name = last(folders.name(position));
                if is_picture(name) {
                    by_stem.entry(key(stem(name))).or_default().push(position);
                }
            }
        }
        Self { folders, by_stem }
    }

    /// Whether a field may name a picture, whatever folder it lies in.
    pub fn has(&self, field: &str) -> bool {
        !self.find(field).is_empty()
    }

    /// The pictures that a field may mean: those of its name, with or without extension; where the field has folders in it,
    /// only those that lie in them, if there are such.
    pub fn find(&self, field: &str) -> Vec<usize> {
        let field = field.replace('\\', "/");
        let name = last(&field);
        if name.is_empty() {
            return Vec::new();
        }
        let all = match self.by_stem.get(&key(name)) {
            Some(found) => found,
            None => match self.by_stem.get(&key(stem(name))) {
                Some(found) => found,
                None => return Vec::new(),
            },
        };
        let folder = key(parent(&field));
        let lies_in = |position: &&usize| {
            let path = key(parent(self.folders.name(**position)));
            path == folder || path.ends_with(&format!("/{folder}"))
        };
        let exact: Vec<usize> = match folder.is_empty() {
            true => Vec::new(),
            false => all.iter().filter(lies_in).copied().collect(),
        };
        if exact.is_empty() { all.clone() } else { exact }
    }

    /// The folder that holds a picture.
    pub fn folder_of(&self, position: usize) -> &'a str {
        parent(self.folders.name(position))
    }

    /// One picture per field: of several, that in the folder that holds most of what the fields name; of equal folders, the
    /// one with the fewest pictures besides, else the first. A folder called by one of `names` goes before all others, one of
    /// masks behind them.
    pub fn choose(&self, fields: &[&str], names: &[String]) -> Vec<Option<usize>> {
        let found: Vec<Vec<usize>> = fields.iter().map(|field| self.find(field)).collect();
        let mut held: BTreeMap<&str, HashSet<usize>> = BTreeMap::new();
        for position in found.iter().flatten() {
            let folder = self.folder_of(*position);
            held.entry(folder).or_default().insert(*position);
        }
        let mut ranked: Vec<(&str, usize)> = held
            .into_iter()
            .map(|(folder, held)| (folder, held.len()))
            .collect();
        let is_called = |folder: &str| names.contains(&folder_key(last(folder)));
        ranked.sort_by_key(|(folder, held)| {
            let others = self.folders.files(folder).len().saturating_sub(*held);
            let held = std::cmp::Reverse(*held);
            (
                !is_called(folder),
                holds_masks(folder),
                held,
                others,
                *folder,
            )
        });
        let rank: HashMap<&str, usize> = ranked
            .iter()
            .enumerate()
            .map(|(rank, (folder, _))| (*folder, rank))
            .collect();
        let best = |positions: &Vec<usize>| {
            let by_rank = |position: &usize| rank.get(self.folder_of(*position)).copied();
            positions.iter().copied().min_by_key(|p| (by_rank(p), *p))
        };
        found.iter().map(best).collect()
    }
}

/// Whether a folder or one above it says that its pictures are masks.
fn holds_masks(folder: &str) -> bool {
    let says = |part: &str| {
        let key = folder_key(part);
        let mut words = key.split(' ');
        words.any(|word| {
            [
                "mask",
                "masks",
                "groundtruth",
                "groundtruths",
                "annotations",
            ]
            .contains(&word)
        })
    };
    folder.split('/').any(says)
}

fn key(name: &str) -> String {
    composed(name).to_lowercase()
}

/// Gives images whose names repeat (in folders of classes or splits) their paths below `root` as ids, and all others with
/// them.
pub(super) fn distinct_ids(folders: &Folders, root: &str, images: &mut [RawImage]) {
    let mut seen = HashSet::new();
    if images.iter().all(|image| seen.insert(key(&image.id))) {
        return;
    }
    for image in images {
        let path = folders.name(image.image);
        let below = path
            .strip_prefix(root)
            .unwrap_or(path)
            .trim_start_matches('/');
        image.id = match parent(below) {
            "" => stem(last(below)).to_owned(),
            folder => format!("{folder}/{}", stem(last(below))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Entry;

    #[test]
    fn fields_find_pictures_by_name_folder_and_place() {
        let names = [
            "a/Training Images/0_left.jpg",
            "a/Training Images/1_left.jpg",
            "a/Training Images/9_left.jpg",
            "b/preprocessed/0_left.jpg",
            "b/preprocessed/1_left.jpg",
            "c/scan.12.png",
            "c/notes.txt",
        ];
        let entries: Vec<Entry> = names.map(|name| Entry::named(name.to_owned())).into();
        let folders = Folders::new(&entries);
        let named = NamedPictures::below(&folders, "");
        for (field, expected) in [
            ("0_left.jpg", vec![0, 3]),
            ("0_LEFT", vec![0, 3]),
            ("0_left.png", vec![0, 3]),
            ("../x/Training Images/0_left.jpg", vec![0, 3]),
            ("Training Images/0_left.jpg", vec![0]),
            ("b\\preprocessed\\1_left.jpg", vec![4]),
            ("scan.12", vec![5]),
            ("notes", vec![]),
            ("", vec![]),
            ("a/", vec![]),
        ] {
            assert_eq!(named.find(field), expected, "{field}");
        }
        // Both folders hold both; the second has nothing else.
        let fields = ["0_left.jpg", "1_left.jpg", "none"];
        assert_eq!(named.choose(&fields, &[]), [Some(3), Some(4), None]);
        let called = ["training images".to_owned()];
        assert_eq!(named.choose(&fields, &called), [Some(0), Some(1), None]);
        assert_eq!(named.choose(&["0_left", "9_left"], &[]), [Some(0), Some(2)]);
    }
}
