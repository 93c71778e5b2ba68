//! The layouts with labels of whole images: tables, folders of classes, boxes.

use std::collections::BTreeMap;
use std::path::Path;

use fovea_dataset::{
    Crop, Dataset, Fit, Framing, Manifest, PrepareOptions, Silent, Split, TableOptions,
    frame_photo, prepare,
};
use fovea_task::{Kind, Label};
use image::{DynamicImage, ImageFormat};

use crate::raw::{dir, disc, encode, failure, given, options, warned, write, zipped};

/// Without a grid, 32 pixels.
fn whole() -> PrepareOptions {
    PrepareOptions {
        whole_size: Some(32),
        ..options()
    }
}

fn picture(root: &Path, name: &str, n: u32) {
    write(
        &root.join(name),
        &encode(disc(n, 48, 32), ImageFormat::Jpeg),
    );
}

/// As the ODIR subset of a course: one table and one folder of pictures per split, and a form to fill in.
fn odir(root: &Path) {
    let mut n = 0;
    for (table, folder, rows) in [
        ("train", "train", 12),
        ("val", "val", 4),
        ("offsite_test", "offsite_test", 4),
        ("onsite_test_submission", "onsite_test", 5),
    ] {
        let mut text = String::from("id,D,G,A\r\n");
        for row in 0..rows {
            let name = format!("{n}_{}.jpg", if row % 2 == 0 { "left" } else { "right" });
            picture(root, &format!("images/{folder}/{name}"), n);
            let [d, g, a] = match table {
                "onsite_test_submission" => [0, 0, 0],
                _ => [row & 1, row >> 1 & 1, u32::from(row % 4 == 3)],
            };
            text += &format!("{name},{d},{g},{a}\r\n");
            n += 1;
        }
        write(&root.join(format!("{table}.csv")), text.as_bytes());
    }
}

fn sizes(manifest: &Manifest) -> [usize; 4] {
    let [train, val, test] = Split::ALL.map(|split| manifest.indices(split).len());
    [train, val, test, manifest.unlabelled()]
}

#[test]
fn a_table_per_split_is_read_and_a_form_gives_images_without_labels() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    odir(&src);
    let manifest = prepare(&src, &out, &whole(), &Silent).unwrap();
    assert_eq!(
        (manifest.recipe.layout.as_str(), manifest.format_version()),
        ("csv", 3)
    );
    assert_eq!(sizes(&manifest), [12, 4, 4, 5]);
    assert_eq!(
        (manifest.recipe.size, manifest.recipe.patch, manifest.grid),
        (32, 0, 0)
    );
    let stretched = Framing {
        crop: Crop::None,
        fit: Fit::Stretch,
    };
    assert_eq!(manifest.recipe.framing, stretched);
    assert_eq!(Manifest::load(&out).unwrap(), manifest);

    let data = Dataset::open(&out).unwrap();
    let target = &data.task().targets()[0];
    let names: Vec<&str> = target
        .classes
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    assert_eq!((names, target.kind), (vec!["D", "G", "A"], Kind::AnyOf));
    for (i, entry) in data.manifest().images.iter().enumerate() {
        assert_eq!(data.image(i).data.len(), 32 * 32 * 3);
        assert!(data.black(i).is_empty() && data.areas(i).is_empty());
        assert!(data.columns(i).is_empty() && data.group(i).is_none());
        assert_eq!(
            entry.split.is_none(),
            data.label(i, 0) == Label::UNKNOWN,
            "{}",
            entry.id
        );
    }
    let at = |id: &str| {
        data.manifest()
            .images
            .iter()
            .position(|image| image.id == id)
            .unwrap()
    };
    assert_eq!(data.label(at("3_right"), 0), Label(7));
    assert_eq!(data.label(at("2_left"), 0), Label(2));
    let table = data.label_table().to_string();
    assert!(
        table.contains("train       12    0.50  0.50  0.25\n"),
        "{table}"
    );
    assert!(
        table.ends_with(
            "5 more images have no label, and so no split: `fovea predict` scores them."
        ),
        "{table}"
    );
    fovea_dataset::mosaic(&data, &dir.path().join("mosaic.png"), &Default::default()).unwrap();

    // The same from an archive; and nothing changes when it is prepared again.
    let archive = dir.path().join("raw.zip");
    zipped(&src, &archive);
    let again = prepare(&archive, &dir.path().join("zip"), &whole(), &Silent).unwrap();
    assert_eq!(again.blake3(), manifest.blake3());
    assert_eq!(prepare(&src, &out, &whole(), &Silent).unwrap(), manifest);
    let other = PrepareOptions {
        fit: Some(Fit::Centre),
        ..whole()
    };
    let text = failure(&src, &out, &other);
    assert!(
        text.contains("fit stretch there, centre asked for"),
        "{text}"
    );
}

#[test]
fn prepared_pixels_are_those_that_predict_makes() {
    let dir = dir();
    let src = dir.path().join("raw");
    odir(&src);
    for (crop, fit) in [
        (Crop::None, Fit::Stretch),
        (Crop::None, Fit::Pad),
        (Crop::None, Fit::Centre),
        (Crop::Fov, Fit::Pad),
        (Crop::Fov, Fit::Centre),
    ] {
        let out = dir.path().join(format!("{crop}-{fit}"));
        let asked = PrepareOptions {
            crop: Some(crop),
            fit: Some(fit),
            ..whole()
        };
        prepare(&src, &out, &asked, &Silent).unwrap();
        let data = Dataset::open(&out).unwrap();
        for (i, entry) in data.manifest().images.iter().enumerate().take(3) {
            let n: u32 = entry.id.split('_').next().unwrap().parse().unwrap();
            let photo = encode(disc(n, 48, 32), ImageFormat::Jpeg);
            let photo = image::load_from_memory(&photo).unwrap().to_rgb8();
            let made = frame_photo(&photo, data.manifest().recipe.framing, 32, 0).unwrap();
            let near = data.image(i).data.iter().zip(&made.pixels);
            // Two decoders of JPEG differ a little.
            assert!(
                near.clone().all(|(a, b)| a.abs_diff(*b) <= 4),
                "{crop} {fit}"
            );
            assert_eq!(near.count(), 32 * 32 * 3);
        }
    }
}

#[test]
fn one_table_with_groups_divides_them_and_keeps_pictures_that_no_row_names() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    let mut text = String::from("ID;Patient Age;N;D;filename\n");
    for n in 0..20u32 {
        for side in ["left", "right"] {
            let name = format!("{n}_{side}.jpg");
            picture(
                &src,
                &format!("pictures/{name}"),
                2 * n + u32::from(side == "left"),
            );
            text += &format!("{n};60;{};{};{name}\n", n % 2, 1 - n % 2);
        }
    }
    text += "99;60;1;0;99_left.jpg\n";
    for name in ["extra_a.jpg", "extra_b.jpg"] {
        picture(
            &src,
            &format!("pictures/{name}"),
            77 + u32::from(name == "extra_a.jpg"),
        );
    }
    write(&src.join("full_df.csv"), text.as_bytes());
    let (manifest, words) = warned(|| prepare(&src, &out, &whole(), &Silent));
    let manifest = manifest.unwrap();
    let has = |part: &str| words.iter().any(|word| word.contains(part));
    assert!(
        has("1 of the 41 rows name no picture that is there: 99_left.jpg"),
        "{words:?}"
    );
    assert!(
        has("2 pictures are in no table, kept without a label: extra_a, extra_b"),
        "{words:?}"
    );
    assert!(!has("look like one patient"), "{words:?}");
    assert_eq!(sizes(&manifest), [28, 6, 6, 2]);
    let mut splits: BTreeMap<&str, Vec<Split>> = BTreeMap::new();
    for image in manifest.images.iter().filter(|image| image.split.is_some()) {
        let group = image.group.as_deref().unwrap();
        splits.entry(group).or_default().push(image.split.unwrap());
    }
    assert_eq!(splits.len(), 20);
    assert!(splits.values().all(|splits| splits[0] == splits[1]));

    // Columns that the user names.
    let asked = |labels: &[&str], image: Option<&str>| PrepareOptions {
        tables: TableOptions {
            labels: labels.iter().map(|name| (*name).to_owned()).collect(),
            image_column: image.map(str::to_owned),
            ..TableOptions::default()
        },
        ..whole()
    };
    let one = prepare(&src, &dir.path().join("one"), &asked(&["D"], None), &Silent).unwrap();
    assert_eq!(one.task.targets()[0].classes.len(), 1);
    for (asked, why) in [
        (
            asked(&["G"], None),
            "full_df.csv: has no column `G`, but ID, Patient Age, N, D, filename",
        ),
        (asked(&[], Some("file")), "no table has a column `file`"),
        (asked(&[], Some("N")), "column `N` names no picture"),
    ] {
        let text = failure(&src, &dir.path().join("none"), &asked);
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn tables_that_contradict_are_refused_with_their_line() {
    let dir = dir();
    let src = dir.path().join("raw");
    for n in 0..4 {
        picture(&src, &format!("p{n}.jpg"), n);
    }
    let refused = |tables: &[(&str, &str)], why: &str| {
        for (name, text) in tables {
            write(&src.join(name), text.as_bytes());
        }
        let text = failure(&src, &dir.path().join("out"), &whole());
        assert!(text.contains(why), "{why} in {text}");
        for (name, _) in tables {
            std::fs::remove_file(src.join(name)).unwrap();
        }
    };
    refused(
        &[("a.csv", "id,D,G\np0,1,0\np1,0,1\np0,0,0\n")],
        "a.csv, line 4: `p0` has two labels",
    );
    refused(
        &[("a.csv", "id,D,G\np0,1,0\n"), ("b.csv", "id,D\np1,1\n")],
        "b.csv has the columns D of another table, but not G",
    );
    refused(
        &[
            ("train.csv", "id,D,G\np0,1,0\n"),
            ("test.csv", "id,D,G\np1,1,x\n"),
        ],
        "test.csv, line 2: `x` in `G` is not 0 or 1",
    );
    refused(
        &[("a.csv", "id,D\nx,1\n")],
        "no column of its tables names pictures that are there: a.csv (id, D)",
    );
    refused(
        &[("my_submission.csv", "id,D\np0,0\n")],
        "is a form for a submission",
    );
    refused(
        &[("a.csv", "id,age\np0,40\np1,50\n")],
        "no column holds labels",
    );
    refused(
        &[("a.csv", "id,D,G\np0,1,0,1\n")],
        "a.csv, line 2: has 4 fields, the first line 3",
    );
}

/// A folder per class in two parts, as the brain-tumour set has it.
fn classes(root: &Path, parts: &[(&str, u32)]) {
    let mut n = 0;
    for (part, count) in parts {
        for class in ["notumor", "glioma", "pituitary"] {
            for k in 0..*count {
                let name = format!("{part}/{class}/{k:03}.jpg");
                let grey = DynamicImage::from(disc(n, 40, 40)).into_luma8();
                write(&root.join(name), &encode(grey, ImageFormat::Jpeg));
                n += 1;
            }
        }
    }
}

#[test]
fn folders_of_classes_keep_their_test_part_and_draw_validation_from_the_other() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    classes(&src.join("Brain"), &[("Training", 20), ("Testing", 5)]);
    let manifest = prepare(&src, &out, &whole(), &Silent).unwrap();
    assert_eq!(manifest.recipe.layout, "classes");
    let target = &manifest.task.targets()[0];
    let names: Vec<&str> = target
        .classes
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    assert_eq!(
        (names, target.kind),
        (vec!["glioma", "notumor", "pituitary"], Kind::OneOf)
    );
    // 60 images of training as 70 to 15; stratified.
    assert_eq!(sizes(&manifest), [49, 11, 15, 0]);
    let val = &manifest.splits[&Split::Val].image_label_sums;
    assert!(val.iter().all(|images| (3..=4).contains(images)), "{val:?}");
    for image in &manifest.images {
        let is_test = image.id.starts_with("Testing/");
        assert_eq!(image.split == Some(Split::Test), is_test, "{}", image.id);
        let class = image.id.split('/').nth(1).unwrap();
        let number = target.classes.iter().position(|c| c.name == class).unwrap();
        assert_eq!(image.labels, [Label(number as u64)], "{}", image.id);
    }
    // Grey pictures have three equal channels.
    let data = Dataset::open(&out).unwrap();
    let pixels = data.image(0).data.as_chunks::<3>().0;
    assert!(pixels.iter().all(|p| p[0] == p[1] && p[1] == p[2]));
    assert!(pixels.iter().any(|p| p[0] > 60));

    // All in one place.
    let flat = dir.path().join("flat");
    classes(&flat, &[("set", 10)]);
    let manifest = prepare(&flat, &dir.path().join("flat-out"), &whole(), &Silent).unwrap();
    assert_eq!(sizes(&manifest), [21, 5, 4, 0]);
    assert_eq!(manifest.images[0].id, "glioma/000");

    // A part that spells a class in another way.
    let odd = dir.path().join("odd");
    classes(&odd, &[("train", 2), ("test", 2)]);
    std::fs::rename(odd.join("test/glioma"), odd.join("test/Glioma")).unwrap();
    let text = failure(&odd, &dir.path().join("odd-out"), &whole());
    assert!(
        text.contains("the folders Glioma, glioma are spelled almost alike"),
        "{text}"
    );
}

#[test]
fn a_published_header_with_boxes_gives_columns() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    let mut text = String::from(
        "image_name,interesting/not interesting,num_person,num_vehicles,avg_person_conf,total_boxes,bounding_boxes\n",
    );
    for n in 0..10u32 {
        picture(&src, &format!("images/scene {n}.jpg"), n);
        let boxes = match n {
            0 => {
                r#"[{"bbox": [12, 8, 24, 16], "score": 0.4, "label": "car"}, {"bbox": [0, 0, 48, 32], "score": 0.9, "label": "person"}]"#
            }
            _ => "[]",
        };
        let label = if n % 2 == 0 {
            "interesting"
        } else {
            "not interesting"
        };
        text += &format!(
            "scene {n},{label},{n},1,0.{n},2,\"{}\"\n",
            boxes.replace('"', "\"\"")
        );
    }
    write(&src.join("labels.csv"), text.as_bytes());
    let with = |max_boxes| PrepareOptions {
        tables: TableOptions {
            max_boxes,
            ..TableOptions::default()
        },
        ..whole()
    };
    let manifest = prepare(&src, &out, &with(10), &Silent).unwrap();
    assert_eq!(manifest.recipe.layout, "boxes");
    let data = Dataset::open(&out).unwrap();
    assert_eq!(data.manifest(), &manifest);
    let columns = data.task().columns();
    assert_eq!(columns.len(), 4 + 8 * 10);
    assert_eq!(
        columns[..5],
        [
            "num_person",
            "num_vehicles",
            "avg_person_conf",
            "total_boxes",
            "box 1 x1"
        ]
    );
    assert_eq!(columns[83], "box 10 other");
    let [person, car] = [
        [0.0, 0.0, 1.0, 1.0, 0.9, 1.0, 0.0, 0.0],
        [0.25, 0.25, 0.5, 0.5, 0.4, 0.0, 1.0, 0.0],
    ];
    let expected = [&[0.0, 1.0, 0.0, 2.0], &person[..], &car[..], &[0.0; 64]].concat();
    assert_eq!(data.columns(0), expected);
    assert_eq!(data.columns(7)[..4], [7.0, 1.0, 0.7, 2.0]);
    let names: Vec<&str> = data.task().targets()[0]
        .classes
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["not interesting", "interesting"]);
    assert_eq!([data.label(0, 0), data.label(1, 0)], [Label(1), Label(0)]);

    let other = failure(&src, &out, &with(2));
    assert!(other.contains("labels of another task"), "{other}");
    // As a plain table: the boxes are no labels, and nothing else is.
    let plain = PrepareOptions {
        layout: given("csv"),
        tables: TableOptions {
            labels: vec!["interesting/not interesting".to_owned()],
            ..TableOptions::default()
        },
        ..whole()
    };
    let plain = prepare(&src, &dir.path().join("plain"), &plain, &Silent).unwrap();
    assert!(plain.task.columns().is_empty() && plain.recipe.layout == "csv");
}
