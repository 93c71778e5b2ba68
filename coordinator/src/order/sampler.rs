//! What a sampler is, and the list of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{AllSamples, Balanced, OrderInput, SampleName};

/// Chooses the samples of an epoch: a pure function of its arguments, so that every rank, a resumed run and the audit
/// know the list. Every epoch must have the same number of samples, because the cursor, the ledger and the members'
/// handshake count with one number for all epochs.
pub trait Sampler: fmt::Debug + Sync {
    /// The name in configurations and messages.
    fn name(&self) -> &'static str;

    /// Whether it reads [`Sampling::classes`], which callers then fill.
    fn reads_classes(&self) -> bool;

    /// The images of `epoch` with their cells. No image and no cell may be listed twice.
    fn epoch<'a>(&self, input: &'a OrderInput, epoch: u32) -> Cow<'a, [(u32, Vec<u16>)]>;
}

/// Every sampler; to add one, implement [`Sampler`] in a file of its own and add its row here.
pub static SAMPLERS: &[&dyn Sampler] = &[&AllSamples, &Balanced];

/// What samplers choose by, in addition to the samples themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The classes of each sample with a known label, bit c for class c; 0 for a healthy sample. Empty for a sampler that
    /// does not read them.
    pub classes: BTreeMap<SampleName, u64>,
    /// Healthy samples of an epoch for each sample with a class.
    pub healthy_ratio: f32,
    /// Most samples of an epoch whose rarest class is the same; 0 = as many as there are.
    pub class_cap: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            classes: BTreeMap::new(),
            healthy_ratio: 1.0,
            class_cap: 0,
        }
    }
}

/// One of [`SAMPLERS`], as a configuration names it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub struct SamplerChoice(&'static dyn Sampler);

impl SamplerChoice {
    /// Each sample once.
    pub const ALL: Self = Self(&AllSamples);

    /// Every accepted spelling, in the order of [`SAMPLERS`].
    pub fn names() -> &'static [&'static str] {
        static NAMES: LazyLock<Vec<&'static str>> =
            LazyLock::new(|| SAMPLERS.iter().map(|sampler| sampler.name()).collect());
        &NAMES
    }

    /// The sampler of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = SAMPLERS.iter().find(|sampler| sampler.name() == name);
        found.map(|sampler| Self(*sampler))
    }

    /// Its spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The sampler itself.
    #[must_use]
    pub fn sampler(self) -> &'static dyn Sampler {
        self.0
    }
}

impl PartialEq for SamplerChoice {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl From<SamplerChoice> for &'static str {
    fn from(choice: SamplerChoice) -> Self {
        choice.name()
    }
}

impl TryFrom<String> for SamplerChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::named(&name).ok_or_else(|| {
            let known = Self::names().join(", ");
            format!("unknown sampler {name:?}; the samplers are {known}")
        })
    }
}
