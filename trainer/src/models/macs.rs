//! The arithmetic of a step: the multiplications of convolutions, linear layers and attention. Everything else is
//! memory-bound and not counted.

use std::iter::Sum;
use std::ops::{Add, Mul};

use super::{Blueprint, ParamId};

/// Multiplications, each with its addition: 2 floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// Multiplications of the forward pass.
    pub forward: u64,
    /// Multiplications of the backward pass: the gradients of weights and of inputs.
    pub backward: u64,
}

/// The sizes of a step's inputs that its arithmetic depends on. Every image has the same number of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of whole images.
    pub images: u64,
    /// Side of a whole image, pixels.
    pub global: u64,
    /// Number of patches of each image.
    pub patches: u64,
    /// Side of a patch, pixels.
    pub patch: u64,
}

impl Macs {
    /// A product whose factors both need a gradient.
    pub fn product(forward: u64) -> Self {
        Self {
            forward,
            backward: 2 * forward,
        }
    }

    /// A product with the first layer's input, which needs no gradient.
    pub fn first(forward: u64) -> Self {
        Self {
            forward,
            backward: forward,
        }
    }

    /// Floating-point operations of both passes, two per multiplication.
    pub fn flops(self) -> u64 {
        2 * (self.forward + self.backward)
    }
}

impl Add for Macs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            forward: self.forward + other.forward,
            backward: self.backward + other.backward,
        }
    }
}

impl Mul<u64> for Macs {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self {
            forward: self.forward * times,
            backward: self.backward * times,
        }
    }
}

impl Sum for Macs {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

impl Blueprint {
    /// A weight that is multiplied once at each of `positions` (rows of a linear layer, pixels of a convolution's
    /// result).
    pub(super) fn macs_at(&self, weight: ParamId, positions: u64) -> Macs {
        Macs::product(self.params[weight.0].numel() as u64 * positions)
    }
}

#[cfg(test)]
mod tests {
    use fovea_run::config::ModelConfig;
    use fovea_task::{Level, Target, Task};

    use super::*;
    use crate::models::{
        Backbone, DenseNet121, EfficientNetB0, ResNet, ResNetShape, find, hybrid_for_lesions,
    };

    /// He et al. (CVPR 2016, table 1) give 1.8e9 for 224 x 224, torchvision 1.81 GMACs with the classifier (0.0005).
    #[test]
    fn resnet18_at_224_is_the_known_number() {
        let mut blueprint = Blueprint::default();
        let net = ResNet::declare(&mut blueprint, "net.", ResNetShape::RESNET18, Level::Image);
        let macs = net.macs(&blueprint, 1, 224);
        assert_eq!(macs.forward, 1_813_561_344);
        // All but the first convolution, which has 118 million, need two gradients.
        assert_eq!(macs.backward, 2 * 1_813_561_344 - 118_013_952);
        assert_eq!(net.macs(&blueprint, 3, 224), macs * 3);
    }

    /// torchvision gives 4.09 GMACs with the classifier (0.002).
    #[test]
    fn resnet50_at_224_is_the_known_number() {
        let mut blueprint = Blueprint::default();
        let shape = ResNetShape::RESNET50;
        let net = ResNet::declare(&mut blueprint, "", shape, Level::Image);
        assert_eq!(net.macs(&blueprint, 1, 224).forward, 4_087_136_256);
        let numel: usize = blueprint.params.iter().map(|p| p.numel()).sum();
        assert_eq!(numel, 25_557_032 - 2_049_000); // torchvision's, without `fc`
    }

    /// torchvision gives 2.83 and 0.386 GMACs with the classifier, which has 0.001.
    #[test]
    fn densenet121_and_efficientnet_b0_at_224_are_the_known_numbers() {
        let (mut dense, mut efficient) = (Blueprint::default(), Blueprint::default());
        let densenet = DenseNet121::declare(&mut dense, "");
        let efficientnet = EfficientNetB0::declare(&mut efficient, "", Level::Image);
        assert_eq!(densenet.macs(&dense, 1, 224).forward, 2_833_137_664);
        assert_eq!(efficientnet.macs(&efficient, 1, 224).forward, 384_534_752);
        let numel = |b: &Blueprint| b.params.iter().map(|p| p.numel()).sum::<usize>();
        // torchvision's, without the classifier.
        assert_eq!(numel(&dense), 7_978_856 - 1_025_000);
        assert_eq!(numel(&efficient), 5_288_548 - 1_281_000);
    }

    /// Two networks and a head, each once per image.
    #[test]
    fn resnet_densenet_is_its_parts() {
        let target = Target {
            name: "grade".to_owned(),
            level: Level::Image,
            kind: fovea_task::Kind::OneOf,
            classes: Task::lesions().targets()[0].classes[..3].to_vec(),
            union_of_cells: false,
        };
        let task = Task::new(vec![target]).expect("a task");
        let entry = find("resnet_densenet").expect("a model");
        let (model, blueprint) = entry
            .build(&task, &ModelConfig::default())
            .expect("one target");
        let sizes = Sizes {
            images: 2,
            global: 224,
            patches: 0,
            patch: 0,
        };
        let parts = 4_087_136_256 + 2_833_137_664 + 3072 * 1024 + 1024 * 3;
        assert_eq!(model.macs(&blueprint, &sizes).forward, 2 * parts);
        assert!(
            entry
                .build(&Task::lesions(), &ModelConfig::default())
                .is_err()
        );
    }

    #[test]
    fn the_hybrid_model_is_its_parts() {
        let (model, blueprint) = hybrid_for_lesions();
        let of = |images, patches| {
            let sizes = Sizes {
                images,
                global: 224,
                patches,
                patch: 128,
            };
            model.macs(&blueprint, &sizes).forward
        };
        let mut branch = Blueprint::default();
        let net = ResNet::declare(&mut branch, "net.", ResNetShape::RESNET18, Level::Image);
        let fusion = |tokens: u64| {
            let projections = tokens * 512 * 256;
            let attention = tokens * 4 * 256 * 256 + 2 * tokens * tokens * 256;
            projections + attention + tokens * (256 * 128 + 128 * 4)
        };
        let (image, patch) = (
            net.macs(&branch, 1, 224).forward,
            net.macs(&branch, 1, 128).forward,
        );
        assert_eq!(of(1, 16), image + 16 * patch + fusion(17));
        assert_eq!(of(5, 16), 5 * of(1, 16));
    }
}
