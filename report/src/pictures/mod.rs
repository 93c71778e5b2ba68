//! Sample predictions as pictures: what the photograph holds, what the model says, how sure it is.

mod mistakes;
mod overlay;
mod sheet;

use std::collections::BTreeMap;

use fovea_dataset::{Dataset, ImageView};
use fovea_run::metrics::predicted;
use fovea_run::predictions::Prediction;
use fovea_task::{Label, Level, Target};
use image::{RgbImage, imageops};

use super::run::Run;

pub(super) use mistakes::{ClassMistakes, mistakes};
pub(super) use overlay::{HEAT_STOPS, heat_colour};
pub(super) use sheet::sheet;

/// Side of a panel in pixels.
pub(super) const PANEL: u32 = 600;
/// Images shown at most.
const SHOWN: usize = 6;

/// What a model says about one cell or image, beside the truth.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guess {
    /// The label in the dataset; unknown where it has none.
    pub(super) label: Label,
    /// The label that the model predicts.
    pub(super) predicted: Label,
    /// Probability per class of the target.
    pub(super) probabilities: Vec<f32>,
}

impl Guess {
    fn of(target: &Target, line: &Prediction, thresholds: &[Vec<f32>]) -> Self {
        Self {
            label: line.label,
            predicted: predicted(target, &line.probabilities, &thresholds[line.target]),
            probabilities: line.probabilities.clone(),
        }
    }

    /// Share of the target's classes that are wrongly there or wrongly missing.
    fn error(&self, target: &Target) -> f64 {
        let wrong = |c: &usize| target.has(self.label, *c) != target.has(self.predicted, *c);
        let classes = target.classes.len();
        (0..classes).filter(wrong).count() as f64 / classes as f64
    }
}

/// One image with everything that is drawn on it.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) id: String,
    /// The photograph, scaled to `[PANEL, PANEL]` pixels.
    photo: RgbImage,
    /// Class bits per pixel of the panel, `[PANEL * PANEL]`.
    mask: Option<Vec<u8>>,
    grid: usize,
    /// The target whose answers `cells` are.
    pub(super) target: Target,
    /// `[grid * grid]`; black cells have none.
    cells: Vec<Option<Guess>>,
    /// What is said of the whole image, per target.
    pub(super) image: Vec<(Target, Guess)>,
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
    /// Draws truth, prediction and probabilities.
    pub(super) fn panels(&self) -> Panels {
        Panels {
            truth: overlay::truth(self),
            prediction: overlay::prediction(self),
            heat: overlay::heat(self),
        }
    }

    pub(super) fn has_mask(&self) -> bool {
        self.mask.is_some()
    }
}

/// Scenes of up to six validation images, evenly spaced from the best predicted to the worst.
/// `Err` says, for the reader of the report, why there are none.
pub(super) fn scenes(run: &Run) -> Result<Vec<Scene>, String> {
    // The report says already that there are no predictions; without cells there is nothing to mark.
    let Some(target) = run.task.cells().filter(|_| !run.predictions.is_empty()) else {
        return Ok(Vec::new());
    };
    let because = |reason: &str| format!("No sample pictures: {reason}.");
    let data = dataset(run).map_err(|reason| because(&reason))?;
    let dir = data.dir().display();
    let scenes =
        from_dataset(run, &data, target).map_err(|reason| because(&format!("{reason} {dir}")))?;
    if scenes.is_empty() {
        return Err(because(&format!(
            "no predicted image is in the dataset {dir}"
        )));
    }
    Ok(scenes)
}

/// The dataset that the run was trained on. `Err` says why it cannot be read, as a part of a sentence.
fn dataset(run: &Run) -> Result<Dataset, String> {
    let Some(dir) = run.dataset_dir() else {
        return Err(match run.config.data.path.as_str() {
            "" => "data.path is not set in config.toml".to_owned(),
            path => format!("there is no prepared dataset at {path} (data.path in config.toml)"),
        });
    };
    Dataset::open_unverified(&dir).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        first.trim_end_matches('.').to_owned()
    })
}

/// `Err` ends in a preposition that wants the dataset's directory.
fn from_dataset(run: &Run, data: &Dataset, target: &Target) -> Result<Vec<Scene>, String> {
    let thresholds = &run.thresholds;
    let mut by_image: BTreeMap<&str, Vec<&Prediction>> = BTreeMap::new();
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
        .map(|(id, lines)| (error_of(run.task.targets(), thresholds, lines), *id))
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    let chosen = evenly(ranked.len(), SHOWN);
    chosen
        .into_iter()
        .map(|i| {
            let (error, id) = ranked[i];
            let at = index[id];
            let grid = data.grid();
            let cells = cells_of(&by_image[id], grid, target, thresholds).ok_or_else(|| {
                format!("predictions of image {id} name cells outside the {grid} x {grid} grid of")
            })?;
            let whole = by_image[id].iter().filter(|line| line.cell.is_none());
            let told = whole.map(|line| {
                let target = &run.task.targets()[line.target];
                (target.clone(), Guess::of(target, line, thresholds))
            });
            Ok(Scene {
                id: id.to_owned(),
                photo: photo(&data.image(at))?,
                mask: data.mask(at).map(|mask| shrink_mask(mask, data.size())),
                grid,
                target: target.clone(),
                cells,
                image: told.collect(),
                error,
            })
        })
        .collect()
}

/// Mean share of wrong class bits, over labelled cells if there are any, else over what is said of the image.
fn error_of(targets: &[Target], thresholds: &[Vec<f32>], lines: &[&Prediction]) -> f64 {
    let at = |level: Level| -> Vec<f64> {
        let lines = lines.iter().filter(|line| line.label.is_known());
        let lines = lines.map(|line| (&targets[line.target], line));
        lines
            .filter(|(target, _)| target.level == level)
            .map(|(target, line)| Guess::of(target, line, thresholds).error(target))
            .collect()
    };
    let cells = at(Level::Patch);
    let all = if cells.is_empty() {
        at(Level::Image)
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
fn cells_of(
    lines: &[&Prediction],
    grid: usize,
    target: &Target,
    thresholds: &[Vec<f32>],
) -> Option<Vec<Option<Guess>>> {
    let mut cells = vec![None; grid * grid];
    for line in lines {
        if let Some((row, col)) = line.cell {
            let (row, col) = (row as usize, col as usize);
            if row >= grid || col >= grid {
                return None;
            }
            cells[row * grid + col] = Some(Guess::of(target, line, thresholds));
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
    use fovea_task::Task;

    /// A scene with a class bit in every corner of the mask and all kinds of cells.
    pub(in super::super) fn scene() -> Scene {
        let panel = PANEL as usize;
        let mut mask = vec![0u8; panel * panel];
        for y in 100..130 {
            for x in 200..240 {
                mask[y * panel + x] = 0b0001;
            }
        }
        let task = Task::lesions();
        let guess = |label, p: f32| {
            let line = line("", None, label, [p, 1.0 - p, 0.2, 0.9]);
            Guess::of(&task.targets()[0], &line, &[vec![0.5; 4]])
        };
        let cell = |label, p| Some(guess(label, p));
        Scene {
            id: "eye <1>".to_owned(),
            photo: RgbImage::from_pixel(PANEL, PANEL, image::Rgb([120, 60, 30])),
            mask: Some(mask),
            grid: 2,
            target: task.cells().unwrap().clone(),
            cells: vec![cell(0b1001, 0.9), None, cell(0, 0.1), cell(0b0111, 0.5)],
            image: vec![(task.targets()[0].clone(), guess(0b0101, 0.8))],
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
        let task = Task::lesions();
        let cells = |grid| {
            let thresholds = [vec![0.5; 4], vec![0.5; 4]];
            cells_of(&[&outside], grid, task.cells().unwrap(), &thresholds)
        };
        assert!(cells(3).is_none());
        assert!(cells(4).unwrap()[3].is_some());
    }

    #[test]
    fn error_counts_cells_before_images() {
        let image = line("a", None, 0, [0.9; 4]);
        let cell = line("a", Some((0, 0)), 1, [0.9, 0.9, 0.1, 0.1]);
        let task = Task::lesions();
        let thresholds = [vec![0.5; 4], vec![0.5; 4]];
        let error = |lines: &[&Prediction]| error_of(task.targets(), &thresholds, lines);
        assert_eq!(error(&[&image, &cell]), 0.25);
        assert_eq!(error(&[&image]), 1.0);
        let unknown = Prediction {
            label: Label::UNKNOWN,
            ..cell.clone()
        };
        assert_eq!(error(&[&image, &unknown]), 1.0);
    }
}
