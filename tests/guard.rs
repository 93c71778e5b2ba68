//! Pins the output of a small run to the bit: manifest, weights, metrics, predictions and the report's figures must not
//! change when the code is rearranged. A change that intends to alter results replaces the stored numbers: the failing
//! test prints the new ones.
//!
//! Floating-point results differ between kinds of processors, because libtorch chooses different code on each. The test
//! compares bits if this kind is among the stored ones, and otherwise compares numbers within [`TOLERANCE`].

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{FINISHED, Run, data, fovea, turn};
use serde::{Deserialize, Serialize};

/// Largest difference from a stored loss or probability `y` on a processor of another kind, divided by `1 + |y|`.
const TOLERANCE: f64 = 2e-2;

#[derive(Deserialize)]
struct Golden {
    /// blake3 of `manifest.json` without the hashes of pixels.
    structure: String,
    /// Lines of `metrics.csv`, without times, and of `predictions-val.csv`.
    metrics: Vec<String>,
    predictions: Vec<String>,
    /// Number of figures in the report.
    figures: usize,
    /// Hashes by kind of processor, as the function `kind` names it.
    kinds: BTreeMap<String, Hashes>,
}

/// blake3 of each output that must be equal to the bit.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hashes {
    manifest: String,
    weights: String,
    metrics: String,
    predictions: String,
    report: String,
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    blake3::hash(bytes.as_ref()).to_hex().to_string()
}

/// Vendor, family and model of the processor, by which libtorch's libraries choose their code, and the variables that
/// restrict them to older instructions.
fn kind() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("", |(_, value)| value)
            .to_owned()
    };
    let [vendor, family, model] = ["vendor_id", "cpu family", "model\t"].map(field);
    let held = [
        "ONEDNN_MAX_CPU_ISA",
        "ATEN_CPU_CAPABILITY",
        "MKL_ENABLE_INSTRUCTIONS",
    ];
    let held = held.map(|name| std::env::var(name).unwrap_or_default());
    format!("{vendor} {family} {model} {}", held.join(" "))
        .trim_end()
        .to_owned()
}

/// The manifest without pixels and their hashes: the part that does not depend on a processor's rounding.
fn structure(manifest: &Path) -> String {
    let mut manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(manifest).unwrap()).unwrap();
    for shard in manifest["shards"].as_array_mut().unwrap() {
        shard["blake3"] = "".into();
    }
    manifest["source"] = "".into();
    serde_json::to_string_pretty(&manifest).unwrap()
}

/// The cells of the report's tables that hold results: no times, paths or versions.
fn figures(report: &str) -> Vec<String> {
    let cells = report.split("<td").skip(1).filter_map(|cell| {
        let (_, rest) = cell.split_once('>')?;
        Some(rest.split_once("</td>")?.0.to_owned())
    });
    // Scores have three decimals; speeds and times have one.
    let is_figure = |cell: &String| {
        let decimals = cell.split_once('.').map_or("", |(_, decimals)| decimals);
        decimals.len() == 3 && cell.parse::<f64>().is_ok()
    };
    cells.filter(is_figure).collect()
}

/// The first pair of lines that differ: in a number by more than [`TOLERANCE`], or in a word.
fn differs(ours: &[String], stored: &[String]) -> Option<String> {
    if ours.len() != stored.len() {
        return Some(format!("{} lines, {} stored", ours.len(), stored.len()));
    }
    let fields = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    ours.iter().zip(stored).find_map(|(a, b)| {
        let (x, y) = (fields(a), fields(b));
        let alike = x.len() == y.len()
            && x.iter()
                .zip(&y)
                .all(|(x, y)| match (x.parse::<f64>(), y.parse::<f64>()) {
                    (Ok(x), Ok(y)) => (x - y).abs() <= TOLERANCE * (1.0 + y.abs()),
                    _ => x == y,
                });
        (!alike).then(|| format!("{a}\n  stored: {b}"))
    })
}

#[test]
fn a_small_run_writes_what_it_always_wrote() {
    let _turn = turn();
    let golden: Golden = serde_json::from_str(include_str!("golden/guard.json")).unwrap();
    let run = Run::new(&[]);
    run.start(2).wait().with_code(FINISHED);
    fovea(&["report", run.text()]).with_code(FINISHED);

    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let manifest = data().prepared.join("manifest.json");
    let metrics = run.metrics();
    let predictions = read(&run.path.join("predictions-val.csv"));
    let report = figures(&read(&run.path.join("report.html")));
    let predictions: Vec<String> = predictions.lines().map(str::to_owned).collect();
    let hashes = Hashes {
        manifest: hash(fs::read(&manifest).unwrap()),
        weights: run.final_hash(),
        metrics: hash(metrics.join("\n")),
        predictions: hash(predictions.join("\n")),
        report: hash(report.join("\n")),
    };
    let ours = serde_json::json!({
        "structure": hash(structure(&manifest)), "metrics": metrics, "predictions": predictions,
        "figures": report.len(), "kinds": { kind(): hashes },
    });
    println!("{ours:#}");

    assert!(report.len() > 20, "the report holds figures: {report:?}");
    assert_eq!(hash(structure(&manifest)), golden.structure, "manifest");
    if let Some(stored) = golden.kinds.get(&kind()) {
        assert_eq!(&hashes, stored, "{}", kind());
        return;
    }
    println!("nothing is stored for {}: numbers are compared", kind());
    assert_eq!(metrics[0], golden.metrics[0], "columns");
    let loss = metrics[0].split(',').position(|column| column == "loss");
    let losses = |lines: &[String]| -> Vec<String> {
        let field = |line: &String| line.split(',').nth(loss.unwrap()).unwrap().to_owned();
        lines[1..].iter().map(field).collect()
    };
    assert_eq!(differs(&losses(&metrics), &losses(&golden.metrics)), None);
    assert_eq!(differs(&predictions, &golden.predictions), None);
    assert_eq!(report.len(), golden.figures, "figures of the report");
}
