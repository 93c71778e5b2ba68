//! The label table: images, patches and labels per split.

use std::fmt;

use fovea_task::{Class, Kind, Label, Level, Target, Task};

use crate::Split;
use crate::manifest::{Manifest, SplitCounts};

/// Figures per split and in sum; `Display` prints them as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelTable {
    /// One line per split that has images, in the order train, val, test.
    pub splits: Vec<(Split, SplitCounts)>,
    /// The sums over all splits, and the rates of all images.
    pub total: SplitCounts,
    task: Task,
    min_lesion_pixels: u32,
    has_grid: bool,
    unlabelled: usize,
}

/// What [`SplitCounts`] counts of one image.
#[derive(Clone, Debug)]
pub(crate) struct ImageLabels {
    /// One label per target at image level, in task order.
    pub image: Vec<Label>,
    /// Labels of its cells; empty without a target at patch level.
    pub cells: Vec<Label>,
    /// 1 for black cells.
    pub black: Vec<u8>,
}

impl SplitCounts {
    /// The figures of some images.
    pub(crate) fn of<'a>(task: &Task, images: impl Iterator<Item = &'a ImageLabels>) -> Self {
        let mut counts = Self::none(task);
        for ImageLabels {
            image,
            cells,
            black,
        } in images
        {
            counts.images += 1;
            counts.patches += black.len() as u64;
            counts.black += black.iter().filter(|black| **black != 0).count() as u64;
            if let Some(target) = task.cells() {
                let is_healthy = |label: &&Label| target.kind == Kind::AnyOf && label.0 == 0;
                counts.healthy += cells.iter().filter(is_healthy).count() as u64;
                add(&mut counts.label_sums, target, cells);
            }
            let mut sums = &mut counts.image_label_sums[..];
            for (target, label) in task.at(Level::Image).zip(image) {
                let (of_target, rest) = sums.split_at_mut(target.classes.len());
                add(of_target, target, std::slice::from_ref(label));
                sums = rest;
            }
        }
        counts.with_rates()
    }

    /// The figures of no images.
    fn none(task: &Task) -> Self {
        Self {
            label_sums: vec![0; classes(task, Level::Patch).count()],
            image_label_sums: vec![0; classes(task, Level::Image).count()],
            ..Self::default()
        }
    }

    fn with_rates(mut self) -> Self {
        let rate = |sum: &u64| *sum as f64 / self.images.max(1) as f64;
        self.positive_rates = self.image_label_sums.iter().map(rate).collect();
        self
    }
}

/// Counts the labels that have each class.
fn add(sums: &mut [u64], target: &Target, labels: &[Label]) {
    for (class, sum) in sums.iter_mut().enumerate() {
        *sum += labels
            .iter()
            .filter(|label| target.has(**label, class))
            .count() as u64;
    }
}

/// The classes of the targets at `level`, one target after the other.
fn classes(task: &Task, level: Level) -> impl Iterator<Item = &Class> {
    task.at(level).flat_map(|target| &target.classes)
}

impl LabelTable {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        let mut total = SplitCounts::none(&manifest.task);
        for counts in manifest.splits.values() {
            total.images += counts.images;
            total.patches += counts.patches;
            total.healthy += counts.healthy;
            total.black += counts.black;
            for (sums, more) in [
                (&mut total.label_sums, &counts.label_sums),
                (&mut total.image_label_sums, &counts.image_label_sums),
            ] {
                for (sum, more) in sums.iter_mut().zip(more) {
                    *sum += more;
                }
            }
        }
        let filled = manifest
            .splits
            .iter()
            .filter(|(_, counts)| counts.images > 0);
        Self {
            splits: filled
                .map(|(split, counts)| (*split, counts.clone()))
                .collect(),
            total: total.with_rates(),
            task: manifest.task.clone(),
            min_lesion_pixels: manifest.recipe.min_lesion_pixels,
            has_grid: manifest.grid > 0,
            unlabelled: manifest.unlabelled(),
        }
    }

    /// Widths of the columns of cells and of images; a name that is longer widens its own.
    fn widths(&self) -> [Vec<usize>; 2] {
        [(Level::Patch, 7), (Level::Image, 5)].map(|(level, least)| {
            let names = classes(&self.task, level).map(|class| class.name.chars().count());
            names.map(|length| length.max(least)).collect()
        })
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str, counts: &SplitCounts) -> fmt::Result {
        self.figures(f, name, counts)?;
        writeln!(f)
    }

    fn figures(&self, f: &mut fmt::Formatter<'_>, name: &str, counts: &SplitCounts) -> fmt::Result {
        let SplitCounts {
            images,
            patches,
            healthy,
            black,
            label_sums,
            positive_rates,
            ..
        } = counts;
        let [of_cells, of_images] = self.widths();
        write!(f, "{name:<6} {images:>7}")?;
        if self.has_grid {
            write!(f, " {patches:>9}")?;
            if !of_cells.is_empty() {
                write!(f, " {healthy:>9}")?;
            }
            write!(f, " {black:>8}")?;
        }
        write!(f, "  ")?;
        for (sum, width) in label_sums.iter().zip(&of_cells) {
            write!(f, " {sum:>width$}")?;
        }
        if !of_cells.is_empty() {
            write!(f, "  ")?;
        }
        for (rate, width) in positive_rates.iter().zip(&of_images) {
            write!(f, " {rate:>width$.2}")?;
        }
        Ok(())
    }

    /// The two lines above the figures.
    fn headings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [of_cells, of_images] = self.widths();
        let sum = |widths: &[usize]| widths.iter().map(|width| width + 1).sum::<usize>();
        let has_cells = !of_cells.is_empty();
        let before = match (self.has_grid, has_cells) {
            (false, _) => 16,
            (true, false) => 35,
            (true, true) => 45,
        };
        write!(f, "{:before$}", "")?;
        if has_cells {
            write!(f, "{:^1$}  ", "patches with", sum(&of_cells))?;
        }
        if !of_images.is_empty() {
            write!(f, "{:^1$}", "share of images with", sum(&of_images))?;
        }
        writeln!(f)?;
        write!(f, "{:<6} {:>7}", "split", "images")?;
        if self.has_grid {
            write!(f, " {:>9}", "patches")?;
            if has_cells {
                write!(f, " {:>9}", "healthy")?;
            }
            write!(f, " {:>8}", "black")?;
        }
        write!(f, "  ")?;
        for (class, width) in classes(&self.task, Level::Patch).zip(&of_cells) {
            write!(f, " {:>width$}", class.name)?;
        }
        if has_cells {
            write!(f, "  ")?;
        }
        for (class, width) in classes(&self.task, Level::Image).zip(&of_images) {
            write!(f, " {:>width$}", class.name)?;
        }
        writeln!(f)
    }
}

impl fmt::Display for LabelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.headings(f)?;
        for (split, counts) in &self.splits {
            self.line(f, split.name(), counts)?;
        }
        // The last line has no end of its own.
        let ends = self.unlabelled > 0 || self.has_grid;
        self.figures(f, "all", &self.total)?;
        if ends {
            writeln!(f)?;
        }
        if self.unlabelled > 0 {
            let images = if self.unlabelled == 1 {
                "image has"
            } else {
                "images have"
            };
            write!(
                f,
                "{} more {images} no label, and so no split: `fovea predict` scores them.",
                self.unlabelled
            )?;
        }
        if !self.has_grid {
            return Ok(());
        }
        if self.unlabelled > 0 {
            writeln!(f)?;
        }
        let rule = match (self.task.cells(), self.min_lesion_pixels) {
            (None, _) => return write!(f, "Patches have no labels of their own."),
            (Some(_), 1) => "any of its pixels has it".to_owned(),
            (Some(_), n) => format!("at least {n} of its pixels have it"),
        };
        write!(
            f,
            "A patch has a class when {rule}; black patches are among the healthy ones."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_labels_and_black_cells() {
        let image = |cells: [u64; 4], black: [u8; 4]| {
            let cells = cells.map(Label).to_vec();
            ImageLabels {
                image: vec![crate::labels::union(&cells)],
                cells,
                black: black.to_vec(),
            }
        };
        let images = [
            image([0, 1, 3, 0], [1, 0, 0, 0]),
            image([0, 0, 8, 8], [1, 1, 0, 0]),
        ];
        let counts = SplitCounts::of(&Task::lesions(), images.iter());
        assert_eq!(
            (counts.images, counts.patches, counts.healthy, counts.black),
            (2, 8, 4, 3)
        );
        assert_eq!(counts.label_sums, [2, 1, 0, 2]);
        assert_eq!(counts.positive_rates, [0.5, 0.5, 0.0, 0.5]);
    }
}
