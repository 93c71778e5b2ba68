//! Tasks made of names of classes that a raw dataset brings.

use fovea_task::{Class, Kind, Level, MAX_CLASSES, Target, Task};

use crate::Split;
use crate::raw::names::folder_key;

/// Colours of classes, in turn; told apart on dark and on light ground.
const COLOURS: [[u8; 3]; 10] = [
    [0, 229, 255],
    [57, 255, 20],
    [255, 77, 255],
    [255, 183, 0],
    [255, 82, 82],
    [124, 108, 255],
    [0, 200, 150],
    [255, 255, 120],
    [160, 160, 170],
    [255, 140, 190],
];

/// A task with one target at image level, which is called `image` as that of the lesions.
///
/// # Errors
/// A sentence with the reason: no classes, too many, or two alike.
pub(super) fn image_task(kind: Kind, names: &[String]) -> Result<Task, String> {
    if names.len() > MAX_CLASSES {
        return Err(format!(
            "{} classes, {MAX_CLASSES} are possible",
            names.len()
        ));
    }
    let class = |(number, name): (usize, &String)| Class {
        name: name.clone(),
        title: name.clone(),
        colour: COLOURS[number % COLOURS.len()],
    };
    Task::new(vec![Target {
        name: Level::Image.name().to_owned(),
        level: Level::Image,
        kind,
        classes: names.iter().enumerate().map(class).collect(),
        union_of_cells: false,
    }])
}

/// Names in the order of classes: numbers by their value, then the others by their bytes; each once.
pub(super) fn in_order(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.collect();
    let number = |name: &String| name.parse::<f64>().ok().filter(|n| n.is_finite());
    names.sort_by(|a, b| match (number(a), number(b)) {
        (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    });
    names.dedup();
    names
}

/// The split that a folder, a file or a field of a table is called by.
pub(super) fn split_called(name: &str) -> Option<Split> {
    match folder_key(name).as_str() {
        "train" | "training" | "training set" | "train set" => Some(Split::Train),
        "val" | "valid" | "validation" | "validation set" | "val set" | "dev" => Some(Split::Val),
        "test" | "testing" | "testing set" | "test set" => Some(Split::Test),
        key => {
            let ends_with = |word: &str| key.rsplit(' ').next() == Some(word);
            match (ends_with("test"), ends_with("train"), ends_with("val")) {
                (true, ..) => Some(Split::Test),
                (_, true, _) => Some(Split::Train),
                (.., true) => Some(Split::Val),
                _ => None,
            }
        }
    }
}

/// Splits as they are kept: where nothing is for validation, that is drawn from what was published for training; and where
/// everything is for training, nothing is divided.
pub(super) fn keep_published(splits: &mut [&mut Option<Split>]) {
    let has = |wanted: Split, splits: &[&mut Option<Split>]| {
        splits.iter().any(|split| **split == Some(wanted))
    };
    if has(Split::Val, splits) {
        return;
    }
    let has_train = has(Split::Train, splits);
    for split in splits.iter_mut() {
        // Without images to train on, a published test set is all there is, and is divided.
        if **split == Some(Split::Train) || !has_train {
            **split = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_splits_in_any_spelling() {
        for (name, split) in [
            ("Training", Some(Split::Train)),
            ("a. Training Set", Some(Split::Train)),
            ("offsite_test", Some(Split::Test)),
            ("valid", Some(Split::Val)),
            ("my-val", Some(Split::Val)),
            ("contest", None),
            ("images", None),
        ] {
            assert_eq!(split_called(name), split, "{name}");
        }
    }

    #[test]
    fn classes_are_ordered_as_people_count() {
        let names = ["10", "b", "2", "a", "2", "1.5"].map(str::to_owned);
        assert_eq!(in_order(names.into_iter()), ["1.5", "2", "10", "a", "b"]);
    }

    #[test]
    fn a_published_split_keeps_its_test_set_and_gives_validation_from_training() {
        let kept = |splits: &[Option<Split>]| {
            let mut splits = splits.to_vec();
            keep_published(&mut splits.iter_mut().collect::<Vec<_>>());
            splits
        };
        let [train, val, test] = Split::ALL.map(Some);
        assert_eq!(kept(&[train, test, None]), [None, test, None]);
        assert_eq!(kept(&[train, val, test]), [train, val, test]);
        assert_eq!(kept(&[train, val]), [train, val]);
        assert_eq!(kept(&[train, train]), [None, None]);
        assert_eq!(kept(&[test, test]), [None, None]);
    }
}
