//! After training: thresholds and temperatures, several views and models as one, submissions, Grad-CAM.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Done, FINISHED, Run, USAGE, data, fovea};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A finished run, and commands about it.
struct Finished {
    run: Run,
}

impl Finished {
    fn command(&self, name: &str, more: &[&str]) -> Done {
        let words = [name, self.run.text(), text(&data().prepared)];
        fovea(&[&words[..], more].concat())
    }

    fn eval(&self, more: &[&str]) -> Value {
        let done = self.command("eval", &[more, &["--json"]].concat());
        serde_json::from_str(&done.with_code(FINISHED).stdout).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run.path.parent().unwrap().join(name)
    }

    /// The record beside the run's best checkpoint.
    fn record(&self) -> PathBuf {
        let checkpoints = fs::read_dir(self.run.path.join("checkpoints")).unwrap();
        let mut records = checkpoints
            .map(|entry| entry.unwrap().path().join("tuning.json"))
            .filter(|path| path.is_file());
        let record = records.next().unwrap();
        assert_eq!(records.next(), None);
        record
    }
}

#[test]
fn what_comes_after_training() {
    let run = Run::new(&["optimizer.lr=1e-3"]);
    run.start(1).wait().with_code(FINISHED);
    let finished = Finished { run };
    let hash = finished.run.final_hash();
    let before = finished.eval(&[]);
    tuned(&finished, &before);
    averaged(&finished, &before);
    decided(&finished);
    explained(&finished);
    damaged(&finished);
    assert_eq!(finished.run.final_hash(), hash, "the run stays as it is");
}

fn tuned(finished: &Finished, before: &Value) {
    let run = finished.run.text();
    fovea(&["tune", run, "--split", "test"])
        .with_code(USAGE)
        .explains(&["--split test", "too good"]);
    fovea(&["tune", run, "--grid", "0.9"])
        .with_code(USAGE)
        .explains(&["a grid of 0.9"]);
    // The configuration names the dataset.
    fovea(&["tune", run]).with_code(FINISHED).prints(&[
        "patch, ",
        "macro-F1",
        "tuning.json: chosen on val by F1 over all scores",
    ]);
    let record: Value = serde_json::from_slice(&fs::read(finished.record()).unwrap()).unwrap();
    for target in record["targets"].as_array().unwrap() {
        let f1 = |when: &str| -> Vec<f64> {
            let of = target[when]["f1"].as_array().unwrap().iter();
            of.map(|f1| f1.as_f64().unwrap()).collect()
        };
        let pairs = f1("before").into_iter().zip(f1("after"));
        let worse: Vec<_> = pairs.filter(|(before, after)| after < before).collect();
        assert!(worse.is_empty(), "{worse:?}");
        let nll = |when: &str| target[when]["nll"].as_f64().unwrap();
        assert!(nll("after") <= nll("before") + 1e-9, "{target:#}");
    }

    let val = finished.eval(&["--split", "val"]);
    assert_eq!(val["tuning"]["chosen_on_this_split"], true);
    // What tune measured is what eval measures, from the same thresholds.
    for (index, level) in ["image", "patch"].iter().enumerate() {
        let told = &record["targets"][index];
        assert_eq!(told["target"], *level);
        assert_eq!(val[level]["f1_macro"], told["after"]["f1_macro"]);
    }
    let test = finished.eval(&[]);
    assert_eq!(test["tuning"]["chosen_on_this_split"], false);
    assert_eq!(
        test["patch"]["loss"], before["patch"]["loss"],
        "the training's loss"
    );
    assert_eq!(finished.eval(&["--untuned"]), *before);
    finished
        .command("eval", &["--split", "val"])
        .with_code(FINISHED)
        .prints(&["chosen on this very split", "--untuned ignores them"]);

    fovea(&["report", run]).with_code(FINISHED);
    let page = fs::read_to_string(finished.run.path.join("report.html")).unwrap();
    assert!(page.contains("Thresholds and temperatures were chosen on val"));
}

fn averaged(finished: &Finished, before: &Value) {
    let run = finished.run.text();
    let near = |a: &Value, b: &Value, what: &str| {
        for name in ["mean_auroc", "f1_micro", "loss"] {
            let (a, b) = (a["patch"][name].as_f64(), b["patch"][name].as_f64());
            let gap = a.zip(b).map(|(a, b)| (a - b).abs());
            assert!(
                gap.is_some_and(|gap| gap < 1e-5),
                "{what} {name}: {a:?} and {b:?}"
            );
        }
    };
    // The average of a model with itself is the model.
    let twice = finished.eval(&["--with", run, "--weights", "3,1", "--untuned"]);
    assert_eq!(twice["weights"], serde_json::json!([0.75, 0.25]));
    near(&twice, before, "twice the same");
    let by_score = finished.eval(&["--with", run, "--weights", "val"]);
    assert_eq!(by_score["weights"], serde_json::json!([0.5, 0.5]));
    let views = finished.eval(&["--tta", "8", "--untuned"]);
    assert_eq!(views["views"], 8);
    assert_ne!(views["patch"]["mean_auroc"], before["patch"]["mean_auroc"]);
    finished.command("eval", &["--tta", "4"]).with_code(USAGE);
    finished
        .command("eval", &["--weights", "1,2"])
        .with_code(USAGE)
        .explains(&["2 numbers for 1 models"]);

    let out = finished.file("ensemble.json");
    let tune = |more: &[&str]| fovea(&[&["tune", run, run], more].concat());
    tune(&[]).with_code(USAGE).explains(&["2 models", "--out"]);
    tune(&[
        "--weights",
        "0.6,0.4",
        "--sensitivity",
        "0.9",
        "--out",
        text(&out),
    ])
    .with_code(FINISHED)
    .prints(&[
        "a sensitivity of 0.9, for an ensemble of 2",
        "weights 0.600 0.400",
    ]);
    let together = finished.eval(&["--with", run, "--tuned", text(&out)]);
    assert_eq!(together["weights"], serde_json::json!([0.6, 0.4]));
    finished
        .command("eval", &["--tuned", text(&out)])
        .with_code(USAGE)
        .explains(&["made for 2 models, 1 are given"]);
    finished
        .command(
            "eval",
            &["--with", run, "--weights", "1,1", "--tuned", text(&out)],
        )
        .with_code(USAGE)
        .explains(&["made with the weights 0.6, 0.4"]);
}

fn decided(finished: &Finished) {
    let (table, submission) = (finished.file("p.csv"), finished.file("submission.csv"));
    finished
        .command(
            "predict",
            &["--out", text(&table), "--submission", text(&submission)],
        )
        .with_code(FINISHED)
        .prints(&["10 images", "temperatures and thresholds of"]);
    let record: Value = serde_json::from_slice(&fs::read(finished.record()).unwrap()).unwrap();
    let thresholds: Vec<f32> =
        serde_json::from_value(record["targets"][0]["thresholds"].clone()).unwrap();
    let table = fs::read_to_string(table).unwrap();
    let images = table.lines().filter(|line| line.contains(",,,"));
    let expected: Vec<String> = images
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let decided = fields[3..7].iter().zip(&thresholds);
            let decided =
                decided.map(|(p, t)| u8::from(p.parse::<f32>().unwrap() >= *t).to_string());
            let decided: Vec<String> = decided.collect();
            format!("{},{}", fields[0], decided.join(","))
        })
        .collect();
    let text = fs::read_to_string(submission).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "image,MA,HE,EX,SE");
    assert_eq!(lines[1..], expected);
}

fn explained(finished: &Finished) {
    let out = finished.file("cam");
    let cam = |more: &[&str]| finished.command("gradcam", &[&["--out", text(&out)], more].concat());
    cam(&["--class", "XX"])
        .with_code(USAGE)
        .explains(&["--class XX", "MA, HE, EX, SE"]);
    cam(&[
        "--class", "EX", "--class", "MA", "--raw", "--split", "val", "--limit", "1",
    ])
    .with_code(FINISHED)
    .prints(&["5 pictures of 1 image"]);
    let folder = fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    for (name, side) in [
        ("EX-global_branch", 2),
        ("MA-global_branch", 2),
        // Three cells of 64 pixels, each with a map of 2 x 2.
        ("EX-local_branch", 6),
        ("MA-local_branch", 6),
        ("attention", 3),
    ] {
        let picture = image::open(folder.join(format!("{name}.png"))).unwrap();
        assert_eq!((picture.width(), picture.height()), (2 * 192 + 8, 192));
        let numbers = fs::read(folder.join(format!("{name}.npy"))).unwrap();
        assert_eq!(numbers.len(), 128 + 4 * side * side, "{name}");
    }
}

fn damaged(finished: &Finished) {
    let record = finished.record();
    let good = fs::read_to_string(&record).unwrap();
    fs::write(&record, &good[..good.len() / 2]).unwrap();
    finished
        .command("eval", &[])
        .with_code(USAGE)
        .explains(&["tuning.json", "--untuned"]);
    let weights = good.find("weights_blake3").unwrap() + 20;
    let mut other = good.clone();
    let digit = if &good[weights..=weights] == "0" {
        "1"
    } else {
        "0"
    };
    other.replace_range(weights..=weights, digit);
    fs::write(&record, other).unwrap();
    finished
        .command("eval", &[])
        .with_code(USAGE)
        .explains(&["made for weights"]);
    finished.eval(&["--untuned"]);
    fs::write(&record, good).unwrap();
}
