//! Carries out the effects of the state machine, and writes the records and `status.json`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use fovea_files::{Durability, Mode};
use serde::Serialize;

use super::{Core, Ticket};
use crate::error::{Error, Result};
use crate::journal::{JournalEntry, JournalRecord};
use crate::ledger::{LedgerEntry, LedgerRecord};
use crate::membership::Effect;
use crate::rundir;
use crate::server::connection::Message;
use crate::status::{STATUS_FILE, Status};

impl Core {
    /// Performs effects in order. When one fails that the later ones rely on, those are left out.
    pub(super) fn perform(&mut self, effects: Vec<Effect>) -> Result<()> {
        for effect in effects {
            match effect {
                Effect::Admit { ticket, member } => {
                    if let Some(peer) = self.peers.get_mut(&ticket) {
                        peer.member = Some(member);
                        self.tickets.insert(member, ticket);
                    }
                    self.welcome(ticket, Some(member));
                }
                Effect::Refuse { ticket, reason } => self.drop_peer(ticket, reason),
                Effect::Dismiss { member, reason } => {
                    if let Some(ticket) = self.tickets.get(&member).copied() {
                        self.drop_peer(ticket, reason);
                    }
                }
                Effect::Journal(entry) => self.write_journal(entry)?,
                Effect::Ledger(entry) => self.write_ledger(entry)?,
                Effect::FindCheckpoint => self.search_checkpoint(),
                Effect::SyncLedger => self.sync_ledger(),
                Effect::Send { to, reply } => {
                    let tickets: Vec<Ticket> = to
                        .iter()
                        .filter_map(|member| self.tickets.get(member).copied())
                        .collect();
                    self.send(&tickets, &reply);
                }
                Effect::End(outcome) => self.outcome = Some(outcome),
            }
        }
        Ok(())
    }

    fn write_journal(&mut self, entry: JournalEntry) -> Result<()> {
        // What a later coordinator relies on; the others are for people.
        let vital = matches!(
            entry,
            JournalEntry::Started { .. } | JournalEntry::Generation { .. }
        );
        let record = JournalRecord {
            unix_ms: rundir::unix_ms(),
            entry,
        };
        match self.journal.append(&record) {
            Ok(()) => Ok(()),
            Err(error) if !vital => {
                tracing::warn!("{error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn write_ledger(&mut self, entry: LedgerEntry) -> Result<()> {
        let record = LedgerRecord {
            unix_ms: rundir::unix_ms(),
            entry,
        };
        match self.ledger.append(&record) {
            Ok(()) => {
                if std::mem::take(&mut self.ledger_behind) {
                    tracing::info!("the ledger is up to date again");
                }
                Ok(())
            }
            Err(error) if self.ledger.is_overdue() => Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.ledger_behind, true) {
                    tracing::warn!("{error}; its records are kept until there is space");
                }
                Ok(())
            }
        }
    }

    /// On a thread of its own: checkpoints are large, and heartbeats must be read meanwhile.
    fn search_checkpoint(&self) {
        let (find, inbox) = (self.find_checkpoint.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let found = match find {
                Some(find) => find.call(),
                None => Err("this coordinator was not told where checkpoints are".to_owned()),
            };
            // When the loop is gone, so is the run.
            let _ = inbox.blocking_send(Message::Checkpoint(found));
        });
    }

    /// In the background: votes do not wait for the disk.
    fn sync_ledger(&mut self) {
        match self.ledger.handle() {
            Ok(file) => {
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = file.sync_data() {
                        tracing::warn!("cannot sync the ledger: {error}");
                    }
                });
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Starts a write in the background unless the one before is still at it.
    pub(super) fn write_status(&mut self) {
        if self
            .status_writer
            .as_ref()
            .is_some_and(|writer| !writer.is_finished())
        {
            return;
        }
        self.status_written = Some(Instant::now());
        let status = self.status();
        let path = self.run_dir.join(STATUS_FILE);
        let behind = Arc::clone(&self.status_behind);
        self.status_writer = Some(tokio::task::spawn_blocking(move || {
            match store(&path, &status, Durability::Atomic) {
                Ok(()) => behind.store(false, Ordering::Relaxed),
                // Once, not every second while a disk is full.
                Err(error) if !behind.swap(true, Ordering::Relaxed) => tracing::warn!("{error}"),
                Err(_) => {}
            }
        }));
    }

    /// The last status and the ledger go to disk.
    pub async fn finish(mut self) {
        if let Some(writer) = self.status_writer.take() {
            let _ = writer.await;
        }
        if let Err(error) = self.ledger.sync() {
            tracing::warn!("{error}");
        }
        let status = self.status();
        if let Err(error) = store(&self.run_dir.join(STATUS_FILE), &status, Durability::Synced) {
            tracing::warn!("{error}");
        }
    }
}

fn store(path: &Path, status: &Status, durability: Durability) -> Result<()> {
    let mut bytes = Vec::new();
    let mut json = serde_json::Serializer::pretty(&mut bytes);
    status.serialize(&mut json).map_err(|error| Error::Json {
        path: path.to_path_buf(),
        detail: error.to_string(),
    })?;
    bytes.push(b'\n');
    fovea_files::replace(path, &bytes, durability, Mode::Shared)?;
    Ok(())
}
