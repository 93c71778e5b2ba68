//! Every mistake that a user can make: the tests check the message and the exit code.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Done, FINISHED, Process, Run, USAGE, copy, data, flip_byte, fovea, scratch, turn};
use image::{GrayImage, Luma};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `fovea train` of the demo on `data` into `out`, with further words.
fn train(data: &Path, out: &Path, more: &[&str]) -> Done {
    let words = [
        "train",
        "--preset",
        "demo",
        "--set",
        "train.virtual_shards=4",
        "--data",
        text(data),
        "--out",
        text(out),
    ];
    fovea(&[&words[..], more].concat())
}

/// A copy of the raw dataset, for a test to damage.
fn raw_copy() -> (TempDir, PathBuf) {
    let directory = scratch();
    let raw = directory.path().join("raw");
    copy(&data().raw, &raw);
    (directory, raw)
}

/// A copy of the prepared dataset, for a test to damage.
fn prepared_copy() -> (TempDir, PathBuf) {
    let directory = scratch();
    let prepared = directory.path().join("prepared");
    copy(&data().prepared, &prepared);
    (directory, prepared)
}

fn first_file(directory: &Path, extension: &str) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    entries
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .min()
        .unwrap()
}

fn prepare(raw: &Path) -> Done {
    let out = scratch();
    let words = [
        "prepare",
        text(raw),
        text(out.path()),
        "--size",
        "192",
        "--patch",
        "64",
    ];
    fovea(&words)
}

#[test]
fn a_missing_dataset() {
    let directory = scratch();
    let (missing, run) = (
        directory.path().join("nowhere"),
        directory.path().join("run"),
    );
    train(&missing, &run, &[])
        .with_code(USAGE)
        .explains(&[text(&missing), "does not exist"]);
    assert!(
        !run.exists(),
        "a run that cannot begin leaves nothing behind"
    );
    prepare(&missing)
        .with_code(USAGE)
        .explains(&[text(&missing), "does not exist"]);
    fovea(&["data", text(&missing)])
        .with_code(USAGE)
        .explains(&[text(&missing)]);
    fovea(&[
        "predict",
        text(&missing),
        text(&data().prepared),
        "--out",
        "x.csv",
    ])
    .with_code(USAGE)
    .explains(&[text(&missing), "no such file or directory"]);
}

#[test]
fn an_empty_dataset() {
    let directory = scratch();
    let (empty, run) = (directory.path().join("empty"), directory.path().join("run"));
    fs::create_dir(&empty).unwrap();
    train(&empty, &run, &[])
        .with_code(USAGE)
        .explains(&[text(&empty)]);
    assert!(!run.exists());
    prepare(&empty).with_code(USAGE).explains(&[text(&empty)]);
}

#[test]
fn a_truncated_image() {
    let (_directory, raw) = raw_copy();
    let image = first_file(&raw.join("Seg-set/Original_Images"), "png");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let name = image.file_name().unwrap().to_str().unwrap();
    prepare(&raw)
        .with_code(USAGE)
        .explains(&[name, "1 of the 10 images"]);
}

#[test]
fn a_mask_of_another_size() {
    let (_directory, raw) = raw_copy();
    let mask = first_file(&raw.join("Seg-set/HardExudate_Masks"), "png");
    GrayImage::from_pixel(100, 80, Luma([0]))
        .save(&mask)
        .unwrap();
    let name = mask.file_name().unwrap().to_str().unwrap();
    prepare(&raw)
        .with_code(USAGE)
        .explains(&[name, "HardExudate_Masks", "100", "80", "256"]);
}

#[test]
fn a_shard_with_a_flipped_byte() {
    let (directory, prepared) = prepared_copy();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(prepared.join("manifest.json")).unwrap()).unwrap();
    let name = manifest["shards"][0]["file"].as_str().unwrap().to_owned();
    let shard = prepared.join(&name);
    flip_byte(&shard, fs::metadata(&shard).unwrap().len() - 100);
    let run = directory.path().join("run");
    train(&prepared, &run, &[])
        .with_code(USAGE)
        .explains(&[&name, "is damaged", "blake3"]);
    assert!(!run.exists());
    fovea(&["data", text(&prepared)])
        .with_code(USAGE)
        .explains(&[&name, "is damaged"]);
}

#[test]
fn a_manifest_of_a_newer_version() {
    let (directory, prepared) = prepared_copy();
    let path = prepared.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(manifest["format_version"], 1);
    manifest["format_version"] = 99.into();
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    train(&prepared, &directory.path().join("run"), &[])
        .with_code(USAGE)
        .explains(&["format version 99", "versions 1 to 3", "newer fovea"]);
}

#[test]
fn mistakes_in_the_configuration() {
    let directory = scratch();
    let path = directory.path().join("typo.toml");
    fs::write(
        &path,
        "[train]\nepochs = 1\n\n[optimizer]\nwieght_decay = 0.1\n",
    )
    .unwrap();
    fovea(&["train", text(&path)]).with_code(USAGE).explains(&[
        "typo.toml:5",
        "optimizer.wieght_decay",
        "did you mean `optimizer.weight_decay`",
    ]);
    fs::write(&path, "[train]\nepochs = \"many\"\n").unwrap();
    fovea(&["train", text(&path)])
        .with_code(USAGE)
        .explains(&["typo.toml:2", "train.epochs"]);
    fs::write(&path, "[train\nepochs = 1\n").unwrap();
    fovea(&["train", text(&path)])
        .with_code(USAGE)
        .explains(&["typo.toml:1", "TOML"]);

    let run = directory.path().join("run");
    let set = |what: &str| train(&data().prepared, &run, &["--set", what]).with_code(USAGE);
    set("optimiser.lr=1").explains(&["optimiser", "did you mean `[optimizer]`"]);
    set("optimizer.lr").explains(&["optimizer.lr", "section.key=value"]);
    set("optimizer.lr=-1").explains(&["optimizer.lr", "-1", "out of range"]);
    set("train.precision=f16").explains(&["train.precision", "f16", "bf16"]);
    let missing = directory.path().join("missing.toml");
    fovea(&["train", text(&missing)])
        .with_code(USAGE)
        .explains(&[text(&missing)]);
    fovea(&["train"])
        .with_code(USAGE)
        .explains(&["no configuration", "--preset"]);
    fovea(&["train", "--preset", "demo"])
        .with_code(USAGE)
        .explains(&[
            "no run directory and no prepared dataset",
            "--out",
            "--data",
        ]);
    fovea(&["train", "--resume"])
        .with_code(USAGE)
        .explains(&["--resume without a run directory", "--out RUN"]);
    fovea(&["train", "--preset", "demo", "--out", text(&run)])
        .with_code(USAGE)
        .explains(&["--data"]);
    fovea(&["train", "--preset", "hybird"])
        .with_code(USAGE)
        .explains(&["hybird", "did you mean `hybrid`", "demo"]);
    assert!(!run.exists());
}

#[test]
fn ranks_that_do_not_divide() {
    let directory = scratch();
    let run = directory.path().join("run");
    train(&data().prepared, &run, &["--ranks", "3"])
        .with_code(USAGE)
        .explains(&["train.ranks = 3", "train.virtual_shards = 4", "1, 2, 4"]);
    train(
        &data().prepared,
        &run,
        &["--set", "train.virtual_shards=6", "--ranks", "2"],
    )
    .with_code(USAGE)
    .explains(&[
        "train.ranks = 2",
        "train.virtual_shards = 6",
        "not a power of two",
    ]);
    assert!(!run.exists());
}

#[test]
fn splits_that_do_not_exist() {
    let _turn = turn();
    let run = Run::new(&["train.epochs=1"]);
    run.start(1).wait().with_code(FINISHED);
    let eval =
        |data: &Path, split: &str| fovea(&["eval", run.text(), text(data), "--split", split]);
    eval(&data().prepared, "tset")
        .with_code(USAGE)
        .explains(&["tset", "train, val or test"]);
    // All images of this dataset are in the training and validation splits.
    let directory = scratch();
    let (raw, prepared) = (
        directory.path().join("raw"),
        directory.path().join("prepared"),
    );
    fovea(&["synth", text(&raw), "--images", "2", "--size", "256"]).with_code(FINISHED);
    fovea(&[
        "prepare",
        text(&raw),
        text(&prepared),
        "--size",
        "192",
        "--patch",
        "64",
    ])
    .with_code(FINISHED);
    eval(&prepared, "test")
        .with_code(USAGE)
        .explains(&["test", "has no images", "--split"]);
    weights_that_are_no_use(&run);
}

/// `predict` with weights of another model or in another state, or without any.
fn weights_that_are_no_use(run: &Run) {
    let directory = scratch();
    let out = directory.path().join("out.csv");
    let predict = |weights: &Path| {
        fovea(&[
            "predict",
            text(weights),
            text(&data().prepared),
            "--out",
            text(&out),
        ])
    };
    let trained = fs::read(
        run.path
            .join("checkpoints/step-00000007/weights.safetensors"),
    )
    .unwrap();

    let cut = directory.path().join("cut.safetensors");
    fs::write(&cut, &trained[..trained.len() / 2]).unwrap();
    predict(&cut)
        .with_code(USAGE)
        .explains(&["cut.safetensors", "no safetensors file"]);

    let other = directory.path().join("other.safetensors");
    let write = |tensors: &HashMap<String, TensorView<'_>>| {
        fs::write(&other, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    let tensors = SafeTensors::deserialize(&trained).unwrap();
    let mut all: HashMap<String, TensorView<'_>> = tensors
        .names()
        .into_iter()
        .map(|n| (n.to_owned(), tensors.tensor(n).unwrap()))
        .collect();
    let name = tensors
        .names()
        .into_iter()
        .filter(|n| n.ends_with("conv1.weight"))
        .min()
        .unwrap()
        .to_owned();
    let kept = all.remove(&name).unwrap();
    write(&all);
    predict(&other)
        .with_code(USAGE)
        .explains(&["other.safetensors", &name, "missing"]);

    let few = [0u8; 16];
    all.insert(
        name.clone(),
        TensorView::new(Dtype::F32, vec![2, 2], &few).unwrap(),
    );
    write(&all);
    predict(&other)
        .with_code(USAGE)
        .explains(&[&name, "[2, 2]", &format!("{:?}", kept.shape())]);

    all.insert(name, kept);
    all.insert(
        "classifier.extra".to_owned(),
        TensorView::new(Dtype::F32, vec![2, 2], &few).unwrap(),
    );
    write(&all);
    predict(&other)
        .with_code(USAGE)
        .explains(&["classifier.extra"]);

    // A checkpoint that was never finished, then one with a flipped byte.
    let broken = directory.path().join("step-00000007");
    copy(&run.path.join("checkpoints/step-00000007"), &broken);
    flip_byte(&broken.join("weights.safetensors"), 1_000_000);
    predict(&broken)
        .with_code(USAGE)
        .explains(&["weights.safetensors is damaged", "blake3"]);
    fs::remove_file(broken.join("COMPLETE")).unwrap();
    predict(&broken)
        .with_code(USAGE)
        .explains(&["not a complete checkpoint", "COMPLETE"]);
    assert!(!out.exists());
}

#[test]
fn directories_of_other_runs() {
    let directory = scratch();
    let nothing = directory.path().join("nothing");
    fovea(&["train", "--out", text(&nothing), "--resume"])
        .with_code(USAGE)
        .explains(&[text(&nothing), "no run to resume"]);
    train(&data().prepared, &nothing, &["--resume"])
        .with_code(USAGE)
        .explains(&["no run to resume"]);
    assert!(!nothing.exists());
    fs::create_dir(&nothing).unwrap();
    train(&data().prepared, &nothing, &["--resume"])
        .with_code(USAGE)
        .explains(&["no run to resume"]);

    let _turn = turn();
    let run = Run::new(&["train.epochs=40"]);
    let mut live = run.start(2);
    let status = run.wait_for_step(&mut live, 1);
    let coordinator = common::process_of(&run.path, "coordinator");
    for resume in [&[][..], &["--resume".to_owned()]] {
        let second = Process::start(&[&run.first(2)[..], resume].concat(), None).wait();
        second
            .with_code(USAGE)
            .explains(&["in use", &format!("pid {coordinator}"), run.text()]);
    }
    run.wait_for_step(&mut live, status.step + 2);
    live.signal(common::Signal::INT);
    live.wait().with_code(common::RESUME);

    Process::start(&run.first(2), None)
        .wait()
        .with_code(USAGE)
        .explains(&[run.text(), "holds a run already", "--resume"]);
    let before = fs::read(run.path.join("config.toml")).unwrap();
    let changed = [
        "train",
        "--out",
        run.text(),
        "--resume",
        "--set",
        "optimizer.lr=0.5",
        "--set",
        "train.seed=3",
    ];
    fovea(&changed).with_code(USAGE).explains(&[
        "optimizer.lr is 0.5 now and was 0.0003",
        "train.seed is 3 now and was 0",
    ]);
    // The same photographs prepared with other splits have other samples.
    let other = scratch();
    let other = other.path().join("other");
    let raw = text(&data().raw);
    let words = [
        "prepare",
        raw,
        text(&other),
        "--size",
        "192",
        "--patch",
        "64",
        "--seed",
        "1",
    ];
    fovea(&words).with_code(FINISHED);
    fovea(&[
        "train",
        "--out",
        run.text(),
        "--resume",
        "--data",
        text(&other),
    ])
    .with_code(USAGE)
    .explains(&["trained on another dataset", text(&other)]);
    assert_eq!(
        fs::read(run.path.join("config.toml")).unwrap(),
        before,
        "a refused resume changes nothing"
    );
}
