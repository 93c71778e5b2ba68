//! `hybrid`, its loss, its gradients and its optimizer step against PyTorch's numbers, stored by
//! `tests/golden/hybrid.py`.
//!
//! The test takes the whole path of a training step: weights by name, two virtual shards, the reduction tree, clipping,
//! Adam, running statistics. The stored numbers are PyTorch's in f64, so a deviation is this project's own rounding;
//! `torch_f32` and `torch_bf16` are PyTorch's deviations.

use std::path::Path;

use fovea_kernels::loss::LossSettings;
use fovea_run::config::{Config, ModelConfig};
use fovea_task::{Label, Level, Task};
use serde::Deserialize;
use tch::Kind;

use super::hashed::{Digests, compare, digest, hashed, pictures, separate};
use crate::gpu::{self, Gpu};
use crate::lanes::ThreadLanes;
use crate::objective::{Denominators, HeadLoss};
use crate::ops::NormEngine;
use crate::params::StateBuffer;
use crate::precision::Precision;
use crate::replica::Replica;
use crate::samples::{Pixels, ShardBatch, Views};
use crate::train::restore_weights;

#[derive(Deserialize)]
pub(super) struct Golden {
    torch_f32: Deviations,
    torch_bf16: Deviations,
    setup: Setup,
    eval: Evaluated,
    steps: Vec<GoldenStep>,
    gradients: Digests,
    running: Digests,
    moved: Digests,
}

#[derive(Deserialize)]
struct Setup {
    /// The section `[model]`.
    #[serde(default)]
    model: ModelConfig,
    #[serde(default = "Task::lesions")]
    task: Task,
    salt: u64,
    /// Whether the outputs of norms are 0.4 wide about values near 1 or -1.
    #[serde(default)]
    separated: bool,
    seed: u64,
    loss: Loss,
    optimizer: Optimizer,
    steps: usize,
    shards: Vec<GoldenShard>,
}

#[derive(Deserialize)]
struct Loss {
    gamma: f32,
    alpha: Vec<f32>,
    positive: f32,
    negative: f32,
    patch_weight: f32,
}

#[derive(Deserialize)]
struct Optimizer {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip_norm: f32,
}

#[derive(Deserialize)]
struct GoldenShard {
    global_size: usize,
    #[serde(default)]
    patch_size: usize,
    counts: Vec<usize>,
    #[serde(default)]
    columns: Vec<f32>,
    image_ids: Vec<u64>,
    #[serde(default)]
    patch_ids: Vec<u64>,
    image_labels: Vec<Label>,
    #[serde(default)]
    patch_labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Evaluated {
    image: Vec<Vec<f64>>,
    #[serde(default)]
    patch: Vec<Vec<f64>>,
    /// The first image's answer without its patches; empty for a model of whole images.
    #[serde(default)]
    image_without_patches: Vec<f64>,
}

impl Evaluated {
    fn logits(&self) -> Vec<f64> {
        self.image
            .iter()
            .chain(&self.patch)
            .chain([&self.image_without_patches])
            .flatten()
            .copied()
            .collect()
    }
}

#[derive(Deserialize)]
struct GoldenStep {
    loss: f64,
    grad_norm: f64,
}

/// Deviations of a run from the stored numbers; `spread` in hybrid.py measures PyTorch in the same way.
#[derive(Debug, Deserialize)]
pub(super) struct Deviations {
    /// Largest absolute deviation of a logit.
    logits: f64,
    /// Relative deviation of the loss, per step.
    loss: Vec<f64>,
    /// Relative deviation of the gradient norm, per step.
    grad_norm: Vec<f64>,
    /// Relative to the tensor's norm, largest and root mean square over tensors.
    gradients: f64,
    gradients_rms: f64,
    running: f64,
    running_rms: f64,
    moved: f64,
    moved_rms: f64,
}

impl GoldenShard {
    fn batch(&self, index: usize, (salt, task): (u64, &Task), kind: Kind) -> ShardBatch {
        let (images, patches) = (self.counts.len(), self.counts.iter().sum());
        let whole = if self.global_size > 0 { images } else { 0 };
        let labels = |level| match level {
            Level::Image => self.image_labels.clone(),
            Level::Patch => self.patch_labels.clone(),
        };
        ShardBatch {
            pixels: Pixels::Views(Views {
                globals: pictures(
                    &format!("globals.{index}.{salt}"),
                    whole,
                    self.global_size,
                    kind,
                ),
                patches: pictures(
                    &format!("patches.{index}.{salt}"),
                    patches,
                    self.patch_size,
                    kind,
                ),
            }),
            counts: self.counts.clone(),
            labels: task.targets().iter().map(|t| labels(t.level)).collect(),
            columns: self.columns.clone(),
            image_ids: self.image_ids.clone(),
            patch_ids: self.patch_ids.clone(),
        }
    }
}

fn configured(setup: &Setup, precision: Precision, gpu: Option<Gpu>) -> (Config, Replica) {
    let Setup {
        loss, optimizer, ..
    } = setup;
    let mut config = Config::preset("hybrid").expect("a preset");
    config.model = setup.model.clone();
    config.train.seed = setup.seed;
    config.optimizer.lr = optimizer.lr;
    config.optimizer.beta1 = optimizer.beta1;
    config.optimizer.beta2 = optimizer.beta2;
    config.optimizer.eps = optimizer.eps;
    config.optimizer.weight_decay = optimizer.weight_decay;
    config.optimizer.clip_norm = optimizer.clip_norm;
    let settings = LossSettings {
        gamma: loss.gamma,
        alpha: loss.alpha.clone(),
        positive_weight: loss.positive,
        negative_weight: loss.negative,
        ..LossSettings::plain(loss.alpha.len())
    };
    let head = |level, weight| HeadLoss {
        level,
        loss: fovea_kernels::loss::build("focal", &settings).expect("a focal loss"),
        weight,
    };
    let heads = setup
        .task
        .targets()
        .iter()
        .map(|target| match target.level {
            Level::Image => head(Level::Image, 1.0),
            Level::Patch => head(Level::Patch, loss.patch_weight),
        });
    let (objective, lanes) = (heads.collect(), ThreadLanes::one());
    let mut replica = Replica::configured(&config, &setup.task, precision, objective, lanes, gpu)
        .expect("a replica");
    let mut weights = hashed(&replica.net.params.blueprint);
    if setup.separated {
        separate(&replica.net.params.blueprint, &mut weights);
    }
    restore_weights(&mut replica.net.params, &weights, Path::new("hashed"))
        .expect("PyTorch's names and shapes");
    (config, replica)
}

/// Logits of the first shard, then, if it has patches, those of its first image without them.
fn evaluate(replica: &Replica, batch: &ShardBatch) -> Vec<f64> {
    let scores = replica.evaluate(batch).expect("evaluation");
    let numbers = |heads: &[Vec<f32>]| -> Vec<f64> {
        heads.iter().flatten().map(|&z| f64::from(z)).collect()
    };
    if batch.patch_ids.is_empty() {
        return numbers(&scores.heads);
    }
    let Pixels::Views(views) = &batch.pixels else {
        panic!("no pixels")
    };
    let alone = ShardBatch {
        pixels: Pixels::Views(Views {
            globals: views.globals.narrow(0, 0, views.globals.size()[0].min(1)),
            patches: views.patches.narrow(0, 0, 0),
        }),
        counts: vec![0],
        labels: Vec::new(),
        columns: Vec::new(),
        image_ids: vec![0],
        patch_ids: vec![],
    };
    let alone = replica
        .evaluate(&alone)
        .expect("evaluation without patches");
    assert!(alone.heads[1].is_empty());
    [numbers(&scores.heads), numbers(&alone.heads[..1])].concat()
}

/// A flat buffer's parameters as digests.
fn parameters(replica: &Replica, flat: &[f32]) -> Digests {
    let named = replica.net.params.blueprint.params.iter().enumerate();
    named
        .map(|(i, p)| {
            (
                p.name.clone(),
                digest(&p.name, &replica.net.params.to_pytorch(i, flat), 1.0),
            )
        })
        .collect()
}

fn running(replica: &Replica) -> Digests {
    let flat = &*replica
        .net
        .params
        .read(StateBuffer::Running)
        .expect("f32 statistics");
    let named = replica.net.params.blueprint.norms.iter().flat_map(|norm| {
        let part = |suffix: &str, start: usize| {
            let name = format!("{}.{suffix}", norm.name);
            let digest = digest(&name, &flat[start..start + norm.channels], 1.0);
            (name, digest)
        };
        [
            part("running_mean", norm.offset),
            part("running_var", norm.offset + norm.channels),
        ]
    });
    named.collect()
}

pub(super) fn run(golden: &Golden, precision: Precision, gpu: Option<Gpu>) -> Deviations {
    let setup = &golden.setup;
    let (config, mut replica) = configured(setup, precision, gpu);
    let shards: Vec<_> = setup
        .shards
        .iter()
        .enumerate()
        .map(|(i, s)| s.batch(i, (setup.salt, &setup.task), precision.kind()))
        .collect();
    let logits = evaluate(&replica, &shards[0]);
    let shards: Vec<_> = shards.into_iter().map(Some).collect();
    let counts = || setup.shards.iter().map(|s| &s.counts);
    let total = Denominators::all_labelled(
        &Task::lesions(),
        counts().map(Vec::len).sum(),
        counts().flatten().map(|&n| n as u64).sum(),
    );

    let start = replica
        .net
        .params
        .read(StateBuffer::Master)
        .expect("master")
        .to_vec();
    let (mut loss, mut grad_norm) = (Vec::new(), Vec::new());
    let (mut gradients, mut statistics, mut moved) =
        (Digests::new(), Digests::new(), Digests::new());
    for step in 0..setup.steps {
        let reduced = replica
            .attempt(
                &shards,
                step as u32,
                &total,
                &mut |_: &mut [f32]| Ok(()),
                &mut || (),
            )
            .expect("an attempt");
        let verdict = replica.verdict(&reduced, &total);
        loss.push((verdict.loss / golden.steps[step].loss - 1.0).abs());
        grad_norm.push((verdict.grad_norm / golden.steps[step].grad_norm - 1.0).abs());
        if step == 0 {
            let sums = reduced.to_host().expect("sums");
            gradients = parameters(&replica, &sums[..replica.net.params.layout.len]);
        }
        replica
            .commit(
                reduced,
                &config,
                setup.optimizer.lr,
                step as u64 + 1,
                verdict,
            )
            .expect("a commit");
        if step == 0 {
            statistics = running(&replica);
            let difference: Vec<f32> = replica
                .net
                .params
                .read(StateBuffer::Master)
                .expect("master")
                .iter()
                .zip(&start)
                .map(|(new, old)| new - old)
                .collect();
            moved = parameters(&replica, &difference);
        }
    }

    let want = golden.eval.logits();
    assert_eq!(logits.len(), want.len());
    let (gradients, gradients_rms) = compare(
        &gradients,
        &golden.gradients,
        1e-4 * golden.steps[0].grad_norm,
    );
    let (running, running_rms) = compare(&statistics, &golden.running, 0.0);
    let (moved, moved_rms) = compare(&moved, &golden.moved, 0.0);
    Deviations {
        logits: logits
            .iter()
            .zip(&want)
            .map(|(g, w)| (g - w).abs())
            .fold(0.0, f64::max),
        loss,
        grad_norm,
        gradients,
        gradients_rms,
        running,
        running_rms,
        moved,
        moved_rms,
    }
}

fn load() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/hybrid.json"))
        .expect("the stored numbers parse")
}

#[track_caller]
fn below(what: &str, got: f64, limit: f64) {
    assert!(
        got <= limit,
        "{what}: {got:.3e} from PyTorch's, limit {limit:.0e}"
    );
}

#[test]
fn f32_steps_are_pytorchs() {
    let golden = load();
    f32_is_near(&golden, &run(&golden, Precision::F32, None));
}

/// The GPU's step, with the kernels and the driver emulated.
#[test]
fn f32_steps_on_a_gpu_are_pytorchs() {
    let _alone = gpu::tests::alone();
    let golden = load();
    for engine in [NormEngine::Fused, NormEngine::Composed] {
        let gpu = Gpu::emulated(engine);
        f32_is_near(&golden, &run(&golden, Precision::F32, Some(gpu)));
    }
}

/// The limits hold for all models; where PyTorch itself is not well within one, three times its deviation is allowed.
pub(super) fn f32_is_near(golden: &Golden, got: &Deviations) {
    let torch = &golden.torch_f32;
    eprintln!("here  {got:?}\ntorch {torch:?}");
    let below = |what, got, limit: f64, torch: f64| below(what, got, limit.max(3.0 * torch));
    // Sums of some thousand f32 products per layer, 20 layers deep, deviate by 1e-6 of the values.
    below("logits", got.logits, 1e-5, torch.logits);
    below("running statistics", got.running, 5e-6, torch.running);
    below(
        "running statistics, rms",
        got.running_rms,
        1e-6,
        torch.running_rms,
    );
    below("loss", got.loss[0], 1e-5, torch.loss[0]);
    // Backward divides by standard deviations over as few as 4 rows, which enlarges the deviations.
    below("gradient norm", got.grad_norm[0], 1e-4, torch.grad_norm[0]);
    below("gradients", got.gradients, 1e-4, torch.gradients);
    below(
        "gradients, rms",
        got.gradients_rms,
        3e-5,
        torch.gradients_rms,
    );
    // Adam divides by |g| + eps, so elements with small gradients follow their deviations closely.
    below("first update", got.moved, 2e-4, torch.moved);
    below("first update, rms", got.moved_rms, 5e-5, torch.moved_rms);
    // The second step starts from all of these, and inputs may lie near ReLUs' kinks.
    below("second loss", got.loss[1], 1e-4, torch.loss[1]);
    below(
        "second gradient norm",
        got.grad_norm[1],
        2e-3,
        torch.grad_norm[1],
    );
}

#[test]
fn bf16_steps_are_as_near_as_pytorchs_autocast() {
    let golden = load();
    bf16_is_near(&golden, &run(&golden, Precision::Bf16, None));
}

#[test]
fn bf16_steps_on_a_gpu_are_as_near() {
    let _alone = gpu::tests::alone();
    let golden = load();
    let gpu = Gpu::emulated(NormEngine::Composed);
    bf16_is_near(&golden, &run(&golden, Precision::Bf16, Some(gpu)));
}

/// As [`f32_is_near`].
pub(super) fn bf16_is_near(golden: &Golden, got: &Deviations) {
    let torch = &golden.torch_bf16;
    eprintln!("here  {got:?}\ntorch {torch:?}");
    let near = |what, got, limit: f64, torch: f64| below(what, got, limit.max(3.0 * torch));
    // bf16 has 8 bits: a rounding deviates by up to 4e-3, and many average out.
    near("logits", got.logits, 3e-2, torch.logits);
    near("running statistics", got.running, 3e-2, torch.running);
    near("loss", got.loss[0], 3e-2, torch.loss[0]);
    // Roundings put many ReLUs' inputs on the other side of zero, in PyTorch as here. The test can compare their
    // number, by its effect over all tensors; which ones they are is chance.
    below(
        "gradients, rms",
        got.gradients_rms,
        1.5 * torch.gradients_rms,
    );
    // The gradient is clipped to a norm, so the update also follows the norm's deviation, which has its own limit.
    let followed = got.grad_norm[0];
    below(
        "first update, rms",
        got.moved_rms,
        1.5 * torch.moved_rms + followed,
    );
    near("gradient norm", got.grad_norm[0], 5e-2, torch.grad_norm[0]);
    near("second loss", got.loss[1], 1e-1, torch.loss[1]);
}
