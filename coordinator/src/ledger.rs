//! `RUN/ledger`: which step committed which samples, as ranges in the epoch's global order.
//!
//! The coordinator writes a record before the ranks hear that the step is committed, so it outlives the
//! process. It syncs the ledger with every checkpoint and at the end: after a crash of
//! the whole machine, training continues from a checkpoint, and the steps after it are void anyway.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::protocol::{Generation, StartPoint};
use crate::records::{self, Contents, RecordFile, RecordFormat};

/// File name in the run directory.
pub const LEDGER_FILE: &str = "ledger";

const FORMAT: RecordFormat = RecordFormat {
    magic: *b"FOVEALGR",
    version: 2,
};

/// A committed step: samples `cursor_start..cursor_end` of `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedStep {
    /// Generation that committed it.
    pub generation: Generation,
    /// Epoch that the samples belong to, from 0.
    pub epoch: u32,
    /// The step, from 1.
    pub step: u64,
    /// Samples of the epoch committed before.
    pub cursor_start: u64,
    /// Samples of the epoch committed after.
    pub cursor_end: u64,
}

/// One record. Variants are only ever added at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerEntry {
    /// A generation starts from here. Steps behind `start.step` that stand before this record are
    /// void: the weights that they made are gone.
    Start {
        /// The generation that begins.
        generation: Generation,
        /// Where it starts from.
        start: StartPoint,
    },
    /// A step is committed.
    Commit(CommittedStep),
}

/// An entry and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// Milliseconds since 1970 (UTC): for durations, nothing is decided by it.
    pub unix_ms: u64,
    /// A generation's start, or a committed step.
    pub entry: LedgerEntry,
}

/// The ledger, open for appending.
#[derive(Debug)]
pub struct Ledger(RecordFile<LedgerRecord>);

impl Ledger {
    /// Opens or creates the ledger and returns its records.
    pub fn open(run_dir: &Path) -> Result<(Self, Vec<LedgerRecord>)> {
        let (file, records) = RecordFile::open(&path(run_dir), FORMAT)?;
        Ok((Self(file), records))
    }

    /// Appends a record; the system has it when this returns. A record that cannot be written, as
    /// when the disk is full, is kept and written with a later one.
    pub fn append(&mut self, record: &LedgerRecord) -> Result<()> {
        self.0.append(record)
    }

    /// No more entries can be kept: the run must not continue without a record of it.
    pub fn is_overdue(&self) -> bool {
        self.0.is_overdue()
    }

    /// Another handle on the file, to sync it from another thread.
    pub fn handle(&self) -> Result<std::fs::File> {
        self.0.handle()
    }

    /// Puts all entries on disk.
    pub fn sync(&mut self) -> Result<()> {
        self.0.sync()
    }
}

/// Reads a ledger without changing it.
pub fn read(run_dir: &Path) -> Result<Contents<LedgerRecord>> {
    records::read(&path(run_dir), FORMAT)
}

/// The steps that made the newest weights, oldest first, without the steps that a later start made void.
pub fn history<'a>(entries: impl IntoIterator<Item = &'a LedgerEntry>) -> Vec<CommittedStep> {
    let mut steps: Vec<CommittedStep> = Vec::new();
    for entry in entries {
        match entry {
            LedgerEntry::Start { start, .. } => {
                let kept = steps.partition_point(|step| step.step <= start.step);
                steps.truncate(kept);
            }
            LedgerEntry::Commit(step) => steps.push(*step),
        }
    }
    steps
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join(LEDGER_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(generation: Generation, step: u64, cursor: u64) -> LedgerEntry {
        LedgerEntry::Start {
            generation,
            start: StartPoint {
                epoch: 0,
                step,
                cursor,
            },
        }
    }

    fn commit(generation: Generation, step: u64) -> LedgerEntry {
        LedgerEntry::Commit(CommittedStep {
            generation,
            epoch: 0,
            step,
            cursor_start: (step - 1) * 10,
            cursor_end: step * 10,
        })
    }

    #[test]
    fn history_drops_what_a_resume_made_void() {
        let entries = [
            start(1, 0, 0),
            commit(1, 1),
            commit(1, 2),
            commit(1, 3),
            // Resumed from the checkpoint of step 1, and lost again before a step.
            start(2, 1, 10),
            start(3, 1, 10),
            commit(3, 2),
        ];
        let steps: Vec<_> = history(&entries)
            .iter()
            .map(|s| (s.generation, s.step, s.cursor_end))
            .collect();
        assert_eq!(steps, [(1, 1, 10), (3, 2, 20)]);
    }

    #[test]
    fn comes_back_as_written_and_golden() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [start(1, 0, 0), commit(1, 1), commit(1, 300)];
        let entries = entries.map(|entry| LedgerRecord { unix_ms: 9, entry });
        let (mut ledger, before) = Ledger::open(dir.path()).unwrap();
        assert!(before.is_empty());
        for entry in &entries {
            ledger.append(entry).unwrap();
        }
        ledger.sync().unwrap();
        let contents = read(dir.path()).unwrap();
        assert_eq!(contents.records, entries);
        assert_eq!(contents.torn, None);
        let bytes = std::fs::read(dir.path().join(LEDGER_FILE)).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "464f5645414c4752020000000000000006000000cfb294f5c1bebfd15c548c480900010000000700\
        00008e280de1a8c81eef2aae88b20901010001000a0d0000008221d7f7ab46eaffbc111a7a090101\
        00fb2c01fbae0bfbb80b";
}
