//! One network and a linear layer on its features: torchvision's classifiers, with their names.

use fovea_run::config::ModelConfig;
use fovea_task::{Level, Task};
use tch::{Kind, Tensor};

use super::backbone::backbone;
use super::{
    Backbone, BackboneOptions, Blueprint, DropoutId, DropoutSpec, Input, Linear, Macs, Model, Pass,
    Sizes, the_image_target,
};
use crate::error::{Error, Result};

/// A backbone, dropout where torchvision has it, and a linear layer; without a prefix.
struct Classifier {
    network: Box<dyn Backbone>,
    dropout: Option<DropoutId>,
    last: Linear,
}

impl Classifier {
    fn declare(
        b: &mut Blueprint,
        name: &str,
        classes: usize,
        options: BackboneOptions,
    ) -> Result<Self> {
        let entry = backbone("name", name)?;
        let network = (entry.declare)(b, "", options);
        let (last, width) = (entry.last, network.width());
        let dropout = (last.dropout > 0.0).then(|| {
            b.dropout(DropoutSpec {
                level: options.level,
                width: width as usize,
                p: last.dropout,
                stream: u32::from_be_bytes(*b"\0CLS"),
            })
        });
        let channels = (width, classes as i64);
        let init = (last.init)(width, classes as i64);
        Ok(Self {
            last: Linear::initialised(b, last.name, channels, init),
            network,
            dropout,
        })
    }

    /// Images or patches `[n, 3, H, W]` -> logits `[n, classes]`. n may be 0.
    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let features = self.network.features(pass, x)?;
        let features = match self.dropout {
            Some(site) => pass.dropped(features, site)?,
            None => features,
        };
        self.last.forward(pass, &features)
    }

    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs {
        self.network.macs(b, n, side) + self.last.macs(b, n)
    }
}

/// A classifier of whole images.
pub struct ImageClassifier(Classifier);

impl ImageClassifier {
    /// Declares the backbone that the model is called after, with `model.attention`.
    ///
    /// # Errors
    /// [`Error::Usage`] unless the task has exactly one target, at image level.
    pub fn declare(
        b: &mut Blueprint,
        task: &Task,
        options: &ModelConfig,
        name: &str,
    ) -> Result<Box<dyn Model>> {
        let target = the_image_target(name, task)?;
        let network = BackboneOptions {
            level: Level::Image,
            attention: options.attention,
        };
        let classes = target.classes.len();
        let classifier = Classifier::declare(b, name, classes, network)?;
        Ok(Box::new(Self(classifier)))
    }
}

impl Model for ImageClassifier {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![self.0.forward(pass, input.globals)?])
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        self.0.macs(b, sizes.images, sizes.global)
    }
}

/// Logit of a class of an image no cell of which has been seen.
const ABSENT: f64 = -20.0;

/// ResNet18 over cells alone. The answer about an image whose classes are those of its cells is the largest logit of
/// its cells, from which no gradient flows.
pub struct PatchOnly {
    cells: Classifier,
    /// The level of each target.
    levels: Vec<Level>,
    classes: i64,
}

impl PatchOnly {
    /// Declares the network.
    ///
    /// # Errors
    /// [`Error::Usage`] unless the task has a question about cells, and about images the same at most.
    pub fn declare(b: &mut Blueprint, task: &Task, _: &ModelConfig) -> Result<Box<dyn Model>> {
        let other = task.at(Level::Image).find(|target| !target.union_of_cells);
        let Some(target) = task.at(Level::Patch).next().filter(|_| other.is_none()) else {
            return Err(Error::Usage {
                what: match other {
                    None => {
                        "model.name = \"patch_only\": this dataset has no target at patch level"
                            .to_owned()
                    }
                    Some(other) => format!(
                        "model.name = \"patch_only\": target `{}` of this dataset is about whole images, which the model does not see",
                        other.name
                    ),
                },
                help: "choose a model of whole images, or prepare a dataset with masks alone"
                    .to_owned(),
            });
        };
        let options = BackboneOptions::plain(Level::Patch);
        Ok(Box::new(Self {
            cells: Classifier::declare(b, "resnet18", target.classes.len(), options)?,
            levels: task.targets().iter().map(|target| target.level).collect(),
            classes: target.classes.len() as i64,
        }))
    }
}

impl Model for PatchOnly {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        let cells = self.cells.forward(pass, input.patches)?; // [n, C]
        let (b, t) = (input.tokens.images, input.tokens.per_image);
        let float = (Kind::Float, cells.device());
        // As `Tokens::gather` has it: a row per image, the cells, and a row for padding.
        let images = Tensor::f_full([b, self.classes], ABSENT, float)?;
        let padding = Tensor::f_full([1, self.classes], ABSENT, float)?;
        let rows = Tensor::f_cat(&[&images, &cells.f_detach()?, &padding], 0)?;
        let sequences = rows.f_index_select(0, &input.tokens.gather)?;
        let largest = sequences
            .f_view([b, t, self.classes])?
            .f_amax(&[1i64][..], false)?; // [b, C]
        let answer = |level: &Level| match level {
            Level::Image => largest.shallow_clone(),
            Level::Patch => cells.shallow_clone(),
        };
        Ok(self.levels.iter().map(answer).collect())
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        self.cells
            .macs(b, sizes.images * sizes.patches, sizes.patch)
    }
}
