//! Predictions as CSV: `RUN/predictions-val.csv`, and what `fovea predict` writes.
//!
//! `image_id,row,col,[label,]p_MA,p_HE,p_EX,p_SE[,usable,note]`: images leave `row` and `col` empty. The columns `p_` are
//! those of the classes of all targets; a line leaves empty what its target does not have. A task that asks two questions
//! of the same thing has a column `target` behind `col`; otherwise the place says which target a line belongs to.

use std::path::Path;

use csv::StringRecord;
use fovea_task::{Label, Level, Target, Task};

use crate::error::{Error, Result};
use crate::metrics::class_names;
use crate::run_dir::replace;

/// What a model says about one image or cell, for one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Image id as in the manifest, or a photograph's file stem.
    pub image_id: String,
    /// Index of the target in the task.
    pub target: usize,
    /// `(row, col)` of a cell in the grid, from 0; `None` for an image.
    pub cell: Option<(u32, u32)>,
    /// The true label; [`Label::UNKNOWN`] where there is none.
    pub label: Label,
    /// Probability per class of the target.
    pub probabilities: Vec<f32>,
    /// Why they mean nothing, of a photograph that a model has no answer to; `None` when nothing speaks against them.
    pub note: Option<String>,
}

/// Columns of predictions besides those that all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `label`, the label as a number, in front of the probabilities; empty where it is unknown.
    Label,
    /// `usable` (1 or 0) and `note` (why not) at the end.
    Usable,
}

/// Whether the place of a line does not tell its target.
fn names_targets(task: &Task) -> bool {
    Level::ALL.iter().any(|&level| task.at(level).count() > 1)
}

/// Writes predictions of a model for `task`, in one rename.
///
/// # Errors
/// A row's target is none of the task's, or the file cannot be written.
pub fn write(path: &Path, task: &Task, rows: &[Prediction], columns: Columns) -> Result<()> {
    let (labels, usable) = (columns == Columns::Label, columns == Columns::Usable);
    let (named, classes) = (names_targets(task), class_names(task));
    let broken = |e: &dyn std::fmt::Display| Error::Internal(format!("predictions: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = ["image_id", "row", "col"].map(str::to_owned).to_vec();
    header.extend(named.then(|| "target".to_owned()));
    header.extend(labels.then(|| "label".to_owned()));
    header.extend(classes.iter().map(|class| format!("p_{class}")));
    if usable {
        header.extend(["usable", "note"].map(str::to_owned));
    }
    writer.write_record(&header).map_err(|e| broken(&e))?;
    let places: Vec<_> = task.targets().iter().map(|t| places(&classes, t)).collect();
    for row in rows {
        let (Some(target), Some(places)) = (task.targets().get(row.target), places.get(row.target))
        else {
            return Err(broken(&format!("there is no target {}", row.target)));
        };
        let mut record = vec![row.image_id.clone()];
        match row.cell {
            Some((r, c)) => record.extend([r.to_string(), c.to_string()]),
            None => record.extend([String::new(), String::new()]),
        }
        record.extend(named.then(|| target.name.clone()));
        if labels {
            record.push(match row.label.is_known() {
                true => row.label.0.to_string(),
                false => String::new(),
            });
        }
        let probability = |class: usize| row.probabilities.get(class).map(f32::to_string);
        let fields = places.iter().map(|place| place.and_then(probability));
        record.extend(fields.map(Option::unwrap_or_default));
        if usable {
            record.push(u8::from(row.note.is_none()).to_string());
            record.push(row.note.clone().unwrap_or_default());
        }
        writer.write_record(&record).map_err(|e| broken(&e))?;
    }
    replace(path, &writer.into_inner().map_err(|e| broken(&e))?)
}

/// The index of each of `classes` in `target`.
fn places(classes: &[&str], target: &Target) -> Vec<Option<usize>> {
    let place = |name: &&str| target.classes.iter().position(|class| class.name == **name);
    classes.iter().map(place).collect()
}

/// Reads lines with [`Columns::Label`] by the names of their columns.
#[derive(Debug)]
pub struct RowReader<'a> {
    task: &'a Task,
    image_id: usize,
    row: usize,
    col: usize,
    label: usize,
    /// Absent where the place tells the target.
    target: Option<usize>,
    /// Columns of the classes, per target.
    probabilities: Vec<Vec<usize>>,
}

impl<'a> RowReader<'a> {
    /// A reader of a table with this header, which holds predictions for `task`.
    ///
    /// # Errors
    /// A sentence that names a missing column.
    pub fn new(task: &'a Task, header: &StringRecord) -> Result<Self, String> {
        let find = |name: &str| {
            let found = header.iter().position(|column| column == name);
            found.ok_or_else(|| format!("missing field `{name}`"))
        };
        let of_target = |target: &Target| {
            let classes = target.classes.iter();
            classes
                .map(|class| find(&format!("p_{}", class.name)))
                .collect()
        };
        Ok(Self {
            task,
            image_id: find("image_id")?,
            row: find("row")?,
            col: find("col")?,
            label: find("label")?,
            target: match names_targets(task) {
                true => Some(find("target")?),
                false => None,
            },
            probabilities: task
                .targets()
                .iter()
                .map(of_target)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The prediction that a line holds, which has as many fields as the header.
    ///
    /// # Errors
    /// A sentence that names what cannot be read, or is no label of the target.
    pub fn read(&self, record: &StringRecord) -> Result<Prediction, String> {
        let field = |at: usize| record.get(at).unwrap_or_default();
        let place = match (field(self.row), field(self.col)) {
            ("", "") => None,
            ("", _) | (_, "") => {
                return Err("one of row and col is empty, the other is not".to_owned());
            }
            (row, col) => Some((number("row", row)?, number("col", col)?)),
        };
        let target = self.target_of(place.is_some(), self.target.map(field))?;
        let it = &self.task.targets()[target];
        let label = match field(self.label) {
            "" => Label::UNKNOWN,
            text => Label(number("label", text)?),
        };
        if !it.allows(label) {
            let classes = it.classes.len();
            return Err(format!(
                "column label: {} is no label of {classes} classes",
                label.0
            ));
        }
        let columns = it.classes.iter().zip(&self.probabilities[target]);
        let probabilities = columns.map(|(class, &at)| number(&class.name, field(at)));
        Ok(Prediction {
            image_id: field(self.image_id).to_owned(),
            target,
            cell: place,
            label,
            probabilities: probabilities.collect::<Result<_, _>>()?,
            note: None,
        })
    }

    fn target_of(&self, cell: bool, name: Option<&str>) -> Result<usize, String> {
        let level = match cell {
            true => Level::Patch,
            false => Level::Image,
        };
        let fits = |t: &Target| t.level == level && name.is_none_or(|name| t.name == name);
        let found = self.task.targets().iter().position(fits);
        found.ok_or_else(|| match name {
            Some(name) => {
                format!("column target: the task has no target {name:?} at {level} level")
            }
            None => format!("the task has no target at {level} level"),
        })
    }
}

fn number<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("column {column}: cannot read {text:?}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use std::fs;

    use super::*;
    use crate::metrics::fixture::grade;

    fn read(path: &Path, task: &Task) -> Result<Vec<Prediction>, String> {
        let mut reader = csv::Reader::from_path(path).unwrap();
        let header = reader.headers().unwrap().clone();
        let columns = RowReader::new(task, &header)?;
        reader
            .records()
            .map(|record| columns.read(&record.unwrap()))
            .collect()
    }

    fn prediction(target: usize, cell: Option<(u32, u32)>, label: Label, n: usize) -> Prediction {
        Prediction {
            image_id: "a, \"quoted\"".to_owned(),
            target,
            cell,
            label,
            probabilities: (0..n).map(|c| 1.0 / (c + 3) as f32).collect(),
            note: None,
        }
    }

    #[test]
    fn lesions_have_the_columns_of_always() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions.csv");
        let task = Task::lesions();
        let rows = [
            prediction(0, None, Label(3), 4),
            prediction(1, Some((0, 9)), Label(0), 4),
        ];
        write(&path, &task, &rows, Columns::Label).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = "image_id,row,col,label,p_MA,p_HE,p_EX,p_SE\n\
            \"a, \"\"quoted\"\"\",,,3,0.33333334,0.25,0.2,0.16666667\n\
            \"a, \"\"quoted\"\"\",0,9,0,0.33333334,0.25,0.2,0.16666667\n";
        assert_eq!(text, expected);
        assert_eq!(read(&path, &task).unwrap(), rows);
        write(&path, &task, &rows[..1], Columns::Usable).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("image_id,row,col,p_MA,p_HE,p_EX,p_SE,usable,note\n"));
        assert!(text.ends_with(",1,\n"), "{text}");
        assert_eq!(read(&path, &task).unwrap_err(), "missing field `label`");
    }

    #[test]
    fn questions_at_one_level_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions.csv");
        let mut targets = Task::lesions().targets().to_vec();
        targets.push(grade(3));
        let task = Task::new(targets).unwrap();
        let rows = [
            prediction(0, None, Label(3), 4),
            prediction(2, None, Label(2), 3),
            prediction(2, None, Label::UNKNOWN, 3),
            prediction(1, Some((1, 2)), Label(0), 4),
        ];
        write(&path, &task, &rows, Columns::Label).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let header = "image_id,row,col,target,label,p_MA,p_HE,p_EX,p_SE,p_g0,p_g1,p_g2\n";
        assert!(text.starts_with(header), "{text}");
        assert!(
            text.contains(",,,grade,,,,,,0.33333334,0.25,0.2\n"),
            "{text}"
        );
        assert_eq!(read(&path, &task).unwrap(), rows);
        for (from, to, expected) in [
            (
                ",grade,2,",
                ",grade,3,",
                "column label: 3 is no label of 3 classes",
            ),
            (
                ",1,2,patch,",
                ",,,patch,",
                "column target: the task has no target \"patch\" at image level",
            ),
            (",0.2\n", ",no\n", "column g2: cannot read \"no\""),
        ] {
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert_eq!(read(&path, &task).unwrap_err(), expected);
        }
    }
}
