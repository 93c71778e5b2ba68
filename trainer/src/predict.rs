//! Probabilities for a prepared dataset, or for photographs straight from the camera.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use fovea_coordinator::order::Grain;
use fovea_dataset::{BadFile, Dataset, Framing, PhotoFile, frame_photo, list_photos, load_photo};
use fovea_kernels::ImageU8;
use fovea_run::checkpoint;
use fovea_run::config::Config;
use fovea_run::metrics::Metrics;
use fovea_run::predictions::Prediction;
use fovea_task::{Label, Level, Task};

use crate::error::{Error, Result};
use crate::evaluate::{self, Answers};
use crate::lanes::{ReadOnly, ThreadLanes};
use crate::models;
use crate::objective::{objective, unweighted};
use crate::precision::{Precision, native_bf16};
use crate::replica::Replica;
use crate::samples::{Assembler, SampleSource};
use crate::train;
use crate::weights::checkpoint_in;

/// The form of the images that a model was trained on, to which photographs are brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageForm {
    /// Side of an image, pixels.
    image: u32,
    /// Side of a grid cell, pixels; 0 without a grid.
    patch: u32,
    /// What of a photograph is kept, and how it is brought to that size.
    framing: Framing,
}

impl ImageForm {
    /// Cells along a side of an image.
    fn grid(self) -> usize {
        self.image.checked_div(self.patch).unwrap_or(0) as usize
    }
}

impl std::fmt::Display for ImageForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pixels", self.image)?;
        if self.patch > 0 {
            write!(f, " with patches of {}", self.patch)?;
        }
        if !self.framing.is_usual() {
            write!(f, " (crop {}, fit {})", self.framing.crop, self.framing.fit)?;
        }
        Ok(())
    }
}

/// The form that is assumed for weights alone: the defaults of `prepare`.
const USUAL: ImageForm = ImageForm {
    image: 1280,
    patch: 128,
    framing: Framing {
        crop: fovea_dataset::Crop::Fov,
        fit: fovea_dataset::Fit::Pad,
    },
};
/// Preset that is assumed for weights alone.
const USUAL_PRESET: &str = "hybrid";

/// Trained weights with the task and the configuration they were trained with.
pub struct Predictor {
    task: Task,
    grain: Grain,
    reads_images: bool,
    config: Config,
    replica: Replica,
    precision: Precision,
    form: ImageForm,
}

/// The result of scoring photographs.
#[derive(Debug, Default)]
pub struct ScoredPhotographs {
    /// Predictions for the photographs that could be read.
    pub rows: Vec<Prediction>,
    /// The other photographs, in the order given.
    pub bad: Vec<BadFile>,
}

impl Predictor {
    /// Loads a checkpoint directory, a run directory or its `checkpoints` (the best checkpoint, else the newest), or a
    /// bare `.safetensors` file of weights. Such a file does not name its model, so the preset `hybrid` and the default
    /// sizes are assumed, with a warning. `adjust` may change the configuration before its use.
    pub fn load(path: &Path, adjust: impl FnOnce(&mut Config) -> Result<()>) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = ThreadLanes::over(threads, threads)?;
        let path = checkpoint_in(path)?;
        let (mut config, weights, form, task) = if path.is_dir() {
            let loaded = checkpoint::load(&path)?;
            let state = &loaded.state;
            let origin = path.join(checkpoint::STATE).display().to_string();
            let form = ImageForm {
                image: state.image_size,
                patch: state.patch,
                framing: state.framing,
            };
            let config = Config::from_toml_str(&state.config, &origin)?;
            (config, loaded.weights, form, loaded.state.task)
        } else {
            let weights = checkpoint::load_weights(&path)?;
            (Config::preset(USUAL_PRESET)?, weights, USUAL, None)
        };
        adjust(&mut config)?;
        if !path.is_dir() {
            tracing::warn!(
                "{}: weights alone do not say what they were trained with; assumed: preset {USUAL_PRESET} with model.name = {}, \
                 data.global_size = {} (--set changes these), photographs of {} pixels, patches of {}",
                path.display(),
                config.model.name,
                config.data.global_size,
                form.image,
                form.patch
            );
        }
        let entry = models::find(&config.model.name)?;
        let precision = Precision::resolve(config.train.precision, native_bf16());
        let task = task.unwrap_or_else(Task::lesions);
        // Class weights only matter for the reported loss; `eval` sets them from the data.
        let objective = unweighted(&config.loss, &task)?;
        let mut replica = Replica::configured(&config, &task, precision, objective, lanes, None)?;
        train::restore_weights(&mut replica.net.params, &weights, &path)?;
        Ok(Self {
            grain: entry.grain,
            reads_images: entry.reads_images,
            task,
            config,
            replica,
            precision,
            form,
        })
    }

    fn source(&self, data: Dataset) -> SampleSource {
        let data = Arc::new(data);
        SampleSource::new(data, &self.config, self.grain, self.precision, false)
            .with_images(self.reads_images)
    }

    /// Returns an error unless the dataset has the task that the model was trained on.
    fn refuse_another_task(&self, data: &Dataset) -> Result<()> {
        if *data.task() == self.task {
            return Ok(());
        }
        let targets = |task: &Task| {
            let targets = task.targets().iter();
            let told = targets.map(|t| {
                let classes: Vec<&str> = t.classes.iter().map(|c| c.name.as_str()).collect();
                format!("{} ({})", t.name, classes.join(" "))
            });
            told.collect::<Vec<_>>().join(", ")
        };
        Err(Error::Usage {
            what: format!(
                "{} is labelled for {}, the model was trained for {}",
                data.dir().display(),
                targets(data.task()),
                targets(&self.task)
            ),
            help: "give a dataset with the labels of the training data, or photographs".to_owned(),
        })
    }

    /// Warns of sizes other than those of training: they are allowed, but the scores are then of another kind of
    /// picture.
    fn warn_of_other_sizes(&self, data: &Dataset) {
        let recipe = &data.manifest().recipe;
        let theirs = ImageForm {
            image: recipe.size,
            patch: recipe.patch,
            framing: recipe.framing,
        };
        let ours = self.form;
        if theirs != ours {
            let Framing { crop, fit } = ours.framing;
            let framing = match theirs.framing == ours.framing {
                true => String::new(),
                false => format!(" --crop {crop} --fit {fit}"),
            };
            tracing::warn!(
                "{} has images of {theirs}, the model was trained on {ours}: expect worse scores; \
                 `fovea prepare --size {} --patch {}{framing}` makes a dataset that fits",
                data.dir().display(),
                ours.image,
                ours.patch
            );
        }
    }

    /// The configuration of the training, with `adjust` applied.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The task that the model was trained on.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Scores all images of a prepared dataset.
    ///
    /// # Errors
    /// [`Error::Usage`] when the dataset is of another task, or an answer is not finite.
    pub fn dataset(&self, data: Dataset, mut tick: impl FnMut()) -> Result<Vec<Prediction>> {
        self.refuse_another_task(&data)?;
        self.warn_of_other_sizes(&data);
        let source = self.source(data);
        let images: Vec<usize> = (0..source.data().len()).collect();
        let answers = self.score(&source, &images, &mut tick)?;
        Ok(train::predictions(&answers, &source))
    }

    /// Answers and metrics of one split per target, with the loss weighted as in training; no metrics for a target
    /// without any label.
    ///
    /// # Errors
    /// [`Error::Usage`] when the split is empty, the dataset is of another task, or an answer is not finite.
    pub fn evaluate(
        &mut self,
        data: Dataset,
        split: fovea_dataset::Split,
        mut tick: impl FnMut(),
    ) -> Result<(Vec<Answers>, Vec<Option<Metrics>>)> {
        self.refuse_another_task(&data)?;
        self.warn_of_other_sizes(&data);
        let source = self.source(data);
        let images = evaluate::images_of(&source, split, 0, 1);
        if images.is_empty() {
            return Err(Error::Usage {
                what: format!(
                    "the {split} split of {} has no images",
                    source.data().dir().display()
                ),
                help: "choose another split with --split, or prepare more images".to_owned(),
            });
        }
        self.replica
            .set_objective(objective(&self.config.loss, &source)?);
        let answers = self.score(&source, &images, &mut tick)?;
        let threshold = self.config.eval.threshold;
        let summary = evaluate::summarise(&self.task, &answers, &self.replica, threshold)?;
        Ok((answers, summary))
    }

    /// Scores images of a prepared dataset; all answers are finite.
    fn score(
        &self,
        source: &SampleSource,
        images: &[usize],
        tick: &mut impl FnMut(),
    ) -> Result<Vec<Answers>> {
        let answers = evaluate::score(&self.replica, source, images, || {
            tick();
            Ok(())
        })?;
        let manifest = source.data().manifest();
        let cells = (u64::from(manifest.grid) * u64::from(manifest.grid)).max(1);
        let targets = self.task.targets().iter().zip(&answers);
        let bad = targets.flat_map(|(target, answers)| {
            let ids = answers.not_finite(target.classes.len());
            ids.map(move |id| match target.level {
                Level::Image => id,
                Level::Patch => id / cells,
            })
        });
        match bad.min() {
            None => Ok(answers),
            Some(image) => {
                let id = &manifest.images[image as usize].id;
                let what = format!("image {id} of {}", source.data().dir().display());
                Err(not_finite(&what))
            }
        }
    }

    /// Scores photographs at the sizes of training; calls `tick` after each. One that cannot be read does not keep the
    /// others from being scored.
    ///
    /// # Errors
    /// [`Error::Usage`] when two photographs have the same id, because their rows could not be told apart, or when an
    /// answer is not finite.
    pub fn photos(&self, paths: &[PhotoFile], mut tick: impl FnMut()) -> Result<ScoredPhotographs> {
        distinct_ids(paths)?;
        let mut scored = ScoredPhotographs::default();
        // SAFETY: an evaluation reads the replica.
        let shared = unsafe { ReadOnly::new(self) };
        let lanes = self.replica.lanes();
        for together in paths.chunks(lanes.count()) {
            for photo in lanes.run(together.len(), |i| shared.get().photo(&together[i]))? {
                match photo {
                    Ok(rows) => scored.rows.extend(rows),
                    Err(bad) => scored.bad.push(bad),
                }
                tick();
            }
        }
        Ok(scored)
    }

    /// Scores one photograph, cropped and resized as those of training; omits black cells.
    fn photo(&self, found: &PhotoFile) -> Result<std::result::Result<Vec<Prediction>, BadFile>> {
        let path = &found.path;
        let ImageForm {
            image,
            patch,
            framing,
        } = self.form;
        let photo = match load_photo(path) {
            Ok(photo) => frame_photo(&photo, framing, image, patch)?,
            Err(error) => return Ok(Err(BadFile::of(path, &error))),
        };
        let grid = self.form.grid();
        let assembler = Assembler {
            grid,
            patch: patch as usize,
            global_size: match self.reads_images {
                true => self.config.data.global_size as usize,
                false => 0,
            },
            precision: self.precision,
        };
        let cells: Vec<u16> = (0..grid * grid)
            .filter(|&c| self.grain == Grain::Cell && photo.black[c] == 0)
            .map(|c| c as u16)
            .collect();
        let size = image as usize;
        let batch = assembler.photo(
            ImageU8 {
                data: &photo.pixels,
                height: size,
                width: size,
            },
            cells.clone(),
        )?;
        let scores = self.replica.evaluate(&batch)?;
        if !scores.heads.iter().flatten().all(|x| x.is_finite()) {
            return Err(not_finite(&path.display().to_string()));
        }
        let note = photo.note.clone();
        if let Some(note) = &note {
            tracing::warn!("{}: {note}; its rows have usable = 0", path.display());
        }
        let grid = grid as u32;
        let places = |level| -> Vec<Option<(u32, u32)>> {
            let place = |&cell: &u16| Some((u32::from(cell) / grid, u32::from(cell) % grid));
            match level {
                Level::Image => vec![None],
                Level::Patch => cells.iter().map(place).collect(),
            }
        };
        let mut rows = Vec::new();
        for (index, (target, logits)) in self.task.targets().iter().zip(&scores.heads).enumerate() {
            let answers = logits.chunks_exact(target.classes.len());
            let answers = places(target.level).into_iter().zip(answers);
            rows.extend(answers.map(|(cell, logits)| Prediction {
                image_id: found.id.clone(),
                target: index,
                cell,
                label: Label::UNKNOWN,
                probabilities: evaluate::probabilities(target, logits),
                note: note.clone(),
            }));
        }
        rows.sort_by_key(|row| (row.cell, row.target));
        Ok(Ok(rows))
    }
}

/// The weights may be finite, and yet so large that the results are not.
fn not_finite(of: &str) -> Error {
    Error::Usage {
        what: format!(
            "{of}: the model's answer is not finite (NaN or infinite), so nothing is written"
        ),
        help: "these weights are of no use: take an earlier checkpoint, or other weights"
            .to_owned(),
    }
}

fn distinct_ids(photos: &[PhotoFile]) -> Result<()> {
    let mut seen: HashMap<&str, &Path> = HashMap::new();
    for PhotoFile { path, id } in photos {
        if let Some(other) = seen.insert(id, path) {
            return Err(Error::Usage {
                what: format!(
                    "{} and {} have the same name but for the extension, by which rows tell photographs apart",
                    other.display(),
                    path.display()
                ),
                help: "rename one of them, or remove it".to_owned(),
            });
        }
    }
    Ok(())
}

/// The photographs at a path, each with its id.
pub fn photos(path: &Path) -> Result<Vec<PhotoFile>> {
    Ok(list_photos(path)?)
}
