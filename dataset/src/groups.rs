//! Splits that keep groups together: all images of one patient on one side.

use std::collections::{BTreeMap, HashMap};

use regex::Regex;

use crate::split::{MOST_PAIRS, SHARES, shuffled, sizes, stratify_by};
use crate::{Error, Result, Split};

/// The group of each image: what the first group of `pattern` captures in its id, else the whole match. `None` where
/// it does not match, or matches nothing.
///
/// # Errors
/// [`Error::Option`] when the pattern is no regular expression.
pub(crate) fn groups<'a>(pattern: &str, ids: &[&'a str]) -> Result<Vec<Option<&'a str>>> {
    let regex = Regex::new(pattern).map_err(|error| {
        let reason = error.to_string();
        let last = reason.lines().last().unwrap_or_default();
        Error::Option {
            option: "--group-by",
            value: format!("`{pattern}`"),
            limit: format!(
                "must be a regular expression ({})",
                last.trim_start_matches("error: ")
            ),
            help: "for names like P001_left use '^(.+)_(?:left|right)$'".to_owned(),
        }
    })?;
    let group = |id: &&'a str| {
        let captures = regex.captures(id)?;
        let found = captures.get(1).or_else(|| captures.get(0))?;
        (!found.is_empty()).then(|| &id[found.range()])
    };
    Ok(ids.iter().map(group).collect())
}

/// As [`crate::stratify`], with the images of a group in one split. Pure. `groups` holds a name per image; `None` is a
/// group of its own. Sizes come as near to 70/15/15 as moving or exchanging groups brings them, and then the classes to
/// their shares; no split is empty when there are three groups. Without a group of two images the answer is that of
/// [`crate::stratify`].
///
/// # Panics
/// When `ids`, `groups` and `images` differ in length.
pub fn stratify_groups<S: AsRef<str>>(
    ids: &[S],
    groups: &[Option<&str>],
    images: &[Vec<bool>],
    seed: u64,
) -> Vec<Split> {
    stratify_groups_by(ids, groups, images, seed, SHARES)
}

/// As [`stratify_groups`], with other shares of train, val and test.
pub(crate) fn stratify_groups_by<S: AsRef<str>>(
    ids: &[S],
    groups: &[Option<&str>],
    images: &[Vec<bool>],
    seed: u64,
    shares: [f64; 3],
) -> Vec<Split> {
    assert!(
        ids.len() == groups.len() && ids.len() == images.len(),
        "one group and one set of classes per image"
    );
    let units = units(groups);
    if units.iter().all(|unit| unit.len() == 1) {
        return stratify_by(ids, images, seed, shares);
    }
    // A group is dealt by its first image's id: the order depends neither on the pattern nor on other groups.
    let names: Vec<&str> = units.iter().map(|unit| ids[unit[0]].as_ref()).collect();
    let kinds: Vec<GroupKind> = units
        .iter()
        .map(|unit| GroupKind::of(unit, images))
        .collect();
    let deal = Deal::new(&kinds, sizes(ids.len(), shares), shares);
    let dealt = deal.run(&kinds, &shuffled(&names, seed));
    let mut splits = vec![Split::Train; ids.len()];
    for (unit, split) in units.iter().zip(dealt) {
        for &image in unit {
            splits[image] = Split::ALL[split];
        }
    }
    splits
}

/// The images of each group, in the order of their first image.
fn units(groups: &[Option<&str>]) -> Vec<Vec<usize>> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (image, group) in groups.iter().enumerate() {
        let number = match group {
            Some(group) => *numbers.entry(group).or_insert(units.len()),
            None => units.len(),
        };
        if number == units.len() {
            units.push(Vec::new());
        }
        units[number].push(image);
    }
    units
}

/// What counts of a group: its images, and how many have each class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKind {
    images: usize,
    classes: Vec<usize>,
}

impl GroupKind {
    fn of(unit: &[usize], images: &[Vec<bool>]) -> Self {
        let with = |class: usize| unit.iter().filter(|image| images[**image][class]).count();
        Self {
            images: unit.len(),
            classes: (0..images[unit[0]].len()).map(with).collect(),
        }
    }

    /// No group: what one is moved for that is not exchanged.
    fn nothing(classes: usize) -> Self {
        Self {
            images: 0,
            classes: vec![0; classes],
        }
    }
}

/// How far the splits are from what they should be. Images first, classes second.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Cost(f64, f64);

/// What each split holds and should hold.
struct Deal {
    shares: [f64; 3],
    target: [usize; 3],
    wanted: [Vec<f64>; 3],
    /// Images and images per class; signed, for what a move would make of them.
    held: [(i64, Vec<i64>); 3],
    nothing: GroupKind,
}

impl Deal {
    fn new(kinds: &[GroupKind], target: [usize; 3], shares: [f64; 3]) -> Self {
        let classes = kinds.first().map_or(0, |kind| kind.classes.len());
        let total = |class: usize| kinds.iter().map(|kind| kind.classes[class]).sum::<usize>();
        let totals: Vec<usize> = (0..classes).map(total).collect();
        let wanted = |share: f64| totals.iter().map(|total| *total as f64 * share).collect();
        Self {
            shares,
            target,
            wanted: shares.map(wanted),
            held: [(); 3].map(|()| (0, vec![0; classes])),
            nothing: GroupKind::nothing(classes),
        }
    }

    /// A split per group.
    fn run(mut self, kinds: &[GroupKind], order: &[usize]) -> Vec<usize> {
        let mut by_size = order.to_vec();
        by_size.sort_by_key(|&unit| std::cmp::Reverse(kinds[unit].images));
        let mut splits = vec![0; kinds.len()];
        for unit in by_size {
            splits[unit] = self.best_place(&kinds[unit]);
            self.add(splits[unit], &kinds[unit], 1);
        }
        self.improve(kinds, order, &mut splits);
        splits
    }

    /// The split that lacks most images, in relation to its share; of equal ones that which lacks most of the classes.
    fn best_place(&self, kind: &GroupKind) -> usize {
        let lack = |split: usize| {
            let (images, classes) = &self.held[split];
            let share = self.shares[split];
            let of_classes: f64 = (0..classes.len())
                .filter(|class| kind.classes[*class] > 0)
                .map(|class| (self.wanted[split][class] - classes[class] as f64) / share)
                .sum();
            (
                (self.target[split] as f64 - *images as f64) / share,
                of_classes,
            )
        };
        let open = (0..3).filter(|&split| self.shares[split] > 0.0);
        open.max_by(|&a, &b| {
            let (x, y) = (lack(a), lack(b));
            x.0.total_cmp(&y.0)
                .then(x.1.total_cmp(&y.1))
                .then(b.cmp(&a))
        })
        .unwrap_or(0)
    }

    fn add(&mut self, split: usize, kind: &GroupKind, times: i64) {
        let (images, classes) = &mut self.held[split];
        *images += times * kind.images as i64;
        for (held, more) in classes.iter_mut().zip(&kind.classes) {
            *held += times * *more as i64;
        }
    }

    /// The cost of `split` if it gave `gives` for `takes`.
    fn cost(&self, split: usize, gives: &GroupKind, takes: &GroupKind) -> Cost {
        let share = self.shares[split];
        let (images, classes) = &self.held[split];
        let images = images - gives.images as i64 + takes.images as i64;
        let off = images as f64 - self.target[split] as f64;
        // A split without images is useless, however near it is to its size.
        let empty = if images == 0 && self.target[split] > 0 {
            1e9
        } else {
            0.0
        };
        let of_class = |class: usize| {
            let held = classes[class] - gives.classes[class] as i64 + takes.classes[class] as i64;
            (held as f64 - self.wanted[split][class]).powi(2)
        };
        let of_classes: f64 = (0..classes.len()).map(of_class).sum();
        Cost(empty + off * off / share, of_classes / share)
    }

    /// Moves groups, and exchanges groups of two splits, the best step first, until none makes it better. Groups of one
    /// kind are alike, so kinds are looked at and not groups.
    fn improve(&mut self, kinds: &[GroupKind], order: &[usize], splits: &mut [usize]) {
        // Groups by split and kind, the first in order last, so that it is taken first.
        let mut members: [BTreeMap<GroupKind, Vec<usize>>; 3] = Default::default();
        for &unit in order.iter().rev() {
            members[splits[unit]]
                .entry(kinds[unit].clone())
                .or_default()
                .push(unit);
        }
        let mut looked_at = 0;
        for _ in 0..4 * kinds.len() {
            let Some((i, gives, j, takes)) = self.best_step(&members, &mut looked_at) else {
                return;
            };
            for (from, to, kind) in [(i, j, gives), (j, i, takes)] {
                if kind == self.nothing {
                    continue;
                }
                let Some(unit) = take(&mut members[from], &kind) else {
                    return;
                };
                splits[unit] = to;
                self.add(from, &kind, -1);
                self.add(to, &kind, 1);
                members[to].entry(kind).or_default().push(unit);
            }
        }
    }

    /// The step that gains most: split `i` gives a group to `j` for another, or for nothing.
    fn best_step(
        &self,
        members: &[BTreeMap<GroupKind, Vec<usize>>; 3],
        looked_at: &mut usize,
    ) -> Option<(usize, GroupKind, usize, GroupKind)> {
        let mut best = (Cost(0.0, 0.0), None);
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            if self.shares[i] <= 0.0 || self.shares[j] <= 0.0 {
                continue;
            }
            let nothing = &self.nothing;
            let before = [i, j].map(|split| self.cost(split, nothing, nothing));
            for gives in members[i].keys().chain([nothing]) {
                for takes in members[j].keys().chain([nothing]) {
                    *looked_at += 1;
                    let after = [self.cost(i, gives, takes), self.cost(j, takes, gives)];
                    let gain = Cost(
                        before[0].0 + before[1].0 - after[0].0 - after[1].0,
                        before[0].1 + before[1].1 - after[0].1 - after[1].1,
                    );
                    if is_better(gain, best.0) {
                        best = (gain, Some((i, gives, j, takes)));
                    }
                }
            }
            if *looked_at > MOST_PAIRS {
                return None;
            }
        }
        let (i, gives, j, takes) = best.1?;
        Some((i, gives.clone(), j, takes.clone()))
    }
}

/// More gained in images; or as much, and more in classes.
fn is_better(gain: Cost, best: Cost) -> bool {
    const LEAST: f64 = 1e-9;
    if (gain.0 - best.0).abs() > LEAST {
        gain.0 > best.0
    } else {
        gain.1 > best.1 + LEAST
    }
}

fn take(members: &mut BTreeMap<GroupKind, Vec<usize>>, kind: &GroupKind) -> Option<usize> {
    let of_kind = members.get_mut(kind)?;
    let unit = of_kind.pop();
    if of_kind.is_empty() {
        members.remove(kind);
    }
    unit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::split::tests::classes;
    use crate::stratify;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("{i:04}")).collect()
    }

    fn held(splits: &[Split], split: Split) -> usize {
        splits.iter().filter(|s| **s == split).count()
    }

    /// How far the sizes are from those without groups.
    fn off(splits: &[Split], target: [usize; 3]) -> [f64; 3] {
        std::array::from_fn(|s| held(splits, Split::ALL[s]) as f64 - target[s] as f64)
    }

    fn size_cost(off: [f64; 3]) -> f64 {
        off.iter()
            .zip(SHARES)
            .map(|(off, share)| off * off / share)
            .sum()
    }

    prop_compose! {
        /// Images with a label and a group; about a third are alone.
        fn images()(images in prop::collection::vec((0u8..16, 0usize..60), 1..200)) -> (Vec<u8>, Vec<Option<String>>) {
            images
                .into_iter()
                .map(|(label, group)| (label, (group < 40).then(|| format!("g{group}"))))
                .unzip()
        }
    }

    proptest! {
        #[test]
        fn no_group_is_in_two_splits_and_none_is_empty((labels, groups) in images(), seed: u64) {
            let ids = ids(labels.len());
            let groups: Vec<Option<&str>> = groups.iter().map(|g| g.as_deref()).collect();
            let splits = stratify_groups(&ids, &groups, &classes(&labels), seed);
            prop_assert_eq!(splits.len(), labels.len());
            let units = units(&groups);
            for unit in &units {
                prop_assert!(unit.iter().all(|i| splits[*i] == splits[unit[0]]));
            }
            if units.len() >= 3 {
                prop_assert!(Split::ALL.iter().all(|split| held(&splits, *split) > 0));
            }
            prop_assert_eq!(&splits, &stratify_groups(&ids, &groups, &classes(&labels), seed));
            // The names of groups do not matter.
            let renamed: Vec<Option<String>> = groups.iter().map(|g| g.map(|g| format!("x{g}"))).collect();
            let renamed: Vec<Option<&str>> = renamed.iter().map(|g| g.as_deref()).collect();
            prop_assert_eq!(&splits, &stratify_groups(&ids, &renamed, &classes(&labels), seed));
        }

        #[test]
        fn no_group_moved_or_exchanged_brings_the_sizes_nearer((labels, groups) in images(), seed: u64) {
            let ids = ids(labels.len());
            let groups: Vec<Option<&str>> = groups.iter().map(|g| g.as_deref()).collect();
            let units = units(&groups);
            let splits = stratify_groups(&ids, &groups, &classes(&labels), seed);
            let off = off(&splits, sizes(ids.len(), SHARES));
            for a in &units {
                for b in units.iter().map(Some).chain([None]) {
                    let from = splits[a[0]] as usize;
                    for to in 0..3 {
                        let back = b.filter(|b| splits[b[0]] as usize == to).map_or(0, Vec::len);
                        let mut moved = off;
                        moved[from] += back as f64 - a.len() as f64;
                        moved[to] += a.len() as f64 - back as f64;
                        let empties = held(&splits, Split::ALL[from]) + back == a.len();
                        prop_assert!(from == to || empties || size_cost(moved) >= size_cost(off) - 1e-6);
                    }
                }
            }
        }

        #[test]
        fn groups_of_one_change_nothing(labels in prop::collection::vec(0u8..16, 0..120), seed: u64, named: bool) {
            let ids = ids(labels.len());
            let groups: Vec<Option<&str>> = ids.iter().map(|id| named.then_some(id.as_str())).collect();
            prop_assert_eq!(stratify_groups(&ids, &groups, &classes(&labels), seed), stratify(&ids, &classes(&labels), seed));
        }

        #[test]
        fn pairs_keep_sizes_and_classes(labels in prop::collection::vec(0u8..16, 40..150), seed: u64) {
            // Both eyes of a patient mostly have the same lesions.
            let labels: Vec<u8> = labels.iter().flat_map(|label| [*label, *label]).collect();
            let ids = ids(labels.len());
            let names: Vec<String> = (0..labels.len()).map(|i| format!("p{}", i / 2)).collect();
            let groups: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
            let splits = stratify_groups(&ids, &groups, &classes(&labels), seed);
            let off = off(&splits, sizes(ids.len(), SHARES));
            prop_assert!(off.iter().all(|off| off.abs() <= 2.0), "{:?}", off);
            for (split, share) in Split::ALL.into_iter().zip(SHARES) {
                for class in 0..4 {
                    let of_class = |label: &u8| label >> class & 1 == 1;
                    let all = labels.iter().filter(|label| of_class(label)).count() as f64;
                    let here = labels.iter().zip(&splits).filter(|(label, s)| of_class(label) && **s == split).count() as f64;
                    prop_assert!((here - share * all).abs() <= 4.0, "class {} in {}: {} of {}", class, split, here, all);
                }
            }
        }
    }

    #[test]
    fn two_shares_fill_two_splits() {
        let labels: Vec<u8> = (0..54).map(|i| (i * 7 % 16) as u8).collect();
        let ids = ids(54);
        let two = [SHARES[0] / 0.85, SHARES[1] / 0.85, 0.0];
        let splits = stratify_groups_by(&ids, &[None; 54], &classes(&labels), 3, two);
        assert_eq!(Split::ALL.map(|split| held(&splits, split)), [44, 10, 0]);
        let names: Vec<String> = (0..54).map(|i| format!("p{}", i / 2)).collect();
        let groups: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
        let splits = stratify_groups_by(&ids, &groups, &classes(&labels), 3, two);
        assert_eq!(Split::ALL.map(|split| held(&splits, split)), [44, 10, 0]);
    }

    #[test]
    fn patterns_name_groups() {
        let ids = ["P01_left", "P01_right", "x", "P_"];
        let by = |pattern: &str| groups(pattern, &ids).unwrap();
        assert_eq!(by("^(P[0-9]+)_"), [Some("P01"), Some("P01"), None, None]);
        assert_eq!(by("^P[0-9]*"), [Some("P01"), Some("P01"), None, Some("P")]);
        assert_eq!(by("^P([0-9]*)"), [Some("01"), Some("01"), None, None]);
        let text = groups("(", &ids).unwrap_err().to_string();
        assert!(
            text.contains(
                "--group-by is `(`, but must be a regular expression (unclosed group)\n  help: "
            ),
            "{text}"
        );
    }
}
