//! Damaged files by the thousand: every picture of `tests/pictures`, changed at random.
//!
//! `FOVEA_FUZZ_INPUTS` says how many (`make fuzz`: 100,000), `FOVEA_FUZZ_SEED` which ones.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as promised to this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as promised to this function.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as promised to this function.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be held while the content moves.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as promised to this function.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What decoders may hold beside what the header announces: tables, and buffers of compressed data.
const SLACK: isize = 8 << 20;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = crate::fov::splitmix(self.0);
        (self.0 % below.max(1) as u64) as usize
    }
}

fn damaged(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[dice.roll(corpus.len())].clone();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len());
        // The header is where sizes and types are.
        let at = if dice.roll(2) == 0 {
            at.min(dice.roll(64))
        } else {
            at
        };
        match dice.roll(7) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.roll(8),
            2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5)],
            3 => {
                let value = [0u32, 1, 0xffff, 0x7fff_ffff, u32::MAX, 60_000][dice.roll(6)];
                let value = if dice.roll(2) == 0 {
                    value.to_le_bytes()
                } else {
                    value.to_be_bytes()
                };
                for (place, byte) in bytes.iter_mut().skip(at).zip(value) {
                    *place = byte;
                }
            }
            4 => drop(bytes.drain(at..(at + dice.roll(40)).min(bytes.len()))),
            5 => {
                let part: Vec<u8> = bytes.iter().skip(at).take(dice.roll(40)).copied().collect();
                bytes.splice(at..at, part);
            }
            _ => {
                let other = &corpus[dice.roll(corpus.len())];
                let from = dice.roll(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    if dice.roll(2) == 0 {
        mend_checksums(&mut bytes);
    }
    bytes
}

/// So that damage in a PNG is met by more than the test of its checksums.
fn mend_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while bytes.starts_with(b"\x89PNG") && at + 12 <= bytes.len() {
        let length =
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let Some(content) = bytes.get(at + 4..(at + 8).saturating_add(length)) else {
            return;
        };
        let crc = tests::crc32(content).to_be_bytes();
        at += 8 + length;
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&crc);
        }
        at += 4;
    }
}

/// Decodes as a photograph and as a mask; what is wrong with the result.
fn trial(bytes: &[u8]) -> Result<(), String> {
    let announced = memory(bytes).unwrap_or(0) as isize;
    let mut out = Vec::new();
    PEAK.set(HELD.get());
    let before = HELD.get();
    let photo = rgb(bytes, &mut out);
    let (photo_peak, photo_bytes) = (PEAK.get() - before, out.len());
    drop(std::mem::take(&mut out));
    PEAK.set(HELD.get());
    let as_mask = mask(bytes, &mut out);
    let peak = photo_peak.max(PEAK.get() - before);
    // A WebP's eight partitions state their lengths in 24 bits.
    let partitions = if bytes.starts_with(b"RIFF") {
        8 << 24
    } else {
        0
    };
    let allowed = announced + 3 * bytes.len() as isize + SLACK + partitions;
    if peak > allowed {
        return Err(format!("took {peak} bytes, {announced} were announced"));
    }
    let stored = size(bytes);
    let sizes = [
        photo.map(|p| (p.width, p.height, photo_bytes / 3)),
        as_mask.map(|m| (m.width, m.height, out.len())),
    ];
    for (width, height, pixels) in sizes.into_iter().flatten() {
        let (w, h, _) = stored.clone()?;
        if ![(w, h), (h, w)].contains(&(width, height))
            || pixels != width as usize * height as usize
        {
            return Err(format!(
                "{pixels} pixels, {width} x {height}; the header says {w} x {h}"
            ));
        }
    }
    Ok(())
}

#[test]
fn damaged_files_end_in_a_reason() {
    let number =
        |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let inputs = number("FOVEA_FUZZ_INPUTS", 3000);
    let mut dice = Dice(number("FOVEA_FUZZ_SEED", 1));
    let corpus = tests::corpus();
    // The decoders of others are caught when they panic; this crate's own code must not.
    static CAUGHT: AtomicUsize = AtomicUsize::new(0);
    static OWN: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    let this = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != this {
            return usual(info);
        }
        let file = info.location().map_or("", |place| place.file());
        let own = file.contains("src/decode/");
        if own { &OWN } else { &CAUGHT }.fetch_add(1, Ordering::Relaxed);
        if own {
            eprintln!("{info}");
        }
    }));
    let mut decoded = 0;
    let mut wrong = Vec::new();
    for input in 0..inputs {
        let bytes = damaged(&mut dice, &corpus);
        match trial(&bytes) {
            Ok(()) => decoded += u64::from(rgb(&bytes, &mut Vec::new()).is_ok()),
            Err(why) => {
                let path = std::env::temp_dir().join(format!("fovea-fuzz-{input}"));
                let _ = std::fs::write(&path, &bytes);
                wrong.push(format!("{}: {why}", path.display()));
            }
        }
    }
    drop(std::panic::take_hook());
    println!(
        "{inputs} damaged files: {decoded} could be read all the same, {} made a decoder fail and were caught",
        CAUGHT.load(Ordering::Relaxed)
    );
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(OWN.load(Ordering::Relaxed), 0, "panics in this crate");
    assert!(
        decoded > inputs / 50,
        "{decoded} of {inputs} reach a decoder's end"
    );
}
