//! Weights and pixels by exact integer hashes, which saves large files: `hybrid.py` computes the same numbers to the
//! last bit. The tests that compare with PyTorch include this file.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// FNV-1a over the tensor's name.
fn key(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Element `i` of the tensor called `name`, in [-1, 1): the top 24 bits of splitmix64, exact in f32.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f32> + use<> {
    let key = key(name);
    (1..=count as u64).map(move |i| {
        let mut z = key.wrapping_add(i.wrapping_mul(GOLDEN));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 40) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    })
}

/// The tensor of `hybrid` called `name`, row-major: scaled by its kind so that activations stay
/// near 1 with running statistics as well as with batch statistics.
pub fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let u = uniform(name, shape.iter().product());
    if shape.len() >= 2 {
        let fan_in: usize = shape[1..].iter().product();
        let gain = if shape.len() == 4 { 6.0 } else { 3.0 };
        let scale = (gain / fan_in as f64).sqrt() as f32;
        u.map(|u| scale * u).collect()
    } else if name.ends_with("running_var") {
        u.map(|u| 1.0 + 0.5 * u.abs()).collect()
    } else if name.ends_with(".weight") {
        u.map(|u| 1.0 + 0.125 * u).collect()
    } else {
        u.map(|u| 0.125 * u).collect()
    }
}

/// Pictures `[n, 3, side, side]`, row-major: a wave of its own for each picture and channel, and noise. (Noise alone
/// would look the same to the last layers, and their batch normalisation would then amplify rounding errors.)
pub fn pictures(name: &str, n: usize, side: usize) -> Vec<f32> {
    let wave: Vec<f32> = uniform(&format!("{name}.wave"), n * 3 * 4).collect();
    let mut noise = uniform(name, n * 3 * side * side);
    let mut pixels = Vec::with_capacity(n * 3 * side * side);
    for wave in wave.chunks_exact(4) {
        let below = |limit: usize, u: f32| ((u + 1.0) * (limit / 2) as f32) as usize;
        let (right, down, start) = (below(4, wave[0]), below(4, wave[1]), below(64, wave[2]));
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let phase = (right * x + down * y + start) % 64;
            let triangle = phase.abs_diff(32) as f32 / 16.0 - 1.0;
            pixels.push(wave[3] + triangle + 0.5 * noise.next().unwrap_or_default());
        }
    }
    pixels
}
