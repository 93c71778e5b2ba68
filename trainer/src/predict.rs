//! Probabilities for a prepared dataset, or for photographs as they come from the camera.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fovea_dataset::{Dataset, list_photos, load_photo, prepare_photo};
use fovea_kernels::{FocalParams, ImageU8};

use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluate::{self, Row, Summary, sigmoid};
use crate::lanes::{Lanes, ReadOnly};
use crate::precision::Precision;
use crate::replica::{Objective, Replica};
use crate::run_dir::Prediction;
use crate::samples::{Assembler, SampleSource};
use crate::train;

/// Patch side and working size for photographs when the checkpoint does not say.
const PATCH: u32 = 128;
const SIZE: u32 = 1280;

/// Trained weights with the configuration they were trained with.
pub struct Predictor {
    config: Config,
    replica: Replica,
    precision: Precision,
}

impl Predictor {
    /// Loads a checkpoint directory, a run directory (its best checkpoint, else its newest), or a
    /// bare `.safetensors` file of weights. `adjust` may change the configuration before it is used.
    pub fn load(path: &Path, adjust: impl FnOnce(&mut Config) -> Result<()>) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = Lanes::over(threads, threads)?;
        let path = checkpoint_in(path)?;
        let (mut config, weights) = if path.is_dir() {
            let loaded = checkpoint::load(&path)?;
            (
                Config::from_toml_str(
                    &loaded.state.config,
                    &path.join("state.json").display().to_string(),
                )?,
                loaded.weights,
            )
        } else {
            (Config::preset("hybrid")?, checkpoint::load_weights(&path)?)
        };
        adjust(&mut config)?;
        let precision = Precision::resolve(config.train.precision);
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
        let mut replica = Replica::new(&config, precision, objective, lanes)?;
        train::restore_weights(&mut replica.params, &weights, &path)?;
        Ok(Self {
            config,
            replica,
            precision,
        })
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Scores all images of a prepared dataset.
    pub fn dataset(&self, data: Dataset, mut tick: impl FnMut()) -> Result<Vec<Prediction>> {
        let source = SampleSource::new(Arc::new(data), &self.config, self.precision);
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
        let source = SampleSource::new(Arc::new(data), &self.config, self.precision);
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

    /// Scores photographs; `tick` is called after each.
    pub fn photos(&self, paths: &[PathBuf], mut tick: impl FnMut()) -> Result<Vec<Prediction>> {
        let mut rows = Vec::new();
        // SAFETY: an evaluation reads the replica.
        let shared = unsafe { ReadOnly::new(self) };
        let lanes = self.replica.lanes();
        for together in paths.chunks(lanes.count()) {
            for photo in lanes.run(together.len(), |i| shared.get().photo(&together[i]))? {
                rows.extend(photo);
                tick();
            }
        }
        Ok(rows)
    }

    /// Scores one photograph: field of view found, squared, resized; its black cells are left out.
    fn photo(&self, path: &Path) -> Result<Vec<Prediction>> {
        let photo = prepare_photo(&load_photo(path)?, SIZE, PATCH)?;
        let grid = (SIZE / PATCH) as usize;
        let assembler = Assembler {
            grid,
            patch: PATCH as usize,
            global_size: self.config.data.global_size as usize,
            precision: self.precision,
        };
        let cells: Vec<u16> = (0..grid * grid)
            .filter(|&c| photo.black[c] == 0)
            .map(|c| c as u16)
            .collect();
        let size = SIZE as usize;
        let batch = assembler.photo(
            ImageU8 {
                data: &photo.pixels,
                height: size,
                width: size,
            },
            cells.clone(),
        )?;
        let scores = self.replica.evaluate(&batch)?;
        let image_id = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let row = |cell: Option<(u32, u32)>, logits: &[f32]| Prediction {
            image_id: image_id.clone(),
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
        Ok(rows)
    }
}

/// What a path of photographs holds, in name order.
pub fn photos(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(list_photos(path)?)
}

/// The checkpoint meant by a checkpoint, a run directory or a file.
fn checkpoint_in(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::File {
            path: path.to_owned(),
            what: "no such file or directory".to_owned(),
            help: "give a checkpoint directory, a run directory, or a .safetensors file".to_owned(),
        });
    }
    if path.join("checkpoints").is_dir() {
        train::best_of(path)
    } else {
        Ok(path.to_owned())
    }
}
