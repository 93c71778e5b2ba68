//! Look-alikes of lesions: drusen, pigment, laser scars, new vessels, reflections, dust,
//! haze. They carry no mask.

use super::arcades::VesselKind;
use super::canvas::{Canvas, Rect, ScalarField};
use super::eye::Eye;
use super::noise::{Noise, bell, lerp, smoothstep};
use super::rng::RandomStream;
use super::vessels::{Vessel, VesselTree};

/// Absorption of melanin: brown to grey, not red.
const MELANIN: [f32; 3] = [0.42, 0.55, 0.4];

/// Below the vessels: drusen (in this share of all eyes), pigment, laser scars.
pub(super) fn paint_deep(
    eye: &Eye,
    grade: u8,
    with_drusen: f32,
    canvas: &mut Canvas,
    layer: &mut ScalarField,
    draw: &mut RandomStream,
) {
    let noise = Noise::new(draw.word());
    if draw.chance(with_drusen) {
        layer.clear();
        drusen(eye, noise, layer, draw);
        canvas.scatter(layer, [0.1, 0.17, 0.08]);
    }
    if grade == 4 && draw.chance(0.25) {
        laser_scars(eye, noise, canvas, layer, draw);
    }
    if draw.chance(0.6) {
        layer.clear();
        for _ in 0..draw.count(1, 7) {
            let at = anywhere(eye, draw);
            let (radius, strength) = (draw.skewed(3.0, 16.0, 2.0), draw.range(0.2, 0.7));
            blob(eye, noise, at, radius, 0.35, strength, layer);
        }
        if draw.chance(0.12) {
            let at = anywhere(eye, draw);
            blob(eye, noise, at, draw.range(35.0, 90.0), 0.6, 0.35, layer);
        }
        canvas.absorb(layer, MELANIN);
    }
}

/// Pale, round, blurred spots, gathered around the macula.
fn drusen(eye: &Eye, noise: Noise, layer: &mut ScalarField, draw: &mut RandomStream) {
    let (spread, strength) = (draw.range(60.0, 260.0), draw.range(0.35, 0.9));
    for _ in 0..draw.count(6, 45) {
        let p = [
            eye.fovea[0] + spread * draw.normal(),
            eye.fovea[1] + spread * draw.normal(),
        ];
        let radius = draw.skewed(3.0, 11.0, 1.7);
        blob(
            eye,
            noise,
            eye.to_image(p),
            radius,
            0.6,
            strength * draw.range(0.4, 1.0),
            layer,
        );
    }
}

/// Large drusen, this many, close around the macula: the sign of its degeneration.
pub(super) fn many_drusen(
    eye: &Eye,
    count: usize,
    layer: &mut ScalarField,
    draw: &mut RandomStream,
) {
    let noise = Noise::new(draw.word());
    let spread = draw.range(80.0, 140.0);
    for _ in 0..count {
        let p = [
            eye.fovea[0] + spread * draw.normal(),
            eye.fovea[1] + spread * draw.normal(),
        ];
        let (radius, strength) = (draw.range(9.0, 20.0), draw.range(0.6, 1.0));
        blob(eye, noise, eye.to_image(p), radius, 0.4, strength, layer);
    }
}

/// Old photocoagulation: rows of pale discs with a dark fleck, away from the macula.
fn laser_scars(
    eye: &Eye,
    noise: Noise,
    canvas: &mut Canvas,
    layer: &mut ScalarField,
    draw: &mut RandomStream,
) {
    let pitch = draw.range(62.0, 95.0);
    let (from, towards) = (draw.range(0.85, 1.15), draw.angle());
    let mut scars = Vec::new();
    for (i, j) in (-9..=9).flat_map(|i| (-9..=9).map(move |j| (i, j))) {
        let p = [
            eye.fovea[0] + pitch * (i as f32 + 0.5 * (j & 1) as f32 + 0.16 * draw.normal()),
            eye.fovea[1] + pitch * (j as f32 + 0.16 * draw.normal()),
        ];
        let (dx, dy) = (p[0] - eye.fovea[0], p[1] - eye.fovea[1]);
        let sector = (dy.atan2(dx) - towards).cos() > -0.2;
        let off_disc = p[0].hypot(p[1]) > 1.9 * eye.disc_radius;
        if sector && off_disc && dx.hypot(dy) > from * eye.fovea[0] && draw.chance(0.8) {
            scars.push((
                eye.to_image(p),
                draw.range(11.0, 19.0),
                draw.range(0.3, 1.0),
            ));
        }
    }
    layer.clear();
    scars
        .iter()
        .for_each(|&(at, radius, strength)| blob(eye, noise, at, radius, 0.3, strength, layer));
    canvas.scatter(layer, [0.1, 0.19, 0.13]);
    layer.clear();
    scars.iter().for_each(|&(at, radius, strength)| {
        blob(
            eye,
            noise,
            at,
            0.5 * radius,
            0.5,
            0.8 - 0.7 * strength,
            layer,
        )
    });
    canvas.absorb(layer, MELANIN);
}

/// A soft irregular spot of `radius` design pixels at an image position.
fn blob(
    eye: &Eye,
    noise: Noise,
    at: [f32; 2],
    radius: f32,
    softness: f32,
    strength: f32,
    layer: &mut ScalarField,
) {
    let radius = (radius * eye.scale).max(0.8);
    let rect = Rect::around(at[0], at[1], 1.8 * radius + 1.0, layer.size);
    layer.stamp(rect, |x, y| {
        let (dx, dy) = ((x - at[0]) / radius, (y - at[1]) / radius);
        let r = dx.hypot(dy) + 0.3 * noise.at(dx + at[0], dy + at[1]);
        strength * smoothstep(1.0 + softness, 1.0 - softness, r)
    });
}

/// A uniform image position within the field of view.
fn anywhere(eye: &Eye, draw: &mut RandomStream) -> [f32; 2] {
    let (r, angle) = (0.95 * eye.radius * draw.unit().sqrt(), draw.angle());
    [
        eye.centre[0] + r * angle.cos(),
        eye.centre[1] + r * angle.sin(),
    ]
}

/// New vessels of proliferative disease: a tangle of thin loops at the disc or on an arcade.
pub(super) fn grow_new_vessels(eye: &Eye, tree: &mut VesselTree, draw: &mut RandomStream) {
    let unit = eye.fovea[0];
    for _ in 0..draw.count(1, 3) {
        let root = if draw.chance(0.5) {
            [
                draw.range(-0.1, 0.12) * unit,
                draw.range(-0.15, 0.15) * unit,
            ]
        } else {
            [
                draw.range(0.3, 1.2) * unit,
                draw.sign() * draw.range(0.6, 0.9) * unit,
            ]
        };
        let fan = draw.angle();
        for _ in 0..draw.count(8, 18) {
            let mut heading = fan + draw.range(-1.3, 1.3);
            let (mut p, curl) = (root, 0.035 * draw.normal());
            let mut drift = 0.0;
            let width = draw.range(1.6, 3.0);
            let points = (0..draw.count(14, 42))
                .map(|i| {
                    let here = (p, width * (1.0 - i as f32 / 90.0));
                    drift = 0.8 * drift + 0.07 * draw.normal();
                    heading += curl + drift;
                    p = [p[0] + 3.5 * heading.cos(), p[1] + 3.5 * heading.sin()];
                    here
                })
                .collect();
            let kind = if draw.chance(0.5) {
                VesselKind::Artery
            } else {
                VesselKind::Vein
            };
            tree.add(Vessel { kind, points });
        }
    }
}

/// Above everything: reflections of the inner limiting membrane, dust on the lens, haze, flare.
pub(super) fn paint_surface(
    eye: &Eye,
    canvas: &mut Canvas,
    layer: &mut ScalarField,
    draw: &mut RandomStream,
) {
    let noise = Noise::new(draw.word());
    if draw.chance(0.3) {
        layer.clear();
        reflections(eye, noise, layer, draw);
        canvas.scatter(layer, [0.14, 0.2, 0.17]);
    }
    if draw.chance(0.3) {
        layer.clear();
        for _ in 0..draw.count(1, 3) {
            let (at, radius, strength) = (
                anywhere(eye, draw),
                draw.range(8.0, 26.0),
                draw.range(0.05, 0.16),
            );
            blob(eye, noise, at, radius, 0.5, strength, layer);
        }
        canvas.absorb(layer, [1.0; 3]);
    }
    veil(eye, noise, canvas, draw);
}

/// Silvery flecks and streaks along the nerve fibres.
fn reflections(eye: &Eye, noise: Noise, layer: &mut ScalarField, draw: &mut RandomStream) {
    let strength = draw.range(0.25, 0.8);
    for _ in 0..draw.count(8, 40) {
        let p = [
            draw.range(-0.4, 1.3) * eye.fovea[0],
            draw.range(-0.9, 0.9) * eye.fovea[0],
        ];
        let (at, angle) = (eye.to_image(p), eye.direction(eye.nerve_fibre(p)));
        let (sin, cos) = angle.sin_cos();
        let (long, wide) = (
            draw.range(10.0, 55.0) * eye.scale,
            (draw.range(1.5, 5.0) * eye.scale).max(0.6),
        );
        let bright = strength * draw.range(0.3, 1.0);
        let rect = Rect::around(at[0], at[1], 1.5 * long + wide, layer.size);
        layer.stamp(rect, |x, y| {
            let (dx, dy) = (x - at[0], y - at[1]);
            let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
            let wave = across + 0.8 * wide * noise.at(along / (14.0 * eye.scale), at[0]);
            bright * bell(along, 0.6 * long) * bell(wave, 0.8 * wide)
        });
    }
}

/// Cloudy media over the whole picture, and in some a bright crescent at the edge.
fn veil(eye: &Eye, noise: Noise, canvas: &mut Canvas, draw: &mut RandomStream) {
    let haze = draw.skewed(0.0, 0.16, 2.5);
    let flare = if draw.chance(0.22) {
        draw.range(0.08, 0.3)
    } else {
        0.0
    };
    let (flare_side, flare_wide) = (draw.angle(), draw.range(0.05, 0.14));
    let colour = [
        draw.range(0.6, 0.75),
        draw.range(0.38, 0.5),
        draw.range(0.16, 0.32),
    ];
    let (size, pitch) = (canvas.size, 330.0 * eye.scale);
    if haze < 0.01 && flare == 0.0 {
        return;
    }
    let whole = Rect {
        x0: 0,
        y0: 0,
        x1: size,
        y1: size,
    };
    whole.for_each(size, |i, x, y| {
        let (dx, dy) = (
            (x - eye.centre[0]) / eye.radius,
            (y - eye.centre[1]) / eye.radius,
        );
        let r = dx.hypot(dy);
        if r > 1.0 {
            return;
        }
        let mut cover = haze * (1.0 + 0.8 * noise.at(x / pitch, y / pitch));
        if flare > 0.0 {
            let towards = dx * flare_side.cos() + dy * flare_side.sin();
            cover += flare * smoothstep(0.3, 0.95, towards) * bell(1.0 - r, flare_wide);
        }
        let pixel = &mut canvas.rgb[i];
        for k in 0..3 {
            pixel[k] = lerp(pixel[k], colour[k], cover);
        }
    });
}
