//! Assigns images to training, validation and test: as published if the raw dataset says so, by groups if asked.

use std::collections::{HashMap, HashSet};

use super::PrepareOptions;
use crate::groups::{groups, stratify_groups_by};
use crate::raw::Raw;
use crate::raw::names::first_few;
use crate::split::SHARES;
use crate::{Error, Result, Split};

/// At most this many names stand in one message.
const NAMES: usize = 5;

/// What is known of the split before the first image is read.
pub(super) struct Splitter {
    /// Per image, where the raw dataset says it.
    given: Vec<Option<Split>>,
    /// Images that nothing labels: they belong to no split.
    unlabelled: Vec<bool>,
    /// Names of groups by image; `None` is a group of its own.
    groups: Vec<Option<String>>,
    /// What the user should know.
    pub words: Vec<String>,
}

impl Splitter {
    /// # Errors
    /// [`Error::Option`] for a `--group-by` that is no regular expression, leaves fewer groups than splits, or has a
    /// group on both sides of a published split.
    pub fn new(raw: &Raw, options: &PrepareOptions) -> Result<Self> {
        let ids: Vec<&str> = raw.images.iter().map(|image| image.id.as_str()).collect();
        let given: Vec<Option<Split>> = raw.images.iter().map(|image| image.split).collect();
        let unlabelled = raw
            .images
            .iter()
            .map(|image| image.is_unlabelled(&raw.task));
        let mut splitter = Self {
            given,
            unlabelled: unlabelled.collect(),
            groups: raw.images.iter().map(|image| image.group.clone()).collect(),
            words: Vec::new(),
        };
        let Some(pattern) = &options.group_by else {
            let named: Vec<Option<&str>> = splitter.groups.iter().map(Option::as_deref).collect();
            let word = torn(&named, &splitter.given).map(|group| {
                format!("the published parts divide groups (`{group}` among them), and are kept as they are: scores will look better than they are, so say this where you report them")
            });
            splitter.words.extend(word);
            return Ok(splitter);
        };
        let named = groups(pattern, &ids)?;
        let refuse = |limit: String| {
            Error::Option {
            option: "--group-by",
            value: format!("`{pattern}`"),
            limit,
            help: "its first group should be what the images of one patient share, and no more; for names like P001_left use '^(.+)_(?:left|right)$'".to_owned(),
        }
        };
        let alone: Vec<&str> = ids
            .iter()
            .zip(&named)
            .filter(|(_, group)| group.is_none())
            .map(|(id, _)| *id)
            .collect();
        let distinct: HashSet<&str> = named.iter().flatten().copied().collect();
        let count = distinct.len() + alone.len();
        if count < 3 && ids.len() >= 3 {
            return Err(refuse(format!(
                "must leave 3 groups for train, val and test, and puts the {} images into {count}",
                ids.len()
            )));
        }
        if let Some(group) = torn(&named, &splitter.given) {
            return Err(refuse(format!(
                "puts images of both published parts into the group `{group}`"
            )));
        }
        if !alone.is_empty() {
            splitter.words.push(format!(
                "--group-by `{pattern}` does not match {} of the {} images; each of them is a group of its own: {}",
                alone.len(),
                ids.len(),
                first_few(&alone, NAMES)
            ));
        }
        splitter.groups = named.iter().map(|group| group.map(str::to_owned)).collect();
        Ok(splitter)
    }

    /// A split per image, by the classes that each image has. What is published stays; the rest is divided into train and val
    /// as 70 to 15 then, else into all three. Images without any label get none.
    pub fn splits(&self, ids: &[&str], classes: &[Vec<bool>], seed: u64) -> Vec<Option<Split>> {
        let labelled: Vec<usize> = (0..ids.len()).filter(|i| !self.unlabelled[*i]).collect();
        let open: Vec<usize> = labelled
            .iter()
            .copied()
            .filter(|i| self.given[*i].is_none())
            .collect();
        let shares = match open.len() == labelled.len() {
            true => SHARES,
            false => [SHARES[0], SHARES[1], 0.0].map(|share| share / (SHARES[0] + SHARES[1])),
        };
        let of_ids: Vec<&str> = open.iter().map(|i| ids[*i]).collect();
        let of_classes: Vec<Vec<bool>> = open.iter().map(|i| classes[*i].clone()).collect();
        let of_groups: Vec<Option<&str>> =
            open.iter().map(|i| self.groups[*i].as_deref()).collect();
        let dealt = stratify_groups_by(&of_ids, &of_groups, &of_classes, seed, shares);
        let mut splits = vec![None; ids.len()];
        for image in labelled {
            splits[image] = self.given[image];
        }
        for (image, split) in open.into_iter().zip(dealt) {
            splits[image] = Some(split);
        }
        splits
    }
}

/// A group that has images in a published split and images outside it.
fn torn<'a>(groups: &[Option<&'a str>], given: &[Option<Split>]) -> Option<&'a str> {
    let mut seen: HashMap<&str, Option<Split>> = HashMap::new();
    let named = groups
        .iter()
        .zip(given)
        .filter_map(|(group, split)| group.map(|group| (group, *split)));
    named
        .into_iter()
        .find(|(group, split)| *seen.entry(group).or_insert(*split) != *split)
        .map(|(group, _)| group)
}
