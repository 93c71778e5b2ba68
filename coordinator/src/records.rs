//! Append-only record files: the common part of journal and ledger.
//!
//! `[magic: 8][version: u32 LE][0: u32]`, then records
//! `[length: u32 LE][head check: u32][payload check: u64][payload]`, with `length` that of the payload.
//! The head check is BLAKE3 over (length, offset of the record), the payload check BLAKE3 over the
//! payload, each cut to its size. The head's own check distinguishes a record that the end of the
//! file cuts off from an overwritten length: the first is a torn write and
//! is cut, the second is damage and an error.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{BufReader, Read};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::error::{Error, Result};

const FILE_HEAD: u64 = 16;
const RECORD_HEAD: usize = 16;
/// Cap for one record's payload, in bytes; a generation of 10,000 seats takes about half of it.
const MAX_RECORD: usize = codec::MAX_FRAME;
/// Cap for what waits in memory while the disk is full, in bytes.
const MAX_PENDING: usize = 1 << 20;

/// What kind of record file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordFormat {
    pub magic: [u8; 8],
    pub version: u32,
}

/// A record at the end of a file that a crash cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where the last whole record ends.
    pub offset: u64,
    /// Bytes after `offset`, which are ignored and overwritten.
    pub bytes: u64,
}

/// What a record file holds.
#[derive(Debug)]
pub struct Contents<T> {
    /// The whole records, oldest first.
    pub records: Vec<T>,
    /// Set when the file ends in the middle of a record.
    pub torn: Option<Torn>,
}

/// A record file that is open for appending.
#[derive(Debug)]
pub(crate) struct RecordFile<T> {
    path: PathBuf,
    file: File,
    /// Where the next record goes; what the file holds behind it is void.
    end: u64,
    /// Records that could not be written yet.
    pending: Vec<u8>,
    records: PhantomData<fn(T)>,
}

impl<T: Serialize + DeserializeOwned> RecordFile<T> {
    /// Opens or creates; a torn tail is cut, and told in the log.
    pub fn open(path: &Path, format: RecordFormat) -> Result<(Self, Vec<T>)> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::file("open", path))?;
        let found = file.metadata().map_err(Error::file("look at", path))?;
        refuse_irregular(path, &found)?;
        let length = found.len();
        let mut contents = Contents {
            records: Vec::new(),
            torn: None,
        };
        let mut end = FILE_HEAD;
        if length < FILE_HEAD && torn_head(&file, path, format)? {
            file.set_len(0).map_err(Error::file("cut", path))?;
            file.write_all_at(&file_head(format), 0)
                .map_err(Error::file("write", path))?;
            file.sync_all().map_err(Error::file("sync", path))?;
            fovea_files::sync_parent(path)?;
        } else {
            (contents, end) = scan(path, format)?;
        }
        if let Some(torn) = contents.torn {
            tracing::warn!(
                "{}: cut a torn record of {} bytes at byte {}",
                path.display(),
                torn.bytes,
                torn.offset
            );
            file.set_len(torn.offset)
                .map_err(Error::file("cut", path))?;
            file.sync_all().map_err(Error::file("sync", path))?;
        }
        let open = Self {
            path: path.to_path_buf(),
            file,
            end,
            pending: Vec::new(),
            records: PhantomData,
        };
        Ok((open, contents.records))
    }

    /// Appends a record: with the system when this returns, on disk after [`Self::sync`]. A record
    /// that cannot be written stays pending, in order, and goes out with a later one.
    pub fn append(&mut self, record: &T) -> Result<()> {
        let payload = codec::to_bytes(record)?;
        if payload.len() > MAX_RECORD || self.pending.len() > MAX_PENDING {
            return Err(Error::FrameTooLarge {
                bytes: payload.len().max(self.pending.len()) as u64,
                limit: MAX_RECORD,
            });
        }
        let offset = self.end + self.pending.len() as u64;
        self.pending
            .extend_from_slice(&record_head(&payload, offset));
        self.pending.extend_from_slice(&payload);
        self.flush()
    }

    /// Whether the disk is so full that not even the memory for pending records is left.
    pub fn is_overdue(&self) -> bool {
        self.pending.len() > MAX_PENDING
    }

    fn flush(&mut self) -> Result<()> {
        // At a fixed offset: what a write that failed half-way left is written over.
        self.file
            .write_all_at(&self.pending, self.end)
            .map_err(Error::file("append to", &self.path))?;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Another handle on the file.
    pub fn handle(&self) -> Result<File> {
        self.file
            .try_clone()
            .map_err(Error::file("open again", &self.path))
    }

    /// Makes all records durable.
    pub fn sync(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        self.file
            .sync_data()
            .map_err(Error::file("sync", &self.path))
    }
}

/// Reads a record file without changing it.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, format: RecordFormat) -> Result<Contents<T>> {
    scan(path, format).map(|(contents, _)| contents)
}

fn file_head(format: RecordFormat) -> [u8; FILE_HEAD as usize] {
    let mut head = [0u8; FILE_HEAD as usize];
    head[..8].copy_from_slice(&format.magic);
    head[8..12].copy_from_slice(&format.version.to_le_bytes());
    head
}

fn record_head(payload: &[u8], offset: u64) -> [u8; RECORD_HEAD] {
    // `append` checked the length against a cap far below u32::MAX.
    let length = payload.len() as u32;
    let mut head = [0u8; RECORD_HEAD];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&head_check(length, offset));
    head[8..].copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    head
}

fn head_check(length: u32, offset: u64) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    let hash = hasher.finalize();
    let b = hash.as_bytes();
    [b[0], b[1], b[2], b[3]]
}

/// Whether a file shorter than its head is one whose creation was interrupted.
fn torn_head(file: &File, path: &Path, format: RecordFormat) -> Result<bool> {
    let mut bytes = Vec::new();
    let mut reader = file;
    reader
        .read_to_end(&mut bytes)
        .map_err(Error::file("read", path))?;
    let head = file_head(format);
    let zeros = bytes.iter().all(|b| *b == 0);
    Ok(zeros || head.starts_with(&bytes))
}

fn refuse_irregular(path: &Path, found: &Metadata) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    Err(Error::Corrupt {
        path: path.to_path_buf(),
        offset: 0,
        detail: "this is no regular file".to_owned(),
    })
}

fn scan<T: DeserializeOwned>(path: &Path, format: RecordFormat) -> Result<(Contents<T>, u64)> {
    // Looked at first: to open a pipe would wait for a writer.
    let found = fs::metadata(path).map_err(Error::file("open", path))?;
    refuse_irregular(path, &found)?;
    let length = found.len();
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut reader = Scanner {
        path,
        reader: BufReader::with_capacity(1 << 16, file),
        offset: 0,
        length,
    };
    reader.file_head(format)?;
    let mut records = Vec::new();
    loop {
        let offset = reader.offset;
        match reader.record()? {
            NextRecord::Payload(payload) => {
                let record = codec::from_bytes(&payload)
                    .map_err(|error| reader.corrupt(offset, &error.to_string()))?;
                records.push(record);
            }
            NextRecord::End => {
                return Ok((
                    Contents {
                        records,
                        torn: None,
                    },
                    offset,
                ));
            }
            NextRecord::Torn => {
                let torn = Some(Torn {
                    offset,
                    bytes: length - offset,
                });
                return Ok((Contents { records, torn }, offset));
            }
        }
    }
}

enum NextRecord {
    Payload(Vec<u8>),
    End,
    Torn,
}

struct Scanner<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    offset: u64,
    length: u64,
}

impl Scanner<'_> {
    fn corrupt(&self, offset: u64, detail: &str) -> Error {
        Error::Corrupt {
            path: self.path.to_path_buf(),
            offset,
            detail: detail.lines().next().unwrap_or_default().to_owned(),
        }
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader
            .read_exact(bytes)
            .map_err(Error::file("read", self.path))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn file_head(&mut self, format: RecordFormat) -> Result<()> {
        if self.length < FILE_HEAD {
            return Err(self.corrupt(self.length, "the file head is not complete"));
        }
        let mut head = [0u8; FILE_HEAD as usize];
        self.take(&mut head)?;
        if head[..8] != format.magic {
            let name = String::from_utf8_lossy(&format.magic).into_owned();
            return Err(self.corrupt(0, &format!("the file does not begin with {name}")));
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found != format.version {
            return Err(Error::FileVersion {
                path: self.path.to_path_buf(),
                found,
                expected: format.version,
            });
        }
        Ok(())
    }

    fn record(&mut self) -> Result<NextRecord> {
        let offset = self.offset;
        let left = self.length - offset;
        if left == 0 {
            return Ok(NextRecord::End);
        }
        if left < RECORD_HEAD as u64 {
            return Ok(NextRecord::Torn);
        }
        let mut head = [0u8; RECORD_HEAD];
        self.take(&mut head)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if head[4..8] != head_check(length, offset) || length as usize > MAX_RECORD {
            // A file system may have grown the file before it had written the data.
            return if head == [0; RECORD_HEAD] && self.only_zeros_left()? {
                Ok(NextRecord::Torn)
            } else {
                Err(self.corrupt(offset, "a record's length does not match its check"))
            };
        }
        if u64::from(length) > self.length - self.offset {
            return Ok(NextRecord::Torn);
        }
        let mut payload = vec![0u8; length as usize];
        self.take(&mut payload)?;
        if head[8..] == blake3::hash(&payload).as_bytes()[..8] {
            return Ok(NextRecord::Payload(payload));
        }
        if self.only_zeros_left()? {
            return Ok(NextRecord::Torn);
        }
        Err(self.corrupt(
            offset,
            "a record does not match its check and others follow",
        ))
    }

    /// Reads to the end of the file, so it must be the last call.
    fn only_zeros_left(&mut self) -> Result<bool> {
        let mut chunk = [0u8; 4096];
        loop {
            let n = self
                .reader
                .read(&mut chunk)
                .map_err(Error::file("read", self.path))?;
            if n == 0 {
                return Ok(true);
            }
            if chunk[..n].iter().any(|b| *b != 0) {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests;
