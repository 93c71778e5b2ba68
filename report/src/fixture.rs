//! A made-up but plausible run directory over a small synthetic dataset, for the tests of the report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fovea_coordinator::protocol::CheckpointInfo;
use fovea_coordinator::status::{RunState, Status};
use fovea_dataset::{Dataset, PrepareOptions, Silent, Split, prepare};
use fovea_run::config::{Config, EarlyStoppingConfig};
use fovea_run::metrics::log::MetricsLog;
use fovea_run::metrics::{MetricsRow, compute, table_order};
use fovea_run::predictions::Prediction;
use fovea_run::run_dir::{RunDir, StepRow, append_steps};
use fovea_synth::{SynthOptions, synth};
use fovea_task::Level;

use super::predictions;
use super::predictions::tests::{line, write};

/// How large the made-up run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fake {
    pub(crate) epochs: u32,
    pub(crate) ranks: u32,
    pub(crate) steps_per_epoch: u64,
}

/// splitmix64: enough to make noise.
struct SplitMix(u64);

impl SplitMix {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// Makes and prepares a synthetic dataset beneath `dir`; returns the prepared directory.
pub(crate) fn dataset(dir: &Path, images: u32, size: u32, patch: u32) -> PathBuf {
    let (raw, out) = (dir.join("raw"), dir.join("data"));
    synth(
        &raw,
        &SynthOptions {
            images,
            size,
            seed: 3,
        },
        &Silent,
    )
    .unwrap();
    prepare(
        &raw,
        &out,
        &PrepareOptions {
            size,
            patch,
            ..PrepareOptions::default()
        },
        &Silent,
    )
    .unwrap();
    out
}

/// Predictions of `split` by a model of some `skill`: the truth, drowned in noise to that degree.
fn predict(data: &Dataset, split: Split, skill: f64, noise: &mut SplitMix) -> Vec<Prediction> {
    let mut guess = |label: u8, skill: f64| -> [f32; 4] {
        std::array::from_fn(|c| {
            let sign = if label >> c & 1 == 1 { 1.0 } else { -1.0 };
            let z = skill * sign * (1.1 - 0.12 * c as f64) + noise.normal() - 0.35;
            (1.0 / (1.0 + (-1.3 * z).exp())) as f32
        })
    };
    let mut lines = Vec::new();
    let grid = data.grid() as u32;
    for i in data.indices(split) {
        let id = &data.manifest().images[i].id;
        let whole = data.label(i, 0).0 as u8;
        lines.push(line(id, None, whole, guess(whole, skill * 1.1)));
        let labels = data.patch_labels(i, 1).into_iter();
        let labels = labels.map(|label| label.0 as u8).zip(data.black(i));
        for (cell, (label, &black)) in labels.enumerate() {
            if black == 0 {
                let at = (cell as u32 / grid, cell as u32 % grid);
                lines.push(line(id, Some(at), label, guess(label, skill)));
            }
        }
    }
    lines
}

/// Writes everything a finished run leaves into `dir`.
pub(crate) fn run(dir: &Path, data_dir: &Path, fake: Fake) {
    fs::create_dir_all(dir).unwrap();
    let mut config = Config::preset("demo").unwrap();
    config.data.path = data_dir.display().to_string();
    config.train.epochs = fake.epochs;
    config.train.ranks = fake.ranks;
    config.early_stopping = EarlyStoppingConfig::default();
    let files = RunDir::new(dir);
    fs::write(files.config(), config.to_toml_documented()).unwrap();
    let data = Dataset::open_unverified(data_dir).unwrap();
    let mut noise = SplitMix(11);
    let mut log = MetricsLog::open(&files.metrics(), data.task()).unwrap();
    let mut best = f64::MIN;
    for epoch in 1..=fake.epochs {
        let progress = f64::from(epoch) / 6.0;
        let skill = 0.1 + 1.6 * (1.0 - (-progress).exp()) - 0.012 * progress * progress
            + 0.08 * noise.normal();
        for (split, bonus) in [(Split::Train, 0.05 * progress), (Split::Val, 0.0)] {
            let lines = predict(&data, split, skill + bonus, &mut noise);
            for (index, target) in table_order(data.task()) {
                let table = predictions::scored(&lines, index);
                let loss =
                    0.42 * (-0.5 * progress).exp() + 0.08 - 0.02 * bonus + 0.01 * noise.unit();
                let metrics = compute(target, &table, &[config.eval.threshold; 4], loss).unwrap();
                if split == Split::Val && target.level == Level::Patch && metrics.f1_micro > best {
                    best = metrics.f1_micro;
                    write(&files.predictions(), &lines);
                }
                let timestamp = format!("2025-03-01T10:{:02}:00Z", epoch % 60);
                log.append(&[MetricsRow {
                    timestamp,
                    epoch,
                    split,
                    target: target.name.clone(),
                    metrics,
                }])
                .unwrap();
            }
        }
    }
    append_steps(&files.throughput(), &throughput(fake, &mut noise)).unwrap();
    fs::write(
        dir.join("status.json"),
        serde_json::to_vec(&status(dir, fake)).unwrap(),
    )
    .unwrap();
}

fn throughput(fake: Fake, noise: &mut SplitMix) -> Vec<StepRow> {
    let mut rows = Vec::new();
    let steps = u64::from(fake.epochs) * fake.steps_per_epoch;
    for step in 0..steps {
        let done = step as f64 / steps as f64;
        let first = if step == 0 { 4000.0 } else { 0.0 };
        let compute: Vec<f64> = (0..fake.ranks)
            .map(|rank| 610.0 + 30.0 * f64::from(rank) + 25.0 * noise.normal() + first)
            .collect();
        let slowest = compute.iter().fold(0.0f64, |m, &v| m.max(v));
        for (rank, &compute_ms) in compute.iter().enumerate() {
            let wait_ms = slowest - compute_ms + 22.0 + 4.0 * noise.unit();
            rows.push(StepRow {
                epoch: (step / fake.steps_per_epoch) as u32 + 1,
                step: step + 1,
                rank,
                samples: 32,
                step_ms: (compute_ms + wait_ms + 9.0) as f32,
                compute_ms: compute_ms as f32,
                wait_ms: wait_ms as f32,
                loss: 0.5 * (-3.0 * done).exp() + 0.1 + 0.05 * noise.unit(),
                lr: (5e-4
                    * (1.0 + (std::f64::consts::PI * done).cos())
                    * (step as f64 / 20.0).min(1.0)) as f32,
                generation: 1,
            });
        }
    }
    rows
}

fn status(dir: &Path, fake: Fake) -> Status {
    let step = u64::from(fake.epochs) * fake.steps_per_epoch;
    Status {
        state: RunState::Finished,
        generation: 1,
        epoch: fake.epochs,
        epochs: fake.epochs,
        step,
        cursor: 0,
        samples_total: fake.steps_per_epoch * 64,
        incidents: 0,
        ranks_left_out: 0,
        turned: fovea_coordinator::status::Turned::default(),
        unsaved: None,
        last_incident: None,
        world: fake.ranks as usize,
        ranks: Vec::new(),
        samples_per_s: 96.0,
        loss: Some(0.12),
        eta_s: None,
        checkpoint: Some(CheckpointInfo {
            step,
            path: dir
                .join(format!("checkpoints/step-{step:08}"))
                .display()
                .to_string(),
            weights_blake3: "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
                .to_owned(),
            took_ms: 900,
        }),
        last_epoch: None,
        reason: format!("all {} epochs are trained", fake.epochs),
        summary: BTreeMap::new(),
    }
}
