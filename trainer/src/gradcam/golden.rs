//! Compares with the package pytorch-grad-cam, stored by `tests/golden/gradcam.py`.

use std::path::Path;

use fovea_run::config::Config;
use fovea_task::{Target, Task};
use serde::Deserialize;
use tch::Kind;

use super::{Cams, HeatMap, class_maps};
use crate::lanes::ThreadLanes;
use crate::models::hashed::{hashed, pictures};
use crate::objective::unweighted;
use crate::precision::Precision;
use crate::replica::Replica;
use crate::samples::{Pixels, ShardBatch, Views};
use crate::train::restore_weights;

#[derive(Deserialize)]
struct Golden {
    setup: Setup,
    /// Per class and picture, every `setup.every`-th number.
    global: Vec<Vec<Vec<f32>>>,
    local: Vec<Vec<Vec<f32>>>,
    attention: Vec<f32>,
    resnet_densenet: Branches,
}

/// Maps of the whole image by the two networks of `resnet_densenet`.
#[derive(Deserialize)]
struct Branches {
    resnet: Vec<Vec<Vec<f32>>>,
    densenet: Vec<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Setup {
    name: String,
    global_size: usize,
    patch_size: usize,
    patches: usize,
    every: usize,
}

/// A model with the hash's weights, in f32 on the CPU.
fn replica(model: &str, task: &Task) -> Replica {
    let mut config = Config::preset("hybrid").expect("a preset");
    config.model.name = model.to_owned();
    let objective = unweighted(&config.loss, task).expect("a loss");
    let (precision, lanes) = (Precision::F32, ThreadLanes::one());
    let mut replica =
        Replica::configured(&config, task, precision, objective, lanes, None).expect("a replica");
    let weights = hashed(&replica.net.params.blueprint);
    restore_weights(&mut replica.net.params, &weights, Path::new("hashed")).expect("they fit");
    replica
}

/// One image and its patches.
fn batch(setup: &Setup, patches: usize) -> ShardBatch {
    let side = setup.patch_size;
    ShardBatch {
        pixels: Pixels::Views(Views {
            globals: pictures(
                &format!("{}.globals", setup.name),
                1,
                setup.global_size,
                Kind::Float,
            ),
            patches: pictures(
                &format!("{}.patches", setup.name),
                patches,
                side,
                Kind::Float,
            ),
        }),
        counts: vec![patches],
        labels: Vec::new(),
        columns: Vec::new(),
        image_ids: vec![0],
        patch_ids: (0..patches as u64).collect(),
    }
}

/// Counts what was compared, and the largest difference.
#[derive(Default)]
struct Compared {
    numbers: usize,
    worst: f32,
}

impl Compared {
    fn near(&mut self, ours: &[f32], theirs: &[f32], what: &str) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (a, b) in ours.iter().zip(theirs) {
            self.worst = self.worst.max((a - b).abs());
            assert!((a - b).abs() < 1e-4, "{what}: {a} and {b}");
        }
        self.numbers += ours.len();
    }

    /// The maps of all pictures of a branch, enlarged to `side`.
    fn maps(&mut self, cams: &Cams, stored: &[Vec<f32>], (side, every): (usize, usize)) {
        let [n, height, width] = cams.shape;
        assert_eq!(n, stored.len());
        for (values, stored) in cams.values.chunks_exact(height * width).zip(stored) {
            let values = values.to_vec();
            let map = HeatMap {
                height,
                width,
                values,
            };
            let kept = map.scaled(side, side).values.into_iter().step_by(every);
            self.near(&kept.collect::<Vec<f32>>(), stored, cams.branch);
        }
    }
}

fn golden() -> Golden {
    let text = include_str!("../../../tests/golden/gradcam.json");
    serde_json::from_str(text).expect("the stored numbers parse")
}

fn names() -> Vec<String> {
    ["MA", "HE", "EX", "SE"].map(str::to_owned).to_vec()
}

#[test]
fn pytorch_grad_cam_agrees_on_hybrid() {
    let golden = golden();
    let setup = &golden.setup;
    let task = Task::lesions();
    let replica = replica("hybrid", &task);
    let batch = batch(setup, setup.patches);
    let found = class_maps(&replica, &task, &batch, |_| names()).expect("maps");
    let mut compared = Compared::default();
    for (class, (_, cams)) in found.classes.iter().enumerate() {
        let [global, local] = &cams[..] else {
            panic!("two branches: {}", cams.len())
        };
        let branches = (global.branch, local.branch);
        assert_eq!(branches, ("global_branch", "local_branch"));
        let sides = [setup.global_size, setup.patch_size].map(|side| (side, setup.every));
        compared.maps(global, &golden.global[class], sides[0]);
        compared.maps(local, &golden.local[class], sides[1]);
    }
    let attention = found.attention.expect("hybrid attends");
    compared.near(&attention, &golden.attention, "attention");
    assert!(compared.numbers > 9_000, "{} numbers", compared.numbers);
    eprintln!("largest difference {:.1e}", compared.worst);
}

#[test]
fn pytorch_grad_cam_agrees_on_resnet_densenet() {
    let golden = golden();
    let (setup, stored) = (&golden.setup, &golden.resnet_densenet);
    let image = Target {
        union_of_cells: false,
        ..Task::lesions().targets()[0].clone()
    };
    let task = Task::new(vec![image]).expect("a task");
    let replica = replica("resnet_densenet", &task);
    let found = class_maps(&replica, &task, &batch(setup, 0), |_| names()).expect("maps");
    assert_eq!(found.attention, None);
    let mut compared = Compared::default();
    for (class, (_, cams)) in found.classes.iter().enumerate() {
        let [resnet, densenet] = &cams[..] else {
            panic!("two branches: {}", cams.len())
        };
        let branches = (resnet.branch, densenet.branch);
        assert_eq!(branches, ("resnet", "densenet"));
        let side = (setup.global_size, setup.every);
        compared.maps(resnet, &stored.resnet[class], side);
        compared.maps(densenet, &stored.densenet[class], side);
    }
    assert!(compared.numbers > 8_000, "{} numbers", compared.numbers);
    eprintln!("largest difference {:.1e}", compared.worst);
}
