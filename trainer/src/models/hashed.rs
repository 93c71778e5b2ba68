//! Weights, pictures and digests of tensors that a comparison with PyTorch makes from a hash, as `tests/golden/hybrid.py`
//! does: neither side stores a tensor.

use std::collections::BTreeMap;

use fovea_run::checkpoint::{NamedTensor, TensorData};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::Blueprint;

#[path = "../../../tests/golden/formula.rs"]
pub(crate) mod formula;

/// A tensor's stand-in: its norm, and its product with the hash's directions (a wrong order of elements keeps the norm
/// and changes the product).
#[derive(Deserialize)]
pub(crate) struct Digest {
    norm: f64,
    dot: f64,
}

/// Digests of tensors by name.
pub(crate) type Digests = BTreeMap<String, Digest>;

/// The digest of a tensor's values in units of `unit`.
pub(crate) fn digest(name: &str, values: &[f32], unit: f64) -> Digest {
    let directions = formula::uniform(&format!("direction.{name}"), values.len());
    let pairs = || values.iter().map(|&x| f64::from(x) / unit);
    Digest {
        norm: pairs().map(|x| x * x).sum::<f64>().sqrt(),
        dot: pairs().zip(directions).map(|(x, d)| x * f64::from(d)).sum(),
    }
}

/// Relative to the stored norm, which counts as `floor` at least.
pub(crate) fn deviation(got: &Digest, want: &Digest, floor: f64) -> f64 {
    (got.norm - want.norm).abs().max((got.dot - want.dot).abs()) / want.norm.max(floor)
}

/// Largest and root mean square deviation over tensors; a failing test shows the worst one's name.
pub(crate) fn compare(got: &Digests, want: &Digests, floor: f64) -> (f64, f64) {
    assert!(
        got.keys().eq(want.keys()),
        "the same tensors by the same names"
    );
    let each = want
        .iter()
        .map(|(name, w)| (deviation(&got[name], w, floor), name));
    let (worst, name) = each
        .clone()
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .expect("some tensors");
    eprintln!("worst of {}: {name} {worst:.2e}", want.len());
    let squares: f64 = each.map(|(d, _)| d * d).sum();
    (worst, (squares / want.len() as f64).sqrt())
}

/// All tensors of a model, filled from the hash, as a file of PyTorch weights holds them.
pub(crate) fn hashed(blueprint: &Blueprint) -> Vec<NamedTensor> {
    let tensor = |name: String, shape: Vec<usize>| {
        let data = TensorData::F32(formula::weight(&name, &shape));
        NamedTensor { name, shape, data }
    };
    let shape = |dims: &[i64]| dims.iter().map(|&d| d as usize).collect();
    let mut all: Vec<_> = blueprint
        .params
        .iter()
        .map(|p| tensor(p.name.clone(), shape(&p.shape)))
        .collect();
    for norm in &blueprint.norms {
        for buffer in ["running_mean", "running_var"] {
            all.push(tensor(
                format!("{}.{buffer}", norm.name),
                vec![norm.channels],
            ));
        }
        let name = format!("{}.num_batches_tracked", norm.name);
        all.push(NamedTensor {
            name,
            shape: vec![],
            data: TensorData::I64(vec![0]),
        });
    }
    all
}

/// Makes the outputs of norms lie about values near 1 or -1, away from the kinks of ReLUs.
pub(crate) fn separate(blueprint: &Blueprint, weights: &mut [NamedTensor]) {
    for tensor in weights {
        let TensorData::F32(values) = &mut tensor.data else {
            continue;
        };
        let of_norm = |suffix| {
            let norm = tensor.name.strip_suffix(suffix);
            norm.is_some_and(|name| blueprint.norms.iter().any(|norm| norm.name == name))
        };
        let (is_weight, is_bias) = (of_norm(".weight"), of_norm(".bias"));
        for value in values {
            if is_weight {
                *value *= 0.4;
            } else if is_bias {
                *value += if *value < 0.0 { -1.0 } else { 1.0 };
            }
        }
    }
}

/// Images from the hash, `[n, 3, side, side]` channels-last, as [`crate::samples`] makes them.
pub(crate) fn pictures(name: &str, n: usize, side: usize, kind: Kind) -> Tensor {
    let (n, s) = (n as i64, side as i64);
    let pixels = Tensor::from_slice(&formula::pictures(name, n as usize, side)).view([n, 3, s, s]);
    pixels
        .permute([0, 2, 3, 1])
        .contiguous()
        .permute([0, 3, 1, 2])
        .to_kind(kind)
}
