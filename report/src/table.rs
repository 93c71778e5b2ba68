//! Reading the CSV files of a run that another process may be appending to.

use std::fs;
use std::io;
use std::path::Path;

use csv::StringRecord;
use fovea_run::metrics::log::whole_lines;
use serde::Deserialize;

use super::error::io_error;
use super::{Error, Result};

/// The header of a CSV table, and its lines, each with its number from 1.
type Records = (StringRecord, Vec<(u64, StringRecord)>);

/// Reads a CSV table. A torn last line is skipped. `None` when the file is missing or has no line beneath the header.
pub(super) fn read_records(path: &Path) -> Result<Option<Records>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, "read")(e)),
    };
    let mut reader = csv::Reader::from_reader(whole_lines(&bytes));
    let mut rows = Vec::new();
    let header = reader.headers().cloned();
    let header = header.map_err(|_| bad(path, 1, "the header is not text in UTF-8".to_owned()))?;
    for record in reader.records() {
        let next = rows.len() as u64 + 2;
        let record = record.map_err(|e| {
            let line = e.position().map_or(next, csv::Position::line);
            bad(path, line, plain(&e))
        })?;
        let line = record.position().map_or(next, csv::Position::line);
        rows.push((line, record));
    }
    Ok((!rows.is_empty()).then_some((header, rows)))
}

/// Reads a CSV table as [`read_records`] does, each line by the names of the columns.
pub(super) fn read_table<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<Vec<T>>> {
    let Some((header, records)) = read_records(path)? else {
        return Ok(None);
    };
    let row = |(line, record): &(u64, StringRecord)| {
        let row = record.deserialize(Some(&header));
        row.map_err(|e| bad(path, *line, plain(&e)))
    };
    records.iter().map(row).collect::<Result<_>>().map(Some)
}

fn bad(path: &Path, line: u64, reason: String) -> Error {
    Error::Row {
        path: path.to_owned(),
        line,
        reason,
    }
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
