//! What a layout finds: a task, and the images with the labels and files that answer it.

use fovea_task::{Label, Task};

use crate::Split;

/// A raw dataset as its layout reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct RawSet {
    /// The questions that its labels answer.
    pub task: Task,
    /// In any order; `prepare` sorts them by id.
    pub images: Vec<RawImage>,
}

/// One image of a raw dataset. Files are named by their position, as [`Scan`](super::Scan) gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct RawImage {
    /// Its name in everything that `prepare` writes; no two images share one.
    pub id: String,
    /// The file of the photograph.
    pub image: usize,
    /// Labels for targets at image level, each with its target's position in the task. A target without one here is
    /// [`Label::UNKNOWN`] for this image; one with `union_of_cells` takes none.
    pub labels: Vec<(usize, Label)>,
    /// What labels its cells: something in every image of a task with a target at patch level, nothing in any other.
    pub cells: Evidence,
    /// Retinopathy grade 0 to 4, stored beside the labels.
    pub grade: Option<u8>,
    /// Which split it belongs to, where that is published. One without any label belongs to none.
    pub split: Option<Split>,
    /// What it shares with the other images of its group (a patient): all of them come into one split.
    pub group: Option<String>,
    /// The numbers that the task's columns name, in their order.
    pub columns: Vec<f32>,
}

/// What the labels of an image's cells are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The cells have no labels.
    None,
    /// The file of a mask per class of the target at patch level; `None` where the image has nothing of that class.
    Masks(Vec<Option<usize>>),
}

/// Which pixels of a mask belong to its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskRule {
    /// Those of 128 or more; edges are anti-aliased.
    Half,
    /// Those of 128 or more, except in a mask that holds only 0 and one other value: there, those of that value.
    HalfOrTwoValued,
}

impl RawImage {
    /// Masks by class; empty without.
    pub(crate) fn masks(&self) -> &[Option<usize>] {
        match &self.cells {
            Evidence::None => &[],
            Evidence::Masks(masks) => masks,
        }
    }

    /// Its files: the photograph first, then its masks in class order.
    pub(crate) fn files(&self) -> impl Iterator<Item = usize> {
        let masks = self.masks().iter().flatten().copied();
        std::iter::once(self.image).chain(masks)
    }

    /// Whether nothing labels it: neither its cells nor the image itself.
    pub(crate) fn is_unlabelled(&self, task: &Task) -> bool {
        task.cells().is_none() && !self.labels.iter().any(|(_, label)| label.is_known())
    }

    /// Why it does not fit `task`; `None`: it does.
    pub(crate) fn misfit(&self, task: &Task) -> Option<String> {
        let columns = task.columns().len();
        if self.columns.len() != columns || self.columns.iter().any(|number| !number.is_finite()) {
            return Some(format!(
                "{} numbers for the {columns} columns of its task (all finite)",
                self.columns.len()
            ));
        }
        let expected = task.cell_classes().len();
        if self.masks().len() != expected {
            return Some(format!(
                "masks of {} classes for the {expected} of its task at patch level",
                self.masks().len()
            ));
        }
        for (number, (target, label)) in self.labels.iter().enumerate() {
            let Some(of) = task.targets().get(*target) else {
                return Some(format!(
                    "a label for target {target} of a task with {}",
                    task.targets().len()
                ));
            };
            if of.level != fovea_task::Level::Image || of.union_of_cells {
                return Some(format!(
                    "a label for target `{}`, which takes its labels from cells",
                    of.name
                ));
            }
            if !of.allows(*label) {
                return Some(format!(
                    "label {} for target `{}` with {} classes",
                    label.0,
                    of.name,
                    of.classes.len()
                ));
            }
            if self.labels[..number]
                .iter()
                .any(|(other, _)| other == target)
            {
                return Some(format!("two labels for target `{}`", of.name));
            }
        }
        None
    }
}
