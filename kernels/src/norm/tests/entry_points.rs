//! The C entry points give the results of the functions, and refuse wrong input.

use super::{Numbers, Sample, bits, three_threads};
use crate::norm::ffi::{self, BnBackwardArgs, BnForwardArgs, PoolArgs};
use crate::norm::{
    Activation, ActivationGate, Backward, BatchStats, Forward, Gradients, PoolShape, StemBackward,
    StemForward, StemOutput, bn_eval_forward, bn_train_backward, bn_train_forward,
    maxpool3x3s2_backward, maxpool3x3s2_forward, stem_eval_forward, stem_train_backward,
    stem_train_forward,
};
use half::bf16;
use std::ffi::CStr;
use std::ptr::null;

/// A structure with all fields zero, as `{}` makes it in C++, and its size set.
macro_rules! zeroed {
    ($type:ty) => {{
        // SAFETY: integers, floats, pointers and an optional function: zero is a value of each.
        let mut args: $type = unsafe { std::mem::zeroed() };
        args.size = size_of::<$type>() as i64;
        args
    }};
}

fn last_error() -> String {
    // SAFETY: a string of this thread, copied before the next call.
    let words = unsafe { CStr::from_ptr(ffi::fovea_norm_last_error()) };
    words.to_str().expect("our messages are UTF-8").to_owned()
}

const ROWS: usize = 1500;
const CHANNELS: usize = 64;

struct Layer {
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    out: Vec<f32>,
    dx: Vec<f32>,
    /// mean, invstd, var_unbiased, dweight, dbias, each `[channels]`
    small: [Vec<f32>; 5],
}

fn layer() -> Layer {
    let mut numbers = Numbers::new(21);
    Layer {
        x: numbers.floats(ROWS * CHANNELS),
        dy: numbers.floats(ROWS * CHANNELS),
        weight: numbers.floats(CHANNELS),
        bias: numbers.floats(CHANNELS),
        out: vec![0.0; ROWS * CHANNELS],
        dx: vec![0.0; ROWS * CHANNELS],
        small: std::array::from_fn(|_| vec![0.0; CHANNELS]),
    }
}

/// Forward and backward through the functions.
fn direct(activation: Activation) -> Layer {
    let mut l = layer();
    let [mean, invstd, var_unbiased, dweight, dbias] = &mut l.small;
    let forward = Forward {
        x: &l.x,
        rows: ROWS,
        channels: CHANNELS,
        weight: &l.weight,
        bias: &l.bias,
        residual: None,
        activation,
        eps: 1e-5,
    };
    let mut stats = BatchStats {
        mean,
        invstd,
        var_unbiased,
    };
    bn_train_forward(&forward, &mut l.out, &mut stats).expect("good shapes");
    let backward = Backward {
        x: &l.x,
        rows: ROWS,
        channels: CHANNELS,
        dy: &l.dy,
        second_dy: None,
        gate: match activation {
            Activation::None => ActivationGate::Open,
            Activation::Relu => ActivationGate::Input { bias: &l.bias },
            Activation::Silu => ActivationGate::Silu { bias: &l.bias },
        },
        weight: &l.weight,
        mean,
        invstd,
    };
    let mut grads = Gradients {
        dx: &mut l.dx,
        dresidual: None,
        dweight,
        dbias,
    };
    bn_train_backward(&backward, &mut grads).expect("good shapes");
    l
}

fn forward_args(l: &mut Layer) -> BnForwardArgs {
    let mut args = zeroed!(BnForwardArgs);
    args.activation = 1;
    (args.rows, args.channels) = (ROWS as i64, CHANNELS as i64);
    args.x = l.x.as_ptr().cast();
    (args.weight, args.bias) = (l.weight.as_ptr(), l.bias.as_ptr());
    args.out = l.out.as_mut_ptr().cast();
    args.mean = l.small[0].as_mut_ptr();
    args.invstd = l.small[1].as_mut_ptr();
    args.var_unbiased = l.small[2].as_mut_ptr();
    (args.threads, args.eps) = (1, 1e-5);
    args
}

fn backward_args(l: &mut Layer) -> BnBackwardArgs {
    let mut args = zeroed!(BnBackwardArgs);
    args.activation = 1;
    (args.rows, args.channels) = (ROWS as i64, CHANNELS as i64);
    (args.x, args.dy) = (l.x.as_ptr().cast(), l.dy.as_ptr().cast());
    (args.weight, args.bias) = (l.weight.as_ptr(), l.bias.as_ptr());
    (args.mean, args.invstd) = (l.small[0].as_ptr(), l.small[1].as_ptr());
    args.dx = l.dx.as_mut_ptr().cast();
    args.dweight = l.small[3].as_mut_ptr();
    args.dbias = l.small[4].as_mut_ptr();
    args
}

#[test]
fn batch_norm_through_c_is_the_same() {
    for (number, activation) in [Activation::None, Activation::Relu, Activation::Silu]
        .into_iter()
        .enumerate()
    {
        compare_through_c(number as i32, &direct(activation));
    }
}

fn compare_through_c(activation: i32, expected: &Layer) {
    for (threads, parallel_for) in [
        (0, None),
        (1, None),
        (2, None),
        (3, None),
        (2, Some(three_threads as ffi::ParallelFor)),
    ] {
        let mut l = layer();
        let mut forward = forward_args(&mut l);
        (forward.threads, forward.parallel_for) = (threads, parallel_for);
        forward.activation = activation;
        let mut backward = backward_args(&mut l);
        (backward.threads, backward.parallel_for) = (threads, parallel_for);
        backward.activation = activation;
        // SAFETY: the buffers live and have the lengths of the shape.
        unsafe {
            assert_eq!(ffi::fovea_bn_train_forward(&forward), ffi::OK);
            assert_eq!(ffi::fovea_bn_train_backward(&backward), ffi::OK);
        }
        assert!(
            l.out == expected.out && l.dx == expected.dx,
            "activation {activation}, {threads} threads"
        );
        assert_eq!(l.small, expected.small);
    }
}

#[test]
fn pooling_through_c_is_the_same() {
    let shape = PoolShape {
        n: 2,
        h: 9,
        w: 10,
        channels: 32,
    };
    let mut numbers = Numbers::new(2);
    let (inputs, outputs) = (2 * 9 * 10 * 32, shape.outputs());
    let (x, dy) = (numbers.floats(inputs), numbers.floats(outputs));
    let (mut y, mut codes, mut dx) = (vec![0.0; outputs], vec![0; outputs], vec![0.0; inputs]);
    let mut args = zeroed!(PoolArgs);
    (args.n, args.h, args.w, args.channels) = (2, 9, 10, 32);
    (args.x, args.dy) = (x.as_ptr().cast(), dy.as_ptr().cast());
    (args.y, args.dx) = (y.as_mut_ptr().cast(), dx.as_mut_ptr().cast());
    args.codes = codes.as_mut_ptr();
    // SAFETY: the buffers live and have the lengths of the shape.
    unsafe {
        assert_eq!(
            ffi::fovea_maxpool_forward(&args),
            ffi::OK,
            "{}",
            last_error()
        );
        assert_eq!(
            ffi::fovea_maxpool_backward(&args),
            ffi::OK,
            "{}",
            last_error()
        );
    }
    let (mut y2, mut codes2, mut dx2) = (vec![0.0; outputs], vec![0; outputs], vec![0.0; inputs]);
    maxpool3x3s2_forward(shape, &x, &mut y2, &mut codes2).expect("good shapes");
    maxpool3x3s2_backward(shape, &dy, &codes2, &mut dx2).expect("good shapes");
    assert!(y == y2 && codes == codes2 && dx == dx2);
    let mut mean = vec![0.0; 64];
    args.y = mean.as_mut_ptr().cast();
    args.dy = mean.as_ptr().cast();
    // SAFETY: as above; the average has n * channels elements.
    unsafe {
        assert_eq!(ffi::fovea_avgpool_forward(&args), ffi::OK);
        assert_eq!(ffi::fovea_avgpool_backward(&args), ffi::OK);
    }
    let expected = (0..90).map(|p| x[p * 32]).sum::<f32>() * (1.0 / 90.0);
    assert_eq!(mean[0], expected);
    assert_eq!(dx[0], expected * (1.0 / 90.0));
}

#[test]
fn evaluation_through_c_is_the_same() {
    let mut l = layer();
    let var: Vec<f32> = l.bias.iter().map(|v| v.abs()).collect();
    let mut args = forward_args(&mut l);
    (args.running_mean, args.running_var) = (l.weight.as_ptr(), var.as_ptr());
    args.residual = l.dy.as_ptr().cast();
    // SAFETY: the buffers live and have the lengths of the shape.
    unsafe { assert_eq!(ffi::fovea_bn_eval_forward(&args), ffi::OK) };
    let forward = Forward {
        x: &l.x,
        rows: ROWS,
        channels: CHANNELS,
        weight: &l.weight,
        bias: &l.bias,
        residual: Some(&l.dy),
        activation: Activation::Relu,
        eps: 1e-5,
    };
    let mut out = vec![0.0; ROWS * CHANNELS];
    bn_eval_forward(&forward, &l.weight, &var, &mut out).expect("good shapes");
    assert!(l.out == out);
}

#[test]
fn stem_through_c_is_the_same() {
    let shape = PoolShape {
        n: 2,
        h: 11,
        w: 8,
        channels: 64,
    };
    let mut numbers = Numbers::new(8);
    let (inputs, outputs) = (2 * 11 * 8 * 64, shape.outputs());
    let (x, dy): (Vec<bf16>, Vec<bf16>) = (
        Sample::many(&mut numbers, inputs),
        Sample::many(&mut numbers, outputs),
    );
    let (weight, bias) = (numbers.floats(64), numbers.floats(64));
    let forward = StemForward {
        shape,
        x: &x,
        weight: &weight,
        bias: &bias,
        eps: 1e-5,
    };
    // y, winner, evaluated y
    let mut direct: [Vec<bf16>; 3] = std::array::from_fn(|_| vec![bf16::ZERO; outputs]);
    let mut through = direct.clone();
    // mean, invstd, var_unbiased, dweight, dbias
    let mut direct_small: [Vec<f32>; 5] = std::array::from_fn(|_| vec![0.0; 64]);
    let mut through_small = direct_small.clone();
    let (mut codes, mut direct_codes) = (vec![0; outputs], vec![0; outputs]);
    let (mut dx, mut direct_dx) = (vec![bf16::ZERO; inputs], vec![bf16::ZERO; inputs]);

    let mut args = zeroed!(PoolArgs);
    args.dtype = 1;
    (args.n, args.h, args.w, args.channels, args.eps) = (2, 11, 8, 64, 1e-5);
    (args.x, args.dy) = (x.as_ptr().cast(), dy.as_ptr().cast());
    (args.weight, args.bias) = (weight.as_ptr(), bias.as_ptr());
    let var: Vec<f32> = weight.iter().map(|v| v.abs()).collect();
    (args.running_mean, args.running_var) = (bias.as_ptr(), var.as_ptr());
    let [y, winner, evaluated] = through.each_mut().map(Vec::as_mut_ptr);
    (args.y, args.winner) = (y.cast(), winner.cast());
    (args.codes, args.dx) = (codes.as_mut_ptr(), dx.as_mut_ptr().cast());
    let [mean, invstd, var_unbiased, dweight, dbias] =
        through_small.each_mut().map(Vec::as_mut_ptr);
    (args.mean, args.invstd, args.var_unbiased) = (mean, invstd, var_unbiased);
    (args.dweight, args.dbias) = (dweight, dbias);
    // SAFETY: the buffers live and have the lengths of the shape.
    unsafe {
        assert_eq!(
            ffi::fovea_stem_train_forward(&args),
            ffi::OK,
            "{}",
            last_error()
        );
        assert_eq!(
            ffi::fovea_stem_train_backward(&args),
            ffi::OK,
            "{}",
            last_error()
        );
        args.y = evaluated.cast();
        assert_eq!(
            ffi::fovea_stem_eval_forward(&args),
            ffi::OK,
            "{}",
            last_error()
        );
    }

    let [y, winner, evaluated] = &mut direct;
    let [mean, invstd, var_unbiased, dweight, dbias] = &mut direct_small;
    let mut stats = BatchStats {
        mean,
        invstd,
        var_unbiased,
    };
    let out = StemOutput {
        y,
        winner,
        codes: &mut direct_codes,
    };
    stem_train_forward(&forward, out, &mut stats).expect("good shapes");
    stem_eval_forward(&forward, &bias, &var, evaluated).expect("good shapes");
    let backward = StemBackward {
        shape,
        x: &x,
        winner,
        codes: &direct_codes,
        dy: &dy,
        weight: &weight,
        bias: &bias,
        mean,
        invstd,
    };
    stem_train_backward(&backward, &mut direct_dx, dweight, dbias).expect("good shapes");
    for (through, direct) in through.iter().zip(&direct) {
        assert_eq!(bits(through), bits(direct));
    }
    assert_eq!((bits(&dx), codes), (bits(&direct_dx), direct_codes));
    assert_eq!(through_small, direct_small);
}

/// The first words of each broken call's message.
#[test]
fn broken_calls_are_refused_in_words() {
    type Break = fn(&mut BnForwardArgs);
    let cases: [(Break, &str); 9] = [
        (|a| a.size += 8, "size is "),
        (
            |a| a.dtype = 7,
            "dtype is 7, the limit is 0 (f32) or 1 (bf16)",
        ),
        (
            |a| a.activation = 3,
            "activation is 3, the limit is 0 (none), 1 (ReLU) or 2 (SiLU)",
        ),
        (|a| a.x = null(), "x is null, the limit is not null"),
        (|a| a.rows = -1, "rows is -1, the limit is 0 or more"),
        (|a| a.rows = 1, "rows is 1, the limit is 2 or more"),
        (|a| a.rows = i64::MAX, "the shape of x overflows"),
        (|a| a.rows = i64::MAX / 128, "the shape of x overflows"),
        (|a| a.x = a.x.wrapping_byte_add(1), "x is 0x"),
    ];
    for (breaks, words) in cases {
        let mut l = layer();
        let mut args = forward_args(&mut l);
        breaks(&mut args);
        // SAFETY: each is refused before a buffer is touched.
        let code = unsafe { ffi::fovea_bn_train_forward(&args) };
        let said = last_error();
        assert_eq!(code, ffi::BAD_ARGUMENT, "{words}");
        assert!(said.starts_with(words), "{said}");
        assert!(said.contains("\n  help: "), "{said}");
        assert!(l.out.iter().all(|v| *v == 0.0));
    }
    // SAFETY: null is refused.
    let code = unsafe { ffi::fovea_bn_train_backward(null()) };
    assert_eq!(code, ffi::BAD_ARGUMENT);
    assert!(last_error().starts_with("the argument structure is null"));
}

/// The structures match the header: field order and total size.
#[test]
fn header_and_structures_agree() {
    let header = include_str!("../fovea_norm.h");
    for (name, source) in [
        ("fovea_bn_forward", include_str!("../ffi/bn.rs")),
        ("fovea_bn_backward", include_str!("../ffi/bn.rs")),
        ("fovea_pool", include_str!("../ffi/pool.rs")),
    ] {
        let rust_name = match name {
            "fovea_bn_forward" => "struct BnForwardArgs {",
            "fovea_bn_backward" => "struct BnBackwardArgs {",
            _ => "struct PoolArgs {",
        };
        let body = |text: &'static str, start: &str| {
            let from = text.find(start).expect("the structure is there") + start.len();
            let to = from + text[from..].find('}').expect("it ends");
            text[from..to].to_owned()
        };
        let rust: Vec<(String, String)> = body(source, rust_name)
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "))
            .map(|(field, kind)| (field.to_owned(), kind.trim_end_matches(',').to_owned()))
            .collect();
        let mut c = Vec::new();
        let text = body(header, &format!("typedef struct {name} {{"));
        let text: String = text
            .split("/*")
            .map(|part| part.split_once("*/").map_or(part, |(_, code)| code))
            .collect();
        for declaration in text.split(';') {
            let constant = declaration.trim().starts_with("const ");
            let declaration = declaration.trim().trim_start_matches("const ");
            let Some((kind, names)) = declaration.split_once(' ') else {
                continue;
            };
            for field in names.split(',') {
                let field = field.trim();
                let pointer = match (field.starts_with('*'), constant) {
                    (true, true) => "*const ",
                    (true, false) => "*mut ",
                    _ => "",
                };
                let kind = match kind {
                    "int64_t" => "i64",
                    "int32_t" => "i32",
                    "uint8_t" => "u8",
                    "float" => "f32",
                    "void" => "c_void",
                    "fovea_parallel_for" => "Option<ParallelFor>",
                    other => other,
                };
                let field = field.trim_start_matches('*').to_owned();
                c.push((field, format!("{pointer}{kind}")));
            }
        }
        assert!(c.len() > 15, "{c:?}");
        assert_eq!(c, rust, "{name}");
    }
}
