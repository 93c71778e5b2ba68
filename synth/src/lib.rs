//! Synthetic fundus photographs with lesion masks, as a raw dataset in FGADR's layout.
//!
//! For trying the whole system without a download. Rates and sizes of the lesions are those of
//! FGADR; colours were fitted to photographs. Nothing here is meant for clinical use.
//!
//! Painting goes from back to front: retina, optic disc, deep distractors, hard exudates,
//! vessels, haemorrhages and microaneurysms, cotton-wool spots, reflections and haze, and finally the
//! camera. Every part draws from its own random stream of (seed, image), so the bytes depend on
//! nothing else: not on the number of threads, not on the other images.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

mod arcades;
mod camera;
mod canvas;
mod distractors;
mod eye;
mod fundus;
mod lesions;
mod noise;
mod plan;
mod rng;
mod sets;
mod shapes;
#[cfg(test)]
mod tests;
mod vessels;

use std::fs;
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use rayon::prelude::*;

use arcades::VesselKind;
use canvas::{Canvas, LesionMask, ScalarField};
use eye::Eye;
use fovea_dataset::{Error, ProgressListener, Result};
use fundus::Tone;
use lesions::Pathology;
use plan::Case;
use rng::{Purpose, RandomStream};
use vessels::VesselTree;

pub use sets::{DrawnSet, draw_set};

/// The choices that the bytes of [`synth`] depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthOptions {
    /// Number of photographs, at least 1.
    pub images: u32,
    /// Edge length in pixels, 256 to 4096. Everything scales with it.
    pub size: u32,
    /// Same seed, same bytes.
    pub seed: u64,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            images: 24,
            size: 1280,
            seed: 0,
        }
    }
}

/// Folders of the lesion masks in class order (MA, HE, EX, SE), spelled as FGADR does.
const MASK_FOLDERS: [&str; 4] = [
    "Microaneurysms_Masks",
    "Hemohedge_Masks",
    "HardExudate_Masks",
    "SoftExudate_Masks",
];

/// Name of the finished dataset within the output directory, and of one that is being made.
const FINISHED: &str = "Seg-set";
const UNFINISHED: &str = "Seg-set.partial";

/// Folder of the photographs, and its name until all are there: `prepare` must not take a dataset
/// whose making was cut short for a whole one.
const PHOTOS: &str = "Original_Images";
const UNFINISHED_PHOTOS: &str = "Original_Images.partial";

/// Memory that all pictures being painted at the same time may take.
const MEMORY_BYTES: usize = 2 << 30;

/// Bytes per pixel while a picture is painted: canvas, layer, four masks, the photograph, its PNG.
const BYTES_PER_PIXEL: usize = 12 + 4 + 4 + 3 + 3;

/// Absorption of blood per channel at density 1 (fitted to vessels in photographs).
const VEIN: [f32; 3] = [0.15, 0.56, 0.34];
const ARTERY: [f32; 3] = [0.08, 0.44, 0.3];
const BLEEDING: [f32; 3] = [0.34, 1.2, 0.76];

/// Writes `OUT/Seg-set` in FGADR's layout: photographs, one anti-aliased mask per lesion class
/// (255 inside, 1-254 along the border) and `DR_Seg_Grading_Label.csv` (`name.png,grade`).
///
/// [`synth`] writes the dataset next to its final name and renames it at the end: a run that was killed leaves no
/// half dataset, and the next one begins anew.
///
/// # Errors
/// Options out of range, an output directory that holds anything else, and whatever the disk refuses.
pub fn synth(out: &Path, options: &SynthOptions, progress: &dyn ProgressListener) -> Result<()> {
    check(options)?;
    let staging = make_directories(out)?;
    let cases = plan::plan(options.images as usize, options.seed);
    let size = options.size as usize;
    let at_once = (MEMORY_BYTES / (BYTES_PER_PIXEL * size * size)).max(1);
    let at_once = if at_once < rayon::current_num_threads() {
        at_once
    } else {
        cases.len()
    };
    let numbered: Vec<(usize, Case)> = cases.iter().copied().enumerate().collect();

    progress.start(u64::from(options.images));
    let painted: Result<()> = numbered.chunks(at_once).try_for_each(|chunk| {
        chunk.par_iter().try_for_each(|&(index, case)| {
            write_image(&staging, index, &paint(size, options.seed, index, case))?;
            progress.advance(1);
            Ok(())
        })
    });
    progress.finish();
    painted?;

    let grades: String = numbered
        .iter()
        .map(|(index, case)| format!("{},{}\n", file_name(*index), case.grade))
        .collect();
    write(&staging.join("DR_Seg_Grading_Label.csv"), grades.as_bytes())?;
    rename(&staging.join(UNFINISHED_PHOTOS), &staging.join(PHOTOS))?;
    rename(&staging, &out.join(FINISHED))
}

fn check(options: &SynthOptions) -> Result<()> {
    if options.images == 0 {
        return Err(Error::Option {
            option: "--images",
            value: "0".into(),
            limit: "a dataset needs at least 1 image".into(),
            help: "24 images are enough to try everything".into(),
        });
    }
    if !(256..=4096).contains(&options.size) {
        return Err(Error::Option {
            option: "--size",
            value: options.size.to_string(),
            limit: "images are from 256 to 4096 pixels wide".into(),
            help: "1280 is the size of FGADR's images".into(),
        });
    }
    Ok(())
}

/// Creates the folders of the unfinished dataset; what an earlier run left of it goes.
fn make_directories(out: &Path) -> Result<PathBuf> {
    let staging = out.join(UNFINISHED);
    if out.exists() {
        for entry in fs::read_dir(out).map_err(|e| Error::io("list", out, e))? {
            let name = entry.map_err(|e| Error::io("list", out, e))?.file_name();
            if name != UNFINISHED {
                return Err(not_empty(out, &name));
            }
        }
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(|e| Error::io("remove", &staging, e))?;
        }
    }
    for folder in [UNFINISHED_PHOTOS].into_iter().chain(MASK_FOLDERS) {
        let folder = staging.join(folder);
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    }
    Ok(staging)
}

/// The error of an output directory that holds something.
fn not_empty(out: &Path, found: &std::ffi::OsStr) -> Error {
    Error::Option {
        option: "OUT",
        value: out.display().to_string(),
        limit: format!(
            "that directory is not empty (it holds {})",
            found.to_string_lossy()
        ),
        help: "choose a new directory, or empty this one yourself".into(),
    }
}

/// FGADR's names: number of the image, then number of the reader.
fn file_name(index: usize) -> String {
    format!("{index:04}_1.png")
}

/// A photograph and its masks (MA, HE, EX, SE).
struct PaintedPicture {
    photo: RgbImage,
    masks: [LesionMask; 4],
}

/// Signs of other diseases than of diabetes, for pictures whose labels say which they show.
struct Signs {
    /// Radius of a large cup of the optic disc, as a share of the disc's.
    cup: Option<f32>,
    /// Number of drusen.
    drusen: Option<usize>,
}

/// Share of photographs without labels for it that have drusen.
const WITH_DRUSEN: f32 = 0.35;

/// Paints image `index`, from the back to the front.
fn paint(size: usize, seed: u64, index: usize, case: Case) -> PaintedPicture {
    paint_with(size, seed, index, case, None)
}

/// As [`paint`], with these signs and no others.
fn paint_with(
    size: usize,
    seed: u64,
    index: usize,
    case: Case,
    signs: Option<&Signs>,
) -> PaintedPicture {
    let stream = |purpose| RandomStream::new(seed, index as u64, purpose);
    let eye = Eye::draw(size, &mut stream(Purpose::Geometry));
    let mut toning = stream(Purpose::Tone);
    let tone = Tone::draw(&mut toning);
    let mut extras = stream(Purpose::Distractors);
    let mut tree = VesselTree::grow(&eye, &mut stream(Purpose::Vessels));
    if case.grade == 4 {
        distractors::grow_new_vessels(&eye, &mut tree, &mut extras);
    }
    let mut pathology = Pathology::new(&eye, &tree, stream(Purpose::Lesions));
    let [mut ma, mut he, mut ex, mut se] = std::array::from_fn(|_| LesionMask::new(size));
    let (mut canvas, mut layer) = (Canvas::new(size), ScalarField::new(size));

    fundus::paint(&eye, &tone, &mut canvas, &mut toning);
    let with_drusen = if signs.is_some() { 0.0 } else { WITH_DRUSEN };
    distractors::paint_deep(
        &eye,
        case.grade,
        with_drusen,
        &mut canvas,
        &mut layer,
        &mut extras,
    );
    if let Some(Signs { cup, drusen }) = signs {
        let mut draw = stream(Purpose::Signs);
        if let Some(cup) = cup {
            fundus::paint_cup(&eye, *cup, &mut canvas);
        }
        if let Some(count) = drusen {
            layer.clear();
            distractors::many_drusen(&eye, *count, &mut layer, &mut draw);
            canvas.scatter(&layer, [0.24, 0.46, 0.2]);
        }
    }

    layer.clear();
    pathology.hard_exudates(case.cells[2], &mut layer, &mut ex);
    canvas.scatter(&layer, tone.exudate_gain());

    for (kind, absorption) in [(VesselKind::Vein, VEIN), (VesselKind::Artery, ARTERY)] {
        layer.clear();
        tree.paint(&eye, kind, &mut layer);
        canvas.absorb(&layer, absorption);
        layer.clear();
        tree.paint_reflex(&eye, kind, &mut layer);
        canvas.scatter(
            &layer,
            if kind == VesselKind::Artery {
                [0.08, 0.1, 0.05]
            } else {
                [0.03, 0.02, 0.01]
            },
        );
    }

    layer.clear();
    pathology.haemorrhages(case.cells[1], &mut layer, &mut he);
    pathology.microaneurysms(case.cells[0], &mut layer, &mut ma);
    canvas.absorb(&layer, BLEEDING);

    layer.clear();
    pathology.soft_exudates(case.cells[3], &mut layer, &mut se);
    canvas.scatter(&layer, tone.wool_gain());

    distractors::paint_surface(&eye, &mut canvas, &mut layer, &mut extras);
    let photo = camera::expose(&eye, canvas, &mut stream(Purpose::Camera));
    PaintedPicture {
        photo,
        masks: [ma, he, ex, se],
    }
}

fn write_image(root: &Path, index: usize, picture: &PaintedPicture) -> Result<()> {
    let name = file_name(index);
    write_png(
        &root.join(UNFINISHED_PHOTOS).join(&name),
        picture.photo.as_raw(),
        picture.photo.width(),
        ExtendedColorType::Rgb8,
    )?;
    for (folder, mask) in MASK_FOLDERS.iter().zip(&picture.masks) {
        write_png(
            &root.join(folder).join(&name),
            &mask.data,
            mask.size as u32,
            ExtendedColorType::L8,
        )?;
    }
    Ok(())
}

fn write_png(path: &Path, pixels: &[u8], size: u32, colour: ExtendedColorType) -> Result<()> {
    let mut bytes = Vec::with_capacity(pixels.len() / 2);
    // Noise hardly compresses: the fast level costs a few percent of size and saves most of the time.
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(pixels, size, size, colour)
        .map_err(|e| Error::Picture {
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
    write(path, &bytes)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::writing(path, bytes.len() as u64, e))
}
