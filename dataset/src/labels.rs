//! Labels of images and of their cells, as a task reads them.

use fovea_task::{Kind, Label, Level, Target, Task};

/// Labels of cells by their areas `[cells, classes]`. Where any number of classes is allowed, a cell has those with at
/// least `min_lesion_pixels`. Where one excludes the others, it has that with most pixels, the first of equal ones, and no
/// known label if these are fewer.
pub(crate) fn of_cells(target: &Target, areas: &[u16], min_lesion_pixels: u32) -> Vec<Label> {
    let counts = |area: u16| u32::from(area) >= min_lesion_pixels;
    let any_of = |cell: &[u16]| {
        let bits = cell.iter().enumerate();
        Label(bits.fold(0, |all, (class, area)| {
            all | u64::from(counts(*area)) << class
        }))
    };
    let one_of = |cell: &[u16]| {
        let largest = cell.iter().max().copied().unwrap_or(0);
        match cell.iter().position(|area| *area == largest) {
            Some(class) if counts(largest) => Label(class as u64),
            _ => Label::UNKNOWN,
        }
    };
    let cells = areas.chunks_exact(target.classes.len());
    match target.kind {
        Kind::AnyOf => cells.map(any_of).collect(),
        Kind::OneOf => cells.map(one_of).collect(),
    }
}

/// The classes that any cell has: the label of a target with `union_of_cells`.
pub(crate) fn union(cells: &[Label]) -> Label {
    Label(cells.iter().fold(0, |all, label| all | label.0))
}

/// The targets whose classes an image can have: those at image level, and the one at patch level unless the first hold the
/// union of its cells.
fn of_images(task: &Task) -> impl Iterator<Item = &Target> {
    let has_union = task.targets().iter().any(|target| target.union_of_cells);
    task.at(Level::Image)
        .chain(task.cells().filter(move |_| !has_union))
}

/// The names of all classes that an image can have, in the order of [`image_classes`].
pub(crate) fn image_class_names(task: &Task) -> Vec<&str> {
    let classes = of_images(task).flat_map(|target| &target.classes);
    classes.map(|class| class.name.as_str()).collect()
}

/// Whether an image has each of the classes that it can have, by its labels for the targets at image level, in task order,
/// and those of its cells.
pub(crate) fn image_classes(task: &Task, image: &[Label], cells: &[Label]) -> Vec<bool> {
    let mut image = image.iter();
    let mut has = Vec::new();
    for target in of_images(task) {
        let labels = match target.level {
            Level::Image => image.next().map_or(&[][..], std::slice::from_ref),
            Level::Patch => cells,
        };
        let any = |class: usize| labels.iter().any(|label| target.has(*label, class));
        has.extend((0..target.classes.len()).map(any));
    }
    has
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(level: Level, kind: Kind, classes: &[&str]) -> Target {
        let class = |name: &&str| fovea_task::Class {
            name: (*name).to_owned(),
            title: (*name).to_owned(),
            colour: [0; 3],
        };
        Target {
            name: level.name().to_owned(),
            level,
            kind,
            classes: classes.iter().map(class).collect(),
            union_of_cells: false,
        }
    }

    #[test]
    fn a_cell_of_one_class_has_the_largest() {
        let zones = target(Level::Patch, Kind::OneOf, &["disc", "cup", "rest"]);
        let areas = [0, 5, 5, 9, 0, 1, 2, 2, 2, 0, 0, 3];
        assert_eq!(
            of_cells(&zones, &areas, 3),
            [Label(1), Label(0), Label::UNKNOWN, Label(2)]
        );
    }

    #[test]
    fn an_image_has_the_classes_of_its_labels_and_of_cells_that_no_label_unites() {
        let lesions = Task::lesions();
        assert_eq!(image_class_names(&lesions), ["MA", "HE", "EX", "SE"]);
        let cells = [Label(1), Label(8)];
        assert_eq!(
            image_classes(&lesions, &[union(&cells)], &cells),
            [true, false, false, true]
        );
        let task = Task::new(vec![
            target(Level::Patch, Kind::AnyOf, &["MA", "HE"]),
            target(Level::Image, Kind::OneOf, &["none", "mild", "severe"]),
        ])
        .unwrap();
        assert_eq!(
            image_class_names(&task),
            ["none", "mild", "severe", "MA", "HE"]
        );
        assert_eq!(
            image_classes(&task, &[Label(1)], &[Label(0), Label(2)]),
            [false, true, false, false, true]
        );
        assert_eq!(image_classes(&task, &[Label::UNKNOWN], &[]), [false; 5]);
    }
}
