//! Raw layouts, and what comes out of them.

use std::fs;

use fovea_dataset::{
    Dataset, MosaicOptions, PrepareOptions, Silent, Split, mosaic, mosaic_photos, prepare,
};
use fovea_task::Label;
use image::{GrayImage, ImageFormat, Luma, RgbImage};

use crate::raw::{
    self, SIZE, dir, disc, encode, failure, fgadr, mask, options, run, tree, write, zipped,
};

#[test]
fn labels_areas_and_pixels_are_those_of_the_raw_images() {
    let dir = dir();
    let src = fgadr(dir.path(), 24);
    let out = dir.path().join("out");
    let manifest = run(&src, &out).unwrap();
    let data = Dataset::open(&out).unwrap();
    assert_eq!(data.manifest(), &manifest);
    assert_eq!(
        (data.len(), data.grid(), data.patch(), data.size()),
        (24, 4, 16, 64)
    );
    for n in 0..24u32 {
        let i = n as usize;
        let entry = &manifest.images[i];
        assert_eq!(
            (entry.id.as_str(), entry.grade),
            (format!("{n:04}_1").as_str(), Some(n as u8 % 5))
        );
        assert_eq!(data.label(i, 0), Label(u64::from(n & 15)));
        assert_eq!(data.image(i).data, disc(n, SIZE, SIZE).as_raw());
        for class in 0..4 {
            let cell = class * 4 + 1;
            let expected = if n >> class & 1 == 1 { 9 } else { 0 };
            assert_eq!(data.areas(i)[cell * 4 + class], expected);
            assert_eq!(
                data.patch_labels(i, 9)[cell],
                Label(if expected > 0 { 1 << class } else { 0 })
            );
            assert_eq!(data.patch_labels(i, 10), [Label(0); 16]);
            let pixel = (class * 16 + 4) * 64 + 19 + i % 8;
            assert_eq!(
                data.mask(i).unwrap()[pixel],
                if expected > 0 { 1 << class } else { 0 }
            );
        }
    }
    let sizes = Split::ALL.map(|split| data.indices(split).len());
    assert_eq!(sizes, [17, 4, 3]);
    let total = data.label_table().total;
    assert_eq!(
        (total.images, total.patches, total.label_sums),
        (24, 384, vec![12, 12, 12, 8])
    );
    assert_eq!(total.positive_rates[0], 0.5);
    let text = data.label_table().to_string();
    assert!(
        text.contains("train       17") && text.contains("all         24"),
        "{text}"
    );
}

#[test]
fn an_archive_and_a_renamed_folder_give_the_same_bytes() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let archive = dir.path().join("fgadr.zip");
    zipped(dir.path(), &archive);
    let from_dir = dir.path().join("from_dir");
    run(&src, &from_dir).unwrap();
    run(&archive, &dir.path().join("from_zip")).unwrap();
    fs::rename(src.join("Hemohedge_Masks"), src.join("Hemorrhage_Masks")).unwrap();
    // The folder above, and one thread.
    let options = PrepareOptions {
        workers: 1,
        ..options()
    };
    let only_seg_set = dir.path().join("above");
    fs::create_dir(&only_seg_set).unwrap();
    fs::rename(&src, only_seg_set.join("Seg-set")).unwrap();
    prepare(
        &only_seg_set,
        &dir.path().join("renamed"),
        &options,
        &Silent,
    )
    .unwrap();
    let expected = tree(&from_dir);
    assert_eq!(expected.len(), 4, "3 shards and a manifest");
    assert_eq!(tree(&dir.path().join("from_zip")), expected);
    assert_eq!(tree(&dir.path().join("renamed")), expected);
}

#[test]
fn soft_edges_count_from_128_also_in_colour() {
    let dir = dir();
    let src = fgadr(dir.path(), 3);
    let edge = GrayImage::from_fn(SIZE, SIZE, |x, y| {
        Luma([if y == 0 { (x * 2 + 64) as u8 } else { 0 }])
    });
    let colour: RgbImage = image::DynamicImage::from(edge.clone()).into_rgb8();
    write(
        &src.join("SoftExudate_Masks/0000_1.png"),
        &encode(edge, ImageFormat::Png),
    );
    write(
        &src.join("SoftExudate_Masks/0001_1.png"),
        &encode(colour, ImageFormat::Png),
    );
    let out = dir.path().join("out");
    run(&src, &out).unwrap();
    let data = Dataset::open(&out).unwrap();
    for i in [0, 1] {
        // Column x has the value 64 + 2 x: from column 32 on it is lesion.
        let soft: Vec<u16> = (0..4).map(|cell| data.areas(i)[cell * 4 + 3]).collect();
        assert_eq!(soft, [0, 0, 16, 16]);
    }
}

#[test]
fn a_folder_of_photographs_is_cut_to_the_disc() {
    let dir = dir();
    let src = dir.path().join("own");
    // A disc of 120 pixels in a picture of 200 x 120, lesions at known places.
    let lesion = |x: u32, y: u32, edge: u32, value: u8| {
        GrayImage::from_fn(200, 120, |px, py| {
            Luma([
                if (x..x + edge).contains(&px) && (y..y + edge).contains(&py) {
                    value
                } else {
                    0
                },
            ])
        })
    };
    write(
        &src.join("images/a.png"),
        &encode(disc(1, 200, 120), ImageFormat::Png),
    );
    write(
        &src.join("images/b.jpg"),
        &encode(disc(2, 200, 120), ImageFormat::Jpeg),
    );
    write(
        &src.join("images/c.tif"),
        &encode(disc(3, 200, 120), ImageFormat::Tiff),
    );
    write(&src.join("images/notes.txt"), b"not a picture");
    write(
        &src.join("masks/MA/a.png"),
        &encode(lesion(100, 60, 1, 255), ImageFormat::Png),
    );
    write(
        &src.join("masks/HE/b.png"),
        &encode(lesion(45, 55, 10, 76), ImageFormat::Png),
    );
    write(
        &src.join("masks/EX/c.tif"),
        &encode(lesion(120, 20, 8, 1), ImageFormat::Tiff),
    );
    write(
        &src.join("masks/SE/c.tif"),
        &encode(lesion(0, 0, 0, 0), ImageFormat::Tiff),
    );
    let out = dir.path().join("out");
    let manifest = run(&src, &out).unwrap();
    assert_eq!(manifest.recipe.layout, "folder");
    let data = Dataset::open(&out).unwrap();
    assert_eq!([0, 1, 2].map(|i| data.label(i, 0).0), [1, 2, 4]);
    // The disc spans columns 40..160, so pixel (100, 60) lands in the middle, cell (2, 2), and (45, 55) at the left.
    assert_eq!(
        data.areas(0)[(2 * 4 + 2) * 4],
        1,
        "one pixel of 120 is still one of 64"
    );
    let he: u16 = data.areas(1).iter().skip(1).step_by(4).sum();
    assert!(
        (20..=40).contains(&he),
        "100 pixels at (64 / 120)^2 are about 28, not {he}"
    );
    assert!(data.areas(1)[4 * 4 + 1] > 0);
    // The disc reaches the edges of the prepared image in the middle, and its corners are dark.
    let image = data.image(1);
    let brightness = |x: usize, y: usize| image.data[(y * 64 + x) * 3];
    assert!(brightness(2, 32) > 90 && brightness(61, 32) > 90 && brightness(1, 1) < 20);
    // With a seed and limits the choice is the same; what differs is told.
    let other = PrepareOptions {
        layout: raw::given("fgadr"),
        ..options()
    };
    let text = failure(&src, &dir.path().join("other"), &other);
    assert!(
        text.contains("looked for")
            && text.contains("fgadr: Original_Images/")
            && text.contains("and found: images"),
        "{text}"
    );
}

#[test]
fn folders_that_do_not_fit_are_told_what_is_missing() {
    let dir = dir();
    let src = dir.path().join("own");
    let out = dir.path().join("out");
    for name in ["a", "b"] {
        write(
            &src.join(format!("images/{name}.png")),
            &encode(disc(1, SIZE, SIZE), ImageFormat::Png),
        );
    }
    let empty = encode(mask(0, 0, 0, 0), ImageFormat::Png);
    for class in ["MA", "HE", "EX"] {
        write(&src.join(format!("masks/{class}/a.png")), &empty);
    }
    assert!(failure(&src, &out, &options()).contains("masks/SE/ holds no masks"));
    write(&src.join("masks/SE/c.png"), &empty);
    assert!(failure(&src, &out, &options()).contains("masks/SE/c.png belongs to no image"));
    fs::rename(src.join("masks/SE/c.png"), src.join("masks/SE/b.png")).unwrap();
    write(
        &src.join("images/b.tif"),
        &encode(disc(1, SIZE, SIZE), ImageFormat::Tiff),
    );
    assert!(
        failure(&src, &out, &options())
            .contains("images/b.png and images/b.tif have the same name")
    );
    fs::remove_file(src.join("images/b.tif")).unwrap();
    run(&src, &out).unwrap();
}

#[test]
fn fgadr_that_is_not_whole_is_told_what_is_missing() {
    let dir = dir();
    let src = fgadr(dir.path(), 3);
    let out = dir.path().join("out");
    fs::remove_file(src.join("SoftExudate_Masks/0001_1.png")).unwrap();
    assert!(
        failure(&src, &out, &options())
            .contains("1 masks are missing: 0001_1.png in SoftExudate_Masks")
    );
    fs::remove_dir_all(src.join("SoftExudate_Masks")).unwrap();
    assert!(failure(&src, &out, &options()).contains("no masks of SE in SoftExudate_Masks"));
    let src = fgadr(dir.path(), 3);
    write(&src.join("Hemorrhage_Masks/0000_1.png"), b"x");
    assert!(
        failure(&src, &out, &options())
            .contains("masks of HE in both Hemohedge_Masks and Hemorrhage_Masks")
    );
    let src = fgadr(dir.path(), 3);
    fs::remove_dir_all(src.join("Hemorrhage_Masks")).unwrap();
    write(
        &src.join("DR_Seg_Grading_Label.csv"),
        b"0000_1.png,2\n0001_1.png,7\n",
    );
    let text = failure(&src, &out, &options());
    assert!(
        text.contains("DR_Seg_Grading_Label.csv, line 2: `7` is no grade"),
        "{text}"
    );
}

#[test]
fn the_mosaic_shows_lesions_in_their_colours() {
    let dir = dir();
    let out = dir.path().join("out");
    run(&fgadr(dir.path(), 16), &out).unwrap();
    let data = Dataset::open_unverified(&out).unwrap();
    let picture = dir.path().join("mosaic.png");
    mosaic(&data, &picture, &MosaicOptions::default()).unwrap();
    let picture = image::open(&picture).unwrap().into_rgb8();
    for colour in data.task().cell_classes().iter().map(|class| class.colour) {
        let count = picture.pixels().filter(|pixel| pixel.0 == colour).count();
        assert!(count > 500, "{colour:?} is on {count} pixels");
    }
    let options = MosaicOptions {
        columns: 0,
        ..MosaicOptions::default()
    };
    let text = mosaic(&data, &dir.path().join("x.png"), &options)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("columns is 0, but must be 1 to 32\n  help: "),
        "{text}"
    );
}

#[test]
fn photographs_are_drawn_with_their_black_cells() {
    let dir = dir();
    let photos = dir.path().join("photos");
    for n in 0..3 {
        let name = photos.join(format!("eye {n}.jpg"));
        write(&name, &encode(disc(n, 200, 120), ImageFormat::Jpeg));
    }
    let out = dir.path().join("photos.png");
    let options = MosaicOptions {
        columns: 4,
        tile: 64,
        ..MosaicOptions::default()
    };
    mosaic_photos(&photos, &out, SIZE, 8, &options).unwrap();
    let picture = image::open(&out).unwrap().into_rgb8();
    // Blue over black: the corners outside the disc.
    let blue = picture
        .pixels()
        .filter(|p| p.0[2] > 90 && p.0[0] < 60)
        .count();
    assert!(blue > 1000, "{blue}");
    write(&photos.join("eye 3.jpg"), b"not a photograph");
    let text = mosaic_photos(&photos, &out, SIZE, 8, &options)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("eye 3.jpg: is no picture that is read"),
        "{text}"
    );
}
