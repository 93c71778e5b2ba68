//! `predictions-val.csv`: one line per patch and per image with its label and probabilities.
//!
//! Columns `image_id,row,col,label,p_MA,p_HE,p_EX,p_SE`; an image-level line leaves row and col empty.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::io_error;
use super::{Error, Result};
use crate::metrics::log::whole_lines;
use crate::metrics::{Level, Scored};

/// File name in the run directory.
pub const PREDICTIONS_FILE: &str = "predictions-val.csv";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Id of the image in the manifest.
    pub image_id: String,
    /// Grid row; `None`, like `col`, for the image as a whole.
    pub row: Option<u32>,
    /// Grid column.
    pub col: Option<u32>,
    /// Label byte.
    pub label: u8,
    /// Probability of MA.
    #[serde(rename = "p_MA")]
    pub p_ma: f32,
    /// Probability of HE.
    #[serde(rename = "p_HE")]
    pub p_he: f32,
    /// Probability of EX.
    #[serde(rename = "p_EX")]
    pub p_ex: f32,
    /// Probability of SE.
    #[serde(rename = "p_SE")]
    pub p_se: f32,
}

impl Prediction {
    /// A line for a cell (`Some((row, col))`) or an image (`None`).
    #[must_use]
    pub fn new(image_id: String, cell: Option<(u32, u32)>, label: u8, probs: [f32; 4]) -> Self {
        let [p_ma, p_he, p_ex, p_se] = probs;
        Self {
            image_id,
            row: cell.map(|c| c.0),
            col: cell.map(|c| c.1),
            label,
            p_ma,
            p_he,
            p_ex,
            p_se,
        }
    }

    /// Probabilities in class order.
    #[must_use]
    pub fn probs(&self) -> [f32; 4] {
        [self.p_ma, self.p_he, self.p_ex, self.p_se]
    }

    /// `(row, col)` of a patch line.
    #[must_use]
    pub fn cell(&self) -> Option<(u32, u32)> {
        self.row.zip(self.col)
    }

    /// Patch or image.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.row.is_some() {
            Level::Patch
        } else {
            Level::Image
        }
    }
}

/// Writes `lines` to `path`, replacing it atomically.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, lines: &[Prediction]) -> Result<()> {
    let failed = || io_error(path, "write");
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(directory)
        .map_err(failed())?;
    let mut table = csv::Writer::from_writer(io::BufWriter::new(&mut file));
    for line in lines {
        table
            .serialize(line)
            .map_err(io::Error::from)
            .map_err(failed())?;
    }
    table.flush().map_err(failed())?;
    drop(table);
    file.flush().map_err(failed())?;
    set_readable(file.as_file()).map_err(failed())?;
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map_err(|e| failed()(e.error))?;
    Ok(())
}

/// Temporary files are private; what is renamed into a run is for everyone who may read the run.
pub(super) fn set_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// Reads `path`; `None` when there is no such file or nothing in it.
///
/// # Errors
/// The file cannot be read, a whole line does not parse, names half a cell, or repeats a cell.
pub fn read(path: &Path) -> Result<Option<Vec<Prediction>>> {
    let Some(lines) = read_table::<Prediction>(path)? else {
        return Ok(None);
    };
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
    Ok(Some(lines.into_iter().map(|(_, line)| line).collect()))
}

/// The lines of `level` as rows to score, numbered in file order.
pub(super) fn scored(lines: &[Prediction], level: Level) -> Vec<Scored> {
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

/// Reads a CSV table by its header with the 1-based number of each line. A torn last line is skipped.
/// `None` when the file is missing or has no line beneath the header.
pub(super) fn read_table<T: for<'de> Deserialize<'de>>(
    path: &Path,
) -> Result<Option<Vec<(u64, T)>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, "read")(e)),
    };
    let mut reader = csv::Reader::from_reader(whole_lines(&bytes));
    let mut rows = Vec::new();
    let headers = reader.headers().cloned();
    let bad = |line: u64, reason: String| Error::Row {
        path: path.to_owned(),
        line,
        reason,
    };
    let headers = headers.map_err(|_| bad(1, "the header is not text in UTF-8".to_owned()))?;
    for record in reader.records() {
        let next = rows.len() as u64 + 2;
        let record =
            record.map_err(|e| bad(e.position().map_or(next, csv::Position::line), plain(&e)))?;
        let line = record.position().map_or(next, csv::Position::line);
        let row = record
            .deserialize(Some(&headers))
            .map_err(|e| bad(line, plain(&e)))?;
        rows.push((line, row));
    }
    Ok((!rows.is_empty()).then_some(rows))
}

/// The csv crate's message without its own position.
fn plain(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("{len} fields, expected {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "not text in UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Prediction> {
        vec![
            Prediction::new(
                "a, \"quoted\"".to_owned(),
                None,
                3,
                [0.1, 1.0 / 3.0, 0.0, 1.0],
            ),
            Prediction::new("a".to_owned(), Some((0, 9)), 0, [0.25; 4]),
            Prediction::new(
                "b".to_owned(),
                Some((9, 0)),
                15,
                [f32::MIN_POSITIVE, 0.5, 0.5, 0.5],
            ),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PREDICTIONS_FILE);
        assert_eq!(read(&path).unwrap(), None);
        write(&path, &lines()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("image_id,row,col,label,p_MA,p_HE,p_EX,p_SE\n"));
        assert!(text.contains("a,0,9,0,0.25,"));
        assert_eq!(read(&path).unwrap(), Some(lines()));
        fs::write(&path, format!("{text}b,1,1,0,0.")).unwrap();
        assert_eq!(
            read(&path).unwrap(),
            Some(lines()),
            "a torn line is skipped"
        );
        fs::write(&path, "image_id,row").unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn bad_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PREDICTIONS_FILE);
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
