//! Archives as tools make them: methods, names, and fake zips.

use std::fs;
use std::io::Write;
use std::path::Path;

use zip::CompressionMethod;

use crate::raw::{dir, failure, folder, ids, options, run, shards, tree, warned};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// An entry of an archive built byte by byte.
#[derive(Clone, Default)]
struct Packed {
    name: Vec<u8>,
    /// Bit 0: encrypted, bit 11: the name is UTF-8.
    flags: u16,
    method: u16,
    crc: u32,
    data: Vec<u8>,
    size: u32,
    extra: Vec<u8>,
}

impl Packed {
    fn stored(name: &[u8], content: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            crc: crc32(content),
            data: content.to_vec(),
            size: content.len() as u32,
            ..Self::default()
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ 0xedb8_8320,
            _ => crc >> 1,
        })
    })
}

/// A zip archive; `disk` is the number of this part.
fn archive(entries: &[Packed], disk: u16) -> Vec<u8> {
    let (mut bytes, mut list) = (Vec::new(), Vec::new());
    for entry in entries {
        let mut fields = Vec::new();
        fields.extend(20u16.to_le_bytes());
        fields.extend(entry.flags.to_le_bytes());
        fields.extend(entry.method.to_le_bytes());
        fields.extend([0, 0, 0x21, 0]);
        fields.extend(entry.crc.to_le_bytes());
        fields.extend((entry.data.len() as u32).to_le_bytes());
        fields.extend(entry.size.to_le_bytes());
        fields.extend((entry.name.len() as u16).to_le_bytes());
        fields.extend((entry.extra.len() as u16).to_le_bytes());
        list.extend(b"PK\x01\x02\x14\0");
        list.extend(&fields);
        list.extend([0; 10]);
        list.extend((bytes.len() as u32).to_le_bytes());
        list.extend(&entry.name);
        list.extend(&entry.extra);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&fields);
        bytes.extend(&entry.name);
        bytes.extend(&entry.extra);
        bytes.extend(&entry.data);
    }
    let begin = bytes.len() as u32;
    bytes.extend(&list);
    bytes.extend(b"PK\x05\x06");
    bytes.extend([disk.to_le_bytes(), disk.to_le_bytes()].concat());
    let count = (entries.len() as u16).to_le_bytes();
    bytes.extend([count, count].concat());
    bytes.extend((list.len() as u32).to_le_bytes());
    bytes.extend(begin.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// The files of a folder as entries, in name order.
fn entries(dir: &Path) -> Vec<Packed> {
    tree(dir)
        .into_iter()
        .map(|(name, content)| Packed::stored(name.as_bytes(), &content))
        .collect()
}

/// Deflate64: fixed codes; a byte that comes 4 times or more in a row is a literal and one match of distance 1 with
/// length code 285, which in Deflate64 has 16 more bits (in Deflate it stands for 258).
fn deflate64(content: &[u8]) -> Vec<u8> {
    let mut bits: Vec<bool> = vec![true, true, false];
    let code = |bits: &mut Vec<bool>, code: u16, length: u32| {
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    };
    let mut rest = content;
    while let Some(&byte) = rest.first() {
        match byte {
            0..144 => code(&mut bits, 0x30 + u16::from(byte), 8),
            _ => code(&mut bits, 0x190 + u16::from(byte) - 144, 9),
        }
        let run = rest
            .iter()
            .take(60_000)
            .take_while(|next| **next == byte)
            .count();
        rest = &rest[1..];
        if run >= 4 {
            let more = run - 1;
            code(&mut bits, 0xc5, 8);
            bits.extend((0..16).map(|bit| (more - 3) >> bit & 1 == 1));
            code(&mut bits, 0, 5);
            rest = &rest[more..];
        }
    }
    code(&mut bits, 0, 7);
    let byte = |bits: &[bool]| {
        bits.iter()
            .rev()
            .fold(0u8, |byte, bit| byte << 1 | u8::from(*bit))
    };
    bits.chunks(8).map(byte).collect()
}

#[test]
fn every_method_of_compression_gives_the_same_bytes() {
    let dir = dir();
    let src = folder(&dir.path().join("own"), &NAMES);
    let plain = dir.path().join("plain");
    run(&src, &plain).unwrap();
    let path = dir.path().join("a.zip");
    let same = |name: &str| {
        let out = dir.path().join(name);
        run(&path, &out).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(tree(&out) == tree(&plain), "{name}");
    };
    for method in [
        CompressionMethod::Bzip2,
        CompressionMethod::Xz,
        CompressionMethod::Zstd,
    ] {
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in tree(&src) {
            zip.start_file(name, options).unwrap();
            zip.write_all(&bytes).unwrap();
        }
        zip.finish().unwrap();
        same(&format!("{method:?}"));
    }
    let pack = |entry: Packed| Packed {
        method: 9,
        data: deflate64(&entry.data),
        ..entry
    };
    let packed: Vec<Packed> = entries(&src).into_iter().map(pack).collect();
    fs::write(&path, archive(&packed, 0)).unwrap();
    same("Deflate64");
}

/// A grey PGM of 64 x 64 pixels with the value 90, as Python's zipfile packs it by LZMA.
const GREY_LZMA: [u8; 54] = [
    0x09, 0x04, 0x05, 0x00, 0x5d, 0x00, 0x00, 0x80, 0x00, 0x00, 0x28, 0x0d, 0x3d, 0x43, 0x60, 0xf3,
    0xab, 0xe8, 0xb1, 0x4b, 0x88, 0x66, 0xef, 0xf4, 0x04, 0x2c, 0x97, 0x09, 0xcf, 0x3a, 0x05, 0xd5,
    0xbd, 0x15, 0x20, 0x96, 0xa0, 0xda, 0xaa, 0x85, 0x13, 0x04, 0x7e, 0x56, 0x43, 0x67, 0x9f, 0xf0,
    0x7c, 0xff, 0xf5, 0x90, 0x18, 0x00,
];

#[test]
fn lzma_and_long_runs_of_deflate64_are_unpacked() {
    let dir = dir();
    let src = folder(&dir.path().join("own"), &NAMES);
    let plain = folder(&dir.path().join("plain"), &NAMES);
    let grey = [b"P5\n64 64\n255\n".as_slice(), &[90; 4096]].concat();
    fs::write(plain.join("images/grey.pgm"), &grey).unwrap();
    run(&plain, &dir.path().join("plain_out")).unwrap();
    // All pixels are one run, longer than any of plain Deflate.
    let run_of_pixels = deflate64(&grey);
    assert!(run_of_pixels.len() < 40);
    for (method, flags, data) in [(9, 0, run_of_pixels), (14, 2, GREY_LZMA.to_vec())] {
        let mut all = entries(&src);
        all.push(Packed {
            method,
            flags,
            data,
            ..Packed::stored(b"images/grey.pgm", &grey)
        });
        let path = dir.path().join("a.zip");
        fs::write(&path, archive(&all, 0)).unwrap();
        let out = dir.path().join(format!("out{method}"));
        run(&path, &out).unwrap();
        assert!(
            shards(&out) == shards(&dir.path().join("plain_out")),
            "{method}"
        );
    }
}

#[test]
fn names_in_archives_are_read_as_they_were_written() {
    let dir = dir();
    let src = folder(&dir.path().join("own"), &["m_ller", "b", "c", "d"]);
    let path = dir.path().join("a.zip");
    let with = |prefix: &str, letter: &[u8], flags: u16, unicode: bool| {
        let rename = |entry: Packed| {
            let old = String::from_utf8(entry.name.clone()).unwrap();
            let name = |letter: &[u8]| -> Vec<u8> {
                let mut parts = old.splitn(2, "m_ller");
                let (before, after) = (parts.next().unwrap(), parts.next());
                let after = after.map(|after| [b"m", letter, b"ller", after.as_bytes()].concat());
                [
                    prefix.as_bytes(),
                    before.as_bytes(),
                    &after.unwrap_or_default(),
                ]
                .concat()
            };
            let mut extra = Vec::new();
            if unicode {
                let real = name("ü".as_bytes());
                extra.extend(b"up");
                extra.extend((real.len() as u16 + 5).to_le_bytes());
                extra.push(1);
                extra.extend(crc32(&name(letter)).to_le_bytes());
                extra.extend(real);
            }
            Packed {
                name: name(letter),
                flags,
                extra,
                ..entry
            }
        };
        let renamed: Vec<Packed> = entries(&src).into_iter().map(rename).collect();
        fs::write(&path, archive(&renamed, 0)).unwrap();
        let out = dir.path().join("out");
        let manifest = run(&path, &out).unwrap();
        assert_eq!(ids(&manifest), ["b", "c", "d", "müller"]);
        fs::remove_dir_all(out).unwrap();
    };
    let utf_8 = "ü".as_bytes();
    with("", utf_8, 1 << 11, false);
    // Many tools write UTF-8 and do not say so; DOS wrote code page 437.
    with("", utf_8, 0, false);
    with("", b"\x81", 0, false);
    with("", b"_", 0, true);
    with("/", utf_8, 0, false);
    with("../../", utf_8, 0, false);
    with("./x//", utf_8, 0, false);
    with("C:\\data\\", utf_8, 0, false);
}

#[test]
fn what_holds_for_the_whole_archive_is_told_once() {
    let dir = dir();
    let src = folder(&dir.path().join("own"), &NAMES);
    let out = dir.path().join("out");
    let path = dir.path().join("a.zip");
    let told = |change: &dyn Fn(Packed) -> Packed, disk: u16| {
        let changed: Vec<Packed> = entries(&src).into_iter().map(change).collect();
        fs::write(&path, archive(&changed, disk)).unwrap();
        failure(&path, &out, &options())
    };
    let files = entries(&src).len();
    let text = told(&|entry| Packed { flags: 1, ..entry }, 0);
    assert!(
        text.contains(&format!("a.zip: {files} of its {files} pictures are encrypted (images/a.png)\n  help: unpack it with `7z x a.zip`, which asks for the password")),
        "{text}"
    );
    let text = told(
        &|entry| Packed {
            method: 98,
            ..entry
        },
        0,
    );
    assert!(
        text.contains(&format!("{files} of its {files} pictures are packed by PPMd (method 98), which fovea does not unpack (images/a.png)\n  help: unpack it with `7z x a.zip`")),
        "{text}"
    );
    let text = told(&|entry| entry, 3);
    assert!(
        text.contains("a.zip: is one part of a zip archive in several parts\n  help: put all parts (a.z01, ..., a.zip)"),
        "{text}"
    );
    // Of no matter when it is none of the pictures.
    let mut all = entries(&src);
    all.push(Packed {
        flags: 1,
        ..Packed::stored(b"README", b"x")
    });
    fs::write(&path, archive(&all, 0)).unwrap();
    let (done, words) = warned(|| run(&path, &out));
    done.unwrap();
    assert!(
        words.iter().any(|word| word.contains("README")),
        "{words:?}"
    );
}

#[test]
fn what_is_no_zip_is_named_with_its_remedy() {
    let dir = dir();
    let out = dir.path().join("out");
    let mut tar = vec![0; 1024];
    tar[..4].copy_from_slice(b"a.pn");
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let cases: [(&str, &[u8], &str); 14] = [
        (
            "a.tar.gz",
            b"\x1f\x8b\x08",
            "is a tar archive packed by gzip (.tar.gz), not a zip archive\n  help: unpack it with `tar xf a.tar.gz`",
        ),
        ("a.tgz", b"\x1f\x8b\x08", "`tar xf a.tgz`"),
        ("a.zip", b"\x1f\x8b\x08", "`tar xf a.zip`"),
        (
            "a.txt.gz",
            b"\x1f\x8b\x08",
            "is packed by gzip (.gz), not a zip archive\n  help: unpack it with `7z x a.txt.gz`",
        ),
        ("a.tar.bz2", b"BZh91", "packed by bzip2 (.tar.bz2)"),
        ("a.tar.xz", b"\xfd7zXZ\0", "packed by xz (.tar.xz)"),
        (
            "a.tar",
            &tar,
            "is a tar archive (.tar), not a zip archive\n  help: unpack it with `tar xf a.tar`",
        ),
        (
            "a.7z",
            b"7z\xbc\xaf\x27\x1c",
            "is a 7-Zip archive (.7z), not a zip archive\n  help: unpack it with `7z x a.7z`",
        ),
        ("a.rar", b"Rar!\x1a\x07\x01\0", "`unrar x a.rar`"),
        (
            "page.zip",
            b"\n<!DOCTYPE HTML><html>",
            "is a web page (HTML), not a zip archive\n  help: the download gave a page",
        ),
        (
            "lfs.zip",
            b"version https://git-lfs.github.com/spec/v1",
            "Git LFS pointer, not a zip archive\n  help: `git lfs pull`",
        ),
        ("empty.zip", b"", "empty.zip: is empty\n"),
        (
            "a.zip.001",
            b"PK\x03\x04 and more",
            "is one part of a zip archive in several parts\n  help: join all parts with `cat a.zip.[0-9]* > whole.zip`",
        ),
        (
            "a.z01",
            b"PK\x07\x08PK\x03\x04 and more",
            "put all parts (a.z01, ..., a.zip)",
        ),
    ];
    for (name, content, expected) in cases {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let text = failure(&path, &out, &options());
        assert!(text.contains(expected), "{name}: {text}");
    }
    let path = dir.path().join("noise");
    fs::write(&path, b"what is this").unwrap();
    let text = failure(&path, &out, &options());
    assert!(
        text.contains("noise is not a readable zip archive"),
        "{text}"
    );
}

#[test]
fn two_files_of_one_name_are_not_passed_over() {
    let dir = dir();
    let raw = folder(&dir.path().join("raw"), &NAMES);
    let packed = entries(&raw);
    let mask = packed
        .iter()
        .find(|entry| entry.name.starts_with(b"masks/HE/"))
        .unwrap();
    let with = |name: &[u8]| {
        let mut all = packed.clone();
        all.push(Packed {
            name: name.to_vec(),
            ..mask.clone()
        });
        let path = dir.path().join("a.zip");
        fs::write(&path, archive(&all, 0)).unwrap();
        failure(&path, &dir.path().join("out"), &options())
    };
    let text = with(&mask.name);
    assert!(
        text.contains("holds 1 file with the very name of another\n  help: `unzip -o a.zip` keeps the last of each name"),
        "{text}"
    );
    let text = with(&[b"./", &mask.name[..]].concat());
    assert!(
        text.contains("holds two files that unpack as masks/HE/"),
        "{text}"
    );
}

#[test]
fn archives_in_an_archive_or_a_folder_are_to_be_unpacked() {
    let dir = dir();
    let src = dir.path().join("download");
    fs::create_dir_all(src.join("part")).unwrap();
    for name in ["A. Segmentation.zip", "part/b.tar.gz", "LICENSE.txt"] {
        fs::write(src.join(name), b"PK").unwrap();
    }
    let path = dir.path().join("outer.zip");
    fs::write(&path, archive(&entries(&src), 0)).unwrap();
    for src in [src, path] {
        let text = failure(&src, &dir.path().join("out"), &options());
        assert!(
            text.ends_with("help: unpack what is packed in it (A. Segmentation.zip, part/b.tar.gz), and give the folder that comes out"),
            "{text}"
        );
    }
}
