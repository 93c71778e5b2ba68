//! The weights that a run begins from.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;

use fovea_run::config::Config;
use fovea_task::Task;
use safetensors::tensor::{Dtype, TensorView};
use tch::Device;

use super::*;
use crate::initial;
use crate::models;
use crate::precision::Precision;

fn params(seed: u64) -> Params {
    let blueprint = models::hybrid_for_lesions().1;
    Params::new(blueprint, Precision::Bf16, seed, Device::Cpu).unwrap()
}

fn write(path: &Path, tensors: &[NamedTensor], prefix: &str) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| match &tensor.data {
            TensorData::F32(values) => bytemuck::cast_slice(values).to_vec(),
            TensorData::I64(values) => bytemuck::cast_slice(values).to_vec(),
        })
        .collect();
    let views: HashMap<String, TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|(tensor, bytes)| {
            let dtype = match tensor.data {
                TensorData::F32(_) => Dtype::F32,
                TensorData::I64(_) => Dtype::I64,
            };
            let view = TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap();
            (format!("{prefix}{}", tensor.name), view)
        })
        .collect();
    std::fs::write(path, safetensors::serialize(&views, None).unwrap()).unwrap();
}

/// A run with `model.init` begins from the weights of that file, whatever its seed, and from no other file.
#[test]
fn a_run_begins_from_the_weights_that_were_given() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("given.safetensors");
    let given = weights_of(&params(1), 0).unwrap();
    write(&file, &given, "module.");
    let mut config = Config::default();
    config.model.init = file.to_str().unwrap().to_owned();
    initial::pin(&mut config, Some(&Task::lesions())).unwrap();
    let hash = blake3::hash(&std::fs::read(&file).unwrap()).to_hex();
    assert_eq!(config.model.init_blake3, hash.as_str());
    config.validate().unwrap();

    let mut own = params(2);
    assert_ne!(weights_of(&own, 0).unwrap(), given);
    restore_weights(&mut own, &initial::pinned(&config).unwrap(), &file).unwrap();
    assert_eq!(weights_of(&own, 0).unwrap(), given);

    write(&file, &weights_of(&params(3), 0).unwrap(), "");
    for refused in [
        initial::pinned(&config).err(),
        initial::pin(&mut config, Some(&Task::lesions())).err(),
    ] {
        let error = refused.unwrap();
        assert!(
            error.is_usage() && error.to_string().contains("init_blake3"),
            "{error}"
        );
    }
    let error = restore_weights(&mut own, &given[1..], &file).unwrap_err();
    assert!(error.to_string().contains("1 missing"), "{error}");
    assert_eq!(
        weights_of(&own, 0).unwrap(),
        given,
        "a refusal changes nothing"
    );
}
