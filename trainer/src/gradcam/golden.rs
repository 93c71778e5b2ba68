//! Compares with the package pytorch-grad-cam, stored by `tests/golden/gradcam.py`.

use std::path::Path;

use fovea_run::checkpoint::{NamedTensor, TensorData};
use fovea_run::config::Config;
use fovea_task::Task;
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::{HeatMap, class_maps};
use crate::lanes::ThreadLanes;
use crate::models::Blueprint;
use crate::objective::unweighted;
use crate::precision::Precision;
use crate::replica::Replica;
use crate::samples::{Pixels, ShardBatch, Views};
use crate::train::restore_weights;

#[path = "../../../tests/golden/formula.rs"]
#[allow(
    clippy::duplicate_mod,
    reason = "each comparison with PyTorch includes the formula of its weights"
)]
mod formula;

#[derive(Deserialize)]
struct Golden {
    setup: Setup,
    /// Per class and picture, every `setup.every`-th number.
    global: Vec<Vec<Vec<f32>>>,
    local: Vec<Vec<Vec<f32>>>,
    attention: Vec<f32>,
}

#[derive(Deserialize)]
struct Setup {
    name: String,
    global_size: usize,
    patch_size: usize,
    patches: usize,
    every: usize,
}

fn hashed(blueprint: &Blueprint) -> Vec<NamedTensor> {
    let params = blueprint.params.iter().map(|p| {
        let shape: Vec<usize> = p.shape.iter().map(|&d| d as usize).collect();
        (p.name.clone(), shape)
    });
    let norms = blueprint.norms.iter().flat_map(|norm| {
        ["running_mean", "running_var"]
            .map(|buffer| (format!("{}.{buffer}", norm.name), vec![norm.channels]))
    });
    let mut all: Vec<NamedTensor> = params
        .chain(norms)
        .map(|(name, shape)| NamedTensor {
            data: TensorData::F32(formula::weight(&name, &shape)),
            name,
            shape,
        })
        .collect();
    all.extend(blueprint.norms.iter().map(|norm| NamedTensor {
        name: format!("{}.num_batches_tracked", norm.name),
        shape: vec![],
        data: TensorData::I64(vec![0]),
    }));
    all
}

fn pictures(name: &str, n: usize, side: usize) -> Tensor {
    let (count, s) = (n as i64, side as i64);
    let pixels = Tensor::from_slice(&formula::pictures(name, n, side)).view([count, 3, s, s]);
    let rows = pixels.permute([0, 2, 3, 1]).contiguous();
    rows.permute([0, 3, 1, 2]).to_kind(Kind::Float)
}

#[test]
fn pytorch_grad_cam_agrees() {
    let text = include_str!("../../../tests/golden/gradcam.json");
    let golden: Golden = serde_json::from_str(text).expect("the stored numbers parse");
    let setup = &golden.setup;
    let config = Config::preset("hybrid").expect("a preset");
    let task = Task::lesions();
    let objective = unweighted(&config.loss, &task).expect("a loss");
    let precision = Precision::F32;
    let lanes = ThreadLanes::one();
    let mut replica =
        Replica::configured(&config, &task, precision, objective, lanes, None).expect("a replica");
    let weights = hashed(&replica.net.params.blueprint);
    restore_weights(&mut replica.net.params, &weights, Path::new("hashed")).expect("they fit");
    let batch = ShardBatch {
        pixels: Pixels::Views(Views {
            globals: pictures(&format!("{}.globals", setup.name), 1, setup.global_size),
            patches: pictures(
                &format!("{}.patches", setup.name),
                setup.patches,
                setup.patch_size,
            ),
        }),
        counts: vec![setup.patches],
        labels: Vec::new(),
        image_ids: vec![0],
        patch_ids: (0..setup.patches as u64).collect(),
    };
    let names = ["MA", "HE", "EX", "SE"].map(str::to_owned);
    let found = class_maps(&replica, &task, &batch, |_| names.to_vec()).expect("maps");

    let mut worst = 0f32;
    let mut seen = 0;
    let mut near = |ours: &[f32], theirs: &[f32], what: &str| {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (a, b) in ours.iter().zip(theirs) {
            worst = worst.max((a - b).abs());
            assert!((a - b).abs() < 1e-4, "{what}: {a} and {b}");
        }
        seen += ours.len();
    };
    for (class, (name, cams)) in found.classes.iter().enumerate() {
        let [global, local] = &cams[..] else {
            panic!("two branches: {}", cams.len())
        };
        assert_eq!(
            (global.branch, local.branch),
            ("global_branch", "local_branch")
        );
        for (cams, stored, side) in [
            (global, &golden.global[class], setup.global_size),
            (local, &golden.local[class], setup.patch_size),
        ] {
            let [n, height, width] = cams.shape;
            assert_eq!(n, stored.len());
            for (values, stored) in cams.values.chunks_exact(height * width).zip(stored) {
                let values = values.to_vec();
                let map = HeatMap {
                    height,
                    width,
                    values,
                }
                .scaled(side, side);
                let kept: Vec<f32> = map.values.into_iter().step_by(setup.every).collect();
                near(&kept, stored, &format!("{name} in {}", cams.branch));
            }
        }
    }
    let attention = found.attention.expect("hybrid attends");
    near(&attention, &golden.attention, "attention");
    assert!(seen > 9_000, "{seen} numbers");
    eprintln!("largest difference {worst:.1e} of {seen} numbers");
}
