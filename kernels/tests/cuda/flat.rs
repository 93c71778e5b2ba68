//! Casts, sums, Adam.

use fovea_kernels::cuda::{AccumulateBf16, FusedAdam, SumSquares, ToBf16};
use fovea_kernels::flat::{self, AdamParams, AdamScalars};
use half::bf16;
use proptest::prelude::*;

use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

/// Values of every magnitude, made without a generator.
fn values(n: usize, salt: u32) -> Vec<f32> {
    (0..n as u32)
        .map(|k| {
            let [word, exponent, ..] = fovea_kernels::philox::philox4x32([k, salt, 0, 0], [1, 2]);
            let unit = word as f32 / u32::MAX as f32 - 0.5;
            unit * 2f32.powi((exponent % 40) as i32 - 20)
        })
        .collect()
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        0usize..70,
        Just(2048),
        2040usize..2060,
        0usize..10_000,
        (0usize..1000).prop_map(|n| 8 * n)
    ]
}

/// Distances from alignment: mostly none, because only then are wide accesses made.
fn shifts() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0usize), 1 => 0usize..8]
}

fn cast<R: Runner>(r: &R, source: &[f32], shifts: (usize, usize)) {
    let n = source.len();
    let mut want = vec![bf16::ZERO; n];
    flat::to_bf16(source, &mut want).unwrap();
    let src = Guarded::input(r, source, shifts.0);
    let dst = Guarded::<R, bf16>::output(r, n, shifts.1);
    r.run(&ToBf16 {
        src: src.address(),
        dst: dst.address(),
        n,
    });
    assert_bits("to_bf16", &dst.read(), &want);

    let src = Guarded::input(r, &want, shifts.0);
    for first in [true, false] {
        let old = values(n, 9);
        let dst = Guarded::inout(r, &old, shifts.1);
        r.run(&AccumulateBf16 {
            src: src.address(),
            dst: dst.address(),
            n,
            first,
        });
        let mut sum = old;
        flat::accumulate_bf16(&want, &mut sum, first).unwrap();
        assert_eq!(dst.read().len(), n);
        for (got, want) in dst.read().iter().zip(&sum) {
            // The processor chooses the payload of a NaN that went through an addition.
            let same = got.to_bits() == want.to_bits() || !first && got.is_nan() && want.is_nan();
            assert!(same, "accumulate {first}: {got} instead of {want}");
        }
    }
}

pub fn casts_have_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(60, &(lengths(), shifts(), shifts()), |(n, a, b)| {
        cast(r, &values(n, 1), (a, b));
    });
}

pub fn casts_of_every_kind_of_number<R: Runner>(r: &R) {
    let upper = (0..=u32::from(u16::MAX)).step_by(7);
    let all: Vec<f32> = upper
        .flat_map(|upper| {
            [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|lower| f32::from_bits(upper << 16 | lower))
        })
        .collect();
    cast(r, &all, (0, 0));
    cast(r, &all, (1, 0));
}

fn sum<R: Runner>(r: &R, x: &[f32], shift: usize) -> f64 {
    let total = Guarded::<R, f64>::output(r, 1, 0);
    let scratch = Guarded::<R, u8>::output(r, SumSquares::scratch_bytes(x.len()), 0);
    let x_on_device = Guarded::input(r, x, shift);
    r.run(&SumSquares {
        x: x_on_device.address(),
        n: x.len(),
        total: total.address(),
        scratch: scratch.address(),
    });
    total.read()[0]
}

pub fn sums_are_those_of_the_twin<R: Runner>(r: &R) {
    let compare = |x: &[f32], shift: usize| {
        let (got, want) = (sum(r, x, shift), flat::sum_squares(x));
        assert!(
            (got - want).abs() <= 1e-13 * want,
            "{got} instead of {want}"
        );
        assert_bits("again", &[sum(r, x, shift)], &[got]);
    };
    for_all(40, &(lengths(), shifts()), |(n, shift)| {
        compare(&values(n, 2), shift);
    });
    // Several loads per thread, more partial sums than threads.
    compare(&values((1 << 20) + 37, 3), 0);
    compare(&values((1 << 20) - 5, 3), 1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 1234, 4999] {
            let mut x = values(5000, 4);
            x[at] = bad;
            assert!(!sum(r, &x, 0).is_finite());
        }
    }
    assert!(sum(r, &vec![f32::MAX; 3000], 0).is_finite());
}

/// Buffers of an optimizer: parameters, gradients, moments.
fn state(n: usize) -> [Vec<f32>; 4] {
    let mut state = [1, 2, 3, 4].map(|salt| values(n, salt));
    state[3].iter_mut().for_each(|v| *v = v.abs());
    state
}

#[derive(Clone, Debug)]
struct Case {
    n: usize,
    params: AdamParams,
    working: Option<usize>,
    shift: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let beta = || prop_oneof![Just(0.9f64), 0.0f64..0.9999];
    let decay = prop_oneof![Just(0.0f64), 1e-4f64..0.5];
    (
        lengths(),
        (1e-5f64..0.1, beta(), beta(), 1e-10f64..1e-3, decay),
        (any::<bool>(), 1u64..2000, 1e-3f64..2.0),
        prop::option::of(shifts()),
        shifts(),
    )
        .prop_map(
            |(n, (lr, beta1, beta2, eps, weight_decay), rest, working, shift)| Case {
                n,
                params: AdamParams {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                    decoupled: rest.0,
                    step: rest.1,
                    grad_scale: rest.2,
                },
                working,
                shift,
            },
        )
}

pub fn adam_has_the_bits_of_the_twin<R: Runner>(r: &R) {
    for_all(120, &cases(), |case| {
        let n = case.n;
        let [params, grads, m, v] = state(n);
        let on_device = [&params, &m, &v].map(|x| Guarded::inout(r, x, case.shift));
        let grads_on_device = Guarded::input(r, &grads, case.shift);
        let working = Guarded::<R, bf16>::output(r, n, case.working.unwrap_or(0));
        let scalars = Guarded::input(r, &[AdamScalars::new(&case.params).unwrap()], 0);
        r.run(&FusedAdam {
            params: on_device[0].address(),
            grads: grads_on_device.address(),
            m: on_device[1].address(),
            v: on_device[2].address(),
            working: case.working.map_or(0, |_| working.address()),
            n,
            scalars: scalars.address(),
        });
        let (mut params, mut m, mut v) = (params, m, v);
        let mut copy = vec![bf16::ZERO; n];
        let copied = Some(&mut copy[..]);
        flat::adam(&mut params, &grads, &mut m, &mut v, copied, &case.params).unwrap();
        assert_bits("params", &on_device[0].read(), &params);
        assert_bits("m", &on_device[1].read(), &m);
        assert_bits("v", &on_device[2].read(), &v);
        if case.working.is_some() {
            assert_bits("working", &working.read(), &copy);
        }
    });
}
