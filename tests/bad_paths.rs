//! Paths that are no runs, datasets or photographs, and places that cannot be written.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{FAILED, FINISHED, Run, USAGE, copy, data, fovea, scratch, turn};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first photograph of the raw dataset.
fn photo() -> PathBuf {
    let folder = data().raw.join("Seg-set/Original_Images");
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.min().unwrap()
}

/// The reader of standard output has left, or the disk under it is full.
#[test]
fn output_that_cannot_be_written() {
    let words = [
        vec!["data", text(&data().prepared)],
        vec!["train", "--preset", "demo", "--print-config"],
    ];
    for words in words {
        let start = |stdout: std::process::Stdio| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fovea"));
            command.args(&words).stdout(stdout);
            command.output().unwrap()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = start(writer.into());
        assert_eq!(done.status.code(), Some(FINISHED), "{words:?} {done:?}");
        assert!(done.stderr.is_empty(), "{words:?} {done:?}");

        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let done = start(full.into());
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(FAILED), "{words:?} {said}");
        assert!(
            said.contains("cannot write to standard output: No space left on device")
                && said.contains("\n  help: "),
            "{words:?} {said}"
        );
    }
}

/// Paths that are no runs, datasets or places to write to.
#[test]
fn paths_of_other_things() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let nowhere = at("nowhere");
    for command in ["status", "report"] {
        fovea(&[command, text(&nowhere)])
            .with_code(USAGE)
            .explains(&[text(&nowhere), "no such directory"]);
        fovea(&[command, text(directory.path())])
            .with_code(USAGE)
            .explains(&["no config.toml"]);
    }
    fovea(&["synth", text(&nowhere), "--images", "0"])
        .with_code(USAGE)
        .explains(&["images"]);
    let file = at("file");
    fs::write(&file, "x").unwrap();
    fovea(&["prepare", text(&data().raw), text(&file)])
        .with_code(USAGE)
        .explains(&[text(&file), "a file where a directory is needed"]);
    let folder = at("folder");
    fs::create_dir(&folder).unwrap();
    fovea(&["data", text(&data().prepared), "--mosaic", text(&folder)])
        .with_code(USAGE)
        .explains(&[text(&folder), "name a file in it"]);
    assert!(!at("folder.tmp").exists());
    for (option, value) in [("--size", "100"), ("--patch", "0"), ("--layout", "odd")] {
        fovea(&[
            "prepare",
            text(&data().raw),
            text(&at("out")),
            option,
            value,
        ])
        .with_code(USAGE)
        .explains(&[option]);
    }
    // A folder in use for something else must not become a run.
    let prepared = at("prepared");
    copy(&data().prepared, &prepared);
    let words = [
        "train",
        "--preset",
        "demo",
        "--data",
        text(&prepared),
        "--out",
        text(&prepared),
    ];
    fovea(&words)
        .with_code(USAGE)
        .explains(&["is not empty and holds no run"]);
    assert!(!prepared.join("config.toml").exists() && !prepared.join("lock").exists());
    // These are photographs without masks.
    let images = at("own/images");
    fs::create_dir_all(&images).unwrap();
    let photo = photo();
    fs::copy(photo, images.join("a.png")).unwrap();
    fovea(&["prepare", text(&at("own")), text(&at("out"))])
        .with_code(USAGE)
        .explains(&["masks/ is missing", "fovea predict", "--mosaic"]);
}

/// Some of the photographs cannot be scored.
#[test]
fn photographs_that_are_no_use() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=1"]);
    run.start(1).wait().with_code(FINISHED);
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let photos = at("photos");
    fs::create_dir(&photos).unwrap();
    let photo = photo();
    fs::copy(&photo, photos.join("a.png")).unwrap();
    fs::write(photos.join("b.png"), b"no picture").unwrap();
    fs::copy(&photo, photos.join("c.png")).unwrap();
    let predict = |out: &Path| fovea(&["predict", run.text(), text(&photos), "--out", text(out)]);
    let bad = [
        "1 of the 3 photographs cannot be used",
        "b.png: is no picture that is read",
    ];
    let out = at("out.csv");
    predict(&out).with_code(FAILED).explains(&bad);
    let rows = fs::read_to_string(&out).unwrap();
    let of = |id: &str| rows.lines().filter(|l| l.starts_with(id)).count();
    // The grid of the training data has 3 x 3 cells.
    assert!(
        (2..=10).contains(&of("a,")) && of("a,") == of("c,"),
        "{rows}"
    );
    assert!(of("b,") == 0 && !rows.contains(",3,"), "{rows}");
    let mosaic = at("look.png");
    fovea(&["data", text(&photos), "--mosaic", text(&mosaic)])
        .with_code(FAILED)
        .explains(&bad)
        .prints(&["look.png"]);
    assert!(mosaic.is_file());

    fs::remove_file(photos.join("b.png")).unwrap();
    fs::copy(&photo, photos.join("a.JPEG")).unwrap();
    predict(&at("twice.csv")).with_code(USAGE).explains(&[
        "a.JPEG",
        "a.png",
        "same name but for the extension",
    ]);
    fs::remove_file(photos.join("a.JPEG")).unwrap();
    let missing = at("missing");
    predict(&missing.join("out.csv"))
        .with_code(USAGE)
        .explains(&[text(&missing), "no such directory"]);

    // The directory of checkpoints stands for the best one; a dataset with another grid causes a warning.
    let other = at("other");
    let words = [
        "prepare",
        text(&data().raw),
        text(&other),
        "--size",
        "256",
        "--patch",
        "64",
    ];
    fovea(&words).with_code(FINISHED);
    let checkpoints = run.path.join("checkpoints");
    let done = fovea(&["eval", text(&checkpoints), text(&other)]).with_code(FINISHED);
    for words in [
        "images of 256 pixels",
        "trained on 192 pixels with patches of 64",
    ] {
        assert!(done.stderr.contains(words), "{done}");
    }
    let weights = checkpoints.join("step-00000007/weights.safetensors");
    let done = fovea(&["eval", text(&weights), text(&data().prepared)]);
    assert!(done.stderr.contains("preset hybrid"), "{done}");
}
