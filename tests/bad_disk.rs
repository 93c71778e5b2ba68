//! Checkpoints that are damaged, of another version, or do not fit on the disk.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{FAILED, FINISHED, Run, USAGE, data, flip_byte, fovea, turn};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Without a readable checkpoint a run does not restart over its earlier work.
#[test]
fn a_run_without_a_usable_checkpoint() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=1"]);
    run.start(1).wait().with_code(FINISHED);
    let only = run.path.join("checkpoints/step-00000007");
    flip_byte(&only.join("weights.safetensors"), 1_000_000);
    let before = (
        run.metrics(),
        fs::read(run.path.join("status.json")).unwrap(),
    );
    run.resume(1).wait().with_code(USAGE).explains(&[
        "the only checkpoint cannot be used",
        "is damaged",
        "nothing was changed",
    ]);
    assert!(only.join("COMPLETE").exists());
    assert_eq!(
        (
            run.metrics(),
            fs::read(run.path.join("status.json")).unwrap()
        ),
        before
    );
    fovea(&["eval", run.text(), text(&data().prepared)])
        .with_code(USAGE)
        .explains(&["cannot be used"]);
    // A checkpoint of an older fovea.
    fs::write(
        only.join("COMPLETE"),
        "fovea checkpoint 1\nblake3 0 state.json\n",
    )
    .unwrap();
    run.resume(1)
        .wait()
        .with_code(USAGE)
        .explains(&["made by another version of fovea", "format version 1"]);
}

/// The newest checkpoint is damaged: the run continues from the one before it, reports that, and ends with the same
/// weights.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let _turn = turn();
    let run = Run::new(&["checkpoint.keep_last=2"]);
    run.start(2).wait().with_code(FINISHED);
    let (hash, metrics, steps) = (run.final_hash(), run.metrics(), common::facts(&run.steps()));
    let newest = run
        .path
        .join("checkpoints/step-00000014/optimizer.safetensors");
    flip_byte(&newest, 5_000_000);
    let done = run
        .resume(2)
        .wait()
        .with_code(FINISHED)
        .prints(&["going on after step 7"]);
    let said = ["passing over", text(&newest), "is damaged"];
    assert!(
        said.iter().all(|words| done.stderr.contains(words)),
        "{done}"
    );
    assert_eq!(
        (run.final_hash(), run.metrics(), common::facts(&run.steps())),
        (hash, metrics, steps)
    );
}

/// The disk has room for one checkpoint and not for the next.
#[test]
fn a_full_disk_during_a_checkpoint() {
    let _turn = turn();
    let run = Run::new(&[]);
    let checkpoints = run.path.join("checkpoints");
    fs::create_dir_all(&checkpoints).unwrap();
    let Some(disk) = Disk::mount(&checkpoints) else {
        eprintln!("skipped: no small disk can be mounted here");
        return;
    };
    let done = run.start(2).wait().with_code(FAILED);
    done.explains(&[
        "no space left",
        "checkpoint of step 14",
        "bytes",
        "still valid",
    ]);
    common::assert_nobody_left(&run.path);
    fovea(&["status", run.text()]).with_code(FINISHED).prints(&[
        "NOT SAVED",
        "checkpoint of step 14",
        "no space left",
    ]);

    // The earlier checkpoint is whole, and nothing of the other one is left.
    let names: Vec<String> = fs::read_dir(&checkpoints)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000007"]);
    let out = run.path.join("out.csv");
    fovea(&[
        "predict",
        text(&checkpoints.join("step-00000007")),
        text(&data().prepared),
        "--out",
        text(&out),
    ])
    .with_code(FINISHED);

    // With more room, the run continues from there.
    disk.grow();
    run.resume(2).wait().with_code(FINISHED);
    run.final_hash();
    let status = fovea(&["status", run.text()]).with_code(FINISHED);
    assert!(!status.stdout.contains("NOT SAVED"), "{status}");
}

/// A small file system in memory.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a file system with room for one checkpoint of the hybrid model (275 MB); `None` where that is not
    /// allowed.
    fn mount(at: &Path) -> Option<Self> {
        let options = ["-t", "tmpfs", "-o", "size=400m", "tmpfs", text(at)];
        run_tool("mount", &options).then(|| Self(at.to_owned()))
    }

    fn grow(&self) {
        assert!(run_tool(
            "mount",
            &["-o", "remount,size=1200m", text(&self.0)]
        ));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run_tool("umount", &["-l", text(&self.0)]);
    }
}

fn run_tool(program: &str, words: &[&str]) -> bool {
    std::process::Command::new(program)
        .args(words)
        .output()
        .is_ok_and(|o| o.status.success())
}
