//! One model or several as one: their probabilities are averaged, and made into decisions by what was tuned.
//!
//! Only one model is in memory at a time. Each scores everything before the next one is loaded.

mod record;
mod same_task;
mod tune_target;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fovea_dataset::{BadFile, Dataset, PhotoFile, Split};
use fovea_run::config::Config;
use fovea_run::metrics::Metrics;
use fovea_run::predictions::Prediction;
use fovea_run::tuning::{self, Member, Rule, TargetTuning, Tuning};
use fovea_task::{Target, Task};

use self::same_task::same_task;
use self::tune_target::tune_target;
use self::weights::check_weights;
use crate::average::{Part, average};
use crate::error::{Error, Result};
use crate::evaluate::{self, Answers};
use crate::objective::objective;
use crate::predict::{ImageForm, Predictor, ScoredPhoto};
use crate::samples::SampleSource;
use crate::train;
use crate::tta::TestViews;

/// Applies a command's assignments to the configuration of a checkpoint.
pub type Adjust = dyn Fn(&mut Config) -> Result<()>;

/// How much each model counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Weights {
    /// All the same, or as a record of tuning says.
    #[default]
    Default,
    /// These, in the order of the models.
    Given(Vec<f64>),
    /// Each as much as its score on the validation split: the watched metric of the first model's configuration
    /// (`early_stopping.metric` and `level`).
    Validation,
}

/// Which record of thresholds and temperatures is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tuned {
    /// The one beside the checkpoint, when there is one; none for several models.
    #[default]
    Beside,
    /// This file.
    File(PathBuf),
    /// None: temperature 1, and the configured threshold.
    Not,
}

/// How answers are made of models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// How much each model counts.
    pub weights: Weights,
    /// The views that each model sees of a picture.
    pub views: TestViews,
    /// Which record of thresholds and temperatures is used.
    pub tuned: Tuned,
}

/// The result of scoring photographs.
#[derive(Debug, Default)]
pub struct ScoredPhotographs {
    /// Predictions for the photographs that could be read.
    pub rows: Vec<Prediction>,
    /// The other photographs, in the order given.
    pub bad: Vec<BadFile>,
}

/// The scores of a split.
pub struct Evaluation {
    /// Answers per target, temperatures applied.
    pub answers: Vec<Answers>,
    /// Metrics per target, at the thresholds of the record or of the configuration; `None` without any label. Their loss
    /// is that of the training, without temperatures.
    pub summary: Vec<Option<Metrics>>,
    /// Share of each model in the average.
    pub weights: Vec<f64>,
}

/// The facts about a model that are kept while it is not in memory.
struct Known {
    path: PathBuf,
    weights_blake3: String,
    sizes: ImageForm,
}

/// Models that answer together.
pub struct Ensemble {
    known: Vec<Known>,
    task: Task,
    /// The first model's configuration.
    config: Config,
    options: Options,
    /// The record in use, and its file.
    tuning: Option<(PathBuf, Tuning)>,
    adjust: Box<Adjust>,
    /// The model that is in memory, and its number.
    loaded: Option<(usize, Predictor)>,
}

impl Ensemble {
    /// Loads each of `paths` ([`Predictor::load`]) to check it, and the record of tuning.
    ///
    /// # Errors
    /// A path is no model, the tasks differ, the number of weights is wrong, there is no such record, or it belongs to
    /// other weights; [`Error::Usage`] also for several views of a task with columns, which may hold places in the
    /// picture that a view would have to move.
    pub fn open(paths: &[PathBuf], options: Options, adjust: Box<Adjust>) -> Result<Self> {
        let mut known: Vec<Known> = Vec::new();
        let mut first: Option<(Task, Config)> = None;
        let mut loaded = None;
        for (index, path) in paths.iter().enumerate() {
            drop(loaded.take());
            let model = Predictor::load(path, &adjust)?;
            match &first {
                None => first = Some((model.task().clone(), model.config().clone())),
                Some((task, _)) => same_task((&paths[0], task), (path, model.task()))?,
            }
            known.push(Known {
                path: model.path().to_owned(),
                weights_blake3: model.weights_blake3().to_owned(),
                sizes: model.sizes(),
            });
            loaded = Some((index, model));
        }
        let Some((task, config)) = first else {
            return Err(Error::Internal("an ensemble of no models".to_owned()));
        };
        check_weights(&options.weights, known.len())?;
        if options.views != TestViews::One && !task.columns().is_empty() {
            return Err(Error::Usage {
                what: format!(
                    "several views of a task with columns ({}, ..): they may hold places in the picture, which a view would have to move",
                    task.columns()[0]
                ),
                help: "leave --tta out".to_owned(),
            });
        }
        let mut ensemble = Self {
            known,
            task,
            config,
            options,
            tuning: None,
            adjust,
            loaded,
        };
        ensemble.tuning = ensemble.record()?;
        Ok(ensemble)
    }

    /// Number of models.
    pub fn models(&self) -> usize {
        self.known.len()
    }

    /// The task that all models answer.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The record of thresholds and temperatures in use, and its file.
    pub fn tuning(&self) -> Option<(&Path, &Tuning)> {
        let tuning = self.tuning.as_ref();
        tuning.map(|(path, tuning)| (path.as_path(), tuning))
    }

    /// Where the record of these models is kept; `None` for several, which share no directory.
    pub fn beside(&self) -> Option<PathBuf> {
        match &self.known[..] {
            [one] => Some(tuning::beside(&one.path)),
            _ => None,
        }
    }

    /// The prepared dataset that the first model was trained on, as its configuration names it.
    pub fn trained_on(&self) -> &Path {
        Path::new(&self.config.data.path)
    }

    /// Per target the thresholds of its classes.
    pub fn thresholds(&self) -> Vec<Vec<f32>> {
        match &self.tuning {
            Some((_, tuning)) => {
                let targets = tuning.targets.iter();
                targets.map(|t| t.thresholds.clone()).collect()
            }
            None => evaluate::one_threshold(&self.task, self.config.eval.threshold),
        }
    }

    /// Times that each image is scored by [`Ensemble::evaluate`] and the others: once by each model.
    fn turns(&self, images: usize) -> u64 {
        (images * self.models()) as u64
    }

    /// Number of `tick`s of [`Ensemble::evaluate`] for these splits of `data`.
    pub fn ticks(&self, data: &Dataset, split: Split) -> u64 {
        let weighed = self.options.weights == Weights::Validation && split != Split::Val;
        let also = if weighed {
            data.indices(Split::Val).len()
        } else {
            0
        };
        self.turns(data.indices(split).len() + also)
    }

    /// Number of `tick`s of [`Ensemble::dataset`] or [`Ensemble::photos`] for this number of pictures.
    pub fn ticks_of(&self, data: Option<&Dataset>, pictures: usize) -> u64 {
        let weighed = self.options.weights == Weights::Validation;
        let also = data.filter(|_| weighed);
        let also = also.map_or(0, |data| data.indices(Split::Val).len());
        self.turns(pictures + also)
    }

    /// Scores one split.
    ///
    /// # Errors
    /// [`Error::Usage`] when the split is empty, the dataset is of another task, or an answer is not finite.
    pub fn evaluate(
        &mut self,
        data: &Arc<Dataset>,
        split: Split,
        tick: &mut dyn FnMut(),
    ) -> Result<Evaluation> {
        let images = images_of(data, split)?;
        let Averaged {
            mut answers,
            source,
            weights,
        } = self.average(data, &images, Some(split), tick)?;
        let objective = objective(&self.config.loss, &source)?;
        let thresholds = self.thresholds();
        let task = &self.task;
        let mut summary = evaluate::summarise(task, &answers, &objective, &thresholds)?;
        if self.tuning.is_some() {
            self.temper(&mut answers);
            let tempered = evaluate::summarise(task, &answers, &objective, &thresholds)?;
            for (plain, tempered) in summary.iter_mut().zip(tempered) {
                // The loss stays that of the training, which has no temperature.
                let loss = plain.as_ref().map(|metrics| metrics.loss);
                *plain = tempered.map(|metrics| Metrics {
                    loss: loss.unwrap_or(metrics.loss),
                    ..metrics
                });
            }
        }
        Ok(Evaluation {
            answers,
            summary,
            weights,
        })
    }

    /// Scores all images of a prepared dataset.
    ///
    /// # Errors
    /// [`Error::Usage`] when the dataset is of another task, or an answer is not finite.
    pub fn dataset(
        &mut self,
        data: &Arc<Dataset>,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Prediction>> {
        let images: Vec<usize> = (0..data.len()).collect();
        let mut averaged = self.average(data, &images, None, tick)?;
        self.temper(&mut averaged.answers);
        Ok(train::predictions(&averaged.answers, &averaged.source))
    }

    /// Scores photographs at the sizes of training; calls `tick` after each, for each model. One that cannot be read
    /// does not keep the others from being scored.
    ///
    /// # Errors
    /// [`Error::Usage`] when two photographs have the same id, an answer is not finite, models cut photographs into
    /// different cells, or weights are to follow from a validation split, which photographs do not have.
    pub fn photos(
        &mut self,
        paths: &[PhotoFile],
        tick: &mut dyn FnMut(),
    ) -> Result<ScoredPhotographs> {
        if self.options.weights == Weights::Validation {
            return Err(Error::Usage {
                what: "--weights val: photographs have no validation split".to_owned(),
                help: "`fovea tune A B .. --weights val --out FILE` keeps the weights in FILE, for --tuned FILE; or give numbers".to_owned(),
            });
        }
        self.refuse_other_cells()?;
        let mut answers = Vec::new();
        for index in 0..self.models() {
            let views = self.options.views;
            answers.push(self.model(index)?.photos(paths, views, tick)?);
        }
        let weights = self.weights(None);
        let mut scored = ScoredPhotographs::default();
        let mut others: Vec<_> = answers.into_iter().map(Vec::into_iter).collect();
        for _ in paths {
            let of_photo: Vec<_> = others.iter_mut().filter_map(Iterator::next).collect();
            let of_photo: std::result::Result<Vec<ScoredPhoto>, BadFile> =
                of_photo.into_iter().collect();
            match of_photo {
                Err(bad) => scored.bad.push(bad),
                Ok(photos) => scored.rows.extend(self.one_photo(photos, &weights)?),
            }
        }
        Ok(scored)
    }

    /// The rows of one photograph, of which each model has said something.
    fn one_photo(&self, photos: Vec<ScoredPhoto>, weights: &[f64]) -> Result<Vec<Prediction>> {
        let logits = |index: usize| -> Vec<Part<'_>> {
            let parts = photos.iter().zip(weights);
            parts.map(|(p, w)| (&p.logits[index][..], *w)).collect()
        };
        let same = photos.windows(2).all(|pair| pair[0].cells == pair[1].cells);
        let targets = self.task.targets().iter().enumerate();
        let mut mean: Vec<Vec<f32>> = match same {
            true => targets
                .map(|(i, target)| average(target, &logits(i)))
                .collect(),
            false => return Err(Error::Internal("other cells of one photograph".to_owned())),
        };
        if let Some((_, tuning)) = &self.tuning {
            for (logits, tuning) in mean.iter_mut().zip(&tuning.targets) {
                tuning.temper(logits);
            }
        }
        let Some(first) = photos.into_iter().next() else {
            return Ok(Vec::new());
        };
        let photo = ScoredPhoto {
            logits: mean,
            ..first
        };
        Ok(photo.rows(&self.task))
    }

    /// Chooses temperatures (unless told not to) and thresholds on one split.
    ///
    /// # Errors
    /// [`Error::Usage`] when the split is empty or has no label, the dataset is of another task, or an answer is not
    /// finite.
    pub fn tune(
        &mut self,
        data: &Arc<Dataset>,
        split: Split,
        rule: Rule,
        temperatures: bool,
        tick: &mut dyn FnMut(),
    ) -> Result<Tuning> {
        let images = images_of(data, split)?;
        let averaged = self.average(data, &images, Some(split), tick)?;
        let default = self.config.eval.threshold;
        let targets = self.task.targets().iter().zip(&averaged.answers);
        let targets: Vec<TargetTuning> = targets
            .map(|(target, answers)| tune_target(target, answers, rule, temperatures, default))
            .collect::<Result<_>>()?;
        if targets.iter().all(|target| target.samples == 0) {
            return Err(Error::Usage {
                what: format!(
                    "the {split} split of {} has no labels",
                    data.dir().display()
                ),
                help: "prepare the dataset with labels, or choose another dataset with --data"
                    .to_owned(),
            });
        }
        let members = self.known.iter().zip(averaged.weights);
        Ok(Tuning {
            format_version: tuning::FORMAT_VERSION,
            models: members
                .map(|(known, weight)| Member {
                    weights_blake3: known.weights_blake3.clone(),
                    weight,
                })
                .collect(),
            views: self.views(),
            dataset_blake3: data.manifest().blake3(),
            split,
            rule,
            targets,
        })
    }

    /// Number of views of each picture.
    fn views(&self) -> u32 {
        self.options.views.orientations().len() as u32
    }

    /// Model `index`, loaded unless it is in memory.
    fn model(&mut self, index: usize) -> Result<&Predictor> {
        let ready = self.loaded.as_ref().is_some_and(|(at, _)| *at == index);
        if !ready {
            self.loaded = None; // one model at a time
            let path = &self.known[index].path;
            self.loaded = Some((index, Predictor::load(path, &self.adjust)?));
        }
        match &self.loaded {
            Some((_, model)) => Ok(model),
            None => Err(Error::Internal("no model in memory".to_owned())),
        }
    }

    /// The averaged answers of all models for `images`, those of `split` if any.
    fn average(
        &mut self,
        data: &Arc<Dataset>,
        images: &[usize],
        split: Option<Split>,
        tick: &mut dyn FnMut(),
    ) -> Result<Averaged> {
        let validation = match self.options.weights {
            Weights::Validation => Some(images_of(data, Split::Val)?),
            _ => None,
        };
        let views = self.options.views;
        let (mut all, mut scores) = (Vec::new(), Vec::new());
        let mut first = None;
        for index in 0..self.models() {
            let model = self.model(index)?;
            let source = model.source(Arc::clone(data))?;
            let answers = model.score(&source, images, views, tick)?;
            if let Some(images) = &validation {
                let others;
                let answers = match split == Some(Split::Val) {
                    true => &answers,
                    false => {
                        others = model.score(&source, images, views, tick)?;
                        &others
                    }
                };
                let objective = objective(&self.config.loss, &source)?;
                scores.push(self.validation_score(answers, &objective, index)?);
            }
            all.push(answers);
            first.get_or_insert(source);
        }
        let weights = self.weights((!scores.is_empty()).then_some(scores));
        let source = first.ok_or_else(|| Error::Internal("no model".to_owned()))?;
        Ok(Averaged {
            answers: self.mean(&all, &weights)?,
            source,
            weights,
        })
    }

    /// The mean of the models' answers, which have the same rows.
    fn mean(&self, all: &[Vec<Answers>], weights: &[f64]) -> Result<Vec<Answers>> {
        let of_target = |(index, target): (usize, &Target)| {
            let first = &all[0][index];
            if all.iter().any(|answers| answers[index].ids != first.ids) {
                return Err(Error::Internal("models with other rows".to_owned()));
            }
            let parts = all.iter().zip(weights);
            let parts: Vec<Part<'_>> = parts.map(|(a, w)| (&a[index].logits[..], *w)).collect();
            Ok(Answers {
                ids: first.ids.clone(),
                labels: first.labels.clone(),
                logits: average(target, &parts),
            })
        };
        self.task
            .targets()
            .iter()
            .enumerate()
            .map(of_target)
            .collect()
    }

    fn temper(&self, answers: &mut [Answers]) {
        if let Some((_, tuning)) = &self.tuning {
            for (answers, tuning) in answers.iter_mut().zip(&tuning.targets) {
                tuning.temper(&mut answers.logits);
            }
        }
    }

    fn refuse_other_cells(&self) -> Result<()> {
        let first = &self.known[0];
        let other = self.known.iter().find(|known| known.sizes != first.sizes);
        match other.filter(|_| self.task.cells().is_some()) {
            None => Ok(()),
            Some(other) => Err(Error::Usage {
                what: format!(
                    "{} was trained on images of {} pixels with cells of {}, {} on {} with {}: their cells of a photograph are not the same",
                    first.path.display(),
                    first.sizes.image,
                    first.sizes.patch,
                    other.path.display(),
                    other.sizes.image,
                    other.sizes.patch
                ),
                help: "average models that were trained at the same sizes, or prepare the photographs as a dataset".to_owned(),
            }),
        }
    }
}

/// The averaged answers, and the samples that the first model read.
struct Averaged {
    answers: Vec<Answers>,
    source: SampleSource,
    weights: Vec<f64>,
}

fn images_of(data: &Dataset, split: Split) -> Result<Vec<usize>> {
    let images = data.indices(split);
    match images.is_empty() {
        false => Ok(images),
        true => Err(Error::Usage {
            what: format!(
                "the {split} split of {} has no images",
                data.dir().display()
            ),
            help: "choose another split with --split, or prepare more images".to_owned(),
        }),
    }
}
