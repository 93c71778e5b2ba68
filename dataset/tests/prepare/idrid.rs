//! IDRiD as published.

use std::fs;
use std::path::Path;

use fovea_dataset::{Dataset, PrepareOptions, Silent, Split, prepare};
use image::ImageFormat;

use crate::raw::{SIZE, dir, disc, encode, failure, given, mask, options, run, warned, write};

const IMAGES: &str = "1. Original Images";
const MASKS: &str = "2. All Segmentation Groundtruths";
const PARTS: [&str; 2] = ["a. Training Set", "b. Testing Set"];
const FOLDERS: [(&str, &str); 5] = [
    ("1. Microaneurysms", "MA"),
    ("2. Haemorrhages", "HE"),
    ("3. Hard Exudates", "EX"),
    ("4. Soft Exudates", "SE"),
    ("5. Optic Disc", "OD"),
];

/// Images from..to in `part`: number `n` has class `c` when bit `c` of `n` is set; every one has an optic disc.
fn part(root: &Path, part: usize, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let image = encode(disc(n, SIZE, SIZE), ImageFormat::Png);
        write(
            &root.join(format!("{IMAGES}/{}/IDRiD_{n:02}.jpg", PARTS[part])),
            &image,
        );
        for (class, (folder, code)) in FOLDERS.iter().enumerate() {
            if n >> class & 1 == 1 || class == 4 {
                let picture = encode(mask(18, class as u32 * 12 + 3, 3, 76), ImageFormat::Tiff);
                let name = format!("{MASKS}/{}/{folder}/IDRiD_{n:02}_{code}.tif", PARTS[part]);
                write(&root.join(name), &picture);
            }
        }
    }
}

fn of_split(manifest: &fovea_dataset::Manifest, split: Split) -> Vec<&str> {
    let images = manifest.images.iter().filter(|i| i.split == Some(split));
    images.map(|i| i.id.as_str()).collect()
}

#[test]
fn the_published_parts_are_train_and_test() {
    let dir = dir();
    let root = dir.path().join("raw/A. Segmentation/A. Segmentation");
    part(&root, 0, 1..35);
    part(&root, 1, 40..56);
    let out = dir.path().join("out");
    let (manifest, words) = warned(|| run(&dir.path().join("raw"), &out));
    let manifest = manifest.unwrap();
    assert_eq!(manifest.recipe.layout, "idrid");
    let numbers =
        |range: std::ops::Range<u32>| range.map(|n| format!("IDRiD_{n:02}")).collect::<Vec<_>>();
    assert_eq!(of_split(&manifest, Split::Test), numbers(40..56));
    // 34 are divided as 70 to 15.
    assert_eq!(
        Split::ALL.map(|split| of_split(&manifest, split).len()),
        [28, 6, 16]
    );
    let data = Dataset::open(&out).unwrap();
    for (i, image) in manifest.images.iter().enumerate() {
        let n: u8 = image.id["IDRiD_".len()..].parse().unwrap();
        assert_eq!(data.label(i, 0).0, u64::from(n & 15), "{}", image.id);
    }
    let passed: Vec<&String> = words.iter().filter(|w| w.contains("passed over")).collect();
    assert_eq!(passed.len(), 2, "{words:?}");
    assert!(
        passed[0].contains("a. Training Set/5. Optic Disc/ 34 files passed over (the optic disc is no class of lesions): IDRiD_01_OD.tif"),
        "{passed:?}"
    );
    // The seed decides on train and val alone.
    let other = PrepareOptions {
        seed: 7,
        ..options()
    };
    let reseeded = prepare(
        &dir.path().join("raw"),
        &dir.path().join("other"),
        &other,
        &Silent,
    )
    .unwrap();
    assert_eq!(of_split(&reseeded, Split::Test), numbers(40..56));
    assert_ne!(
        of_split(&reseeded, Split::Val),
        of_split(&manifest, Split::Val)
    );

    // The outer folder cut away, and the layout given.
    let cut = PrepareOptions {
        layout: given("idrid"),
        ..options()
    };
    let cut = prepare(&root, &dir.path().join("cut"), &cut, &Silent).unwrap();
    assert_eq!(cut, manifest);
}

#[test]
fn one_part_alone_is_divided_into_three() {
    let dir = dir();
    part(dir.path(), 0, 1..25);
    let manifest = run(dir.path(), &dir.path().join("out")).unwrap();
    assert_eq!(
        Split::ALL.map(|split| of_split(&manifest, split).len()),
        [17, 4, 3]
    );
}

#[test]
fn a_class_folder_that_is_missing_is_no_healthy_class() {
    let dir = dir();
    let root = dir.path().join("raw");
    part(&root, 0, 1..20);
    part(&root, 1, 20..30);
    let out = dir.path().join("out");
    let refused = |path: &str, expected: &str| {
        let path = root.join(path);
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        let text = failure(&root, &out, &options());
        assert!(text.contains(expected), "{text}");
        fs::rename(&aside, &path).unwrap();
    };
    refused(
        "2. All Segmentation Groundtruths/b. Testing Set/4. Soft Exudates",
        "there are images in 1. Original Images/b. Testing Set/, but 2. All Segmentation Groundtruths/b. Testing Set/4. Soft Exudates/ is missing or empty",
    );
    refused(
        "2. All Segmentation Groundtruths/b. Testing Set",
        "but 2. All Segmentation Groundtruths/b. Testing Set/ is missing or empty",
    );
    refused(
        "1. Original Images/b. Testing Set/IDRiD_22.jpg",
        "2. Haemorrhages/IDRiD_22_HE.tif belongs to no image in 1. Original Images/b. Testing Set/",
    );
    let misplaced = root.join(MASKS).join(PARTS[0]).join("1. Microaneurysms");
    fs::copy(
        misplaced.join("IDRiD_01_MA.tif"),
        misplaced.join("IDRiD_02_HE.tif"),
    )
    .unwrap();
    let text = failure(&root, &out, &options());
    assert!(
        text.contains("IDRiD_02_HE.tif lies among the masks of MA, and its name says HE"),
        "{text}"
    );
}

#[test]
fn a_group_on_both_sides_of_the_published_split_is_refused() {
    let dir = dir();
    part(dir.path(), 0, 1..20);
    part(dir.path(), 1, 20..30);
    let by = |pattern: &str| PrepareOptions {
        group_by: Some(pattern.to_owned()),
        ..options()
    };
    let text = failure(dir.path(), &dir.path().join("out"), &by("_[0-9]([0-9])"));
    assert!(
        text.contains("puts images of both published parts into the group `0`"),
        "{text}"
    );
    let manifest = prepare(
        dir.path(),
        &dir.path().join("tens"),
        &by("_([0-9])"),
        &Silent,
    )
    .unwrap();
    assert_eq!(
        Split::ALL.map(|split| of_split(&manifest, split).len()),
        [10, 9, 10]
    );
}
