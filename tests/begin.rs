//! How a run starts, and what it reports before its first step: input that cannot train, initial weights, more epochs,
//! a watched metric without a value.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{
    Done, FINISHED, Process, Run, Signal, USAGE, assert_nobody_left, data, fovea, scratch, turn,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `fovea train` for a run, with further words on the command line.
fn train(run: &Run, ranks: u32, more: &[&str]) -> Done {
    Process::start(&words(run, ranks, more), Some(&run.path)).wait()
}

/// The words of a run's first `fovea train`, with further ones; a dataset among them replaces the usual one.
fn words(run: &Run, ranks: u32, more: &[&str]) -> Vec<String> {
    let mut words = run.first(ranks);
    if more.contains(&"--data") {
        let at = words.iter().position(|word| word == "--data").unwrap();
        words.drain(at..at + 2);
    }
    words.extend(more.iter().map(|&word| word.to_owned()));
    words
}

fn resume(run: &Run, more: &[&str]) -> Done {
    let words = [&["train", "--out", run.text(), "--resume"], more].concat();
    Process::start(&words, Some(&run.path)).wait()
}

/// Prepares photographs without any lesion: every class is negative everywhere.
fn healthy(directory: &Path, images: u32) -> PathBuf {
    let source = directory.join("healthy");
    let raw = source.join("images");
    fs::create_dir_all(&raw).unwrap();
    for n in 0..images {
        let disc = image::RgbImage::from_fn(200, 200, |x, y| {
            let r = (f64::from(x) - 99.5).hypot(f64::from(y) - 99.5);
            let ripple = ((x * (n + 3) + y * 5) % 40) as u8;
            match r <= 98.0 {
                true => image::Rgb([120 + ripple, 60 + ripple / 2, 30]),
                false => image::Rgb([0; 3]),
            }
        });
        disc.save(raw.join(format!("img_{n:02}.png"))).unwrap();
    }
    for class in ["MA", "HE", "EX", "SE"] {
        let masks = source.join("masks").join(class);
        fs::create_dir_all(&masks).unwrap();
        for n in 0..images {
            let mask = image::GrayImage::new(200, 200);
            mask.save(masks.join(format!("img_{n:02}.png"))).unwrap();
        }
    }
    let prepared = directory.join("healthy-prepared");
    let words = [
        "prepare",
        text(&source),
        text(&prepared),
        "--size",
        "192",
        "--patch",
        "64",
    ];
    fovea(&words).with_code(FINISHED);
    prepared
}

#[test]
fn what_cannot_train_is_refused_before_anything_is_written() {
    let directory = scratch();
    let run = Run::new(&[]);
    let refused = |more: &[&str], words: &[&str]| {
        train(&run, 1, more).with_code(USAGE).explains(words);
        assert!(
            !run.path.exists(),
            "a run that cannot begin leaves nothing behind"
        );
    };
    let two = healthy(directory.path(), 2);
    refused(&["--data", text(&two)], &["validation split has no images"]);
    // A job gets the same refusal, on the login node.
    let job = [
        "submit",
        "--preset",
        "demo",
        "--data",
        text(&two),
        "--out",
        run.text(),
    ];
    fovea(&job)
        .with_code(USAGE)
        .explains(&["validation split has no images"]);
    assert!(!run.path.exists());
    fs::remove_dir_all(directory.path().join("healthy")).unwrap();
    fs::remove_dir_all(&two).unwrap();

    let healthy = healthy(directory.path(), 5);
    let on_healthy = [
        "--data",
        text(&healthy),
        "--set",
        "early_stopping.metric=mean_ap",
    ];
    refused(
        &on_healthy,
        &[
            "early_stopping.metric = \"mean_ap\"",
            "never be defined",
            "has a lesion",
        ],
    );
    // The dataset has 21 units of 3 patches.
    refused(
        &["--set", "train.images_per_step=22"],
        &["train.images_per_step = 22", "21 units", "at most 21"],
    );
    refused(
        &[
            "--set",
            "train.virtual_shards=32",
            "--set",
            "train.images_per_step=21",
        ],
        &["train.virtual_shards = 32", "21 units"],
    );
    let job = [
        &[
            "submit",
            "--preset",
            "demo",
            "--out",
            run.text(),
            "--dry-run",
            "--set",
            "data.patches_per_image=3",
        ],
        &on_healthy[..],
    ];
    fovea(&job.concat())
        .with_code(USAGE)
        .explains(&["never be defined"]);
    assert!(!run.path.exists());

    // The warning also comes where no check preceded: a run that was made by hand continues, and every place reports
    // why no epoch is the best one.
    let _turn = turn();
    fs::create_dir(&run.path).unwrap();
    let small = [
        "--print-config",
        "--set",
        "train.epochs=1",
        "--set",
        "train.images_per_step=2",
    ];
    let words = words(&run, 1, &[&on_healthy[..], &small].concat());
    let config = fovea(&words).with_code(FINISHED).stdout;
    fs::write(run.path.join("config.toml"), config).unwrap();
    let done = resume(&run, &[]).with_code(FINISHED).prints(&[
        "UNDEFINED  the watched metric mean_ap at patch level is undefined: an average precision needs",
        "epoch 1 cannot be the best one",
    ]);
    assert!(done.stderr.contains("never be defined"), "{done}");
    let log = fs::read_to_string(run.path.join("logs/rank-0.log")).unwrap();
    assert!(log.contains("epoch 1: the watched metric mean_ap"), "{log}");
    fovea(&["status", run.text()]).prints(&["UNDEFINED    the watched metric mean_ap"]);
    let report = fovea(&["report", run.text()]).with_code(FINISHED);
    report.prints(&[
        "There is no best epoch",
        "undefined in the only epoch",
        "has a lesion",
    ]);
}

/// Writes a file of weights with the tensors of another file, changed.
fn rewrite(
    from: &Path,
    to: &Path,
    name: impl Fn(&str) -> String,
    change: impl Fn(&str, &mut Vec<u8>),
) {
    let bytes = fs::read(from).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, _, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(old, view)| {
            let mut data = view.data().to_vec();
            change(&old, &mut data);
            (name(&old), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views: HashMap<String, TensorView<'_>> = changed
        .iter()
        .map(|(name, dtype, shape, data)| {
            (
                name.clone(),
                TensorView::new(*dtype, shape.clone(), data).unwrap(),
            )
        })
        .collect();
    fs::write(to, safetensors::serialize(&views, None).unwrap()).unwrap();
}

/// Trains one run, and tries everything that can be done with its weights.
#[test]
fn weights_are_checked_and_begun_from() {
    let _turn = turn();
    let first = Run::new(&["train.epochs=1"]);
    first.start(1).wait().with_code(FINISHED);
    let weights = first
        .path
        .join("checkpoints/step-00000007/weights.safetensors");
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);

    // The tensors under the names that wrappers give them score the same.
    let eval = |weights: &Path| {
        let size = ["--set", "data.global_size=64", "--split", "val"];
        fovea(&[&["eval", text(weights), text(&data().prepared)], &size[..]].concat())
    };
    let plain = eval(&weights).with_code(FINISHED).stdout;
    let wrapped = file("wrapped.safetensors");
    rewrite(
        &weights,
        &wrapped,
        |name| format!("model._orig_mod.module.{name}"),
        |_, _| {},
    );
    let done = eval(&wrapped).with_code(FINISHED);
    assert!(
        done.stderr.contains("DistributedDataParallel") && done.stderr.contains("`model.`"),
        "{done}"
    );
    assert_eq!(done.stdout, plain);

    // NaN in one tensor; then finite weights that make everything else infinite or NaN.
    let nan = file("nan.safetensors");
    rewrite(&weights, &nan, str::to_owned, |name, data| {
        if name == "global_branch.conv1.weight" {
            data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    let out = file("out.csv");
    let predict = |weights: &Path, of: &Path| {
        let size = ["--set", "data.global_size=64"];
        fovea(
            &[
                &["predict", text(weights), text(of), "--out", text(&out)],
                &size[..],
            ]
            .concat(),
        )
    };
    let told = [
        "nan.safetensors",
        "1 of the 9408 in global_branch.conv1.weight",
        "not finite",
    ];
    eval(&nan).with_code(USAGE).explains(&told);
    predict(&nan, &data().prepared)
        .with_code(USAGE)
        .explains(&told);
    let huge = file("huge.safetensors");
    rewrite(&weights, &huge, str::to_owned, |name, data| {
        if name.ends_with("head.0.weight") || name.ends_with("conv1.weight") {
            let big = f32::MAX.to_le_bytes();
            data.chunks_exact_mut(4)
                .for_each(|x| x.copy_from_slice(&big));
        }
    });
    let photos = data().raw.join("Seg-set/Original_Images");
    predict(&huge, &data().prepared)
        .with_code(USAGE)
        .explains(&["image ", "not finite"]);
    predict(&huge, &photos)
        .with_code(USAGE)
        .explains(&[".png: the model's answer", "not finite"]);
    assert!(!out.exists());

    a_run_begins_from(&first, &weights, &wrapped, &nan);
}

fn a_run_begins_from(first: &Run, weights: &Path, wrapped: &Path, nan: &Path) {
    let blake3 = blake3::hash(&fs::read(weights).unwrap())
        .to_hex()
        .to_string();
    let refused = Run::new(&["train.epochs=1"]);
    train(&refused, 1, &["--init", text(nan)])
        .with_code(USAGE)
        .explains(&["not finite"]);
    train(&refused, 1, &["--init", "nowhere"])
        .with_code(USAGE)
        .explains(&["nowhere"]);
    assert!(!refused.path.exists());

    // One rank starts from a run directory, two ranks from wrapped weights: the runs are the same.
    let one = Run::new(&["train.epochs=1"]);
    train(&one, 1, &["--init", first.text()])
        .with_code(FINISHED)
        .prints(&["beginning from the weights of", text(weights)]);
    let config = fs::read_to_string(one.path.join("config.toml")).unwrap();
    assert!(
        config.contains(&format!("init_blake3 = \"{blake3}\"")),
        "{config}"
    );

    let two = Run::new(&["train.epochs=1", "checkpoint.every_seconds=0"]);
    let copy = two.path.parent().unwrap().join("copy.safetensors");
    fs::copy(wrapped, &copy).unwrap();
    let mut words = two.first(2);
    words.extend(["--init", text(&copy)].map(str::to_owned));
    let mut process = Process::start(&words, Some(&two.path));
    two.wait_for_step(&mut process, 1);
    // All processes are killed before the first checkpoint: the start must be repeated.
    for (pid, _) in common::processes_of(&two.path) {
        common::send(pid, Signal::KILL);
    }
    drop(process.wait());
    assert_nobody_left(&two.path);
    fs::copy(nan, &copy).unwrap();
    resume(&two, &[])
        .with_code(USAGE)
        .explains(&["copy.safetensors", "init_blake3"]);
    fs::copy(weights, &copy).unwrap();
    resume(&two, &[])
        .with_code(USAGE)
        .explains(&["init_blake3"]);
    fs::copy(wrapped, &copy).unwrap();
    resume(&two, &["--init", first.text()])
        .with_code(USAGE)
        .explains(&["the run began from", "copy.safetensors"]);
    resume(&two, &[]).with_code(FINISHED);
    assert_eq!(one.final_hash(), two.final_hash());
    assert_ne!(one.final_hash(), first.final_hash());

    // A run that has started does not read its initial weights again, and more epochs continue from where it is.
    fs::remove_file(&copy).unwrap();
    resume(&two, &["--set", "train.epochs=2"]).with_code(FINISHED);
    fovea(&["audit", two.text()]).with_code(FINISHED);
}

/// A finished run with added epochs equals a run that had them from the start.
#[test]
fn more_epochs_go_on_as_if_they_had_always_been_wanted() {
    let _turn = turn();
    let constant = "schedule.kind=constant";
    let whole = Run::new(&[constant, "train.epochs=2"]);
    whole.start(2).wait().with_code(FINISHED);

    let run = Run::new(&[constant, "train.epochs=1"]);
    run.start(2).wait().with_code(FINISHED);
    resume(&run, &["--set", "train.epochs=1"])
        .with_code(FINISHED)
        .prints(&["nothing left to do: finished after step 7"]);
    resume(&run, &["--ranks", "1", "--set", "train.epochs=2"])
        .with_code(FINISHED)
        .prints(&["going on after step 7", "finished after step 14"]);
    assert_eq!(run.final_hash(), whole.final_hash());
    assert_eq!(run.metrics(), whole.metrics());
    assert_eq!(common::facts(&run.steps()), common::facts(&whole.steps()));
    let audit = fovea(&["audit", run.text()]).with_code(FINISHED);
    audit.prints(&["epoch 2", "finished"]);
    fovea(&["report", run.text()]).with_code(FINISHED);
    fovea(&["status", run.text()])
        .with_code(FINISHED)
        .prints(&["epoch        2 of 2"]);
    let before = fs::read(run.path.join("config.toml")).unwrap();
    resume(&run, &["--set", "train.epochs=1"])
        .with_code(USAGE)
        .explains(&["train.epochs = 1, but 2 of 2 epochs are done"]);
    assert_eq!(fs::read(run.path.join("config.toml")).unwrap(), before);
}

/// A run that stopped early reports that in every place, and accepts no more epochs.
#[test]
fn a_run_that_stopped_early_says_so() {
    let _turn = turn();
    let run = Run::new(&[
        "train.epochs=9",
        "early_stopping.patience=1",
        "early_stopping.min_delta=1000",
    ]);
    let early = "stopped early after epoch 2 of 9, as f1_micro at patch level had not become better in 1 validation";
    run.start(2)
        .wait()
        .with_code(FINISHED)
        .prints(&["finished after step 14", early]);
    resume(&run, &[])
        .with_code(FINISHED)
        .prints(&["nothing left to do", early]);
    resume(&run, &["--set", "train.epochs=12"])
        .with_code(USAGE)
        .explains(&["stopped early after epoch 2 of 9", "--init"]);
    fovea(&["status", run.text()])
        .with_code(FINISHED)
        .prints(&["epoch        2 of 9: stopped early"]);
    fovea(&["audit", run.text()]).with_code(FINISHED);
}
