//! Compares a GPU with the CPU: `fovea gpu-check`. It serves hosts on which the tests cannot be built.

mod steps;

use fovea_kernels::Augment;
use fovea_trainer::Result;
use fovea_trainer::gpu::{self, Gpu};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::facts::GpuFacts;
use super::kernels::{KernelEntry, Shapes, all};

/// Largest allowed deviation of results in f32.
const F32_LIMIT: f64 = 1e-5;
/// Largest allowed deviation of results that are rounded to bf16.
const BF16_LIMIT: f64 = 1e-2;
/// One case in so many is as large as in training.
const LARGE_EVERY: u32 = 8;
/// Number of training steps: enough to record one as a CUDA graph and to run that graph.
const STEPS: u32 = 8;
/// Number of times that the loss is computed to compare its bits.
const RUNS: usize = 10;

/// The result of one comparison between GPU and CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Name of the kernel or of the quantity that was compared.
    pub name: String,
    /// Number of different inputs, or of training steps.
    pub cases: u32,
    /// Largest deviation. For kernels it is `|got - want| / max(1, |want|)` by element; infinite where only one side is
    /// finite, and after an error.
    pub deviation: f64,
    /// Largest deviation that passes.
    pub limit: f64,
    /// Whether all results agreed in every bit.
    pub same_bits: bool,
    /// Whether the deviation is within the limit and no error occurred.
    pub passed: bool,
    /// The error that stopped the comparison; none without one.
    pub problem: Option<String>,
}

/// The result of `fovea gpu-check`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// The GPU that was compared, with its driver.
    pub gpu: GpuFacts,
    /// Seed of the random inputs.
    pub seed: u64,
    /// The comparisons: kernels, the repeated loss, then training steps.
    pub checks: Vec<Check>,
}

impl CheckReport {
    /// Whether all comparisons passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

/// Compares GPU `ordinal` with the CPU: every kernel with its twin on `cases` random inputs, the loss with itself, and,
/// `with_steps`, training steps.
///
/// # Errors
/// There is no such GPU. An error within a comparison goes into the report instead.
pub fn check_gpu(ordinal: u32, cases: u32, seed: u64, with_steps: bool) -> Result<CheckReport> {
    let open = || Gpu::open(ordinal, gpu::cache_folder().as_deref());
    let gpu = open()?;
    let facts = GpuFacts::of(&gpu)?;
    let mut checks = kernels(&gpu, cases, seed);
    if with_steps {
        checks.extend(steps::check(Ok(gpu), STEPS, false));
        checks.extend(steps::check(open(), STEPS, true));
    }
    Ok(CheckReport {
        gpu: facts,
        seed,
        checks,
    })
}

fn kernels(gpu: &Gpu, cases: u32, seed: u64) -> Vec<Check> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut checks: Vec<Check> = all()
        .iter()
        .map(|entry| {
            let limit = if entry.bf16 { BF16_LIMIT } else { F32_LIMIT };
            let compared = compare(gpu, entry, cases, &mut rng);
            Check::new(&entry.name, cases, limit, compared)
        })
        .collect();
    for loss in all().iter().filter(|entry| entry.name.ends_with("_loss")) {
        let name = format!("{}, {RUNS} runs", loss.name);
        let again = repeat(gpu, loss, &large(), &mut rng);
        checks.push(Check::new(&name, 1, 0.0, again));
    }
    checks
}

impl Check {
    fn new(name: &str, cases: u32, limit: f64, compared: Result<Deviation>) -> Self {
        let (deviation, problem) = match compared {
            Ok(deviation) => (deviation, None),
            Err(error) => (Deviation::UNKNOWN, Some(error.to_string())),
        };
        Self {
            name: name.to_owned(),
            cases,
            deviation: deviation.largest,
            limit,
            same_bits: deviation.same_bits,
            passed: problem.is_none() && deviation.largest <= limit,
            problem,
        }
    }
}

/// How far two results differ; fields as in [`Check`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Deviation {
    largest: f64,
    same_bits: bool,
}

impl Deviation {
    const NONE: Self = Self {
        largest: 0.0,
        same_bits: true,
    };
    const UNKNOWN: Self = Self {
        largest: f64::INFINITY,
        same_bits: false,
    };

    /// Compares element by element. Another length, or a number that is finite on one side only, is infinitely far.
    fn between(got: &[f64], want: &[f64]) -> Self {
        if got.len() != want.len() {
            return Self::UNKNOWN;
        }
        let pairs = || got.iter().zip(want);
        let apart = |(got, want): (&f64, &f64)| match (got - want).abs() / want.abs().max(1.0) {
            _ if got.to_bits() == want.to_bits() => 0.0,
            off if off.is_finite() => off,
            _ => f64::INFINITY,
        };
        Self {
            largest: pairs().map(apart).fold(0.0, f64::max),
            same_bits: pairs().all(|(got, want)| got.to_bits() == want.to_bits()),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            largest: self.largest.max(other.largest),
            same_bits: self.same_bits && other.same_bits,
        }
    }
}

fn compare(gpu: &Gpu, entry: &KernelEntry, cases: u32, rng: &mut dyn RngCore) -> Result<Deviation> {
    let mut all = Deviation::NONE;
    for case in 0..cases {
        let shapes = match case % LARGE_EVERY == LARGE_EVERY - 1 {
            true => large(),
            false => small(rng),
        };
        let trial = (entry.make)(gpu, &shapes, rng)?;
        let put = trial.kernel(gpu);
        // The trial's memory is freed below: no work on it may be left.
        gpu.synchronize()?;
        put?;
        all = all.and(Deviation::between(&trial.got()?, &trial.twin()?));
    }
    Ok(all)
}

/// Computes the same loss and gradient several times and compares the bits with the first result.
fn repeat(
    gpu: &Gpu,
    entry: &KernelEntry,
    shapes: &Shapes,
    rng: &mut dyn RngCore,
) -> Result<Deviation> {
    let trial = (entry.make)(gpu, shapes, rng)?;
    let mut all = Deviation::NONE;
    let mut first: Option<Vec<f64>> = None;
    for _ in 0..RUNS {
        trial.kernel(gpu)?;
        gpu.synchronize()?;
        let got = trial.got()?;
        all = match &first {
            Some(first) => all.and(Deviation::between(&got, first)),
            None => all,
        };
        first.get_or_insert(got);
    }
    Ok(all)
}

/// Random sizes around those at which kernels take another path: multiples of 8, of a warp, of a block, and others.
fn small(rng: &mut dyn RngCore) -> Shapes {
    let mut side = || match rng.random_bool(0.3) {
        true => 8 * rng.random_range(1..9),
        false => rng.random_range(1..70),
    };
    let (patch, view) = (side(), side());
    Shapes {
        images: rng.random_range(1..4),
        size: patch + rng.random_range(0..40),
        patches: rng.random_range(1..7),
        patch,
        view,
        augment: rng.random_bool(0.9).then(|| Augment {
            flip: rng.random(),
            quarter_turns: rng.random(),
            offset: rng.random_range(0..30),
            brightness: rng.random_range(0.0..1.0),
            contrast: rng.random_range(0.0..1.0),
            saturation: rng.random_range(0.0..1.0),
            // Half of them none, so that both kinds of kernels are checked.
            rotation: if rng.random() {
                rng.random_range(0.0..180.0)
            } else {
                0.0
            },
            scale: if rng.random() {
                rng.random_range(0.0..0.9)
            } else {
                0.0
            },
            erasing: if rng.random() {
                rng.random_range(0.0..1.0)
            } else {
                0.0
            },
        }),
        rows: rng.random_range(1..700),
        parameters: rng.random_range(1..20_000),
    }
}

/// Sizes as in training: several tiles per block, several loads per thread, more partial sums than threads.
fn large() -> Shapes {
    Shapes {
        images: 3,
        size: 300,
        patches: 9,
        patch: 128,
        view: 224,
        rows: (1 << 18) + 19,
        parameters: (1 << 20) + 37,
        ..Shapes::full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_emulate::driver;
    use fovea_trainer::ops::NormEngine;

    #[test]
    fn deviations_are_relative_above_one_and_strict_about_what_is_not_finite() {
        let off = |got: f64, want: f64| Deviation::between(&[got], &[want]);
        assert_eq!(off(1.5, 1.5), Deviation::NONE);
        assert_eq!(off(0.25, 0.0).largest, 0.25);
        assert_eq!(off(110.0, 100.0).largest, 0.1);
        assert_eq!(off(f64::NAN, f64::NAN), Deviation::NONE, "the same bits");
        assert_eq!(off(f64::NAN, 1.0).largest, f64::INFINITY);
        assert_eq!(off(1.0, f64::NAN).largest, f64::INFINITY);
        assert!(!off(0.0, -0.0).same_bits);
        assert_eq!(Deviation::between(&[1.0], &[]), Deviation::UNKNOWN);
    }

    /// On the emulated GPU all kernels pass, and a kernel that does not run fails.
    #[test]
    fn kernels_are_compared() {
        let _alone = crate::emulated::alone();
        let gpu = crate::emulated::gpu(NormEngine::Fused);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let entries = all();
        for entry in &entries {
            let compared = compare(&gpu, entry, 3, &mut rng).expect("compared");
            let limit = if entry.bf16 { BF16_LIMIT } else { F32_LIMIT };
            assert!(compared.largest <= limit, "{}: {compared:?}", entry.name);
            // These compute in f32 what the twin computes in f64, or sum in another order.
            let rounded = entry.name.ends_with("_loss") || entry.name == "sum_squares";
            assert!(
                compared.same_bits || rounded,
                "{}: {compared:?}",
                entry.name
            );
        }
        let losses: Vec<_> = entries
            .iter()
            .filter(|e| e.name.ends_with("_loss"))
            .collect();
        assert_eq!(losses.len(), fovea_kernels::loss::LOSSES.len());
        for loss in losses {
            let again = repeat(&gpu, loss, &small(&mut rng), &mut rng).expect("losses");
            assert_eq!(again, Deviation::NONE, "{}", loss.name);
        }
        driver::check().expect("nothing forbidden");
        // The outputs of a kernel that has not run.
        let trial = (entries[0].make)(&gpu, &small(&mut rng), &mut rng).expect("buffers");
        let off = Deviation::between(&trial.got().expect("zeros"), &trial.twin().expect("pixels"));
        let check = Check::new("nothing ran", 1, F32_LIMIT, Ok(off));
        assert!(!check.passed && check.deviation > 0.01, "{check:?}");
    }

    #[test]
    fn an_error_is_a_failure_that_is_told() {
        let error = fovea_trainer::Error::Internal("the cable".to_owned());
        let check = Check::new("x", 1, 1.0, Err(error));
        assert!(!check.passed && check.problem.expect("told").contains("the cable"));
    }
}
