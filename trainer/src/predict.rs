//! Probabilities for a prepared dataset, or for photographs as they come from the camera.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fovea_dataset::{BadFile, Dataset, Found, list_photos, load_photo, prepare_photo};
use fovea_kernels::{FocalParams, ImageU8};

use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluate::{self, Row, Summary, sigmoid};
use crate::lanes::{Lanes, ReadOnly};
use crate::precision::{Precision, native_bf16};
use crate::replica::{Objective, Replica};
use crate::run_dir::{Prediction, RunDir};
use crate::samples::{Assembler, SampleSource};
use crate::train;

/// What images a model was trained on, and photographs are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Working size: pixels along an edge of an image.
    image: u32,
    /// Side of a grid cell in pixels.
    patch: u32,
}

/// What weights alone are taken to be trained on: what `prepare` makes when nothing else is asked for.
const USUAL: Sizes = Sizes {
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
    sizes: Sizes,
}

/// What became of a folder of photographs.
#[derive(Debug, Default)]
pub struct Scored {
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
        let lanes = Lanes::over(threads, threads)?;
        let path = checkpoint_in(path)?;
        let (mut config, weights, sizes) = if path.is_dir() {
            let loaded = checkpoint::load(&path)?;
            let state = &loaded.state;
            let origin = path.join(checkpoint::STATE).display().to_string();
            let sizes = Sizes {
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
        let theirs = Sizes {
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
        let rows = evaluate::score(&self.replica, &source, &images, || {
            tick();
            Ok(())
        })?;
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
        let rows = evaluate::score(&self.replica, &source, &images, || {
            tick();
            Ok(())
        })?;
        let summary = evaluate::summarise(&rows, &self.replica, self.config.eval.threshold)?;
        Ok((rows, summary))
    }

    /// Scores photographs at the sizes of training; `tick` is called after each. One that cannot be read
    /// does not keep the others from being scored.
    ///
    /// # Errors
    /// [`Error::Usage`] when two have the same id: their rows could not be told apart.
    pub fn photos(&self, paths: &[Found], mut tick: impl FnMut()) -> Result<Scored> {
        distinct_ids(paths)?;
        let mut scored = Scored::default();
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
    fn photo(&self, found: &Found) -> Result<std::result::Result<Vec<Prediction>, BadFile>> {
        let path = &found.path;
        let Sizes { image, patch } = self.sizes;
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
        let row = |cell: Option<(u32, u32)>, logits: &[f32]| Prediction {
            image_id: found.id.clone(),
            cell,
            label: None,
            probs: [0, 1, 2, 3].map(|c| sigmoid(logits[c])),
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

fn distinct_ids(photos: &[Found]) -> Result<()> {
    let mut seen: HashMap<&str, &Path> = HashMap::new();
    for Found { path, id } in photos {
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
pub fn photos(path: &Path) -> Result<Vec<Found>> {
    Ok(list_photos(path)?)
}

/// The checkpoint meant by a checkpoint, a run directory or a file.
fn checkpoint_in(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::Usage {
            what: format!("{}: no such file or directory", path.display()),
            help: "give a checkpoint directory, a run directory, or a .safetensors file".to_owned(),
        });
    }
    let run = RunDir::new(path);
    if run.checkpoints().is_dir() {
        return train::best_of(&run.checkpoints());
    }
    if path.is_dir() && !checkpoint::list(path)?.is_empty() {
        return train::best_of(path);
    }
    Ok(path.to_owned())
}
