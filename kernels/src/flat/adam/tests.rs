use super::*;
use crate::golden::{values, values_f32, with_threads};

const DEFAULT: AdamParams = AdamParams {
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    decoupled: false,
    step: 1,
    grad_scale: 1.0,
};

/// Parameters, both moments and the working copy, as bits or as numbers.
#[derive(Clone, Debug, PartialEq)]
struct State {
    params: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    working: Vec<bf16>,
}

impl State {
    fn new(params: &[f32]) -> Self {
        Self {
            params: params.to_vec(),
            m: vec![0.0; params.len()],
            v: vec![0.0; params.len()],
            working: vec![bf16::NAN; params.len()],
        }
    }

    fn step(&mut self, grads: &[f32], p: &AdamParams) {
        let working = Some(self.working.as_mut_slice());
        adam(
            &mut self.params,
            grads,
            &mut self.m,
            &mut self.v,
            working,
            p,
        )
        .unwrap();
    }
}

fn assert_relative(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= tolerance * want.abs().max(1e-12),
            "{name}[{i}]: {got:e} {want:e}"
        );
    }
}

#[test]
fn steps_are_those_of_torch() {
    let start = values_f32("adam.start");
    let grads = values_f32("adam.grads");
    let cases = [
        ("adam", DEFAULT),
        (
            "adam_decay",
            AdamParams {
                weight_decay: 1e-2,
                ..DEFAULT
            },
        ),
        (
            "adamw",
            AdamParams {
                weight_decay: 1e-1,
                decoupled: true,
                ..DEFAULT
            },
        ),
        (
            "adam_beta",
            AdamParams {
                beta1: 0.3,
                beta2: 0.98,
                eps: 1e-4,
                ..DEFAULT
            },
        ),
    ];
    for (name, base) in cases {
        let mut state = State::new(&start);
        for (i, (&lr, grads)) in values("adam.lr")
            .iter()
            .zip(grads.chunks(start.len()))
            .enumerate()
        {
            let step = i as u64 + 1;
            // Powers of two scale exactly.
            let doubled: Vec<f32> = grads.iter().map(|g| 2.0 * g).collect();
            state.step(
                &doubled,
                &AdamParams {
                    lr,
                    step,
                    grad_scale: 0.5,
                    ..base
                },
            );
            if step == 1 || step == 5 {
                let want = |what| values(&format!("adam.{name}.{step}.{what}"));
                // A few roundings per step, which PyTorch places differently (it fuses some).
                assert_relative(name, &state.params, &want("params"), 1e-6);
                assert_relative(name, &state.m, &want("m"), 2e-6);
                assert_relative(name, &state.v, &want("v"), 2e-6);
            }
            let rounded: Vec<bf16> = state.params.iter().map(|&p| bf16::from_f32(p)).collect();
            assert_eq!(state.working, rounded);
        }
    }
}

/// Against the textbook formula in f64, far into training where the bias corrections are 1.
#[test]
fn late_steps_are_those_of_the_formula() {
    let p = AdamParams {
        step: 1_000_000,
        weight_decay: 0.1,
        decoupled: true,
        ..DEFAULT
    };
    let mut state = State::new(&[0.5, -2.0]);
    state.m = vec![0.01, -0.02];
    state.v = vec![0.04, 0.09];
    state.step(&[0.3, 0.1], &p);
    for (i, (theta, m, v, g)) in [(0.5, 0.01, 0.04, 0.3), (-2.0, -0.02, 0.09, 0.1)]
        .into_iter()
        .enumerate()
    {
        let m: f64 = 0.9 * m + 0.1 * g;
        let v: f64 = 0.999 * v + 0.001 * g * g;
        let want = theta * (1.0 - 1e-3 * 0.1) - 1e-3 * m / (v.sqrt() + 1e-8);
        assert!((f64::from(state.params[i]) / want - 1.0).abs() < 2e-7);
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_processor() {
    let p = AdamParams {
        weight_decay: 1e-2,
        grad_scale: 0.3,
        step: 3,
        ..DEFAULT
    };
    for n in [0, 1, 17, CHUNK + 5, 2 * CHUNK + 31] {
        let wave = |f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
        let grads = wave(0.7);
        let mut base = State::new(&wave(0.3));
        base.m = wave(0.11);
        base.v = wave(0.23).iter().map(|x| x * x).collect();
        let run = |threads| {
            let mut state = base.clone();
            with_threads(threads, || state.step(&grads, &p));
            state
        };
        let one = run(1);
        assert_eq!(one, run(2));
        for level in SimdLevel::available() {
            let mut state = base.clone();
            let State {
                params,
                m,
                v,
                working,
            } = &mut state;
            adam_chunk_with_copy(
                level,
                params,
                &grads,
                m,
                v,
                working,
                AdamScalars::new(&p).unwrap(),
            );
            assert_eq!(one, state, "{level:?}");
            let mut state = base.clone();
            let State { params, m, v, .. } = &mut state;
            adam_chunk(level, params, &grads, m, v, AdamScalars::new(&p).unwrap());
            assert_eq!(
                (&one.params, &one.m, &one.v),
                (&state.params, &state.m, &state.v)
            );
        }
    }
}

#[test]
fn power_by_squaring_is_a_power() {
    for (base, exponent) in [
        (0.9, 1),
        (0.9, 2),
        (0.999, 1000),
        (0.999, 123_457),
        (0.0, 3),
    ] {
        let want = f64::powf(base, exponent as f64);
        // Squaring doubles the relative error.
        let tolerance = f64::EPSILON * exponent as f64;
        assert!((power(base, exponent) - want).abs() <= tolerance * want);
    }
    assert_eq!(power(0.9, u64::MAX), 0.0);
}

#[test]
fn bad_arguments_are_errors_and_leave_everything_untouched() {
    let run = |lengths: [usize; 5], p: &AdamParams| {
        let [params, grads, m, v, working] = lengths;
        let (mut params, mut m, mut v) = (vec![1.0; params], vec![0.0; m], vec![0.0; v]);
        let mut working = vec![bf16::ONE; working];
        let result = adam(
            &mut params,
            &vec![1.0; grads],
            &mut m,
            &mut v,
            Some(&mut working),
            p,
        );
        assert!(params.iter().all(|&p| p == 1.0));
        result.unwrap_err().to_string()
    };
    assert!(run([3, 4, 3, 3, 3], &DEFAULT).starts_with("grads has 4 elements"));
    assert!(run([3, 3, 2, 3, 3], &DEFAULT).starts_with("m has 2"));
    assert!(run([3, 3, 3, 0, 3], &DEFAULT).starts_with("v has 0"));
    assert!(run([3, 3, 3, 3, 5], &DEFAULT).starts_with("working has 5"));
    let n = [3; 5];
    assert!(run(n, &AdamParams { step: 0, ..DEFAULT }).contains("step is 0"));
    assert!(
        run(
            n,
            &AdamParams {
                lr: f64::NAN,
                ..DEFAULT
            }
        )
        .contains("lr is NaN")
    );
    assert!(
        run(
            n,
            &AdamParams {
                beta1: 1.0,
                ..DEFAULT
            }
        )
        .contains("beta1 is 1")
    );
    assert!(
        run(
            n,
            &AdamParams {
                beta2: -0.1,
                ..DEFAULT
            }
        )
        .contains("beta2")
    );
    assert!(
        run(
            n,
            &AdamParams {
                eps: f64::INFINITY,
                ..DEFAULT
            }
        )
        .contains("eps")
    );
    assert!(
        run(
            n,
            &AdamParams {
                weight_decay: -1.0,
                ..DEFAULT
            }
        )
        .contains("weight_decay")
    );
    assert!(
        run(
            n,
            &AdamParams {
                grad_scale: f64::NAN,
                ..DEFAULT
            }
        )
        .contains("grad_scale")
    );
}
