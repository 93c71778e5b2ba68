//! Lattice noise. Pure functions of position and seed.

/// Gradient noise (Perlin, SIGGRAPH 2002: quintic fade) on a hashed lattice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise(u32);

/// Eight unit gradients; more directions are not visible at the amplitudes used here.
const GRADIENTS: [[f32; 2]; 8] = {
    const D: f32 = std::f32::consts::FRAC_1_SQRT_2;
    [
        [1.0, 0.0],
        [D, D],
        [0.0, 1.0],
        [-D, D],
        [-1.0, 0.0],
        [-D, -D],
        [0.0, -1.0],
        [D, -D],
    ]
};

/// Mixes three words into one (the finaliser of MurmurHash3 over a linear combination).
pub(super) fn hash(x: u32, y: u32, seed: u32) -> u32 {
    let mut h = x.wrapping_mul(0x8da6_b343) ^ y.wrapping_mul(0xd816_3841) ^ seed;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

impl Noise {
    /// Noise that differs for every seed.
    pub(super) fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// About -1..1, mean 0, features one unit across.
    pub(super) fn at(self, x: f32, y: f32) -> f32 {
        let (fx, fy) = (x.floor(), y.floor());
        let (ix, iy) = (fx as i32 as u32, fy as i32 as u32);
        let (dx, dy) = (x - fx, y - fy);
        let corner = |cx: u32, cy: u32, px: f32, py: f32| {
            let h = hash(ix.wrapping_add(cx), iy.wrapping_add(cy), self.0);
            let g = GRADIENTS[(h >> 29) as usize];
            g[0] * px + g[1] * py
        };
        let fade = |t: f32| t * t * t * (t * (t * 6.0 - 15.0) + 10.0);
        let (u, v) = (fade(dx), fade(dy));
        let top = lerp(corner(0, 0, dx, dy), corner(1, 0, dx - 1.0, dy), u);
        let low = lerp(
            corner(0, 1, dx, dy - 1.0),
            corner(1, 1, dx - 1.0, dy - 1.0),
            u,
        );
        1.5 * lerp(top, low, v)
    }

    /// Sum of `octaves` of noise, each twice as fine and half as strong; about -1..1.
    pub(super) fn fractal(self, x: f32, y: f32, octaves: u32) -> f32 {
        let (mut sum, mut gain, mut pitch) = (0.0, 1.0, 1.0);
        for octave in 0..octaves {
            let layer = Self(self.0.wrapping_add(octave.wrapping_mul(0x9e37_79b9)));
            sum += gain * layer.at(x * pitch, y * pitch);
            gain *= 0.5;
            pitch *= 2.03;
        }
        sum / (2.0 - 2.0 * gain)
    }
}

/// `a` at 0, `b` at 1.
pub(super) fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below `low`, 1 above `high`, smooth between; `low > high` turns it round.
pub(super) fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A bell curve over the distance `d`: `exp(-(d / width)^2)`.
pub(super) fn bell(d: f32, width: f32) -> f32 {
    (-(d / width) * (d / width)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_centred_bounded_and_continuous() {
        let noise = Noise::new(7);
        let (mut sum, mut previous) = (0.0f64, noise.at(0.0, 0.3));
        for i in 0..20_000 {
            let x = i as f32 * 0.05 - 500.0;
            let value = noise.at(x, x * 0.37);
            assert!(value.abs() <= 1.1, "{value} at {x}");
            if i > 0 {
                assert!((value - previous).abs() < 0.3, "a jump at {x}");
            }
            (sum, previous) = (sum + f64::from(value), value);
        }
        assert!((sum / 20_000.0).abs() < 0.05);
    }

    #[test]
    fn smoothstep_turns_round() {
        assert_eq!(smoothstep(0.0, 1.0, 2.0), 1.0);
        assert_eq!(smoothstep(1.0, 0.0, 2.0), 0.0);
        assert_eq!(smoothstep(1.0, 0.0, 0.5), 0.5);
    }
}
