//! Bad input: each kind with its message, and never a panic.

use std::fs;

use fovea_dataset::{Dataset, Error, MAX_BAD_FILES, Manifest, PrepareOptions, Silent, prepare};
use image::ImageFormat;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::raw::{FOLDERS, dir, disc, encode, failure, fgadr, options, run, tree, write, zipped};

#[test]
fn sources_that_are_not_there_or_hold_nothing() {
    let dir = dir();
    let out = dir.path().join("out");
    let text = failure(&dir.path().join("none"), &out, &options());
    assert!(
        text.contains("raw dataset") && text.contains("none does not exist"),
        "{text}"
    );
    let empty = dir.path().join("empty");
    fs::create_dir_all(empty.join("deeper")).unwrap();
    let text = failure(&empty, &out, &options());
    assert!(
        text.contains("empty holds no files")
            && text.contains("fgadr: ")
            && text.contains("folder: "),
        "{text}"
    );
    write(&empty.join("pictures/a.png"), b"x");
    let text = failure(&empty, &out, &options());
    assert!(
        text.contains("its layout is not known; looked for")
            && text.contains("and found: pictures"),
        "{text}"
    );
    assert!(
        !out.exists(),
        "nothing is created for a source that cannot be read"
    );
}

#[test]
fn options_that_cannot_work_are_refused() {
    let dir = dir();
    let src = fgadr(dir.path(), 1);
    let out = dir.path().join("out");
    let cases = [
        (
            PrepareOptions {
                size: 1000,
                patch: 128,
                ..options()
            },
            "--size is 1000, but must be a multiple of --patch 128",
        ),
        (
            PrepareOptions {
                patch: 256,
                ..options()
            },
            "--patch is 256, but must be 8 to 255",
        ),
        (
            PrepareOptions {
                patch: 0,
                ..options()
            },
            "--patch is 0, but",
        ),
        (
            PrepareOptions {
                size: 8,
                ..options()
            },
            "--size is 8, but must be 16 (--patch) to 8192",
        ),
        (
            PrepareOptions {
                min_lesion_pixels: 0,
                ..options()
            },
            "--min-lesion-pixels is 0, but must be 1 to 256",
        ),
        (
            PrepareOptions {
                shard_images: 0,
                ..options()
            },
            "shard_images is 0, but",
        ),
    ];
    for (options, expected) in cases {
        let text = failure(&src, &out, &options);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn every_bad_file_is_named_and_the_good_shards_are_kept() {
    let dir = dir();
    let src = fgadr(dir.path(), 20);
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();

    let image = src.join("Original_Images/0005_1.png");
    let whole = fs::read(&image).unwrap();
    fs::write(&image, &whole[..whole.len() - 40]).unwrap();
    let flipped = src.join("HardExudate_Masks/0006_1.png");
    let whole_mask = fs::read(&flipped).unwrap();
    let mut bytes = whole_mask.clone();
    bytes[whole_mask.len() - 20] ^= 4;
    fs::write(&flipped, bytes).unwrap();
    let other_size = src.join("SoftExudate_Masks/0013_1.png");
    let whole_other = fs::read(&other_size).unwrap();
    fs::write(&other_size, encode(disc(0, 40, 30), ImageFormat::Png)).unwrap();

    let out = dir.path().join("out");
    let text = failure(&src, &out, &options());
    assert!(text.contains("3 of the 20 images in"), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[1].ends_with("Original_Images/0005_1.png: the PNG ends too early (truncated)"),
        "{text}"
    );
    assert!(
        lines[2].contains("HardExudate_Masks/0006_1.png: damaged PNG: "),
        "{text}"
    );
    assert!(
        lines[3].ends_with("SoftExudate_Masks/0013_1.png: is 40 x 30 pixels, its image 64 x 64"),
        "{text}"
    );
    assert!(lines[4].starts_with("  help: "), "{text}");
    assert!(matches!(Dataset::open(&out), Err(Error::Unfinished { .. })));

    // Shards 0, 2 and 4 have no bad image; they are kept, and the rest is made when the files are mended.
    let kept: Vec<_> = tree(&out)
        .into_iter()
        .filter(|(name, _)| name.starts_with("shard-"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        kept,
        [
            "shard-00000.safetensors",
            "shard-00002.safetensors",
            "shard-00004.safetensors"
        ]
    );
    fs::write(&image, whole).unwrap();
    fs::write(&flipped, whole_mask).unwrap();
    fs::write(&other_size, whole_other).unwrap();
    run(&src, &out).unwrap();
    assert_eq!(tree(&out), tree(&clean));
}

#[test]
fn a_wholly_damaged_source_is_not_read_to_its_end() {
    let dir = dir();
    let src = fgadr(dir.path(), 60);
    for n in 0..60 {
        fs::write(src.join(format!("Original_Images/{n:04}_1.png")), b"").unwrap();
    }
    match prepare(&src, &dir.path().join("out"), &options(), &Silent) {
        Err(Error::BadFiles {
            files,
            total: 60,
            more: true,
            ..
        }) => {
            assert_eq!(files.len(), MAX_BAD_FILES);
            assert!(files.iter().all(|file| file.reason == "the file is empty"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_with_four_bad_masks_is_one_image() {
    let dir = dir();
    let src = fgadr(dir.path(), 4);
    for folder in FOLDERS {
        fs::write(src.join(folder).join("0002_1.png"), b"").unwrap();
    }
    let text = failure(&src, &dir.path().join("out"), &options());
    assert!(text.contains("1 of the 4 images in"), "{text}");
    assert_eq!(text.matches("the file is empty").count(), 4, "{text}");
}

#[test]
fn what_is_wrong_with_the_input_is_told_from_a_failing_machine() {
    let dir = dir();
    let src = fgadr(dir.path(), 4);
    fs::write(src.join("Original_Images/0002_1.png"), b"").unwrap();
    assert!(run(&src, &dir.path().join("out")).unwrap_err().is_usage());
    assert!(
        run(&dir.path().join("none"), &dir.path().join("out"))
            .unwrap_err()
            .is_usage()
    );
    let failed = |number: i32| std::io::Error::from_raw_os_error(number);
    let (input_output, no_space) = (failed(5), failed(28));
    assert!(!Error::io("read", "raw", input_output).is_usage());
    assert!(!Error::writing("out", 1, no_space).is_usage());
}

#[test]
fn removing_a_bad_image_is_a_way_out() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let out = dir.path().join("out");
    fs::write(src.join("Original_Images/0002_1.png"), b"no picture").unwrap();
    assert!(failure(&src, &out, &options()).contains("is no picture that is read"));
    fs::remove_file(src.join("Original_Images/0002_1.png")).unwrap();
    // Now there are 8 images: the third shard of the first attempt must not stay.
    let manifest = run(&src, &out).unwrap();
    assert_eq!((manifest.images.len(), manifest.shards.len()), (8, 2));
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();
    assert_eq!(tree(&out), tree(&clean));
}

#[test]
fn damaged_archives() {
    let dir = dir();
    fgadr(dir.path(), 6);
    let archive = dir.path().join("a.zip");
    zipped(dir.path(), &archive);
    let whole = fs::read(&archive).unwrap();
    let out = dir.path().join("out");

    fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    let text = failure(&archive, &out, &options());
    assert!(
        text.contains("a.zip: is an incomplete zip archive: its end, where the list of its files is, is missing"),
        "{text}"
    );
    let list = whole
        .windows(4)
        .position(|window| window == b"PK\x01\x02")
        .unwrap();
    let mut bytes = whole.clone();
    bytes[list..list + 4].fill(0);
    fs::write(&archive, bytes).unwrap();
    let text = failure(&archive, &out, &options());
    assert!(
        text.contains("a.zip is not a readable zip archive: "),
        "{text}"
    );

    // A flipped byte inside a packed or a stored entry: the archive's own checksum finds it.
    let place = |name: &str| {
        whole
            .windows(name.len())
            .position(|window| window == name.as_bytes())
            .unwrap()
            + name.len()
            + 90
    };
    let mut bytes = whole.clone();
    for name in [
        "Original_Images/0001_1.png",
        "Original_Images/0002_1.png",
        "Original_Images/0003_1.png",
    ] {
        bytes[place(name)] ^= 0x20;
    }
    fs::write(&archive, bytes).unwrap();
    let text = failure(&archive, &out, &options());
    assert!(text.contains("3 of the 6 images in"), "{text}");
    assert!(
        text.contains("a.zip!Seg-set/Original_Images/0002_1.png: cannot be "),
        "{text}"
    );
}

#[test]
fn a_full_disk_stops_the_run_and_the_next_one_goes_on() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let out = dir.path().join("out");
    // The second shard goes to a device that is always full.
    fs::create_dir_all(out.join(".prepare")).unwrap();
    let part = out.join(".prepare/shard-00001.part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let text = failure(
        &src,
        &out,
        &PrepareOptions {
            workers: 1,
            ..options()
        },
    );
    assert!(
        text.contains("no space left for")
            && text.contains("shard-00001.part: ")
            && text.contains(" bytes to write"),
        "{text}"
    );
    fs::remove_file(part).unwrap();
    run(&src, &out).unwrap();
    let clean = dir.path().join("clean");
    run(&src, &clean).unwrap();
    assert_eq!(tree(&out), tree(&clean));
}

#[test]
fn a_flipped_byte_in_a_shard_is_found_and_mended() {
    let dir = dir();
    let src = fgadr(dir.path(), 9);
    let out = dir.path().join("out");
    let manifest = run(&src, &out).unwrap();
    let shard = out.join("shard-00001.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[5000] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    let text = Dataset::open(&out).unwrap_err().to_string();
    let found = blake3::hash(&bytes).to_hex().to_string();
    for part in [
        "shard-00001.safetensors is damaged",
        found.as_str(),
        manifest.shards[1].blake3.as_str(),
        "\n  help: ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    Dataset::open_unverified(&out).unwrap();
    fs::write(&shard, &bytes[..4000]).unwrap();
    let text = Dataset::open_unverified(&out).unwrap_err().to_string();
    assert!(
        text.contains("shard-00001.safetensors has 4000 bytes, its manifest says "),
        "{text}"
    );
    fs::remove_file(&shard).unwrap();
    let text = Dataset::open_unverified(&out).unwrap_err().to_string();
    assert!(
        text.contains("shard-00001.safetensors") && text.contains("\n  help: "),
        "{text}"
    );

    assert_eq!(run(&src, &out).unwrap(), manifest);
    Dataset::open(&out).unwrap();
}

#[test]
fn manifests_of_other_versions_and_without_sense() {
    let dir = dir();
    let out = dir.path().join("out");
    let text = Manifest::load(&out).unwrap_err().to_string();
    assert!(
        text.contains("dataset directory") && text.contains("does not exist\n  help: "),
        "{text}"
    );
    run(&fgadr(dir.path(), 5), &out).unwrap();
    let path = out.join("manifest.json");
    let whole = fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        Dataset::open_unverified(&out).unwrap_err().to_string()
    };
    let text = with(
        "\"format_version\": 1",
        "\"format_version\": 7, \"later\": []",
    );
    assert!(
        text.contains(
            "has format version 7; this program reads versions 1 to 3\n  help: use a newer fovea"
        ),
        "{text}"
    );
    assert!(with("fovea-dataset", "other").contains("is no fovea-dataset manifest"));
    assert!(with("\"patch\": 16", "\"patch\": 15").contains("grid 4 x patch 15 is not size 64"));
    assert!(with("\"row\": 2", "\"row\": 1").contains("is listed twice"));
    assert!(with("\"row\": 2", "\"row\": 9").contains("shard 0 has no row 9"));
    assert!(
        with("shard-00000.safetensors", "../shard-00000.safetensors")
            .contains("is no shard file name")
    );
    assert!(with("\"HE\"", "\"XX\"").contains("classes are"));
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(
        Dataset::open(&out)
            .unwrap_err()
            .to_string()
            .contains("EOF while parsing")
    );
    fs::remove_file(&path).unwrap();
    let text = Dataset::open(&out).unwrap_err().to_string();
    assert!(text.contains("holds no manifest.json\n  help: "), "{text}");
}

#[test]
fn a_manifest_with_any_byte_changed_opens_or_is_refused() {
    let dir = dir();
    let out = dir.path().join("out");
    run(&fgadr(dir.path(), 5), &out).unwrap();
    let path = out.join("manifest.json");
    let whole = fs::read(&path).unwrap();
    let changes = (any::<prop::sample::Index>(), any::<u8>());
    let one = |(at, to): (prop::sample::Index, u8)| {
        let mut bytes = whole.clone();
        bytes[at.index(whole.len())] = to;
        fs::write(&path, bytes).unwrap();
        if let Ok(data) = Dataset::open_unverified(&out) {
            for i in 0..data.len() {
                let lengths = (
                    data.image(i).data.len(),
                    data.areas(i).len(),
                    data.black(i).len(),
                );
                prop_assert_eq!(lengths, (64 * 64 * 3, 64, 16));
            }
        }
        Ok(())
    };
    TestRunner::new(ProptestConfig::with_cases(300))
        .run(&changes, one)
        .unwrap();
}
