//! The poolings and the fused stem.

use super::{Numbers, Sample, assert_close, bits, everywhere, wide};
use crate::norm::pool::{maxpool_backward, maxpool_forward};
use crate::norm::{BatchStats, PoolShape, StemBackward, StemForward, StemOutput};
use crate::norm::{average, avgpool_forward, maxpool3x3s2_forward, stem};
use half::bf16;

const SHAPES: [PoolShape; 6] = [
    shape(1, 1, 1, 3),
    shape(2, 4, 6, 64),
    shape(3, 7, 5, 32),
    shape(1, 2, 9, 70),
    shape(2, 33, 16, 40),
    shape(5, 12, 12, 128),
];

const fn shape(n: usize, h: usize, w: usize, channels: usize) -> PoolShape {
    PoolShape { n, h, w, channels }
}

/// For each output element, the input positions of its window with their codes, in row-major order.
fn windows(s: PoolShape) -> Vec<Vec<(usize, u8)>> {
    let mut all = Vec::new();
    for n in 0..s.n {
        for i in 0..s.out_h() {
            for j in 0..s.out_w() {
                for c in 0..s.channels {
                    let mut window = Vec::new();
                    for code in 0..9u8 {
                        let y = 2 * i + usize::from(code) / 3;
                        let x = 2 * j + usize::from(code) % 3;
                        if (1..=s.h).contains(&y) && (1..=s.w).contains(&x) {
                            let pixel = (n * s.h + y - 1) * s.w + x - 1;
                            window.push((pixel * s.channels + c, code + 1));
                        }
                    }
                    all.push(window);
                }
            }
        }
    }
    all
}

fn elements(s: PoolShape) -> usize {
    s.n * s.h * s.w * s.channels
}

/// Few different values, because windows must have ties.
fn coarse<T: Sample>(numbers: &mut Numbers, count: usize) -> Vec<T> {
    (0..count)
        .map(|_| T::of(numbers.below(7) as f32 - 3.0))
        .collect()
}

fn check_pool<T: Sample>(s: PoolShape) {
    let mut numbers = Numbers::new(elements(s) as u64);
    let windows = windows(s);
    let x = coarse::<T>(&mut numbers, elements(s));
    let dy = T::many(&mut numbers, windows.len());
    let (y, codes) = everywhere(|exec| {
        let mut y = vec![T::default(); windows.len()];
        let mut codes = vec![0; windows.len()];
        maxpool_forward(exec, s, &x, &mut y, &mut codes).expect("good shapes");
        (y, codes)
    });
    let mut dx = vec![0.0; x.len()];
    for (o, window) in windows.iter().enumerate() {
        let mut best = window[0];
        for candidate in window {
            if x[candidate.0].wide() > x[best.0].wide() {
                best = *candidate;
            }
        }
        assert_eq!(y[o], x[best.0], "{s:?} output {o}");
        assert_eq!(codes[o], best.1, "{s:?} output {o}");
        dx[best.0] += dy[o].wide();
    }
    let actual = everywhere(|exec| {
        let mut dx = vec![T::default(); x.len()];
        maxpool_backward(exec, s, &dy, &codes, &mut dx).expect("good shapes");
        dx
    });
    assert_close("dx", &wide(&actual), &dx, 1e-6, T::STEP);
}

#[test]
fn max_pooling_takes_the_first_maximum_and_returns_its_gradient() {
    for s in SHAPES {
        check_pool::<f32>(s);
        check_pool::<bf16>(s);
    }
}

#[test]
fn max_pooling_lets_nan_win_whatever_its_sign() {
    let s = shape(1, 4, 4, 40);
    for nan in [f32::NAN, -f32::NAN] {
        let mut x = vec![f32::INFINITY; elements(s)];
        let mut narrow = vec![bf16::INFINITY; elements(s)];
        // Pixel (1, 1) lies in all four windows.
        x[5 * 40 + 3] = nan;
        narrow[5 * 40 + 3] = bf16::from_f32(nan);
        let mut y = vec![0.0; 4 * 40];
        let mut y_narrow = vec![bf16::ZERO; 4 * 40];
        let mut codes = vec![0; 4 * 40];
        maxpool3x3s2_forward(s, &x, &mut y, &mut codes).expect("good shapes");
        maxpool3x3s2_forward(s, &narrow, &mut y_narrow, &mut codes).expect("good shapes");
        for i in 0..4 * 40 {
            assert_eq!(
                (y[i].is_nan(), y_narrow[i].is_nan()),
                (i % 40 == 3, i % 40 == 3)
            );
        }
        assert_eq!([codes[3], codes[43], codes[83], codes[123]], [9, 7, 3, 1]);
    }
}

#[derive(Debug, PartialEq)]
struct Stem<T> {
    y: Vec<T>,
    winner: Vec<T>,
    codes: Vec<u8>,
    stats: [Vec<f32>; 3],
    dx: Vec<T>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

struct StemCase<T> {
    shape: PoolShape,
    x: Vec<T>,
    dy: Vec<T>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl<T: Sample> StemCase<T> {
    fn new(shape: PoolShape) -> Self {
        let mut numbers = Numbers::new(elements(shape) as u64 + 1);
        let c = shape.channels;
        let mut weight = numbers.floats(c);
        // A factor of zero and negative factors take part.
        weight[0] = 0.0;
        Self {
            shape,
            x: T::many(&mut numbers, elements(shape)),
            dy: T::many(&mut numbers, shape.outputs()),
            weight,
            bias: numbers.floats(c),
        }
    }

    fn forward(&self) -> StemForward<'_, T> {
        StemForward {
            shape: self.shape,
            x: &self.x,
            weight: &self.weight,
            bias: &self.bias,
            eps: 1e-5,
        }
    }

    fn run(&self, exec: crate::norm::Exec) -> Stem<T> {
        let (outputs, c) = (self.shape.outputs(), self.shape.channels);
        let (mut y, mut winner) = (vec![T::default(); outputs], vec![T::default(); outputs]);
        let mut codes = vec![77; outputs];
        let [mut mean, mut invstd, mut var_unbiased] = [vec![0.0; c], vec![0.0; c], vec![0.0; c]];
        let out = StemOutput {
            y: &mut y,
            winner: &mut winner,
            codes: &mut codes,
        };
        let mut stats = BatchStats {
            mean: &mut mean,
            invstd: &mut invstd,
            var_unbiased: &mut var_unbiased,
        };
        stem::train_forward(exec, &self.forward(), out, &mut stats).expect("good shapes");
        let backward = StemBackward {
            shape: self.shape,
            x: &self.x,
            winner: &winner,
            codes: &codes,
            dy: &self.dy,
            weight: &self.weight,
            bias: &self.bias,
            mean: &mean,
            invstd: &invstd,
        };
        let mut dx = vec![T::default(); self.x.len()];
        let (mut dweight, mut dbias) = (vec![0.0; c], vec![0.0; c]);
        stem::train_backward(exec, &backward, &mut dx, &mut dweight, &mut dbias)
            .expect("good shapes");
        Stem {
            y,
            winner,
            codes,
            stats: [mean, invstd, var_unbiased],
            dx,
            dweight,
            dbias,
        }
    }
}

/// The fused stem equals normalisation, then ReLU, then pooling; its gradient equals that of the three.
fn check_stem<T: Sample>(s: PoolShape) {
    let case = StemCase::<T>::new(s);
    let actual = everywhere(|exec| case.run(exec));
    let (c, windows) = (s.channels, windows(s));
    let rows = (elements(s) / c) as f64;
    let x = wide(&case.x);
    let column = |channel: usize| x.iter().skip(channel).step_by(c);
    let mean: Vec<f64> = (0..c).map(|i| column(i).sum::<f64>() / rows).collect();
    let invstd: Vec<f64> = (0..c)
        .map(|i| {
            let m2: f64 = column(i).map(|x| (x - mean[i]) * (x - mean[i])).sum();
            1.0 / (m2 / rows + 1e-5).sqrt()
        })
        .collect();
    let xhat = |at: usize| (x[at] - mean[at % c]) * invstd[at % c];
    let value = |at: usize| {
        let (w, b) = (f64::from(case.weight[at % c]), f64::from(case.bias[at % c]));
        w * xhat(at) + b
    };
    // Gradient behind the normalisation, and its sums.
    let mut g = vec![0.0; x.len()];
    let (mut dweight, mut dbias) = (vec![0.0; c], vec![0.0; c]);
    for (o, window) in windows.iter().enumerate() {
        let largest = window
            .iter()
            .map(|(at, _)| value(*at))
            .fold(f64::MIN, f64::max);
        assert_close(
            "y",
            &[actual.y[o].wide()],
            &[largest.max(0.0)],
            1e-5,
            T::STEP,
        );
        let code = actual.codes[o];
        if code == 0 {
            assert!(largest <= 1e-6, "{s:?} output {o}: closed at {largest}");
            continue;
        }
        let won = window.iter().find(|(_, k)| *k == code);
        let (at, _) = *won.expect("the code is one of the window's");
        assert_eq!(actual.winner[o], case.x[at]);
        assert!(value(at) > largest - 1e-6, "{s:?} output {o}");
        g[at] += case.dy[o].wide();
        dbias[at % c] += case.dy[o].wide();
        dweight[at % c] += case.dy[o].wide() * xhat(at);
    }
    let dx: Vec<f64> = (0..x.len())
        .map(|at| {
            let i = at % c;
            let centred = g[at] - dbias[i] / rows - xhat(at) * dweight[i] / rows;
            f64::from(case.weight[i]) * invstd[i] * centred
        })
        .collect();
    let size = rows.sqrt();
    assert_close("dbias", &wide(&actual.dbias), &dbias, 1e-5 * size, 1e-5);
    assert_close(
        "dweight",
        &wide(&actual.dweight),
        &dweight,
        1e-5 * size,
        1e-5,
    );
    // A channel of nearly equal values has a large invstd.
    let scale = invstd.iter().copied().fold(1.0, f64::max);
    assert_close("dx", &wide(&actual.dx), &dx, 2e-5 * scale, T::STEP);

    let (running_mean, var): (Vec<f32>, Vec<f32>) = (0..c).map(|i| (i as f32 * 0.01, 0.7)).unzip();
    let evaluated = everywhere(|exec| {
        let mut y = vec![T::default(); windows.len()];
        stem::eval_forward(exec, &case.forward(), &running_mean, &var, &mut y).expect("shapes");
        y
    });
    for (o, window) in windows.iter().enumerate() {
        let value = |at: usize| {
            let i = at % c;
            let xhat = (x[at] - f64::from(running_mean[i])) / (0.7f64 + 1e-5).sqrt();
            xhat * f64::from(case.weight[i]) + f64::from(case.bias[i])
        };
        let largest = window.iter().map(|(at, _)| value(*at)).fold(0.0, f64::max);
        assert_close("eval", &[evaluated[o].wide()], &[largest], 1e-5, T::STEP);
    }
}

#[test]
fn stem_shows_nan() {
    let s = shape(1, 4, 4, 64);
    let mut case = StemCase::<bf16>::new(s);
    // Pixel (1, 1) lies in all four windows; the factors of channels 3 and 4 have both signs.
    (case.weight[3], case.weight[4]) = (-1.0, 1.0);
    case.x[5 * 64 + 3] = bf16::NAN;
    case.x[5 * 64 + 4] = -bf16::NAN;
    let trained = everywhere(|exec| bits(&case.run(exec).y));
    let (mean, var) = (vec![0.0; 64], vec![1.0; 64]);
    let evaluated = everywhere(|exec| {
        let mut y = vec![bf16::ZERO; s.outputs()];
        stem::eval_forward(exec, &case.forward(), &mean, &var, &mut y).expect("good shapes");
        bits(&y)
    });
    for (i, (trained, evaluated)) in trained.iter().zip(evaluated).enumerate() {
        let spoiled = [3, 4].contains(&(i % 64));
        assert_eq!(bf16::from_bits(*trained as u16).is_nan(), spoiled, "{i}");
        assert_eq!(bf16::from_bits(evaluated as u16).is_nan(), spoiled, "{i}");
    }
}

#[test]
fn stem_is_norm_relu_pool() {
    for s in &SHAPES[1..] {
        check_stem::<f32>(*s);
        check_stem::<bf16>(*s);
    }
}

fn check_average<T: Sample>(n: usize, pixels: usize, channels: usize) {
    let mut numbers = Numbers::new(9);
    let x = T::many(&mut numbers, n * pixels * channels);
    let y = everywhere(|exec| {
        let mut y = vec![T::default(); n * channels];
        average::forward(exec, (n, pixels, channels), &x, &mut y).expect("good shapes");
        y
    });
    let dx = everywhere(|exec| {
        let mut dx = vec![T::default(); x.len()];
        average::backward(exec, (n, pixels, channels), &y, &mut dx).expect("good shapes");
        dx
    });
    for image in 0..n {
        for c in 0..channels {
            let at = |pixel: usize| (image * pixels + pixel) * channels + c;
            let mean = (0..pixels).map(|p| x[at(p)].wide()).sum::<f64>() / pixels as f64;
            let y = y[image * channels + c].wide();
            assert_close("y", &[y], &[mean], 1e-6, T::STEP);
            for p in 0..pixels {
                let share = y / pixels as f64;
                assert_close("dx", &[dx[at(p)].wide()], &[share], 0.0, T::STEP);
            }
        }
    }
}

#[test]
fn average_is_the_mean() {
    for (n, pixels, channels) in [(1, 1, 1), (3, 16, 512), (2, 49, 70), (40, 16, 128)] {
        check_average::<f32>(n, pixels, channels);
        check_average::<bf16>(n, pixels, channels);
    }
}

#[test]
fn an_image_without_pixels_has_no_mean() {
    let error = avgpool_forward::<f32>(1, 0, 2, &[], &mut [0.0; 2]).expect_err("refused");
    assert!(error.to_string().starts_with("pixels is 0"));
    let mut codes = vec![0; 9];
    let error = maxpool3x3s2_forward(shape(1, 4, 4, 2), &[0.0; 32], &mut [0.0; 8], &mut codes)
        .expect_err("refused");
    assert!(
        error.to_string().starts_with("codes has 9 elements"),
        "{error}"
    );
    assert_eq!(bits(&[0.0f32]), [0]);
}
