//! `metrics.csv`: one line per (epoch, split, target), appended and fsync'd, readable by anything.
//!
//! The columns begin with those of the published training log. An undefined score is an empty
//! field. Floats are written in their shortest exact form, so reading gives the same bits back.
//! A crash can only tear the last line (no newline at its end): readers skip it, and
//! [`MetricsLog::open`] cuts it off before it appends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fovea_files::{Durability, Mode};
use fovea_task::Task;

pub use super::columns::columns;
use super::columns::{csv_line, fields, parse_row};
use super::{Error, MetricsRow, Result};

/// The whole lines of `bytes`; what follows the last newline is a torn write.
pub fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    &bytes[..end]
}

/// Parses a metrics file. `path` is for messages.
fn parse(path: &Path, task: &Task, bytes: &[u8]) -> Result<Vec<MetricsRow>> {
    let names = columns(task);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(whole_lines(bytes));
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let bad = |line: u64, reason: String| Error::Row {
            path: path.to_owned(),
            line,
            reason,
        };
        let record = record.map_err(|e| {
            bad(
                e.position().map_or(index as u64 + 1, csv::Position::line),
                "not text in UTF-8".to_owned(),
            )
        })?;
        let line = record
            .position()
            .map_or(index as u64 + 1, csv::Position::line);
        if index == 0 {
            check_header(path, &names, &record)?;
        } else {
            rows.push(parse_row(task, &names, &record).map_err(|reason| bad(line, reason))?);
        }
    }
    Ok(rows)
}

fn check_header(path: &Path, names: &[String], record: &csv::StringRecord) -> Result<()> {
    if record.iter().eq(names.iter().map(String::as_str)) {
        return Ok(());
    }
    let found = record
        .iter()
        .collect::<Vec<_>>()
        .join(",")
        .chars()
        .take(80)
        .collect();
    Err(Error::Header {
        path: path.to_owned(),
        found,
    })
}

/// Reads every whole row of `path`, the log of a run with this task, in file order. A torn last line is skipped.
///
/// # Errors
/// The file cannot be read, has other columns, or a whole line that does not parse.
pub fn read(path: &Path, task: &Task) -> Result<Vec<MetricsRow>> {
    let bytes = fs::read(path).map_err(|source| io_error(path, "read", source))?;
    parse(path, task, &bytes)
}

/// The open `metrics.csv` of a run. One process writes it (rank 0).
#[derive(Debug)]
pub struct MetricsLog {
    task: Task,
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for appending. A new file gets its header; an existing one must have the same
    /// columns, and a line torn by a crash is cut off.
    ///
    /// # Errors
    /// The file cannot be opened or written, or has other columns or an unreadable whole line.
    pub fn open(path: &Path, task: &Task) -> Result<Self> {
        let failed = |source| io_error(path, "open", source);
        let existed = path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = whole_lines(&bytes).len();
        let header = csv_line(columns(task));
        if whole == 0 {
            // Only a torn header of ours may be overwritten, never somebody else's file.
            if !header.as_bytes().starts_with(&bytes) {
                let found = String::from_utf8_lossy(&bytes).chars().take(80).collect();
                return Err(Error::Header {
                    path: path.to_owned(),
                    found,
                });
            }
        } else {
            parse(path, task, &bytes)?;
        }
        let mut log = Self {
            task: task.clone(),
            path: path.to_owned(),
            file,
        };
        log.file.set_len(whole as u64).map_err(failed)?;
        log.file.seek(SeekFrom::End(0)).map_err(failed)?;
        if whole == 0 {
            log.write(&header)?;
        } else if whole < bytes.len() {
            log.file.sync_all().map_err(failed)?;
        }
        if !existed {
            fovea_files::sync_parent(path).map_err(|e| failed(e.source))?;
        }
        Ok(log)
    }

    /// Appends `rows` with one write and one fsync.
    ///
    /// # Errors
    /// A row is not of the log's task, or the write or the fsync failed.
    pub fn append(&mut self, rows: &[MetricsRow]) -> Result<()> {
        let text = self.lines(rows.iter())?;
        self.write(&text)
    }

    fn lines<'a>(&self, rows: impl Iterator<Item = &'a MetricsRow>) -> Result<String> {
        rows.map(|row| Ok(csv_line(fields(&self.task, row)?)))
            .collect()
    }

    /// Drops every row with `row.epoch >= epoch`: what a run resumed at the start of `epoch` (or in
    /// the middle of it) is going to write again. The file is replaced atomically.
    ///
    /// # Errors
    /// The file cannot be read or replaced.
    pub fn truncate_after(&mut self, epoch: u32) -> Result<()> {
        let rows = read(&self.path, &self.task)?;
        if rows.iter().all(|row| row.epoch < epoch) {
            return Ok(());
        }
        let kept = rows.iter().filter(|row| row.epoch < epoch);
        let text = csv_line(columns(&self.task)) + &self.lines(kept)?;
        let failed = |source| io_error(&self.path, "replace", source);
        // The log keeps the mode it had.
        let mode = self.file.metadata().map_err(failed)?.permissions().mode();
        let (synced, mode) = (Durability::Synced, Mode::Exactly(mode));
        let fresh = fovea_files::replace(&self.path, text.as_bytes(), synced, mode);
        self.file = fresh.map_err(|e| failed(e.source))?;
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data());
        written.map_err(|source| io_error(&self.path, "append to", source))
    }
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::fixture::grade;
    use crate::metrics::{Table, compute, table_order};
    use fovea_dataset::Split;
    use fovea_task::{Label, Target};

    fn row(epoch: u32, split: Split, target: &Target) -> MetricsRow {
        let classes = target.classes.len();
        let mut table = Table::default();
        for id in 0..50u64 {
            let score = |c: u64| ((id + u64::from(epoch)) * (c + 3) % 17) as f32 / 17.0;
            let scores: Vec<f32> = (0..classes as u64).map(score).collect();
            // SE, or the last two grades, never occur: their areas are undefined.
            let label = if classes == 5 { id % 3 } else { id * 7 % 8 };
            table.push(id, Label(label), &scores);
        }
        let loss = 0.1 / f64::from(epoch + 1);
        let metrics = compute(target, &table, &vec![0.5; classes], loss).unwrap();
        MetricsRow {
            timestamp: format!("2025-01-0{}T00:00:00Z", epoch + 1),
            epoch,
            split,
            target: target.name.clone(),
            metrics,
        }
    }

    fn open(path: &Path) -> Result<MetricsLog> {
        MetricsLog::open(path, &Task::lesions())
    }

    fn read(path: &Path) -> Result<Vec<MetricsRow>> {
        super::read(path, &Task::lesions())
    }

    fn history(epochs: std::ops::Range<u32>) -> Vec<MetricsRow> {
        let task = Task::lesions();
        let of = |e| table_order(&task).map(move |(_, target)| row(e, Split::Val, target));
        epochs.flat_map(of).collect()
    }

    #[test]
    fn targets_with_other_classes_share_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let mut targets = Task::lesions().targets().to_vec();
        targets.push(grade(5));
        targets[2].classes[1] = targets[0].classes[2].clone(); // EX, as the lesions have
        let task = Task::new(targets).unwrap();
        let names = columns(&task);
        assert_eq!(names.len(), 15 + 9 * 8 + 3);
        assert_eq!(names[..51], columns(&Task::lesions()));
        let tail = ["g0_precision", "g4_tn", "accuracy", "kappa", "confusion"];
        assert_eq!([&names[51], &names[86]], tail[..2]);
        assert_eq!(names[87..], tail[2..]);

        let rows: Vec<_> = table_order(&task)
            .map(|(_, target)| row(1, Split::Val, target))
            .collect();
        let mut log = MetricsLog::open(&path, &task).unwrap();
        log.append(&rows).unwrap();
        assert_eq!(super::read(&path, &task).unwrap(), rows);
        assert!(rows[2].metrics.agreement.is_some());
        assert!(matches!(read(&path), Err(Error::Header { .. })));
        let stranger = MetricsRow {
            target: "other".to_owned(),
            ..rows[0].clone()
        };
        assert!(matches!(
            log.append(&[stranger]),
            Err(Error::Foreign { .. })
        ));

        let good = fs::read_to_string(&path).unwrap();
        for (from, to, expected) in [
            (",image,", ",retina,", "column level: \"retina\" is none of"),
            (" 0 0;", " 0;", "is no 5 x 5 matrix of counts"),
            (
                ",,,\n",
                ",,1,\n",
                "column kappa: \"1\", where nothing belongs",
            ),
        ] {
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let message = super::read(&path, &task).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn same_bits_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let rows = history(1..4);
        open(&path).unwrap().append(&rows[..2]).unwrap();
        open(&path).unwrap().append(&rows[2..]).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        assert_eq!(rows[0].metrics.per_class[3].auroc, None);
        let text = fs::read_to_string(&path).unwrap();
        let published =
            "timestamp,epoch,f1_micro,hamming,subset_acc,iou,dice,pearson_r,loss,split,level,";
        assert!(text.starts_with(published));
        assert_eq!(text.matches("timestamp").count(), 1);
    }

    #[test]
    fn every_torn_tail_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let rows = history(1..3);
        open(&path).unwrap().append(&rows).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let survivors = whole[..cut]
                .iter()
                .filter(|&&b| b == b'\n')
                .count()
                .saturating_sub(1);
            assert_eq!(read(&path).unwrap(), rows[..survivors], "cut at {cut}");
            if cut % 397 == 0 || cut == 1 {
                open(&path).unwrap().append(&rows[survivors..]).unwrap();
                assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
            }
        }
    }

    #[test]
    fn truncation_drops_the_resumed_epoch_and_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let rows = history(1..6);
        let mut log = open(&path).unwrap();
        log.append(&rows).unwrap();
        log.truncate_after(9).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        log.truncate_after(3).unwrap();
        assert_eq!(read(&path).unwrap(), rows[..4]);
        log.append(&rows[4..]).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        log.truncate_after(0).unwrap();
        assert_eq!(read(&path).unwrap(), []);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        assert!(read(&path).unwrap_err().to_string().contains("cannot read"));
        fs::write(&path, "epoch,loss\n1,2\n").unwrap();
        for error in [read(&path).unwrap_err(), open(&path).unwrap_err()] {
            assert!(
                error.to_string().contains("found \"epoch,loss\""),
                "{error}"
            );
        }
        fs::write(&path, "a letter to my mother").unwrap();
        assert!(matches!(open(&path), Err(Error::Header { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a letter to my mother");

        fs::remove_file(&path).unwrap();
        open(&path).unwrap().append(&history(1..2)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, good.replacen(",val,", ",vel,", 1)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(
            message.contains("line 2: column split: cannot read \"vel\""),
            "{message}"
        );
        fs::write(&path, format!("{good}1,2\n")).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(
            message.contains("line 4: 2 fields, expected 51"),
            "{message}"
        );
        assert!(message.contains("\n  help: "));
    }
}
