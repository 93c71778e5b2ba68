//! The question that a model answers: of whole images or of the cells of a grid over them, of several classes at once or of
//! one among several. `prepare` writes it into the manifest; everything after it reads it from there. Pure.

use std::collections::HashSet;
use std::fmt;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// Most classes of a target: one bit each of a label, which has one more for [`Label::UNKNOWN`].
pub const MAX_CLASSES: usize = 63;

/// What one row of labels, logits and probabilities belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A cell of the grid over an image.
    Patch,
    /// A whole image.
    Image,
}

impl Level {
    /// Both, in the order of tables.
    pub const ALL: &'static [Self] = &[Self::Patch, Self::Image];
    /// Their spellings, in the order of [`Level::ALL`].
    pub const NAMES: &'static [&'static str] = &["patch", "image"];

    /// The spelling in configurations, manifests and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::Image => "image",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the classes of a target exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Any number of classes, also none: one sigmoid per class (multi-label).
    AnyOf,
    /// Exactly one class: a softmax over all (multi-class).
    OneOf,
}

/// One class of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Short name: column names and folders (`MA`).
    pub name: String,
    /// The name in a sentence or a legend (`microaneurysms`).
    pub title: String,
    /// RGB, in pictures and plots.
    pub colour: [u8; 3],
}

/// One question, with one row of logits per image or per cell as its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name in tables; unique within a task.
    pub name: String,
    /// What has an answer.
    pub level: Level,
    /// Whether classes exclude each other.
    pub kind: Kind,
    /// In the order of label bits, logits and columns; 1 to [`MAX_CLASSES`].
    pub classes: Vec<Class>,
    /// An image has the classes that any of its cells has: its label is not given, but the union of theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub union_of_cells: bool,
}

/// All questions that one model answers at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Task {
    targets: Vec<Target>,
    columns: Vec<String>,
}

/// A task as it is written, before it is checked.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    targets: Vec<Target>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<String>,
}

/// A label of one image or cell, as its [`Target`] reads it: the set of its classes, bit `c` for class `c`, where any number
/// is allowed; the index of its class where there is exactly one. In memory a u64, also for a GPU.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Pod,
    Zeroable,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Label(pub u64);

impl Label {
    /// Not labelled: such a row is scored, and counts in no loss and no metric.
    pub const UNKNOWN: Self = Self(u64::MAX);

    /// Whether there is a label.
    #[must_use]
    pub fn is_known(self) -> bool {
        self != Self::UNKNOWN
    }
}

impl Target {
    /// Whether `label` has class `class`. An unknown label has none.
    #[must_use]
    pub fn has(&self, label: Label, class: usize) -> bool {
        label.is_known()
            && match self.kind {
                Kind::AnyOf => label.0 >> class & 1 == 1,
                Kind::OneOf => label.0 == class as u64,
            }
    }

    /// Whether `label` is one of this target's, or unknown.
    #[must_use]
    pub fn allows(&self, label: Label) -> bool {
        !label.is_known()
            || match self.kind {
                Kind::AnyOf => label.0 >> self.classes.len() == 0,
                Kind::OneOf => label.0 < self.classes.len() as u64,
            }
    }

    /// The names of a label's classes: `MA HE`, `healthy` for none, `unknown` without a label.
    #[must_use]
    pub fn describe(&self, label: Label) -> String {
        if !label.is_known() {
            return "unknown".to_owned();
        }
        let classes = self.classes.iter().enumerate();
        let names: Vec<&str> = classes
            .filter(|(class, _)| self.has(label, *class))
            .map(|(_, class)| class.name.as_str())
            .collect();
        match names.is_empty() {
            true => "healthy".to_owned(),
            false => names.join(" "),
        }
    }
}

impl Task {
    /// A task of these questions.
    ///
    /// # Errors
    /// A sentence with the reason: no target, two of one name, two at patch level (a shard holds the areas of one), a union of
    /// cells without cells of the same classes, or a target without classes, with too many, or with two of one name.
    pub fn new(targets: Vec<Target>) -> Result<Self, String> {
        if targets.is_empty() {
            return Err("a task needs a target".to_owned());
        }
        let mut names = HashSet::new();
        for target in &targets {
            let Target { name, classes, .. } = target;
            if !names.insert(name) {
                return Err(format!("two targets are called `{name}`"));
            }
            if !(1..=MAX_CLASSES).contains(&classes.len()) {
                return Err(format!(
                    "target `{name}` has {} classes, 1 to {MAX_CLASSES} are possible",
                    classes.len()
                ));
            }
            let mut seen = HashSet::new();
            if let Some(twice) = classes.iter().find(|class| !seen.insert(&class.name)) {
                return Err(format!("target `{name}` has two classes `{}`", twice.name));
            }
        }
        let task = Self {
            targets,
            columns: Vec::new(),
        };
        if task.at(Level::Patch).count() > 1 {
            return Err("a task has at most one target at patch level".to_owned());
        }
        let cells = task.cells().map(|target| (target.kind, &target.classes));
        let orphan = |t: &&Target| {
            t.union_of_cells
                && (t.level != Level::Image
                    || t.kind != Kind::AnyOf
                    || cells != Some((t.kind, &t.classes)))
        };
        if let Some(target) = task.targets.iter().find(orphan) {
            return Err(format!(
                "target `{}` is a union of cells, but no target at patch level has its classes",
                target.name
            ));
        }
        Ok(task)
    }

    /// The task of a model that also reads these numbers of each image, in this order.
    ///
    /// # Errors
    /// A sentence with the reason when two columns have one name.
    pub fn with_columns(mut self, columns: Vec<String>) -> Result<Self, String> {
        let mut names = HashSet::new();
        if let Some(twice) = columns.iter().find(|name| !names.insert(*name)) {
            return Err(format!("two columns are called `{twice}`"));
        }
        self.columns = columns;
        Ok(self)
    }

    /// Four lesions of diabetic retinopathy, of an image and of its cells; an image has those of its cells.
    #[must_use]
    pub fn lesions() -> Self {
        let class = |(name, title, colour): (&str, &str, [u8; 3])| Class {
            name: name.to_owned(),
            title: title.to_owned(),
            colour,
        };
        // Colours that are seen on red and on yellow.
        let classes: Vec<Class> = [
            ("MA", "microaneurysms", [0, 229, 255]),
            ("HE", "haemorrhages", [57, 255, 20]),
            ("EX", "hard exudates", [255, 77, 255]),
            ("SE", "soft exudates", [255, 255, 255]),
        ]
        .map(class)
        .into();
        let target = |level: Level| Target {
            name: level.name().to_owned(),
            level,
            kind: Kind::AnyOf,
            classes: classes.clone(),
            union_of_cells: level == Level::Image,
        };
        Self {
            targets: vec![target(Level::Image), target(Level::Patch)],
            columns: Vec::new(),
        }
    }

    /// The questions, in the order of a model's heads.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Names of the numbers that are known of each image in addition to its pixels (a patient's age, a count of boxes);
    /// empty for most tasks.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The questions that are asked at `level`.
    pub fn at(&self, level: Level) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(move |t| t.level == level)
    }

    /// The question that is asked of cells, if there is one.
    #[must_use]
    pub fn cells(&self) -> Option<&Target> {
        self.at(Level::Patch).next()
    }

    /// The classes of cells; none without a question that is asked of them.
    #[must_use]
    pub fn cell_classes(&self) -> &[Class] {
        self.cells().map_or(&[], |target| &target.classes)
    }
}

impl TryFrom<Unchecked> for Task {
    type Error = String;

    fn try_from(unchecked: Unchecked) -> Result<Self, String> {
        Self::new(unchecked.targets)?.with_columns(unchecked.columns)
    }
}

impl From<Task> for Unchecked {
    fn from(task: Task) -> Self {
        Self {
            targets: task.targets,
            columns: task.columns,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(kind: Kind, classes: usize) -> Target {
        let class = |c| Class {
            name: format!("c{c}"),
            title: format!("class {c}"),
            colour: [0; 3],
        };
        Target {
            name: "grade".to_owned(),
            level: Level::Image,
            kind,
            classes: (0..classes).map(class).collect(),
            union_of_cells: false,
        }
    }

    proptest! {
        #[test]
        fn a_label_has_the_classes_it_was_made_of(
            classes in 1..=MAX_CLASSES,
            bits in any::<u64>(),
        ) {
            let many = target(Kind::AnyOf, classes);
            let set = Label(bits & ((1 << classes) - 1));
            prop_assert!(many.allows(set) && set.is_known());
            let made = (0..classes).filter(|&c| many.has(set, c)).fold(0, |all, c| all | 1 << c);
            prop_assert_eq!(made, set.0);
            prop_assert!(!many.allows(Label(1 << classes)));

            let one = target(Kind::OneOf, classes);
            let index = Label(bits % classes as u64);
            prop_assert!(one.allows(index));
            let made: Vec<usize> = (0..classes).filter(|&c| one.has(index, c)).collect();
            prop_assert_eq!(made, [index.0 as usize]);
            prop_assert!(!one.allows(Label(classes as u64)));

            for target in [many, one] {
                prop_assert!(target.allows(Label::UNKNOWN));
                prop_assert!((0..classes).all(|c| !target.has(Label::UNKNOWN, c)));
            }
        }
    }

    #[test]
    fn labels_read_as_names_in_bit_order() {
        let task = Task::lesions();
        let cells = task.cells().unwrap();
        let told = |label| cells.describe(label);
        assert_eq!(told(Label(0)), "healthy");
        assert_eq!(told(Label(0b0001)), "MA");
        assert_eq!(told(Label(0b1010)), "HE SE");
        assert_eq!(told(Label::UNKNOWN), "unknown");
        assert_eq!(target(Kind::OneOf, 5).describe(Label(3)), "c3");
    }

    #[test]
    fn a_task_is_checked_when_it_is_made_and_when_it_is_read() {
        let lesions = Task::lesions();
        assert_eq!(Task::new(lesions.targets().to_vec()), Ok(lesions.clone()));
        let text = serde_json::to_string(&lesions).unwrap();
        assert_eq!(serde_json::from_str::<Task>(&text).unwrap(), lesions);

        let refused = |targets: Vec<Target>, why: &str| {
            let written = serde_json::to_string(&Unchecked {
                targets: targets.clone(),
                columns: vec![],
            })
            .unwrap();
            let read = serde_json::from_str::<Task>(&written).unwrap_err();
            assert!(read.to_string().contains(why), "{read}");
            let error = Task::new(targets).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        let grade = || target(Kind::OneOf, 5);
        refused(vec![], "needs a target");
        refused(vec![grade(), grade()], "two targets are called `grade`");
        refused(vec![target(Kind::AnyOf, 0)], "has 0 classes");
        refused(vec![target(Kind::AnyOf, 64)], "has 64 classes");
        let mut twice = grade();
        twice.classes[1] = twice.classes[0].clone();
        refused(vec![twice], "two classes `c0`");
        let cells = |name: &str| Target {
            name: name.to_owned(),
            level: Level::Patch,
            ..grade()
        };
        refused(
            vec![cells("a"), cells("b")],
            "at most one target at patch level",
        );
        let union = Target {
            union_of_cells: true,
            ..target(Kind::AnyOf, 5)
        };
        refused(vec![union], "is a union of cells");

        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let counted = lesions.with_columns(names(["age", "boxes"])).unwrap();
        let text = serde_json::to_string(&counted).unwrap();
        assert_eq!(serde_json::from_str::<Task>(&text).unwrap(), counted);
        let twice = counted.with_columns(names(["age", "age"])).unwrap_err();
        assert!(twice.contains("two columns are called `age`"), "{twice}");
    }
}
