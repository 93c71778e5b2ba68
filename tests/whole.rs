//! Runs the whole program once, from nothing to the report, as a newcomer would.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::Path;

use common::{FINISHED, Run, data, fovea, scratch};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `fovea --version` gives what an error report needs: release, commit, and the libtorch that was found.
#[test]
fn the_version_names_commit_and_libtorch() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root)
        .output();
    let head = git
        .ok()
        .filter(|done| done.status.success() && root.join(".git").exists());
    let commit = head.map_or_else(
        // The source may be a tarball, or the machine may have no git.
        || "(".to_owned(),
        |done| format!("({})", &String::from_utf8(done.stdout).unwrap()[..12]),
    );
    let version = env!("CARGO_PKG_VERSION");
    fovea(&["--version"]).with_code(FINISHED).prints(&[
        &format!("fovea {version} "),
        &commit,
        "\nlibtorch 2.11 in /",
        ", built for 2.11",
    ]);
    let short = fovea(&["-V"]).with_code(FINISHED);
    assert_eq!(short.stdout.lines().count(), 1, "{short}");
}

/// The lines of a CSV file, split at commas; the first one must be `header`.
#[track_caller]
fn csv(path: &Path, header: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert!(
        lines.next().is_some_and(|first| first.starts_with(header)),
        "{text}"
    );
    let rows: Vec<Vec<String>> = lines
        .map(|line| line.split(',').map(str::to_owned).collect())
        .collect();
    assert!(
        rows.iter()
            .all(|row| row.len() == text.lines().next().unwrap().split(',').count()),
        "{text}"
    );
    rows
}

/// Checks predictions: one image-level row per image, then its patches; all numbers probabilities.
/// Returns images and patches.
#[track_caller]
fn predictions(path: &Path) -> (Vec<String>, usize) {
    let rows = csv(path, "image_id,row,col,p_MA,p_HE,p_EX,p_SE,usable,note");
    let mut images = Vec::new();
    for row in &rows {
        assert_eq!(row[7..], ["1", ""], "usable, and nothing to note: {row:?}");
        for p in &row[3..7] {
            let p: f64 = p.parse().unwrap();
            assert!((0.0..=1.0).contains(&p), "{row:?}");
        }
        match (row[1].as_str(), row[2].as_str()) {
            ("", "") => images.push(row[0].clone()),
            (y, x) => {
                assert_eq!(
                    images.last(),
                    Some(&row[0]),
                    "a patch before its image: {row:?}"
                );
                assert!(
                    y.parse::<u32>().is_ok() && x.parse::<u32>().is_ok(),
                    "{row:?}"
                );
            }
        }
    }
    let patches = rows.len() - images.len();
    (images, patches)
}

/// A photograph like a camera's: a round field of view on black, neither square nor centred.
fn photograph(width: u32, height: u32) -> RgbImage {
    let radius = f64::from(height) * 0.48;
    let (cx, cy) = (f64::from(width) * 0.52, f64::from(height) * 0.5);
    RgbImage::from_fn(width, height, |x, y| {
        let r = (f64::from(x) - cx).hypot(f64::from(y) - cy);
        if r > radius {
            return Rgb([2, 1, 1]);
        }
        let texture = ((x * 7 + y * 13) % 23) as u8;
        Rgb([150 + texture, 80 + texture / 2, 40 + texture / 3])
    })
}

#[test]
fn from_nothing_to_the_report() {
    let directory = scratch();
    let data = data();
    for kind in [
        "Original_Images",
        "Microaneurysms_Masks",
        "Hemohedge_Masks",
        "HardExudate_Masks",
        "SoftExudate_Masks",
    ] {
        assert_eq!(
            fs::read_dir(data.raw.join("Seg-set").join(kind))
                .unwrap()
                .count(),
            10,
            "{kind}"
        );
    }
    assert!(data.raw.join("Seg-set/DR_Seg_Grading_Label.csv").is_file());

    let mosaic = directory.path().join("mosaic.png");
    let table =
        fovea(&["data", text(&data.prepared), "--mosaic", text(&mosaic)]).with_code(FINISHED);
    let table = table.prints(&[
        "split", "healthy", "black", "train", "val", "test", "MA", "HE", "EX", "SE",
    ]);
    let drawn = image::open(&mosaic).unwrap();
    assert!(
        drawn.width() > 300 && drawn.height() > 300,
        "{} x {}",
        drawn.width(),
        drawn.height()
    );
    let manifest: Value =
        serde_json::from_slice(&fs::read(data.prepared.join("manifest.json")).unwrap()).unwrap();
    let black: u64 = table_row(&table.stdout, "all", 3);
    let images = manifest["images"].as_array().unwrap().len();
    assert_eq!(images, 10);

    let run = Run::new(&["train.precision=auto"]);
    run.start(2).wait().with_code(FINISHED).prints(&[
        "epoch 2/2",
        "micro-F1",
        "newest checkpoint",
        "finished after step 14",
    ]);
    let hash = run.final_hash();
    assert_eq!(run.steps().len(), 14);
    let metrics = csv(
        &run.path.join("metrics.csv"),
        "timestamp,epoch,f1_micro,hamming,subset_acc,iou,dice,pearson_r,loss,split,level",
    );
    let keys: Vec<_> = metrics
        .iter()
        .map(|row| (row[1].as_str(), row[9].as_str(), row[10].as_str()))
        .collect();
    let expected = [
        ("1", "val", "patch"),
        ("1", "val", "image"),
        ("2", "val", "patch"),
        ("2", "val", "image"),
    ];
    assert_eq!(keys, expected);
    csv(
        &run.path.join("predictions-val.csv"),
        "image_id,row,col,label,p_MA,p_HE,p_EX,p_SE",
    );
    let config = fs::read_to_string(run.path.join("config.toml")).unwrap();
    assert!(
        config.contains("global_size = 64") && config.contains("# "),
        "resolved, with every key explained"
    );

    evaluate(&run);
    predict(&run, directory.path(), images, 9 * images - black as usize);
    report(&run);
    assert_eq!(
        run.final_hash(),
        hash,
        "looking at a run does not change it"
    );
}

/// Reads a number from a line of the label table.
#[track_caller]
fn table_row(table: &str, split: &str, column: usize) -> u64 {
    let line = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some(split))
        .unwrap();
    line.split_whitespace()
        .nth(column + 1)
        .unwrap()
        .parse()
        .unwrap()
}

fn evaluate(run: &Run) {
    let data = text(&data().prepared);
    let eval =
        |more: &[&str]| fovea(&[&["eval", run.text(), data], more].concat()).with_code(FINISHED);
    eval(&[]).prints(&["test", "micro-F1", "best constant", "mean AUROC", "SE F1"]);
    let value: Value = serde_json::from_str(&eval(&["--split", "val", "--json"]).stdout).unwrap();
    assert_eq!(value["split"], "val");
    assert_eq!(value["image"]["samples"], 2);
    // The run's best checkpoint on the validation split scores like the best line of metrics.csv.
    let best = run.metrics();
    let f1 = value["patch"]["f1_micro"].as_f64().unwrap();
    let logged = best
        .iter()
        .filter(|row| row.contains(",val,patch,"))
        .map(|row| row.split(',').nth(1).unwrap().parse::<f64>().unwrap());
    let logged = logged.fold(f64::NEG_INFINITY, f64::max);
    assert!(
        (f1 - logged).abs() < 1e-9,
        "eval says {f1}, metrics.csv {logged}"
    );
    for level in ["patch", "image"] {
        for name in [
            "f1_micro",
            "f1_macro",
            "hamming",
            "subset_acc",
            "iou",
            "dice",
            "loss",
        ] {
            assert!(value[level][name].is_f64(), "{level} {name}: {value:#}");
        }
        assert!(
            value["best_constant"][level]["f1_micro"].is_f64(),
            "{value:#}"
        );
    }
}

fn predict(run: &Run, directory: &Path, images: usize, patches: usize) {
    let out = directory.join("prepared.csv");
    let predict = |checkpoint: &Path, input: &Path| {
        fovea(&[
            "predict",
            text(checkpoint),
            text(input),
            "--out",
            text(&out),
        ])
        .with_code(FINISHED)
    };
    predict(&run.path, &data().prepared).prints(&[&format!("{images} images, {patches} patches")]);
    let (ids, rows) = predictions(&out);
    assert_eq!((ids.len(), rows), (images, patches));

    // Photographs: a JPEG and a PNG of odd sizes, unprepared.
    let photos = directory.join("photos");
    fs::create_dir(&photos).unwrap();
    photograph(701, 487)
        .save_with_format(photos.join("a.jpg"), ImageFormat::Jpeg)
        .unwrap();
    photograph(333, 301).save(photos.join("b.png")).unwrap();
    fs::write(photos.join("notes.txt"), "not a photograph").unwrap();
    let newest = run.path.join("checkpoints/step-00000014");
    predict(&newest, &photos).prints(&["2 images"]);
    let (ids, rows) = predictions(&out);
    assert_eq!(ids, ["a", "b"]);
    // As in training, there are 3 x 3 cells: a circle reaches into all of them.
    assert_eq!(rows, 2 * 9);

    // A bare file of weights gives the same predictions as its checkpoint.
    let precision = [
        "--set",
        "train.precision=f32",
        "--set",
        "data.global_size=64",
    ];
    let with = |checkpoint: &Path, input: &Path| {
        let words = [
            "predict",
            text(checkpoint),
            text(input),
            "--out",
            text(&out),
        ];
        fovea(&[&words[..], &precision].concat()).with_code(FINISHED);
        fs::read_to_string(&out).unwrap()
    };
    let (bare, prepared) = (newest.join("weights.safetensors"), &data().prepared);
    assert_eq!(with(&bare, prepared), with(&newest, prepared));
    // A bare file does not record its working size. A circle in a square of 10 x 10 cells leaves the corners black.
    with(&bare, &photos.join("a.jpg"));
    let (ids, rows) = predictions(&out);
    assert!(ids == ["a"] && (60..100).contains(&rows), "{rows} patches");
}

fn report(run: &Run) {
    fovea(&["report", run.text()])
        .with_code(FINISHED)
        .prints(&["report.html"]);
    let html = fs::read_to_string(run.path.join("report.html")).unwrap();
    let sections = [
        "curves-patch",
        "curves-image",
        "ranking",
        "confusion",
        "samples",
        "training",
        "throughput",
    ];
    for id in sections {
        assert!(
            html.contains(&format!("<section id=\"{id}\"")),
            "no section {id}"
        );
    }
    assert!(
        !html.contains("src=\"http") && !html.contains("href=\"http"),
        "the page stands alone"
    );
    let pngs: Vec<_> = fs::read_dir(run.path.join("report"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(pngs.len() >= 10, "{pngs:?}");
    for png in pngs
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "png"))
    {
        assert!(image::open(png).unwrap().width() > 100, "{}", png.display());
    }
}
