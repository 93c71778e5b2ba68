//! Killed, damaged, full, and two at once.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fovea_dataset::stage::{StageOptions, StageOutcome, stage};
use fovea_dataset::{ProgressListener, Silent};
use rustix::process::{Signal, getpid, kill_process};

use super::{OPTIONS, Place, SHARDS, overwrite, rustix_is_root, shard};

/// Kills its process, as `kill -9` does, after some bytes.
struct Bomb {
    after: u64,
    done: AtomicU64,
}

impl ProgressListener for Bomb {
    fn start(&self, _total: u64) {}

    fn advance(&self, n: u64) {
        if self.done.fetch_add(n, Ordering::SeqCst) + n >= self.after {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn finish(&self) {}
}

/// Not a test by itself: the process that other tests kill. It is given its work by the environment.
#[test]
#[ignore = "run by other tests in a process of its own"]
fn stage_and_be_killed() {
    let Ok(job) = std::env::var("FOVEA_TEST_STAGE") else {
        return;
    };
    let parts: Vec<&str> = job.split('\n').collect();
    let bomb = Bomb {
        after: parts[2].parse().unwrap(),
        done: AtomicU64::new(0),
    };
    stage(Path::new(parts[0]), Path::new(parts[1]), &OPTIONS, &bomb).unwrap();
}

fn child(place: &Place, after: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "faults::stage_and_be_killed", "--ignored"])
        .env(
            "FOVEA_TEST_STAGE",
            format!(
                "{}\n{}\n{after}",
                place.data.display(),
                place.scratch.display()
            ),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn a_killed_copy_goes_on() {
    use std::os::unix::process::ExitStatusExt;

    let place = Place::new();
    let bytes = fs::metadata(shard(&place.data, 0)).unwrap().len();
    // More than the three shards in work are written before the kill, so that some are finished.
    let status = child(&place, 5 * bytes).status().unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(
        !place.copy().join("manifest.json").exists(),
        "the manifest comes last"
    );
    let Ok(StageOutcome::Staged { copied, kept, .. }) = place.stage() else {
        panic!("no copy");
    };
    assert!(kept >= 2 && copied >= 3, "{kept} kept, {copied} copied");
    place.assert_whole();
}

#[test]
fn killed_at_any_moment_ends_whole() {
    let place = Place::new();
    for round in 0..12u64 {
        let mut process = child(&place, u64::MAX).spawn().unwrap();
        // The time is the fault that is injected, not a wait for something to be ready.
        std::thread::sleep(Duration::from_millis(2 + 3 * round));
        process.kill().unwrap();
        process.wait().unwrap();
        place.stage().unwrap();
        place.assert_whole();
        fs::remove_dir_all(&place.scratch).unwrap();
    }
}

#[test]
fn a_flipped_byte_in_the_copy_is_copied_again() {
    let place = Place::new();
    place.stage().unwrap();
    let path = shard(&place.copy(), 3);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    overwrite(&path, |bytes| bytes[10_000] ^= 1);
    // A disk that rots changes no times.
    fs::File::open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(place.stage().unwrap(), place.staged(1));
    place.assert_whole();
    overwrite(&shard(&place.copy(), 4), |bytes| bytes.truncate(10_000));
    assert_eq!(place.stage().unwrap(), place.staged(1));
    place.assert_whole();
}

#[test]
fn a_damaged_original_is_said_and_never_named_a_copy() {
    let place = Place::new();
    overwrite(&shard(&place.data, 3), |bytes| bytes[10_000] ^= 1);
    let text = place.stage().unwrap_err().to_string();
    let path = shard(&place.data, 3);
    assert!(
        text.contains(&format!(
            "shard {} is damaged: its blake3 is",
            path.display()
        )),
        "{text}"
    );
    assert!(text.contains("\n  help: "), "{text}");
    let left = fs::read_dir(place.copy()).unwrap().flatten();
    let left: Vec<String> = left
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        !left.iter().any(|name| name.ends_with(".part")
            || name.contains("00003")
            || name == "manifest.json"),
        "{left:?}"
    );
    fs::remove_file(&path).unwrap();
    let text = place.stage().unwrap_err().to_string();
    assert!(
        text.contains(&format!("cannot open {}", path.display())),
        "{text}"
    );
}

#[test]
fn without_room_nothing_is_begun() {
    let place = Place::new();
    let options = StageOptions {
        margin_bytes: 1 << 60,
        ..OPTIONS
    };
    let outcome = stage(&place.data, &place.scratch, &options, &Silent).unwrap();
    let StageOutcome::Skipped { needed, free } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(needed > 1 << 60 && free < 1 << 60, "{needed} {free}");
    assert!(!place.copy().exists());
    // What is whole needs no more room.
    place.stage().unwrap();
    assert_eq!(
        stage(&place.data, &place.scratch, &options, &Silent).unwrap(),
        place.staged(0)
    );
    fs::remove_file(shard(&place.copy(), 1)).unwrap();
    let outcome = stage(&place.data, &place.scratch, &options, &Silent).unwrap();
    assert!(
        matches!(outcome, StageOutcome::Skipped { .. }),
        "{outcome:?}"
    );
    assert!(shard(&place.copy(), 0).exists(), "what was whole stays");
}

/// A file system of its own, as small as it takes; root only.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(dir: &'a Path, kib: u64) -> Option<Self> {
        fs::create_dir_all(dir).unwrap();
        let size = format!("size={kib}k");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir)
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// Fills the disk as soon as the copy has begun.
struct Glutton<'a>(&'a Path);

impl ProgressListener for Glutton<'_> {
    fn start(&self, _total: u64) {
        let mut file = fs::File::create(self.0.join("glutton")).unwrap();
        let _ = std::io::copy(&mut std::io::repeat(1).take(64 << 20), &mut file);
    }

    fn advance(&self, _n: u64) {}

    fn finish(&self) {}
}

#[test]
fn a_disk_that_somebody_fills_meanwhile_is_left_as_it_was() {
    let place = Place::new();
    let Some(_small) = Small::mount(&place.scratch, 2048) else {
        assert!(
            !rustix_is_root() || std::env::var_os("FOVEA_TEST_NO_MOUNT").is_some(),
            "root cannot mount: set FOVEA_TEST_NO_MOUNT=1 in containers that forbid it"
        );
        return;
    };
    // There is room, until the copy begins.
    let outcome = stage(
        &place.data,
        &place.scratch,
        &OPTIONS,
        &Glutton(&place.scratch),
    )
    .unwrap();
    let StageOutcome::Skipped { needed, free } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(needed > 100_000 && free < 2 << 20, "{needed} {free}");
    let left: Vec<_> = fs::read_dir(&place.scratch)
        .unwrap()
        .flatten()
        .map(|f| f.file_name())
        .collect();
    assert_eq!(left, ["glutton"]);
    // Still full.
    let outcome = place.stage().unwrap();
    assert!(
        matches!(outcome, StageOutcome::Skipped { .. }),
        "{outcome:?}"
    );
    assert!(!place.copy().exists());
}

/// A disk that does not keep what is written: exchanges a byte of what was copied, so many times.
struct Vandal {
    part: PathBuf,
    times: AtomicU64,
}

impl ProgressListener for Vandal {
    fn start(&self, _total: u64) {}

    fn advance(&self, _n: u64) {
        let left = self.times.load(Ordering::SeqCst);
        if left > 0
            && let Ok(file) = fs::File::options().write(true).open(&self.part)
        {
            self.times.store(left - 1, Ordering::SeqCst);
            file.write_all_at(b"!", 5_000).unwrap();
        }
    }

    fn finish(&self) {}
}

#[test]
fn what_does_not_reach_the_disk_is_copied_again_once() {
    let place = Place::new();
    let one_by_one = StageOptions {
        threads: 1,
        ..OPTIONS
    };
    let vandal = |times| {
        fs::create_dir_all(place.scratch.as_path()).unwrap();
        let vandal = Vandal {
            part: place.copy().join("shard-00002.safetensors.part"),
            times: AtomicU64::new(times),
        };
        stage(&place.data, &place.scratch, &one_by_one, &vandal)
    };
    let text = vandal(u64::MAX).unwrap_err().to_string();
    assert!(
        text.contains("shard-00002.safetensors came out damaged 2 times")
            && text.contains("\n  help: "),
        "{text}"
    );
    assert!(!place.copy().join("manifest.json").exists());
    assert!(!shard(&place.copy(), 2).exists());
    assert_eq!(vandal(1).unwrap(), place.staged(SHARDS - 2));
    place.assert_whole();
}

#[test]
fn two_at_once_copy_once() {
    let place = Place::new();
    let outcomes: Vec<StageOutcome> = std::thread::scope(|scope| {
        let both: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| place.stage().unwrap()))
            .collect();
        both.into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let first = outcomes
        .iter()
        .filter(|o| **o == place.staged(SHARDS))
        .count();
    let after = outcomes.iter().filter(|o| **o == place.staged(0)).count();
    assert_eq!((first, after), (1, 3), "{outcomes:?}");
    place.assert_whole();
    // Processes, of which the first is killed while the second waits.
    fs::remove_dir_all(&place.scratch).unwrap();
    let mut first = child(&place, 2).spawn().unwrap();
    place.stage().unwrap();
    first.wait().unwrap();
    place.stage().unwrap();
    place.assert_whole();
}
