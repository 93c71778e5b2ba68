//! The workers: threads that take images one by one, and one that finishes shards.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::image::Desk;
use super::output::OutputDirectory;
use super::{MAX_BAD_FILES, PreparePlan};
use crate::manifest::ShardEntry;
use crate::raw::names::{counted, first_few};
use crate::{BadFile, Crop, Error, ProgressListener, Result};

/// Memory that pictures being decoded may take together, whatever the number of threads.
const MEMORY_BYTES: u64 = 640 << 20;

/// Images named in a warning.
const NAMES: usize = 5;

/// A shard being written.
struct Open {
    number: usize,
    file: File,
    /// Rows not done yet.
    left: AtomicUsize,
    /// Set by a bad image: the shard will not be kept.
    spoiled: AtomicBool,
}

/// What the threads share.
struct Preparation<'a> {
    plan: &'a PreparePlan,
    output: &'a OutputDirectory,
    progress: &'a dyn ProgressListener,
    /// Images to make as (shard, image), in order; `next` is the first that nobody has taken.
    jobs: Vec<(usize, usize)>,
    next: AtomicUsize,
    open: Mutex<HashMap<usize, Arc<Open>>>,
    /// Buffers that a thread keeps for the next image may have this length each.
    keep_bytes: usize,
    memory: Memory,
    bad: Mutex<Vec<(usize, BadFile)>>,
    faint_masks: AtomicUsize,
    /// Images that cannot show an eye, and why.
    no_eye: Mutex<Vec<(usize, String)>>,
    fatal: Mutex<Option<Error>>,
    stop: AtomicBool,
}

/// Makes the shards that are not in `done`; all entries in order.
pub(super) fn make_shards(
    plan: &PreparePlan,
    output: &OutputDirectory,
    mut done: Vec<Option<ShardEntry>>,
    workers: usize,
    progress: &dyn ProgressListener,
) -> Result<Vec<ShardEntry>> {
    let missing: Vec<usize> = (0..done.len())
        .filter(|&shard| done[shard].is_none())
        .collect();
    let jobs: Vec<_> = missing
        .iter()
        .flat_map(|&shard| plan.images_of(shard).map(move |image| (shard, image)))
        .collect();
    progress.advance((plan.raw.images.len() - jobs.len()) as u64);
    check_space(plan, output, &missing)?;
    let workers = workers.min(jobs.len());
    let run = Preparation {
        plan,
        output,
        progress,
        jobs,
        next: AtomicUsize::new(0),
        open: Mutex::default(),
        // A quarter of the memory for decoding, over threads and their two large buffers.
        keep_bytes: MEMORY_BYTES as usize / 8 / workers.max(1),
        memory: Memory::default(),
        bad: Mutex::default(),
        faint_masks: AtomicUsize::new(0),
        no_eye: Mutex::default(),
        fatal: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    // At most one complete shard waits: when the disk is slower than the processors, they wait for it.
    let (complete, to_finish) = sync_channel(1);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let complete = complete.clone();
            let run = &run;
            scope.spawn(move || run.work(&complete));
        }
        drop(complete);
        run.finish_shards(&to_finish, &mut done);
    });
    run.outcome()?;
    Ok(done.into_iter().flatten().collect())
}

impl Preparation<'_> {
    fn work(&self, complete: &SyncSender<Arc<Open>>) {
        let mut desk = Desk::new(self.keep_bytes);
        let mut reader = self.plan.raw.store.reader();
        while !self.stop.load(Ordering::Relaxed) {
            let Some(&(shard, image)) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed))
            else {
                return;
            };
            let done = self.open(shard).and_then(|open| {
                self.make(&mut desk, &mut reader, &open, image)?;
                desk.clear();
                self.progress.advance(1);
                Ok(open)
            });
            match done {
                Ok(open) if open.left.fetch_sub(1, Ordering::AcqRel) == 1 => {
                    lock(&self.open).remove(&shard);
                    if complete.send(open).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Makes one image and writes it to its row. A bad image is noted and is no error here.
    fn make(
        &self,
        desk: &mut Desk,
        reader: &mut crate::raw::Reader,
        open: &Open,
        image: usize,
    ) -> Result<()> {
        let raw = &self.plan.raw.images[image];
        let mut held = None;
        let made = desk
            .load(&self.plan.raw, reader, raw, self.plan.cells)
            .map_err(|bad| vec![bad])
            .and_then(|bytes| {
                held = Some(self.memory.take(bytes));
                let (cells, framing) = (self.plan.cells, self.plan.recipe.framing);
                desk.prepare(&self.plan.raw, reader, raw, cells, framing)
            });
        self.faint_masks
            .fetch_add(desk.faint_masks(), Ordering::Relaxed);
        if let Some(why) = desk.no_eye() {
            lock(&self.no_eye).push((image, why));
        }
        if let Err(files) = made {
            open.spoiled.store(true, Ordering::Relaxed);
            let mut bad = lock(&self.bad);
            bad.extend(files.into_iter().map(|file| (image, file)));
            if bad.len() >= MAX_BAD_FILES {
                self.stop.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        let row = image - self.plan.images_of(open.number).start;
        let shape = self.plan.shape(open.number);
        let written = shape.write_row(&open.file, row, desk.row());
        drop(held);
        written.map_err(|e| Error::writing(self.output.part(open.number), shape.file_bytes(), e))
    }

    fn open(&self, number: usize) -> Result<Arc<Open>> {
        let mut all = lock(&self.open);
        if let Some(open) = all.get(&number) {
            return Ok(open.clone());
        }
        let path = self.output.part(number);
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let file = file.map_err(|e| Error::io("create", &path, e))?;
        let shape = self.plan.shape(number);
        shape
            .write_header(&file)
            .map_err(|e| Error::writing(&path, shape.file_bytes(), e))?;
        let left = AtomicUsize::new(shape.images);
        let open = Arc::new(Open {
            number,
            file,
            left,
            spoiled: AtomicBool::new(false),
        });
        all.insert(number, open.clone());
        Ok(open)
    }

    /// Receives complete shards until all workers have ended.
    fn finish_shards(&self, complete: &Receiver<Arc<Open>>, done: &mut [Option<ShardEntry>]) {
        for open in complete {
            if open.spoiled.load(Ordering::Relaxed) || lock(&self.fatal).is_some() {
                continue;
            }
            match self.output.keep(self.plan, open.number, &open.file) {
                Ok(entry) => done[open.number] = Some(entry),
                Err(error) => self.fail(error),
            }
        }
    }

    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.fatal).get_or_insert(error);
    }

    fn outcome(self) -> Result<()> {
        let faint = self.faint_masks.into_inner();
        if faint > 0 {
            tracing::warn!(
                "{faint} of the masks are not black and yet count as empty (named above): store lesions as 255"
            );
        }
        let mut no_eye = std::mem::take(&mut *lock(&self.no_eye));
        if !no_eye.is_empty() {
            no_eye.sort_unstable();
            let named = |(image, why): &(usize, String)| {
                format!("{} ({why})", self.plan.raw.images[*image].id)
            };
            let names: Vec<String> = no_eye.iter().map(named).collect();
            tracing::warn!(
                "{} cannot show {}: {}: remove {}, or bring {}",
                counted(names.len(), "image"),
                match self.plan.recipe.framing.crop {
                    Crop::Fov => "an eye",
                    Crop::None => "anything",
                },
                first_few(&names, NAMES),
                if names.len() == 1 { "it" } else { "them" },
                if names.len() == 1 {
                    "a photograph"
                } else {
                    "photographs"
                },
            );
        }
        if let Some(error) = self
            .fatal
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            return Err(error);
        }
        let mut bad = self
            .bad
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if bad.is_empty() {
            return Ok(());
        }
        bad.sort_by_key(|(image, _)| *image);
        let mut images: Vec<usize> = bad.iter().map(|(image, _)| *image).collect();
        images.dedup();
        Err(Error::BadFiles {
            path: self.plan.raw.store.path().to_owned(),
            total: self.plan.raw.images.len(),
            images: images.len(),
            files: bad
                .into_iter()
                .map(|(_, file)| file)
                .take(MAX_BAD_FILES)
                .collect(),
            more: self.stop.load(Ordering::Relaxed),
        })
    }
}

/// Counts the memory that pictures being decoded take.
#[derive(Default)]
struct Memory {
    taken: Mutex<u64>,
    freed: Condvar,
}

struct Held<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Memory {
    /// Waits until `bytes` more fit. A picture larger than all of it is let in when it is alone.
    fn take(&self, bytes: u64) -> Held<'_> {
        let mut taken = lock(&self.taken);
        while *taken > 0 && *taken + bytes > MEMORY_BYTES {
            taken = self
                .freed
                .wait(taken)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes;
        Held {
            memory: self,
            bytes,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *lock(&self.memory.taken) -= self.bytes;
        self.memory.freed.notify_all();
    }
}

/// A thread that panicked holding a lock left nothing half done that the others would trip over.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses to begin what the disk cannot hold.
fn check_space(plan: &PreparePlan, output: &OutputDirectory, missing: &[usize]) -> Result<()> {
    let needed_bytes: u64 = missing
        .iter()
        .map(|&shard| plan.shape(shard).file_bytes())
        .sum();
    // Where the system does not tell, the writer will find out.
    let Ok(disk) = rustix::fs::statvfs(output.dir()) else {
        return Ok(());
    };
    enough_space(
        output.dir(),
        needed_bytes,
        disk.f_bavail.saturating_mul(disk.f_frsize),
    )
}

fn enough_space(dir: &std::path::Path, needed_bytes: u64, available: u64) -> Result<()> {
    if needed_bytes <= available {
        return Ok(());
    }
    Err(Error::DiskFull {
        path: dir.to_owned(),
        needed_bytes,
        available_bytes: Some(available),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_numbers() {
        enough_space("out".as_ref(), 5, 5).unwrap();
        let text = enough_space("out".as_ref(), 12_061_000_000, 3_400_000)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("no space left for out: 12.1 GB to write, 3.4 MB available\n  help: "),
            "{text}"
        );
    }

    #[test]
    fn memory_is_given_back_and_one_large_picture_passes() {
        let memory = Memory::default();
        {
            let _large = memory.take(MEMORY_BYTES * 2);
        }
        let held = memory.take(MEMORY_BYTES / 2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(memory.take(MEMORY_BYTES)));
            drop(held);
            waiting.join().unwrap();
        });
        assert_eq!(*memory.taken.lock().unwrap(), 0);
    }
}
