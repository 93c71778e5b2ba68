//! Interrupted, repeated, and competing runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fovea_dataset::{PrepareOptions, ProgressListener, Silent, prepare};
use rustix::process::{Signal, getpid, kill_process};

use crate::raw::{dir, failure, fgadr, options, run, tree, write};

/// Kills itself, as `kill -9` does, after some images.
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

/// Not a test by itself: the process that the next test kills. It is given its work by the environment.
#[test]
#[ignore = "run by killed_runs_end_with_the_same_bytes in a process of its own"]
fn prepare_and_be_killed() {
    let Ok(job) = std::env::var("FOVEA_TEST_PREPARE") else {
        return;
    };
    let parts: Vec<&str> = job.split('\n').collect();
    let bomb = Bomb {
        after: parts[2].parse().unwrap(),
        done: AtomicU64::new(0),
    };
    prepare(Path::new(parts[0]), Path::new(parts[1]), &options(), &bomb).unwrap();
}

fn child(src: &Path, out: &Path, after: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "restart::prepare_and_be_killed", "--ignored"])
        .env(
            "FOVEA_TEST_PREPARE",
            format!("{}\n{}\n{after}", src.display(), out.display()),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn killed_runs_end_with_the_same_bytes() {
    use std::os::unix::process::ExitStatusExt;

    let dir = dir();
    let src = fgadr(dir.path(), 30);
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();
    let out = dir.path().join("out");
    // The count of images done goes up with every shard that was kept, so the runs get further and further.
    for after in [1, 4, 5, 9, 14, 18, 19, 23, 30] {
        let status = child(&src, &out, after).status().unwrap();
        assert_eq!(status.signal(), Some(9), "killed after {after}");
        assert!(!out.join("manifest.json").exists());
    }
    assert!(
        tree(&out)
            .iter()
            .filter(|(name, _)| name.starts_with("shard-"))
            .count()
            >= 2,
        "something was kept"
    );
    run(&src, &out).unwrap();
    assert_eq!(tree(&out), tree(&clean));
}

#[test]
fn killed_at_any_moment_ends_with_the_same_bytes() {
    let dir = dir();
    let src = fgadr(dir.path(), 30);
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();
    // Kills that fall anywhere, also between the rename of a shard and its record, or about the manifest.
    for round in 0..12u64 {
        let out = dir.path().join(format!("out-{round}"));
        let mut process = child(&src, &out, u64::MAX).spawn().unwrap();
        // The time is the fault that is injected, not a wait for something to be ready.
        std::thread::sleep(Duration::from_millis(4 + 5 * round));
        process.kill().unwrap();
        process.wait().unwrap();
        run(&src, &out).unwrap();
        assert_eq!(tree(&out), tree(&clean), "round {round}");
    }
}

#[test]
fn states_between_two_writes_are_taken_over() {
    let dir = dir();
    let src = fgadr(dir.path(), 10);
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();
    // A shard renamed, its record not written; a part half written; a manifest written aside only.
    let out = dir.path().join("out");
    fs::create_dir_all(out.join(".prepare")).unwrap();
    fs::write(out.join(".prepare/recipe.json"), recipe(&clean)).unwrap();
    fs::copy(
        clean.join("shard-00000.safetensors"),
        out.join("shard-00000.safetensors"),
    )
    .unwrap();
    fs::write(out.join(".prepare/shard-00001.part"), [7; 100_000]).unwrap();
    fs::write(out.join(".prepare/shard-00001.json.tmp"), b"{\"fi").unwrap();
    fs::write(out.join("manifest.json.tmp"), b"{").unwrap();
    run(&src, &out).unwrap();
    // The manifest written, the working directory not cleared.
    assert_eq!(tree(&out), tree(&clean));
    fs::create_dir_all(out.join(".prepare")).unwrap();
    fs::write(out.join(".prepare/recipe.json"), recipe(&clean)).unwrap();
    run(&src, &out).unwrap();
    assert_eq!(tree(&out), tree(&clean));
}

/// The options part of a manifest, as an unfinished run keeps it.
fn recipe(dir: &Path) -> Vec<u8> {
    let manifest = fovea_dataset::Manifest::load(dir).unwrap();
    serde_json::to_vec(&manifest.recipe).unwrap()
}

/// Counts what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<(char, u64)>>);

impl ProgressListener for Heard {
    fn start(&self, total: u64) {
        self.0.lock().unwrap().push(('s', total));
    }

    fn advance(&self, n: u64) {
        self.0.lock().unwrap().push(('a', n));
    }

    fn finish(&self) {
        self.0.lock().unwrap().push(('f', 0));
    }
}

#[test]
fn a_complete_dataset_is_recognised_and_left_alone() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let out = dir.path().join("out");
    let first = Heard::default();
    let manifest = prepare(&src, &out, &options(), &first).unwrap();
    let heard = first.0.into_inner().unwrap();
    assert_eq!(heard[0], ('s', 9));
    assert_eq!(
        heard
            .iter()
            .filter(|(kind, _)| *kind == 'a')
            .map(|(_, n)| n)
            .sum::<u64>(),
        9
    );
    assert_eq!(heard.last(), Some(&('f', 0)));

    let modified = |name: &str| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let before = (
        modified("manifest.json"),
        modified("shard-00000.safetensors"),
    );
    let again = Heard::default();
    assert_eq!(prepare(&src, &out, &options(), &again).unwrap(), manifest);
    assert_eq!(
        again.0.into_inner().unwrap()[..2],
        [('s', 9), ('a', 9)],
        "all are done at once"
    );
    assert_eq!(
        before,
        (
            modified("manifest.json"),
            modified("shard-00000.safetensors")
        )
    );
    assert!(!out.join(".prepare").exists());
}

#[test]
fn other_options_and_other_images_are_refused() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let out = dir.path().join("out");
    run(&src, &out).unwrap();
    let before = tree(&out);
    let other = PrepareOptions {
        size: 128,
        min_lesion_pixels: 3,
        seed: 8,
        ..options()
    };
    let text = failure(&src, &out, &other);
    let expected = "already holds a prepared dataset made otherwise: size 64 there, 128 asked for, \
                    min-lesion-pixels 1 there, 3 asked for, seed 0 there, 8 asked for\n  help: ";
    assert!(text.contains(expected), "{text}");
    let more = dir.path().join("more");
    let text = failure(&fgadr(&more, 11), &out, &options());
    assert!(
        text.contains("other raw images (9 there, 11 here; names, lengths or grades differ)"),
        "{text}"
    );
    assert_eq!(tree(&out), before);

    let unfinished = dir.path().join("unfinished");
    fs::create_dir_all(unfinished.join(".prepare")).unwrap();
    fs::write(unfinished.join(".prepare/recipe.json"), recipe(&out)).unwrap();
    let text = failure(
        &src,
        &unfinished,
        &PrepareOptions {
            seed: 1,
            ..options()
        },
    );
    assert!(
        text.contains(
            "already holds an unfinished dataset made otherwise: seed 0 there, 1 asked for"
        ),
        "{text}"
    );

    let occupied = dir.path().join("occupied");
    write(&occupied.join("thesis.tex"), b"years of work");
    let text = failure(&src, &occupied, &options());
    assert!(
        text.contains("occupied is not empty and holds no prepared dataset (found thesis.tex)"),
        "{text}"
    );
    assert_eq!(tree(&occupied).len(), 1);
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = dir();
    let src = fgadr(dir.path(), 13);
    let one = dir.path().join("one");
    prepare(
        &src,
        &one,
        &PrepareOptions {
            workers: 1,
            ..options()
        },
        &Silent,
    )
    .unwrap();
    let many = dir.path().join("many");
    prepare(
        &src,
        &many,
        &PrepareOptions {
            workers: 7,
            ..options()
        },
        &Silent,
    )
    .unwrap();
    assert_eq!(tree(&one), tree(&many));
}
