//! The lines of `predictions-val.csv`, checked.

use std::collections::BTreeSet;
use std::path::Path;

use fovea_run::metrics::{Level, Scored};
use fovea_run::run_dir::LabelledPrediction;

use super::table::read_table;
use super::{Error, Result};

/// Reads `path`; empty when there is no such file or nothing in it.
pub(super) fn read(path: &Path) -> Result<Vec<LabelledPrediction>> {
    let lines = read_table::<LabelledPrediction>(path)?.unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (number, line) in &lines {
        let bad = |reason: String| Error::Row {
            path: path.to_owned(),
            line: *number,
            reason,
        };
        if line.row.is_some() != line.col.is_some() {
            return Err(bad(
                "one of row and col is empty, the other is not".to_owned()
            ));
        }
        if !seen.insert((&line.image_id, line.cell())) {
            return Err(bad(format!("image {} has this cell twice", line.image_id)));
        }
    }
    drop(seen);
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// The lines of `level` as rows to score, numbered in file order.
pub(super) fn scored(lines: &[LabelledPrediction], level: Level) -> Vec<Scored> {
    let of_level = lines.iter().filter(|line| line.level() == level);
    of_level
        .enumerate()
        .map(|(id, line)| Scored {
            id: id as u64,
            label: line.label,
            probs: line.probs(),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use fovea_run::run_dir;
    use std::fs;

    /// A line as the reader gives it.
    pub(in super::super) fn line(
        id: &str,
        cell: Option<(u32, u32)>,
        label: u8,
        probs: [f32; 4],
    ) -> LabelledPrediction {
        let [p_ma, p_he, p_ex, p_se] = probs;
        let (row, col) = (cell.map(|c| c.0), cell.map(|c| c.1));
        LabelledPrediction {
            image_id: id.to_owned(),
            row,
            col,
            label,
            p_ma,
            p_he,
            p_ex,
            p_se,
        }
    }

    /// Writes lines as the trainer does.
    pub(in super::super) fn write(path: &Path, lines: &[LabelledPrediction]) {
        let lines: Vec<run_dir::Prediction> = lines
            .iter()
            .map(|line| run_dir::Prediction {
                image_id: line.image_id.clone(),
                cell: line.cell(),
                label: Some(line.label),
                probs: line.probs(),
                note: None,
            })
            .collect();
        run_dir::write_predictions(path, &lines, run_dir::Columns::Label).unwrap();
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
