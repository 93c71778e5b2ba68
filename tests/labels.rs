//! Datasets with labels of whole images, from a drawn set to its table, by the program.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::Path;

use common::{FINISHED, USAGE, fovea, scratch};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn drawn_sets_are_prepared_without_further_words() {
    let directory = scratch();
    for (kind, layout) in [
        ("labels", "csv"),
        ("classes", "classes"),
        ("boxes", "boxes"),
    ] {
        let [raw, out] =
            ["raw", "data"].map(|name| directory.path().join(format!("{kind}-{name}")));
        let drawn = ["--kind", kind, "--images", "40", "--size", "64"];
        fovea(&[&["synth", text(&raw)][..], &drawn].concat()).with_code(FINISHED);
        fovea(&["prepare", text(&raw), text(&out)]).with_code(FINISHED);
        let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["layout"], layout);
        assert_eq!(
            (manifest["size"].as_u64(), manifest["patch"].as_u64()),
            (Some(256), Some(0))
        );
        assert_eq!(
            (manifest["crop"].as_str(), manifest["fit"].as_str()),
            (Some("none"), Some("stretch"))
        );
        let mosaic = directory.path().join(format!("{kind}.png"));
        fovea(&["data", text(&out), "--mosaic", text(&mosaic)]).with_code(FINISHED);
    }
    // A grid that is asked for is made; ways that do not exist are named.
    let raw = directory.path().join("labels-raw");
    let out = directory.path().join("grid");
    let words = ["prepare", text(&raw), text(&out)];
    let grid = [
        "--size", "64", "--patch", "16", "--labels", "D,A", "--fit", "centre",
    ];
    fovea(&[&words[..], &grid].concat()).with_code(FINISHED);
    let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"grid\": 4") && manifest.contains("\"fit\": \"centre\""));
    for (option, value, help) in [
        ("--fit", "crop", "use stretch, pad or centre"),
        ("--crop", "disc", "use fov, none or auto"),
        ("--layout", "table", "use auto, fgadr"),
        ("--labels", "X", "has no column `X`"),
    ] {
        let other = directory.path().join("other");
        fovea(&["prepare", text(&raw), text(&other), option, value])
            .with_code(USAGE)
            .explains(&[help]);
    }
}
