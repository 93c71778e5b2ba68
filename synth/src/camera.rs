//! From the painted retina to the bytes of a photograph: blur, clipping, noise, black surround.

use image::RgbImage;

use super::canvas::Canvas;
use super::eye::Eye;
use super::noise::hash;
use super::rng::RandomStream;

/// Turns the painted eye into the photograph: blur, aperture, noise and black level of a camera.
pub(super) fn expose(eye: &Eye, mut canvas: Canvas, draw: &mut RandomStream) -> RgbImage {
    blur(&mut canvas, draw.skewed(0.75, 1.7, 1.6) * eye.scale);
    let noise = [
        draw.range(0.8, 2.0),
        draw.range(0.8, 2.0),
        draw.range(1.0, 2.6),
    ]
    .map(|s| s / 255.0);
    let shared = draw.range(0.5, 1.5) / 255.0;
    let black = draw.range(0.0, 3.0) / 255.0;
    let seed = draw.word();
    let size = canvas.size;
    let mut pixels = vec![0u8; size * size * 3];
    let mut grain = FilmGrain::new(seed, size);
    for (y, (row, out)) in canvas
        .rgb
        .chunks_exact(size)
        .zip(pixels.chunks_exact_mut(size * 3))
        .enumerate()
    {
        grain.next_row();
        for (x, (colour, bytes)) in row.iter().zip(out.chunks_exact_mut(3)).enumerate() {
            let light = eye.aperture(x as f32 + 0.5, y as f32 + 0.5);
            let grains = grain.at(x);
            for k in 0..3 {
                let value = shoulder(colour[k]) * light + black * (1.0 - light);
                // Photon noise grows with the root of the light; the dark surround keeps a little.
                let strength = (0.12 + 0.88 * light) * (0.55 + 0.6 * value.max(0.0).sqrt());
                let value = value + strength * (noise[k] * grains[k] + shared * grains[3]);
                bytes[k] = (value * 255.0 + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
    RgbImage::from_raw(size as u32, size as u32, pixels)
        .expect("the buffer was made with three bytes for every pixel")
}

/// Film and sensors saturate softly.
fn shoulder(v: f32) -> f32 {
    const KNEE: f32 = 0.8;
    if v <= KNEE {
        return v.max(0.0);
    }
    let over = (v - KNEE) / (1.0 - KNEE);
    KNEE + (1.0 - KNEE) * (1.0 - (-over).exp())
}

/// Gaussian blur of `sigma` pixels, both directions; under 0.3 pixels nothing happens.
fn blur(canvas: &mut Canvas, sigma: f32) {
    if sigma < 0.3 {
        return;
    }
    let reach = (2.6 * sigma).ceil() as usize;
    let mut taps: Vec<f32> = (0..=reach)
        .map(|i| (-((i * i) as f32) / (2.0 * sigma * sigma)).exp())
        .collect();
    let sum = taps[0] + 2.0 * taps[1..].iter().sum::<f32>();
    taps.iter_mut().for_each(|t| *t /= sum);
    let size = canvas.size;
    let mut line = vec![[0.0f32; 3]; size + 2 * reach];
    for row in canvas.rgb.chunks_exact_mut(size) {
        line[..reach].fill(row[0]);
        line[reach..reach + size].copy_from_slice(row);
        line[reach + size..].fill(row[size - 1]);
        for (x, out) in row.iter_mut().enumerate() {
            let around = &line[x..=x + 2 * reach];
            *out = std::array::from_fn(|k| {
                let pairs =
                    (1..=reach).map(|i| taps[i] * (around[reach - i][k] + around[reach + i][k]));
                taps[0] * around[reach][k] + pairs.sum::<f32>()
            });
        }
    }
    blur_columns(canvas, &taps);
}

/// Vertical pass, row by row (cache-friendly), with copies of the rows that are overwritten too early.
fn blur_columns(canvas: &mut Canvas, taps: &[f32]) {
    let (size, reach) = (canvas.size, taps.len() - 1);
    // The untouched rows y - reach ..= y; before the first row, that row repeats.
    let mut above = vec![canvas.rgb[..size].to_vec(); reach + 1];
    for y in 0..size {
        above.rotate_left(1);
        above[reach].copy_from_slice(&canvas.rgb[y * size..(y + 1) * size]);
        let (done, below) = canvas.rgb.split_at_mut((y + 1) * size);
        let out = &mut done[y * size..];
        out.iter_mut().for_each(|v| *v = v.map(|c| c * taps[0]));
        for (i, &tap) in taps.iter().enumerate().skip(1) {
            // Past the last row, that row repeats.
            let after = match (size - 1 - y).min(i) {
                0 => &above[reach][..],
                n => &below[(n - 1) * size..n * size],
            };
            for ((v, a), b) in out.iter_mut().zip(after).zip(&above[reach - i]) {
                *v = std::array::from_fn(|k| v[k] + tap * (a[k] + b[k]));
            }
        }
    }
}

/// Sensor noise with unit variance and the short correlation that demosaicing leaves: four values
/// per pixel (three channels and one they share), from a hash of the position.
struct FilmGrain {
    seed: u32,
    row: u32,
    fresh: Vec<[f32; 4]>,
    previous: Vec<[f32; 4]>,
}

impl FilmGrain {
    fn new(seed: u32, size: usize) -> Self {
        let mut grain = Self {
            seed,
            row: 0,
            fresh: vec![[0.0; 4]; size + 1],
            previous: vec![[0.0; 4]; size + 1],
        };
        grain.next_row();
        grain
    }

    fn next_row(&mut self) {
        std::mem::swap(&mut self.fresh, &mut self.previous);
        self.row += 1;
        for (x, values) in self.fresh.iter_mut().enumerate() {
            let mut word = hash(x as u32, self.row, self.seed);
            for value in values {
                // Two bytes of one word: a triangular distribution, near enough to a normal one.
                *value = ((word & 0xffff) as f32 + (word >> 16) as f32) / 65535.0 - 1.0;
                word = word
                    .wrapping_mul(0x9e37_79b1)
                    .rotate_left(15)
                    .wrapping_mul(0x85eb_ca77);
            }
        }
    }

    fn at(&self, x: usize) -> [f32; 4] {
        // Variance of a triangular value on -1..1 is 1/6; the weights' squares add to 0.749.
        const UNIT: f32 = 2.828;
        std::array::from_fn(|k| {
            let level =
                0.7 * self.fresh[x][k] + 0.36 * (self.fresh[x + 1][k] + self.previous[x][k]);
            UNIT * level
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blur_keeps_the_light_and_is_symmetric() {
        let size = 33;
        let mut canvas = Canvas::new(size);
        canvas.rgb[16 * size + 16] = [1.0, 2.0, 3.0];
        blur(&mut canvas, 1.5);
        for k in 0..3 {
            let sum: f32 = canvas.rgb.iter().map(|p| p[k]).sum();
            assert!((sum - (k + 1) as f32).abs() < 1e-3, "{sum}");
        }
        for d in 1..5 {
            let red = |x: usize, y: usize| canvas.rgb[y * size + x][0];
            let all = [
                red(16 + d, 16),
                red(16 - d, 16),
                red(16, 16 + d),
                red(16, 16 - d),
            ];
            assert!(
                all.iter().all(|v| (v - all[0]).abs() < 1e-6),
                "{all:?} at {d}"
            );
        }
    }

    #[test]
    fn blur_leaves_an_even_picture_alone() {
        let mut canvas = Canvas::new(9);
        canvas.rgb.fill([0.4; 3]);
        blur(&mut canvas, 3.0);
        assert!(canvas.rgb.iter().all(|p| (p[1] - 0.4).abs() < 1e-5));
    }

    #[test]
    fn grain_has_unit_variance() {
        let mut grain = FilmGrain::new(3, 200);
        let (mut sum, mut squares) = (0.0f64, 0.0f64);
        for _ in 0..200 {
            grain.next_row();
            for x in 0..200 {
                let v = f64::from(grain.at(x)[2]);
                sum += v;
                squares += v * v;
            }
        }
        assert!((sum / 40_000.0).abs() < 0.05, "mean {}", sum / 40_000.0);
        assert!(
            (squares / 40_000.0 - 1.0).abs() < 0.1,
            "variance {}",
            squares / 40_000.0
        );
    }
}
