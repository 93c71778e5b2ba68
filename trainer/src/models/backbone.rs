//! Backbones: networks from pixels to features, which models are composed of. To add one, write one file here that
//! implements [`Backbone`], and its row in [`BACKBONES`].

use tch::Tensor;

use super::{Blueprint, Macs, Pass, ResNet18};
use crate::error::Result;
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

/// A row of [`BACKBONES`], a network that a configuration can choose.
pub struct BackboneEntry {
    /// torchvision's name.
    pub name: &'static str,
    /// Declares the network without its classifier under a prefix that ends in a dot, or under none ("").
    pub declare: fn(&mut Blueprint, &str) -> Box<dyn Backbone>,
}

/// Every backbone, one row each.
pub static BACKBONES: &[BackboneEntry] = &[BackboneEntry {
    name: "resnet18",
    declare: |b, prefix| Box::new(ResNet18::declare(b, prefix)),
}];
