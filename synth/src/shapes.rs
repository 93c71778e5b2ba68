//! The shapes of lesions. Each is a depth function - distance in pixels from its outline, positive
//! inside - from which both the look and the anti-aliased mask follow.

use super::canvas::{LesionMask, Rect, ScalarField};
use super::eye::Eye;
use super::noise::{Noise, smoothstep};

/// Width of a mask's anti-aliased border in pixels.
const MASK_EDGE: f32 = 1.8;

/// Smallest radius that is drawn, in pixels: below, a lesion would slip between the pixel centres.
const SMALLEST: f32 = 0.75;

/// A roundish spot. Lengths in image pixels, angles in radians in the image.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) at: [f32; 2],
    pub(super) radius: f32,
    /// Long over short axis.
    pub(super) aspect: f32,
    pub(super) angle: f32,
    /// How far the outline strays, in radii.
    pub(super) rough: f32,
    /// Density in the middle; 1 is a wide vein.
    pub(super) strength: f32,
    /// Half width of the soft border, in radii.
    pub(super) softness: f32,
}

/// A bleeding that spreads along the nerve fibres.
#[derive(Clone, Debug)]
pub(super) struct Flame {
    pub(super) at: [f32; 2],
    pub(super) angle: f32,
    pub(super) half_length: f32,
    pub(super) half_width: f32,
    /// Sideways deviation of the ends, in half lengths.
    pub(super) bend: f32,
    pub(super) strength: f32,
}

/// A waxy grain of a hard exudate.
#[derive(Clone, Debug)]
pub(super) struct Deposit {
    pub(super) at: [f32; 2],
    pub(super) radius: f32,
    pub(super) aspect: f32,
    pub(super) angle: f32,
    pub(super) strength: f32,
}

/// A cotton-wool spot: a pale patch with a soft edge.
#[derive(Clone, Debug)]
pub(super) struct Fluff {
    pub(super) at: [f32; 2],
    /// Geometric mean of the half axes.
    pub(super) radius: f32,
    pub(super) aspect: f32,
    pub(super) angle: f32,
    pub(super) strength: f32,
}

/// Draws shapes into a layer (how much of the stuff is where) and a mask (what an annotator marks).
pub(super) struct Brush<'a> {
    pub(super) eye: &'a Eye,
    pub(super) noise: Noise,
    pub(super) layer: &'a mut ScalarField,
    pub(super) mask: &'a mut LesionMask,
}

impl Brush<'_> {
    /// `shape(x, y)` gives (depth of the outline to be marked in pixels, density).
    fn draw(&mut self, at: [f32; 2], reach: f32, shape: impl Fn(f32, f32) -> (f32, f32)) {
        let rect = Rect::around(at[0], at[1], reach + 2.0, self.layer.size);
        rect.for_each(self.layer.size, |i, x, y| {
            let (depth, density) = shape(x, y);
            let light = if density > 0.0 || depth > -MASK_EDGE {
                self.eye.aperture(x, y)
            } else {
                0.0
            };
            if light > 0.0 {
                self.layer.data[i] = self.layer.data[i].max(density);
                self.mask
                    .cover(i, (0.5 + depth / MASK_EDGE).clamp(0.0, 1.0) * light);
            }
        });
    }

    /// Paints a microaneurysm: its density into the layer, its coverage into the mask.
    pub(super) fn spot(&mut self, spot: &Spot) {
        let (radius, faint) = visible(spot.radius);
        let noise = self.noise;
        let soft = (spot.softness * radius).max(0.5);
        self.draw(spot.at, 1.5 * radius + soft, |x, y| {
            let depth = ellipse(spot, radius, noise, x, y);
            (
                depth + 0.15 * radius,
                faint
                    * spot.strength
                    * smoothstep(-soft, 0.6 * radius + soft, depth + 0.1 * radius),
            )
        });
    }

    /// A dot or blot haemorrhage: a union of spots with clotted texture.
    pub(super) fn blot(&mut self, spots: &[Spot]) {
        let Some(first) = spots.first() else { return };
        let reach = spots
            .iter()
            .map(|s| (s.at[0] - first.at[0]).hypot(s.at[1] - first.at[1]) + 1.9 * s.radius)
            .fold(0.0, f32::max);
        let (noise, scale) = (self.noise, self.eye.scale);
        let soft = (first.softness * first.radius)
            .clamp(1.3 * scale, 5.0 * scale)
            .max(0.5);
        self.draw(first.at, reach + soft, |x, y| {
            let depth = spots
                .iter()
                .map(|s| ellipse(s, visible(s.radius).0, noise, x, y))
                .fold(f32::MIN, f32::max);
            let clot = 0.9 + 0.32 * noise.fractal(x / (15.0 * scale) + 91.0, y / (15.0 * scale), 2);
            let body = 0.7 + 0.3 * smoothstep(0.0, 10.0 * scale, depth);
            (
                depth + 0.3 * scale,
                first.strength * clot * body * smoothstep(-soft, soft, depth),
            )
        });
    }

    /// A flame haemorrhage: pointed, striped, frayed at the ends.
    pub(super) fn flame(&mut self, flame: &Flame) {
        let (sin, cos) = flame.angle.sin_cos();
        let (noise, scale) = (self.noise, self.eye.scale);
        let width = flame.half_width.max(SMALLEST);
        let soft = (0.3 * width).clamp(0.5, 3.0 * scale.max(0.2));
        self.draw(flame.at, flame.half_length * 1.15 + width, |x, y| {
            let (dx, dy) = (x - flame.at[0], y - flame.at[1]);
            let along = (dx * cos + dy * sin) / flame.half_length;
            let across = dy * cos - dx * sin - flame.bend * flame.half_length * along * along;
            // Fibres: noise drawn out along the flame, fixed to the image so that no two are alike.
            let pitch = (3.4 * scale).max(1.2);
            let fibre = noise.at(
                1.3 * along + flame.at[0] / (31.0 * scale),
                across / pitch + flame.at[1],
            );
            let reach = along.abs() + 0.3 * fibre;
            let taper = (1.0 - reach * reach).max(-0.3);
            let depth = if taper > 0.0 {
                width * (taper.powf(0.8) + 0.25 * fibre) - across.abs()
            } else {
                width * taper - across.abs()
            };
            let fade = 0.55 + 0.45 * smoothstep(1.0, 0.3, along.abs());
            let density =
                flame.strength * fade * (0.85 + 0.4 * fibre) * smoothstep(-soft, 2.2 * soft, depth);
            (depth + 0.3 * scale, density.max(0.0))
        });
    }

    /// One hard-exudate deposit: sharp edge, almost even inside.
    pub(super) fn deposit(&mut self, deposit: &Deposit) {
        let (radius, faint) = visible(deposit.radius);
        let (noise, lump) = (self.noise, (4.5 * self.eye.scale).max(1.5));
        let soft = (0.9 * self.eye.scale).max(0.45);
        let spot = Spot {
            at: deposit.at,
            radius: deposit.radius,
            aspect: deposit.aspect,
            angle: deposit.angle,
            rough: 0.42,
            strength: deposit.strength,
            softness: 0.0,
        };
        self.draw(deposit.at, 2.2 * radius + soft, |x, y| {
            let depth = ellipse(&spot, radius, noise, x, y);
            let body = 0.76
                + 0.24 * smoothstep(0.0, 0.8 * radius, depth)
                + 0.16 * noise.at(x / lump, y / lump);
            (
                depth + 0.3 * soft,
                faint * deposit.strength * body * smoothstep(-soft, soft, depth),
            )
        });
    }

    /// A cotton-wool spot: no outline, the marked one is where it stands out from the retina.
    pub(super) fn fluff(&mut self, fluff: &Fluff) {
        let noise = self.noise;
        let radius = fluff.radius.max(SMALLEST);
        let (sin, cos) = fluff.angle.sin_cos();
        let stretch = fluff.aspect.sqrt();
        self.draw(fluff.at, 1.9 * radius * stretch, |x, y| {
            let (dx, dy) = ((x - fluff.at[0]) / radius, (y - fluff.at[1]) / radius);
            let (along, across) = (
                (dx * cos + dy * sin) / stretch,
                (dy * cos - dx * sin) * stretch,
            );
            let shift = fluff.at[0] * 0.37;
            let lobes = noise.fractal(dx * 1.1 + shift, dy * 1.1, 3);
            let fibre = noise.at(along * 1.6 + shift, across * 6.5);
            let r = along.hypot(across) + 0.4 * lobes + 0.1 * fibre;
            let wool = smoothstep(1.15, 0.25, r) * (0.86 + 0.16 * fibre + 0.1 * lobes);
            ((0.86 - r) * radius * 0.8, fluff.strength * wool.max(0.0))
        });
    }
}

/// The radius to draw with, and how much fainter the spot gets when that is more than it has.
fn visible(radius: f32) -> (f32, f32) {
    let drawn = radius.max(SMALLEST);
    (drawn, (radius / drawn) * (radius / drawn).sqrt())
}

/// Depth of a rough ellipse with mean radius `radius` at an image position.
fn ellipse(spot: &Spot, radius: f32, noise: Noise, x: f32, y: f32) -> f32 {
    let (sin, cos) = spot.angle.sin_cos();
    let (dx, dy) = ((x - spot.at[0]) / radius, (y - spot.at[1]) / radius);
    let stretch = spot.aspect.sqrt();
    let r = ((dx * cos + dy * sin) / stretch).hypot((dy * cos - dx * sin) * stretch);
    if r > 2.4 {
        return -radius;
    }
    let (ox, oy) = (spot.at[0] * 0.73, spot.at[1] * 0.61);
    let stray =
        noise.at(dx * 0.9 + ox, dy * 0.9 + oy) + 0.33 * noise.at(dx * 2.1 + oy, dy * 2.1 - ox);
    radius * (1.0 - r + spot.rough * stray)
}
