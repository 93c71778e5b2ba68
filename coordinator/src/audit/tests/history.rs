//! Histories as a coordinator writes them.

use super::*;

/// Writes both files as the coordinator does.
#[derive(Default)]
pub(super) struct Writer {
    pub total: u64,
    pub epochs: u32,
    pub now_ms: u64,
    pub generation: Generation,
    pub incarnation: u32,
    pub at: StartPoint,
    pub checkpoint: StartPoint,
    pub incident: Option<(u64, u64)>,
    pub ledger: Vec<LedgerRecord>,
    pub journal: Vec<JournalRecord>,
}

impl Writer {
    pub fn new(total: u64, epochs: u32) -> Self {
        let mut writer = Self {
            total,
            epochs,
            now_ms: 1000,
            ..Self::default()
        };
        writer.coordinator();
        writer.form(true);
        writer
    }

    pub fn note(&mut self, entry: JournalEntry) {
        let unix_ms = self.now_ms;
        self.journal.push(JournalRecord { unix_ms, entry });
    }

    pub fn enter(&mut self, entry: LedgerEntry) {
        let unix_ms = self.now_ms;
        self.ledger.push(LedgerRecord { unix_ms, entry });
    }

    pub fn coordinator(&mut self) {
        self.now_ms += 500;
        self.incarnation += 1;
        let entry = JournalEntry::Started {
            incarnation: self.incarnation,
            host: "a".to_owned(),
            pid: 7,
            start: self.checkpoint,
        };
        self.note(entry);
    }

    /// A generation, from the newest step or from the checkpoint.
    pub fn form(&mut self, held: bool) {
        self.now_ms += 100;
        let start = if held { self.at } else { self.checkpoint };
        if let Some((_, lost)) = &mut self.incident {
            *lost += self.at.step - start.step;
        }
        self.at = start;
        self.generation += 1;
        let seat = |rank| Seat {
            rank,
            member: MemberId(rank as u64 + 1),
            host: "a".to_owned(),
            pid: 8,
        };
        let generation = self.generation;
        self.note(JournalEntry::Generation {
            generation,
            seats: vec![seat(0), seat(1)],
            start,
            reason: String::new(),
        });
        self.enter(LedgerEntry::Start { generation, start });
    }

    pub fn is_finished(&self) -> bool {
        self.at.epoch + 1 >= self.epochs && self.at.cursor == self.total
    }

    pub fn commit(&mut self, samples: u64) {
        if self.is_finished() {
            return;
        }
        self.now_ms += 200;
        let (epoch, from) = match self.at.cursor == self.total {
            true => (self.at.epoch + 1, 0),
            false => (self.at.epoch, self.at.cursor),
        };
        let step = CommittedStep {
            generation: self.generation,
            epoch,
            step: self.at.step + 1,
            cursor_start: from,
            cursor_end: (from + samples).min(self.total),
        };
        self.enter(LedgerEntry::Commit(step));
        self.at = StartPoint {
            epoch,
            step: step.step,
            cursor: step.cursor_end,
        };
        if let Some((since_ms, steps_lost)) = self.incident.take() {
            let after_ms = self.now_ms - since_ms;
            self.note(JournalEntry::Recovered {
                generation: self.generation,
                step: step.step,
                after_ms,
                steps_lost,
            });
        }
    }

    pub fn lose_rank(&mut self, held: bool) {
        self.now_ms += 50;
        let now_ms = self.now_ms;
        self.incident.get_or_insert((now_ms, 0));
        self.note(JournalEntry::Incident {
            generation: self.generation,
            step: self.at.step,
            silent_ms: 40,
            reason: "rank 1 is gone".to_owned(),
        });
        self.form(held);
    }

    pub fn lose_coordinator(&mut self, held: bool) {
        self.incident = None;
        self.coordinator();
        self.form(held);
    }

    pub fn end(&mut self, outcome: &str) {
        self.now_ms += 10;
        let step = self.at.step;
        self.note(JournalEntry::Ended {
            outcome: outcome.to_owned(),
            step,
            reason: String::new(),
        });
    }

    pub fn save(&mut self, next_epoch: bool) {
        self.checkpoint = self.at;
        // A trainer may name the same place as the beginning of the next epoch.
        if next_epoch && self.at.cursor == self.total {
            self.checkpoint.epoch += 1;
            self.checkpoint.cursor = 0;
        }
    }

    pub fn report(&self) -> Report {
        audit(&AuditInput {
            ledger: &self.ledger,
            journal: &self.journal,
            samples_per_epoch: self.total,
            epochs: self.epochs,
        })
    }
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Commit(u64),
    Save(bool),
    LoseRank(bool),
    LoseCoordinator(bool),
    Regroup,
    Resume(bool),
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1u64..12).prop_map(Op::Commit),
        2 => any::<bool>().prop_map(Op::Save),
        1 => any::<bool>().prop_map(Op::LoseRank),
        1 => any::<bool>().prop_map(Op::LoseCoordinator),
        1 => Just(Op::Regroup),
        1 => any::<bool>().prop_map(Op::Resume),
    ]
}

pub(super) fn history(total: u64, epochs: u32, ops: &[Op], finish: bool) -> Writer {
    let mut writer = Writer::new(total, epochs);
    writer.commit(3);
    for op in ops {
        match op {
            Op::Commit(samples) => writer.commit(*samples),
            Op::Save(next_epoch) => writer.save(*next_epoch && !writer.is_finished()),
            Op::LoseRank(held) => writer.lose_rank(*held),
            Op::LoseCoordinator(held) => writer.lose_coordinator(*held),
            Op::Regroup => writer.form(true),
            Op::Resume(saved) => {
                writer.incident = None;
                writer.end("drained");
                if *saved {
                    writer.save(false);
                }
                writer.coordinator();
                writer.form(false);
            }
        }
    }
    if writer.at.step == 0 {
        writer.commit(3);
    }
    while finish && !writer.is_finished() {
        writer.commit(5);
    }
    writer.end(if finish { "finished" } else { "drained" });
    writer
}
