//! Probabilities for a prepared dataset, or for photographs straight from the camera.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use fovea_dataset::{BadFile, Dataset, PhotoFile, list_photos, load_photo, prepare_photo};
use fovea_kernels::{FocalParams, ImageU8};
use fovea_run::checkpoint;
use fovea_run::config::Config;
use fovea_run::metrics::Level;
use fovea_run::run_dir::Prediction;

use crate::error::{Error, Result};
use crate::evaluate::{self, Row, Summary, sigmoid};
use crate::lanes::{ReadOnly, ThreadLanes};
use crate::precision::{Precision, native_bf16};
use crate::replica::{Objective, Replica};
use crate::samples::{Assembler, SampleSource};
use crate::train;
use crate::weights::checkpoint_in;

/// What images a model was trained on, and photographs are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageSizes {
    /// Working size: pixels along an edge of an image.
    image: u32,
    /// Side of a grid cell in pixels.
    patch: u32,
}

/// What weights alone are taken to be trained on: what `prepare` makes when nothing else is asked for.
const USUAL: ImageSizes = ImageSizes {
    image: 1280,
    patch: 128,
};
/// And what model they are taken for.
const USUAL_PRESET: &str = "hybrid";

/// Trained weights with the configuration they were trained with.
pub struct Predictor {
    config: Config,
    replica: Replica,
    precision: Precision,
    sizes: ImageSizes,
}

/// What became of a folder of photographs.
#[derive(Debug, Default)]
pub struct ScoredPhotographs {
    /// Of those that could be read.
    pub rows: Vec<Prediction>,
    /// The others, in the order given.
    pub bad: Vec<BadFile>,
}

impl Predictor {
    /// Loads a checkpoint directory, a run directory or its `checkpoints` (the best checkpoint, else the
    /// newest), or a bare `.safetensors` file of weights: it does not say of which model, so the preset
    /// `hybrid` and the usual sizes are assumed, with a warning. `adjust` may change the configuration
    /// before it is used.
    pub fn load(path: &Path, adjust: impl FnOnce(&mut Config) -> Result<()>) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = ThreadLanes::over(threads, threads)?;
        let path = checkpoint_in(path)?;
        let (mut config, weights, sizes) = if path.is_dir() {
            let loaded = checkpoint::load(&path)?;
            let state = &loaded.state;
            let origin = path.join(checkpoint::STATE).display().to_string();
            let sizes = ImageSizes {
                image: state.image_size,
                patch: state.patch,
            };
            let config = Config::from_toml_str(&state.config, &origin)?;
            (config, loaded.weights, sizes)
        } else {
            let weights = checkpoint::load_weights(&path)?;
            (Config::preset(USUAL_PRESET)?, weights, USUAL)
        };
        adjust(&mut config)?;
        if !path.is_dir() {
            tracing::warn!(
                "{}: weights alone do not say what they were trained with; assumed: preset {USUAL_PRESET} with model.name = {}, \
                 data.global_size = {} (--set changes these), photographs of {} pixels, patches of {}",
                path.display(),
                config.model.name,
                config.data.global_size,
                sizes.image,
                sizes.patch
            );
        }
        let precision = Precision::resolve(config.train.precision, native_bf16());
        // Class weights only matter for the reported loss; `eval` sets them from the data.
        let plain = || FocalParams {
            gamma: config.loss.gamma,
            alpha: vec![1.0; 4],
            pos_weight: 1.0,
            neg_weight: 1.0,
        };
        let objective = Objective {
            image: plain(),
            patch: plain(),
            patch_weight: config.loss.patch_weight,
        };
        let mut replica = Replica::new(&config, precision, objective, lanes, None)?;
        train::restore_weights(&mut replica.net.params, &weights, &path)?;
        Ok(Self {
            config,
            replica,
            precision,
            sizes,
        })
    }

    /// Other sizes than in training are allowed, but the scores are then of another kind of picture.
    fn warn_of_other_sizes(&self, data: &Dataset) {
        let recipe = &data.manifest().recipe;
        let theirs = ImageSizes {
            image: recipe.size,
            patch: recipe.patch,
        };
        let ours = self.sizes;
        if theirs != ours {
            tracing::warn!(
                "{} has images of {} pixels with patches of {}, the model was trained on {} with {}: expect worse scores; \
                 `fovea prepare --size {} --patch {}` makes a dataset that fits",
                data.dir().display(),
                theirs.image,
                theirs.patch,
                ours.image,
                ours.patch,
                ours.image,
                ours.patch
            );
        }
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Scores all images of a prepared dataset.
    pub fn dataset(&self, data: Dataset, mut tick: impl FnMut()) -> Result<Vec<Prediction>> {
        self.warn_of_other_sizes(&data);
        let source = SampleSource::new(Arc::new(data), &self.config, self.precision, false);
        let images: Vec<usize> = (0..source.data().len()).collect();
        let rows = self.score(&source, &images, &mut tick)?;
        Ok(train::predictions(&rows, &source))
    }

    /// Metrics of one split, with the loss weighted as in training.
    pub fn evaluate(
        &mut self,
        data: Dataset,
        split: fovea_dataset::Split,
        mut tick: impl FnMut(),
    ) -> Result<(Vec<Row>, Summary)> {
        self.warn_of_other_sizes(&data);
        let source = SampleSource::new(Arc::new(data), &self.config, self.precision, false);
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
            .set_objective(train::objective(&self.config.loss, &source)?);
        let rows = self.score(&source, &images, &mut tick)?;
        let summary = evaluate::summarise(&rows, &self.replica, self.config.eval.threshold)?;
        Ok((rows, summary))
    }

    /// Scores images of a prepared dataset; all answers are finite.
    fn score(
        &self,
        source: &SampleSource,
        images: &[usize],
        tick: &mut impl FnMut(),
    ) -> Result<Vec<Row>> {
        let rows = evaluate::score(&self.replica, source, images, || {
            tick();
            Ok(())
        })?;
        let manifest = source.data().manifest();
        let cells = u64::from(manifest.grid) * u64::from(manifest.grid);
        match rows.iter().find(|row| !row.is_finite()) {
            None => Ok(rows),
            Some(row) => {
                let image = match row.level() {
                    Level::Image => row.id,
                    Level::Patch => row.id / cells,
                };
                let id = &manifest.images[image as usize].id;
                let what = format!("image {id} of {}", source.data().dir().display());
                Err(not_finite(&what))
            }
        }
    }

    /// Scores photographs at the sizes of training; `tick` is called after each. One that cannot be read
    /// does not keep the others from being scored.
    ///
    /// # Errors
    /// [`Error::Usage`] when two have the same id: their rows could not be told apart; or when an answer is not finite.
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

    /// Scores one photograph: field of view found, squared, resized; its black cells are left out.
    fn photo(&self, found: &PhotoFile) -> Result<std::result::Result<Vec<Prediction>, BadFile>> {
        let path = &found.path;
        let ImageSizes { image, patch } = self.sizes;
        let photo = match load_photo(path) {
            Ok(photo) => prepare_photo(&photo, image, patch)?,
            Err(error) => return Ok(Err(BadFile::of(path, &error))),
        };
        let grid = (image / patch) as usize;
        let assembler = Assembler {
            grid,
            patch: patch as usize,
            global_size: self.config.data.global_size as usize,
            precision: self.precision,
        };
        let cells: Vec<u16> = (0..grid * grid)
            .filter(|&c| photo.black[c] == 0)
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
        let mut logits = scores.image.iter().chain(&scores.patch);
        if !logits.all(|x| x.is_finite()) {
            return Err(not_finite(&path.display().to_string()));
        }
        let note = photo.note.clone();
        if let Some(note) = &note {
            tracing::warn!("{}: {note}; its rows have usable = 0", path.display());
        }
        let row = |cell: Option<(u32, u32)>, logits: &[f32]| Prediction {
            image_id: found.id.clone(),
            cell,
            label: None,
            probs: [0, 1, 2, 3].map(|c| sigmoid(logits[c])),
            note: note.clone(),
        };
        let mut rows = vec![row(None, &scores.image)];
        for (cell, logits) in cells.iter().zip(scores.patch.chunks_exact(4)) {
            rows.push(row(
                Some((
                    u32::from(*cell) / grid as u32,
                    u32::from(*cell) % grid as u32,
                )),
                logits,
            ));
        }
        Ok(Ok(rows))
    }
}

/// Weights can be finite, and yet so large that what is computed with them is not.
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

/// What a path of photographs holds, by id.
pub fn photos(path: &Path) -> Result<Vec<PhotoFile>> {
    Ok(list_photos(path)?)
}
