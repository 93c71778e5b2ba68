//! Skipped files, reported so that nobody believes they were used.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{counted, first_few};
use super::tree::{is_below, last, parent};

/// At most this many names of a group are shown, and this many groups.
const NAMES: usize = 4;
const GROUPS: usize = 12;

/// One line per folder and reason: how many, why, the first few names. `passed` holds (path, reason), `used` the
/// paths of files that are used: a folder that has none of them, at any depth, makes one group.
pub(crate) fn report<'a>(
    passed: &[(&'a str, String)],
    used: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut busy: BTreeSet<&str> = BTreeSet::from([""]);
    for path in used {
        let mut folder = parent(path);
        while busy.insert(folder) {
            folder = parent(folder);
        }
    }
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (path, reason) in passed {
        let group = group(path, &busy);
        groups.entry((group, reason)).or_default().push(path);
    }
    let mut lines: Vec<String> = groups
        .iter()
        .take(GROUPS)
        .map(|((folder, reason), paths)| {
            let within = |path: &&'a str| match is_below(path, folder) && !folder.is_empty() {
                true => path[folder.len() + 1..].to_owned(),
                false => (*path).to_owned(),
            };
            let names: Vec<String> = paths.iter().map(within).collect();
            let place = match *folder {
                "" => String::new(),
                folder => format!("in {folder}/ "),
            };
            format!(
                "{place}{} passed over ({reason}): {}",
                counted(paths.len(), "file"),
                first_few(&names, NAMES)
            )
        })
        .collect();
    let rest: usize = groups.values().skip(GROUPS).map(Vec::len).sum();
    if rest > 0 {
        lines.push(format!(
            "{rest} more files passed over, in {} more places, the last of them {}",
            groups.len() - GROUPS,
            groups
                .keys()
                .next_back()
                .map_or("", |(folder, _)| last(folder))
        ));
    }
    lines
}

/// The topmost folder above `path` that has no used file, or the folder that holds it.
fn group<'a>(path: &'a str, busy: &BTreeSet<&str>) -> &'a str {
    let mut folder = parent(path);
    while !busy.contains(folder) && !busy.contains(parent(folder)) {
        folder = parent(folder);
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_folder_and_reason() {
        let no = || "no picture".to_owned();
        let passed = [
            ("README", no()),
            ("images/a.txt", no()),
            ("images/b.dcm", "a DICOM file".to_owned()),
            ("other/x/1", no()),
            ("other/y/2", no()),
            ("other/y/3", no()),
            ("other/y/4", no()),
            ("other/y/5", no()),
        ];
        let used = ["images/a.png", "masks/MA/a.png"];
        assert_eq!(
            report(&passed, used.into_iter()),
            [
                "1 file passed over (no picture): README",
                "in images/ 1 file passed over (a DICOM file): b.dcm",
                "in images/ 1 file passed over (no picture): a.txt",
                "in other/ 5 files passed over (no picture): x/1, y/2, y/3, y/4 and 1 more",
            ]
        );
    }

    #[test]
    fn many_places_are_counted() {
        let names: Vec<String> = (10..40).map(|n| format!("d{n}/a")).collect();
        let passed: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), "x".to_owned()))
            .collect();
        let lines = report(&passed, ["images/a.png"].into_iter());
        assert_eq!(lines.len(), GROUPS + 1);
        assert_eq!(
            lines[GROUPS],
            "18 more files passed over, in 18 more places, the last of them d39"
        );
    }
}
