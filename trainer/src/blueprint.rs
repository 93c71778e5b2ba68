//! A model's declaration, before it has numbers: names, shapes and initial values of its parameters, its batch
//! normalisation layers and its dropout sites, in declaration order.

use fovea_task::Level;

/// Index of a parameter in its [`Blueprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub usize);

/// Index of a batch normalisation layer in its [`Blueprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub usize);

/// Index of a dropout site in its [`Blueprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutId(pub usize);

/// A layer whose outputs are dropped at random in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutSpec {
    /// Whether each image or each patch has one row of the layer; its id seeds the row's mask.
    pub level: Level,
    /// Outputs per row, a multiple of 4 (the hash gives four words at a time).
    pub width: usize,
    /// Probability that an output is dropped, in `[0, 1)`.
    pub p: f32,
    /// Part of the hash key. Two sites of a model must have different ones, else their masks are equal.
    pub stream: u32,
}

/// How a parameter is drawn before the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with std `sqrt(2 / fan_out)` (He et al. 2015, mode fan_out), as torchvision's ResNets.
    KaimingFanOut,
    /// Normal with std `sqrt(2 / fan_in)` (He et al. 2015, mode fan_in), as torchvision's DenseNets.
    KaimingFanIn,
    /// Uniform in `[-bound, bound]`.
    Uniform(f64),
    /// All elements the same.
    Constant(f32),
}

/// One parameter: its PyTorch name, its shape and where its forward copy lives.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Name in PyTorch's state dict, for example `local_branch.layer1.0.conv1.weight`.
    pub name: String,
    /// Shape as PyTorch has it (convolutions `[out, in, kh, kw]`).
    pub shape: Vec<i64>,
    /// True for convolution weights: stored channels-last and, in bf16 runs, multiplied in bf16.
    pub working: bool,
    /// How its initial values are drawn.
    pub init: Init,
}

impl ParamSpec {
    /// Number of elements, the product of the shape.
    pub fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

/// One batch normalisation layer and where its statistics start in the flat statistics buffer:
/// `channels` means at `offset`, then `channels` variances.
#[derive(Clone, Debug)]
pub struct NormSpec {
    /// Name without suffix, for example `local_branch.bn1`.
    pub name: String,
    /// Number of channels, each with a mean and a variance.
    pub channels: usize,
    /// Index of its first mean in the flat statistics buffer.
    pub offset: usize,
    /// Whether it normalises with its running statistics while training, and leaves them: its parameters are frozen.
    pub frozen: bool,
}

/// Every parameter and buffer of a model, in declaration order.
#[derive(Clone, Debug, Default)]
pub struct Blueprint {
    /// The parameters, indexed by [`ParamId`].
    pub params: Vec<ParamSpec>,
    /// The batch normalisation layers, indexed by [`NormId`].
    pub norms: Vec<NormSpec>,
    /// The dropout sites, indexed by [`DropoutId`].
    pub dropouts: Vec<DropoutSpec>,
    /// Prefixes of the parameters that make up the head: what a stage with `train = "head"` moves.
    pub heads: Vec<String>,
}

impl Blueprint {
    /// Declares a parameter and returns its id.
    pub fn param(&mut self, name: String, shape: &[i64], working: bool, init: Init) -> ParamId {
        self.params.push(ParamSpec {
            name,
            shape: shape.to_vec(),
            working,
            init,
        });
        ParamId(self.params.len() - 1)
    }

    /// Declares the running statistics of a batch normalisation layer.
    pub fn norm(&mut self, name: String, channels: usize) -> NormId {
        let offset = self.stats_len();
        self.norms.push(NormSpec {
            name,
            channels,
            offset,
            frozen: false,
        });
        NormId(self.norms.len() - 1)
    }

    /// Says that the parameters that begin with `prefix` belong to the head, the layers that are new for each task. A
    /// model says it once for each of its heads.
    pub fn head(&mut self, prefix: &str) {
        self.heads.push(prefix.to_owned());
    }

    /// Declares a dropout site and returns its id.
    pub fn dropout(&mut self, spec: DropoutSpec) -> DropoutId {
        self.dropouts.push(spec);
        DropoutId(self.dropouts.len() - 1)
    }

    /// Elements of the flat statistics buffer (a mean and a variance per channel).
    pub fn stats_len(&self) -> usize {
        self.norms.last().map_or(0, |n| n.offset + 2 * n.channels)
    }
}
