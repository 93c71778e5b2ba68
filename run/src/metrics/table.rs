//! What is scored: ids, labels and probabilities in columns.

use fovea_task::{Kind, Label, Target};

use super::{Error, Ranking, Result};

/// Scored samples (patches or images) of one target, in columns; their order means nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Unique within the table: the sample id of a patch, the index of an image.
    pub ids: Vec<u64>,
    /// As many; [`Label::UNKNOWN`] leaves a sample out of every score.
    pub labels: Vec<Label>,
    /// Probability per class in `[0, 1]`, `[n, C]`, row-major.
    pub probabilities: Vec<f32>,
}

impl Table {
    /// Adds a sample; `probabilities` has one number per class.
    pub fn push(&mut self, id: u64, label: Label, probabilities: &[f32]) {
        self.ids.push(id);
        self.labels.push(label);
        self.probabilities.extend_from_slice(probabilities);
    }

    /// Samples, with and without label.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The ranking of `class` among the labelled samples; probabilities must not be NaN.
    #[must_use]
    pub fn ranking(&self, target: &Target, class: usize) -> Ranking {
        let scores = self.probabilities.chunks_exact(target.classes.len());
        let labelled = self.labels.iter().zip(scores);
        Ranking::new(
            labelled
                .filter(|(label, _)| label.is_known())
                .map(|(label, scores)| (scores[class], target.has(*label, class)))
                .collect(),
        )
    }

    /// The labelled samples by rising id, checked: ids unique, labels of the target, probabilities in `[0, 1]`.
    pub(super) fn checked(&self, target: &Target) -> Result<Self> {
        let classes = target.classes.len();
        if self.labels.len() != self.len() || self.probabilities.len() != self.len() * classes {
            return Err(Error::Shape {
                ids: self.len(),
                labels: self.labels.len(),
                probabilities: self.probabilities.len(),
                classes,
            });
        }
        let row = |i: usize| &self.probabilities[i * classes..][..classes];
        for (i, (&id, &label)) in self.ids.iter().zip(&self.labels).enumerate() {
            if !target.allows(label) {
                return Err(bad_label(target, id, label));
            }
            let bad = row(i).iter().position(|p| !(0.0..=1.0).contains(p));
            if let Some(class) = bad {
                return Err(Error::BadProbability {
                    id,
                    class: target.classes[class].name.clone(),
                    value: row(i)[class],
                });
            }
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|&i| self.ids[i]);
        if let Some(pair) = order
            .windows(2)
            .find(|pair| self.ids[pair[0]] == self.ids[pair[1]])
        {
            return Err(Error::Duplicate {
                id: self.ids[pair[0]],
                samples: self.len(),
            });
        }
        order.retain(|&i| self.labels[i].is_known());
        let mut sorted = Self::default();
        for i in order {
            sorted.push(self.ids[i], self.labels[i], row(i));
        }
        match sorted.is_empty() {
            true => Err(Error::Empty),
            false => Ok(sorted),
        }
    }
}

pub(super) fn bad_label(target: &Target, id: u64, label: Label) -> Error {
    let (classes, label) = (target.classes.len(), label.0);
    let reason = match target.kind {
        Kind::AnyOf => format!(
            "label byte {label} has bits beyond the {classes} classes (largest is {})",
            (1u64 << classes) - 1
        ),
        Kind::OneOf => format!(
            "label {label} is none of the {classes} classes (largest is {})",
            classes - 1
        ),
    };
    Error::BadLabel { id, reason }
}

/// The classes of a label that is known, as bits.
pub(super) fn set_of(target: &Target, label: Label) -> u64 {
    match target.kind {
        Kind::AnyOf => label.0,
        Kind::OneOf => 1 << label.0,
    }
}
