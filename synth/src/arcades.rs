//! The paths of the eight large vessels: an artery and a vein above and below the fovea, and the
//! same on the nasal side.

use super::noise::{lerp, smoothstep};
use super::rng::RandomStream;

/// Distance between the points of a vessel, design pixels.
pub(super) const STEP: f32 = 4.0;

/// Arteries carry bright blood behind a reflecting wall, veins dark blood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VesselKind {
    /// Lighter, thinner, with a bright reflex along the middle.
    Artery,
    /// Darker and wider, without a reflex.
    Vein,
}

/// A point of a vessel's course (eye frame, design pixels) and its heading there (radians).
pub(super) type Waypoint = ([f32; 2], f32);

/// The way that an artery and its vein take together, in units of the disc-fovea distance: heights
/// over the horizontal through the disc at six places.
pub(super) struct Course {
    /// -1 above, 1 below.
    vertical: f32,
    places: [[f32; 2]; 6],
}

impl Course {
    /// A course over (`vertical` -1) or under (1) the fovea.
    pub(super) fn draw(vertical: f32, draw: &mut RandomStream) -> Self {
        let apex = draw.range(0.66, 1.04);
        let lag = draw.range(-0.1, 0.12);
        let end = draw.range(0.35, 1.1);
        let heights = [
            0.27,
            0.69 * apex,
            apex,
            lerp(apex, end, 0.3),
            lerp(apex, end, 0.7),
            end,
        ];
        let along = [0.01, 0.26 + 0.5 * lag, 0.7 + lag, 1.2 + lag, 1.8, 2.8];
        let places = std::array::from_fn(|i| {
            let free = if i == 0 { 0.015 } else { 0.05 };
            [
                along[i] + free * draw.normal(),
                heights[i] + 0.8 * free * draw.normal(),
            ]
        });
        Self { vertical, places }
    }

    /// The way from `root` (in units of the disc-fovea distance, `unit` design pixels) around the
    /// fovea. The artery weaves around the course that the vein takes.
    pub(super) fn temporal(
        &self,
        root: [f32; 2],
        kind: VesselKind,
        unit: f32,
        tortuosity: f32,
        draw: &mut RandomStream,
    ) -> Vec<Waypoint> {
        let (start, weave) = match kind {
            VesselKind::Vein => (0.01, 0.0),
            VesselKind::Artery => (-0.03, draw.range(0.06, 0.12)),
        };
        let neck = [
            draw.range(start - 0.04, start + 0.02),
            draw.range(0.11, 0.15),
        ];
        let mut controls = vec![root, [neck[0], self.vertical * neck[1]]];
        let mut side = weave * draw.sign();
        for (i, place) in self.places.iter().enumerate() {
            let apart = if i == 0 { start } else { side };
            controls.push([place[0] + 0.5 * apart, self.vertical * (place[1] + apart)]);
            if draw.chance(0.35) {
                side = -side;
            }
        }
        trace(&controls, unit, tortuosity, draw)
    }

    /// The way from `root` towards the nose.
    pub(super) fn nasal(
        &self,
        root: [f32; 2],
        kind: VesselKind,
        unit: f32,
        tortuosity: f32,
        draw: &mut RandomStream,
    ) -> Vec<Waypoint> {
        let start = if kind == VesselKind::Vein {
            -0.03
        } else {
            -0.06
        };
        let spread = draw.range(0.7, 1.2);
        let mut at = |x: [f32; 2], y: [f32; 2]| {
            [
                draw.range(x[0], x[1]),
                self.vertical * draw.range(y[0], y[1]),
            ]
        };
        let controls = [
            root,
            at([start - 0.04, start], [0.1, 0.13]),
            at([-0.17, -0.1], [0.24, 0.28]),
            at([-0.42, -0.3], [0.55 * spread, 0.65 * spread]),
            at([-0.85, -0.65], [0.9 * spread, 1.1 * spread]),
            at([-1.7, -1.4], [1.4 * spread, 1.8 * spread]),
        ];
        trace(&controls, unit, tortuosity, draw)
    }
}

/// A winding line along the curve through `controls` (in `unit` design pixels).
fn trace(
    controls: &[[f32; 2]],
    unit: f32,
    tortuosity: f32,
    draw: &mut RandomStream,
) -> Vec<Waypoint> {
    let controls: Vec<[f32; 2]> = controls.iter().map(|c| c.map(|v| v * unit)).collect();
    let wiggle = Wiggle::draw(tortuosity * 3.6, draw);
    let path = spline(&controls);
    (0..path.len())
        .map(|i| {
            let (along, heading) = (i as f32 * STEP, tangent(&path, i));
            let shift = wiggle.at(along) * smoothstep(0.0, 120.0, along);
            let (sin, cos) = heading.sin_cos();
            let at = [path[i][0] - sin * shift, path[i][1] + cos * shift];
            (at, heading)
        })
        .collect()
}

/// Sideways deviation along a vessel: a few sines of different length.
struct Wiggle([(f32, f32, f32); 4]);

impl Wiggle {
    fn draw(amplitude: f32, draw: &mut RandomStream) -> Self {
        Self([320.0, 170.0, 90.0, 48.0].map(|length: f32| {
            let size = amplitude * (length / 170.0).powf(0.8) * draw.range(0.4, 1.0);
            (
                std::f32::consts::TAU / (length * draw.range(0.8, 1.25)),
                draw.angle(),
                size,
            )
        }))
    }

    fn at(&self, along: f32) -> f32 {
        self.0
            .iter()
            .map(|(rate, phase, size)| size * (rate * along + phase).sin())
            .sum()
    }
}

/// Centripetal Catmull-Rom curve through the control points (Yuksel et al., CAD 2011: no kinks where
/// they lie unevenly), one point about every [`STEP`].
fn spline(controls: &[[f32; 2]]) -> Vec<[f32; 2]> {
    let last = controls.len() - 1;
    let mirror = |at: usize, of: usize| [0, 1].map(|a| 2.0 * controls[at][a] - controls[of][a]);
    let mut path = Vec::new();
    for i in 0..last {
        let (p1, p2) = (controls[i], controls[i + 1]);
        let p0 = if i == 0 {
            mirror(0, 1)
        } else {
            controls[i - 1]
        };
        let p3 = if i + 2 > last {
            mirror(last, last - 1)
        } else {
            controls[i + 2]
        };
        let knot = |a: [f32; 2], b: [f32; 2]| (b[0] - a[0]).hypot(b[1] - a[1]).sqrt().max(1e-3);
        let (k0, k1, k2) = (knot(p0, p1), knot(p1, p2), knot(p2, p3));
        let steps = (k1 * k1 / STEP).ceil().max(1.0);
        for k in 0..steps as usize {
            let t = k as f32 / steps;
            path.push([0, 1].map(|a| {
                let slope = p2[a] - p1[a];
                let m1 = slope + k1 * ((p1[a] - p0[a]) / k0 - (p2[a] - p0[a]) / (k0 + k1));
                let m2 = slope + k1 * ((p3[a] - p2[a]) / k2 - (p3[a] - p1[a]) / (k1 + k2));
                let (c2, c3) = (3.0 * slope - 2.0 * m1 - m2, m1 + m2 - 2.0 * slope);
                p1[a] + t * (m1 + t * (c2 + t * c3))
            }));
        }
    }
    path.push(controls[last]);
    path
}

fn tangent(path: &[[f32; 2]], i: usize) -> f32 {
    let (a, b) = (path[i.saturating_sub(1)], path[(i + 1).min(path.len() - 1)]);
    (b[1] - a[1]).atan2(b[0] - a[0])
}

#[cfg(test)]
mod tests {
    use super::super::rng::Purpose;
    use super::*;

    #[test]
    fn arcades_run_over_and_under_the_fovea_in_even_steps() {
        for index in 0..30 {
            let mut draw = RandomStream::new(1, index, Purpose::Vessels);
            for vertical in [-1.0, 1.0] {
                let course = Course::draw(vertical, &mut draw);
                for kind in [VesselKind::Artery, VesselKind::Vein] {
                    let path = course.temporal([0.0; 2], kind, 450.0, 1.0, &mut draw);
                    let crossing = path.iter().find(|(p, _)| p[0] > 450.0).unwrap().0;
                    assert!(crossing[1] * vertical > 0.4 * 450.0, "{crossing:?}");
                    for pair in path.windows(2) {
                        let [(a, _), (b, _)] = [pair[0], pair[1]];
                        assert!((a[0] - b[0]).hypot(a[1] - b[1]) < 3.0 * STEP);
                    }
                }
            }
        }
    }
}
