//! A table of decisions, one line per image: what a challenge asks for, in place of probabilities.
//!
//! `image,MA,HE,..` with 1 where a class is predicted and 0 elsewhere; a target with exactly one class per image has one
//! column, called after the target, with the name of the class. Lines are in the order of the predictions.

use std::path::Path;

use fovea_task::{Kind, Level, Target, Task};

use crate::error::{Error, Result};
use crate::metrics::predicted;
use crate::predictions::Prediction;
use crate::run_dir::replace;

/// Refuses a task without a question about whole images.
///
/// # Errors
/// A text with the reason, and what to do.
pub fn check(task: &Task) -> Result<(), String> {
    match task.at(Level::Image).next() {
        Some(_) => Ok(()),
        None => Err(
            "--submission: the model answers nothing about whole images\n  help: take the cells from --out"
                .to_owned(),
        ),
    }
}

/// The columns of one target.
fn columns(task: &Task, target: &Target) -> Vec<String> {
    if target.kind == Kind::OneOf {
        return vec![target.name.clone()];
    }
    let taken = |name: &str| {
        let others = task.at(Level::Image).filter(|t| t.name != target.name);
        let mut others = others.flat_map(|t| &t.classes);
        others.any(|class| class.name == name)
    };
    let classes = target.classes.iter();
    classes
        .map(|class| match taken(&class.name) {
            true => format!("{}_{}", target.name, class.name),
            false => class.name.clone(),
        })
        .collect()
}

/// The fields of one answer.
fn fields(target: &Target, row: &Prediction, thresholds: &[f32]) -> Vec<String> {
    let label = predicted(target, &row.probabilities, thresholds);
    let classes = target.classes.iter().enumerate();
    match target.kind {
        Kind::OneOf => classes
            .filter(|(class, _)| target.has(label, *class))
            .map(|(_, class)| class.name.clone())
            .collect(),
        Kind::AnyOf => classes
            .map(|(class, _)| u8::from(target.has(label, class)).to_string())
            .collect(),
    }
}

/// Writes the decisions about whole images, in one rename. `thresholds` are those of each class, per target of the task.
///
/// # Errors
/// An image has not one row per target at image level, or the file cannot be written.
pub fn write(path: &Path, task: &Task, rows: &[Prediction], thresholds: &[Vec<f32>]) -> Result<()> {
    let broken = |e: &dyn std::fmt::Display| Error::Internal(format!("submission: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = vec!["image".to_owned()];
    header.extend(
        task.at(Level::Image)
            .flat_map(|target| columns(task, target)),
    );
    writer.write_record(&header).map_err(|e| broken(&e))?;
    let images: Vec<&Prediction> = rows.iter().filter(|row| row.cell.is_none()).collect();
    for of_image in images.chunk_by(|a, b| a.image_id == b.image_id) {
        let mut record = vec![of_image[0].image_id.clone()];
        for row in of_image {
            let found = task
                .targets()
                .get(row.target)
                .zip(thresholds.get(row.target));
            let (target, thresholds) = found.ok_or_else(|| broken(&"a row of no target"))?;
            record.extend(fields(target, row, thresholds));
        }
        writer.write_record(&record).map_err(|e| broken(&e))?;
    }
    replace(path, &writer.into_inner().map_err(|e| broken(&e))?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use fovea_task::Label;

    use super::*;
    use crate::metrics::fixture::grade;

    fn row(id: &str, target: usize, cell: Option<(u32, u32)>, p: &[f32]) -> Prediction {
        Prediction {
            image_id: id.to_owned(),
            target,
            cell,
            label: Label::UNKNOWN,
            probabilities: p.to_vec(),
            note: None,
        }
    }

    #[test]
    fn decisions_follow_each_class_own_threshold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("submission.csv");
        let mut targets = Task::lesions().targets().to_vec();
        targets.push(grade(3));
        let task = Task::new(targets).unwrap();
        let thresholds = [vec![0.5, 0.1, 0.9, 0.3], vec![0.5; 4], vec![0.5; 3]];
        let rows = [
            row("b, 1", 0, None, &[0.5, 0.05, 0.95, 0.29]),
            row("b, 1", 2, None, &[0.1, 0.5, 0.4]),
            row("b, 1", 1, Some((0, 0)), &[1.0; 4]),
            row("a", 0, None, &[0.4, 0.2, 0.8, 0.3]),
            row("a", 2, None, &[0.4, 0.3, 0.3]),
        ];
        write(&path, &task, &rows, &thresholds).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "image,MA,HE,EX,SE,grade\n\"b, 1\",1,0,1,0,g1\na,0,1,0,1,g0\n"
        );
        let mut twins = vec![Task::lesions().targets()[0].clone(); 2];
        for (twin, name) in twins.iter_mut().zip(["left", "right"]) {
            (twin.name, twin.union_of_cells) = (name.to_owned(), false);
        }
        let task = Task::new(twins).unwrap();
        write(&path, &task, &[], &[]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("image,left_MA,left_HE"), "{text}");
    }

    #[test]
    fn cells_alone_make_no_submission() {
        let cells = Task::lesions().targets()[1].clone();
        let why = check(&Task::new(vec![cells]).unwrap()).unwrap_err();
        assert!(why.contains("\n  help: "), "{why}");
        assert_eq!(check(&Task::lesions()), Ok(()));
    }
}
