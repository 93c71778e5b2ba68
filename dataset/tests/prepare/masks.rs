//! Masks: DDR, whose split is published; tables beside masks; masks under every way of fitting their pictures.

use fovea_dataset::{Crop, Dataset, Fit, Manifest, PrepareOptions, Silent, Split, prepare};
use image::{GrayImage, ImageFormat, Luma, RgbImage};

use crate::raw::{dir, disc, encode, failure, fgadr, given, mask, options, write};

fn sizes(manifest: &Manifest) -> [usize; 3] {
    Split::ALL.map(|split| manifest.indices(split).len())
}

#[test]
fn ddr_keeps_its_three_parts() {
    let dir = dir();
    let (src, out) = (dir.path().join("raw"), dir.path().join("out"));
    let root = src.join("DDR-dataset/lesion_segmentation");
    let mut n = 0;
    for (part, masks, count) in [
        ("train", "label", 4),
        ("valid", "segmentation label", 2),
        ("test", "label", 3),
    ] {
        for k in 0..count {
            let name = format!("007-{n:04}-{k}00");
            let photo = encode(disc(n, 64, 64), ImageFormat::Jpeg);
            write(&root.join(format!("{part}/image/{name}.jpg")), &photo);
            for (class, folder) in ["EX", "HE", "MA", "SE"].into_iter().enumerate() {
                let lesion = mask(4 + 16 * class as u32, 3, 3, if k == 0 { 255 } else { 0 });
                let path = format!("{part}/{masks}/{folder}/{name}.tif");
                write(&root.join(path), &encode(lesion, ImageFormat::Tiff));
            }
            n += 1;
        }
    }
    let manifest = prepare(&src, &out, &options(), &Silent).unwrap();
    assert_eq!(
        (manifest.recipe.layout.as_str(), manifest.format_version()),
        ("ddr", 1)
    );
    assert_eq!(sizes(&manifest), [4, 2, 3]);
    let data = Dataset::open(&out).unwrap();
    // EX was drawn in the first cell, HE in the second, MA in the third.
    let labels: Vec<u64> = data.patch_labels(0, 1)[..4]
        .iter()
        .map(|label| label.0)
        .collect();
    assert_eq!(labels, [4, 2, 1, 8]);
    std::fs::remove_dir_all(root.join("valid/segmentation label/SE")).unwrap();
    let text = failure(&src, &dir.path().join("other"), &options());
    assert!(
        text.contains("valid/segmentation label/SE/ holds no masks"),
        "{text}"
    );
}

/// Layouts with masks are known by their folders: a table beside them changes nothing, and `--layout csv` insists.
#[test]
fn masks_go_before_tables_unless_the_user_insists() {
    let dir = dir();
    let src = fgadr(dir.path(), 8);
    let manifest = prepare(&src, &dir.path().join("masks"), &options(), &Silent).unwrap();
    assert_eq!(manifest.recipe.layout, "fgadr");
    let csv = PrepareOptions {
        layout: given("csv"),
        whole_size: Some(32),
        ..options()
    };
    // Its table has no headings, and its masks have the names of the images.
    let manifest = prepare(&src, &dir.path().join("csv"), &csv, &Silent).unwrap();
    assert_eq!(manifest.task.targets()[0].classes.len(), 5);
    assert_eq!(manifest.images.len(), 8);
    let data = Dataset::open(&dir.path().join("csv")).unwrap();
    let pixels = data.image(3).data.as_chunks::<3>().0;
    assert!(
        pixels.iter().any(|p| p[0] > 100 && p[2] < 60),
        "a photograph, no mask"
    );
}

/// A mask follows its picture through every way of fitting it.
#[test]
fn masks_follow_their_pictures_however_they_fit() {
    let dir = dir();
    let src = dir.path().join("raw");
    let (width, height) = (96u32, 64u32);
    let inside = |x: u32, y: u32| (40..56).contains(&x) && (20..44).contains(&y);
    let photo = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(if inside(x, y) { [250; 3] } else { [90, 40, 20] })
    });
    let lesion = GrayImage::from_fn(width, height, |x, y| {
        Luma([if inside(x, y) { 255 } else { 0 }])
    });
    for n in 0..4 {
        write(
            &src.join(format!("images/{n}.png")),
            &encode(photo.clone(), ImageFormat::Png),
        );
        for class in ["MA", "HE", "EX", "SE"] {
            let path = format!("masks/{class}/{n}.png");
            write(&src.join(path), &encode(lesion.clone(), ImageFormat::Png));
        }
    }
    for fit in [Fit::Stretch, Fit::Pad, Fit::Centre] {
        let out = dir.path().join(fit.name());
        let asked = PrepareOptions {
            crop: Some(Crop::None),
            fit: Some(fit),
            ..options()
        };
        prepare(&src, &out, &asked, &Silent).unwrap();
        let data = Dataset::open(&out).unwrap();
        let (mask, pixels) = (data.mask(0).unwrap(), data.image(0).data);
        assert!(mask.contains(&15));
        for (i, bits) in mask.iter().enumerate() {
            let bright = pixels[3 * i + 2];
            // Away from the edge, where pixels are mixed.
            if !(60..=200).contains(&bright) {
                assert_eq!(*bits == 15, bright > 200, "{fit}, pixel {i}: {bright}");
            }
        }
    }
}
