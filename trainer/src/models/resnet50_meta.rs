//! `resnet50_meta`: a ResNet50 over whole images and a small network over numbers that are known of each image.
//!
//! | part | in -> out |
//! |---|---|
//! | `backbone` ResNet50 | `[b, 3, S, S]` -> `[b, 2048]` |
//! | `meta_net` Linear k->128, ReLU, Dropout 0.2, Linear 128->64, ReLU (`.0`, `.3`) | columns `[b, k]` -> `[b, 64]` |
//! | `head` Linear 2112->256, ReLU, Dropout 0.3, Linear 256->C (`.0`, `.3`) | both side by side -> `[b, C]` |

use fovea_run::config::ModelConfig;
use fovea_task::{Level, Task};
use tch::Tensor;

use super::{
    Backbone, Blueprint, DropoutSpec, Input, Macs, Mlp, Model, Pass, ResNet, ResNetShape, Sizes,
    the_image_target,
};
use crate::error::{Error, Result};

/// Width of `meta_net`'s result.
const META: i64 = 64;

/// The network and its numbers.
pub struct ResNet50Meta {
    backbone: ResNet,
    meta_net: Mlp,
    head: Mlp,
    columns: usize,
}

impl ResNet50Meta {
    /// Declares all parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] unless the task has exactly one target, at image level, and columns.
    pub fn declare(b: &mut Blueprint, task: &Task, _: &ModelConfig) -> Result<Box<dyn Model>> {
        let target = the_image_target("resnet50_meta", task)?;
        let columns = task.columns().len();
        if columns == 0 {
            return Err(Error::Usage {
                what: "model.name = \"resnet50_meta\": this dataset has no columns, numbers of each image that the model reads beside its pixels".to_owned(),
                help: "prepare a dataset of a layout with columns, or set model.name = \"resnet50\""
                    .to_owned(),
            });
        }
        let dropout = |width, p, stream| DropoutSpec {
            level: Level::Image,
            width,
            p,
            stream: u32::from_be_bytes(stream),
        };
        let (shape, classes) = (ResNetShape::RESNET50, target.classes.len() as i64);
        let meta = dropout(128, 0.2, *b"META");
        let head = dropout(256, 0.3, *b"HEAD");
        b.head("meta_net");
        b.head("head");
        Ok(Box::new(Self {
            backbone: ResNet::declare(b, "backbone.", shape, Level::Image),
            meta_net: Mlp::declare(b, "meta_net", (columns as i64, META), meta),
            head: Mlp::declare(b, "head", (shape.features() + META, classes), head),
            columns,
        }))
    }
}

impl Model for ResNet50Meta {
    fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
        let backbone = pass.in_branch("backbone", Level::Image);
        let image = self.backbone.features(&backbone, input.globals)?; // [b, 2048]
        let meta = self.meta_net.forward(pass, input.columns)?.f_relu()?; // [b, 64]
        let both = Tensor::f_cat(&[&image, &meta], 1)?;
        Ok(vec![self.head.forward(pass, &both)?])
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn macs(&self, b: &Blueprint, sizes: &Sizes) -> Macs {
        self.backbone.macs(b, sizes.images, sizes.global)
            + self.meta_net.macs(b, sizes.images)
            + self.head.macs(b, sizes.images)
    }
}
