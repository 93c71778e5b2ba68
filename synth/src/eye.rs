//! Anatomy in numbers: where things are in one eye, and how it sits in the photograph.
//!
//! The *eye frame* has its origin at the optic disc, x towards the fovea (temporal), y down, in
//! design pixels (pixels of a 1280-pixel image). Image positions are in real pixels.

use super::noise::smoothstep;
use super::rng::RandomStream;

/// Edge length at which all sizes are given; other images scale them.
pub(super) const DESIGN_SIZE: f32 = 1280.0;

/// One eye as the camera saw it.
#[derive(Clone, Debug)]
pub(super) struct Eye {
    /// Pixels per design pixel.
    pub(super) scale: f32,
    /// Centre of the field of view, image pixels.
    pub(super) centre: [f32; 2],
    /// Radius of the field of view, image pixels.
    pub(super) radius: f32,
    /// Half height of the field of view, image pixels: some cameras cut it off above and below.
    half_height: f32,
    /// Width of its soft edge, image pixels.
    edge: f32,
    /// Optic disc centre, image pixels.
    pub(super) disc: [f32; 2],
    /// Optic disc radius, design pixels.
    pub(super) disc_radius: f32,
    /// Fovea in the eye frame, design pixels.
    pub(super) fovea: [f32; 2],
    /// Unit image vectors of the eye frame's x and y.
    axes: [[f32; 2]; 2],
}

impl Eye {
    /// A left or right eye, macula-centred more often than not.
    pub(super) fn draw(size: usize, draw: &mut RandomStream) -> Self {
        let scale = size as f32 / DESIGN_SIZE;
        let middle = size as f32 / 2.0;
        let centre = [
            middle + 5.0 * scale * draw.normal(),
            middle + 5.0 * scale * draw.normal(),
        ];
        let slack = (centre[0] - middle).abs().max((centre[1] - middle).abs());
        let radius = (draw.range(0.484, 0.4985) * size as f32).min(middle - slack - scale);
        let cut = if draw.chance(0.3) {
            draw.range(0.86, 0.98)
        } else {
            2.0
        };
        let fovea_distance = radius / scale * draw.range(0.66, 0.78);
        let fovea = [fovea_distance, fovea_distance * draw.range(0.03, 0.17)];
        let side = draw.sign();
        let (sin, cos) = (0.05 * draw.normal()).sin_cos();
        let axes = [[side * cos, sin], [-side * sin, cos]];
        // How far along the line disc -> fovea the camera looked: 1 is the fovea, 0 the disc.
        let aim = match draw.unit() {
            u if u < 0.68 => 0.97 + 0.09 * draw.normal(),
            u if u < 0.85 => draw.range(0.45, 0.8),
            _ => draw.range(0.0, 0.2),
        };
        let look = [fovea[0] * aim, fovea[1] * aim + 28.0 * draw.normal()];
        let offset = |k: usize| scale * (axes[0][k] * look[0] + axes[1][k] * look[1]);
        Self {
            scale,
            centre,
            radius,
            half_height: radius * cut,
            edge: scale * draw.range(1.5, 4.0),
            disc: [centre[0] - offset(0), centre[1] - offset(1)],
            disc_radius: fovea_distance * draw.range(0.185, 0.225),
            fovea,
            axes,
        }
    }

    /// Eye frame to image pixels.
    pub(super) fn to_image(&self, p: [f32; 2]) -> [f32; 2] {
        let at = |k: usize| {
            self.disc[k] + self.scale * (self.axes[0][k] * p[0] + self.axes[1][k] * p[1])
        };
        [at(0), at(1)]
    }

    /// Image pixels to eye frame.
    pub(super) fn to_eye(&self, p: [f32; 2]) -> [f32; 2] {
        let d = [
            (p[0] - self.disc[0]) / self.scale,
            (p[1] - self.disc[1]) / self.scale,
        ];
        self.axes.map(|axis| axis[0] * d[0] + axis[1] * d[1])
    }

    /// An eye-frame direction (radians) as an image direction.
    pub(super) fn direction(&self, angle: f32) -> f32 {
        let (sin, cos) = angle.sin_cos();
        let at = |k: usize| self.axes[0][k] * cos + self.axes[1][k] * sin;
        at(1).atan2(at(0))
    }

    /// Distance in image pixels from the edge of the field of view, positive inside.
    pub(super) fn depth(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        (self.radius - dx.hypot(dy)).min(self.half_height - dy.abs())
    }

    /// How much light of (x, y) reaches the film: 0 outside the field of view, 1 inside.
    pub(super) fn aperture(&self, x: f32, y: f32) -> f32 {
        smoothstep(0.0, self.edge, self.depth(x, y))
    }

    /// Direction (radians, eye frame) of the nerve fibres at an eye-frame position: they leave the
    /// disc radially and arch over and under the fovea.
    pub(super) fn nerve_fibre(&self, p: [f32; 2]) -> f32 {
        let q = [p[0] - self.fovea[0], p[1] - self.fovea[1]];
        let from_disc = p[0].hypot(p[1]).max(1.0);
        let from_fovea = q[0].hypot(q[1]).max(1.0);
        let turn = if q[1] < 0.0 { 1.0 } else { -1.0 };
        let arch = [-q[1] * turn / from_fovea, q[0] * turn / from_fovea];
        let weight = 1.6
            * smoothstep(2.0, 0.4, from_fovea / self.fovea[0])
            * smoothstep(0.1, 0.8, p[0] / self.fovea[0]);
        let x = p[0] / from_disc + weight * arch[0];
        let y = p[1] / from_disc + weight * arch[1];
        y.atan2(x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::{Purpose, RandomStream};
    use super::*;

    fn eyes(size: usize) -> impl Iterator<Item = Eye> {
        (0..40).map(move |i| Eye::draw(size, &mut RandomStream::new(5, i, Purpose::Geometry)))
    }

    #[test]
    fn frames_are_inverse_and_both_sides_occur() {
        let (mut left, mut right) = (0, 0);
        for eye in eyes(640) {
            let p = eye.to_eye(eye.to_image([120.0, -77.0]));
            assert!(
                (p[0] - 120.0).abs() < 0.01 && (p[1] + 77.0).abs() < 0.01,
                "{p:?}"
            );
            let fovea = eye.to_image(eye.fovea);
            if fovea[0] > eye.disc[0] {
                left += 1
            } else {
                right += 1
            }
        }
        assert!(left > 5 && right > 5, "{left} left, {right} right");
    }

    #[test]
    fn the_field_of_view_stays_in_the_image() {
        for size in [256, 1280] {
            for eye in eyes(size) {
                assert!(
                    eye.centre[0] - eye.radius >= 0.0 && eye.centre[0] + eye.radius <= size as f32
                );
                assert_eq!(eye.aperture(0.5, 0.5), 0.0);
                assert_eq!(eye.aperture(eye.centre[0], eye.centre[1]), 1.0);
            }
        }
    }

    #[test]
    fn nerve_fibres_leave_the_disc_and_arch_over_the_fovea() {
        let eye = Eye::draw(1280, &mut RandomStream::new(1, 1, Purpose::Geometry));
        let near_disc = eye.nerve_fibre([-60.0, 0.0]);
        assert!(near_disc.cos() < -0.9, "nasal fibres run nasally");
        let above = eye.nerve_fibre([eye.fovea[0], eye.fovea[1] - 200.0]);
        assert!(above.cos() > 0.8, "over the fovea they run temporally");
    }
}
