//! Where the windows of training samples lie in their images, and the labels under them.
//!
//! A sample stays a cell of the grid: the order, the ledger and the audit count cells, and each has one window per
//! epoch. With `data.cells = "centred"` that window lies elsewhere: around a lesion that reaches into the cell, with a
//! jitter; or, of a cell without lesion, anywhere in the field of view where there is none. All of it is a function of
//! (seed, epoch, sample id) and the image's mask. Evaluation does not use this module.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use fovea_coordinator::order::Unit;
use fovea_dataset::Dataset;
use fovea_kernels::philox::philox4x32;
use fovea_kernels::{Augment, CropSpec, crop_areas, draw};
use fovea_run::config::{CellPlaces, Config};
use fovea_task::{Kind, Label};

use crate::error::Result;
use crate::samples::augment;

/// First block of the Philox counter that windows are drawn from; augmentation uses those from 0 on.
const BLOCK: u32 = 1 << 16;
/// Places that are tried for a window without lesion, before it stays on its cell.
const ATTEMPTS: u32 = 16;

/// Top row and left column of a window, pixels.
pub type Corner = (u32, u32);

/// A point of an image, pixels: row and column.
type Middle = (u32, u32);

/// The windows of one dataset's training samples.
pub struct Windows {
    data: Arc<Dataset>,
    places: CellPlaces,
    min_lesion_pixels: u32,
    augment: Augment,
    seed: u64,
    /// Per image, the middles of the lesions that reach into each cell, `[grid * grid]`; found when first asked for.
    lesions: Vec<OnceLock<Vec<Vec<Middle>>>>,
}

impl Windows {
    /// The windows of a configuration; `None` where every sample has its cell's window and label: by configuration, or
    /// because the dataset has no masks.
    pub fn new(data: &Arc<Dataset>, config: &Config) -> Option<Self> {
        let wanted = config.data.cells != CellPlaces::Grid || config.data.window_labels;
        if !wanted || !has_masks(data) {
            return None;
        }
        Some(Self {
            places: config.data.cells,
            min_lesion_pixels: config.data.min_lesion_pixels,
            augment: augment(config),
            seed: config.train.seed,
            lesions: (0..data.len()).map(|_| OnceLock::new()).collect(),
            data: Arc::clone(data),
        })
    }

    /// The windows of a unit's cells in `epoch`, before the augmentation shifts them, and the labels under them as the
    /// augmentation shows them. `cells` are the labels of all cells of the image, `[grid * grid]`.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] for a mask of another size than the image, which a checked dataset does not have.
    pub fn of(
        &self,
        unit: &Unit,
        cells: &[Label],
        epoch: u32,
    ) -> Result<(Vec<Corner>, Vec<Label>)> {
        let image = unit.image as usize;
        let mask = self.data.mask(image).unwrap_or_default();
        let grid = self.data.grid() as u64;
        let (mut corners, mut labels) = (Vec::new(), Vec::new());
        for &cell in &unit.cells {
            let id = u64::from(unit.image) * grid * grid + u64::from(cell);
            let drawn = Drawn {
                seed: self.seed,
                epoch,
                id,
            };
            let label = cells[usize::from(cell)];
            let corner = self.corner(image, mask, cell, label, drawn)?;
            let draw = draw(self.seed, epoch, id, &self.augment);
            let counts = self.counts(mask, corner, &draw)?;
            corners.push(corner);
            labels.push(self.label(&counts));
        }
        Ok((corners, labels))
    }

    fn counts(&self, mask: &[u8], (y, x): Corner, draw: &fovea_kernels::Draw) -> Result<[u32; 8]> {
        let spec = CropSpec {
            image: 0,
            y,
            x,
            sample_id: 0,
        };
        let size = self.data.size();
        Ok(crop_areas(
            mask,
            (size, size),
            &spec,
            self.data.patch(),
            draw,
        )?)
    }

    fn label(&self, counts: &[u32; 8]) -> Label {
        self.data.label_of_areas(counts, self.min_lesion_pixels)
    }

    fn corner(
        &self,
        image: usize,
        mask: &[u8],
        cell: u16,
        label: Label,
        drawn: Drawn,
    ) -> Result<Corner> {
        let (grid, patch) = (self.data.grid() as u32, self.data.patch() as u32);
        let on_grid = (
            u32::from(cell) / grid * patch,
            u32::from(cell) % grid * patch,
        );
        let [coin, which, ..] = drawn.words(0);
        match self.places {
            CellPlaces::Grid => return Ok(on_grid),
            CellPlaces::Mixed if coin >> 31 == 0 => return Ok(on_grid),
            CellPlaces::Mixed | CellPlaces::Centred => {}
        }
        if !self.has_lesion(label) {
            return self.without_lesion(image, mask, on_grid, label, drawn);
        }
        let lesions = self.lesions[image].get_or_init(|| {
            let classes = self.data.task().cell_classes().len();
            middles(mask, self.data.size(), self.data.patch(), classes)
        });
        let there = &lesions[usize::from(cell)];
        Ok(match there.len() {
            // The areas count a lesion where the mask has none: only another program's dataset can say so.
            0 => on_grid,
            count => self.around(there[below(which, count as u32) as usize], drawn),
        })
    }

    fn has_lesion(&self, label: Label) -> bool {
        match self.data.task().cells().map(|target| target.kind) {
            Some(Kind::AnyOf) => label.is_known() && label.0 != 0,
            Some(Kind::OneOf) => label.is_known(),
            None => false,
        }
    }

    /// The window around a point, moved by up to a quarter of its side and clamped into the image.
    fn around(&self, (y, x): Middle, drawn: Drawn) -> Corner {
        let (size, patch) = (self.data.size() as u32, self.data.patch() as u32);
        let jitter = patch / 4;
        let [.., down, right] = drawn.words(0);
        let start = |middle: u32, word: u32| {
            let moved = middle + below(word, 2 * jitter + 1);
            moved.saturating_sub(jitter + patch / 2).min(size - patch)
        };
        (start(y, down), start(x, right))
    }

    /// A window anywhere that is not black and has the label of a cell without lesion; the cell's own if none is found.
    fn without_lesion(
        &self,
        image: usize,
        mask: &[u8],
        on_grid: Corner,
        label: Label,
        drawn: Drawn,
    ) -> Result<Corner> {
        let places = (self.data.size() - self.data.patch()) as u32 + 1;
        for attempt in 0..ATTEMPTS {
            let [down, right, ..] = drawn.words(1 + attempt);
            let corner = (below(down, places), below(right, places));
            let counts = self.counts(mask, corner, &fovea_kernels::Draw::IDENTITY)?;
            if self.label(&counts) == label && !self.is_black(image, corner) {
                return Ok(corner);
            }
        }
        Ok(on_grid)
    }

    /// Whether a window is black by the rule for cells.
    fn is_black(&self, image: usize, (top, left): Corner) -> bool {
        let (manifest, patch) = (self.data.manifest(), self.data.patch());
        let view = self.data.image(image);
        let (rows, start) = (view.data.chunks_exact(3 * view.width), 3 * left as usize);
        let dark: usize = rows
            .skip(top as usize)
            .take(patch)
            .map(|row| {
                let (pixels, _) = row[start..start + 3 * patch].as_chunks::<3>();
                let is_dark = |p: &&[u8; 3]| p.iter().all(|v| *v < manifest.black_level);
                pixels.iter().filter(is_dark).count()
            })
            .sum();
        dark as f64 >= manifest.black_fraction * (patch * patch) as f64
    }
}

/// Whether the prepared dataset has what windows and their labels are made from.
pub fn has_masks(data: &Dataset) -> bool {
    data.manifest().recipe.mask && data.task().cells().is_some()
}

/// What a sample's window is drawn from.
#[derive(Clone, Copy)]
struct Drawn {
    seed: u64,
    epoch: u32,
    id: u64,
}

impl Drawn {
    /// Four random words of the sample. Number 0 is (whether on the grid, which lesion, jitter down, jitter right), number
    /// 1 + k attempt k at a window without lesion (down, right, unused, unused).
    fn words(self, number: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let counter = [
            self.id as u32,
            (self.id >> 32) as u32,
            self.epoch,
            BLOCK + number,
        ];
        philox4x32(counter, key)
    }
}

/// Uniform in `0..limit`.
fn below(word: u32, limit: u32) -> u32 {
    ((u64::from(word) * u64::from(limit)) >> 32) as u32
}

/// PixelSums of the pixels of a lesion, or of its part in one cell.
#[derive(Clone, Copy, Default)]
struct PixelSums {
    count: u64,
    y: u64,
    x: u64,
}

impl PixelSums {
    fn add(&mut self, y: usize, x: usize) {
        self.count += 1;
        self.y += y as u64;
        self.x += x as u64;
    }

    fn middle(&self) -> Middle {
        let half = self.count / 2;
        let mean = |sum: u64| ((sum + half) / self.count.max(1)) as u32;
        (mean(self.y), mean(self.x))
    }
}

/// For each cell, `[grid * grid]`, the middles of the lesions that reach into it, class by class. A lesion is a set of
/// pixels of one class that touch at sides or corners. Its middle is its centre of mass; of one that is larger than a
/// window, that of its part in the cell. `mask` is `[size, size]` class bits.
fn middles(mask: &[u8], size: usize, patch: usize, classes: usize) -> Vec<Vec<Middle>> {
    let grid = size / patch;
    let mut cells = vec![Vec::new(); grid * grid];
    let mut seen = vec![0u8; mask.len()];
    let mut waiting = Vec::new();
    for bit in (0..classes.min(8)).map(|class| 1u8 << class) {
        for (start, bits) in mask.iter().enumerate() {
            if bits & bit == 0 || seen[start] & bit != 0 {
                continue;
            }
            let (mut all, mut parts) = (PixelSums::default(), BTreeMap::<usize, PixelSums>::new());
            let (mut rows, mut columns) = ((size, 0), (size, 0));
            seen[start] |= bit;
            waiting.push(start);
            while let Some(at) = waiting.pop() {
                let (y, x) = (at / size, at % size);
                all.add(y, x);
                let cell = y / patch * grid + x / patch;
                parts.entry(cell).or_default().add(y, x);
                rows = (rows.0.min(y), rows.1.max(y));
                columns = (columns.0.min(x), columns.1.max(x));
                for y in y.saturating_sub(1)..(y + 2).min(size) {
                    for x in x.saturating_sub(1)..(x + 2).min(size) {
                        let next = y * size + x;
                        if mask[next] & bit != 0 && seen[next] & bit == 0 {
                            seen[next] |= bit;
                            waiting.push(next);
                        }
                    }
                }
            }
            let fits = rows.1 - rows.0 < patch && columns.1 - columns.0 < patch;
            for (cell, part) in parts {
                cells[cell].push(if fits { all.middle() } else { part.middle() });
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests;
