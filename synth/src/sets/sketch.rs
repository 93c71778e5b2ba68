//! A small canvas for drawn scenes: shapes with soft edges, grain, and 8-bit pixels at the end.

use crate::noise::smoothstep;
use crate::rng::RandomStream;

/// Linear RGB, `[size, size]`; places are shares of the edge, 0 to 1, from the upper left.
pub(super) struct Sketch {
    size: usize,
    rgb: Vec<[f32; 3]>,
}

impl Sketch {
    pub fn new(size: usize, colour: [f32; 3]) -> Self {
        Self {
            size,
            rgb: vec![colour; size * size],
        }
    }

    /// Lays `colour` over every place with the opacity (0 to 1) that `cover` gives it.
    pub fn lay(&mut self, colour: [f32; 3], cover: impl Fn(f32, f32) -> f32) {
        let edge = self.size as f32;
        for (i, pixel) in self.rgb.iter_mut().enumerate() {
            let at = |n: usize| (n as f32 + 0.5) / edge;
            let share = cover(at(i % self.size), at(i / self.size)).clamp(0.0, 1.0);
            for (value, new) in pixel.iter_mut().zip(colour) {
                *value += share * (new - *value);
            }
        }
    }

    /// An ellipse with half axes `(a, b)`, turned by `angle` (radians).
    pub fn ellipse(&mut self, centre: [f32; 2], axes: [f32; 2], angle: f32, colour: [f32; 3]) {
        let soft = self.softness(axes);
        self.lay(colour, |x, y| {
            smoothstep(1.0 + soft, 1.0 - soft, reach(centre, axes, angle, x, y))
        });
    }

    /// A rectangle between two corners.
    pub fn rectangle(&mut self, [x0, y0, x1, y1]: [f32; 4], colour: [f32; 3]) {
        let pixel = 1.0 / self.size as f32;
        let inside = |low: f32, high: f32, at: f32| {
            smoothstep(low - pixel, low + pixel, at) * smoothstep(high + pixel, high - pixel, at)
        };
        self.lay(colour, |x, y| inside(x0, x1, x) * inside(y0, y1, y));
    }

    /// Share of an ellipse's reach over which its edge is soft: about two pixels.
    pub fn softness(&self, [a, b]: [f32; 2]) -> f32 {
        (1.5 / (self.size as f32 * a.min(b))).clamp(0.02, 0.9)
    }

    /// 8-bit pixels, each channel multiplied by its `gain`, with grain of this strength.
    pub fn pixels(&self, gain: [f32; 3], grain: f32, draw: &mut RandomStream) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.rgb.len() * 3);
        for pixel in &self.rgb {
            let shade = grain * draw.normal();
            for (value, gain) in pixel.iter().zip(gain) {
                let value = (value * gain + shade).clamp(0.0, 1.0);
                out.push((255.0 * value + 0.5) as u8);
            }
        }
        out
    }
}

/// Distance of a place from the centre of an ellipse, in units of its edge there.
pub(super) fn reach(centre: [f32; 2], axes: [f32; 2], angle: f32, x: f32, y: f32) -> f32 {
    let (sin, cos) = angle.sin_cos();
    let (dx, dy) = (x - centre[0], y - centre[1]);
    let (u, v) = (cos * dx + sin * dy, cos * dy - sin * dx);
    (u / axes[0]).hypot(v / axes[1])
}
