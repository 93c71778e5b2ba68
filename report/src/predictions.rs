//! The lines of `predictions-val.csv`, checked.

use std::collections::BTreeSet;
use std::path::Path;

use fovea_run::metrics::Table;
use fovea_run::predictions::{Prediction, RowReader};
use fovea_task::Task;

use super::table::read_records;
use super::{Error, Result};

/// Reads `path`, predictions for `task`; empty when there is no such file or nothing in it.
pub(super) fn read(path: &Path, task: &Task) -> Result<Vec<Prediction>> {
    let Some((header, records)) = read_records(path)? else {
        return Ok(Vec::new());
    };
    let bad = |line: u64, reason: String| Error::Row {
        path: path.to_owned(),
        line,
        reason,
    };
    let reader = RowReader::new(task, &header).map_err(|reason| bad(1, reason))?;
    let mut lines: Vec<Prediction> = Vec::new();
    for (number, record) in &records {
        lines.push(reader.read(record).map_err(|reason| bad(*number, reason))?);
    }
    let mut seen = BTreeSet::new();
    for (line, (number, _)) in lines.iter().zip(&records) {
        if !seen.insert((&line.image_id, line.cell, line.target)) {
            let reason = format!("image {} has this cell twice", line.image_id);
            return Err(bad(*number, reason));
        }
    }
    drop(seen);
    Ok(lines)
}

/// The lines of target `index` as a table to score, numbered in file order.
pub(super) fn scored(lines: &[Prediction], index: usize) -> Table {
    let mut table = Table::default();
    for (id, line) in lines.iter().filter(|line| line.target == index).enumerate() {
        table.push(id as u64, line.label, &line.probabilities);
    }
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Path, Prediction, Result, Task};
    use fovea_run::predictions::{self, Columns};
    use fovea_task::Label;
    use std::fs;

    /// A line about lesions as the reader gives it.
    pub(in super::super) fn line(
        id: &str,
        cell: Option<(u32, u32)>,
        label: u8,
        probs: [f32; 4],
    ) -> Prediction {
        Prediction {
            image_id: id.to_owned(),
            target: usize::from(cell.is_some()),
            cell,
            label: Label(u64::from(label)),
            probabilities: probs.to_vec(),
            note: None,
        }
    }

    /// Reads lines about lesions.
    pub(in super::super) fn read(path: &Path) -> Result<Vec<Prediction>> {
        super::read(path, &Task::lesions())
    }

    /// Writes lines about lesions as the trainer does.
    pub(in super::super) fn write(path: &Path, lines: &[Prediction]) {
        predictions::write(path, &Task::lesions(), lines, Columns::Label).unwrap();
    }

    #[test]
    fn what_the_trainer_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions-val.csv");
        assert_eq!(read(&path).unwrap(), []);
        let lines = [
            line("a, \"quoted\"", None, 3, [0.1, 1.0 / 3.0, 0.0, 1.0]),
            line("a", Some((0, 9)), 0, [0.25; 4]),
            line("b", Some((9, 0)), 15, [f32::MIN_POSITIVE, 0.5, 0.5, 0.5]),
        ];
        write(&path, &lines);
        assert_eq!(read(&path).unwrap(), lines);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}b,1,1,0,0.")).unwrap();
        assert_eq!(read(&path).unwrap(), lines, "a torn line is skipped");
        fs::write(&path, "image_id,row").unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }

    #[test]
    fn bad_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("predictions-val.csv");
        let header = "image_id,row,col,label,p_MA,p_HE,p_EX,p_SE\n";
        for (body, expected) in [
            ("a,1,,0,0,0,0,0\n", "line 2: one of row and col is empty"),
            (
                "a,1,1,0,0,0,0,0\na,1,1,0,0,0,0,0\n",
                "line 3: image a has this cell twice",
            ),
            ("a,1,1,0,0,x,0,0\n", "line 2: "),
            ("a,1,1,300,0,0,0,0\n", "line 2: "),
            ("a,1,1\n", "line 2: 3 fields, expected 8"),
        ] {
            fs::write(&path, format!("{header}{body}")).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(
                message.contains(expected) && message.contains("\n  help: "),
                "{message}"
            );
        }
        fs::write(&path, "image_id,label\nx,1\n").unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("missing field")
        );
    }
}
