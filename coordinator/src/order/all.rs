//! The sampler `all`: each sample once per epoch.

use std::borrow::Cow;

use super::{OrderInput, Sampler};

/// Lists each sample once.
#[derive(Debug)]
pub struct AllSamples;

impl Sampler for AllSamples {
    fn name(&self) -> &'static str {
        "all"
    }

    fn reads_classes(&self) -> bool {
        false
    }

    fn epoch<'a>(&self, input: &'a OrderInput, _epoch: u32) -> Cow<'a, [(u32, Vec<u16>)]> {
        Cow::Borrowed(&input.images)
    }
}
