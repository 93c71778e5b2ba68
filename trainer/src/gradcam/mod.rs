//! Grad-CAM: where in a picture the evidence for a class lies (Selvaraju et al., ICCV 2017).
//!
//! For a score y and the last feature maps A of a branch, channel k weighs `a_k = mean over pixels of dy / dA_k`, and the
//! map is `relu(sum_k a_k A_k)`, one per picture that the branch reads. The score of a branch that reads whole images is
//! the class's logit of the image; of one that reads cells, the sum of the class's logits over the cells. (A task without
//! a target at a branch's level uses its other one.) All of it is in evaluation mode: running statistics, no dropout.

use std::sync::Arc;

use fovea_dataset::{BadFile, Dataset, PhotoFile};
use fovea_run::metrics::predicted;
use fovea_task::{Class, Level, Target, Task};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::evaluate::probabilities;
use crate::host;
use crate::lanes::ReadOnly;
use crate::models::{BranchMaps, Recorder};
use crate::predict::{OpenedPhoto, Predictor};
use crate::replica::Replica;
use crate::samples::ShardBatch;

/// A map over a picture, row-major, not scaled: 0 where nothing speaks for the class.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[height, width]`, 0 or more.
    pub values: Vec<f32>,
}

/// Where one branch of a model sees one class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassMap {
    /// Name of the class.
    pub class: String,
    /// Name of the branch.
    pub branch: &'static str,
    /// The map over the whole picture; cells that the branch does not read are 0.
    pub map: HeatMap,
}

/// A picture, and where a model looks in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Its id in tables.
    pub id: String,
    /// The square picture that the model reads, `[side, side, 3]`.
    pub pixels: Vec<u8>,
    /// Its side in pixels.
    pub side: usize,
    /// A map per class and branch.
    pub maps: Vec<ClassMap>,
    /// Attention of the image's token to each cell, `[grid, grid]`, averaged over heads; 0 for cells that are not read.
    /// `None` for a model without attention between an image and its cells.
    pub attention: Option<HeatMap>,
}

/// The maps of one class: of each branch, one `[h, w]` per picture of it.
struct Cams {
    branch: &'static str,
    level: Level,
    /// Number of pictures, height, width.
    shape: [usize; 3],
    values: Vec<f32>,
}

/// The classes to explain of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those that the model predicts, or the most probable one.
    Predicted,
    /// These.
    Named(Vec<String>),
}

impl Wanted {
    /// Refuses classes that the task does not have.
    ///
    /// # Errors
    /// [`Error::Usage`] with the names that there are.
    pub fn check(&self, task: &Task) -> Result<()> {
        let Self::Named(names) = self else {
            return Ok(());
        };
        let known = fovea_run::metrics::class_names(task);
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Error::Usage {
                what: format!("--class {name}: the model knows no such class"),
                help: format!("choose among {}", known.join(", ")),
            }),
        }
    }
}

impl Predictor {
    /// Explains photographs; one that cannot be read does not keep the others from it. Calls `tick` after each.
    ///
    /// # Errors
    /// The model records no maps, or its answer is not finite.
    pub fn explain_photos(
        &self,
        photos: &[PhotoFile],
        wanted: &Wanted,
        each: &mut dyn FnMut(std::result::Result<Explained, BadFile>) -> Result<()>,
    ) -> Result<()> {
        let work = |model: &Self, i: usize| {
            let opened = match model.open_photo(&photos[i])? {
                Ok(opened) => opened,
                Err(bad) => return Ok(Err(bad)),
            };
            model.explain(&photos[i].id, opened, wanted).map(Ok)
        };
        self.in_lanes(photos.len(), work, each)
    }

    /// Explains images of a prepared dataset, given as indices.
    ///
    /// # Errors
    /// As [`Predictor::explain_photos`]; also when the dataset is of another task.
    pub fn explain_images(
        &self,
        data: &Arc<Dataset>,
        images: &[usize],
        wanted: &Wanted,
        each: &mut dyn FnMut(std::result::Result<Explained, BadFile>) -> Result<()>,
    ) -> Result<()> {
        let source = self.source(Arc::clone(data))?;
        let work = |model: &Self, i: usize| {
            let unit = source.whole_image(images[i]);
            let opened = OpenedPhoto {
                batch: source.load(std::slice::from_ref(&unit), None)?,
                pixels: data.image(images[i]).data.to_vec(),
                side: data.size(),
                grid: data.grid() as u32,
                cells: unit.cells,
                note: None,
            };
            let id = &data.manifest().images[images[i]].id;
            model.explain(id, opened, wanted).map(Ok)
        };
        self.in_lanes(images.len(), work, each)
    }

    /// Runs `work` for each number below `count`, as many at a time as there are lanes, and hands over the results in
    /// order.
    fn in_lanes<T: Send>(
        &self,
        count: usize,
        work: impl Fn(&Self, usize) -> Result<T> + Sync,
        each: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()> {
        // SAFETY: a pass in evaluation mode reads the replica; gradients are returned, never accumulated into a leaf.
        let shared = unsafe { ReadOnly::new(self) };
        let lanes = self.replica().lanes();
        let numbers: Vec<usize> = (0..count).collect();
        for together in numbers.chunks(lanes.count()) {
            let done = lanes.run(together.len(), |i| work(shared.get(), together[i]))?;
            done.into_iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }

    fn explain(&self, id: &str, opened: OpenedPhoto, wanted: &Wanted) -> Result<Explained> {
        let threshold = self.config().eval.threshold;
        let grid = opened.grid as usize;
        let choose = |logits: &[Vec<f32>]| match wanted {
            Wanted::Named(names) => names.clone(),
            Wanted::Predicted => chosen(self.task(), logits, threshold),
        };
        let found = class_maps(self.replica(), self.task(), &opened.batch, choose)?;
        let maps = found.classes.into_iter().flat_map(|(class, cams)| {
            let map = |cams: Cams| ClassMap {
                class: class.clone(),
                branch: cams.branch,
                map: over_picture(&cams, grid, &opened.cells),
            };
            cams.into_iter().map(map).collect::<Vec<_>>()
        });
        let attention = found.attention.filter(|a| a.len() == opened.cells.len());
        Ok(Explained {
            id: id.to_owned(),
            side: opened.side,
            maps: maps.collect(),
            attention: attention.filter(|a| !a.is_empty()).map(|shares| {
                let cams = Cams {
                    branch: "attention",
                    level: Level::Patch,
                    shape: [shares.len(), 1, 1],
                    values: shares,
                };
                over_picture(&cams, grid, &opened.cells)
            }),
            pixels: opened.pixels,
        })
    }
}

/// The maps of the chosen classes of one picture, and the image token's attention to each cell.
struct Found {
    classes: Vec<(String, Vec<Cams>)>,
    attention: Option<Vec<f32>>,
}

/// Runs the model on a batch of one image, and follows each class that `choose` takes from the logits back to the maps.
fn class_maps(
    replica: &Replica,
    task: &Task,
    batch: &ShardBatch,
    choose: impl FnOnce(&[Vec<f32>]) -> Vec<String>,
) -> Result<Found> {
    let recorder = Recorder::default();
    let out = replica.record(batch, &recorder)?;
    let (branches, attention) = recorder.into_parts();
    if branches.is_empty() {
        return Err(Error::Usage {
            what: "this model keeps no feature maps, so there is nothing to draw".to_owned(),
            help: "choose a checkpoint of another model (docs/models.md)".to_owned(),
        });
    }
    let logits: Vec<Vec<f32>> = out.iter().map(numbers).collect::<Result<_>>()?;
    if !logits.iter().flatten().all(|z| z.is_finite()) {
        return Err(Error::Usage {
            what: "the model's answer is not finite (NaN or infinite)".to_owned(),
            help: "these weights are of no use: take an earlier checkpoint, or other weights"
                .to_owned(),
        });
    }
    let mut classes = Vec::new();
    for class in choose(&logits) {
        let of_branch = |branch: &BranchMaps| -> Result<Option<Cams>> {
            let scored = score(task, &class, branch.branch.level, &out)?;
            match scored {
                Some(score) if branch.maps.size()[0] > 0 => cams(branch, &score).map(Some),
                _ => Ok(None),
            }
        };
        let found: Vec<Option<Cams>> = branches.iter().map(of_branch).collect::<Result<_>>()?;
        classes.push((class, found.into_iter().flatten().collect()));
    }
    // Token 0 is the image; the batch has one.
    let shares = |weights: Tensor| -> Result<Vec<f32>> {
        let row = weights.f_get(0)?.f_get(0)?;
        numbers(&row.f_narrow(0, 1, row.size()[0] - 1)?)
    };
    Ok(Found {
        classes,
        attention: attention.map(shares).transpose()?,
    })
}

/// The score of a class for a branch: its logits, summed over the rows of the target at the branch's level, or of
/// another target that has the class. `None` without one, or when it has no rows.
fn score(task: &Task, class: &str, level: Level, logits: &[Tensor]) -> Result<Option<Tensor>> {
    let place = |target: &Target| {
        let mut classes = target.classes.iter();
        classes.position(|c: &Class| c.name == class)
    };
    let targets = task.targets().iter().zip(logits);
    let having: Vec<_> = targets
        .filter_map(|(target, logits)| Some((target, logits, place(target)?)))
        .filter(|(_, logits, _)| logits.size()[0] > 0)
        .collect();
    let same = having.iter().find(|(target, ..)| target.level == level);
    match same.or(having.first()) {
        None => Ok(None),
        Some((_, logits, at)) => Ok(Some(logits.f_select(1, *at as i64)?.f_sum(Kind::Float)?)),
    }
}

/// The map of each picture of a branch for a score.
fn cams(branch: &BranchMaps, score: &Tensor) -> Result<Cams> {
    let maps = &branch.maps;
    // The graph stays for the other classes and branches.
    let gradients = Tensor::f_run_backward(&[score], &[maps], true, false)?;
    let gradient = match gradients.into_iter().next() {
        Some(gradient) if gradient.defined() => gradient,
        _ => maps.f_zeros_like()?,
    };
    let _guard = tch::no_grad_guard();
    let pixels = [2i64, 3];
    let weights = gradient.f_mean_dim(pixels.as_slice(), true, Kind::Float)?;
    let weighted = weights.f_mul(&maps.f_to_kind(Kind::Float)?)?;
    let sum = weighted.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
    let cam = sum.f_relu()?;
    let shape = cam.size();
    Ok(Cams {
        branch: branch.branch.name,
        level: branch.branch.level,
        shape: [shape[0] as usize, shape[1] as usize, shape[2] as usize],
        values: numbers(&cam)?,
    })
}

/// The numbers of a tensor, on the host.
fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    Ok(host::slice(&tensor)?.to_vec())
}

/// The classes that a model predicts for an image, by its targets at image level, or else of any cell; the most probable
/// class when it predicts none.
fn chosen(task: &Task, logits: &[Vec<f32>], threshold: f32) -> Vec<String> {
    let level = match task.at(Level::Image).next() {
        Some(_) => Level::Image,
        None => Level::Patch,
    };
    let mut names: Vec<String> = Vec::new();
    let mut most: Option<(f32, String)> = None;
    for (target, logits) in task.targets().iter().zip(logits) {
        if target.level != level {
            continue;
        }
        let classes = target.classes.len();
        for row in logits.chunks_exact(classes) {
            let p = probabilities(target, row);
            let label = predicted(target, &p, &vec![threshold; classes]);
            for (index, class) in target.classes.iter().enumerate() {
                if target.has(label, index) && !names.contains(&class.name) {
                    names.push(class.name.clone());
                }
                if most.as_ref().is_none_or(|(best, _)| p[index] > *best) {
                    most = Some((p[index], class.name.clone()));
                }
            }
        }
    }
    if names.is_empty() {
        names.extend(most.map(|(_, name)| name));
    }
    names
}

/// The map over a picture: that of its one whole image, or those of its cells in their places.
fn over_picture(cams: &Cams, grid: usize, cells: &[u16]) -> HeatMap {
    let [_, h, w] = cams.shape;
    if cams.level == Level::Image {
        return HeatMap {
            height: h,
            width: w,
            values: cams.values[..h * w].to_vec(),
        };
    }
    let width = grid * w;
    let mut values = vec![0.0; grid * h * width];
    for (cell, map) in cells.iter().zip(cams.values.chunks_exact(h * w)) {
        let (row, col) = (usize::from(*cell) / grid, usize::from(*cell) % grid);
        for (y, line) in map.chunks_exact(w).enumerate() {
            let start = (row * h + y) * width + col * w;
            values[start..start + w].copy_from_slice(line);
        }
    }
    HeatMap {
        height: grid * h,
        width,
        values,
    }
}

impl HeatMap {
    /// The map at another size, its values from 0 to 1, as the package `pytorch-grad-cam` has it: scaled to its extremes,
    /// enlarged bilinearly (pixel centres, borders repeated), and scaled again. Constant maps become 0.
    #[must_use]
    pub fn scaled(&self, height: usize, width: usize) -> Self {
        let values = to_extremes(&self.values);
        let rows = places(self.height, height);
        let cols = places(self.width, width);
        let mut large = Vec::with_capacity(height * width);
        for &(y, below, v) in &rows {
            for &(x, right, h) in &cols {
                let at = |y: usize, x: usize| values[y * self.width + x];
                let upper = at(y, x) * (1.0 - h) + at(y, right) * h;
                let lower = at(below, x) * (1.0 - h) + at(below, right) * h;
                large.push(upper * (1.0 - v) + lower * v);
            }
        }
        Self {
            height,
            width,
            values: to_extremes(&large),
        }
    }
}

/// Values from 0 at the least to 1 at the most.
fn to_extremes(values: &[f32]) -> Vec<f32> {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().map(|v| v - least).fold(0.0, f32::max);
    values.iter().map(|v| (v - least) / (1e-7 + most)).collect()
}

/// For each of `to` pixels the two of `from` that it lies between, and the share of the second.
fn places(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let last = from.saturating_sub(1);
    (0..to)
        .map(|i| {
            let at = (i as f32 + 0.5) * from as f32 / to as f32 - 0.5;
            let at = at.clamp(0.0, last as f32);
            let low = at.floor() as usize;
            (low, (low + 1).min(last), at - low as f32)
        })
        .collect()
}

#[cfg(test)]
mod golden;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_their_place_in_the_picture() {
        let cams = Cams {
            branch: "local",
            level: Level::Patch,
            shape: [2, 1, 2],
            values: vec![1.0, 2.0, 3.0, 4.0],
        };
        // Cell 1 is black.
        let map = over_picture(&cams, 2, &[0, 3]);
        assert_eq!((map.height, map.width), (2, 4));
        assert_eq!(map.values, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn maps_are_enlarged_around_pixel_centres() {
        let map = HeatMap {
            height: 1,
            width: 2,
            values: vec![2.0, 6.0],
        };
        let large = map.scaled(1, 4);
        for (ours, theirs) in large.values.iter().zip([0.0, 0.25, 0.75, 1.0]) {
            assert!((ours - theirs).abs() < 1e-6, "{large:?}");
        }
        let flat = HeatMap {
            values: vec![3.0; 2],
            ..map
        };
        assert_eq!(flat.scaled(2, 2).values, [0.0; 4]);
    }

    #[test]
    fn the_predicted_classes_are_chosen_or_the_most_probable() {
        let task = Task::lesions();
        let chosen = |image: [f32; 4]| chosen(&task, &[image.to_vec(), vec![9.0; 4]], 0.5);
        assert_eq!(chosen([1.0, -1.0, 0.0, -2.0]), ["MA", "EX"]);
        assert_eq!(chosen([-1.0, -0.5, -3.0, -2.0]), ["HE"]);
        let cells = Task::new(vec![task.targets()[1].clone()]).unwrap();
        let of_cells = super::chosen(
            &cells,
            &[vec![-1.0, -1.0, -1.0, 1.0, -1.0, 2.0, -1.0, -1.0]],
            0.5,
        );
        assert_eq!(of_cells, ["SE", "HE"]);
    }

    #[test]
    fn unknown_classes_are_refused() {
        let wanted = Wanted::Named(vec!["MA".to_owned(), "XX".to_owned()]);
        let error = wanted.check(&Task::lesions()).unwrap_err().to_string();
        assert!(
            error.contains("--class XX") && error.contains("MA, HE, EX, SE"),
            "{error}"
        );
        assert!(Wanted::Predicted.check(&Task::lesions()).is_ok());
    }
}
