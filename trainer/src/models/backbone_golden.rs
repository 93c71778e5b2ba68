//! DenseNet121 and EfficientNet-B0, their gradients and an optimizer step against torchvision's numbers, stored by
//! `tests/golden/backbones.py`, which says what they are.
//!
//! The stored numbers are PyTorch's in f64, so a deviation is this project's own rounding; `torch_f32` and `torch_bf16`
//! are PyTorch's deviations.

use std::collections::BTreeMap;
use std::path::Path;

use fovea_kernels::flat::AdamParams;
use fovea_task::Level;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::backbone::{BackboneOptions, backbone};
use super::hashed::{
    Digest, Digests, compare, deviation, digest, formula, hashed, pictures, separate,
};
use super::{Backbone, Blueprint, Branch, Pass};
use crate::host;
use crate::ops::{self, NormEngine, NormMode};
use crate::params::{Params, StateBuffer};
use crate::precision::Precision;
use crate::train::restore_weights;

#[derive(Deserialize)]
struct Document {
    setup: Setup,
    networks: BTreeMap<String, Golden>,
}

#[derive(Deserialize)]
struct Setup {
    steps: usize,
    optimizer: Optimizer,
    networks: BTreeMap<String, Pictures>,
}

#[derive(Deserialize)]
struct Optimizer {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
}

#[derive(Deserialize)]
struct Pictures {
    images: usize,
    side: usize,
    salt: u64,
}

#[derive(Deserialize)]
struct Golden {
    torch_f32: Deviations,
    torch_bf16: Deviations,
    eval: Digest,
    steps: Vec<GoldenStep>,
    gradients: Digests,
    running: Digests,
    moved: Digests,
}

#[derive(Deserialize)]
struct GoldenStep {
    loss: f64,
    grad_norm: f64,
}

/// Deviations from the stored numbers, as `spread` in backbones.py measures PyTorch's.
#[derive(Debug, Deserialize)]
struct Deviations {
    features: f64,
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    gradients: f64,
    gradients_rms: f64,
    running: f64,
    running_rms: f64,
    moved: f64,
    moved_rms: f64,
}

/// A network with the hash's weights, its input and the numbers that its features are to have.
struct Bench {
    net: Box<dyn Backbone>,
    params: Params,
    engine: NormEngine,
    x: Tensor,
    target: Tensor,
    /// One per dropout site: number i drops image r where `(i + r) % 3 == 0`.
    masks: Vec<Tensor>,
}

impl Bench {
    fn new(name: &str, set: &Pictures, precision: Precision, engine: NormEngine) -> Self {
        let mut blueprint = Blueprint::default();
        let entry = backbone("name", name).expect("a backbone");
        let net = (entry.declare)(&mut blueprint, "", BackboneOptions::plain(Level::Image));
        let mut weights = hashed(&blueprint);
        if name.starts_with("densenet") {
            separate(&blueprint, &mut weights);
        }
        let mut params = Params::new(blueprint, precision, 1, Device::Cpu).expect("parameters");
        restore_weights(&mut params, &weights, Path::new("hashed")).expect("torchvision's names");
        let n = set.images;
        let named = format!("{name}.{}", set.salt);
        let x = pictures(&named, n, set.side, precision.kind());
        let width = net.width();
        let target: Vec<f32> = formula::uniform("target", n * width as usize).collect();
        let sites = params.blueprint.dropouts.iter().enumerate();
        let masks = sites.map(|(site, spec)| {
            let kept = |row| match (site + row) % 3 {
                0 => 0.0,
                _ => 1.0 / (1.0 - spec.p),
            };
            let values: Vec<f32> = (0..n).flat_map(|row| vec![kept(row); spec.width]).collect();
            Tensor::from_slice(&values).view([n as i64, spec.width as i64])
        });
        Self {
            masks: masks.collect(),
            x,
            target: Tensor::from_slice(&target).view([n as i64, width]),
            net,
            params,
            engine,
        }
    }

    fn features(&self, mode: NormMode<'_>, dropout: Option<&[Tensor]>) -> Tensor {
        let pass = Pass {
            params: self.params.leaves(),
            norms: &self.params.blueprint.norms,
            mode,
            engine: self.engine,
            dropout,
            branch: Branch::default(),
            recorder: None,
        };
        self.net.features(&pass, &self.x).expect("a forward pass")
    }

    fn evaluated(&self) -> Digest {
        let _guard = tch::no_grad_guard();
        let running = self.params.running();
        let features = self.features(NormMode::Eval { running }, None);
        let features = features.contiguous().view(-1);
        digest("features", host::slice(&features).expect("f32"), 1.0)
    }

    /// Loss, the gradients in the flat layout and the batch's statistics.
    fn step(&self) -> (f64, Vec<f32>, Tensor) {
        let stats = [self.params.blueprint.stats_len() as i64];
        let batch_stats = Tensor::zeros(stats, (Kind::Float, Device::Cpu));
        let mode = NormMode::Train {
            batch_stats: &batch_stats,
            running: self.params.running(),
        };
        let features = self.features(mode, Some(&self.masks));
        let n = features.size()[0] as f64;
        let distance = features.detach() - &self.target;
        let loss = (&distance * &distance).sum(Kind::Double).double_value(&[]) / (2.0 * n);
        let root = ops::root(&[features], &[distance / n]).expect("one head");
        let flat = std::cell::RefCell::new(vec![0.0; self.params.layout.len]);
        let take = |index: usize, gradient: Tensor| {
            let spec = &self.params.blueprint.params[index];
            let gradient = match spec.working {
                true => gradient.permute([0, 2, 3, 1]),
                false => gradient,
            };
            let values = gradient.to_kind(Kind::Float).contiguous().view(-1);
            let range = self.params.layout.ranges[index].clone();
            flat.borrow_mut()[range].copy_from_slice(host::slice(&values).expect("f32"));
        };
        ops::backward(&root, self.params.leaves(), &take).expect("a backward pass");
        (loss, flat.into_inner(), batch_stats)
    }

    fn digests(&self, flat: &[f32], unit: impl Fn(usize) -> f64) -> Digests {
        let named = self.params.blueprint.params.iter().enumerate();
        named
            .map(|(i, p)| {
                let values = self.params.to_pytorch(i, flat);
                (p.name.clone(), digest(&p.name, &values, unit(p.numel())))
            })
            .collect()
    }
}

fn run(name: &str, document: &Document, precision: Precision, engine: NormEngine) -> Deviations {
    let (golden, setup) = (&document.networks[name], &document.setup);
    let mut bench = Bench::new(name, &setup.networks[name], precision, engine);
    let features = deviation(&bench.evaluated(), &golden.eval, 0.0);
    let (mut loss, mut grad_norm) = (Vec::new(), Vec::new());
    let (mut gradients, mut running, mut moved) = Default::default();
    let o = &setup.optimizer;
    for step in 0..setup.steps {
        let (value, flat, stats) = bench.step();
        let norm = flat.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        loss.push((value / golden.steps[step].loss - 1.0).abs());
        grad_norm.push((norm.sqrt() / golden.steps[step].grad_norm - 1.0).abs());
        let read = |bench: &Bench| {
            let master = bench.params.read(StateBuffer::Master);
            master.expect("master").to_vec()
        };
        let start = read(&bench);
        let adam = AdamParams {
            lr: f64::from(o.lr),
            beta1: f64::from(o.beta1),
            beta2: f64::from(o.beta2),
            eps: f64::from(o.eps),
            weight_decay: f64::from(o.weight_decay),
            decoupled: false,
            step: step as u64 + 1,
            grad_scale: 1.0,
        };
        bench
            .params
            .adam(&flat, &[adam])
            .expect("an optimizer step");
        if step > 0 {
            continue;
        }
        let stats = host::slice::<f32>(&stats).expect("f32 statistics");
        let statistics = bench.params.blueprint.norms.iter().flat_map(|norm| {
            let parts = [("running_mean", 0), ("running_var", norm.channels)];
            parts.map(|(suffix, offset)| {
                let (name, start) = (format!("{}.{suffix}", norm.name), norm.offset + offset);
                let digest = digest(&name, &stats[start..start + norm.channels], 1.0);
                (name, digest)
            })
        });
        let floor = 1e-4 * golden.steps[0].grad_norm;
        gradients = compare(&bench.digests(&flat, |_| 1.0), &golden.gradients, floor);
        running = compare(&statistics.collect(), &golden.running, 0.0);
        let change: Vec<f32> = read(&bench).iter().zip(start).map(|(a, b)| a - b).collect();
        let full = |count: usize| f64::from(o.lr) * (count as f64).sqrt();
        moved = compare(&bench.digests(&change, full), &golden.moved, 1.0);
    }
    Deviations {
        features,
        loss,
        grad_norm,
        gradients: gradients.0,
        gradients_rms: gradients.1,
        running: running.0,
        running_rms: running.1,
        moved: moved.0,
        moved_rms: moved.1,
    }
}

fn load() -> Document {
    serde_json::from_str(include_str!("../../../tests/golden/backbones.json"))
        .expect("the stored numbers parse")
}

#[track_caller]
fn below(what: &str, got: f64, limit: f64) {
    assert!(
        got <= limit,
        "{what}: {got:.3e} from PyTorch's, limit {limit:.0e}"
    );
}

/// f32's own limit, or three times PyTorch's deviation where the sums amplify rounding more than that.
fn f32_is_near(name: &str, document: &Document, engine: NormEngine) {
    let torch = &document.networks[name].torch_f32;
    let got = run(name, document, Precision::F32, engine);
    eprintln!("{engine:?}\nhere  {got:?}\ntorch {torch:?}");
    below("features", got.features, 1e-5);
    below("running statistics", got.running, 1e-5);
    below("loss", got.loss[0], 1e-5);
    below("gradient norm", got.grad_norm[0], 1e-4);
    below(
        "gradients",
        got.gradients,
        (3.0 * torch.gradients).max(1e-4),
    );
    below("gradients, rms", got.gradients_rms, 1e-4);
    below("first update", got.moved, 2e-4);
    below("second loss", got.loss[1], 1e-4);
    below("second gradient norm", got.grad_norm[1], 1e-4);
}

fn bf16_is_near(name: &str, document: &Document, engine: NormEngine) {
    let torch = &document.networks[name].torch_bf16;
    let got = run(name, document, Precision::Bf16, engine);
    eprintln!("{engine:?}\nhere  {got:?}\ntorch {torch:?}");
    below("features", got.features, 1e-2);
    below("loss", got.loss[0], 1e-2);
    below(
        "running statistics, rms",
        got.running_rms,
        1.5 * torch.running_rms,
    );
    below(
        "gradients, rms",
        got.gradients_rms,
        1.5 * torch.gradients_rms,
    );
    below("first update, rms", got.moved_rms, 1.5 * torch.moved_rms);
    below("gradient norm", got.grad_norm[0], 5e-2);
    below("second loss", got.loss[1], 5e-2);
}

#[test]
fn densenet121_is_torchvisions() {
    let document = load();
    for engine in [NormEngine::Fused, NormEngine::Composed] {
        f32_is_near("densenet121", &document, engine);
    }
    bf16_is_near("densenet121", &document, NormEngine::Fused);
}

#[test]
fn efficientnet_b0_is_torchvisions() {
    let document = load();
    for engine in [NormEngine::Fused, NormEngine::Composed] {
        f32_is_near("efficientnet_b0", &document, engine);
    }
    bf16_is_near("efficientnet_b0", &document, NormEngine::Fused);
}
