//! Whole reports of made-up runs: complete, young, damaged and not runs at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fovea_dataset::Dataset;
use fovea_run::config::Config;
use fovea_run::metrics::log::MetricsLog;
use fovea_run::metrics::{MetricsRow, compute};
use fovea_run::predictions::{self as run_predictions, Prediction};
use fovea_run::run_dir::RunDir;
use fovea_task::{Class, Kind, Label, Level, Target, Task};

use super::fixture::{self, Fake};
use super::predictions;
use super::predictions::tests::{line, read, write};
use super::run::Run;
use super::shape::assert_texts_fit;
use super::{Figures, pictures, write_report};

const SMALL: Fake = Fake {
    epochs: 5,
    ranks: 2,
    steps_per_epoch: 6,
};

/// A prepared dataset of 8 x 8 cells, made once.
fn data() -> &'static Path {
    static DATA: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let out = fixture::dataset(dir.path(), 16, 256, 32);
        (dir, out)
    };
    &DATA.get_or_init(make).1
}

fn fake(fake: Fake) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fixture::run(dir.path(), data(), fake);
    dir
}

fn html(dir: &Path) -> String {
    fs::read_to_string(dir.join("report.html")).unwrap()
}

#[test]
fn a_run_whose_coordinator_is_gone_is_not_said_to_train() {
    let dir = tempfile::tempdir().unwrap();
    fixture::run(dir.path(), data(), SMALL);
    let path = dir.path().join("status.json");
    let status = fs::read_to_string(&path).unwrap();
    fs::write(&path, status.replace("\"finished\"", "\"training\"")).unwrap();
    let html = fs::read_to_string(write_report(dir.path()).unwrap().html).unwrap();
    assert!(html.contains("stopped without a word"));
}

#[test]
fn a_finished_run_has_everything_in_one_file() {
    let dir = fake(SMALL);
    fs::create_dir(dir.path().join("report")).unwrap();
    let stale = dir.path().join("report/old-figure.png");
    fs::write(&stale, b"").unwrap();
    let paths = write_report(dir.path()).unwrap();
    assert_eq!(paths.notes, [""; 0]);
    let page = html(dir.path());
    for id in [
        "curves-patch",
        "curves-image",
        "ranking",
        "confusion",
        "classification",
        "samples",
        "training",
        "throughput",
    ] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    for outside in [
        "http://", "https://", "<script", "<link", "url(", "src=\"/", "src=\".",
    ] {
        assert!(!page.contains(outside), "the page refers to {outside}");
    }
    assert!(page.matches("src=\"data:image/jpeg;base64,").count() >= 3);
    assert!(page.contains("d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"));
    assert_eq!(
        page.matches("<svg").count(),
        page.matches("aria-label=\"").count() - 2,
        "every figure has words"
    );
    let slugs: Vec<_> = paths
        .pngs
        .iter()
        .map(|p| p.file_stem().unwrap().to_str().unwrap())
        .collect();
    for slug in [
        "patch-f1-micro",
        "image-loss",
        "patch-class-auroc",
        "roc-patch",
        "pr-image",
        "confusion-patch",
        "throughput-samples",
        "throughput-times",
        "loss-steps",
        "learning-rate",
        "sample-1",
    ] {
        assert!(slugs.contains(&slug), "{slug} is not among {slugs:?}");
    }
    for png in &paths.pngs {
        let picture = image::open(png).unwrap().into_rgb8();
        assert!(picture.width() >= 700 && picture.height() >= 300, "{png:?}");
        let first = picture.get_pixel(0, 0);
        assert!(
            picture.pixels().filter(|p| *p != first).count() > 2000,
            "{png:?} is empty"
        );
    }
    assert!(!stale.exists());
    let again = write_report(dir.path()).unwrap();
    assert_eq!(html(dir.path()), page, "the same run gives the same bytes");
    assert_eq!(again, paths);
}

#[test]
fn every_text_of_every_figure_fits() {
    for fake_run in [
        SMALL,
        Fake {
            epochs: 1,
            ranks: 1,
            steps_per_epoch: 1,
        },
        Fake {
            epochs: 40,
            ranks: 12,
            steps_per_epoch: 3,
        },
    ] {
        let dir = fake(fake_run);
        let run = Run::load(dir.path()).unwrap();
        let figures = Figures::of(&run);
        assert!(figures.charts().count() > 20);
        for chart in figures.charts() {
            assert_texts_fit(&chart.drawing(true), &chart.slug);
            assert_texts_fit(&chart.drawing(false), &chart.slug);
        }
    }
}

#[test]
fn best_epoch_follows_the_watched_metric() {
    let dir = fake(SMALL);
    let mut run = Run::load(dir.path()).unwrap();
    let value = |run: &Run, level: Level, name: &str| -> Vec<(u32, f64)> {
        let metric = *fovea_run::config::MetricName::ALL
            .iter()
            .find(|m| m.name() == name)
            .unwrap();
        let target: &Target = run.task.at(level).next().unwrap();
        run.history(fovea_dataset::Split::Val, target)
            .map(|r| (r.epoch, r.metrics.get(metric).unwrap()))
            .collect()
    };
    let f1 = value(&run, Level::Patch, "f1_micro");
    let best = f1.iter().fold(f1[0], |b, v| if v.1 > b.1 { *v } else { b });
    assert_eq!(run.best_epoch(), Some(best.0));
    assert_eq!(
        run.scores_of(run.task.cells().unwrap()).unwrap().epoch,
        Some(best.0),
        "the fixture keeps the best predictions"
    );
    run.config.set("early_stopping.metric=\"loss\"").unwrap();
    run.config.set("early_stopping.level=\"image\"").unwrap();
    let loss = value(&run, Level::Image, "loss");
    let best = loss
        .iter()
        .fold(loss[0], |b, v| if v.1 < b.1 { *v } else { b });
    assert_eq!(run.best_epoch(), Some(best.0));
}

#[test]
fn a_run_that_never_started_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("config.toml"),
        Config::default().to_toml_documented(),
    )
    .unwrap();
    let paths = write_report(dir.path()).unwrap();
    assert!(paths.pngs.is_empty());
    assert_eq!(paths.notes.len(), 3, "{:?}", paths.notes);
    let page = html(dir.path());
    assert!(page.contains("never started") && page.contains("metrics.csv is missing"));
    assert!(!page.contains("<svg") && !page.contains("<nav"));
}

#[test]
fn what_a_young_run_lacks_is_said() {
    let dir = fake(Fake {
        epochs: 1,
        ranks: 1,
        steps_per_epoch: 1,
    });
    fs::remove_file(dir.path().join("predictions-val.csv")).unwrap();
    fs::write(dir.path().join("status.json"), "{").unwrap();
    let paths = write_report(dir.path()).unwrap();
    assert_eq!(paths.notes.len(), 2, "{:?}", paths.notes);
    let page = html(dir.path());
    assert!(page.contains("state unknown") && page.contains("No validation predictions yet"));
    assert!(!page.contains("id=\"ranking\"") && !page.contains("id=\"samples\""));
    // The counts in metrics.csv still give the constant to compare with.
    assert!(page.contains("vs. best constant"));
}

#[test]
fn a_dataset_that_is_gone_or_another_costs_only_the_pictures() {
    let dir = fake(SMALL);
    let config = dir.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace(&data().display().to_string(), "/nowhere/data"),
    )
    .unwrap();
    let note = || pictures::scenes(&Run::load(dir.path()).unwrap()).unwrap_err();
    assert_eq!(
        note(),
        "No sample pictures: there is no prepared dataset at /nowhere/data (data.path in config.toml)."
    );
    let paths = write_report(dir.path()).unwrap();
    assert_eq!(paths.notes, [note()]);
    assert!(html(dir.path()).contains("/nowhere/data"));

    fs::write(&config, text).unwrap();
    let predictions = dir.path().join("predictions-val.csv");
    let mut lines = read(&predictions).unwrap();
    lines.push(line(&lines[0].image_id, Some((8, 0)), 0, [0.5; 4]));
    write(&predictions, &lines);
    assert!(
        note().contains("name cells outside the 8 x 8 grid"),
        "{}",
        note()
    );
    for line in &mut lines {
        line.image_id.push('x');
    }
    write(&predictions, &lines);
    assert!(
        note().contains("no predicted image is in the dataset"),
        "{}",
        note()
    );
}

#[test]
fn relative_data_is_found_from_the_run() {
    let parent = tempfile::tempdir().unwrap();
    let run_dir = parent.path().join("runs/a <b>&");
    fixture::run(&run_dir, data(), SMALL);
    std::os::unix::fs::symlink(data(), parent.path().join("prepared")).unwrap();
    let config = run_dir.join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace(&data().display().to_string(), "prepared"),
    )
    .unwrap();
    assert_eq!(write_report(&run_dir).unwrap().notes, [""; 0]);
    let page = html(&run_dir);
    assert!(page.contains("<h1>a &lt;b&gt;&amp;<") && !page.contains("a <b>"));
}

#[test]
fn what_is_not_a_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| write_report(path).unwrap_err().to_string();
    let absent = dir.path().join("absent");
    assert!(
        message(&absent).starts_with(&format!("{}: there is no such directory", absent.display()))
    );
    assert!(message(dir.path()).contains("it has no config.toml"));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(message(&file).contains("this is a file"));
    for path in [&absent, &file] {
        assert!(message(path).contains("\n  help: "));
    }
    assert!(!dir.path().join("report.html").exists());
}

#[test]
fn damage_is_an_error_and_leaves_the_earlier_report() {
    let dir = fake(SMALL);
    write_report(dir.path()).unwrap();
    let before = html(dir.path());
    for (file, column) in [
        ("metrics.csv", 2),
        ("predictions-val.csv", 4),
        ("throughput.csv", 4),
    ] {
        let path = dir.path().join(file);
        let good = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
        let mut fields: Vec<&str> = lines[2].split(',').collect();
        fields[column] = "oops";
        lines[2] = fields.join(",");
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let message = write_report(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains(file) && message.contains("line 3") && message.contains("\n  help: "),
            "{message}"
        );
        assert_eq!(html(dir.path()), before);
        fs::write(&path, good).unwrap();
    }
    let path = dir.path().join("predictions-val.csv");
    let mut lines = read(&path).unwrap();
    lines.push(line("another", None, 0, [0.1, f32::NAN, 0.1, 0.1]));
    write(&path, &lines);
    let message = write_report(dir.path()).unwrap_err().to_string();
    assert!(message.contains("the probability is NaN"), "{message}");
}

#[test]
fn a_configuration_of_another_version_costs_only_its_facts() {
    let dir = fake(SMALL);
    let config = dir.path().join("config.toml");
    fs::write(&config, "[future]\nkey = 1\n").unwrap();
    let notes = Run::load(dir.path()).unwrap().notes;
    assert!(
        notes[0].contains("The configuration could not be read") && notes[0].contains("future"),
        "{notes:?}"
    );
}

/// A run that grades images, with one class each; it has no cells.
#[test]
fn a_run_of_another_task_is_reported_by_its_own_classes() {
    let dir = tempfile::tempdir().unwrap();
    let files = RunDir::new(dir.path());
    let mut config = Config::preset("demo").unwrap();
    config.set("early_stopping.level=\"image\"").unwrap();
    config.data.path = data().display().to_string();
    let photographs = Dataset::open_unverified(data()).unwrap();
    let photographs = &photographs.manifest().images;
    fs::write(files.config(), config.to_toml_documented()).unwrap();
    let class = |name: &str| Class {
        name: name.to_owned(),
        title: name.to_owned(),
        colour: [9; 3],
    };
    let grade = Target {
        name: "grade".to_owned(),
        level: Level::Image,
        kind: Kind::OneOf,
        classes: ["none", "mild", "moderate", "severe", "proliferative"]
            .map(class)
            .into(),
        union_of_cells: false,
    };
    let task = Task::new(vec![grade]).unwrap();
    files.keep_task(&task).unwrap();
    let lines: Vec<Prediction> = (0..40u64)
        .map(|i| Prediction {
            image_id: match photographs.get(i as usize) {
                Some(image) => image.id.clone(),
                None => format!("eye-{i}"),
            },
            target: 0,
            cell: None,
            label: if i == 39 {
                Label::UNKNOWN
            } else {
                Label(i % 5)
            },
            probabilities: (0..5)
                .map(|c| if c == (i % 7) % 5 { 0.6 } else { 0.1 })
                .collect(),
            note: None,
        })
        .collect();
    let columns = run_predictions::Columns::Label;
    run_predictions::write(&files.predictions(), &task, &lines, columns).unwrap();
    let table = predictions::scored(&lines, 0);
    let mut log = MetricsLog::open(&files.metrics(), &task).unwrap();
    for epoch in 1..4 {
        let loss = 1.0 / f64::from(epoch);
        let metrics = compute(&task.targets()[0], &table, &[], loss).unwrap();
        let row = MetricsRow {
            timestamp: "2025-03-01T10:00:00Z".to_owned(),
            epoch,
            split: fovea_dataset::Split::Val,
            target: "grade".to_owned(),
            metrics,
        };
        log.append(&[row]).unwrap();
    }

    let run = Run::load(dir.path()).unwrap();
    let scores = run.scores_of(&task.targets()[0]).unwrap();
    assert_eq!((scores.metrics.samples, scores.epoch), (39, Some(3)));
    for chart in Figures::of(&run).charts() {
        assert_texts_fit(&chart.drawing(true), &chart.slug);
    }
    let paths = write_report(dir.path()).unwrap();
    let names = paths
        .pngs
        .iter()
        .map(|p| p.file_name().unwrap().to_str().unwrap());
    let names: Vec<&str> = names.collect();
    for name in [
        "grade-f1-micro.png",
        "grade-class-auroc.png",
        "roc-grade.png",
        "confusion-grade.png",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert_eq!(
        paths.notes.len(),
        1,
        "no steps are recorded: {:?}",
        paths.notes
    );
    let page = html(dir.path());
    assert!(page.matches("src=\"data:image/jpeg;base64,").count() > 3);
    assert!(
        page.contains("micro 0.") && page.contains("macro 0."),
        "ROC curves"
    );
    for words in [
        "<section id=\"curves-grade\">",
        "<h2>Images (grade) over epochs</h2>",
        "Cohen's kappa",
        "the most probable counts as predicted",
        "39 images (grade) of epoch 3",
        "<section id=\"classification\">",
        "    accuracy ",
        "AUROC, one class against the rest: micro 0.",
        "<section id=\"mistakes\">",
        "true: none, predicted: ",
        "images (grade), true class mild",
    ] {
        assert!(page.contains(words), "{words}");
    }
    for absent in ["curves-patch", "id=\"samples\"", "patches"] {
        assert!(!page.contains(absent), "{absent}");
    }
}
