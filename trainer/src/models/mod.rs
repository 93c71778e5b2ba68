//! Models: their parameters, and how a microbatch flows through them.
//!
//! A model is declared once against a [`Blueprint`] (names, shapes, initialisation) and keeps only the ids that it got.
//! [`crate::params`] decides where the numbers live (one flat buffer, master and working precision); a model never owns
//! a tensor. To add a model, write one file here that implements [`Model`], its row in [`MODELS`], and a preset.

mod attention;
mod backbone;
#[cfg(test)]
mod backbone_golden;
mod classifier;
mod convolution;
mod densenet;
mod efficientnet;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod golden_models;
#[cfg(test)]
pub(crate) mod hashed;
mod hybrid;
mod layers;
mod macs;
mod recorder;
mod resnet;
mod resnet50_meta;
mod resnet_densenet;
mod tokens;

pub use attention::{Attended, AttentionSite, MapAttentionLayer};
pub use backbone::{BACKBONES, Backbone, BackboneEntry, BackboneOptions, LastLayer};
pub use classifier::{ImageClassifier, PatchOnly};
pub use densenet::DenseNet121;
pub use efficientnet::EfficientNetB0;
pub use hybrid::Hybrid;
pub use layers::{GatedPooling, LayerNorm, Linear, Mlp, SelfAttention};
pub use macs::{Macs, Sizes};
pub use recorder::{Branch, BranchMaps, Recorder};
pub use resnet::{ResNet, ResNetShape};
pub use resnet_densenet::ResNetDenseNet;
pub use resnet50_meta::ResNet50Meta;
pub use tokens::Tokens;

use fovea_coordinator::order::Grain;
use fovea_run::config::keys::KEYS;
use fovea_run::config::{Config, ModelConfig};
use fovea_task::{Level, Target, Task};
use tch::Tensor;

pub use crate::blueprint::{
    Blueprint, DropoutId, DropoutSpec, Init, NormId, NormSpec, ParamId, ParamSpec,
};
use crate::error::{Error, Result};
use crate::ops::{NormEngine, NormMode};

/// One pass through a model: the parameters to use and the mode of batch normalisation.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Forward copies, indexed by [`ParamId`].
    pub params: &'a [Tensor],
    /// Batch normalisation layers, indexed by [`NormId`].
    pub norms: &'a [NormSpec],
    /// Batch statistics (training) or running statistics (evaluation).
    pub mode: NormMode<'a>,
    /// How normalisation layers are computed.
    pub engine: NormEngine,
    /// The mask of each dropout site, indexed by [`DropoutId`], `[rows, width]` f32, scaled by `1 / (1 - p)`; none
    /// outside training.
    pub dropout: Option<&'a [Tensor]>,
    /// The branch that runs.
    pub branch: Branch,
    /// Keeps maps and attention, for pictures of where a model looks; none in training and evaluation.
    pub recorder: Option<&'a Recorder>,
}

impl Pass<'_> {
    /// The forward copy of a parameter.
    pub fn param(&self, id: ParamId) -> &Tensor {
        &self.params[id.0]
    }

    /// The same pass for a branch of a model that has several: `name` as in the names of its parameters, `level` what
    /// each of its pictures is.
    #[must_use]
    pub fn in_branch(&self, name: &'static str, level: Level) -> Self {
        Self {
            branch: Branch { name, level },
            ..*self
        }
    }

    /// Runs `compute`, which gives the last feature maps of a branch, `[n, channels, h, w]`; a recorder keeps them. Every
    /// model pools what this returns, not what `compute` does.
    pub fn maps(&self, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        match self.recorder {
            None => compute(),
            Some(recorder) => recorder.maps(self.branch, compute),
        }
    }

    /// Lets a recorder keep attention weights `[b, heads, t, t]` between tokens.
    pub fn attended(&self, weights: &Tensor) -> Result<()> {
        match self.recorder {
            None => Ok(()),
            Some(recorder) => recorder.attention(weights),
        }
    }

    /// `x` `[rows, width]` with its site's mask applied; outside training, `x` itself.
    pub fn dropped(&self, x: Tensor, site: DropoutId) -> Result<Tensor> {
        match self.dropout {
            Some(masks) => Ok(x.f_mul(&masks[site.0])?),
            None => Ok(x),
        }
    }

    /// `x + branch`, both `[n, c, h, w]`, where in training some images' branch is dropped as a whole and the others'
    /// is scaled: stochastic depth (Huang et al. 2016) in torchvision's mode `row`. The first column of the site's mask
    /// decides.
    pub fn stochastic_depth(&self, x: &Tensor, branch: &Tensor, site: DropoutId) -> Result<Tensor> {
        let Some(masks) = self.dropout else {
            return Ok(branch.f_add(x)?);
        };
        let mask = masks[site.0].f_narrow(1, 0, 1)?.f_view([-1, 1, 1, 1])?;
        Ok(x.f_addcmul(branch, &mask.f_to_kind(branch.kind())?)?)
    }
}

/// The inputs of a model: `b` images and `n` of their patches.
pub struct Input<'a> {
    /// Whole images, `[b, 3, S, S]`, working dtype, channels-last; `[0, 3, 0, 0]` for a model that reads none
    /// ([`ModelEntry::reads_images`]).
    pub globals: &'a Tensor,
    /// Patches of all images one after the other, `[n, 3, patch, patch]`, working dtype, channels-last; n is 0 for a
    /// model of [`Grain::Image`].
    pub patches: &'a Tensor,
    /// Where the tokens of each image come from, in the padded sequences.
    pub tokens: &'a Tokens,
    /// The numbers that the task's columns name, `[b, k]` f32; k is [`Model::columns`].
    pub columns: &'a Tensor,
}

/// A network of this project: takes images and their patches, gives one set of logits per target of the task.
pub trait Model: Send + Sync {
    /// Forward pass of one virtual shard (training) or of one image (evaluation).
    ///
    /// Returns the logits of each target in the task's order, f32 `[rows, classes]`: a row per image, `b`, or per
    /// patch, `n`, in the order of [`Input::patches`]. They must be finite, and every parameter must take part in one
    /// of them: backward starts from the sum of `logits * dlogits`.
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>>;

    /// How many of the task's columns the model reads: all or none.
    fn columns(&self) -> usize {
        0
    }

    /// Multiplications of a training step; `blueprint` is the one that the model was declared in.
    fn macs(&self, blueprint: &Blueprint, sizes: &Sizes) -> Macs;
}

/// A row of [`MODELS`], a model that a configuration can choose.
pub struct ModelEntry {
    /// The model's value of `model.name`.
    pub name: &'static str,
    /// The unit of its samples: grid cells or whole images.
    pub grain: Grain,
    /// Whether the model reads whole images; one that does not is spared their resizing.
    pub reads_images: bool,
    /// The keys of `[model]` that it has, other than `name` and those of its initial weights.
    pub options: &'static [&'static str],
    /// Declares the model's parameters for a task, with the options of `[model]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the model cannot answer the task's questions, or lacks one of the options.
    pub declare: fn(&mut Blueprint, &Task, &ModelConfig) -> Result<Box<dyn Model>>,
}

/// A row for a backbone that is a model of its own.
macro_rules! image_classifier {
    ($name:literal, $options:expr) => {
        ModelEntry {
            name: $name,
            grain: Grain::Image,
            reads_images: true,
            options: $options,
            declare: |b, task, options| ImageClassifier::declare(b, task, options, $name),
        }
    };
}

/// Every model that `model.name` can choose, one row each.
pub static MODELS: &[ModelEntry] = &[
    ModelEntry {
        name: "hybrid",
        grain: Grain::Cell,
        reads_images: true,
        options: &["pooling", "fusion", "global_backbone", "local_backbone"],
        declare: Hybrid::declare,
    },
    image_classifier!("resnet18", &["attention"]),
    image_classifier!("resnet50", &["attention"]),
    image_classifier!("densenet121", &[]),
    image_classifier!("efficientnet_b0", &["attention"]),
    ModelEntry {
        name: "patch_only",
        grain: Grain::Cell,
        reads_images: false,
        options: &[],
        declare: PatchOnly::declare,
    },
    ModelEntry {
        name: "resnet_densenet",
        grain: Grain::Image,
        reads_images: true,
        options: &[],
        declare: ResNetDenseNet::declare,
    },
    ModelEntry {
        name: "resnet50_meta",
        grain: Grain::Image,
        reads_images: true,
        options: &[],
        declare: ResNet50Meta::declare,
    },
];

/// The model that a configuration names.
///
/// # Errors
/// [`Error::Usage`] with the known names when there is none.
pub fn find(name: &str) -> Result<&'static ModelEntry> {
    MODELS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = MODELS.iter().map(|entry| entry.name).collect();
            Error::Usage {
                what: format!("model.name = {name:?}: there is no such model"),
                help: format!("known are: {}", known.join(", ")),
            }
        })
}

impl ModelEntry {
    /// Builds the model for a task; also returns the blueprint that it declared.
    ///
    /// # Errors
    /// As [`ModelEntry::declare`]; [`Error::Usage`] for an option that the model does not have.
    pub fn build(&self, task: &Task, options: &ModelConfig) -> Result<(Box<dyn Model>, Blueprint)> {
        self.check_options(options)?;
        let mut blueprint = Blueprint::default();
        let model = (self.declare)(&mut blueprint, task, options)?;
        Ok((model, blueprint))
    }

    /// Refuses options of other models.
    fn check_options(&self, options: &ModelConfig) -> Result<()> {
        for key in KEYS.iter().filter(|key| key.section == "model") {
            if ["name", "init", "init_blake3"].contains(&key.name)
                || self.options.contains(&key.name)
            {
                continue;
            }
            let of = |model: &ModelConfig| {
                (key.get)(&Config {
                    model: model.clone(),
                    ..Config::default()
                })
            };
            let (given, usual) = (of(options), of(&ModelConfig::default()));
            if given != usual {
                let has = |entry: &&ModelEntry| entry.options.contains(&key.name);
                let having: Vec<&str> = MODELS.iter().filter(has).map(|entry| entry.name).collect();
                return Err(Error::Usage {
                    what: format!(
                        "{} = {given}: model {} has no such option",
                        key.path(),
                        self.name
                    ),
                    help: format!(
                        "leave {} at {usual}, or choose one of the models that have it: {}",
                        key.path(),
                        having.join(", ")
                    ),
                });
            }
        }
        Ok(())
    }
}

/// The target of a task that asks one question about whole images.
///
/// # Errors
/// [`Error::Usage`] for any other task.
pub(crate) fn the_image_target<'a>(model: &str, task: &'a Task) -> Result<&'a Target> {
    match task.targets() {
        [target] if target.level == Level::Image => Ok(target),
        _ => {
            let (image, patch) = (task.at(Level::Image).count(), task.at(Level::Patch).count());
            Err(Error::Usage {
                what: format!(
                    "model.name = {model:?}: this dataset has {image} targets at image level and {patch} at patch level"
                ),
                help: format!(
                    "{model} learns one target at image level: choose another model, or prepare a dataset with labels of images alone"
                ),
            })
        }
    }
}

/// The model and blueprint that most tests of parameters use.
#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test fails here")]
pub(crate) fn hybrid_for_lesions() -> (Box<dyn Model>, Blueprint) {
    find("hybrid")
        .and_then(|entry| entry.build(&Task::lesions(), &ModelConfig::default()))
        .expect("hybrid answers the lesion task")
}

#[cfg(test)]
mod tests {
    use fovea_run::config::{Fusion, MapAttention, Pooling};

    use super::*;

    /// One target at image level.
    fn grades(classes: usize) -> Task {
        let mut target = Task::lesions().targets()[0].clone();
        (target.union_of_cells, target.name) = (false, "grade".to_owned());
        let class = target.classes[0].clone();
        target.classes = (0..classes)
            .map(|c| fovea_task::Class {
                name: format!("c{c}"),
                ..class.clone()
            })
            .collect();
        Task::new(vec![target]).expect("a task")
    }

    fn build(name: &str, task: &Task, options: &ModelConfig) -> Result<Blueprint> {
        Ok(find(name)?.build(task, options)?.1)
    }

    fn refused(name: &str, task: &Task, options: &ModelConfig, words: &[&str]) {
        let message = match build(name, task, options) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{name} was built"),
        };
        for word in words {
            assert!(message.contains(word), "{message}");
        }
        assert!(message.contains("  help: "), "{message}");
    }

    /// torchvision's own numbers are for 1000 classes.
    #[test]
    fn classifiers_have_torchvisions_parameters() {
        let classes = 10;
        for (name, width, last, known) in [
            ("resnet18", 512, "fc", 11_689_512),
            ("resnet50", 2048, "fc", 25_557_032),
            ("densenet121", 1024, "classifier", 7_978_856),
            ("efficientnet_b0", 1280, "classifier.1", 5_288_548),
        ] {
            let blueprint = build(name, &grades(classes), &ModelConfig::default()).expect(name);
            let numel: usize = blueprint.params.iter().map(ParamSpec::numel).sum();
            assert_eq!(numel, known - (1000 - classes) * (width + 1), "{name}");
            let end = &blueprint.params[blueprint.params.len() - 2];
            assert_eq!(end.name, format!("{last}.weight"));
            assert_eq!(end.shape, [classes as i64, width as i64]);
        }
    }

    #[test]
    fn tasks_and_options_that_do_not_fit_are_refused() {
        let (lesions, grades, usual) = (Task::lesions(), grades(3), ModelConfig::default());
        refused(
            "resnet50",
            &lesions,
            &usual,
            &["resnet50", "1 targets at image level and 1"],
        );
        refused("hybrid", &grades, &usual, &["hybrid", "0 at patch level"]);
        refused(
            "patch_only",
            &grades,
            &usual,
            &["target `grade`", "whole images"],
        );
        refused("resnet50_meta", &grades, &usual, &["no columns"]);
        let other = ModelConfig {
            attention: MapAttention::Se,
            ..usual.clone()
        };
        let words = [
            "model.attention = \"se\"",
            "resnet18, resnet50, efficientnet_b0",
        ];
        refused("densenet121", &grades, &other, &words);
        refused("hybrid", &lesions, &other, &words);
        let other = ModelConfig {
            pooling: Pooling::Attention,
            ..usual.clone()
        };
        refused("resnet18", &grades, &other, &["model.pooling", "hybrid"]);
        let other = ModelConfig {
            local_backbone: "vgg".to_owned(),
            ..usual
        };
        refused("hybrid", &lesions, &other, &["\"vgg\"", "densenet121"]);
    }

    #[test]
    fn a_cell_and_its_image_may_be_asked_of_patch_only_and_no_other_image() {
        let usual = ModelConfig::default();
        assert!(build("patch_only", &Task::lesions(), &usual).is_ok());
        let mut targets = Task::lesions().targets().to_vec();
        targets[0].union_of_cells = false;
        let other = Task::new(targets).expect("a task");
        refused(
            "patch_only",
            &other,
            &usual,
            &["target `image`", "whole images"],
        );
    }

    #[test]
    fn options_of_hybrid_add_their_parameters_after_the_others() {
        let (_, plain) = hybrid_for_lesions();
        let options = ModelConfig {
            fusion: Fusion::Cross,
            pooling: Pooling::Attention,
            ..ModelConfig::default()
        };
        let all = build("hybrid", &Task::lesions(), &options).expect("hybrid");
        let names = |blueprint: &Blueprint| -> Vec<String> {
            blueprint.params.iter().map(|p| p.name.clone()).collect()
        };
        let (plain, all) = (names(&plain), names(&all));
        assert_eq!(all[..plain.len()], plain);
        let more = all[plain.len()..].iter();
        assert!(more.clone().any(|name| name == "cross_attn.in_proj_weight"));
        assert!(more.clone().any(|name| name == "pool.attention_V.0.weight"));
        assert_eq!(more.len(), 4 + 2 + 6);
        let options = ModelConfig {
            local_backbone: "efficientnet_b0".to_owned(),
            ..ModelConfig::default()
        };
        let other = build("hybrid", &Task::lesions(), &options).expect("hybrid");
        let proj = |p: &&ParamSpec| p.name == "local_proj.weight";
        let proj = other.params.iter().find(proj).expect("a projection");
        assert_eq!(proj.shape, [256, 1280]);
    }

    #[test]
    fn no_two_sites_of_dropout_share_a_key() {
        let columns = grades(3)
            .with_columns(vec!["age".to_owned()])
            .expect("a task");
        for entry in MODELS {
            for attention in [MapAttention::None, MapAttention::Mha] {
                let options = ModelConfig {
                    attention,
                    ..ModelConfig::default()
                };
                for task in [&Task::lesions(), &columns] {
                    let Ok((_, blueprint)) = entry.build(task, &options) else {
                        continue;
                    };
                    let mut seen = std::collections::HashSet::new();
                    for site in &blueprint.dropouts {
                        assert!(seen.insert(site.stream), "{}: {site:?}", entry.name);
                        assert!(site.width.is_multiple_of(4), "{}: {site:?}", entry.name);
                    }
                }
            }
        }
    }
}
