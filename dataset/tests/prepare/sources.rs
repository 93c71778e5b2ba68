//! Files and names as people have them: every kind of picture, any spelling, no file skipped silently.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use image::ImageFormat;

use crate::raw::{
    SIZE, dir, disc, encode, failure, fgadr, folder, ids, mask, options, run, shards, warned, write,
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Prepares a plain dataset and the same one after `change`; the shards must be the same. Ids and warnings.
fn same_after(change: impl FnOnce(&Path)) -> (Vec<String>, Vec<String>) {
    let dir = dir();
    let plain = folder(&dir.path().join("plain"), &NAMES);
    run(&plain, &dir.path().join("out_plain")).unwrap();
    let changed = folder(&dir.path().join("changed"), &NAMES);
    change(&changed);
    let out = dir.path().join("out");
    let (manifest, words) = warned(|| run(&changed, &out));
    assert!(shards(&out) == shards(&dir.path().join("out_plain")));
    let ids = ids(manifest.as_ref().unwrap());
    (ids.into_iter().map(str::to_owned).collect(), words)
}

fn passed_over(words: &[String]) -> Vec<&str> {
    let words = words.iter().filter(|word| word.contains("passed over"));
    words.map(String::as_str).collect()
}

/// The same picture as another kind of file.
fn resave(root: &Path, from: &str, to: &str, format: ImageFormat) {
    let picture = image::load_from_memory(&fs::read(root.join(from)).unwrap()).unwrap();
    let picture = match format {
        ImageFormat::Gif => picture.into_rgb8().into(),
        _ => picture,
    };
    fs::remove_file(root.join(from)).unwrap();
    write(&root.join(to), &encode(picture, format));
}

#[test]
fn every_kind_of_picture_is_taken_for_image_and_mask() {
    let (ids, words) = same_after(|root| {
        resave(root, "images/a.png", "images/a.BMP", ImageFormat::Bmp);
        resave(root, "images/b.png", "images/b.webp", ImageFormat::WebP);
        resave(root, "images/c.png", "images/c.ppm", ImageFormat::Pnm);
        resave(root, "images/d.png", "images/d", ImageFormat::Png);
        resave(root, "images/e.png", "images/e.image", ImageFormat::Tiff);
        resave(root, "masks/MA/a.png", "masks/MA/a.gif", ImageFormat::Gif);
        resave(root, "masks/HE/b.png", "masks/HE/b.dib", ImageFormat::Bmp);
        resave(root, "masks/EX/d.png", "masks/EX/d.PGM", ImageFormat::Pnm);
        resave(root, "masks/EX/e.png", "masks/EX/e", ImageFormat::Tiff);
    });
    assert_eq!(ids, NAMES);
    assert_eq!(passed_over(&words), [""; 0]);
}

#[test]
fn a_healthy_image_of_another_kind_is_not_lost() {
    let dir = dir();
    let src = folder(dir.path(), &NAMES);
    let bmp = encode(disc(9, SIZE, SIZE), ImageFormat::Bmp);
    write(&src.join("images/healthy.bmp"), &bmp);
    let manifest = run(&src, &dir.path().join("out")).unwrap();
    let healthy = manifest.images.iter().find(|i| i.id == "healthy").unwrap();
    assert_eq!((manifest.images.len(), healthy.labels[0].0), (6, 0));
}

#[test]
fn what_is_passed_over_is_counted_and_named() {
    let mut dicom = vec![0; 128];
    dicom.extend(b"DICM");
    let (ids, words) = same_after(|root| {
        for name in [
            "images/notes.txt",
            "images/a.jpg~",
            "README.md",
            "images/deeper/x.png",
        ] {
            write(&root.join(name), b"x");
        }
        write(&root.join("images/e.dcm"), &dicom);
        for n in 0..6 {
            write(&root.join(format!("masks/OD/{n}.png")), b"x");
        }
        for litter in [
            ".DS_Store",
            "images/Thumbs.db",
            "masks/MA/._a.png",
            "masks/MA/.gitkeep",
        ] {
            write(&root.join(litter), b"x");
        }
        symlink(root, root.join("again")).unwrap();
    });
    assert_eq!(ids, NAMES);
    let words = passed_over(&words);
    assert_eq!(
        words,
        [
            "1 file passed over (a link that leads in a circle): again",
            "1 file passed over (no part of layout folder): README.md",
            "in images/ 1 file passed over (a DICOM file: export the photograph as PNG or TIFF, for example with `dcmj2pnm --write-png IN.dcm OUT.png` (package dcmtk)): e.dcm",
            "in images/ 1 file passed over (by its name a backup, a part or another form of a picture): a.jpg~",
            "in images/ 1 file passed over (no picture): notes.txt",
            "in images/deeper/ 1 file passed over (no part of layout folder): x.png",
            "in masks/MA/ 1 file passed over (hidden): .gitkeep",
            "in masks/OD/ 6 files passed over (no part of layout folder): 0.png, 1.png, 2.png, 3.png and 2 more",
        ]
    );
}

#[test]
fn where_absence_means_something_nothing_is_passed_over() {
    let dir = dir();
    let out = dir.path().join("out");
    let src = folder(&dir.path().join("own"), &NAMES);
    let cases: [(&str, &[u8], &str); 4] = [
        (
            "masks/EX/a.xcf",
            b"gimp xcf file",
            "1 file in masks/EX/ cannot be taken for a mask: masks/EX/a.xcf (a GIMP file: export the flattened picture as PNG)",
        ),
        (
            "masks/EX/notes.txt",
            b"x",
            "masks/EX/notes.txt (no picture)",
        ),
        (
            "masks/EX/more/a.png",
            b"x",
            "masks/EX/more/a.png (in a folder of its own)",
        ),
        (
            "masks/EX/z.png",
            b"x",
            "masks/EX/z.png belongs to no image in images/",
        ),
    ];
    for (name, content, expected) in cases {
        write(&src.join(name), content);
        let text = failure(&src, &out, &options());
        assert!(text.contains(expected), "{text}");
        fs::remove_file(src.join(name)).unwrap();
    }
    fs::remove_dir(src.join("masks/EX/more")).unwrap();
    symlink("nowhere", src.join("masks/EX/b.png")).unwrap();
    let text = failure(&src, &out, &options());
    assert!(
        text.contains(
            "1 of its files or folders cannot be used: masks/EX/b.png (a link that leads nowhere)"
        ),
        "{text}"
    );
    fs::remove_file(src.join("masks/EX/b.png")).unwrap();
    symlink("SE", src.join("masks/ex2")).unwrap();
    run(&src, &out).unwrap();
}

#[test]
fn names_that_are_no_utf8_are_names() {
    let (ids, words) = same_after(|root| {
        for (folder, from) in [
            ("images", "a"),
            ("masks/MA", "a"),
            ("masks/SE", "a"),
            ("images", "c"),
            ("masks/MA", "c"),
            ("masks/HE", "c"),
        ] {
            let name = [from.as_bytes(), b"_m\xfcller.png"].concat();
            let folder = root.join(folder);
            fs::rename(
                folder.join(format!("{from}.png")),
                folder.join(OsStr::from_bytes(&name)),
            )
            .unwrap();
        }
    });
    assert_eq!(ids, ["a_müller", "b", "c_müller", "d", "e"]);
    assert_eq!(passed_over(&words), [""; 0]);
}

#[test]
fn names_join_in_any_unicode_form_and_case() {
    let (ids, words) = same_after(|root| {
        let rename = |from: &str, to: &str| fs::rename(root.join(from), root.join(to)).unwrap();
        // A picture as Linux writes its name, masks as macOS does.
        rename("images/a.png", "images/a\u{fc}.png");
        rename("masks/MA/a.png", "masks/MA/au\u{308}.PNG");
        rename("masks/SE/a.png", "masks/SE/au\u{308}.png");
        rename("images/b.png", "images/b.PNG");
        rename("masks/HE/b.png", "masks/HE/B.Png");
        rename("masks/EX/d.png", "masks/EX/d.jpg.png");
        rename("images", "Images");
        rename("masks/MA", "masks/ma");
        rename("masks/HE", "masks/Haemorrhages");
        rename("masks", "Masks");
    });
    assert_eq!(ids, ["a\u{fc}", "b", "c", "d", "e"]);
    assert_eq!(passed_over(&words), [""; 0]);
}

#[test]
fn names_that_fall_together_are_both_named() {
    let dir = dir();
    let out = dir.path().join("out");
    let picture = encode(disc(1, SIZE, SIZE), ImageFormat::Png);
    let refused = |name: &[u8], parts: &[&str]| {
        let src = folder(&dir.path().join("own"), &["a\u{fc}", "b", "c", "d"]);
        let path = src.join(OsStr::from_bytes(name));
        write(&path, &picture);
        let text = failure(&src, &out, &options());
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        fs::remove_dir_all(src).unwrap();
    };
    refused(
        "images/au\u{308}.png".as_bytes(),
        &[
            "images/au\u{308}.png and images/aü.png have the same name but for how its letters are stored",
        ],
    );
    refused(
        b"images/a\xfc.png",
        &["images/aü.png and images/aü.png have the same name\n"],
    );
    refused(
        b"images/b.jpe",
        &["images/b.jpe and images/b.png have the same name but for the extension"],
    );
    refused(b"Images/x.png", &["Images/ and images/ mean the same"]);
    refused(
        b"masks/ma/b.png",
        &["masks/MA/ and masks/ma/ mean the same"],
    );
    refused(
        b"masks/MA/c.tif",
        &["masks/MA/c.tif is the second mask of that image and class, after masks/MA/c.png"],
    );
}

#[test]
fn masks_may_have_their_class_behind_the_name() {
    let (_, words) = same_after(|root| {
        for name in ["MA/a", "MA/c", "HE/b", "EX/d"] {
            let (class, image) = name.split_once('/').unwrap();
            let to = format!("masks/{class}/{image}_{}.png", class.to_lowercase());
            fs::rename(root.join(format!("masks/{name}.png")), root.join(to)).unwrap();
        }
    });
    assert_eq!(passed_over(&words), [""; 0]);
}

/// All masks of `root` in one folder.
fn flatten(root: &Path) {
    for class in crate::raw::CLASSES {
        let folder = root.join("masks").join(class);
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            fs::rename(&path, root.join(format!("masks/{stem}_{class}.png"))).unwrap();
        }
        fs::remove_dir(folder).unwrap();
    }
}

#[test]
fn masks_may_lie_in_one_folder() {
    let dir = dir();
    let plain = folder(&dir.path().join("plain"), &NAMES);
    run(&plain, &dir.path().join("out_plain")).unwrap();
    let flat = folder(&dir.path().join("flat"), &NAMES);
    flatten(&flat);
    let out = dir.path().join("out");
    run(&flat, &out).unwrap();
    assert!(shards(&out) == shards(&dir.path().join("out_plain")));

    let empty = encode(mask(0, 0, 0, 0), ImageFormat::Png);
    let refused = |name: &str, expected: &str| {
        write(&flat.join(name), &empty);
        let text = failure(&flat, &dir.path().join("other"), &options());
        assert!(text.contains(expected), "{text}");
        fs::remove_file(flat.join(name)).unwrap();
    };
    refused(
        "masks/b.png",
        "masks/b.png is no mask of an image in images/ and a class",
    );
    refused(
        "masks/z_MA.png",
        "masks/z_MA.png is no mask of an image in images/ and a class",
    );
    refused("masks/MA/a.png", "second mask of that image and class");
    refused(
        "masks/MA/b_HE.png",
        "masks/MA/b_HE.png lies among the masks of MA, and its name says HE",
    );
    write(&flat.join("masks/notes.txt"), b"x");
    let text = failure(&flat, &dir.path().join("other"), &options());
    assert!(
        text.contains("1 file in masks/ cannot be taken for a mask: masks/notes.txt (no picture)"),
        "{text}"
    );
    fs::remove_file(flat.join("masks/notes.txt")).unwrap();
    fs::remove_dir(flat.join("masks/MA")).unwrap();
    fs::remove_file(flat.join("masks/a_SE.png")).unwrap();
    let text = failure(&flat, &dir.path().join("other"), &options());
    assert!(text.contains("masks/ holds no masks NAME_SE"), "{text}");
}

#[test]
fn grades_are_joined_whatever_the_table_looks_like() {
    let dir = dir();
    let src = fgadr(dir.path(), 6);
    let table = src.join("DR_Seg_Grading_Label.csv");
    let grades = |bytes: &[u8], out: &str| {
        fs::write(&table, bytes).unwrap();
        let (manifest, words) = warned(|| run(&src, &dir.path().join(out)));
        let grades: Vec<_> = manifest.unwrap().images.iter().map(|i| i.grade).collect();
        let words: Vec<String> = words.into_iter().filter(|w| w.contains(".csv")).collect();
        (grades, words)
    };
    let all = |text: &str| {
        (0..6)
            .map(|n| format!("{n:04}_1{text}{n}\n").replace(",5", ",0"))
            .collect::<String>()
    };
    let expected = [0, 1, 2, 3, 4, 0].map(Some);
    let (plain, words) = grades(all(".png,").as_bytes(), "plain");
    assert_eq!((&plain[..], words.len()), (&expected[..], 0));
    assert_eq!(
        grades(all(".PNG,").as_bytes(), "upper"),
        (plain.clone(), vec![])
    );
    let excel: Vec<u8> = format!(
        "\u{feff}Image name;Grade\r\n{}",
        all(".png,").replace(',', ";")
    )
    .encode_utf16()
    .flat_map(u16::to_le_bytes)
    .collect();
    fs::rename(&table, src.join("dr_seg_grading_label.CSV")).unwrap();
    let table = src.join("dr_seg_grading_label.CSV");
    fs::write(&table, excel).unwrap();
    let manifest = run(&src, &dir.path().join("excel")).unwrap();
    assert_eq!(
        manifest.images.iter().map(|i| i.grade).collect::<Vec<_>>(),
        plain
    );

    fs::write(&table, "0000_1.png,3\nx.png,1\nimg/y.png,2\n").unwrap();
    let (manifest, words) = warned(|| run(&src, &dir.path().join("some")));
    assert_eq!(manifest.unwrap().images[0].grade, Some(3));
    let words: Vec<String> = words.into_iter().filter(|w| w.contains(".CSV")).collect();
    assert_eq!(
        words,
        [
            "dr_seg_grading_label.CSV: 2 of the 3 rows name no image: x.png, y.png",
            "dr_seg_grading_label.CSV: 5 of the 6 images have no grade in it: 0001_1, 0002_1, 0003_1, 0004_1, 0005_1",
        ]
    );
    fs::write(&table, "x.png,3\ny.png,1\n").unwrap();
    let text = failure(&src, &dir.path().join("none"), &options());
    assert!(
        text.contains("none of the 2 rows of dr_seg_grading_label.CSV gives a grade to one of the 6 images (the table has `x.png`, the first image is 0000_1.png)"),
        "{text}"
    );
    // As macOS unpacks some downloads.
    fs::remove_file(&table).unwrap();
    fs::create_dir(&table).unwrap();
    fs::write(table.join("DR_Seg_Grading_Label.csv"), all(".png,")).unwrap();
    let text = failure(&src, &dir.path().join("none"), &options());
    assert!(
        text.contains("dr_seg_grading_label.CSV is a folder, and should be the table of grades"),
        "{text}"
    );
}

#[test]
fn masks_of_fgadr_without_an_image_are_named() {
    let dir = dir();
    let src = fgadr(dir.path(), 4);
    write(&src.join("HardExudate_Masks/9999_1.png"), b"x");
    write(&src.join("IRMA_Masks/0000_1.png"), b"x");
    let (done, words) = warned(|| run(&src, &dir.path().join("out")));
    done.unwrap();
    assert_eq!(
        passed_over(&words),
        [
            "in HardExudate_Masks/ 1 file passed over (a mask without an image): 9999_1.png",
            "in IRMA_Masks/ 1 file passed over (a class that is not used): 0000_1.png",
        ]
    );
}
