//! The label table: images, patches and labels per split.

use std::fmt;

use crate::manifest::{Manifest, SplitCounts};
use crate::{CLASSES, Split};

/// Figures per split and in sum; `Display` prints them as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelTable {
    /// One line per split that has images, in the order train, val, test.
    pub splits: Vec<(Split, SplitCounts)>,
    /// All splits together.
    pub total: SplitCounts,
    min_lesion_pixels: u32,
}

impl SplitCounts {
    /// The figures of some images, each given by its cell labels and black cells.
    pub(crate) fn of<'a>(images: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut counts = Self::default();
        for (labels, black) in images {
            counts.images += 1;
            counts.patches += labels.len() as u64;
            counts.healthy += labels.iter().filter(|label| **label == 0).count() as u64;
            counts.black += black.iter().filter(|black| **black != 0).count() as u64;
            let image_label = labels.iter().fold(0, |all, label| all | label);
            for class in 0..CLASSES.len() {
                counts.label_sums[class] += labels
                    .iter()
                    .map(|label| u64::from(label >> class & 1))
                    .sum::<u64>();
                counts.image_label_sums[class] += u64::from(image_label >> class & 1);
            }
        }
        counts.with_rates()
    }

    fn with_rates(mut self) -> Self {
        self.positive_rates = self
            .image_label_sums
            .map(|sum| sum as f64 / self.images.max(1) as f64);
        self
    }
}

impl LabelTable {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        let mut total = SplitCounts::default();
        for counts in manifest.splits.values() {
            total.images += counts.images;
            total.patches += counts.patches;
            total.healthy += counts.healthy;
            total.black += counts.black;
            for class in 0..CLASSES.len() {
                total.label_sums[class] += counts.label_sums[class];
                total.image_label_sums[class] += counts.image_label_sums[class];
            }
        }
        let filled = manifest
            .splits
            .iter()
            .filter(|(_, counts)| counts.images > 0);
        Self {
            splits: filled.map(|(split, counts)| (*split, *counts)).collect(),
            total: total.with_rates(),
            min_lesion_pixels: manifest.recipe.min_lesion_pixels,
        }
    }

    fn line(f: &mut fmt::Formatter<'_>, name: &str, counts: &SplitCounts) -> fmt::Result {
        let SplitCounts {
            images,
            patches,
            healthy,
            black,
            label_sums,
            positive_rates,
            ..
        } = counts;
        write!(
            f,
            "{name:<6} {images:>7} {patches:>9} {healthy:>9} {black:>8}  "
        )?;
        for sum in label_sums {
            write!(f, " {sum:>7}")?;
        }
        write!(f, "  ")?;
        for rate in positive_rates {
            write!(f, " {rate:>5.2}")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for LabelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ma, he, ex, se] = CLASSES;
        writeln!(
            f,
            "{:42}   {:^32}  {:^24}",
            "", "patches with", "share of images with"
        )?;
        writeln!(
            f,
            "{:<6} {:>7} {:>9} {:>9} {:>8}   {ma:>7} {he:>7} {ex:>7} {se:>7}   {ma:>5} {he:>5} {ex:>5} {se:>5}",
            "split", "images", "patches", "healthy", "black"
        )?;
        for (split, counts) in &self.splits {
            Self::line(f, split.name(), counts)?;
        }
        Self::line(f, "all", &self.total)?;
        let rule = match self.min_lesion_pixels {
            1 => "any of its pixels has it".to_owned(),
            n => format!("at least {n} of its pixels have it"),
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
        let images: [(&[u8], &[u8]); 2] = [
            (&[0, 1, 3, 0], &[1, 0, 0, 0]),
            (&[0, 0, 8, 8], &[1, 1, 0, 0]),
        ];
        let counts = SplitCounts::of(images.into_iter());
        assert_eq!(
            (counts.images, counts.patches, counts.healthy, counts.black),
            (2, 8, 4, 3)
        );
        assert_eq!(counts.label_sums, [2, 1, 0, 2]);
        assert_eq!(counts.positive_rates, [0.5, 0.5, 0.0, 0.5]);
    }
}
