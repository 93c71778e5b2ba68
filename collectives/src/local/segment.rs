//! The memory that the ranks share: its layout, and the two things ranks do with it, arriving and
//! reading each other's data. The only file of this backend that touches raw memory.
//!
//! ```text
//! page 0      header: who aborted and why
//! seats       one per rank: arrival word on a cache line of its own, pid, two notes
//! result      two halves of `chunk` f32
//! slot 0..W   per rank, two halves of `chunk` f32
//! ```
//!
//! Arrivals are numbered. Data for arrival `k` live in the halves `k & 1`. A rank writes them before
//! it arrives at `k`; all ranks read them between the end of wait `k` and their own arrival at `k + 1`,
//! and write the halves again only after wait `k + 1`. So no rank ever writes what another may
//! read, and one barrier per chunk is enough.
//!
//! The memory is an anonymous file (`memfd`): it has no name, so it disappears with the last rank,
//! however the ranks end. Its size is sealed, so no rank can shrink it under the others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::fs::{FallocateFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

const PAGE: usize = 4096;
const REASON_BYTES: usize = 248;

/// Bit 0 of an arrival word; the number of arrivals is in the others, so that setting the bit changes
/// the word under every futex wait on it.
const ABORTED: u32 = 1;
const ARRIVAL: u32 = 2;

#[repr(C)]
struct Header {
    aborted_by: AtomicU32,
    reason_bytes: AtomicU32,
    reason: [AtomicU8; REASON_BYTES],
}

#[repr(C, align(128))]
struct SegmentSeat {
    arrivals: AtomicU32,
    /// Away from the arrival word, which others poll.
    details: Details,
}

#[repr(C, align(128))]
struct Details {
    pid: AtomicU32,
    notes: [[AtomicU64; 3]; 2],
}

/// Where things are, for a world size and a chunk length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentLayout {
    pub(super) world: usize,
    /// f32 per half; a multiple of 16, so that stripes start on cache lines.
    pub(super) chunk: usize,
    floats_at: usize,
    area_bytes: usize,
    pub(super) bytes: usize,
}

impl SegmentLayout {
    /// None if the numbers overflow.
    pub(super) fn new(world: usize, chunk_f32: usize) -> Option<Self> {
        let chunk = chunk_f32.max(1).checked_next_multiple_of(16)?;
        let seats = world.checked_mul(size_of::<SegmentSeat>())?;
        let floats_at = seats.checked_add(PAGE)?.checked_next_multiple_of(PAGE)?;
        let area_bytes = chunk.checked_mul(8)?.checked_next_multiple_of(PAGE)?;
        let areas = world.checked_add(1)?.checked_mul(area_bytes)?;
        let bytes = floats_at.checked_add(areas)?;
        (bytes <= isize::MAX as usize).then_some(Self {
            world,
            chunk,
            floats_at,
            area_bytes,
            bytes,
        })
    }

    /// Byte offset of an area: 0 is the result, `1 + rank` a rank's slot.
    fn area(&self, index: usize) -> usize {
        self.floats_at + index * self.area_bytes
    }
}

/// What arrivals have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Arrived,
    NotYet,
    Aborted,
}

/// One rank's mapping of the shared memory.
pub(super) struct Segment {
    base: NonNull<u8>,
    layout: SegmentLayout,
}

// SAFETY: the mapping belongs to this value alone until drop, and through `&Segment` only atomics are
// reached; the float areas are behind unsafe functions that state who may use them when.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes the anonymous file behind a segment, zeroed, its size fixed for ever.
    pub(super) fn create(layout: &SegmentLayout) -> io::Result<rustix::fd::OwnedFd> {
        use rustix::fs::MemfdFlags;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("fovea-local", flags)?;
        rustix::fs::ftruncate(&fd, layout.bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(fd)
    }

    /// Maps the segment. Fails if the file has not the layout's size or could shrink.
    pub(super) fn map(fd: BorrowedFd<'_>, layout: SegmentLayout) -> io::Result<Self> {
        let size = rustix::fs::fstat(fd)?.st_size;
        let sealed = rustix::fs::fcntl_get_seals(fd)?;
        if u64::try_from(size).ok() != Some(layout.bytes as u64)
            || !sealed.contains(SealFlags::SHRINK)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "shared memory of {size} bytes where {} belong",
                    layout.bytes
                ),
            ));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours; the
        // file is as long as the mapping and sealed against shrinking.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                layout.bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, layout })
    }

    /// Has the kernel set the pages of the header (rank 0) and of this rank's slot aside, so that a
    /// lack of memory is an error here and not a fatal signal later; on NUMA machines the slot's
    /// pages come from the rank's own node.
    pub(super) fn reserve(&self, fd: BorrowedFd<'_>, rank: usize) -> io::Result<()> {
        let mut parts = vec![(self.layout.area(1 + rank), self.layout.area_bytes)];
        if rank == 0 {
            parts.push((0, self.layout.area(1)));
        }
        for (start, bytes) in parts {
            let flags = FallocateFlags::empty();
            rustix::io::retry_on_intr(|| {
                rustix::fs::fallocate(fd.as_fd(), flags, start as u64, bytes as u64)
            })?;
        }
        Ok(())
    }

    pub(super) fn layout(&self) -> &SegmentLayout {
        &self.layout
    }

    fn header(&self) -> &Header {
        // SAFETY: the header is at the start of the page-aligned mapping and consists of atomics, for
        // which any bytes are valid.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    fn seat(&self, rank: usize) -> &SegmentSeat {
        assert!(rank < self.layout.world, "rank {rank} has no seat");
        // SAFETY: the layout has `world` seats from byte PAGE on, aligned, and a seat is all atomics.
        unsafe { self.base.add(PAGE).cast::<SegmentSeat>().add(rank).as_ref() }
    }

    pub(super) fn set_pid(&self, rank: usize, pid: u32) {
        self.seat(rank).details.pid.store(pid, Ordering::Relaxed);
    }

    /// 0 until that rank has joined.
    pub(super) fn pid(&self, rank: usize) -> u32 {
        self.seat(rank).details.pid.load(Ordering::Relaxed)
    }

    /// Says what `rank` is about to arrive for. Kept apart for even and odd arrivals, so that a rank
    /// that is one ahead does not overwrite what others still read.
    pub(super) fn set_note(&self, rank: usize, arrival: u32, note: [u64; 3]) {
        let cells = &self.seat(rank).details.notes[(arrival & 1) as usize];
        for (cell, value) in cells.iter().zip(note) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// What `rank` said it arrived for; read between wait and next arrival.
    pub(super) fn note(&self, rank: usize, arrival: u32) -> [u64; 3] {
        let cells = &self.seat(rank).details.notes[(arrival & 1) as usize];
        [0, 1, 2].map(|i| cells[i].load(Ordering::Relaxed))
    }

    /// Counts `rank` in; false if the segment was aborted.
    pub(super) fn arrive(&self, rank: usize) -> bool {
        let word = &self.seat(rank).arrivals;
        let before = word.fetch_add(ARRIVAL, Ordering::AcqRel);
        wake_all(word);
        before & ABORTED == 0
    }

    /// Whether `rank` has made its `arrival`-th arrival.
    pub(super) fn seen(&self, rank: usize, arrival: u32) -> Seen {
        let word = self.seat(rank).arrivals.load(Ordering::Acquire);
        judge(word, arrival)
    }

    /// Sleeps until `rank` arrives, an abort, or `timeout`; may return early.
    pub(super) fn sleep(&self, rank: usize, arrival: u32, timeout: Duration) {
        let word = &self.seat(rank).arrivals;
        let value = word.load(Ordering::Acquire);
        if judge(value, arrival) != Seen::NotYet {
            return;
        }
        // A timeout, a signal and a word that has just changed all mean the same: look again.
        let timeout = futex::Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let _ = futex::wait(word, futex::Flags::empty(), value, Some(&timeout));
    }

    /// Ends every rank's waits, now and in future. The first reason is kept.
    pub(super) fn abort(&self, by: usize, reason: &str) {
        let header = self.header();
        let seat = u32::try_from(by).unwrap_or(u32::MAX - 1) + 1;
        if header
            .aborted_by
            .compare_exchange(0, seat, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            let mut end = reason.len().min(REASON_BYTES);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            for (cell, byte) in header.reason.iter().zip(&reason.as_bytes()[..end]) {
                cell.store(*byte, Ordering::Relaxed);
            }
            header.reason_bytes.store(end as u32, Ordering::Release);
        }
        for rank in 0..self.layout.world {
            let word = &self.seat(rank).arrivals;
            word.fetch_or(ABORTED, Ordering::AcqRel);
            wake_all(word);
        }
        // The caller may go on to reuse its slot; nobody must be able to see that before the bits.
        fence(Ordering::SeqCst);
    }

    /// Who aborted and why. The reason is empty if it is being written this moment.
    pub(super) fn aborted_by(&self) -> (Option<usize>, String) {
        let header = self.header();
        let by = header.aborted_by.load(Ordering::Acquire);
        let bytes = header.reason_bytes.load(Ordering::Acquire) as usize;
        let reason: Vec<u8> = header.reason[..bytes.min(REASON_BYTES)]
            .iter()
            .map(|cell| cell.load(Ordering::Relaxed))
            .collect();
        let by = by.checked_sub(1).map(|rank| rank as usize);
        (by, String::from_utf8_lossy(&reason).into_owned())
    }

    /// Half `arrival & 1` of an area, to read.
    ///
    /// # Safety
    /// Nobody writes to that part while the slice lives: see the module's rule on halves.
    unsafe fn read(&self, area: usize, arrival: u32, start: usize, len: usize) -> &[f32] {
        let at = self.float_offset(area, arrival, start, len);
        // SAFETY: `float_offset` checked that the floats lie inside the mapping, 4-aligned; any bits
        // are an f32; the caller vouches for no writer.
        unsafe { std::slice::from_raw_parts(self.base.add(at).as_ptr().cast(), len) }
    }

    /// Half `arrival & 1` of an area, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes that part while the slice lives: see the module's rule on halves.
    #[expect(
        clippy::mut_from_ref,
        reason = "shared memory: the caller vouches for exclusiveness"
    )]
    unsafe fn write(&self, area: usize, arrival: u32, start: usize, len: usize) -> &mut [f32] {
        let at = self.float_offset(area, arrival, start, len);
        // SAFETY: as in `read`; the caller vouches for no other user.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at).as_ptr().cast(), len) }
    }

    fn float_offset(&self, area: usize, arrival: u32, start: usize, len: usize) -> usize {
        let chunk = self.layout.chunk;
        assert!(
            area <= self.layout.world && start <= chunk && len <= chunk - start,
            "floats {start}..{start}+{len} of area {area} are outside a chunk of {chunk}"
        );
        self.layout.area(area) + 4 * ((arrival & 1) as usize * chunk + start)
    }

    /// This rank's floats for `arrival`, to fill before arriving.
    ///
    /// # Safety
    /// The caller is `rank`, and its last completed wait was `arrival - 1` or it made none.
    #[expect(clippy::mut_from_ref, reason = "see `write`")]
    pub(super) unsafe fn slot_mut(&self, rank: usize, arrival: u32, len: usize) -> &mut [f32] {
        // SAFETY: after wait `arrival - 1` nobody reads this half any more, and only its owner writes.
        unsafe { self.write(1 + rank, arrival, 0, len) }
    }

    /// What `rank` gave for `arrival`.
    ///
    /// # Safety
    /// The caller's last completed wait was `arrival`, and it has not arrived again.
    pub(super) unsafe fn slot(
        &self,
        rank: usize,
        arrival: u32,
        start: usize,
        len: usize,
    ) -> &[f32] {
        // SAFETY: its owner writes this half again only after all have arrived at `arrival + 1`.
        unsafe { self.read(1 + rank, arrival, start, len) }
    }

    /// This rank's stripe of the result to be read after `arrival`.
    ///
    /// # Safety
    /// As [`Segment::slot_mut`], and no other rank asks for any of these floats.
    #[expect(clippy::mut_from_ref, reason = "see `write`")]
    pub(super) unsafe fn result_mut(&self, arrival: u32, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: nobody reads this half after wait `arrival - 1`, and stripes do not overlap.
        unsafe { self.write(0, arrival, start, len) }
    }

    /// The result that all ranks' stripes make up.
    ///
    /// # Safety
    /// As [`Segment::slot`].
    pub(super) unsafe fn result(&self, arrival: u32, len: usize) -> &[f32] {
        // SAFETY: as in `slot`.
        unsafe { self.read(0, arrival, 0, len) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference into it outlives `self`.
        // Unmapping what was mapped cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.layout.bytes) };
    }
}

/// A rank is never more than one arrival ahead, so half the number space tells before from after.
fn judge(word: u32, arrival: u32) -> Seen {
    const NUMBERS: u32 = u32::MAX >> 1;
    let ahead = (word >> 1).wrapping_sub(arrival) & NUMBERS;
    if word & ABORTED != 0 {
        Seen::Aborted
    } else if ahead <= NUMBERS / 2 {
        Seen::Arrived
    } else {
        Seen::NotYet
    }
}

fn wake_all(word: &AtomicU32) {
    // Not private: the sleepers are other processes. It cannot fail on a valid word.
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn arrival_numbers_survive_wrap_around() {
        for arrival in [0, 1, 5, (1 << 30) + 3, (u32::MAX >> 1) - 1, u32::MAX >> 1] {
            let word = |number: u32| number.wrapping_mul(ARRIVAL);
            assert_eq!(judge(word(arrival), arrival), Seen::Arrived);
            assert_eq!(judge(word(arrival.wrapping_add(1)), arrival), Seen::Arrived);
            assert_eq!(judge(word(arrival.wrapping_sub(1)), arrival), Seen::NotYet);
            assert_eq!(judge(word(arrival) | ABORTED, arrival), Seen::Aborted);
        }
    }

    #[test]
    fn layout_keeps_areas_apart_and_refuses_overflow() {
        let layout = SegmentLayout::new(3, 100).unwrap();
        assert_eq!(layout.chunk, 112);
        assert!(layout.floats_at >= PAGE + 3 * size_of::<SegmentSeat>());
        assert!(layout.area(1) - layout.area(0) >= 2 * 4 * layout.chunk);
        assert_eq!(layout.area(4), layout.bytes);
        assert_eq!(SegmentLayout::new(3, usize::MAX), None);
        assert_eq!(SegmentLayout::new(usize::MAX, 16), None);
        assert_eq!(SegmentLayout::new(1 << 40, 1 << 30), None);
    }

    #[test]
    fn a_segment_of_another_size_or_unsealed_is_refused() {
        let layout = SegmentLayout::new(2, 64).unwrap();
        let fd = Segment::create(&layout).unwrap();
        assert!(Segment::map(fd.as_fd(), layout).is_ok());
        let other = SegmentLayout::new(3, 64).unwrap();
        assert!(Segment::map(fd.as_fd(), other).is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err(), "it must not shrink");
        let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&open, layout.bytes as u64).unwrap();
        assert!(Segment::map(open.as_fd(), layout).is_err());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let layout = SegmentLayout::new(1, 16).unwrap();
        let fd = Segment::create(&layout).unwrap();
        let segment = Segment::map(fd.as_fd(), layout).unwrap();
        segment.abort(0, &"ä".repeat(200));
        segment.abort(0, "later");
        assert_eq!(
            segment.aborted_by(),
            (Some(0), "ä".repeat(REASON_BYTES / 2))
        );
        assert!(!segment.arrive(0));
    }
}
