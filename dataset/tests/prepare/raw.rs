//! Small raw datasets for the tests.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fovea_dataset::{Error, LayoutChoice, Manifest, PrepareOptions, Silent, prepare};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use tempfile::TempDir;

/// Pixels along an edge of the test images.
pub const SIZE: u32 = 64;

/// Names of the lesions in layout `folder`.
pub const CLASSES: [&str; 4] = ["MA", "HE", "EX", "SE"];

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

/// A raw dataset in layout `folder` under `root`: image `n` of `names` has class `c` when bit `c` of `n + 1` is set, in
/// the cell of row c and column 1; masks only where there is a lesion,
/// and a black one for a class that no image has.
pub fn folder(root: &Path, names: &[&str]) -> PathBuf {
    for (n, name) in names.iter().enumerate() {
        let n = n as u32;
        let image = encode(disc(n, SIZE, SIZE), ImageFormat::Png);
        write(&root.join(format!("images/{name}.png")), &image);
        for (class, folder) in CLASSES.iter().enumerate() {
            if (n + 1) >> class & 1 == 1 {
                let picture = mask(18 + n % 8, class as u32 * 16 + 3, 3, 255);
                let path = root.join(format!("masks/{folder}/{name}.png"));
                write(&path, &encode(picture, ImageFormat::Png));
            }
        }
    }
    for folder in CLASSES.map(|class| root.join("masks").join(class)) {
        if !folder.exists() {
            let path = folder.join(format!("{}.png", names[0]));
            write(&path, &encode(mask(0, 0, 0, 0), ImageFormat::Png));
        }
    }
    root.to_owned()
}

/// The shards of a prepared dataset.
pub fn shards(out: &Path) -> Vec<Vec<u8>> {
    let shards = tree(out)
        .into_iter()
        .filter(|(name, _)| name.starts_with("shard-"));
    shards.map(|(_, bytes)| bytes).collect()
}

/// Ids of a prepared dataset.
pub fn ids(manifest: &Manifest) -> Vec<&str> {
    manifest.images.iter().map(|i| i.id.as_str()).collect()
}

/// What is warned of by this thread while `act` runs.
pub fn warned<T>(act: impl FnOnce() -> T) -> (T, Vec<String>) {
    let words = Arc::new(Mutex::new(Vec::new()));
    let subscriber = Recorder(words.clone());
    let done = tracing::subscriber::with_default(subscriber, act);
    let words = words.lock().unwrap().clone();
    (done, words)
}

struct Recorder(Arc<Mutex<Vec<String>>>);

struct Message<'a>(&'a mut String);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Message(&mut text));
        self.0.lock().unwrap().push(text);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}
}
