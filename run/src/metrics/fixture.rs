//! Targets and tables for the tests of the metrics.

use fovea_task::{Class, Kind, Label, Level, Target, Task};

use super::Table;

/// Four lesions of cells.
pub(super) fn lesions() -> Target {
    Task::lesions().cells().unwrap().clone()
}

/// One of `classes` grades of an image.
pub(crate) fn grade(classes: usize) -> Target {
    let class = |c| Class {
        name: format!("g{c}"),
        title: format!("grade {c}"),
        colour: [c as u8; 3],
    };
    Target {
        name: "grade".to_owned(),
        level: Level::Image,
        kind: Kind::OneOf,
        classes: (0..classes).map(class).collect(),
        union_of_cells: false,
    }
}

impl Table {
    /// Id, label byte and four probabilities per sample.
    pub(crate) fn of(rows: &[(u64, u8, [f32; 4])]) -> Self {
        let mut table = Self::default();
        for (id, label, scores) in rows {
            table.push(*id, Label(u64::from(*label)), scores);
        }
        table
    }
}
