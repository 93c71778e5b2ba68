//! The retina without vessels and lesions: colour, light, macula, choroid, optic disc.

use super::canvas::{Canvas, Rect};
use super::eye::Eye;
use super::noise::{Noise, bell, lerp, smoothstep};
use super::rng::RandomStream;

/// Colour and texture of one eye under one lamp.
pub(super) struct Tone {
    /// Mean colour of the retina, display space.
    colour: [f32; 3],
    /// Fall-off of the light towards the edge, and its tilt per radius.
    falloff: f32,
    tilt: [f32; 2],
    /// Large blotches of light and shade.
    blotch: f32,
    /// How far the choroid shines through.
    choroid: f32,
    choroid_pitch: f32,
    /// Bright haze of nerve fibres around the disc and along the arcades.
    fibres: f32,
    /// Darkness and radius (of the disc-fovea distance) of the macula and of its centre.
    macula: f32,
    macula_radius: f32,
    fovea: f32,
    /// Fine grain of the pigment layer.
    grain: f32,
    /// Strength of the yellowish deep-colour drift over the picture.
    drift: f32,
    /// Macular reflexes of a young eye (0 in most).
    shine: f32,
    noise: [Noise; 6],
}

impl Tone {
    /// A tone in the range that cameras and skins give.
    pub(super) fn draw(draw: &mut RandomStream) -> Self {
        let red = draw.range(0.54, 0.76);
        let green = red * (0.445 + 0.035 * draw.normal()).clamp(0.385, 0.52);
        let blue = green * draw.skewed(0.06, 0.46, 1.3);
        Self {
            colour: [red, green, blue],
            falloff: draw.range(0.06, 0.34),
            tilt: [0.08 * draw.normal(), 0.05 * draw.normal()],
            blotch: draw.range(0.06, 0.16),
            choroid: draw.skewed(0.015, 0.12, 1.8),
            choroid_pitch: draw.range(40.0, 66.0),
            fibres: draw.range(0.05, 0.3),
            macula: draw.range(0.1, 0.3),
            macula_radius: draw.range(0.3, 0.48),
            fovea: draw.range(0.08, 0.3),
            grain: draw.range(0.012, 0.03),
            drift: draw.range(0.02, 0.07),
            shine: if draw.chance(0.2) {
                draw.range(0.03, 0.1)
            } else {
                0.0
            },
            noise: std::array::from_fn(|_| Noise::new(draw.word())),
        }
    }

    /// What a hard exudate adds, in units of the local red: yellow, bluer under a whiter lamp.
    pub(super) fn exudate_gain(&self) -> [f32; 3] {
        [0.52, 1.1, 0.1 + 1.1 * self.colour[2] / self.colour[0]]
    }

    /// What cotton wool adds, in units of the local red: paler than an exudate.
    pub(super) fn wool_gain(&self) -> [f32; 3] {
        [0.34, 0.72, 0.2 + 1.3 * self.colour[2] / self.colour[0]]
    }

    /// Colour at an image position, without the fine grain: smooth enough to be sampled coarsely.
    fn at(&self, eye: &Eye, x: f32, y: f32) -> [f32; 3] {
        let design = [x / eye.scale, y / eye.scale];
        let p = eye.to_eye([x, y]);
        let unit = eye.fovea[0];
        let out = [
            (x - eye.centre[0]) / eye.radius,
            (y - eye.centre[1]) / eye.radius,
        ];
        let r = out[0].hypot(out[1]);
        let from_fovea = (p[0] - eye.fovea[0]).hypot(p[1] - eye.fovea[1]) / unit;
        let from_disc = p[0].hypot(p[1]) / unit;

        let mut light = 1.0 - self.falloff * r * r - 0.5 * self.falloff * smoothstep(0.86, 1.02, r);
        light += self.tilt[0] * out[0] + self.tilt[1] * out[1];
        light += self.blotch * self.noise[0].fractal(design[0] / 420.0, design[1] / 420.0, 3);
        // Shade takes green and blue away before red.
        let mut gain = [light.powf(0.85), light.powf(1.2), light.powf(1.35)];

        let drift = self.drift * self.noise[1].fractal(design[0] / 260.0, design[1] / 260.0, 3);
        let mottle =
            1.7 * self.grain * self.noise[4].fractal(design[0] / 42.0, design[1] / 42.0, 3);
        gain[0] *= 1.0 + 0.5 * mottle;
        gain[1] *= 1.0 + drift + mottle;
        gain[2] *= 1.0 + 1.6 * drift + mottle;

        let choroid =
            self.choroid * self.choroid_pattern(design) * smoothstep(0.15, 0.75, from_fovea);
        gain[0] *= 1.0 + 0.35 * choroid;
        gain[1] *= 1.0 + choroid;
        gain[2] *= 1.0 + 0.8 * choroid;

        let fibres = self.fibres * self.fibre_haze(p, unit, from_disc, from_fovea);
        gain[0] *= 1.0 + 0.3 * fibres;
        gain[1] *= 1.0 + fibres;
        gain[2] *= 1.0 + 1.1 * fibres;

        let uneven = 1.0 + 0.22 * self.noise[2].fractal(design[0] / 60.0, design[1] / 60.0, 3);
        let shade = self.macula * bell(from_fovea, self.macula_radius) * uneven
            + self.fovea * bell(from_fovea, 0.1);
        gain[0] *= 1.0 - 0.55 * shade;
        gain[1] *= 1.0 - 0.95 * shade;
        gain[2] *= 1.0 - 1.2 * shade;

        let ring = bell(from_fovea - 0.21, 0.045)
            * (0.5 + self.noise[3].at(design[0] / 90.0, design[1] / 90.0));
        let glint = bell(from_fovea, 0.018) * 2.5;
        let shine = self.shine * (ring.max(0.0) + glint);
        std::array::from_fn(|k| self.colour[k] * gain[k] + shine * [0.55, 0.7, 0.5][k])
    }

    /// Choroidal vessels: a net of bent bands, -1..1.
    fn choroid_pattern(&self, design: [f32; 2]) -> f32 {
        let pitch = self.choroid_pitch;
        let (x, y) = (design[0] / pitch, design[1] / pitch);
        let warp_x = 1.6 * self.noise[3].fractal(x / 4.3, y / 4.3, 2);
        let warp_y = 1.6 * self.noise[4].fractal(x / 4.3, y / 4.3, 2);
        let (u, v) = (x + warp_x, y + warp_y);
        let band = 0.8 - 2.6 * self.noise[4].at(0.8 * u, v).abs().min(0.6);
        0.5 * band + 0.7 * self.noise[5].fractal(0.6 * u, 0.75 * v, 3)
    }

    /// Nerve-fibre haze: around the disc and in two arcs, streaked along the fibres; 0..1.
    fn fibre_haze(&self, p: [f32; 2], unit: f32, from_disc: f32, from_fovea: f32) -> f32 {
        let temporal = smoothstep(-0.3, 0.4, p[0] / unit);
        let arcs = bell(from_fovea - 0.85, 0.3) * bell(from_disc - 0.4, 0.75) * temporal;
        let halo = bell(from_disc, 0.42);
        let streak = 1.0 + 0.22 * self.noise[5].at(9.0 * p[1].atan2(p[0]), 2.0 * from_disc);
        (0.75 * halo + 0.8 * arcs) * streak
    }
}

/// Paints the retina and the optic disc into an empty canvas.
pub(super) fn paint(eye: &Eye, tone: &Tone, canvas: &mut Canvas, draw: &mut RandomStream) {
    paint_retina(eye, tone, canvas);
    paint_disc(eye, tone, canvas, draw);
}

/// Samples the tone every few pixels, interpolates, and adds the grain at full resolution.
fn paint_retina(eye: &Eye, tone: &Tone, canvas: &mut Canvas) {
    let size = canvas.size;
    let pitch = (4.0 * eye.scale).round().max(1.0);
    let edge = (size as f32 / pitch).ceil() as usize + 2;
    let reach = eye.radius + 3.0 * pitch;
    let mut coarse = vec![[0.0f32; 3]; edge * edge];
    for (i, sample) in coarse.iter_mut().enumerate() {
        let (x, y) = ((i % edge) as f32 * pitch, (i / edge) as f32 * pitch);
        if (x - eye.centre[0]).hypot(y - eye.centre[1]) < reach {
            *sample = tone.at(eye, x, y);
        }
    }
    let fine = 1.0 / (2.6 * eye.scale).max(1.3);
    let medium = 1.0 / (7.0 * eye.scale).max(2.6);
    let whole = Rect {
        x0: 0,
        y0: 0,
        x1: size,
        y1: size,
    };
    whole.for_each(size, |i, x, y| {
        if eye.depth(x, y) <= 0.0 {
            return;
        }
        let (u, v) = (x / pitch, y / pitch);
        let at = v as usize * edge + u as usize;
        let (tu, tv) = (u.fract(), v.fract());
        let grain = 0.5 * tone.noise[0].at(x * fine, y * fine)
            + 0.8 * tone.noise[1].at(x * medium, y * medium);
        let gain = 1.0 + tone.grain * grain;
        for k in 0..3 {
            let top = lerp(coarse[at][k], coarse[at + 1][k], tu);
            let low = lerp(coarse[at + edge][k], coarse[at + edge + 1][k], tu);
            let strength = [0.5, 1.0, 1.0][k];
            canvas.rgb[i][k] = lerp(top, low, tv) * lerp(1.0, gain, strength);
        }
    });
}

/// The optic disc: pale ellipse with a brighter cup, a rim that is redder on the nasal side, and in
/// some eyes a crescent of bare sclera or pigment beside it.
fn paint_disc(eye: &Eye, tone: &Tone, canvas: &mut Canvas, draw: &mut RandomStream) {
    let radius = eye.disc_radius;
    let tall = draw.range(1.0, 1.14);
    let lean = 0.05 * draw.normal();
    let cup_radius = radius * draw.range(0.3, 0.58);
    let cup_at = [
        radius * draw.range(0.0, 0.22),
        radius * 0.06 * draw.normal(),
    ];
    let pale = draw.range(0.84, 1.08);
    let softness = draw.range(0.07, 0.17);
    let crescent = if draw.chance(0.4) {
        draw.range(0.15, 0.55)
    } else {
        0.0
    };
    let crescent_width = draw.range(0.1, 0.34);
    let pigment = if draw.chance(0.35) {
        draw.range(0.1, 0.3)
    } else {
        0.0
    };
    let glow = draw.range(0.05, 0.16);
    let noise = Noise::new(draw.word());
    let light = tone.colour;
    // Bright tissue: near-saturated red, and green and blue lifted in the lamp's own proportion.
    let rim = [
        lerp(light[0], 0.98, 0.7),
        lerp(light[1], 0.6, 0.75) * pale,
        light[2] * 1.7 * pale + 0.04,
    ];
    let cup = [
        lerp(light[0], 1.05, 0.9),
        lerp(light[1], 0.86, 0.85) * pale,
        light[2] * 2.6 * pale + 0.15,
    ];

    let rect = Rect::around(
        eye.disc[0],
        eye.disc[1],
        2.6 * radius * eye.scale,
        canvas.size,
    );
    rect.for_each(canvas.size, |i, x, y| {
        if eye.depth(x, y) <= 0.0 {
            return;
        }
        let p = eye.to_eye([x, y]);
        let q = [p[0] + lean * p[1], p[1] / tall];
        let angle = q[1].atan2(q[0]);
        let ragged = 1.0 + 0.035 * noise.at(1.5 * angle.cos() + 9.0, 1.5 * angle.sin());
        let r = q[0].hypot(q[1]) / (radius * ragged);
        let pixel = &mut canvas.rgb[i];

        let halo = glow * bell((r - 1.0).max(0.0), 0.55);
        let beside = crescent
            * bell(angle, 1.0)
            * smoothstep(1.0 + crescent_width + 0.05, 1.0 + 0.6 * crescent_width, r);
        let ring = pigment
            * bell(angle, 1.3)
            * bell(r - 1.03 - crescent_width * f32::from(crescent > 0.0), 0.06);
        for k in 0..3 {
            pixel[k] *= 1.0 + halo * [0.35, 1.0, 1.0][k];
            pixel[k] = lerp(pixel[k], lerp(pixel[k], rim[k], 0.8), beside);
            pixel[k] *= 1.0 - ring * [0.6, 1.0, 0.8][k];
        }
        let inside = smoothstep(1.0 + softness, 1.0 - softness, r);
        if inside > 0.0 {
            let c = [p[0] - cup_at[0], p[1] - cup_at[1]];
            let dent =
                1.0 + 0.25 * noise.at(1.3 * c[0] / cup_radius + 4.0, 1.3 * c[1] / cup_radius);
            let in_cup = smoothstep(1.7, 0.35, c[0].hypot(c[1]) / (cup_radius * dent));
            let nasal = smoothstep(0.5, -1.0, q[0] / radius);
            let mottle = 1.0 + 0.07 * noise.fractal(3.5 * q[0] / radius, 3.5 * q[1] / radius, 3);
            for k in 0..3 {
                let tissue = rim[k] * (1.0 - nasal * [0.04, 0.2, 0.22][k]) * mottle;
                pixel[k] = lerp(pixel[k], lerp(tissue, cup[k], in_cup), inside);
            }
        }
    });
}

/// A cup of this share of the disc's radius: pale, with a sharp edge and a thin rim left around it, as in glaucoma.
pub(super) fn paint_cup(eye: &Eye, share: f32, canvas: &mut Canvas) {
    let radius = eye.disc_radius * share;
    let rect = Rect::around(
        eye.disc[0],
        eye.disc[1],
        1.2 * radius * eye.scale,
        canvas.size,
    );
    rect.for_each(canvas.size, |i, x, y| {
        if eye.depth(x, y) <= 0.0 {
            return;
        }
        let p = eye.to_eye([x, y]);
        let inside = smoothstep(1.06, 0.94, p[0].hypot(p[1]) / radius);
        let pixel = &mut canvas.rgb[i];
        for (value, pale) in pixel.iter_mut().zip([1.0, 0.97, 0.8]) {
            *value = lerp(*value, pale, 0.85 * inside);
        }
    });
}
