//! Sample predictions as pictures: what the photograph holds, what the model says, how sure it is.

mod overlay;
mod sheet;

use std::collections::BTreeMap;

use fovea_dataset::{Dataset, ImageView};
use fovea_run::metrics::LABEL_MASK;
use fovea_run::run_dir::LabelledPrediction;
use image::{RgbImage, imageops};

use super::run::Run;

pub(super) use overlay::HEAT_STOPS;
pub(super) use sheet::sheet;

/// Side of a panel in pixels.
pub(super) const PANEL: u32 = 600;
/// Images shown at most.
const SHOWN: usize = 6;

/// Label and probabilities of one cell or image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Guess {
    pub(super) label: u8,
    pub(super) probs: [f32; 4],
}

impl Guess {
    /// The label byte predicted at `threshold`.
    pub(super) fn predicted(&self, threshold: f32) -> u8 {
        (0..4).fold(0, |bits, c| {
            bits | (u8::from(self.probs[c] >= threshold) << c)
        })
    }
}

/// One image with everything that is drawn on it.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) id: String,
    /// `[PANEL, PANEL]`.
    photo: RgbImage,
    /// Class bits per pixel of the panel, `[PANEL * PANEL]`.
    mask: Option<Vec<u8>>,
    grid: usize,
    /// `[grid * grid]`; black cells have none.
    cells: Vec<Option<Guess>>,
    pub(super) image: Option<Guess>,
    threshold: f32,
    /// Wrong class bits per cell and class.
    pub(super) error: f64,
}

/// The three panels of a scene.
pub(super) struct Panels {
    pub(super) truth: RgbImage,
    pub(super) prediction: RgbImage,
    pub(super) heat: RgbImage,
}

impl Scene {
    /// Draws the panels.
    pub(super) fn panels(&self) -> Panels {
        Panels {
            truth: overlay::truth(self),
            prediction: overlay::prediction(self),
            heat: overlay::heat(self),
        }
    }

    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    pub(super) fn has_mask(&self) -> bool {
        self.mask.is_some()
    }
}

/// Scenes of up to six validation images, evenly spaced from the best predicted to the worst.
/// `Err` says, for the reader of the report, why there are none.
pub(super) fn scenes(run: &Run) -> Result<Vec<Scene>, String> {
    if run.predictions.is_empty() {
        return Ok(Vec::new()); // The report says already that there are no predictions.
    }
    let because = |reason: &str| format!("No sample pictures: {reason}.");
    let Some(dir) = run.dataset_dir() else {
        return Err(match run.config.data.path.as_str() {
            "" => because("data.path is not set in config.toml"),
            path => because(&format!(
                "there is no prepared dataset at {path} (data.path in config.toml)"
            )),
        });
    };
    let data = Dataset::open_unverified(&dir).map_err(|error| {
        because(
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .trim_end_matches('.'),
        )
    })?;
    let scenes = from_dataset(run, &data)
        .map_err(|reason| because(&format!("{reason} {}", dir.display())))?;
    if scenes.is_empty() {
        return Err(because(&format!(
            "no predicted image is in the dataset {}",
            dir.display()
        )));
    }
    Ok(scenes)
}

/// `Err` ends in a preposition that wants the dataset's directory.
fn from_dataset(run: &Run, data: &Dataset) -> Result<Vec<Scene>, String> {
    let threshold = run.config.eval.threshold;
    let mut by_image: BTreeMap<&str, Vec<&LabelledPrediction>> = BTreeMap::new();
    for line in &run.predictions {
        by_image.entry(&line.image_id).or_default().push(line);
    }
    let index: BTreeMap<&str, usize> = data
        .manifest()
        .images
        .iter()
        .enumerate()
        .map(|(i, image)| (image.id.as_str(), i))
        .collect();
    let mut ranked: Vec<(f64, &str)> = by_image
        .iter()
        .filter(|(id, _)| index.contains_key(*id))
        .map(|(id, lines)| (error_of(lines, threshold), *id))
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    let chosen = evenly(ranked.len(), SHOWN);
    chosen
        .into_iter()
        .map(|i| {
            let (error, id) = ranked[i];
            let at = index[id];
            let grid = data.grid();
            let cells = cells_of(&by_image[id], grid).ok_or_else(|| {
                format!("predictions of image {id} name cells outside the {grid} x {grid} grid of")
            })?;
            let whole = by_image[id].iter().find(|line| line.cell().is_none());
            Ok(Scene {
                id: id.to_owned(),
                photo: photo(&data.image(at))?,
                mask: data.mask(at).map(|mask| shrink_mask(mask, data.size())),
                grid,
                cells,
                image: whole.map(|line| guess(line)),
                threshold,
                error,
            })
        })
        .collect()
}

fn guess(line: &LabelledPrediction) -> Guess {
    Guess {
        label: line.label,
        probs: line.probs(),
    }
}

/// Mean share of wrong class bits, over cells if there are any, else of the image.
fn error_of(lines: &[&LabelledPrediction], threshold: f32) -> f64 {
    let wrong = |line: &&LabelledPrediction| {
        let guess = guess(line);
        f64::from(((guess.predicted(threshold) ^ guess.label) & LABEL_MASK).count_ones()) / 4.0
    };
    let cells: Vec<f64> = lines
        .iter()
        .filter(|l| l.cell().is_some())
        .map(&wrong)
        .collect();
    let all: Vec<f64> = if cells.is_empty() {
        lines.iter().map(wrong).collect()
    } else {
        cells
    };
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// Up to `count` indices below `len`, the first and the last among them.
fn evenly(len: usize, count: usize) -> Vec<usize> {
    if len <= count {
        return (0..len).collect();
    }
    (0..count)
        .map(|i| i * (len - 1) / (count - 1).max(1))
        .collect()
}

/// `None` when a line names a cell outside the grid.
fn cells_of(lines: &[&LabelledPrediction], grid: usize) -> Option<Vec<Option<Guess>>> {
    let mut cells = vec![None; grid * grid];
    for line in lines {
        if let Some((row, col)) = line.cell() {
            let (row, col) = (row as usize, col as usize);
            if row >= grid || col >= grid {
                return None;
            }
            cells[row * grid + col] = Some(guess(line));
        }
    }
    Some(cells)
}

fn photo(view: &ImageView<'_>) -> Result<RgbImage, String> {
    let (width, height) = (view.width as u32, view.height as u32);
    let image = RgbImage::from_raw(width, height, view.data.to_vec()).ok_or_else(|| {
        format!(
            "an image of {} bytes is not {width} x {height} pixels in",
            view.data.len()
        )
    })?;
    Ok(imageops::resize(
        &image,
        PANEL,
        PANEL,
        imageops::FilterType::Triangle,
    ))
}

/// Class bits per panel pixel: a pixel has a class when any pixel beneath it has, so that the
/// smallest lesions stay visible.
fn shrink_mask(mask: &[u8], size: usize) -> Vec<u8> {
    let panel = PANEL as usize;
    let mut small = vec![0u8; panel * panel];
    for (y, row) in mask.chunks_exact(size).enumerate() {
        let to = (y * panel / size) * panel;
        for (x, &bits) in row.iter().enumerate() {
            if bits != 0 {
                small[to + x * panel / size] |= bits;
            }
        }
    }
    if panel > size {
        // Enlarged: fill the gaps between the mapped pixels.
        for y in 0..panel {
            for x in 0..panel {
                small[y * panel + x] = mask[(y * size / panel) * size + x * size / panel];
            }
        }
    }
    small
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::predictions::tests::line;
    use super::*;

    /// A scene with a class bit in every corner of the mask and all kinds of cells.
    pub(in super::super) fn scene() -> Scene {
        let panel = PANEL as usize;
        let mut mask = vec![0u8; panel * panel];
        for y in 100..130 {
            for x in 200..240 {
                mask[y * panel + x] = 0b0001;
            }
        }
        let guess = |label, p: f32| {
            Some(Guess {
                label,
                probs: [p, 1.0 - p, 0.2, 0.9],
            })
        };
        Scene {
            id: "eye <1>".to_owned(),
            photo: RgbImage::from_pixel(PANEL, PANEL, image::Rgb([120, 60, 30])),
            mask: Some(mask),
            grid: 2,
            cells: vec![guess(0b1001, 0.9), None, guess(0, 0.1), guess(0b0111, 0.5)],
            image: guess(0b0101, 0.8),
            threshold: 0.5,
            error: 0.25,
        }
    }

    #[test]
    fn choice_is_spread_from_best_to_worst() {
        assert_eq!(evenly(0, 6), [0usize; 0]);
        assert_eq!(evenly(4, 6), [0, 1, 2, 3]);
        assert_eq!(evenly(11, 6), [0, 2, 4, 6, 8, 10]);
    }

    #[test]
    fn a_single_lesion_pixel_survives_shrinking() {
        let mut mask = vec![0u8; 1280 * 1280];
        mask[777 * 1280 + 1001] = 4;
        let small = shrink_mask(&mask, 1280);
        assert_eq!(small.iter().filter(|&&b| b == 4).count(), 1);
        assert_eq!(small[(777 * 600 / 1280) * 600 + 1001 * 600 / 1280], 4);
        assert!(shrink_mask(&[1; 16], 4).iter().all(|&b| b == 1));
    }

    #[test]
    fn cells_outside_the_grid_are_refused() {
        let outside = line("a", Some((0, 3)), 0, [0.0; 4]);
        assert!(cells_of(&[&outside], 3).is_none());
        assert!(cells_of(&[&outside], 4).unwrap()[3].is_some());
    }

    #[test]
    fn error_counts_cells_before_images() {
        let image = line("a", None, 0, [0.9; 4]);
        let cell = line("a", Some((0, 0)), 1, [0.9, 0.9, 0.1, 0.1]);
        assert_eq!(error_of(&[&image, &cell], 0.5), 0.25);
        assert_eq!(error_of(&[&image], 0.5), 1.0);
    }
}
