//! `fovea bench`: that it measures with real processes, and says so in a form that machines read.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{FINISHED, USAGE, fovea};
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

#[test]
fn what_cannot_be_measured_is_said() {
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
