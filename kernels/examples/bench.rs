//! Measures the kernels: `cargo run --release -p fovea-kernels --example bench [threads...]`.
//!
//! GB/s count the bytes that the line names, over the best of several runs. A copy of the same size is the yardstick
//! for the passes over flat buffers.

use std::hint::black_box;
use std::time::Instant;

use fovea_kernels::flat::{self, AdamParams};
use fovea_kernels::loss::{self, LossSettings};
use fovea_kernels::{
    Augment, BatchMut, CropSpec, ImageU8, global_view, patch_crop, resize_antialias,
};
use fovea_task::Label;
use half::bf16;
use rayon::prelude::*;

/// Parameters of the hybrid model, rounded.
const PARAMETERS: usize = 22_500_000;
const RUNS: usize = 15;

/// Runs `f` and prints its best and median time, and the rate of `bytes` per best time.
fn measure(name: &str, bytes: usize, mut f: impl FnMut()) {
    f();
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], seconds[RUNS / 2]);
    println!(
        "  {name:<44} {:>9.3} ms (median {:>9.3}) {:>7.2} GB/s",
        best * 1e3,
        median * 1e3,
        bytes as f64 / best / 1e9
    );
}

fn crops() -> fovea_kernels::Result<()> {
    let (side, size, images, per_image) = (1280, 128, 4, 16);
    let data: Vec<Vec<u8>> = (0..images)
        .map(|n| {
            (0..side * side * 3)
                .map(|i| (i * 31 + i / 977 + n * 7) as u8)
                .collect()
        })
        .collect();
    let views: Vec<ImageU8<'_>> = data
        .iter()
        .map(|data| ImageU8 {
            data,
            height: side,
            width: side,
        })
        .collect();
    let specs: Vec<CropSpec> = (0..images * per_image)
        .map(|i| CropSpec {
            image: i / per_image,
            y: (i * 7 % 10 * size) as u32,
            x: (i * 3 % 10 * size) as u32,
            sample_id: i as u64,
        })
        .collect();
    let geometry = Augment {
        flip: true,
        quarter_turns: true,
        offset: 16,
        ..Augment::default()
    };
    let tone = Augment {
        brightness: 0.2,
        contrast: 0.2,
        ..geometry
    };
    let all = Augment {
        saturation: 0.2,
        ..tone
    };
    let turning = Augment {
        rotation: 20.0,
        scale: 0.1,
        erasing: 0.25,
        ..all
    };
    let elements = specs.len() * size * size * 3;
    let mut full = vec![0.0f32; elements];
    let mut short = vec![bf16::ZERO; elements];
    let mut result = Ok(());
    for (name, aug) in [
        ("none", None),
        ("flips, turns, offset", Some(&geometry)),
        ("+ brightness, contrast", Some(&tone)),
        ("+ saturation", Some(&all)),
        ("+ rotation, scale, erasing", Some(&turning)),
    ] {
        measure(
            &format!("patch_crop 64 x 128, f32, {name}"),
            elements * 4,
            || {
                let out = BatchMut::F32(&mut full);
                result = patch_crop(&views, &specs, size, 0, 0, aug, out);
            },
        );
        result.clone()?;
        measure(
            &format!("patch_crop 64 x 128, bf16, {name}"),
            elements * 2,
            || {
                let out = BatchMut::Bf16(&mut short);
                result = patch_crop(&views, &specs, size, 0, 0, aug, out);
            },
        );
        result.clone()?;
    }
    for side in [256, 512] {
        let mut resized = Vec::new();
        let name = format!("resize 1280 -> {side} (bytes read)");
        let mut result = Ok(());
        measure(&name, views[0].data.len(), || {
            match resize_antialias(&views[0], side, side) {
                Ok(out) => resized = out,
                Err(error) => result = Err(error),
            }
        });
        result?;
        let mut out = vec![0.0f32; resized.len()];
        let mut result = Ok(());
        measure(
            &format!("global_view {side}, f32, all"),
            out.len() * 4,
            || {
                let batch = BatchMut::F32(&mut out);
                result = global_view(&resized, side, 0, 0, 3, Some(&all), batch);
            },
        );
        result?;
    }
    Ok(())
}

fn focal() -> fovea_kernels::Result<()> {
    for (rows, gamma) in [(68, 2.0), (1 << 18, 2.0), (1 << 18, 1.5)] {
        let logits: Vec<f32> = (0..rows * 4)
            .map(|i| ((i * 37) % 101) as f32 / 10.0 - 5.0)
            .collect();
        let labels: Vec<Label> = (0..rows).map(|i| Label(i % 16)).collect();
        let settings = LossSettings {
            gamma,
            positive_weight: 0.25,
            negative_weight: 0.75,
            ..LossSettings::plain(4)
        };
        let focal = loss::build("focal", &settings)?;
        let mut dlogits = vec![0.0; logits.len()];
        let mut result = Ok(0.0);
        measure(
            &format!("focal loss {rows} x 4, gamma {gamma}"),
            logits.len() * 8,
            || {
                result = focal.host(&logits, &labels, 1.0, &mut dlogits);
            },
        );
        result.clone()?;
    }
    Ok(())
}

fn flat_passes() -> fovea_kernels::Result<()> {
    let n = PARAMETERS;
    let grads: Vec<f32> = (0..n).map(|i| (i % 1000) as f32 * 1e-5).collect();
    let (mut params, mut m, mut v) = (grads.clone(), grads.clone(), grads.clone());
    let mut short = vec![bf16::ZERO; n];
    let mut result = Ok(());
    measure("copy (8 bytes per element)", n * 8, || {
        let chunk = 1 << 20;
        params
            .par_chunks_mut(chunk)
            .zip(grads.par_chunks(chunk))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
    measure("sum_squares (4)", n * 4, || {
        black_box(flat::sum_squares(&grads));
    });
    measure("add_assign (12)", n * 12, || {
        result = flat::add_assign(&mut params, &grads)
    });
    result.clone()?;
    measure("to_bf16 (6)", n * 6, || {
        result = flat::to_bf16(&grads, &mut short)
    });
    result.clone()?;
    measure("accumulate_bf16, first (6)", n * 6, || {
        result = flat::accumulate_bf16(&short, &mut params, true);
    });
    result.clone()?;
    measure("accumulate_bf16 (10)", n * 10, || {
        result = flat::accumulate_bf16(&short, &mut params, false);
    });
    result.clone()?;
    let p = AdamParams {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 1e-5,
        decoupled: false,
        step: 10,
        grad_scale: 1.0,
    };
    measure("adam, f32 only (28)", n * 28, || {
        result = flat::adam(&mut params, &grads, &mut m, &mut v, None, &p);
    });
    result.clone()?;
    measure("adam with bf16 copy (30)", n * 30, || {
        result = flat::adam(&mut params, &grads, &mut m, &mut v, Some(&mut short), &p);
    });
    result
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut threads = std::env::args()
        .skip(1)
        .map(|arg| arg.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    if threads.is_empty() {
        threads = vec![1, rayon::current_num_threads()];
    }
    for threads in threads {
        println!("{threads} threads");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        pool.install(|| crops().and_then(|()| focal()).and_then(|()| flat_passes()))?;
    }
    Ok(())
}
