//! Groups, names that look like pairs, and labels that look like mistakes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fovea_dataset::{Dataset, PrepareOptions, Silent, Split, oddities, prepare};
use image::{GrayImage, ImageFormat, Luma, RgbImage};

use crate::raw::{SIZE, dir, disc, encode, failure, folder, options, run, warned, write};

fn eyes() -> Vec<String> {
    let patients = (0..10).flat_map(|n| ["left", "right"].map(|side| format!("P{n:03}_{side}")));
    patients.collect()
}

fn own(root: &Path, names: &[String]) -> std::path::PathBuf {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    folder(root, &names)
}

fn by(pattern: &str) -> PrepareOptions {
    PrepareOptions {
        group_by: Some(pattern.to_owned()),
        ..options()
    }
}

#[test]
fn both_eyes_of_a_patient_stay_together_when_asked() {
    let dir = dir();
    let src = own(&dir.path().join("raw"), &eyes());
    let (apart, words) = warned(|| run(&src, &dir.path().join("apart")));
    let apart = apart.unwrap();
    let pairs = words
        .iter()
        .find(|word| word.contains("--group-by"))
        .unwrap();
    assert!(
        pairs.contains("look like one patient each, and lie in different splits (P00")
            && pairs.ends_with(
                "prepare with --group-by '^(.+)_(?:left|right)$' to keep each patient in one split"
            ),
        "{pairs}"
    );
    assert_eq!(apart.recipe.group_by, None);

    let out = dir.path().join("together");
    let (together, words) = warned(|| prepare(&src, &out, &by("^(.+)_(?:left|right)$"), &Silent));
    let together = together.unwrap();
    assert!(
        !words.iter().any(|word| word.contains("--group-by")),
        "{words:?}"
    );
    let mut sides: BTreeMap<&str, Vec<Split>> = BTreeMap::new();
    for image in &together.images {
        sides
            .entry(&image.id[..4])
            .or_default()
            .push(image.split.unwrap());
    }
    assert!(sides.values().all(|splits| splits[0] == splits[1]));
    let sizes = Split::ALL.map(|split| together.indices(split).len());
    assert_eq!(sizes.iter().sum::<usize>(), 20);
    assert!(
        (12..=16).contains(&sizes[0]) && sizes[1..].iter().all(|size| (2..=4).contains(size)),
        "{sizes:?}"
    );
    // The recipe is in the manifest, and in what a further run compares.
    let text = fs::read_to_string(out.join("manifest.json")).unwrap();
    assert!(text.contains(r#""group_by": "^(.+)_(?:left|right)$","#));
    assert!(
        !fs::read_to_string(dir.path().join("apart/manifest.json"))
            .unwrap()
            .contains("group_by")
    );
    assert_eq!(
        prepare(&src, &out, &by("^(.+)_(?:left|right)$"), &Silent).unwrap(),
        together
    );
    let text = failure(&src, &out, &options());
    assert!(
        text.contains("made otherwise: group-by `^(.+)_(?:left|right)$` there, none asked for"),
        "{text}"
    );
}

#[test]
fn patterns_that_cannot_work_are_refused() {
    let dir = dir();
    let src = own(&dir.path().join("raw"), &eyes());
    let out = dir.path().join("out");
    let text = failure(&src, &out, &by("("));
    assert!(
        text.contains("--group-by is `(`, but must be a regular expression"),
        "{text}"
    );
    let text = failure(&src, &out, &by("^P"));
    assert!(
        text.contains("must leave 3 groups for train, val and test, and puts the 20 images into 1"),
        "{text}"
    );
    let text = failure(&src, &out, &by("left|right"));
    assert!(text.contains("puts the 20 images into 2"), "{text}");
    let (done, words) = warned(|| prepare(&src, &out, &by("^(P00[0-8])_"), &Silent));
    done.unwrap();
    assert_eq!(
        words[0],
        "--group-by `^(P00[0-8])_` does not match 2 of the 20 images; each of them is a group of its own: P009_left, P009_right"
    );
}

#[test]
fn labels_that_cannot_be_meant_so_are_named() {
    let dir = dir();
    let src = own(&dir.path().join("raw"), &eyes());
    let save = |name: &str, picture: image::DynamicImage| {
        write(&src.join(name), &encode(picture, ImageFormat::Png));
    };
    // Lesions dark on bright; more than half of the eye; black; the same photograph twice.
    let inverted = GrayImage::from_fn(SIZE, SIZE, |x, y| {
        Luma([if x == 30 && y < 40 { 0 } else { 255 }])
    });
    save("masks/HE/P000_left.png", inverted.into());
    let large = GrayImage::from_fn(SIZE, SIZE, |x, y| {
        Luma([if (8..56).contains(&x) && (8..56).contains(&y) {
            255
        } else {
            0
        }])
    });
    save("masks/EX/P001_left.png", large.into());
    save("images/P002_left.png", RgbImage::new(SIZE, SIZE).into());
    // No eye: one colour; next to nothing.
    let plain = RgbImage::from_pixel(SIZE, SIZE, image::Rgb([90, 60, 30]));
    save("images/P003_left.png", plain.into());
    for name in [
        "images/P003_right.png",
        "masks/MA/P003_right.png",
        "masks/HE/P003_right.png",
        "masks/EX/P003_right.png",
        "masks/SE/P003_right.png",
    ] {
        if src.join(name).exists() {
            save(
                name,
                RgbImage::from_pixel(20, 9, image::Rgb([90, 60, 30])).into(),
            );
        }
    }
    let twin = disc(8, SIZE, SIZE);
    save("images/P009_right.png", twin.clone().into());
    assert_eq!(twin, disc(8, SIZE, SIZE));
    let out = dir.path().join("out");
    let (done, words) = warned(|| run(&src, &out));
    done.unwrap();
    let data = Dataset::open(&out).unwrap();
    let told = oddities(&data);
    for expected in [
        "HE of 1 image looks inverted: the mask covers nearly all, or the black around the eye, too (P000_left)",
        "EX of 1 image covers more than half of the field of view (P001_left)",
        "1 image is black all over: P002_left",
        "pixel by pixel the same: P004_left (",
    ] {
        assert!(
            told.iter().any(|word| word.contains(expected)),
            "{expected}: {told:?}"
        );
    }
    // `prepare` said the same, and what only the photographs show.
    let no_eye = "2 images cannot show an eye: P003_left (one colour all over), P003_right (only 20 x 9 pixels): remove them, or bring photographs";
    assert!(words.iter().any(|word| word == no_eye), "{words:?}");
    assert!(told.iter().all(|word| words.contains(word)), "{words:?}");
}

#[test]
fn a_dataset_as_it_should_be_is_not_spoken_of() {
    let dir = dir();
    let names: Vec<String> = (0..40).map(|n| format!("eye {n:02}")).collect();
    let src = own(&dir.path().join("raw"), &names);
    let (done, words) = warned(|| run(&src, &dir.path().join("out")));
    done.unwrap();
    assert_eq!(words, [""; 0]);
}
