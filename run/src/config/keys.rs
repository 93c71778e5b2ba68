//! The table of every configuration key: meaning, range, and whether it changes the result.

use std::collections::BTreeMap;
use std::fmt;

use fovea_collectives::BackendChoice;
use fovea_coordinator::order::SamplerChoice;

use super::Config;
use super::sections::{
    Alpha, CellPlaces, DecayTarget, Device, FrozenNorms, Fusion, Level, MapAttention, MetricName,
    OptimizerKind, Pooling, PosWeight, Precision, ReduceDtype, ScheduleKind,
};

/// A section and what it is for.
#[derive(Debug)]
pub struct Section {
    /// Its name in brackets.
    pub name: &'static str,
    /// What the section is about, as one sentence for the documentation.
    pub doc: &'static str,
}

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// The section it lives in.
    pub section: &'static str,
    /// Its name within the section.
    pub name: &'static str,
    /// Which values its type allows.
    pub range: ValueRange,
    /// Whether another value trains other weights or chooses another checkpoint; such keys are hashed.
    pub changes_result: bool,
    /// What it means, with unit.
    pub doc: &'static str,
    /// Its type; the same for every configuration.
    pub kind: fn(&Config) -> ValueKind,
    /// Its value in a configuration.
    pub get: fn(&Config) -> Leaf,
    /// Stores a value; returns false, changing nothing, when the leaf is of another type.
    pub set: fn(&mut Config, Leaf) -> bool,
}

impl Key {
    /// `section.name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// The type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A switch: `true` or `false`.
    Bool,
    /// A whole number, 0 or more.
    Int,
    /// A number, kept in f32.
    Real,
    /// Any text, a path among others.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of these words, or one number per class.
    ChoiceOrWeights(&'static [&'static str]),
}

/// The value of a key. Displays as TOML.
#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    /// A switch: `true` or `false`.
    Bool(bool),
    /// A whole number of 64 bits, 0 or more.
    Int(u64),
    /// A number in f32; it displays with the fewest digits that read back equal.
    Real(f32),
    /// Text or a word.
    Text(String),
    /// One number per class, in class order; as many as the task has, which [`Config::fits`] checks.
    Weights(Vec<f32>),
    /// A list of words, of a stage.
    Words(Vec<String>),
    /// Numbers by name, of a stage.
    Rates(BTreeMap<String, f32>),
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            // Debug is the shortest text that reads back to the same f32, and always a TOML float
            // except for NaN, which TOML spells in lower case.
            Self::Real(value) if value.is_nan() => f.write_str("nan"),
            Self::Real(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{}", toml::Value::String(value.clone())),
            Self::Weights(values) => {
                let texts = values.iter().map(|&value| Self::Real(value).to_string());
                let texts: Vec<String> = texts.collect();
                write!(f, "[{}]", texts.join(", "))
            }
            Self::Words(words) => {
                let texts = words
                    .iter()
                    .map(|word| Self::Text(word.clone()).to_string());
                write!(f, "[{}]", texts.collect::<Vec<_>>().join(", "))
            }
            Self::Rates(rates) if rates.is_empty() => f.write_str("{ }"),
            Self::Rates(rates) => {
                let texts = rates
                    .iter()
                    .map(|(name, &rate)| format!("{} = {}", quoted_key(name), Self::Real(rate)));
                write!(f, "{{ {} }}", texts.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A key in quotes, where everything but plain characters is escaped: TOML's basic string.
fn quoted_key(name: &str) -> String {
    let escaped = name.chars().map(|c| match c {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        c if c.is_control() => format!("\\u{:04X}", c as u32),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// One end of a range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The end itself is allowed.
    Closed(f32),
    /// The end itself is not allowed.
    Open(f32),
}

/// Allowed values, beyond what the type says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRange {
    /// Whatever the type allows.
    Any,
    /// Whole numbers from .. to, both included.
    Int(u64, u64),
    /// Finite numbers between two bounds; for a list, each of them.
    Real(Bound, Bound),
}

impl ValueRange {
    /// Whether a value lies in the range. NaN and infinities never lie in a range of numbers.
    #[must_use]
    pub fn contains(&self, leaf: &Leaf) -> bool {
        match (self, leaf) {
            (Self::Int(min, max), Leaf::Int(value)) => (min..=max).contains(&value),
            (Self::Real(min, max), Leaf::Real(value)) => inside(*value, *min, *max),
            (Self::Real(min, max), Leaf::Weights(values)) => {
                values.iter().all(|value| inside(*value, *min, *max))
            }
            (Self::Real(min, max), Leaf::Rates(rates)) => {
                rates.values().all(|value| inside(*value, *min, *max))
            }
            _ => true,
        }
    }
}

fn inside(value: f32, min: Bound, max: Bound) -> bool {
    let above = match min {
        Bound::Closed(end) => value >= end,
        Bound::Open(end) => value > end,
    };
    let below = match max {
        Bound::Closed(end) => value <= end,
        Bound::Open(end) => value < end,
    };
    above && below
}

impl fmt::Display for ValueRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Any => f.write_str("any"),
            Self::Int(min, max) if max == MAX_SEED => write!(f, "{min} to 2^63 - 1"),
            Self::Int(min, max) if max == MAX_COUNT => write!(f, "{min} to 2^32 - 1"),
            Self::Int(min, max) => write!(f, "{min} to {max}"),
            Self::Real(min, max) => {
                match min {
                    Bound::Closed(end) => write!(f, "{end} ")?,
                    Bound::Open(end) => write!(f, "above {end} ")?,
                }
                match max {
                    Bound::Closed(end) => write!(f, "to {end}"),
                    Bound::Open(end) => write!(f, "to below {end}"),
                }
            }
        }
    }
}

/// A field type that a key can have.
pub(super) trait FieldType: Sized {
    fn kind() -> ValueKind;
    fn leaf(&self) -> Leaf;
    fn from_leaf(leaf: Leaf) -> Option<Self>;
}

macro_rules! field {
    ($type:ty, $kind:expr, |$value:ident| $leaf:expr, $pattern:pat => $back:expr) => {
        impl FieldType for $type {
            fn kind() -> ValueKind {
                $kind
            }
            fn leaf(&self) -> Leaf {
                let $value = self;
                $leaf
            }
            fn from_leaf(leaf: Leaf) -> Option<Self> {
                match leaf {
                    $pattern => $back,
                    _ => None,
                }
            }
        }
    };
}

field!(bool, ValueKind::Bool, |v| Leaf::Bool(*v), Leaf::Bool(v) => Some(v));
field!(u32, ValueKind::Int, |v| Leaf::Int(u64::from(*v)), Leaf::Int(v) => Self::try_from(v).ok());
field!(u64, ValueKind::Int, |v| Leaf::Int(*v), Leaf::Int(v) => Some(v));
field!(f32, ValueKind::Real, |v| Leaf::Real(*v), Leaf::Real(v) => Some(v));
field!(String, ValueKind::Text, |v| Leaf::Text(v.clone()), Leaf::Text(v) => Some(v));

macro_rules! choice_field {
    ($($type:ty),+) => {
        $(field!(
            $type,
            ValueKind::Choice(Self::NAMES),
            |v| Leaf::Text(v.name().into()),
            Leaf::Text(v) => Self::ALL.iter().copied().find(|known| known.name() == v)
        );)+
    };
}

choice_field!(
    CellPlaces,
    Device,
    Precision,
    ReduceDtype,
    OptimizerKind,
    DecayTarget,
    FrozenNorms,
    ScheduleKind,
    MetricName,
    Level,
    MapAttention,
    Pooling,
    Fusion
);

field!(
    BackendChoice,
    ValueKind::Choice(Self::NAMES),
    |v| Leaf::Text(v.name().into()),
    Leaf::Text(v) => Self::named(&v)
);

field!(
    SamplerChoice,
    ValueKind::Choice(Self::names()),
    |v| Leaf::Text(v.name().into()),
    Leaf::Text(v) => Self::named(&v)
);

impl FieldType for Alpha {
    fn kind() -> ValueKind {
        ValueKind::ChoiceOrWeights(Self::NAMES)
    }

    fn leaf(&self) -> Leaf {
        match self {
            Self::InverseFrequency => Leaf::Text("inverse-frequency".into()),
            Self::None => Leaf::Text("none".into()),
            Self::Weights(weights) => Leaf::Weights(weights.clone()),
        }
    }

    fn from_leaf(leaf: Leaf) -> Option<Self> {
        match leaf {
            Leaf::Text(word) if word == "inverse-frequency" => Some(Self::InverseFrequency),
            Leaf::Text(word) if word == "none" => Some(Self::None),
            Leaf::Weights(weights) => Some(Self::Weights(weights)),
            _ => None,
        }
    }
}

impl FieldType for PosWeight {
    fn kind() -> ValueKind {
        ValueKind::ChoiceOrWeights(Self::NAMES)
    }

    fn leaf(&self) -> Leaf {
        match self {
            Self::None => Leaf::Text("none".into()),
            Self::Balanced => Leaf::Text("balanced".into()),
            Self::Factors(factors) => Leaf::Weights(factors.clone()),
        }
    }

    fn from_leaf(leaf: Leaf) -> Option<Self> {
        match leaf {
            Leaf::Text(word) if word == "none" => Some(Self::None),
            Leaf::Text(word) if word == "balanced" => Some(Self::Balanced),
            Leaf::Weights(factors) => Some(Self::Factors(factors)),
            _ => None,
        }
    }
}

fn kind_of<F: FieldType>(_: &F) -> ValueKind {
    F::kind()
}

fn assign<F: FieldType>(field: &mut F, leaf: Leaf) -> bool {
    match F::from_leaf(leaf) {
        Some(value) => {
            *field = value;
            true
        }
        None => false,
    }
}

/// A row of the table. `RESULT` keys are hashed, `PLACE` keys are not.
macro_rules! key {
    ($section:ident.$name:ident, $range:expr, $changes:expr, $doc:literal) => {
        Key {
            section: stringify!($section),
            name: stringify!($name),
            range: $range,
            changes_result: $changes,
            doc: $doc,
            kind: |config| kind_of(&config.$section.$name),
            get: |config| config.$section.$name.leaf(),
            set: |config, leaf| assign(&mut config.$section.$name, leaf),
        }
    };
}

const RESULT: bool = true;
const PLACE: bool = false;
const ANY: ValueRange = ValueRange::Any;
/// TOML integers are 64-bit signed.
const MAX_SEED: u64 = i64::MAX as u64;
const MAX_COUNT: u64 = u32::MAX as u64;

const fn int(min: u64, max: u64) -> ValueRange {
    ValueRange::Int(min, max)
}

const fn from_to(min: f32, max: f32) -> ValueRange {
    ValueRange::Real(Bound::Closed(min), Bound::Closed(max))
}

const fn above_to(min: f32, max: f32) -> ValueRange {
    ValueRange::Real(Bound::Open(min), Bound::Closed(max))
}

const fn from_below(min: f32, max: f32) -> ValueRange {
    ValueRange::Real(Bound::Closed(min), Bound::Open(max))
}

const fn above_below(min: f32, max: f32) -> ValueRange {
    ValueRange::Real(Bound::Open(min), Bound::Open(max))
}

/// The sections, in the order they are printed.
pub static SECTIONS: &[Section] = &[
    Section {
        name: "data",
        doc: "What is trained on.",
    },
    Section {
        name: "model",
        doc: "Which network.",
    },
    Section {
        name: "loss",
        doc: "What is minimised: loss(image) + patch_weight * loss(patch).",
    },
    Section {
        name: "train",
        doc: "How much, how parallel and how exact.",
    },
    Section {
        name: "elastic",
        doc: "Losing and gaining ranks while the run goes on.",
    },
    Section {
        name: "optimizer",
        doc: "The rule that moves the weights.",
    },
    Section {
        name: "schedule",
        doc: "The learning rate over the run.",
    },
    Section {
        name: "early_stopping",
        doc: "The validation metric that is watched, and when to give up.",
    },
    Section {
        name: "augment",
        doc: "Random views of training samples; validation and prediction never augment.",
    },
    Section {
        name: "checkpoint",
        doc: "When checkpoints are written (besides at the end of every epoch) and which are kept.",
    },
    Section {
        name: "eval",
        doc: "Validation during training.",
    },
    Section {
        name: "run",
        doc: "Where results go.",
    },
];

/// Every key, in the order they are printed.
#[rustfmt::skip] // one row per key
pub static KEYS: &[Key] = &[
    key!(data.path, ANY, PLACE, "Directory of the prepared dataset (what `fovea prepare` wrote); `--data` overrides it. A relative path is relative to the current directory, not to the configuration file."),
    key!(data.patches_per_image, int(1, 4096), RESULT, "Patches of each image per step (P), drawn without replacement: an epoch visits every non-black patch once."),
    key!(data.global_size, int(64, 4096), RESULT, "Side in pixels of the whole image as the global branch sees it. At least 64: below, the last stage of ResNet18 has one value per channel and BatchNorm has nothing to average."),
    key!(data.min_lesion_pixels, int(1, 16384), RESULT, "Lesion pixels from which a 128 x 128 patch counts as positive for a class. 1 is the published rule."),
    key!(data.sampler, ANY, RESULT, "Which samples an epoch uses, each once: all, or balanced = all with a class and healthy ones at a ratio to them, which take turns from epoch to epoch (docs/models.md)."),
    key!(data.healthy_ratio, from_to(0.0, 1000.0), RESULT, "Healthy samples of an epoch for each sample with a class (sampler balanced). Black patches are never used."),
    key!(data.class_cap, int(0, MAX_COUNT), RESULT, "Most samples of an epoch that count for one class, a sample counting for the rarest it has; those of a class with more take turns (sampler balanced). 0 = all."),
    key!(data.cells, ANY, RESULT, "Where the window of a patch lies in training: grid = on its cell; centred = around a lesion in its cell, with a jitter of a quarter of its side, or for a healthy cell anywhere in the field of view without lesion; mixed = either with probability 1/2. Evaluation is on the grid. Other than grid needs masks in the prepared dataset, and counts labels under the window."),
    key!(data.window_labels, ANY, RESULT, "In training, count the label of a patch from the mask under its window, as offset, rotation and scale of the augmentation have moved it, with min_lesion_pixels as the rule. Without masks, or when false and cells = grid, a patch has the label of its cell."),

    key!(model.name, ANY, RESULT, "The network; an unknown name is answered with the known ones (docs/models.md)."),
    key!(model.init, ANY, PLACE, "Weights that training begins from: a .safetensors file, a state dict that PyTorch saved (.pth, .pt; none of its code is run), a checkpoint directory, or a run directory (its best checkpoint); `--init` overrides it. Empty = random initial weights. A relative path is relative to the current directory. Read at the beginning of a run only."),
    key!(model.init_map, ANY, RESULT, "Which tensors of model.init go where, as \"MODEL = FILE, ...\": parameters whose names begin with MODEL take those that begin with FILE in the file; FILE may be empty (the names as they are), and one FILE may serve several. For example \"global_branch = , local_branch = \" for a ResNet18. Empty = equal names. Left out of the hash when empty."),
    key!(model.init_blake3, ANY, RESULT, "blake3 of the file that model.init names, as 64 hex digits. `fovea train` writes it into RUN/config.toml; given beforehand, another file is refused. Left out of the hash when empty."),
    key!(model.attention, ANY, RESULT, "Attention inside a model that is one backbone: none, se (squeeze and excitation) or mha (multi-head self-attention over the places of the feature maps). docs/models.md says which models have it."),
    key!(model.pooling, ANY, RESULT, "What hybrid reads the answer about an image from: token (the image's token after attention) or attention (its patches, weighed by gated attention)."),
    key!(model.fusion, ANY, RESULT, "How the patches of hybrid learn of the whole image: self (self-attention over the image and its patches) or cross (before it, patches also attend to the feature maps of the whole image)."),
    key!(model.global_backbone, ANY, RESULT, "The network over whole images in hybrid; an unknown name is answered with the known ones."),
    key!(model.local_backbone, ANY, RESULT, "The network over patches in hybrid; an unknown name is answered with the known ones."),

    key!(loss.kind, ANY, RESULT, "The loss function. For labels with any number of classes: focal (Lin et al., ICCV 2017), bce (binary cross-entropy), class_balanced (Cui et al., CVPR 2019). For labels with exactly one class: cross_entropy. docs/models.md has their formulas. A key of this section that the chosen loss does not read changes nothing, and `fovea train` says so."),
    key!(loss.gamma, from_to(0.0, 10.0), RESULT, "Focusing exponent of (1 - p_t)^gamma; 0 gives weighted binary cross-entropy. Read by focal and class_balanced."),
    key!(loss.alpha, from_to(0.0, 1000.0), RESULT, "Weight per class: inverse frequency in the training split normalised to mean 1, none, or four numbers for MA, HE, EX, SE. Read by focal, bce and cross_entropy; PyTorch's plain losses are alpha = \"none\"."),
    key!(loss.balance, ANY, RESULT, "Weigh positive and negative labels differently, with the two weights below. Read by focal."),
    key!(loss.positive_weight, from_to(0.0, 1000.0), RESULT, "Weight of a positive label when balance = true."),
    key!(loss.negative_weight, from_to(0.0, 1000.0), RESULT, "Weight of a negative label when balance = true."),
    key!(loss.pos_weight, from_to(0.0, 100_000.0), RESULT, "Factor on positive labels per class, PyTorch's pos_weight: none (1), balanced (samples without the class per sample with it in the training split), or one number per class. Read by bce."),
    key!(loss.beta, from_below(0.0, 1.0), RESULT, "Weights per class are (1 - beta) / (1 - beta^n) with the n samples of the class in the training split, normalised to mean 1: 0 weighs all classes alike, near 1 by inverse frequency. Read by class_balanced."),
    key!(loss.label_smoothing, from_below(0.0, 1.0), RESULT, "Share of each label that is spread evenly over all classes. Read by cross_entropy."),
    key!(loss.patch_weight, from_to(0.0, 1000.0), RESULT, "Weight of the patch loss against the image loss; 0 trains the image head alone."),

    key!(train.epochs, int(1, 1_000_000), RESULT, "Passes over the training split."),
    key!(train.images_per_step, int(1, 65536), RESULT, "Units in one global batch over all ranks, a unit being one image with up to patches_per_image of its patches. Adding ranks does not change it."),
    key!(train.virtual_shards, int(1, 4096), RESULT, "Fixed slices of the global batch, the leaves of the reduction tree; BatchNorm statistics are per slice. Weights are bit for bit the same for every number of ranks that divides it into power-of-two blocks."),
    key!(train.ranks, int(1, 4096), PLACE, "Trainer processes; `--ranks` overrides it. 1, or a number that divides virtual_shards into power-of-two blocks."),
    key!(train.threads_per_rank, int(0, 1024), PLACE, "Compute threads of one rank; 0 = processor cores / ranks. Each works on a virtual shard of its own; the weights do not depend on their number up to virtual_shards / ranks. Beyond, several threads share a shard and change its rounding."),
    key!(train.device, ANY, PLACE, "What computes; `--device` overrides it. auto = cuda where there is an NVIDIA GPU, else cpu. On a GPU the weights differ from the CPU's by rounding."),
    key!(train.precision, ANY, RESULT, "Arithmetic of forward and backward; weights are kept in f32. auto = bf16 where the processor or the GPU (from compute capability 8.0) has it natively, else f32."),
    key!(train.seed, int(0, MAX_SEED), RESULT, "Seed of initial weights, sample order, augmentation and dropout."),
    key!(train.backend, ANY, PLACE, "How ranks exchange gradients; `--backend` overrides it. nccl = between GPUs. auto = nccl where training is on GPUs, else mpi under an MPI launch, else local (one machine)."),
    key!(train.reduce_dtype, ANY, RESULT, "Type in which backend nccl sums gradients that are on GPUs. bf16 halves what travels and rounds every partial sum to 8 bits. The other backends, and all other sums, are f32 whatever it says."),
    key!(train.cuda_graphs, ANY, PLACE, "On a GPU, record a step whose shape recurs as a CUDA graph and launch it as a whole; needs all images in GPU memory. It saves launches, which matters for small steps. A step that cannot be recorded is run plainly."),
    key!(train.step_timeout_s, int(1, 86400), PLACE, "Seconds a rank waits in one collective before it gives the others up."),
    key!(train.bucket_mb, int(1, 65536), PLACE, "Gradients travel between ranks in buckets of at least this many MiB, the last layers' first, while backward still computes the others. The weights do not depend on it."),
    key!(train.trace_steps, int(0, 100_000), PLACE, "After so many steps each rank writes trace/rank-N.json: which thread did what when. Open it in ui.perfetto.dev. 0 = none."),

    key!(elastic.min_ranks, int(1, 4096), PLACE, "With fewer ranks than this the run waits for more; when none come within join_timeout_s, it saves and leaves, to be resumed."),
    key!(elastic.heartbeat_lapse_ms, int(100, 600_000), PLACE, "A trainer that was not heard of for this many milliseconds is dead: stopped, or its node is gone. One that exits is noticed at once."),
    key!(elastic.watchdog_s, int(1, 86400), PLACE, "A trainer that is heard of but gets nothing done for this many seconds, and for watchdog_steps, hangs."),
    key!(elastic.watchdog_steps, int(1, 1_000_000), PLACE, "A trainer that hangs got nothing done for at least this many median steps."),
    key!(elastic.join_timeout_s, int(1, 86400), PLACE, "Seconds that missing ranks are waited for, at the start and below min_ranks."),
    key!(elastic.coordinator_timeout_s, int(1, 86400), PLACE, "Seconds that trainers wait for a coordinator that is gone to be started again."),
    key!(elastic.max_restarts, int(0, 1_000_000), PLACE, "How often in a row, without a new step between, `fovea train` starts lost processes again."),

    key!(optimizer.kind, ANY, RESULT, "adam adds weight decay to the gradient (Kingma & Ba, ICLR 2015), adamw applies it apart (Loshchilov & Hutter, ICLR 2019)."),
    key!(optimizer.lr, above_to(0.0, 10.0), RESULT, "Base learning rate; the schedule scales it."),
    key!(optimizer.weight_decay, from_to(0.0, 1.0), RESULT, "Weight decay."),
    key!(optimizer.decay, ANY, RESULT, "Which parameters the decay acts on: all, or weights, which leaves out biases and the parameters of normalisation layers (whatever has one dimension). Left out of the hash at its default."),
    key!(optimizer.beta1, from_below(0.0, 1.0), RESULT, "Decay of the running mean of gradients."),
    key!(optimizer.beta2, from_below(0.0, 1.0), RESULT, "Decay of the running mean of squared gradients."),
    key!(optimizer.eps, above_to(0.0, 1.0), RESULT, "Added to the denominator."),
    key!(optimizer.clip_norm, from_to(0.0, 1e6), RESULT, "Largest norm of the whole gradient; larger ones are scaled down to it. 0 = no clipping."),

    key!(schedule.kind, ANY, RESULT, "Learning rate after the warm-up: constant, one half cosine down to min_lr over the run, or reduced when the watched metric stops improving."),
    key!(schedule.warmup_steps, int(0, MAX_COUNT), RESULT, "Steps over which the rate rises linearly to the base rate; 0 = none."),
    key!(schedule.min_lr, from_to(0.0, 10.0), RESULT, "Lowest rate of cosine and plateau; at most optimizer.lr."),
    key!(schedule.plateau_factor, above_below(0.0, 1.0), RESULT, "What one reduction multiplies the rate by (plateau)."),
    key!(schedule.plateau_patience, int(1, 1_000_000), RESULT, "Validations in a row without improvement that cause a reduction (plateau)."),

    key!(early_stopping.metric, ANY, RESULT, "The watched validation metric. It also chooses the best checkpoint and drives the plateau schedule."),
    key!(early_stopping.level, ANY, RESULT, "Whether the metric is taken over patches or over whole images."),
    key!(early_stopping.patience, int(0, 1_000_000), RESULT, "Validations in a row without improvement that end the run; 0 = never stop early."),
    key!(early_stopping.min_delta, from_to(0.0, 1000.0), RESULT, "How much better than the best so far counts as an improvement, in the metric's own unit."),

    key!(augment.enabled, ANY, RESULT, "Master switch: false turns all of this section off."),
    key!(augment.flip, ANY, RESULT, "Mirror left-right with probability 1/2; together with the quarter turns this covers all eight orientations."),
    key!(augment.quarter_turns, ANY, RESULT, "Turn by 0, 90, 180 or 270 degrees with equal probability."),
    key!(augment.offset, int(0, 128), RESULT, "Largest shift of a patch from its place along each axis, in pixels, kept inside the image; the label stays the cell's unless data.window_labels."),
    key!(augment.brightness, from_to(0.0, 1.0), RESULT, "Brightness factor drawn from 1 - x to 1 + x, as torchvision's ColorJitter."),
    key!(augment.contrast, from_to(0.0, 1.0), RESULT, "Contrast factor drawn from 1 - x to 1 + x."),
    key!(augment.saturation, from_to(0.0, 1.0), RESULT, "Saturation factor drawn from 1 - x to 1 + x."),
    key!(augment.rotation, from_to(0.0, 180.0), RESULT, "Turn by an angle drawn from -x to x, in degrees, besides the quarter turns; bilinear. A patch shows the image around it, a whole image is filled with black."),
    key!(augment.scale, from_to(0.0, 0.9), RESULT, "Factor on the size of what a sample shows, drawn from 1 - x to 1 + x, about its middle; bilinear."),
    key!(augment.erasing, from_to(0.0, 1.0), RESULT, "Probability that a rectangle of 2 to 33 % of a sample is set to the mean colour, as torchvision's RandomErasing after Normalize."),

    key!(checkpoint.every_steps, int(0, MAX_COUNT), PLACE, "Steps between checkpoints; 0 = not by steps."),
    key!(checkpoint.every_seconds, int(0, MAX_COUNT), PLACE, "Seconds between checkpoints; 0 = not by time."),
    key!(checkpoint.keep_last, int(1, 1_000_000), PLACE, "How many of the newest checkpoints are kept."),
    key!(checkpoint.keep_best, ANY, PLACE, "Keep the best checkpoint by the watched metric beside them."),

    key!(eval.every_epochs, int(1, 1_000_000), RESULT, "Epochs between validations; the last epoch is always validated."),
    key!(eval.threshold, above_below(0.0, 1.0), RESULT, "Probability from which a class counts as predicted, one for all classes."),
    key!(eval.train_metrics, ANY, PLACE, "Also score the training steps: each epoch's logits, at the threshold, give a row `train` in metrics.csv, each sample once over all ranks, kills and resumes. The rows have no AUROC, average precision and Pearson r. Scores are those of the augmented samples, with dropout, while the weights move."),

    key!(run.out, ANY, PLACE, "Run directory for checkpoints, metrics and the report; `--out` overrides it. A relative path is relative to the current directory."),
];

/// Looks a key up by section and name.
#[must_use]
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
}

/// Names of the keys of a section.
#[must_use]
pub fn names_in(section: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter(|key| key.section == section)
        .map(|key| key.name)
        .collect()
}

/// Sections that have a key of this name, in brackets.
#[must_use]
pub fn sections_with(name: &str) -> Vec<String> {
    KEYS.iter()
        .filter(|key| key.name == name)
        .map(|key| format!("`[{}]`", key.section))
        .collect()
}
