//! Batch normalisation against the textbook in f64.

use super::{Numbers, PLAIN, Sample, assert_close, bits, everywhere, wide};
use crate::norm::{
    Activation, ActivationGate, Backward, BatchStats, Forward, Gradients, bn_train_backward,
    bn_train_forward, eval_forward, train_backward, train_forward,
};
use crate::{Error, Result};
use half::bf16;
use proptest::prelude::*;

const EPS: f32 = 1e-5;

/// A layer with all of its optional inputs.
struct Case<T> {
    rows: usize,
    channels: usize,
    x: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
    second: Vec<T>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl<T: Sample> Case<T> {
    fn new(rows: usize, channels: usize, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let elements = rows * channels;
        let (spread, offset) = (numbers.floats(channels), numbers.floats(channels));
        let x = (0..elements)
            .map(|i| {
                let c = i % channels;
                T::of(numbers.value() * (0.5 + spread[c].abs()) + 2.0 * offset[c])
            })
            .collect();
        Self {
            rows,
            channels,
            x,
            residual: T::many(&mut numbers, elements),
            dy: T::many(&mut numbers, elements),
            second: T::many(&mut numbers, elements),
            weight: numbers.floats(channels),
            bias: numbers.floats(channels),
        }
    }

    fn forward(&self, residual: bool, activation: Activation) -> Forward<'_, T> {
        Forward {
            x: &self.x,
            rows: self.rows,
            channels: self.channels,
            weight: &self.weight,
            bias: &self.bias,
            residual: residual.then_some(&self.residual),
            activation,
            eps: EPS,
        }
    }

    fn backward<'a>(&'a self, stats: &'a Stats, gate: ActivationGate<'a, T>) -> Backward<'a, T> {
        Backward {
            x: &self.x,
            rows: self.rows,
            channels: self.channels,
            dy: &self.dy,
            second_dy: None,
            gate,
            weight: &self.weight,
            mean: &stats.mean,
            invstd: &stats.invstd,
        }
    }

    fn column(&self, values: &[T], channel: usize) -> Vec<f64> {
        let rows = values.chunks_exact(self.channels);
        rows.map(|row| row[channel].wide()).collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Stats {
    mean: Vec<f32>,
    invstd: Vec<f32>,
    var_unbiased: Vec<f32>,
}

impl Stats {
    fn new(channels: usize) -> Self {
        Self {
            mean: vec![0.0; channels],
            invstd: vec![0.0; channels],
            var_unbiased: vec![0.0; channels],
        }
    }

    fn borrow(&mut self) -> BatchStats<'_> {
        BatchStats {
            mean: &mut self.mean,
            invstd: &mut self.invstd,
            var_unbiased: &mut self.var_unbiased,
        }
    }
}

/// Mean and biased variance.
fn textbook(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean) * (v - mean));
    (mean, squares.sum::<f64>() / n)
}

/// The logistic function in f64.
fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn check_forward<T: Sample>(rows: usize, channels: usize, residual: bool, activation: Activation) {
    let case = Case::<T>::new(rows, channels, (rows * 1000 + channels) as u64);
    let (out, stats) = everywhere(|exec| {
        let mut out = vec![T::default(); rows * channels];
        let mut stats = Stats::new(channels);
        train_forward(
            exec,
            &case.forward(residual, activation),
            &mut out,
            &mut stats.borrow(),
        )
        .expect("good shapes");
        (bits(&out), (out, stats))
    })
    .1;
    for c in 0..channels {
        let x = case.column(&case.x, c);
        let (mean, var) = textbook(&x);
        let n = rows as f64;
        let invstd = 1.0 / (var + f64::from(EPS)).sqrt();
        assert_close("mean", &[stats.mean[c].into()], &[mean], 1e-6, 1e-6);
        // Up to 1,024 squares are added in f32, one after the other.
        assert_close("invstd", &[stats.invstd[c].into()], &[invstd], 0.0, 1e-5);
        let unbiased = var * n / (n - 1.0);
        assert_close(
            "var",
            &[stats.var_unbiased[c].into()],
            &[unbiased],
            0.0,
            2e-5,
        );
        let skip = case.column(&case.residual, c);
        let expected: Vec<f64> = x
            .iter()
            .zip(skip)
            .map(|(x, skip)| {
                let (w, b) = (f64::from(case.weight[c]), f64::from(case.bias[c]));
                let y = w * (x - mean) * invstd + b + if residual { skip } else { 0.0 };
                match activation {
                    Activation::None => y,
                    Activation::Relu => y.max(0.0),
                    Activation::Silu => y * sigmoid(y),
                }
            })
            .collect();
        assert_close("out", &case.column(&out, c), &expected, 1e-5, T::STEP);
    }
}

#[test]
fn forward_is_the_textbook() {
    for (rows, channels) in [(2, 1), (5, 3), (33, 64), (700, 67), (300, 130), (1100, 40)] {
        for (residual, activation) in [
            (false, Activation::None),
            (false, Activation::Relu),
            (false, Activation::Silu),
            (true, Activation::None),
            (true, Activation::Relu),
        ] {
            check_forward::<f32>(rows, channels, residual, activation);
            check_forward::<bf16>(rows, channels, residual, activation);
        }
    }
}

/// Gradients by the textbook: `(dx, dweight, dbias)` of one channel, `g` being the gated gradient.
fn textbook_backward(x: &[f64], g: &[f64], weight: f64) -> (Vec<f64>, f64, f64) {
    let (mean, var) = textbook(x);
    let n = x.len() as f64;
    let invstd = 1.0 / (var + f64::from(EPS)).sqrt();
    let xhat: Vec<f64> = x.iter().map(|x| (x - mean) * invstd).collect();
    let dbias: f64 = g.iter().sum();
    let dweight: f64 = g.iter().zip(&xhat).map(|(g, x)| g * x).sum();
    let dx = g
        .iter()
        .zip(&xhat)
        .map(|(g, xhat)| weight * invstd * (g - dbias / n - xhat * dweight / n));
    (dx.collect(), dweight, dbias)
}

/// The textbook's gradient is the derivative of the textbook's value.
#[test]
fn textbook_gradient_matches_differences() {
    let mut numbers = Numbers::new(7);
    let x: Vec<f64> = (0..9).map(|_| numbers.value().into()).collect();
    let g: Vec<f64> = (0..9).map(|_| numbers.value().into()).collect();
    let loss = |x: &[f64], w: f64| {
        let (mean, var) = textbook(x);
        let invstd = 1.0 / (var + f64::from(EPS)).sqrt();
        let y = x.iter().map(|x| w * (x - mean) * invstd);
        y.zip(&g).map(|(y, g)| y * g).sum::<f64>()
    };
    let (dx, dweight, _) = textbook_backward(&x, &g, 1.3);
    let h = 1e-5;
    for i in 0..x.len() {
        let (mut up, mut down) = (x.clone(), x.clone());
        up[i] += h;
        down[i] -= h;
        let slope = (loss(&up, 1.3) - loss(&down, 1.3)) / (2.0 * h);
        assert_close("dx", &[dx[i]], &[slope], 1e-7, 1e-6);
    }
    let slope = (loss(&x, 1.3 + h) - loss(&x, 1.3 - h)) / (2.0 * h);
    assert_close("dweight", &[dweight], &[slope], 1e-7, 1e-6);
}

#[derive(Clone, Debug, PartialEq)]
struct Outcome<T> {
    dx: Vec<T>,
    dresidual: Option<Vec<T>>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

impl<T: Sample> Outcome<T> {
    fn new(elements: usize, channels: usize, residual: bool) -> Self {
        Self {
            dx: vec![T::default(); elements],
            dresidual: residual.then(|| vec![T::default(); elements]),
            dweight: vec![0.0; channels],
            dbias: vec![0.0; channels],
        }
    }

    fn borrow(&mut self) -> Gradients<'_, T> {
        Gradients {
            dx: &mut self.dx,
            dresidual: self.dresidual.as_deref_mut(),
            dweight: &mut self.dweight,
            dbias: &mut self.dbias,
        }
    }
}

fn check_backward<T: Sample>(
    rows: usize,
    channels: usize,
    residual: bool,
    activation: Activation,
    two: bool,
) {
    let case = Case::<T>::new(rows, channels, (rows * 77 + channels) as u64);
    let mut y = vec![T::default(); rows * channels];
    let mut stats = Stats::new(channels);
    train_forward(
        PLAIN,
        &case.forward(residual, activation),
        &mut y,
        &mut stats.borrow(),
    )
    .expect("good shapes");
    let gate = match (activation, residual) {
        (Activation::None, _) => ActivationGate::Open,
        (Activation::Relu, true) => ActivationGate::Output(y.as_slice()),
        (Activation::Relu, false) => ActivationGate::Input { bias: &case.bias },
        (Activation::Silu, _) => ActivationGate::Silu { bias: &case.bias },
    };
    let run = |exec, gate| {
        let mut grads = Outcome::new(rows * channels, channels, residual);
        let mut backward = case.backward(&stats, gate);
        backward.second_dy = two.then_some(&case.second);
        train_backward(exec, &backward, &mut grads.borrow()).expect("good shapes");
        grads
    };
    let actual = everywhere(|exec| run(exec, gate));
    if activation == Activation::Relu {
        let from_output = run(PLAIN, ActivationGate::Output(&y));
        assert!(from_output == actual, "the two gates differ");
    }
    for c in 0..channels {
        let (x, dy) = (case.column(&case.x, c), case.column(&case.dy, c));
        let (second, y) = (case.column(&case.second, c), case.column(&y, c));
        let mut g = Vec::new();
        for i in 0..rows {
            // The sum of two gradients is stored as an element before its use.
            let sum = if two {
                T::of((dy[i] + second[i]) as f32).wide()
            } else {
                dy[i]
            };
            g.push(match activation {
                Activation::None => sum,
                Activation::Relu if y[i] <= 0.0 => 0.0,
                Activation::Relu => sum,
                Activation::Silu => {
                    let xhat = (x[i] - f64::from(stats.mean[c])) * f64::from(stats.invstd[c]);
                    let z = xhat * f64::from(case.weight[c]) + f64::from(case.bias[c]);
                    let s = sigmoid(z);
                    sum * (s + z * s * (1.0 - s))
                }
            });
        }
        let (dx, dweight, dbias) = textbook_backward(&x, &g, case.weight[c].into());
        let size = (rows as f64).sqrt();
        assert_close(
            "dbias",
            &[actual.dbias[c].into()],
            &[dbias],
            2e-6 * size,
            1e-6,
        );
        assert_close(
            "dweight",
            &[actual.dweight[c].into()],
            &[dweight],
            1e-5 * size,
            1e-5,
        );
        assert_close("dx", &case.column(&actual.dx, c), &dx, 2e-5, T::STEP);
        if let Some(dresidual) = &actual.dresidual {
            assert_eq!(case.column(dresidual, c), g);
        }
    }
}

#[test]
fn backward_is_the_textbook() {
    for (rows, channels) in [(2, 1), (33, 64), (700, 67), (1100, 40)] {
        for (residual, activation) in [
            (false, Activation::None),
            (false, Activation::Relu),
            (false, Activation::Silu),
            (true, Activation::Relu),
        ] {
            check_backward::<f32>(rows, channels, residual, activation, false);
            check_backward::<bf16>(rows, channels, residual, activation, false);
        }
        check_backward::<f32>(rows, channels, true, Activation::Relu, true);
        check_backward::<bf16>(rows, channels, true, Activation::Relu, true);
        check_backward::<bf16>(rows, channels, true, Activation::None, true);
    }
}

/// Data that defeat a plain sum of squares: a mean far above the deviation, a first row unlike the others.
#[test]
fn statistics_survive_large_means_and_odd_first_rows() {
    let rows = 3000;
    let mut numbers = Numbers::new(3);
    let mut x = Vec::new();
    for row in 0..rows {
        let v = numbers.value();
        let head = if row < 8 { 0.0 } else { 1000.0 };
        x.extend([1e4 + v, if row == 0 { -1e4 } else { v }, head + v, 1e4]);
    }
    let case = Case::<f32> {
        rows,
        channels: 4,
        weight: vec![1.0; 4],
        bias: vec![0.0; 4],
        residual: vec![],
        dy: vec![],
        second: vec![],
        x,
    };
    let mut stats = Stats::new(4);
    let mut out = vec![0.0; rows * 4];
    bn_train_forward(
        &case.forward(false, Activation::None),
        &mut out,
        &mut stats.borrow(),
    )
    .expect("shapes");
    for c in 0..4 {
        let (mean, var) = textbook(&case.column(&case.x, c));
        let unbiased = var * rows as f64 / (rows - 1) as f64;
        let deviation = var.sqrt();
        assert_close(
            "mean",
            &[stats.mean[c].into()],
            &[mean],
            2e-5 * deviation,
            1e-7,
        );
        assert_close(
            "var",
            &[stats.var_unbiased[c].into()],
            &[unbiased],
            0.0,
            2e-5,
        );
    }
}

#[test]
fn a_nan_is_seen_in_all_of_its_channel_and_nowhere_else() {
    let mut case = Case::<bf16>::new(50, 64, 1);
    case.x[64 * 17 + 5] = bf16::NAN;
    let mut stats = Stats::new(64);
    let mut out = vec![bf16::ZERO; 50 * 64];
    for (residual, activation) in [(true, Activation::Relu), (false, Activation::Silu)] {
        let forward = case.forward(residual, activation);
        bn_train_forward(&forward, &mut out, &mut stats.borrow()).expect("shapes");
        for (i, y) in out.iter().enumerate() {
            assert_eq!(y.is_nan(), i % 64 == 5, "{activation:?}: element {i}");
        }
    }
}

#[test]
fn evaluation_uses_the_given_statistics() {
    let case = Case::<bf16>::new(90, 70, 4);
    let mut numbers = Numbers::new(5);
    let mean = numbers.floats(70);
    let var: Vec<f32> = numbers.floats(70).iter().map(|v| v.abs()).collect();
    let out = everywhere(|exec| {
        let mut out = vec![bf16::ZERO; 90 * 70];
        eval_forward(
            exec,
            &case.forward(true, Activation::Relu),
            &mean,
            &var,
            &mut out,
        )
        .expect("shapes");
        out
    });
    let expected: Vec<f64> = (0..90 * 70)
        .map(|i| {
            let c = i % 70;
            let invstd = 1.0 / (f64::from(var[c]) + f64::from(EPS)).sqrt();
            let xhat = (case.x[i].wide() - f64::from(mean[c])) * invstd;
            let y = xhat * f64::from(case.weight[c]) + f64::from(case.bias[c]);
            (y + case.residual[i].wide()).max(0.0)
        })
        .collect();
    assert_close("out", &wide(&out), &expected, 1e-4, bf16::STEP);
}

fn refusal(result: Result<()>) -> String {
    let message = result.expect_err("must be refused").to_string();
    assert!(message.contains("\n  help: "), "{message}");
    message
}

#[test]
fn wrong_calls_are_refused_in_words() {
    let case = Case::<f32>::new(4, 3, 1);
    let mut stats = Stats::new(3);
    let mut out = vec![0.0; 11];
    let input = case.forward(true, Activation::Relu);
    let result = bn_train_forward(&input, &mut out, &mut stats.borrow());
    assert_eq!(
        refusal(result).lines().next(),
        Some("out has 11 elements, its shape needs 12")
    );
    let mut out = vec![0.0; 12];
    let silu = case.forward(true, Activation::Silu);
    let result = bn_train_forward(&silu, &mut out, &mut stats.borrow());
    assert!(refusal(result).starts_with("residual is given, the limit is none for a layer with"));
    let mut one = input;
    (one.rows, one.x, one.residual) = (1, &case.x[..3], None);
    let result = bn_train_forward(&one, &mut out[..3], &mut stats.borrow());
    assert!(refusal(result).starts_with("rows is 1, the limit is 2 or more"));
    let mut huge = input;
    (huge.rows, huge.channels) = (usize::MAX, 3);
    let result = bn_train_forward(&huge, &mut out, &mut stats.borrow());
    assert!(matches!(result, Err(Error::Overflow { .. })));

    let mut grads = Outcome::new(12, 3, false);
    let mut backward = case.backward(&stats, ActivationGate::Open);
    backward.second_dy = Some(&case.second);
    let result = bn_train_backward(&backward, &mut grads.borrow());
    assert!(refusal(result).starts_with("second_dy is given without it"));
    let mut behind = Outcome::new(12, 3, true);
    let silu = case.backward(&stats, ActivationGate::Silu { bias: &case.bias });
    let result = bn_train_backward(&silu, &mut behind.borrow());
    assert!(refusal(result).starts_with("dresidual is given, the limit is none for a layer with"));
    let short = ActivationGate::Input {
        bias: &case.bias[..2],
    };
    let result = bn_train_backward(&case.backward(&stats, short), &mut grads.borrow());
    assert!(refusal(result).starts_with("gate bias has 2 elements"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Shapes around the block and task boundaries: the same bits in every way.
    #[test]
    fn bits_never_depend_on_threads_or_instructions(
        blocks in 0usize..4, extra in 1usize..40, channels in 1usize..150, seed: u64, silu: bool,
    ) {
        let rows = (blocks * crate::norm::block_rows(channels) + extra).max(2);
        let case = Case::<bf16>::new(rows, channels, seed);
        everywhere(|exec| {
            let mut y = vec![bf16::ZERO; rows * channels];
            let mut stats = Stats::new(channels);
            let (activation, gate) = if silu {
                (Activation::Silu, ActivationGate::Silu { bias: &case.bias })
            } else {
                (Activation::Relu, ActivationGate::Input { bias: &case.bias })
            };
            let forward = case.forward(false, activation);
            train_forward(exec, &forward, &mut y, &mut stats.borrow()).expect("shapes");
            let mut grads = Outcome::new(rows * channels, channels, false);
            let backward = case.backward(&stats, gate);
            train_backward(exec, &backward, &mut grads.borrow()).expect("shapes");
            (bits(&y), stats, grads)
        });
    }
}
