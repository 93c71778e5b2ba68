//! Reading the CSV files of a run that another process may be appending to.

use std::fs;
use std::io;
use std::path::Path;

use fovea_run::metrics::log::whole_lines;
use serde::Deserialize;

use super::error::io_error;
use super::{Error, Result};

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
