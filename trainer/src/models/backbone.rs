//! Backbones: networks from pixels to features, which models are composed of. To add one, write one file here that
//! implements [`Backbone`], and its row in [`BACKBONES`].

use fovea_run::config::MapAttention;
use fovea_task::Level;
use tch::Tensor;

use super::{
    Attended, Blueprint, DenseNet121, EfficientNetB0, Init, Macs, Pass, ResNet, ResNetShape,
};
use crate::error::{Error, Result};
use crate::ops;

/// A convolutional network up to its last feature maps.
pub trait Backbone: Send + Sync {
    /// Channels of the feature maps, and width of the feature vector.
    fn width(&self) -> i64;

    /// The last feature maps of images `[n, 3, H, W]` (working dtype, channels-last, n > 0), `[n, width, h, w]` in the
    /// working dtype; Grad-CAM weighs these.
    fn maps(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor>;

    /// Turns images `[n, 3, H, W]` into features `[n, width]` in f32, the mean over the maps. n may be 0.
    fn features(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        if x.size()[0] == 0 {
            let shape = [0, self.width()];
            return Ok(Tensor::f_zeros(shape, (tch::Kind::Float, x.device()))?);
        }
        ops::global_avg_pool(&pass.maps(|| self.maps(pass, x))?)
    }

    /// Multiplications on `n` images of `side` x `side` pixels.
    fn macs(&self, b: &Blueprint, n: u64, side: u64) -> Macs;
}

/// How a network is declared.
#[derive(Clone, Copy, Debug)]
pub struct BackboneOptions {
    /// Whether it reads whole images or patches, whose ids its dropout masks follow.
    pub level: Level,
    /// Attention inside it. Networks without a place for it ignore it; a model has the option `attention`
    /// ([`ModelEntry::options`](super::ModelEntry::options)) where its network has places.
    pub attention: MapAttention,
}

impl BackboneOptions {
    /// The network as it was published.
    pub fn plain(level: Level) -> Self {
        Self {
            level,
            attention: MapAttention::None,
        }
    }
}

/// The last layer of a network that is a model of its own, as torchvision has it.
#[derive(Clone, Copy, Debug)]
pub struct LastLayer {
    /// Name of its parameters.
    pub name: &'static str,
    /// Probability that a feature before it is dropped in training.
    pub dropout: f32,
    /// Initial weights and biases for `(inputs, outputs)`.
    pub init: fn(i64, i64) -> (Init, Init),
}

/// A row of [`BACKBONES`], a network that a configuration can choose.
pub struct BackboneEntry {
    /// torchvision's name.
    pub name: &'static str,
    /// Declares the network without its classifier under a prefix that ends in a dot, or under none ("").
    pub declare: fn(&mut Blueprint, &str, BackboneOptions) -> Box<dyn Backbone>,
    /// Its classifier, where it is a model of its own.
    pub last: LastLayer,
}

/// PyTorch's own initial values of a linear layer.
fn usual(inputs: i64, _: i64) -> (Init, Init) {
    let bound = Init::Uniform(1.0 / (inputs as f64).sqrt());
    (bound, bound)
}

const FC: LastLayer = LastLayer {
    name: "fc",
    dropout: 0.0,
    init: usual,
};

/// Every backbone, one row each.
pub static BACKBONES: &[BackboneEntry] = &[
    BackboneEntry {
        name: "resnet18",
        declare: |b, prefix, BackboneOptions { level, attention }| {
            let shape = ResNetShape::RESNET18;
            Box::new(ResNet::with_attention(b, prefix, shape, (level, attention)))
        },
        last: FC,
    },
    BackboneEntry {
        name: "resnet50",
        declare: |b, prefix, BackboneOptions { level, attention }| {
            let shape = ResNetShape::RESNET50;
            Box::new(ResNet::with_attention(b, prefix, shape, (level, attention)))
        },
        last: FC,
    },
    BackboneEntry {
        name: "densenet121",
        declare: |b, prefix, _| Box::new(DenseNet121::declare(b, prefix)),
        last: LastLayer {
            name: "classifier",
            dropout: 0.0,
            init: |inputs, outputs| (usual(inputs, outputs).0, Init::Constant(0.0)),
        },
    },
    BackboneEntry {
        name: "efficientnet_b0",
        declare: |b, prefix, BackboneOptions { level, attention }| {
            let network = Box::new(EfficientNetB0::declare(b, prefix, level));
            match attention {
                MapAttention::None => network,
                kind => Box::new(Attended::declare(b, prefix, network, 32, (level, kind))),
            }
        },
        last: LastLayer {
            name: "classifier.1",
            dropout: 0.2,
            init: |_, outputs| {
                let bound = 1.0 / (outputs as f64).sqrt();
                (Init::Uniform(bound), Init::Constant(0.0))
            },
        },
    },
];

/// The backbone that a configuration names in `model.KEY`.
///
/// # Errors
/// [`Error::Usage`] with the known names when there is none.
pub fn backbone(key: &str, name: &str) -> Result<&'static BackboneEntry> {
    let found = BACKBONES.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = BACKBONES.iter().map(|entry| entry.name).collect();
        Error::Usage {
            what: format!("model.{key} = {name:?}: there is no such backbone"),
            help: format!("known are: {}", known.join(", ")),
        }
    })
}
