//! The other models against PyTorch's numbers, stored by `tests/golden/models.py`: as [`super::golden`] does it with
//! `hybrid`. To add one, add its row in that script and here.

use super::golden::{Golden, bf16_is_near, f32_is_near, run};
use crate::gpu::{self, Gpu};
use crate::ops::NormEngine;
use crate::precision::Precision;

/// Both precisions, on the CPU and on the emulated GPU.
fn steps_are_pytorchs(name: &str) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/models");
    let text =
        std::fs::read_to_string(format!("{folder}/{name}.json")).expect("the stored numbers");
    let golden: Golden = serde_json::from_str(&text).expect("the stored numbers parse");
    f32_is_near(&golden, &run(&golden, Precision::F32, None));
    bf16_is_near(&golden, &run(&golden, Precision::Bf16, None));
    let _alone = gpu::tests::alone();
    let gpu = || Some(Gpu::emulated(NormEngine::Composed));
    f32_is_near(&golden, &run(&golden, Precision::F32, gpu()));
    bf16_is_near(&golden, &run(&golden, Precision::Bf16, gpu()));
}

macro_rules! golden {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            steps_are_pytorchs(stringify!($name));
        })+
    };
}

golden!(
    resnet18,
    resnet18_se,
    resnet18_mha,
    patch_only,
    hybrid_cross,
    resnet50,
    resnet50_meta,
);
