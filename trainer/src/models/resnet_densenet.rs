//! `resnet_densenet`: ResNet50 and DenseNet121 over the same whole image, their features side by side.
//!
//! | part | in -> out |
//! |---|---|
//! | `resnet` ResNet50 | `[b, 3, S, S]` -> `[b, 2048]` |
//! | `densenet` DenseNet121 | `[b, 3, S, S]` -> `[b, 1024]` |
//! | `head` Linear 3072->1024, ReLU, Dropout 0.5, Linear 1024->C (`.0`, `.3`) | both side by side -> `[b, C]` |

use fovea_run::config::ModelConfig;
use fovea_task::{Level, Task};
use tch::Tensor;

use super::{
    Backbone, Blueprint, DenseNet121, DropoutSpec, Input, Macs, Mlp, Model, Pass, ResNet,
    ResNetShape, Sizes, the_image_target,
};
use crate::error::Result;

/// Width of the head's hidden layer.
const HIDDEN: usize = 1024;
/// Dropout probability in the head.
const DROPOUT: f32 = 0.5;

/// The two networks and their common head.
pub struct ResNetDenseNet {
    resnet: ResNet,
    densenet: DenseNet121,
    head: Mlp,
}

impl ResNetDenseNet {
    /// Declares all parameters.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::error::Error::Usage) unless the task has exactly one target, at image level.
    pub fn declare(b: &mut Blueprint, task: &Task, _: &ModelConfig) -> Result<Box<dyn Model>> {
        let target = the_image_target("resnet_densenet", task)?;
        let (shape, level) = (ResNetShape::RESNET50, Level::Image);
        let width = shape.features() + DenseNet121::FEATURES;
        let site = DropoutSpec {
            level,
            width: HIDDEN,
            p: DROPOUT,
            stream: u32::from_be_bytes(*b"HEAD"),
        };
        b.head("head");
        Ok(Box::new(Self {
            resnet: ResNet::declare(b, "resnet.", shape, level),
            densenet: DenseNet121::declare(b, "densenet."),
            head: Mlp::declare(b, "head", (width, target.classes.len() as i64), site),
        }))
    }
}

impl Model for ResNetDenseNet {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        let resnet = self
            .resnet
            .features(&pass.in_branch("resnet", Level::Image), input.globals)?; // [b, 2048]
        let densenet = self
            .densenet
            .features(&pass.in_branch("densenet", Level::Image), input.globals)?; // [b, 1024]
        let both = Tensor::f_cat(&[&resnet, &densenet], 1)?;
        Ok(vec![self.head.forward(pass, &both)?])
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        self.resnet.macs(b, sizes.images, sizes.global)
            + self.densenet.macs(b, sizes.images, sizes.global)
            + self.head.macs(b, sizes.images)
    }
}
