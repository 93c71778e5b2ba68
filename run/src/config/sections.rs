//! The sections of a training configuration as plain typed structs.
//!
//! [`super::keys::KEYS`] alone says what each key means, its unit, range and whether it changes the
//! result; the field comments here only name shape and unit. Defaults live only in the
//! `Default` impls.

use fovea_collectives::BackendChoice;
use fovea_coordinator::order::SamplerChoice;
use serde::{Deserialize, Serialize};

/// An enum whose variants are spelled one way in TOML, in messages and in the key table.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every accepted spelling, in declaration order.
            pub const NAMES: &'static [&'static str] = &[$($text),+];
            /// Every variant, in the order of [`Self::NAMES`].
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The spelling used in configuration files.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// Arithmetic of the forward and backward pass; parameters are always kept in f32.
    Precision {
        /// bf16 where the processor or the GPU has it natively, f32 elsewhere.
        Auto = "auto",
        /// 32-bit floats in every operation.
        F32 = "f32",
        /// bfloat16 activations and gradients, f32 master weights.
        Bf16 = "bf16",
    }
}

choice! {
    /// Where in an image the windows of training samples lie.
    CellPlaces {
        /// On the cells of the grid.
        Grid = "grid",
        /// Around lesions; those of healthy samples anywhere in the field of view.
        Centred = "centred",
        /// Half of them on the grid, half as `centred`, drawn for each sample and epoch.
        Mixed = "mixed",
    }
}

choice! {
    /// The device that runs forward and backward.
    Device {
        /// `cuda` where there is a GPU, else `cpu`.
        Auto = "auto",
        /// The processor, on all its threads.
        Cpu = "cpu",
        /// One NVIDIA GPU per rank.
        Cuda = "cuda",
    }
}

choice! {
    /// Type in which gradients are summed between GPUs.
    ReduceDtype {
        /// Gradients are summed as 32-bit floats.
        F32 = "f32",
        /// Gradients are summed as bfloat16, which halves what travels.
        Bf16 = "bf16",
    }
}

choice! {
    /// The rule by which gradients move the weights.
    OptimizerKind {
        /// Adam (Kingma & Ba, ICLR 2015), weight decay added to the gradient.
        Adam = "adam",
        /// AdamW (Loshchilov & Hutter, ICLR 2019), weight decay apart from the gradient.
        AdamW = "adamw",
    }
}

choice! {
    /// Which parameters the weight decay acts on.
    DecayTarget {
        /// Every parameter that moves.
        All = "all",
        /// Parameters of two or more dimensions: not biases, nor the parameters of normalisation layers.
        Weights = "weights",
    }
}

choice! {
    /// What batch normalisation does while its parameters are frozen.
    FrozenNorms {
        /// Normalises with the running statistics and leaves them as they are.
        Eval = "eval",
        /// Normalises with the statistics of the batch and updates the running ones.
        Train = "train",
    }
}

choice! {
    /// Shape of the learning rate over the run, after the warm-up.
    ScheduleKind {
        /// The base rate throughout.
        Constant = "constant",
        /// One half cosine from the base rate to `min_lr` (Loshchilov & Hutter, ICLR 2017).
        Cosine = "cosine",
        /// Reduced when the watched validation metric stops improving.
        Plateau = "plateau",
    }
}

choice! {
    /// A validation number that training can watch.
    MetricName {
        /// F1 over all (sample, class) decisions pooled.
        F1Micro = "f1_micro",
        /// Mean of the per-class F1.
        F1Macro = "f1_macro",
        /// Mean area under the ROC curve over classes where it is defined.
        MeanAuroc = "mean_auroc",
        /// Mean average precision over classes where it is defined.
        MeanAp = "mean_ap",
        /// Fraction of wrong (sample, class) decisions; lower is better.
        Hamming = "hamming",
        /// Fraction of samples with all classes right.
        SubsetAcc = "subset_acc",
        /// Jaccard index averaged over samples.
        Iou = "iou",
        /// Dice coefficient averaged over samples.
        Dice = "dice",
        /// Pearson correlation between probabilities and labels.
        PearsonR = "pearson_r",
        /// Mean validation loss; lower is better.
        Loss = "loss",
    }
}

choice! {
    /// Attention inside a backbone of whole images.
    MapAttention {
        /// The backbone as it was published.
        None = "none",
        /// Squeeze and excitation (Hu et al., CVPR 2018).
        Se = "se",
        /// Multi-head self-attention over the places of the feature maps.
        Mha = "mha",
    }
}

choice! {
    /// What `hybrid` reads the answer about an image from.
    Pooling {
        /// Token 0, the whole image after it has attended to its patches.
        Token = "token",
        /// The patches, weighed by gated attention (Ilse et al., ICML 2018).
        Attention = "attention",
    }
}

choice! {
    /// How the patches of `hybrid` learn of the whole image.
    Fusion {
        /// Self-attention over the image and its patches.
        SelfAttention = "self",
        /// Before it, patches attend to the feature maps of the whole image.
        Cross = "cross",
    }
}

impl MetricName {
    /// Whether a larger value is the better one.
    #[must_use]
    pub const fn higher_is_better(self) -> bool {
        !matches!(self, Self::Hamming | Self::Loss)
    }
}

pub use fovea_task::Level;

/// Per-class weights `alpha_c` of a loss, in class order (MA, HE, EX, SE of lesions).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AlphaText", into = "AlphaText")]
pub enum Alpha {
    /// Inverse frequency of the training split's labels, normalised to mean 1.
    InverseFrequency,
    /// 1 for every class.
    None,
    /// These weights, one per class, used as they are.
    Weights(Vec<f32>),
}

impl Alpha {
    /// The accepted words; a list with one number per class is accepted too.
    pub const NAMES: &'static [&'static str] = &["inverse-frequency", "none"];
}

/// How [`Alpha`] looks in a file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum AlphaText {
    Word(String),
    Weights(Vec<f32>),
}

impl From<Alpha> for AlphaText {
    fn from(alpha: Alpha) -> Self {
        match alpha {
            Alpha::InverseFrequency => Self::Word("inverse-frequency".into()),
            Alpha::None => Self::Word("none".into()),
            Alpha::Weights(weights) => Self::Weights(weights),
        }
    }
}

impl TryFrom<AlphaText> for Alpha {
    type Error = String;

    fn try_from(text: AlphaText) -> Result<Self, String> {
        match text {
            AlphaText::Word(word) if word == "inverse-frequency" => Ok(Self::InverseFrequency),
            AlphaText::Word(word) if word == "none" => Ok(Self::None),
            AlphaText::Word(word) => Err(format!("unknown alpha {word:?}")),
            AlphaText::Weights(weights) => Ok(Self::Weights(weights)),
        }
    }
}

/// Per-class factors on the labels that have the class, in class order; PyTorch's `pos_weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PosWeightText", into = "PosWeightText")]
pub enum PosWeight {
    /// 1 for every class.
    None,
    /// Samples without the class per sample with it, in the training split.
    Balanced,
    /// These factors, one per class, used as they are.
    Factors(Vec<f32>),
}

impl PosWeight {
    /// The accepted words; a list with one number per class is accepted too.
    pub const NAMES: &'static [&'static str] = &["none", "balanced"];
}

/// How [`PosWeight`] looks in a file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum PosWeightText {
    Word(String),
    Factors(Vec<f32>),
}

impl From<PosWeight> for PosWeightText {
    fn from(weight: PosWeight) -> Self {
        match weight {
            PosWeight::None => Self::Word("none".into()),
            PosWeight::Balanced => Self::Word("balanced".into()),
            PosWeight::Factors(factors) => Self::Factors(factors),
        }
    }
}

impl TryFrom<PosWeightText> for PosWeight {
    type Error = String;

    fn try_from(text: PosWeightText) -> Result<Self, String> {
        match text {
            PosWeightText::Word(word) if word == "none" => Ok(Self::None),
            PosWeightText::Word(word) if word == "balanced" => Ok(Self::Balanced),
            PosWeightText::Word(word) => Err(format!("unknown pos_weight {word:?}")),
            PosWeightText::Factors(factors) => Ok(Self::Factors(factors)),
        }
    }
}

/// `[data]`: what is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Prepared dataset directory; empty until given. Relative to the current directory.
    pub path: String,
    /// Patches drawn per image and step, P.
    pub patches_per_image: u32,
    /// Side of the whole-image view in pixels, S.
    pub global_size: u32,
    /// Lesion pixels that make a grid cell positive.
    pub min_lesion_pixels: u32,
    /// What chooses the samples of an epoch.
    pub sampler: SamplerChoice,
    /// Healthy samples for each sample with a class (`balanced`).
    pub healthy_ratio: f32,
    /// Most samples of an epoch that count for one class (`balanced`); 0 = all.
    pub class_cap: u32,
    /// Where in an image the window of a training sample lies.
    pub cells: CellPlaces,
    /// Whether a window's label is counted from the mask under it, wherever it lies.
    pub window_labels: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            patches_per_image: 16,
            global_size: 512,
            min_lesion_pixels: 1,
            sampler: SamplerChoice::ALL,
            healthy_ratio: 1.0,
            class_cap: 0,
            cells: CellPlaces::Grid,
            window_labels: false,
        }
    }
}

/// `[model]`: which network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The network: a name that `fovea_trainer::models::MODELS` has, which knows it better than this crate.
    pub name: String,
    /// Weights to begin from: a `.safetensors` or PyTorch file, a checkpoint or a run directory; empty = random ones.
    pub init: String,
    /// Which tensors of the file go to which part of the model, as `MODEL = FILE, ..`; empty = by equal names.
    pub init_map: String,
    /// blake3 of the file that [`Self::init`] names, 64 hex digits; empty = not known yet.
    pub init_blake3: String,
    /// Attention inside a model that is one backbone.
    pub attention: MapAttention,
    /// What `hybrid` reads the answer about an image from.
    pub pooling: Pooling,
    /// How the patches of `hybrid` learn of the whole image.
    pub fusion: Fusion,
    /// The network over whole images in `hybrid`: a name that `fovea_trainer::models::BACKBONES` has.
    pub global_backbone: String,
    /// The network over patches in `hybrid`, likewise.
    pub local_backbone: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: "hybrid".to_owned(),
            init: String::new(),
            init_map: String::new(),
            init_blake3: String::new(),
            attention: MapAttention::None,
            pooling: Pooling::Token,
            fusion: Fusion::SelfAttention,
            global_backbone: "resnet18".to_owned(),
            local_backbone: "resnet18".to_owned(),
        }
    }
}

/// `[loss]`: what is minimised, `loss(image) + patch_weight * loss(patch)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// The loss function: a name that `fovea_kernels::loss::LOSSES` has.
    pub kind: String,
    /// Focusing exponent.
    pub gamma: f32,
    /// Weights alpha per class, or how they follow from the data.
    pub alpha: Alpha,
    /// Whether the positive/negative weights below are used.
    pub balance: bool,
    /// Weight of a positive label when `balance` is on.
    pub positive_weight: f32,
    /// Weight of a negative label when `balance` is on.
    pub negative_weight: f32,
    /// Factors per class on positive labels (`bce`), or how they follow from the data.
    pub pos_weight: PosWeight,
    /// How much further samples of a class add to the first ones (`class_balanced`); below 1.
    pub beta: f32,
    /// Share of a label that is spread over all classes (`cross_entropy`); below 1.
    pub label_smoothing: f32,
    /// Weight of the patch loss against the image loss.
    pub patch_weight: f32,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: "focal".to_owned(),
            gamma: 2.0,
            alpha: Alpha::InverseFrequency,
            balance: false,
            positive_weight: 0.75,
            negative_weight: 0.25,
            pos_weight: PosWeight::None,
            beta: 0.9999,
            label_smoothing: 0.0,
            patch_weight: 1.0,
        }
    }
}

/// `[train]`: how much, how parallel and how exact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training split.
    pub epochs: u32,
    /// Units (an image with up to P of its patches) in one global batch, over all ranks.
    pub images_per_step: u32,
    /// Slices of the global batch that the reduction tree is built over.
    pub virtual_shards: u32,
    /// Number of trainer processes at the start of a run.
    pub ranks: u32,
    /// Compute threads of one rank; 0 = cores / ranks.
    pub threads_per_rank: u32,
    /// The device that runs forward and backward.
    pub device: Device,
    /// Arithmetic of forward and backward.
    pub precision: Precision,
    /// Seed of initial weights, order, augmentation and dropout; at most 2^63 - 1.
    pub seed: u64,
    /// How ranks exchange gradients.
    pub backend: BackendChoice,
    /// In what gradients travel between GPUs.
    pub reduce_dtype: ReduceDtype,
    /// Whether steps on a GPU are put there as CUDA graphs.
    pub cuda_graphs: bool,
    /// Deadline of one collective, in seconds.
    pub step_timeout_s: u32,
    /// Least size of what is reduced in one call while backward goes on, in MiB.
    pub bucket_mb: u32,
    /// Steps that are noted in `trace/`.
    pub trace_steps: u32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 20,
            images_per_step: 8,
            virtual_shards: 4,
            ranks: 1,
            threads_per_rank: 0,
            device: Device::Auto,
            precision: Precision::Auto,
            seed: 0,
            backend: BackendChoice::Auto,
            reduce_dtype: ReduceDtype::F32,
            cuda_graphs: false,
            step_timeout_s: 300,
            bucket_mb: 25,
            trace_steps: 0,
        }
    }
}

/// `[elastic]`: losing and gaining ranks while the run goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElasticConfig {
    /// With fewer ranks, the run waits for more.
    pub min_ranks: u32,
    /// A trainer that was not heard of for longer is dead, in milliseconds.
    pub heartbeat_lapse_ms: u32,
    /// Least time without progress after which a rank hangs, in seconds.
    pub watchdog_s: u32,
    /// The same in median steps; the longer of both counts.
    pub watchdog_steps: u32,
    /// How long missing ranks are waited for, in seconds.
    pub join_timeout_s: u32,
    /// How long trainers wait for a coordinator that is gone, in seconds.
    pub coordinator_timeout_s: u32,
    /// Restarts in a row without a new step; then the run has failed.
    pub max_restarts: u32,
}

impl Default for ElasticConfig {
    fn default() -> Self {
        Self {
            min_ranks: 1,
            heartbeat_lapse_ms: 2000,
            watchdog_s: 30,
            watchdog_steps: 10,
            join_timeout_s: 600,
            coordinator_timeout_s: 120,
            max_restarts: 5,
        }
    }
}

/// `[optimizer]`: Adam and its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Whether weight decay is part of the gradient (Adam) or applied to the weights (AdamW).
    pub kind: OptimizerKind,
    /// Base learning rate; the schedule scales it.
    pub lr: f32,
    /// Weight decay per step, as the optimizer applies it.
    pub weight_decay: f32,
    /// Which parameters the weight decay acts on.
    pub decay: DecayTarget,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Largest global gradient norm; 0 = no clipping.
    pub clip_norm: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adam,
            lr: 1e-4,
            weight_decay: 1e-5,
            decay: DecayTarget::All,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: 0.0,
        }
    }
}

/// `[schedule]`: the learning rate over the run; see [`super::schedule::learning_rate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up; 0 = none.
    pub warmup_steps: u32,
    /// Floor of the rate after the warm-up.
    pub min_lr: f32,
    /// What one reduction multiplies the rate by (`plateau`).
    pub plateau_factor: f32,
    /// Evaluations in a row without improvement that cause a reduction (`plateau`).
    pub plateau_patience: u32,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Constant,
            warmup_steps: 0,
            min_lr: 0.0,
            plateau_factor: 0.5,
            plateau_patience: 3,
        }
    }
}

/// `[early_stopping]`: the watched validation metric, and when to give up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStoppingConfig {
    /// The watched metric; also chooses the best checkpoint and drives `schedule.kind = "plateau"`.
    pub metric: MetricName,
    /// Patch or image level.
    pub level: Level,
    /// Evaluations in a row without improvement that end the run; 0 = never.
    pub patience: u32,
    /// How much better counts as an improvement (absolute).
    pub min_delta: f32,
}

impl Default for EarlyStoppingConfig {
    fn default() -> Self {
        Self {
            metric: MetricName::F1Micro,
            level: Level::Patch,
            patience: 0,
            min_delta: 0.0,
        }
    }
}

/// `[augment]`: random views of training samples; evaluation never augments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentConfig {
    /// Whether training samples are augmented at all.
    pub enabled: bool,
    /// Whether a sample is mirrored left to right, by chance.
    pub flip: bool,
    /// Turns by 0, 90, 180 or 270 degrees.
    pub quarter_turns: bool,
    /// Largest shift of a patch from its cell, in pixels, along each axis.
    pub offset: u32,
    /// Largest relative change of brightness.
    pub brightness: f32,
    /// Largest relative change of contrast.
    pub contrast: f32,
    /// Largest relative change of saturation.
    pub saturation: f32,
    /// Largest turn either way, in degrees.
    pub rotation: f32,
    /// Largest relative change of size.
    pub scale: f32,
    /// Probability that a rectangle is erased.
    pub erasing: f32,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            flip: true,
            quarter_turns: true,
            offset: 8,
            brightness: 0.1,
            contrast: 0.1,
            saturation: 0.1,
            rotation: 0.0,
            scale: 0.0,
            erasing: 0.0,
        }
    }
}

/// `[checkpoint]`: when checkpoints are written and which are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 = not by steps.
    pub every_steps: u32,
    /// Seconds between checkpoints; 0 = not by time.
    pub every_seconds: u32,
    /// How many of the newest checkpoints are kept.
    pub keep_last: u32,
    /// Whether the best checkpoint is kept beside them.
    pub keep_best: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: 0,
            every_seconds: 300,
            keep_last: 3,
            keep_best: true,
        }
    }
}

/// `[eval]`: validation during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Epochs between validations; the last epoch is always validated.
    pub every_epochs: u32,
    /// Probability from which a class counts as predicted, for all classes.
    pub threshold: f32,
    /// Whether each epoch's training steps are scored too.
    pub train_metrics: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every_epochs: 1,
            threshold: 0.5,
            train_metrics: false,
        }
    }
}

/// `[run]`: where results go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Run directory; empty until given. Relative to the current directory.
    pub out: String,
}
