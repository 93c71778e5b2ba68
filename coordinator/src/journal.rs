//! `RUN/journal`: what must survive the coordinator. Every record is on disk before anyone hears
//! of it, so no generation is issued twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::protocol::{Generation, MemberId, StartPoint};
use crate::records::{self, Contents, RecordFile, RecordFormat};

/// File name in the run directory.
pub const JOURNAL_FILE: &str = "journal";

const FORMAT: RecordFormat = RecordFormat {
    magic: *b"FOVEAJNL",
    version: 1,
};

/// A rank and who sits on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Position in the world, from 0.
    pub rank: usize,
    /// Id of the process that holds the seat.
    pub member: MemberId,
    /// Host name of that process.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
}

/// What happened. Variants are only ever added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalEntry {
    /// A coordinator took over the run directory; its first entry.
    Started {
        /// How many there have been in this run directory, with this one.
        incarnation: u32,
        /// Host that the coordinator runs on.
        host: String,
        /// Process id of the coordinator on that host.
        pid: u32,
        /// Where it starts from.
        start: StartPoint,
    },
    /// A generation is about to be announced.
    Generation {
        /// The new generation's number.
        generation: Generation,
        /// Its ranks, by rank.
        seats: Vec<Seat>,
        /// Where it starts from.
        start: StartPoint,
        /// Why there is a new one.
        reason: String,
    },
    /// The coordinator's run is over.
    Ended {
        /// `finished`, `drained`, `stopped` or `failed`.
        outcome: String,
        /// Committed steps at the end.
        step: u64,
        /// For people: who or what ended the run.
        reason: String,
    },
    /// A rank was lost: its generation is over.
    Incident {
        /// The generation that is over.
        generation: Generation,
        /// Committed steps when it happened.
        step: u64,
        /// Milliseconds since the lost rank's last message, or since its last progress.
        silent_ms: u64,
        /// What happened, to whom.
        reason: String,
    },
    /// The first step after an incident is committed.
    Recovered {
        /// The generation that committed it.
        generation: Generation,
        /// The step that was committed.
        step: u64,
        /// Milliseconds since the incident was noticed.
        after_ms: u64,
        /// Committed steps that had to be taken again, because nobody held their state any more.
        steps_lost: u64,
    },
    /// All ranks were given the state of one of them, and have the same.
    Shared {
        /// The generation whose ranks hold the state.
        generation: Generation,
        /// Committed steps of that state.
        step: u64,
        /// Ranks that hold it.
        ranks: usize,
        /// Hash over parameters, moments and statistics.
        state_blake3: String,
    },
}

/// An entry and when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// Milliseconds since 1970 (UTC), for people.
    pub unix_ms: u64,
    /// The event, with its numbers.
    pub entry: JournalEntry,
}

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal(RecordFile<JournalRecord>);

impl Journal {
    /// Opens or creates the journal and returns its records. A torn last record is cut: nobody was
    /// told of it.
    pub fn open(run_dir: &Path) -> Result<(Self, Vec<JournalRecord>)> {
        let (file, records) = RecordFile::open(&path(run_dir), FORMAT)?;
        Ok((Self(file), records))
    }

    /// Appends a record and waits until it is on disk.
    pub fn append(&mut self, record: &JournalRecord) -> Result<()> {
        self.0.append(record)?;
        self.0.sync()
    }
}

/// Reads a journal without changing it.
pub fn read(run_dir: &Path) -> Result<Contents<JournalRecord>> {
    records::read(&path(run_dir), FORMAT)
}

/// What a new coordinator has to know of the earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Coordinators that have started in this run directory; the next member ids count from it.
    pub incarnations: u32,
    /// Highest generation so far.
    pub generation: Generation,
    /// Members and their ranks when the last coordinator was lost; empty when it ended in order.
    pub seated: BTreeMap<MemberId, usize>,
}

impl Past {
    /// From a journal's records.
    pub fn of(records: &[JournalRecord]) -> Self {
        let mut past = Self::default();
        for record in records {
            match &record.entry {
                JournalEntry::Started { incarnation, .. } => {
                    past.incarnations = past.incarnations.max(*incarnation);
                }
                JournalEntry::Generation {
                    generation, seats, ..
                } => {
                    past.generation = past.generation.max(*generation);
                    past.seated = seats.iter().map(|seat| (seat.member, seat.rank)).collect();
                }
                JournalEntry::Ended { .. } => past.seated.clear(),
                JournalEntry::Incident { .. }
                | JournalEntry::Recovered { .. }
                | JournalEntry::Shared { .. } => {}
            }
        }
        past
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join(JOURNAL_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<JournalRecord> {
        let start = StartPoint {
            epoch: 1,
            step: 300,
            cursor: 70,
        };
        let entries = [
            JournalEntry::Started {
                incarnation: 2,
                host: "a".to_owned(),
                pid: 7,
                start,
            },
            JournalEntry::Generation {
                generation: 5,
                seats: vec![Seat {
                    rank: 0,
                    member: MemberId((2 << 32) + 1),
                    host: "b".to_owned(),
                    pid: 8,
                }],
                start,
                reason: "r".to_owned(),
            },
            JournalEntry::Ended {
                outcome: "drained".to_owned(),
                step: 301,
                reason: "s".to_owned(),
            },
        ];
        entries
            .into_iter()
            .map(|entry| JournalRecord { unix_ms: 9, entry })
            .collect()
    }

    #[test]
    fn comes_back_and_knows_the_past() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, before) = Journal::open(dir.path()).unwrap();
        assert_eq!(Past::of(&before), Past::default());
        for record in &records() {
            journal.append(record).unwrap();
        }
        drop(journal);
        let (_, after) = Journal::open(dir.path()).unwrap();
        assert_eq!(after, records());
        let past = Past {
            incarnations: 2,
            generation: 5,
            seated: BTreeMap::new(),
        };
        assert_eq!(Past::of(&after), past);
        let lost = Past::of(&after[..2]);
        assert_eq!(lost.seated, BTreeMap::from([(MemberId((2 << 32) + 1), 0)]));
        assert_eq!(read(dir.path()).unwrap().records, records());
    }

    #[test]
    fn golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        for record in &records() {
            journal.append(record).unwrap();
        }
        let bytes = std::fs::read(dir.path().join(JOURNAL_FILE)).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "464f5645414a4e4c01000000000000000b00000066ee992a6eff30127989eb8609000201610701fb\
        2c0146180000002f8193eaacdcdabc579a300e0901050100fd010000000200000001620801fb2c01\
        4601720f0000001a763daed09758ce662937d2090207647261696e6564fb2d010173";
}
