//! Torn writes, flipped bits, full disks, killed writers and concurrent readers.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;
use crate::checkpoint::store::CheckpointStore;

/// The command that runs one ignored test of this test binary as a process of its own. A caller must see the child's
/// work in something else than its exit code: a filter that matches nothing passes.
fn child_command(name: &str) -> Command {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("{module}::{name}"));
    command
}

/// Cuts every file of the newest checkpoint at every length: each time that is noticed, and the one
/// before is found.
#[test]
fn a_torn_write_at_any_byte_is_noticed() {
    let run = run_with(&[1, 2]);
    let newest = directory(run.path(), 2);
    for name in [WEIGHTS, OPTIMIZER, STATE, COMPLETE] {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        for len in (0..whole.len()).rev() {
            file.set_len(len as u64).unwrap();
            let found = newest_complete(run.path()).unwrap().unwrap();
            assert_eq!(found.state.step, 1, "{name} cut to {len} bytes");
            assert_eq!(found.skipped.len(), 1);
            assert_eq!(found.skipped[0].path, newest);
            assert!(load(&newest).is_err(), "{name} cut to {len} bytes");
        }
        fs::remove_file(&path).unwrap();
        let found = newest_complete(run.path()).unwrap().unwrap();
        assert_eq!(found.state.step, 1, "{name} missing");
        let error = found.skipped[0].error.to_string();
        assert!(
            error.contains(&format!("it has no file {name}\n  help: ")),
            "{error}"
        );
        fs::write(&path, &whole).unwrap();
    }
    let found = newest_complete(run.path()).unwrap().unwrap();
    assert!(found.state.step == 2 && found.skipped.is_empty());
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let run = run_with(&[1, 2]);
    let newest = directory(run.path(), 2);
    for name in [WEIGHTS, OPTIMIZER, STATE, COMPLETE] {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        for at in 0..whole.len() {
            let flipped = whole[at] ^ (1 << (at % 8));
            file.write_all_at(&[flipped], at as u64).unwrap();
            match newest_complete(run.path()) {
                Ok(found) => assert_eq!(found.unwrap().state.step, 1, "{name} at {at}"),
                // One flip turns version 1 into 3, 5, 9; then that is what it looks like.
                Err(Error::Version { .. }) if name == COMPLETE => {}
                Err(error) => panic!("{name} at {at}: {error}"),
            }
            if name != COMPLETE {
                let error = load(&newest).unwrap_err();
                let Error::Damaged { path: named, .. } = &error else {
                    panic!("{name} at {at}: {error}");
                };
                assert_eq!(*named, path, "{error}");
            }
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
    }
}

#[test]
fn leftovers_of_a_killed_writer_go_at_the_next_start() {
    let run = run_with(&[1]);
    let left = run.path().join(".tmp-step-00000002-4242");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(WEIGHTS), b"half").unwrap();
    assert_eq!(newest_step(run.path()), 1);
    let _writer = Writer::spawn(run.path(), KEEP).unwrap();
    assert_eq!(names(run.path()), [dir_name(1)]);
}

#[test]
#[ignore = "the process that `a_writer_killed_at_any_moment_leaves_whole_checkpoints` kills"]
fn child_saves_for_ever() {
    let dir = std::env::var("FOVEA_TEST_DIR").expect("run by another test of this file only");
    let mut writer = Writer::spawn(Path::new(&dir), KEEP).unwrap();
    let first = newest_complete(Path::new(&dir)).unwrap();
    for step in first.map_or(1, |found| found.state.step + 1).. {
        writer.save(snapshot(step), |saved| drop(saved.unwrap()));
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_checkpoints() {
    let run = TempDir::new().unwrap();
    let mut last = 0;
    for round in 0..8 {
        let mut child = child_command("child_saves_for_ever")
            .env("FOVEA_TEST_DIR", run.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Once it has saved something, at a moment that differs from round to round.
        loop {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the child has ended by itself"
            );
            if newest_complete(run.path())
                .unwrap()
                .is_some_and(|f| f.state.step > last)
            {
                break;
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = newest_complete(run.path()).unwrap().unwrap();
        assert!(
            found.skipped.is_empty() && found.state.step > last,
            "{found:?}"
        );
        assert_eq!(
            load(&found.path).unwrap().weights,
            by_name(snapshot(found.state.step).weights)
        );
        last = found.state.step;
    }
}

/// The disk fills up at every possible point of a write.
#[test]
fn a_disk_that_fills_up_at_any_point_costs_only_that_checkpoint() {
    let run = run_with(&[1]);
    let store = CheckpointStore::open(run.path()).unwrap();
    let whole: u64 = {
        let written = store.write(&snapshot(2)).unwrap();
        store.remove(2).unwrap();
        written.bytes
    };
    for room in (0..whole).step_by(61) {
        store.room.set(Some(room));
        let error = store.write(&snapshot(2)).unwrap_err();
        assert!(error.is_no_space(), "room for {room} of {whole}: {error}");
        assert_eq!(names(run.path()), [dir_name(1)], "room for {room}");
    }
    store.room.set(Some(whole));
    store.write(&snapshot(2)).unwrap();
    store.room.set(Some(0));
    // An older checkpoint of the very step stays when its replacement fails.
    store.write(&snapshot(2)).unwrap_err();
    assert_eq!(newest_step(run.path()), 2);
}

/// A small file system of its own, unmounted at the end.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// None where mounting is not allowed.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .output();
        mount
            .is_ok_and(|out| out.status.success())
            .then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A full disk through the writer: a real one where mounting is allowed, else an injected one.
#[test]
fn a_full_disk_is_reported_and_training_can_go_on() {
    let big = |step: u64, floats: usize| {
        let mut snapshot = snapshot(step);
        snapshot.optimizer = vec![tensor("exp_avg", &[floats], vec![0.5; floats])];
        snapshot
    };
    let tmpfs = Tmpfs::mount(1 << 20);
    let plain = TempDir::new().unwrap();
    let run = tmpfs.as_ref().map_or(plain.path(), |t| t.0.path());
    let store = CheckpointStore::open(run).unwrap();
    if tmpfs.is_none() {
        store.room.set(Some(1 << 20));
    }
    let mut writer = Writer::start(run, store, KEEP).unwrap();
    save(&mut writer, big(1, 50_000)).unwrap();
    let error = save(&mut writer, big(2, 250_000)).unwrap_err();
    let Error::NoSpace { needed_bytes, .. } = error else {
        panic!("{error}");
    };
    assert!(needed_bytes > 1_000_000);
    let text = error.to_string();
    assert!(
        text.contains("the file system has ") && text.contains("\n  help: "),
        "{text}"
    );
    assert_eq!(names(run), [dir_name(1)]);
    assert_eq!(newest_step(run), 1);
    if tmpfs.is_some() {
        // The same writer goes on as soon as there is room.
        save(&mut writer, big(3, 50_000)).unwrap();
        assert_eq!(newest_step(run), 3);
    }
}

/// A reader that looks all the time while checkpoints come and go never sees half of one.
#[test]
fn a_concurrent_reader_never_sees_half_a_checkpoint() {
    let run = run_with(&[1]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut looks) = (0, 0);
            while !done.load(Ordering::Relaxed) || looks == 0 {
                let found = newest_complete(run.path()).unwrap().unwrap();
                let ResumePoint {
                    state,
                    skipped,
                    path,
                    ..
                } = found;
                assert!(skipped.is_empty(), "{skipped:?}");
                let step = state.step;
                assert!(step >= last, "step {step} after {last}");
                last = step;
                for entry in list(run.path()).unwrap() {
                    assert!(entry.state.is_ok(), "{entry:?}");
                }
                match load(&path) {
                    Ok(loaded) => assert_eq!(loaded.weights, by_name(snapshot(step).weights)),
                    Err(error) => assert!(!path.exists(), "{error}"),
                }
                looks += 1;
            }
        });
        let mut writer = Writer::spawn(
            run.path(),
            Retention {
                keep_last: 1,
                ..KEEP
            },
        )
        .unwrap();
        for step in 2..80 {
            // Every third one is written twice, which swaps directories.
            for _ in 0..1 + usize::from(step % 3 == 0) {
                save(&mut writer, snapshot(step)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}
