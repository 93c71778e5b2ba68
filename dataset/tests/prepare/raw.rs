//! Small raw datasets for the tests.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use fovea_dataset::{Error, LayoutChoice, Manifest, PrepareOptions, Silent, prepare};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use tempfile::TempDir;

/// Pixels along an edge of the test images.
pub const SIZE: u32 = 64;

pub const FOLDERS: [&str; 4] = [
    "Microaneurysms_Masks",
    "Hemohedge_Masks",
    "HardExudate_Masks",
    "SoftExudate_Masks",
];

/// A directory that goes away with the test.
pub fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// 64 x 64 images, 16 x 16 cells, 4 images per shard.
pub fn options() -> PrepareOptions {
    PrepareOptions {
        size: SIZE,
        patch: 16,
        shard_images: 4,
        workers: 2,
        ..PrepareOptions::default()
    }
}

pub fn run(src: &Path, out: &Path) -> Result<Manifest, Error> {
    prepare(src, out, &options(), &Silent)
}

/// The message of a run that must fail: a statement, then what to do.
pub fn failure(src: &Path, out: &Path, options: &PrepareOptions) -> String {
    let text = prepare(src, out, options, &Silent).unwrap_err().to_string();
    assert_eq!(text.matches("\n  help: ").count(), 1, "{text}");
    assert!(
        text.lines().last().unwrap().starts_with("  help: "),
        "{text}"
    );
    text
}

pub fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A shaded disc that fills the picture, different for every `n`.
pub fn disc(n: u32, width: u32, height: u32) -> RgbImage {
    let (cx, cy) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
    RgbImage::from_fn(width, height, |x, y| {
        let r = (f64::from(x) + 0.5 - cx).hypot(f64::from(y) + 0.5 - cy) / cx.min(cy);
        if r > 1.0 {
            Rgb([0; 3])
        } else {
            Rgb([
                (200.0 - 80.0 * r) as u8,
                (x * 3 + n * 11) as u8 / 2 + 40,
                (y * 2) as u8,
            ])
        }
    })
}

/// A mask that is `value` in a square of `edge` pixels from (x, y), black elsewhere.
pub fn mask(x: u32, y: u32, edge: u32, value: u8) -> GrayImage {
    GrayImage::from_fn(SIZE, SIZE, |px, py| {
        let inside = (x..x + edge).contains(&px) && (y..y + edge).contains(&py);
        Luma([if inside { value } else { 0 }])
    })
}

/// A raw dataset in FGADR's layout under `root/Seg-set`: image `n` has class `c` when bit `c` of `n` is set, in the
/// cell of row c and column 1.
pub fn fgadr(root: &Path, images: u32) -> PathBuf {
    let root = root.join("Seg-set");
    let mut table = String::from("\u{feff}");
    for n in 0..images {
        let name = format!("{n:04}_1.png");
        write(
            &root.join("Original_Images").join(&name),
            &encode(disc(n, SIZE, SIZE), ImageFormat::Png),
        );
        for (class, folder) in FOLDERS.iter().enumerate() {
            let value = if n >> class & 1 == 1 { 255 } else { 0 };
            let picture = mask(18 + n % 8, class as u32 * 16 + 3, 3, value);
            write(
                &root.join(folder).join(&name),
                &encode(picture, ImageFormat::Png),
            );
        }
        table += &format!("{name},{}\r\n", n % 5);
    }
    write(&root.join("DR_Seg_Grading_Label.csv"), table.as_bytes());
    root
}

/// All files below a directory with their content, by name.
pub fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for item in fs::read_dir(next).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path
                    .strip_prefix(dir)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                files.push((name, fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The same files as a zip archive, some packed and some stored.
pub fn zipped(dir: &Path, archive: &Path) {
    let mut zip = zip::ZipWriter::new(fs::File::create(archive).unwrap());
    for (n, (name, bytes)) in tree(dir).into_iter().enumerate() {
        let method = if n % 3 == 0 {
            zip::CompressionMethod::Stored
        } else {
            zip::CompressionMethod::Deflated
        };
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(name, options).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
}

pub fn given(name: &str) -> LayoutChoice {
    name.parse().unwrap()
}
