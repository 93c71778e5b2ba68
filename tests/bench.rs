//! `fovea bench` measures with real processes and prints results that machines can read.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{FINISHED, Process, USAGE, fovea};
use serde_json::Value;

#[test]
fn all_reduce_over_processes() {
    let words = [
        "bench",
        "allreduce",
        "--ranks",
        "3",
        "--from",
        "1K",
        "--to",
        "64K",
        "--repeats",
        "3",
    ];
    let done = fovea(&[&words[..], &["--json"]].concat()).with_code(FINISHED);
    let told: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"));
    assert_eq!(
        (&told["backend"], &told["ranks"]),
        (&"local".into(), &3.into())
    );
    let sizes = told["sizes"].as_array().unwrap();
    let bytes: Vec<u64> = sizes.iter().map(|s| s["bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [1024, 4096, 16384, 65536]);
    for size in sizes {
        let value = |name: &str| size[name].as_f64().unwrap();
        let algbw = value("bytes") / value("ms") / 1e6;
        assert!((value("algbw_gb_s") / algbw - 1.0).abs() < 1e-6, "{size}");
        assert!(
            (value("busbw_gb_s") / algbw - 4.0 / 3.0).abs() < 1e-6,
            "{size}"
        );
    }
    fovea(&words)
        .with_code(FINISHED)
        .prints(&["3 ranks, backend local", "busbw", "65536"]);
}

/// Sizes of images, patches and views that a CPU finishes in a moment.
const SMALL: [&str; 12] = [
    "--device",
    "cpu",
    "--size",
    "256",
    "--patch",
    "64",
    "--global-size",
    "64",
    "--virtual-shards",
    "2",
    "--precision",
    "f32",
];

fn told(words: &[&str]) -> Value {
    let done = fovea(&[&["bench"], words, &SMALL, &["--json"]].concat()).with_code(FINISHED);
    serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"))
}

#[test]
fn steps_on_synthetic_images() {
    let words = [
        "step",
        "--images",
        "4",
        "--patches",
        "4",
        "--warm-up",
        "1",
        "--steps",
        "3",
    ];
    let told = told(&words);
    let value = |name: &str| {
        told[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} in {told}"))
    };
    let median = told["step_ms"]["median"].as_f64().unwrap();
    assert!(median > 0.0 && told["step_ms"]["p10"].as_f64().unwrap() <= median);
    assert!((value("patches_per_s") / (16.0 / median * 1e3) - 1.0).abs() < 1e-9);
    // Two ResNet18 forward and backward, each 1.81 GMACs at 224 pixels: 4 images of 64, 16 patches of 64.
    let estimate = 6.0 * 1.81 * 20.0 * (64.0f64 / 224.0).powi(2);
    assert!((value("gflop") / estimate - 1.0).abs() < 0.1, "{told}");
    assert!((value("tflop_per_s") / (value("gflop") / median) - 1.0).abs() < 1e-9);
    assert!((0.1..10.0).contains(&value("loss")), "{told}");
    assert!(told["gpu_share"].is_null(), "no GPU: {told}");
}

#[test]
fn an_epoch_on_synthetic_images() {
    let told = told(&[
        "epoch",
        "--images",
        "5",
        "--images-per-step",
        "4",
        "--patches",
        "6",
    ]);
    // An image has 16 cells, in units of 6, 6 and 4: 15 units in steps of 4.
    assert_eq!(
        (told["patches"].as_u64(), told["steps"].as_u64()),
        (Some(80), Some(4))
    );
    let value = |name: &str| {
        told[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} in {told}"))
    };
    assert!((value("patches_per_s") / (80.0 / value("seconds")) - 1.0).abs() < 1e-9);
    assert!(
        value("peak_bytes") > 1e8,
        "the model alone is larger: {told}"
    );
    let loss = &told["loss"];
    assert!(
        loss[1].as_f64() < loss[0].as_f64(),
        "it learns the mean at least: {told}"
    );
}

/// Three world sizes, each with its own processes.
#[test]
fn steps_over_ranks() {
    let dir = common::scratch();
    let (json, plot) = (dir.path().join("s.json"), dir.path().join("s.png"));
    let files = [
        "--json",
        json.to_str().unwrap(),
        "--plot",
        plot.to_str().unwrap(),
    ];
    let words = [
        "bench",
        "scaling",
        "--ranks",
        "5",
        "--images",
        "2",
        "--patches",
        "4",
    ];
    let few = ["--warm-up", "0", "--steps", "2", "--threads", "1"];
    // Every rank has two virtual shards, by SMALL.
    let done = fovea(&[&words[..], &SMALL, &few, &files].concat()).with_code(FINISHED);
    let told: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let points = told.as_array().unwrap();
    let seen: Vec<_> = points
        .iter()
        .map(|p| {
            let number = |name: &str| p[name].as_u64().unwrap();
            (
                p["growth"].as_str().unwrap(),
                number("ranks"),
                number("images"),
            )
        })
        .collect();
    let weak = [("weak", 1, 2), ("weak", 2, 4), ("weak", 4, 8)];
    let strong = [("strong", 1, 8), ("strong", 2, 8), ("strong", 4, 8)];
    assert_eq!(seen, [weak, strong].concat());
    assert_eq!(
        points[2]["step_ms"], points[5]["step_ms"],
        "both meet there"
    );
    for (number, point) in points.iter().enumerate() {
        let value = |name: &str| point[name].as_f64().unwrap();
        let alone = &points[number / 3 * 3];
        let rate =
            value("patches_per_s") / value("ranks") / alone["patches_per_s"].as_f64().unwrap();
        assert!((value("efficiency") / rate - 1.0).abs() < 1e-9, "{point}");
        assert!(value("steps_per_s") > 0.0);
        assert!(
            point["backend"] == "local" || value("ranks") == 1.0,
            "{point}"
        );
    }
    assert!(image::open(plot).unwrap().width() > 500);
    done.prints(&["weak          4", "strong        2", "efficiency"]);
}

#[test]
fn what_needs_a_gpu_says_so() {
    // This hides the GPUs, where there are any.
    let none = [("CUDA_VISIBLE_DEVICES", std::path::Path::new(""))];
    for words in [
        &["bench", "kernels"][..],
        &["gpu-check"],
        &["bench", "step", "--device", "cuda"],
        &["bench", "allreduce", "--backend", "nccl", "--ranks", "1"],
    ] {
        let done = Process::start_with(words, &none, None).wait();
        assert_ne!(done.status.code(), Some(FINISHED), "{done}");
        done.explains(&[]);
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let refused = |words: &[&str], said: &[&str]| {
        let words = [&["bench"], words, &["--device", "cpu"]].concat();
        fovea(&words).with_code(USAGE).explains(said);
    };
    refused(
        &["epoch"],
        &["1841 images of 1280 pixels are 9.0 GB", "--images"],
    );
    refused(
        &["step", "--patches", "101"],
        &["101 patches per image, but an image has 100"],
    );
    refused(&["step", "--patch", "48"], &["patches of 48"]);
    refused(
        &["step", "--virtual-shards", "0"],
        &["train.virtual_shards"],
    );
}

#[test]
fn sums_that_cannot_be_measured_are_refused() {
    let refused = |words: &[&str], said: &[&str]| {
        fovea(&[&["bench", "allreduce"], words].concat())
            .with_code(USAGE)
            .explains(said);
    };
    refused(
        &["--from", "2M", "--to", "1M"],
        &["--from 2097152 is larger"],
    );
    for words in [
        ["--from", "1X"],
        ["--to", "1T"],
        ["--ranks", "0"],
        ["--to", "99999999999999999999G"],
    ] {
        let done = fovea(&[&["bench", "allreduce"], &words[..]].concat()).with_code(USAGE);
        assert!(done.stderr.contains(words[1]), "{done}");
    }
}
