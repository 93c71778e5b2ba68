//! Datasets of other tasks than the four lesions, in layouts of their own.

use std::path::Path;

use fovea_dataset::raw::{Evidence, Folders, PictureName, RawImage, RawSet, Scan};
use fovea_dataset::{
    Dataset, Error, Layout, LayoutChoice, Manifest, PrepareOptions, Result, Silent, Split, prepare,
};
use fovea_task::{Class, Kind, Label, Level, Target, Task};
use image::ImageFormat;

use crate::raw::{dir, disc, encode, failure, fgadr, mask, options, run, tree, write};

const STAGES: [&str; 3] = ["none", "mild", "severe"];

fn target(name: &str, level: Level, kind: Kind, classes: &[&str]) -> Target {
    let class = |name: &&str| Class {
        name: (*name).to_owned(),
        title: format!("{name} retinopathy"),
        colour: [255, 128, 0],
    };
    Target {
        name: name.to_owned(),
        level,
        kind,
        classes: classes.iter().map(class).collect(),
        union_of_cells: false,
    }
}

/// A folder per class, as tutorials on classification have it: the folder's name is the label.
struct Stages;

impl Layout for Stages {
    fn name(&self) -> &'static str {
        "stages"
    }

    fn looks_like(&self) -> &'static str {
        "none/, mild/, severe/ with pictures"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        folders.named(folder, &STAGES).len() == STAGES.len()
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let stage = target("stage", Level::Image, Kind::OneOf, &STAGES);
        let mut images = Vec::new();
        for (class, name) in STAGES.iter().enumerate() {
            for folder in scan.folders().named(root, &[*name]) {
                let of_class = |picture: &PictureName| RawImage {
                    labels: vec![(0, Label(class as u64))],
                    ..picture.image()
                };
                images.extend(scan.pictures(folder).iter().map(of_class));
            }
        }
        let task = Task::new(vec![stage]).map_err(|e| scan.error(e, "correct the task"))?;
        Ok(RawSet { task, images })
    }
}

fn given(layout: &'static dyn Layout) -> PrepareOptions {
    PrepareOptions {
        layout: LayoutChoice::Given(layout),
        ..options()
    }
}

/// Ten pictures of each stage.
fn stages(root: &Path) {
    for n in 0..30 {
        let path = root.join(format!("{}/{n:02}.png", STAGES[n as usize % 3]));
        write(&path, &encode(disc(n, 64, 64), ImageFormat::Png));
    }
}

#[test]
fn a_layout_of_labels_alone_gives_a_dataset_of_its_task() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    stages(&src);
    write(&src.join("readme.txt"), b"x");
    let manifest = prepare(&src, &out, &given(&Stages), &Silent).unwrap();
    assert_eq!(manifest.format_version(), 2);
    assert_eq!(
        (manifest.recipe.layout.as_str(), manifest.recipe.mask),
        ("stages", false)
    );
    assert_eq!(Manifest::load(&out).unwrap(), manifest);

    let data = Dataset::open(&out).unwrap();
    assert_eq!(
        data.task().targets(),
        [target("stage", Level::Image, Kind::OneOf, &STAGES)]
    );
    for (i, image) in data.manifest().images.iter().enumerate() {
        let n: u64 = image.id.parse().unwrap();
        assert_eq!(data.label(i, 0), Label(n % 3), "{}", image.id);
        assert_eq!(
            data.image(i).data,
            disc(n as u32, 64, 64).as_raw().as_slice()
        );
        assert_eq!(data.black(i).len(), 16);
        assert!(data.areas(i).is_empty() && data.patch_labels(i, 1).is_empty());
        assert_eq!(data.mask(i), None);
    }
    let train = &manifest.splits[&Split::Train];
    assert_eq!((train.images, train.healthy), (21, 0));
    assert_eq!(
        (&train.label_sums, &train.image_label_sums),
        (&vec![], &vec![7, 7, 7])
    );
    let table = data.label_table().to_string();
    let total = "all         30       480        0    0.33  0.33   0.33";
    assert!(
        table.contains(total) && table.contains(" none  mild severe\n"),
        "{table}"
    );
    fovea_dataset::mosaic(&data, &dir.path().join("mosaic.png"), &Default::default()).unwrap();

    // The same once more changes nothing; other labels of the same files are another dataset.
    let before = tree(&out);
    prepare(&src, &out, &given(&Stages), &Silent).unwrap();
    assert_eq!(tree(&out), before);
    std::fs::rename(src.join("mild/01.png"), src.join("none/01.png")).unwrap();
    let text = failure(&src, &out, &given(&Stages));
    assert!(
        text.contains("other raw images (30 there, 30 here"),
        "{text}"
    );
}

/// Vessels, arteries or veins per cell, and whether the image can be judged, which the last does not say.
struct Vessels;

impl Layout for Vessels {
    fn name(&self) -> &'static str {
        "vessels"
    }

    fn looks_like(&self) -> &'static str {
        "photos/, artery/, vein/"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        folders.named(folder, &["photos", "artery", "vein"]).len() == 3
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let all = |scan: &mut Scan, name: &str| -> Result<Vec<usize>> {
            let folder = scan.folder(root, &[name])?.unwrap();
            let pictures = scan.pictures(folder);
            Ok(pictures.iter().map(|picture| picture.position).collect())
        };
        let (artery, vein) = (all(scan, "artery")?, all(scan, "vein")?);
        let folder = scan.folder(root, &["photos"])?.unwrap();
        let photos = scan.pictures(folder);
        let images = photos.iter().enumerate().map(|(n, picture)| RawImage {
            cells: Evidence::Masks(vec![Some(artery[n]), Some(vein[n])]),
            labels: if n + 1 < photos.len() {
                vec![(1, Label(n as u64 % 2))]
            } else {
                vec![]
            },
            ..picture.image()
        });
        let targets = vec![
            target("vessels", Level::Patch, Kind::AnyOf, &["artery", "vein"]),
            target("quality", Level::Image, Kind::AnyOf, &["gradable"]),
        ];
        Ok(RawSet {
            task: Task::new(targets).unwrap(),
            images: images.collect(),
        })
    }
}

#[test]
fn masks_of_other_classes_and_missing_labels_come_back() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    for n in 0..6 {
        for (folder, picture) in [
            ("photos", encode(disc(n, 64, 64), ImageFormat::Png)),
            ("artery", encode(mask(3, 3, 4, 255), ImageFormat::Png)),
            ("vein", encode(mask(20, 3, 2 + n, 255), ImageFormat::Png)),
        ] {
            write(&src.join(format!("{folder}/{n}.png")), &picture);
        }
    }
    prepare(&src, &out, &given(&Vessels), &Silent).unwrap();
    let data = Dataset::open(&out).unwrap();
    assert_eq!(data.areas(2)[..4], [16, 0, 0, 16]);
    assert_eq!(data.patch_labels(2, 1)[..3], [Label(1), Label(2), Label(0)]);
    assert_eq!(data.patch_labels(2, 17), [Label(0); 16]);
    let labels: Vec<Label> = (0..6).map(|i| data.label(i, 1)).collect();
    let (no, yes) = (Label(0), Label(1));
    assert_eq!(labels, [no, yes, no, yes, no, Label::UNKNOWN]);
    let text = std::fs::read_to_string(out.join("manifest.json")).unwrap();
    assert!(
        text.contains("null") && !text.contains(&u64::MAX.to_string()),
        "{text}"
    );

    // A manifest that does not fit its own task is refused.
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(out.join("manifest.json"), text.replacen(from, to, 1)).unwrap();
        let error = Dataset::open_unverified(&out).unwrap_err();
        assert!(matches!(error, Error::Manifest { .. }), "{error}");
        error.to_string()
    };
    let null = "        null\n";
    for (from, to, why) in [
        (
            null,
            "        2\n",
            "image 5: label 2 is beyond the 1 classes of target `quality`",
        ),
        (
            null,
            "        1, 1\n",
            "image 5: has 2 labels, the task 1 targets at image level",
        ),
        ("\"labels\"", "\"names\"", "image 0: has no label"),
        ("\"task\"", "\"tasks\"", "has no task"),
        ("\"any_of\"", "\"none_of\"", "unknown variant `none_of`"),
        (
            "\"label_sums\": [",
            "\"label_sums\": [7,",
            "label_sums has 3 numbers, the task 2 classes",
        ),
        (
            "\"quality\"",
            "\"vessels\"",
            "two targets are called `vessels`",
        ),
    ] {
        let text = with(from, to);
        assert!(text.contains(why), "{why} in {text}");
    }
}

/// [`Stages`] that says something its task does not allow.
struct Mistaken(&'static str);

impl Layout for Mistaken {
    fn name(&self) -> &'static str {
        "mistaken"
    }

    fn looks_like(&self) -> &'static str {
        Stages.looks_like()
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        Stages.is_at(folders, folder)
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let mut set = Stages.read(scan, root)?;
        let image = &mut set.images[3];
        match self.0 {
            "label" => image.labels = vec![(0, Label(3))],
            "target" => image.labels = vec![(1, Label(0))],
            "twice" => image.labels = vec![(0, Label(0)), (0, Label(1))],
            "mask" => image.cells = Evidence::Masks(vec![None]),
            "cells" => set.task = Task::lesions(),
            _ => {
                let names: Vec<String> = (0..9).map(|n| format!("c{n}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let wide = target("wide", Level::Patch, Kind::AnyOf, &names);
                set.task = Task::new(vec![wide]).unwrap();
            }
        }
        Ok(set)
    }
}

#[test]
fn a_layout_that_contradicts_its_task_is_told_so() {
    let dir = dir();
    let src = dir.path().join("raw");
    stages(&src);
    let told = |layout: &'static Mistaken, why: &str| {
        let text = failure(&src, &dir.path().join("out"), &given(layout));
        assert!(
            text.contains("layout mistaken: ") && text.contains(why),
            "{why} in {text}"
        );
    };
    told(
        &Mistaken("label"),
        "image 09 has label 3 for target `stage` with 3 classes",
    );
    told(&Mistaken("target"), "a label for target 1 of a task with 1");
    told(&Mistaken("twice"), "two labels for target `stage`");
    told(
        &Mistaken("mask"),
        "masks of 1 classes for the 0 of its task",
    );
    told(
        &Mistaken("cells"),
        "masks of 0 classes for the 4 of its task",
    );
    told(
        &Mistaken("wide"),
        "target `wide` has 9 classes, a mask holds at most 8",
    );
}

/// As version 1.0.0 of the program wrote it: no task, one number per image.
#[test]
fn a_manifest_of_version_1_is_one_of_lesions() {
    let dir = dir();
    let out = dir.path().join("out");
    run(&fgadr(dir.path(), 5), &out).unwrap();
    let text = std::fs::read_to_string(out.join("manifest.json")).unwrap();
    let head = "{\n  \"format\": \"fovea-dataset\",\n  \"format_version\": 1,\n  \"classes\": [\n    \"MA\",\n    \"HE\",\n    \"EX\",\n    \"SE\"\n  ],\n  \"layout\": \"fgadr\",\n";
    assert!(text.starts_with(head), "{text}");
    let image = "      \"id\": \"0003_1\",\n";
    let entry = text.split(image).nth(1).unwrap();
    let entry = entry.split('}').next().unwrap();
    assert!(
        entry.contains("      \"row\": 3,\n      \"label\": 3,\n      \"grade\": 3\n"),
        "{entry}"
    );
    assert!(
        !text.contains("labels\"") && !text.contains("task"),
        "{text}"
    );

    let data = Dataset::open(&out).unwrap();
    assert_eq!(
        (data.task(), data.manifest().format_version()),
        (&Task::lesions(), 1)
    );
    assert_eq!(
        (0..5).map(|i| data.label(i, 0).0).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    // The cells of row c and column 1 have class c.
    assert_eq!(
        [1, 5].map(|cell| data.patch_labels(3, 1)[cell]),
        [Label(1), Label(2)]
    );
}
