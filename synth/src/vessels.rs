//! Arteries and veins: grown in the eye frame, then stamped as density.
//!
//! Four arcades leave the disc, each an artery next to a vein, on splines that curve around the
//! macula. Everything else grows from them by a steered random walk: a branch takes part of its
//! parent's width (Murray's law: cubes add up), heads for the fovea or the periphery, and
//! avoids vessels of its own kind; arteries and veins cross freely, as they do in an eye.

use super::arcades::{Course, STEP, VesselKind, Waypoint};
use super::canvas::{Rect, ScalarField};
use super::eye::Eye;
use super::noise::{lerp, smoothstep};
use super::rng::RandomStream;

/// Vessels end at this diameter, design pixels.
const THINNEST: f32 = 1.3;

/// A vessel as a chain of points: eye frame, design pixels, with the diameter at each.
#[derive(Clone, Debug)]
pub(super) struct Vessel {
    pub(super) kind: VesselKind,
    pub(super) points: Vec<([f32; 2], f32)>,
}

/// All vessels of one eye and where they lie.
pub(super) struct VesselTree {
    vessels: Vec<Vessel>,
    occupied: [Occupancy; 2],
}

/// Which vessel, if any, lies in each cell of a coarse grid over the eye frame.
struct Occupancy {
    cells: Vec<u16>,
}

impl Occupancy {
    const CELL: f32 = 5.0;
    const EDGE: usize = 640;

    fn new() -> Self {
        Self {
            cells: vec![0; Self::EDGE * Self::EDGE],
        }
    }

    fn index(p: [f32; 2]) -> Option<usize> {
        let place = p.map(|v| (v / Self::CELL + Self::EDGE as f32 / 2.0).floor());
        let inside = place.iter().all(|&v| v >= 0.0 && v < Self::EDGE as f32);
        inside.then(|| place[1] as usize * Self::EDGE + place[0] as usize)
    }

    fn get(&self, p: [f32; 2]) -> u16 {
        Self::index(p).map_or(0, |i| self.cells[i])
    }

    fn mark(&mut self, vessel: &Vessel, id: u16) {
        for &(p, width) in &vessel.points {
            let reach = (width / 2.0 + 5.0).max(Self::CELL);
            let n = (reach / Self::CELL).ceil() as i32;
            for (i, j) in (-n..=n).flat_map(|i| (-n..=n).map(move |j| (i, j))) {
                let q = [p[0] + i as f32 * Self::CELL, p[1] + j as f32 * Self::CELL];
                if let Some(cell) = Self::index(q)
                    .filter(|_| (i * i + j * j) as f32 * Self::CELL * Self::CELL <= reach * reach)
                {
                    self.cells[cell] = id;
                }
            }
        }
    }
}

/// A branch that waits to be grown.
struct Bud {
    kind: VesselKind,
    parent: u16,
    at: [f32; 2],
    heading: f32,
    width: f32,
    depth: u32,
}

impl VesselTree {
    /// Grows the vessels of `eye`.
    pub(super) fn grow(eye: &Eye, draw: &mut RandomStream) -> Self {
        let mut tree = Self {
            vessels: Vec::new(),
            occupied: [Occupancy::new(), Occupancy::new()],
        };
        let tortuosity = draw.skewed(0.7, 1.8, 1.6);
        let calibre = draw.range(0.85, 1.15);
        let clear = 1.3 * eye.disc_radius;
        let mut buds = Vec::new();
        // All vessels of a kind come out of the cup at one place.
        let roots = [VesselKind::Artery, VesselKind::Vein]
            .map(|_| [draw.range(-0.07, 0.0), 0.03 * draw.normal()]);
        for vertical in [-1.0, 1.0] {
            let course = Course::draw(vertical, draw);
            for (kind, widths) in [
                (VesselKind::Vein, [12.0, 17.0]),
                (VesselKind::Artery, [8.5, 12.0]),
            ] {
                let width = calibre * draw.range(widths[0], widths[1]);
                let root = roots[kind as usize];
                let path = course.temporal(root, kind, eye.fovea[0], tortuosity, draw);
                tree.trunk(kind, &path, width, clear, &mut buds, draw);
                let width = width * draw.range(0.6, 0.8);
                let path = course.nasal(root, kind, eye.fovea[0], tortuosity, draw);
                tree.trunk(kind, &path, width, clear, &mut buds, draw);
            }
        }
        small_disc_vessels(eye, &mut buds, draw);
        let mut generation = buds;
        while !generation.is_empty() {
            let mut next = Vec::new();
            for bud in &generation {
                tree.branch(eye, bud, tortuosity, &mut next, draw);
            }
            generation = next;
        }
        tree
    }

    /// True when a vessel lies at the eye-frame position.
    pub(super) fn covers(&self, p: [f32; 2]) -> bool {
        self.occupied.iter().any(|o| o.get(p) != 0)
    }

    /// Stamps all vessels of one kind as density: about 1 in the middle of a wide vessel.
    pub(super) fn paint(&self, eye: &Eye, kind: VesselKind, layer: &mut ScalarField) {
        for vessel in self.vessels.iter().filter(|v| v.kind == kind) {
            paint_blood(eye, vessel, layer);
        }
    }

    /// Stamps the reflex of the vessels of one kind, 0..1.
    pub(super) fn paint_reflex(&self, eye: &Eye, kind: VesselKind, layer: &mut ScalarField) {
        for vessel in self.vessels.iter().filter(|v| v.kind == kind) {
            paint_reflex(eye, vessel, layer);
        }
    }

    /// Adds a vessel as it is; its number.
    pub(super) fn add(&mut self, vessel: Vessel) -> u16 {
        // Past 65,535 vessels the last number is shared, which would only loosen their spacing.
        let id = (self.vessels.len() + 1).min(usize::from(u16::MAX)) as u16;
        self.occupied[vessel.kind as usize].mark(&vessel, id);
        self.vessels.push(vessel);
        id
    }

    /// Adds a vessel that runs along `path` from the disc outwards, and its buds.
    fn trunk(
        &mut self,
        kind: VesselKind,
        path: &[Waypoint],
        width: f32,
        clear: f32,
        buds: &mut Vec<Bud>,
        draw: &mut RandomStream,
    ) {
        let total = path.len().max(2) as f32 - 1.0;
        let mut points = Vec::with_capacity(path.len());
        let mut next_bud = clear + draw.range(30.0, 90.0);
        let mut side = draw.sign();
        let first = buds.len();
        let mut left = width;
        for (i, &(at, heading)) in path.iter().enumerate() {
            let along = i as f32 * STEP;
            let emerging = smoothstep(-20.0, 70.0, along);
            points.push((at, left * emerging * lerp(1.0, 0.5, i as f32 / total)));
            if along >= next_bud {
                let ratio = if draw.chance(0.3) {
                    draw.range(0.55, 0.75)
                } else {
                    draw.range(0.25, 0.5)
                };
                let bend = side * draw.range(0.5, 1.15);
                buds.push(Bud {
                    kind,
                    parent: 0,
                    at,
                    heading: heading + bend,
                    width: left * ratio,
                    depth: 1,
                });
                left *= remaining(ratio);
                side = if draw.chance(0.75) { -side } else { side };
                next_bud = along + draw.range(45.0, 165.0);
            }
        }
        taper(&mut points);
        let id = self.add(Vessel { kind, points });
        buds[first..].iter_mut().for_each(|bud| bud.parent = id);
    }

    /// Grows a bud as far as its width carries it; adds the vessel and its buds.
    fn branch(
        &mut self,
        eye: &Eye,
        bud: &Bud,
        tortuosity: f32,
        buds: &mut Vec<Bud>,
        draw: &mut RandomStream,
    ) {
        let budget = bud.width.powf(0.9) * draw.range(40.0, 90.0);
        let inward = heads_inward(eye, bud);
        let mut walk = Walk {
            p: bud.at,
            heading: bud.heading,
            start: bud.heading,
            drift: 0.0,
        };
        let (mut points, mut along) = (vec![(bud.at, bud.width)], 0.0);
        let (mut width, mut next_bud) = (bud.width, draw.range(25.0, 80.0));
        let first = buds.len();
        while along < budget && width > THINNEST {
            let free = |p: [f32; 2]| {
                let there = self.occupied[bud.kind as usize].get(p);
                there == 0 || (there == bud.parent && along < 60.0)
            };
            if !walk.advance(eye, inward, tortuosity, free, along < 24.0, draw) {
                break;
            }
            along += STEP;
            let current = width * lerp(1.0, 0.55, along / budget);
            points.push((walk.p, current));
            if along >= next_bud && bud.depth < 5 && current > 2.0 {
                let ratio = draw.range(0.45, 0.8);
                let side = draw.sign();
                let child = Bud {
                    kind: bud.kind,
                    parent: 0,
                    at: walk.p,
                    heading: walk.heading + side * draw.range(0.4, 1.0),
                    width: current * ratio,
                    depth: bud.depth + 1,
                };
                buds.push(child);
                width *= remaining(ratio).max(0.75);
                walk.heading -= side * draw.range(0.05, 0.3);
                next_bud = along + draw.range(30.0, 110.0);
            }
        }
        if points.len() < 6 {
            buds.truncate(first);
            return;
        }
        taper(&mut points);
        let id = self.add(Vessel {
            kind: bud.kind,
            points,
        });
        buds[first..].iter_mut().for_each(|child| child.parent = id);
    }
}

/// Thin vessels that leave the disc by themselves, towards the macula and the nose.
fn small_disc_vessels(eye: &Eye, buds: &mut Vec<Bud>, draw: &mut RandomStream) {
    for _ in 0..draw.count(5, 9) {
        let kind = if draw.chance(0.5) {
            VesselKind::Artery
        } else {
            VesselKind::Vein
        };
        let temporal = draw.chance(0.5);
        let heading = if temporal {
            draw.range(-0.7, 0.7)
        } else {
            std::f32::consts::PI + draw.range(-0.8, 0.8)
        };
        let from = draw.range(0.35, 0.85) * eye.disc_radius;
        let at = [from * heading.cos(), from * heading.sin()];
        let width = if temporal {
            draw.range(2.4, 4.2)
        } else {
            draw.range(3.0, 6.5)
        };
        buds.push(Bud {
            kind,
            parent: 0,
            at,
            heading,
            width,
            depth: 2,
        });
    }
}

/// Branches that start off towards the fovea keep going there; the others seek the periphery.
fn heads_inward(eye: &Eye, bud: &Bud) -> bool {
    let to_fovea = (eye.fovea[1] - bud.at[1]).atan2(eye.fovea[0] - bud.at[0]);
    let near = (bud.at[0] - eye.fovea[0]).hypot(bud.at[1] - eye.fovea[1]) < 1.25 * eye.fovea[0];
    near && angle_between(bud.heading, to_fovea).abs() < 1.35 && bud.at[0] > 0.0
}

/// The tip of a growing branch.
struct Walk {
    p: [f32; 2],
    heading: f32,
    /// The heading it began with.
    start: f32,
    /// Turn per step that persists for a while.
    drift: f32,
}

impl Walk {
    /// One step; false when the branch ends here. `free` tells whether a position is unoccupied,
    /// `leaving` that the branch has not yet cleared its parent.
    fn advance(
        &mut self,
        eye: &Eye,
        inward: bool,
        tortuosity: f32,
        free: impl Fn([f32; 2]) -> bool,
        leaving: bool,
        draw: &mut RandomStream,
    ) -> bool {
        let to_fovea = [eye.fovea[0] - self.p[0], eye.fovea[1] - self.p[1]];
        let distance = to_fovea[0].hypot(to_fovea[1]);
        // The fovea itself has no vessels, and a vessel does not run in circles.
        if distance < 0.16 * eye.fovea[0] || (self.heading - self.start).abs() > 2.2 {
            return false;
        }
        let target = if inward {
            to_fovea[1].atan2(to_fovea[0])
        } else {
            (self.p[1] - 0.5 * eye.fovea[1]).atan2(self.p[0] - 0.45 * eye.fovea[0])
        };
        self.drift = 0.88 * self.drift + 0.027 * tortuosity * draw.normal();
        self.heading += 0.02 * angle_between(self.heading, target).clamp(-1.0, 1.0) + self.drift;
        let ahead =
            |angle: f32, by: f32| [self.p[0] + by * angle.cos(), self.p[1] + by * angle.sin()];
        if !leaving {
            let turns = [0.0, 0.35, -0.35, 0.8, -0.8];
            let Some(turn) = turns
                .into_iter()
                .find(|t| free(ahead(self.heading + t, 12.0)))
            else {
                return false;
            };
            self.heading += 0.4 * turn;
        }
        self.p = ahead(self.heading, STEP);
        let image = eye.to_image(self.p);
        eye.depth(image[0], image[1]) > -20.0 * eye.scale
    }
}

/// Signed angle from `a` to `b` in -pi..pi.
fn angle_between(a: f32, b: f32) -> f32 {
    let d = b - a;
    d.sin().atan2(d.cos())
}

/// The share of its diameter that a vessel keeps beyond a branch of `ratio` times it (Murray's law).
fn remaining(ratio: f32) -> f32 {
    (1.0 - ratio * ratio * ratio).cbrt()
}

/// Lets the last part of a branch thin out instead of stopping short.
fn taper(points: &mut [([f32; 2], f32)]) {
    let end = points.len().min(14);
    let start = points.len() - end;
    for (i, point) in points[start..].iter_mut().enumerate() {
        point.1 = point.1.min(lerp(point.1, 0.9, (i + 1) as f32 / end as f32));
    }
}

/// Calls `stamp` with end points (image pixels) and mean diameter (design pixels) of each segment.
fn for_each_segment(eye: &Eye, vessel: &Vessel, mut stamp: impl FnMut([f32; 2], [f32; 2], f32)) {
    for pair in vessel.points.windows(2) {
        stamp(
            eye.to_image(pair[0].0),
            eye.to_image(pair[1].0),
            0.5 * (pair[0].1 + pair[1].1),
        );
    }
}

/// Stamps `profile(distance from the segment)` up to `reach` from it.
fn stamp_segment(
    layer: &mut ScalarField,
    a: [f32; 2],
    b: [f32; 2],
    reach: f32,
    profile: impl Fn(f32) -> f32,
) {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let squared = (dx * dx + dy * dy).max(1e-6);
    let around = reach + 0.5 * squared.sqrt() + 1.0;
    let rect = Rect::around(0.5 * (a[0] + b[0]), 0.5 * (a[1] + b[1]), around, layer.size);
    layer.stamp(rect, |x, y| {
        let t = (((x - a[0]) * dx + (y - a[1]) * dy) / squared).clamp(0.0, 1.0);
        profile((x - a[0] - t * dx).hypot(y - a[1] - t * dy))
    });
}

/// The column of blood: darkest in the middle, where it is thickest.
fn paint_blood(eye: &Eye, vessel: &Vessel, layer: &mut ScalarField) {
    for_each_segment(eye, vessel, |a, b, width| {
        let half = (0.5 * width * eye.scale).max(0.4);
        // A vessel thinner than a pixel is as dark as the part of the pixel that it covers.
        let thin = (0.5 * width * eye.scale / half).min(1.0);
        let peak = thin * (1.0 - (-(width + 0.6) / 4.6).exp());
        let soft = 0.35 * half.min(2.0 * eye.scale) + 0.45;
        stamp_segment(layer, a, b, half + soft, |d| {
            let r = (d / half).min(1.0);
            let depth = 0.72 + 0.28 * (1.0 - r * r).sqrt();
            peak * smoothstep(half + soft, half - soft, d) * depth
        });
    });
}

/// The light that the wall of a wide vessel throws back along its middle.
fn paint_reflex(eye: &Eye, vessel: &Vessel, layer: &mut ScalarField) {
    for_each_segment(eye, vessel, |a, b, width| {
        let shine = smoothstep(4.0, 9.0, width);
        if shine > 0.0 {
            let half = 0.22 * width * eye.scale;
            stamp_segment(layer, a, b, half, |d| shine * smoothstep(half, 0.0, d));
        }
    });
}
